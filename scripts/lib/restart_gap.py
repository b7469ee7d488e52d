"""Restarts and traffic of scripts/bench restart.

    restart_gap.py VIFSWITCH DIRECTORY

Uses DIRECTORY/config.toml, with the taps a0 and a2 in the namespace bench-a and b0 in bench-b. Restarts the switch once by
SIGTERM and once by SIGKILL under a stream, and prints both gaps in ms. Fails if the third port receives a flooded frame.
Each stream ends with a frame that is sent after all others.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

from traffic import BROADCAST, EXPERIMENT, OUTGOING, PATIENCE, Port

RATE = 10_000  # frames a second
ALL = -1
SPEAKER, HEARER = bytes.fromhex("0a0000000001"), bytes.fromhex("0a0000000002")


def frame(to, sender, number):
    kind = EXPERIMENT.to_bytes(2, "big")
    return to + sender + kind + number.to_bytes(8, "big", signed=True) + bytes(38)


def number_of(data):
    return int.from_bytes(data[14:22], "big", signed=True)


class Switch:
    """The switch, run as by a supervisor."""

    def __init__(self, program, directory):
        self.command = [program, "run", "--config", f"{directory}/config.toml"]
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(f"{directory}/notify")
        self.notify.settimeout(PATIENCE)
        self.environment = os.environ | {"NOTIFY_SOCKET": f"{directory}/notify"}
        self.log = open(f"{directory}/log", "ab")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(self.command, env=self.environment, stderr=self.log)
        while b"READY=1" not in self.notify.recv(4096).splitlines():
            pass

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait()


class Stream:
    """A thread that sends frames from one port to a station at another port, at a rate."""

    def __init__(self, sender, receiver):
        self.sender, self.receiver = sender.socket, receiver.socket
        for end in (self.sender, self.receiver):
            end.setblocking(False)
        self.offered, self.came, self.last = 0, 0, 0
        self.ended, self.heard = False, threading.Condition()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def offer(self, number):
        try:
            self.sender.send(frame(HEARER, SPEAKER, number))
        except OSError:
            pass  # no process has the tap open while the switch is restarted: the frame is lost

    def take(self):
        while True:
            try:
                data, address = self.receiver.recvfrom(2048)
            except BlockingIOError:
                return
            if address[2] != OUTGOING and data[:6] == HEARER:
                with self.heard:
                    self.came, self.last = self.came + 1, number_of(data) + 1
                    self.heard.notify()

    def run(self):
        begin = time.monotonic()
        while not self.ended:
            due = int((time.monotonic() - begin) * RATE)
            for number in range(self.offered, due):
                self.offer(number)
            self.offered = max(due, self.offered)
            self.take()
            # constant rate: late frames are sent at once
            select.select([], [], [], 0.0005)

    def await_one(self):
        """Waits until a frame that is yet to be sent arrives."""
        with self.heard:
            offered = self.offered
            if not self.heard.wait_for(lambda: self.last > offered, PATIENCE):
                sys.exit("no frames arrive")

    def finish(self):
        """Stops; returns the number of lost frames."""
        self.ended = True
        self.thread.join()
        last = self.offered
        self.offer(last)
        end = time.monotonic() + PATIENCE
        while self.last <= last:
            if not select.select([self.receiver], [], [], max(0, end - time.monotonic()))[0]:
                sys.exit("the last frame did not arrive")
            self.take()
        return self.offered + 1 - self.came


def flooded(speaker, third):
    """Number of frames that the third port has received although they were not for it."""
    third.heard = []
    speaker.send(frame(BROADCAST, SPEAKER, ALL))
    if not third.listen_until(frame(BROADCAST, SPEAKER, ALL)):
        sys.exit("the third port receives nothing")
    return len(third.heard)


def main(program, directory):
    switch = Switch(program, directory)
    switch.start()
    try:
        a, b, c = Port("bench-a", "a0"), Port("bench-b", "b0"), Port("bench-a", "a2")
        b.send(frame(BROADCAST, HEARER, ALL))
        if not c.listen_until(frame(BROADCAST, HEARER, ALL)):
            sys.exit("the third port receives nothing")
        flooded(a, c)
        # the orderly restart first: it stores the FDB, which the killed switch then restores, too
        for how, what in ((signal.SIGTERM, "planned"), (signal.SIGKILL, "killed")):
            stream = Stream(a, b)
            stream.await_one()
            switch.end(how)
            switch.start()
            stream.await_one()
            lost, stray = stream.finish(), flooded(a, c)
            if stray:
                sys.exit(f"the restart ({what}) flooded {stray} frames")
            print(f"{what} {lost / RATE * 1000:.1f}")
    finally:
        switch.end(signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
