"""Restarts and traffic of scripts/bench restart.

    restart_gap.py VIFSWITCH DIRECTORY [--stations NUMBER] [--keep]
    scripts/lib/box restart_gap.py VIFSWITCH --service [--stations NUMBER]

The station at the receiving port is learned first, then others at the third port, which are younger. With --keep the
descriptors that the switch stores are kept and passed to it, as systemd does; with --service systemd itself does it.

Uses DIRECTORY/config.toml, with the taps a0 and a2 in the namespace bench-a and b0 in bench-b; with --service a configuration
of its own. Restarts the switch once by SIGTERM and once by SIGKILL under a stream, and prints of both the gap in ms, which is
the number of lost frames by their rate, this number, and the longest latency in ms. Fails if the third port receives a flooded
frame. Each stream ends with a frame that is sent after all others.
"""

import argparse
import fcntl
import json
import os
import signal
import socket
import sys
import time

from service import Service
from stream import ALL, HEARER, RATE, SPEAKER, Stream, flooded, frame
from traffic import BROADCAST, PATIENCE, Port


class Process:
    """A forked process."""

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def wait(self):
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)


class Switch:
    """The switch, run as by a supervisor, which keeps descriptors if `keeps`."""

    def __init__(self, program, directory, keeps=False):
        self.command = [program, "run", "--config", f"{directory}/config.toml"]
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(f"{directory}/notify")
        self.notify.settimeout(PATIENCE)
        self.environment = os.environ | {"NOTIFY_SOCKET": f"{directory}/notify"}
        self.log = open(f"{directory}/log", "ab")
        self.api = f"{directory}/api.sock"
        self.process = None
        self.keeps, self.kept = keeps, []

    def receive(self):
        """The lines of the next notification; what is to be kept or removed is."""
        text, descriptors, _, _ = socket.recv_fds(self.notify, 4096, 253)
        lines = text.decode().splitlines()
        name = next((line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")), None)
        if "FDSTORE=1" in lines and self.keeps:
            self.kept += [(name, descriptor) for descriptor in descriptors]
        elif "FDSTOREREMOVE=1" in lines:
            for of, descriptor in self.kept:
                if of == name:
                    os.close(descriptor)
            self.kept = [kept for kept in self.kept if kept[0] != name]
        return lines

    def start(self):
        names = ":".join(name for name, _ in self.kept)
        environment = self.environment | {"LISTEN_FDS": str(len(self.kept)), "LISTEN_FDNAMES": names}
        if self.keeps:
            environment["FDSTORE"] = "6000"
        pid = os.fork()
        if pid == 0:
            self.become(environment)
        self.process = Process(pid)
        while "READY=1" not in self.receive():
            pass

    def become(self, environment):
        """In the child: passes the kept descriptors from number 3 on."""
        try:
            os.dup2(self.log.fileno(), 2)
            above = 3 + len(self.kept)
            copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, max(above, 64)) for _, descriptor in self.kept]
            for place, copy in enumerate(copies, 3):
                os.dup2(copy, place)
                os.close(copy)
            os.execve(self.command[0], self.command, environment | {"LISTEN_PID": str(os.getpid())})
        finally:
            os._exit(127)

    def await_kept(self, number):
        """Waits until this many descriptors are kept."""
        while len(self.kept) < number:
            self.receive()

    def end(self, how):
        os.kill(self.process.pid, how)
        self.process.wait()

    def restart(self, how):
        self.end(how)
        self.start()


def stations(api):
    """Number of learned stations."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(api)
        client.sendall(b"GET /v1/workers HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])[0]["stations"]


def learn(switch, sender, number):
    """Teaches the switch stations at a port, and waits until it knows all."""
    done, end = 0, time.monotonic() + 10 * PATIENCE
    while (known := stations(switch.api)) < number:
        if time.monotonic() > end:
            sys.exit(f"{known} of {number} stations have been learned")
        # again, where frames were lost
        for done in range(number):
            sender.send(frame(SPEAKER, (0x0E0000000000 + done).to_bytes(6, "big"), ALL))
            if done % 512 == 511:
                time.sleep(0.002)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("directory", nargs="?")
    parser.add_argument("--stations", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--service", action="store_true")
    options = parser.parse_args()
    if options.service:
        switch = Service.installed(options.program)
    else:
        switch = Switch(options.program, options.directory, options.keep)
    switch.start()
    try:
        if options.keep:
            switch.await_kept(4)
        a, b, c = Port("bench-a", "a0"), Port("bench-b", "b0"), Port("bench-a", "a2")
        b.send(frame(BROADCAST, HEARER, ALL))
        if not c.listen_until(frame(BROADCAST, HEARER, ALL)):
            sys.exit("the third port receives nothing")
        flooded(a, c)
        learn(switch, c, options.stations)
        # the orderly restart first: it stores the FDB, which the killed switch then restores, too
        for how, what in ((signal.SIGTERM, "planned"), (signal.SIGKILL, "killed")):
            stream = Stream(a, b)
            stream.await_one()
            switch.restart(how)
            stream.await_one()
            lost, stray = stream.finish(), flooded(a, c)
            if stray:
                sys.exit(f"the restart ({what}) flooded {stray} frames")
            print(f"{what} {lost / RATE * 1000:.1f}\n{what}-lost {lost}\n{what}-longest {stream.longest * 1000:.1f}")
    finally:
        switch.end(signal.SIGTERM)


if __name__ == "__main__":
    main()
