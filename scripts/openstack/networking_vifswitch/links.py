"""Netdevs that appear on this host: hints by netlink (rtnetlink(7)), and their indices."""

import errno
import logging
import socket
import struct
import threading

LOG = logging.getLogger(__name__)
RTMGRP_LINK, RTM_NEWLINK, RTM_DELLINK, IFLA_IFNAME = 1, 16, 17, 3
HEADER, IFINFO = struct.Struct("=IHHII"), 16


def taps():
    """Indices of the netdevs that have a name like Nova's taps, by name."""
    return {name: index for index, name in socket.if_nameindex() if name.startswith("tap")}


def names(data):
    """Names of the links that messages are about."""
    while len(data) >= HEADER.size:
        length, kind, *_ = HEADER.unpack_from(data)
        if length < HEADER.size or length > len(data):
            return
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            yield from attributes(data[HEADER.size + IFINFO : length], IFLA_IFNAME)
        data = data[(length + 3) & ~3 :]


def attributes(data, wanted):
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4 or length > len(data):
            return
        if kind == wanted:
            yield data[4:length].rstrip(b"\0").decode(errors="replace")
        data = data[(length + 3) & ~3 :]


class Watch:
    """Calls `hint` with a name for each change of a tap, and with None if messages were lost."""

    def __init__(self, hint):
        self.hint = hint
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.socket.bind((0, RTMGRP_LINK))

    def start(self):
        threading.Thread(target=self.run, name="links", daemon=True).start()

    def run(self):
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except OSError as problem:
                if problem.errno != errno.ENOBUFS:
                    LOG.error("netlink: %s; taps are found by the periodic check only", problem)
                    return
                self.hint(None)
                continue
            for name in names(data):
                if name.startswith("tap"):
                    self.hint(name)
