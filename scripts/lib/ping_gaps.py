"""Measures how long a VM does not answer, for scripts/libvirt-lab.

    ping_gaps.py ADDRESS SECONDS SPACE… -- COMMAND…

Pings ADDRESS 50 times per second from each network namespace. When each has got ten answers, it runs COMMAND, and then waits until
each has got fifty more. Prints the longest time without an answer from each namespace. Fails if one is longer than SECONDS, or if
COMMAND fails.
"""

import re
import subprocess
import sys
import threading
import time

INTERVAL = 0.02
PATIENCE = 120  # seconds for the answers before and after; the processor may be emulated and busy
ANSWER = re.compile(r"^\[(\d+\.\d+)\] .*icmp_seq=\d+ ttl=")


class Pings:
    """Pings from a namespace, read in the background."""

    def __init__(self, space, address):
        self.space, self.times, self.changed = space, [], threading.Condition()
        command = ["ip", "netns", "exec", space, "ping", "-n", "-D", "-i", str(INTERVAL), "-W", "1", address]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            if answer := ANSWER.match(line):
                with self.changed:
                    self.times.append(float(answer[1]))
                    self.changed.notify()

    def await_more(self, count):
        with self.changed:
            goal = len(self.times) + count
            if not self.changed.wait_for(lambda: len(self.times) >= goal, PATIENCE):
                sys.exit(f"{self.space}: only {len(self.times)} answers")

    def end(self):
        self.process.kill()
        self.process.wait()
        return max(later - earlier for earlier, later in zip(self.times, self.times[1:]))


def gaps(address, limit, *rest):
    end = rest.index("--")
    everybody = [Pings(space, address) for space in rest[:end]]
    for pings in everybody:
        pings.await_more(10)
    since = time.monotonic()
    done = subprocess.run(rest[end + 1 :])
    took = time.monotonic() - since
    for pings in everybody:
        pings.await_more(50)
    longest = {pings.space: pings.end() for pings in everybody}
    print(f"{rest[end + 1]} ends with {done.returncode} after {took:.1f} s")
    for space, gap in longest.items():
        print(f"longest time without an answer, from {space}: {gap:.2f} s")
    return done.returncode == 0 and all(gap <= float(limit) for gap in longest.values())


if __name__ == "__main__":
    sys.exit(0 if gaps(*sys.argv[1:]) else 1)
