"""A stream of numbered frames to a station that a switch has learned, and how many of them are lost.

The stream goes from one port of the switch to a station at another one, at a constant rate. A third port receives what the
switch floods. Latencies begin when a frame was due.
"""

import select
import sys
import threading
import time

from traffic import BROADCAST, EXPERIMENT, OUTGOING, PATIENCE

RATE = 10_000  # frames a second
ALL = -1
SPEAKER, HEARER = bytes.fromhex("0a0000000001"), bytes.fromhex("0a0000000002")


def frame(to, sender, number):
    kind = EXPERIMENT.to_bytes(2, "big")
    return to + sender + kind + number.to_bytes(8, "big", signed=True) + bytes(38)


def number_of(data):
    return int.from_bytes(data[14:22], "big", signed=True)


class Stream:
    """A thread that sends frames from one port to a station at another port, at a rate."""

    def __init__(self, sender, receiver, rate=RATE):
        self.sender, self.receiver, self.rate = sender.socket, receiver.socket, rate
        for end in (self.sender, self.receiver):
            end.setblocking(False)
        self.offered, self.came, self.last = 0, 0, 0
        self.longest = 0.0  # maximum latency in seconds
        self.begin = time.monotonic()
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
            except OSError:
                return  # none, or the netdev is down
            if address[2] != OUTGOING and data[:6] == HEARER:
                number = number_of(data)
                late = time.monotonic() - self.begin - number / self.rate
                with self.heard:
                    self.came, self.last = self.came + 1, number + 1
                    self.longest = max(self.longest, late)
                    self.heard.notify()

    def run(self):
        while not self.ended:
            due = int((time.monotonic() - self.begin) * self.rate)
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
