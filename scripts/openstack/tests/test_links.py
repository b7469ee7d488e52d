"""Messages of rtnetlink about links, valid and damaged."""

import random
import struct
import unittest

from networking_vifswitch import links


def message(name, kind=links.RTM_NEWLINK):
    text = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(text), links.IFLA_IFNAME) + text
    attribute += bytes(-len(attribute) % 4)
    other = struct.pack("=HHI", 8, 4, 1500)
    body = bytes(links.IFINFO) + other + attribute
    return links.HEADER.pack(links.HEADER.size + len(body), kind, 0, 0, 0) + body


class Messages(unittest.TestCase):
    def test_names_are_found_in_several_messages(self):
        data = message("tap1234") + message("eth0", links.RTM_DELLINK) + message("lo", 20) + message("x")
        self.assertEqual(list(links.names(data)), ["tap1234", "eth0", "x"])

    def test_damaged_messages_end_and_raise_nothing(self):
        whole, dice = message("tap1234") + message("eth0"), random.Random(1)
        for _ in range(3000):
            data = bytearray(whole[: dice.randrange(len(whole) + 1)])
            for _ in range(dice.randrange(4)):
                if data:
                    data[dice.randrange(len(data))] = dice.randrange(256)
            self.assertLess(len(list(links.names(bytes(data)))), 40)

    def test_an_attribute_or_message_without_a_length_ends_it(self):
        for place, size in ((links.HEADER.size + links.IFINFO, 2), (0, 4)):
            data = bytearray(message("tap1234"))
            data[place : place + size] = bytes(size)
            self.assertEqual(list(links.names(bytes(data))), [])

    def test_the_watch_hears_of_a_real_socket(self):
        watch = links.Watch(lambda name: None)
        self.addCleanup(watch.socket.close)
        self.assertEqual(watch.socket.getsockname()[1], links.RTMGRP_LINK)

    def test_taps_are_netdevs_with_their_names(self):
        self.assertTrue(all(name.startswith("tap") for name in links.taps()))


if __name__ == "__main__":
    unittest.main()
