"""Traffic for scripts/evpn-lab: streams of numbered frames to a VM that moves, and frames by which VMs tell where they are.

    evpn.py stream RATE LIMIT ADDRESS SPACE:DEVICE:ADDRESS… -- SPACE:DEVICE…
        Observers send RATE frames a second each to ADDRESS, which is behind one of the devices behind "--" at a time.
        Prints "flows" when a frame of each observer has arrived. On SIGUSR1 waits until a frame that is sent after that
        arrives from each, for LIMIT seconds at most, and prints
            (recovered | dark) LONGEST LOST SENT
        LONGEST is the longest run of lost frames of an observer in milliseconds, LOST the number of all lost frames.
    evpn.py rarp SPACE DEVICE ADDRESS
        Sends the RARP request that QEMU sends after a migration.

Needs root and the Python standard library.
"""

import signal
import sys
import time

from traffic import BROADCAST, EXPERIMENT, OUTGOING, PATIENCE, Port

RARP = bytes.fromhex("8035" "0001" "0800" "06" "04" "0003")


def address(text):
    return bytes.fromhex(text.replace(":", ""))


def rarp(space, device, of):
    Port(space, device).send(BROADCAST + of + RARP + of + bytes(4) + of + bytes(4) + bytes(18))


class Observer:
    """Sends numbered frames at a constant rate."""

    def __init__(self, index, port, sender, target):
        self.head = target + sender + EXPERIMENT.to_bytes(2, "big") + bytes([index])
        self.port, self.offered, self.came = port, 0, []

    def offer(self, due):
        for number in range(self.offered, due):
            try:
                self.port.send(self.head + number.to_bytes(8, "big") + bytes(37))
            except OSError:
                pass  # its host is dead: the frame is lost
        self.offered = max(due, self.offered)

    def longest(self, rate):
        """The longest run of lost frames, in milliseconds."""
        numbers = sorted({-1, self.offered, *self.came})
        return max(b - a - 1 for a, b in zip(numbers, numbers[1:])) / rate * 1000

    def lost(self):
        return self.offered - len(set(self.came))


def receive(receiver, target, observers):
    while True:
        try:
            data, source = receiver.socket.recvfrom(2048)
        except BlockingIOError:
            return
        except OSError:
            continue  # the netdev was set down; reported once
        if source[2] != OUTGOING and data.startswith(target) and data[12:14] == EXPERIMENT.to_bytes(2, "big"):
            observers[data[14]].came.append(int.from_bytes(data[15:23], "big"))


def stream(rate, limit, target, observers, receivers):
    for end in [observer.port for observer in observers] + receivers:
        end.socket.setblocking(False)
    begin, flows, ending, told = time.monotonic(), False, None, []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(True))
    while True:
        now = time.monotonic()
        for observer in observers:
            observer.offer(int((now - begin) * rate))
        for receiver in receivers:
            receive(receiver, target, observers)
        if not flows and all(observer.came for observer in observers):
            flows = True
            print("flows", flush=True)
        elif not flows and now > begin + PATIENCE:
            sys.exit("no frame arrives")
        if ending is None and told:
            ending = now, [observer.offered for observer in observers]
        if ending is not None:
            since, offered = ending
            recovered = all(max(o.came, default=-1) >= last for o, last in zip(observers, offered))
            if recovered or now > since + limit:
                break
        # late frames are sent at once
        time.sleep(0.001)
    if recovered:
        # frames that are on their way are not lost
        for observer in observers:
            observer.offered = max(observer.came) + 1
    longest = max(observer.longest(rate) for observer in observers)
    lost, sent = (sum(each) for each in zip(*((o.lost(), o.offered) for o in observers)))
    print("recovered" if recovered else "dark", round(longest), lost, sent)


def main():
    what, *words = sys.argv[1:]
    if what == "rarp":
        rarp(words[0], words[1], address(words[2]))
        return
    rate, limit, target, *words = words
    of = words.index("--")
    target, observers = address(target), []
    for index, word in enumerate(words[:of]):
        space, device, sender = word.split(":", 2)
        observers.append(Observer(index, Port(space, device), address(sender), target))
    stream(int(rate), float(limit), target, observers, [Port(*word.split(":")) for word in words[of + 1 :]])


if __name__ == "__main__":
    main()
