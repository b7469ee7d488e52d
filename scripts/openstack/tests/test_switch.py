"""The client of the API: errors, generations, events."""

import os
import socket
import tempfile
import threading
import unittest

from networking_vifswitch import switch
from networking_vifswitch.switch import Moved, Refused, Switch, Unreachable, path_of

from tests.fakes import FakeSwitch


class Client(unittest.TestCase):
    def setUp(self):
        self.fake = FakeSwitch()
        self.addCleanup(self.fake.close)
        self.switch = Switch(self.fake.path)

    def test_errors_have_kind_and_reason(self):
        with self.assertRaises(Refused) as caught:
            self.switch.request("PUT", path_of("networks", "n"), {"mtu": 1})
        self.assertEqual((caught.exception.status, str(caught.exception)), (400, "bad_value: mtu = 1: 68 to 9216"))
        with self.assertRaises(Moved):
            self.switch.request("PUT", path_of("networks", "n"), {}, generation=77)
        self.assertEqual(self.fake.writes, [])

    def test_ids_of_any_characters_are_one_path(self):
        self.assertEqual(path_of("ports", "a/b ?#ü"), "/v1/ports/a%2Fb%20%3F%23%C3%BC")

    def test_a_write_answers_its_generation(self):
        generation = self.switch.config()[1]
        self.assertEqual(self.switch.request("PUT", path_of("networks", "n"), {}, generation)[1], generation + 1)

    def test_a_switch_that_is_dead_or_hangs_is_unreachable(self):
        self.fake.kill()
        self.assertFalse(self.switch.is_ready())
        with self.assertRaises(Unreachable):
            self.switch.config()
        with self.assertRaises(Unreachable):
            next(self.switch.follow())
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as silent:
            silent.bind(os.path.join(directory, "s"))
            silent.listen()
            with self.assertRaisesRegex(Unreachable, "GET /v1/config at .*timed out"):
                Switch(os.path.join(directory, "s")).request("GET", "/v1/config", timeout=0.05)

    def test_answers_that_are_no_http_or_json_are_unreachable(self):
        for text in (
            b"nonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        ):
            with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as strange:
                strange.bind(os.path.join(directory, "s"))
                strange.listen()

                def answer():
                    one, _ = strange.accept()
                    one.recv(4096)
                    one.sendall(text)
                    one.close()

                thread = threading.Thread(target=answer)
                thread.start()
                with self.assertRaises(Unreachable):
                    Switch(os.path.join(directory, "s")).config()
                thread.join()

    def test_a_starting_switch_is_not_ready(self):
        self.assertTrue(self.switch.is_ready())
        self.fake.is_ready = False
        self.assertFalse(self.switch.is_ready())

    def test_events_continue_behind_the_last_one(self):
        for name in "abc":
            self.fake.event("port_up", [name])
        stream = self.switch.follow(after=100)
        self.assertEqual([next(stream)["ports"], next(stream)["ports"]], [["b"], ["c"]])
        self.fake.event("port_down", ["d"])
        self.assertEqual(next(stream)["id"], 103)
        stream.close()

    def test_events_without_a_place_are_those_from_now_on(self):
        self.fake.event("port_up", ["old"])
        connected = threading.Event()
        stream, found = self.switch.follow(connected=connected.set), []
        thread = threading.Thread(target=lambda: found.append(next(stream)))
        thread.start()
        self.assertTrue(connected.wait(10))
        self.fake.event("port_up", ["new"])
        thread.join(10)
        self.assertEqual(found[0]["ports"], ["new"])
        stream.close()

    def test_the_stream_ends_with_the_switch(self):
        self.fake.event("port_up", ["a"])
        stream = self.switch.follow(after=99)
        next(stream)
        self.fake.kill()
        with self.assertRaises((StopIteration, Unreachable)):
            next(stream)
        self.assertGreater(switch.SILENCE, 15, "the switch sends a comment every 15 s")

    def test_own_changes_are_recognised(self):
        self.switch.request("PUT", path_of("networks", "n"), {})
        Switch(self.fake.path).request("PUT", path_of("networks", "m"), {})
        stream = self.switch.follow(after=99)
        self.assertEqual([self.switch.is_own(next(stream)) for _ in range(2)], [True, False])
        stream.close()
        self.assertFalse(self.switch.is_own({"kind": "config"}))


if __name__ == "__main__":
    unittest.main()
