"""Load, samples and verdict of scripts/soak.

    soak.py run VIFSWITCH DIRECTORY SECONDS MARGIN      the whole test
    soak.py echo                                        a measures echoes of b; prints a line per tenth of a second
    soak.py reflect                                     b returns what a has sent
    soak.py storm                                       s sends broadcasts in bursts; prints a line per burst

Needs the namespaces soak-… and root. Activities run in threads of their own until the time is over; each waits for the
effect of what it has done. MARGIN is in percent of the permitted differences.
"""

import ctypes
import errno
import functools
import http.client
import itertools
import json
import os
import random
import select
import signal
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import guests
from restart_gap import Switch
from traffic import BROADCAST, OUTGOING, PATIENCE, Port, experiment, inside

wait_for = functools.partial(guests.wait_for, pause=0.01)

ECHO, OTHER = 0x88B5, 0x88B6  # ethertypes for local experiments (IEEE 802)
STATIONS = 1000  # learned addresses
FRAMES = 16384  # slots of the pool
PR_SET_THP_DISABLE = 41  # prctl(2)
TENTH = 0.1  # seconds


def mac(number):
    return bytes([2, 0, 0, 0, 1, number])


def text(address):
    return address.hex(":")


A, B, S, M, L0, L1, PACKET, XDP = map(mac, range(1, 9))

CONFIG = """
[switch]
api = "{directory}/api.sock"
state = "{directory}/state.db"
frames = {frames}
[[networks]]
id = "net"
"""

VM = """
[[vms]]
id = "{vm}"
"""

PORT = """
[[vms.ports]]
port_id = "{port}"
network_id = "net"
mac_address = "{mac}"
port_security = "{security}"
device = {{ kind = "{kind}", name = "{port}", netns = "{space}"{more} }}
"""


def write_config(directory, ports):
    """Ports: (VM, port, MAC, security, kind, namespace)."""
    os.makedirs(directory)
    with open(f"{directory}/config.toml", "w") as file:
        file.write(CONFIG.format(directory=directory, frames=FRAMES))
        for vm, its in itertools.groupby(ports, lambda port: port[0]):
            file.write(VM.format(vm=vm))
            for _, port, address, security, kind, space in its:
                more = ", persist = false" if kind == "tap" else ""
                file.write(PORT.format(port=port, mac=text(address), security=security, kind=kind, space=space, more=more))


class Connection(http.client.HTTPConnection):
    """To the API's unix socket."""

    def __init__(self, path):
        super().__init__("vifswitch", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Api:
    def __init__(self, path):
        self.path = path

    def __call__(self, method, path, body=None):
        connection = Connection(self.path)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = json.loads(answer.read() or "null")
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content}")
        return content


def frame(to, sender, length=60):
    return to + sender + OTHER.to_bytes(2, "big") + bytes(length - 14)


def send(port, frame):
    """Sends a frame, or loses it: the link may be down, or the queue full."""
    try:
        port.send(frame)
    except OSError as error:
        if error.errno not in (errno.ENETDOWN, errno.ENOBUFS, errno.ENXIO):
            raise


def ip(space, command):
    subprocess.run(["ip", "-n", space, *command.split()], check=True)


def children_of(directory):
    return len(os.listdir(directory))


class Activity(threading.Thread):
    """Does something over and over, with a pause in between, until the end."""

    def __init__(self, work, pause):
        super().__init__(daemon=True)
        self.work, self.pause, self.count, self.failure = work, pause, 0, None
        self.ended = threading.Event()

    def run(self):
        try:
            while not self.ended.is_set():
                self.work()
                self.count += 1
                self.ended.wait(self.pause)
        except Exception as error:  # reported at the end
            self.failure = f"{type(error).__name__}: {error}"

    def end(self):
        self.ended.set()
        self.join(4 * PATIENCE)
        if self.is_alive():
            self.failure = "does not end"


class Lines:
    """Lines of a child process, each with its time."""

    def __init__(self, *arguments):
        self.lines = []
        self.process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), [float(word) for word in line.split()]))

    def end(self):
        self.process.kill()
        self.process.wait()


# ---- child processes ----


def open_port(space, device, kind):
    """Receives frames of one ethertype only."""

    def opened():
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.bind((device, kind))
        return s

    return inside(space, opened)


def reflect():
    port = open_port("soak-b", "b", ECHO)
    while True:
        data, address = port.recvfrom(2048)
        if address[2] != OUTGOING and data[6:12] == A:
            port.send(A + B + data[12:])


def echo():
    """Each tenth of a second: p50 and p99 in microseconds, sent, lost. A request is lost after a second."""
    port = open_port("soak-a", "a", ECHO)
    sent_at, number, trips, lost, sent = {}, 0, [], 0, 0
    begin = time.monotonic()
    shown = begin
    while True:
        now = time.monotonic()
        if now - begin >= number * 0.01:
            sent_at[number] = now
            port.send(B + A + ECHO.to_bytes(2, "big") + number.to_bytes(8, "big") + bytes(38))
            number, sent = number + 1, sent + 1
        for old in [n for n, at in sent_at.items() if now - at > 1]:
            del sent_at[old]
            lost += 1
        if now - shown >= TENTH:
            if trips:
                trips.sort()
                print(trips[len(trips) // 2] * 1e6, trips[len(trips) * 99 // 100] * 1e6, sent, lost, flush=True)
            trips, lost, sent, shown = [], 0, 0, now
        while select.select([port], [], [], max(0, begin + number * 0.01 - time.monotonic()))[0]:
            data, address = port.recvfrom(2048)
            if address[2] != OUTGOING and data[:6] == A:
                at = sent_at.pop(int.from_bytes(data[14:22], "big"), None)
                if at is not None:
                    trips.append(time.monotonic() - at)


def storm():
    port = open_port("soak-s", "s", 0)
    broadcast = frame(BROADCAST, S)
    while True:
        end, count = time.monotonic() + 0.3, 0
        while time.monotonic() < end:
            for _ in range(64):
                send(port, broadcast)
            count += 64
        print(count, flush=True)
        time.sleep(0.7)


# ---- the test ----


class Soak:
    def __init__(self, program, directory):
        self.directory = directory
        ports = [
            ("a", "a", A, "mac", "tap", "soak-a"),
            ("b", "b", B, "mac", "tap", "soak-b"),
            ("s", "s", S, "mac", "tap", "soak-s"),
            ("m", "m", M, "off", "tap", "soak-m"),
            ("l", "l0", L0, "off", "tap", "soak-l"),
            ("l", "l1", L1, "off", "tap", "soak-l"),
            ("f", "packet", PACKET, "mac", "packet", "soak-sw"),
            ("g", "xdp", XDP, "mac", "xdp", "soak-sw"),
        ]
        write_config(f"{directory}/main", ports)
        pair = [(name, name, mac(number), "mac", "tap", "soak-r") for number, name in enumerate(("r0", "r1"))]
        write_config(f"{directory}/second", pair)
        self.main, self.second = Switch(program, f"{directory}/main"), Switch(program, f"{directory}/second")
        self.api, self.second_api = (Api(f"{directory}/{name}/api.sock") for name in ("main", "second"))
        self.samples = []
        self.restarts = []
        self.churned = itertools.count()
        self.learned = itertools.count()
        self.signals = itertools.cycle((signal.SIGTERM, signal.SIGKILL))
        self.kinds = itertools.cycle(("packet", "xdp"))
        self.random = random.Random(1)

    def active(self, *ports, api=None):
        api = api or self.api
        return all(api("GET", f"/v1/ports/{port}")["status"] == "ACTIVE" for port in ports)

    def start(self):
        self.main.start()
        self.second.start()
        ip("soak-l", "link add gb type bridge stp_state 0 mcast_snooping 0")
        for port in "l0", "l1":
            ip("soak-l", f"link set dev {port} master gb")
        wait_for("active ports", lambda: self.active("a", "b", "s", "m", "l0", "l1", "packet", "xdp"))
        self.learner = open_port("soak-m", "m", 0)
        self.peers = [(open_port("soak-f", name, 0), address) for name, address in (("packet", PACKET), ("xdp", XDP))]

    def churn(self):
        """Attaches one port or three siblings, learns stations behind the first, and detaches them."""
        names = [f"c{number}" for number in range(3 if next(self.churned) % 2 else 1)]
        ports = [
            {
                "port_id": name,
                "network_id": "net",
                "mac_address": text(bytes([2, 0, 0, 0, 2, number])),
                "port_security": "off",
                "device": {"kind": "tap", "name": name, "netns": "soak-c", "persist": False},
            }
            for number, name in enumerate(names)
        ]
        attached = self.api("POST", "/v1/vms/churned/ports", ports)["ports"]
        # On a busy machine an opening may take longer than the answer waits.
        if any(port["status"] != "ACTIVE" and port["status_code"] != "open_overdue" for port in attached):
            raise RuntimeError(f"attached, but not ACTIVE: {attached}")
        wait_for("attached ports", lambda: self.active(*names))
        port = open_port("soak-c", "c0", 0)
        for _ in range(8):
            port.send(frame(B, b"\x0a\x01" + self.random.randbytes(4)))
        port.close()
        for name in names:
            self.api("DELETE", f"/v1/ports/{name}")

    def learn(self):
        """A station after the other sends to a port of each kind, and ports behind a wire send to a tap."""
        receivers = itertools.cycle((B, PACKET, XDP))
        for number in itertools.islice(self.learned, 50):
            sender = b"\x0a\x00" + (number % STATIONS).to_bytes(4, "big")
            send(self.learner, frame(next(receivers), sender, self.random.randrange(60, 1514)))
        for peer, address in self.peers:
            for _ in range(20):
                send(peer, frame(B, address, self.random.randrange(60, 1514)))

    def loop(self):
        """Closes the guest's bridge until the loop is found, opens it and releases its ports."""
        ip("soak-l", "link set gb up")
        self.learner.send(experiment(BROADCAST, M, 60, "around"))
        wait_for("a loop", lambda: any(it["active"] for it in self.api("GET", "/v1/loops")))
        ip("soak-l", "link set gb down")
        for port in "l0", "l1":
            self.api("POST", f"/v1/ports/{port}/release")
        wait_for("the release", lambda: self.active("l0", "l1"))

    def flap(self):
        kind = next(self.kinds)
        ip("soak-f", f"link set dev {kind} down")
        wait_for("a link that is down", lambda: not self.active(kind))
        ip("soak-f", f"link set dev {kind} up")
        wait_for("a link that is up", lambda: self.active(kind))

    def hang(self):
        """Clients that stop: in the middle of a request, in front of an answer, and of events."""
        starts = b"POST /v1/vms/x/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{", b"GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n"
        starts += b"GET /v1/co", b"GET /v1/config HTTP/1.1\r\nHost: x\r\n\r\n" * 20
        clients = []
        for start in starts:
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.settimeout(PATIENCE)
            client.connect(f"{self.directory}/main/api.sock")
            client.send(start)
        time.sleep(0.5)
        for client in clients:
            client.close()

    def restart(self):
        """Restarts the second switch; afterwards a frame crosses it."""
        self.second.end(next(self.signals))
        rows, events = rows_of(f"{self.directory}/second")
        if events > EVENTS:
            raise RuntimeError(f"the state has {events} events, of which {EVENTS} are kept")
        self.second.start()
        # On a busy machine it is ready before its ports are.
        wait_for("ports of the restarted switch", lambda: self.active("r0", "r1", api=self.second_api))
        sender, receiver = (Port("soak-r", name) for name in ("r0", "r1"))
        greeting = experiment(BROADCAST, mac(0), 60, "restarted")
        sender.send(greeting)
        if not receiver.listen_until(greeting):
            raise RuntimeError("no frame crosses the restarted switch")
        sender.socket.close()
        receiver.socket.close()
        netdevs = inside("soak-r", lambda: len(socket.if_nameindex()))
        state = sum(os.path.getsize(f"{self.directory}/second/{name}") for name in os.listdir(f"{self.directory}/second") if name.startswith("state"))
        its = {"rss": rss_of(self.second.process.pid), "fds": children_of(f"/proc/{self.second.process.pid}/fd")}
        self.restarts.append((time.monotonic(), its | {"netdevs": netdevs, "state": state / 2**20, "rows": rows}))

    def sample(self):
        process = f"/proc/{self.main.process.pid}"
        audit, workers = self.api("GET", "/v1/audit"), self.api("GET", "/v1/workers")
        if not audit["balanced"]:
            raise RuntimeError(f"the counters do not add up: {audit}")
        its = {
            "rss": rss_of(self.main.process.pid),
            "fds": children_of(f"{process}/fd"),
            "threads": children_of(f"{process}/task"),
            "slots": audit["slots"] - audit["slots_free"],
            "stations": max(worker["stations"] for worker in workers),
        }
        self.samples.append((time.monotonic(), its))


def rss_of(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


EVENTS = 10_000  # the last ones, which the state keeps


def rows_of(directory):
    """Numbers of rows of all tables of the state but that of events, and of events. Of a copy: nothing is written beside the file."""
    with tempfile.TemporaryDirectory() as copy:
        for name in os.listdir(directory):
            if name in ("state.db", "state.db-wal"):
                shutil.copy(f"{directory}/{name}", copy)
        state = sqlite3.connect(f"{copy}/state.db")
        tables = [name for (name,) in state.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {table: state.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0] for table in tables}
        state.close()
    events = rows.pop("events")
    return sum(rows.values()), events


# What is judged: title, series, key, permitted difference: share of the first third's median, and absolute. A lower value is
# always permitted, except of stations. The memory of the main switch has a history of 10 000 events, which fills within minutes; so
# has the state of the second one, of up to 300 bytes each, which fills within half an hour: its other rows have to be as many.
# Latency of a run of less than 180 s may differ by more, because other processes on the host make most of it.
JUDGED = [
    ("memory, MiB", "main", "rss", 0.10, 12),
    ("file descriptors", "main", "fds", 0.10, 6),
    ("threads", "main", "threads", 0, 8),
    ("slots", "main", "slots", 0.05, 600),
    ("FDB entries", "main", "stations", 0, 60),
    ("echo p50, us", "echo", 0, 2.0, 5_000),
    ("echo p99, us", "echo", 1, 2.0, 20_000),
    ("restarted: memory, MiB", "second", "rss", 0.10, 3),
    ("restarted: file descriptors", "second", "fds", 0.10, 4),
    ("restarted: netdevs", "second", "netdevs", 0, 0),
    ("restarted: state, MiB", "second", "state", 0.10, 3),
    ("restarted: rows of the state", "second", "rows", 0, 10),
]


# What may not grow steadily: title, series, key, permitted growth over the whole time (none: only printed). What is held for a
# moment (frames in flight, clients, ports that come and go) does not raise the lowest value of a window, a leak does. One entry
# or descriptor per minute is three times what is permitted in half an hour. Slots are taken by 64, so a leak of four per minute
# is found. A run of less than 180 s may grow by more.
LEAKS = [
    ("file descriptors", "main", "fds", 5),
    ("threads", "main", "threads", 3),
    ("slots", "main", "slots", 50),
    ("FDB entries", "main", "stations", 10),
    ("memory, MiB", "main", "rss", None),
    ("restarted: file descriptors", "second", "fds", 5),
]
WINDOWS = 30


def growth(points, seconds):
    """Of points of time and value, by the median of the slopes between any two: a few that differ do not matter."""
    slopes = [(b - a) / (until - at) for (at, a), (until, b) in itertools.combinations(points, 2)]
    return statistics.median(slopes) * seconds if slopes else 0


def lows(series, key, begin, end):
    """Time and lowest value of each window."""
    found = {}
    for at, its in series:
        if begin <= at < end:
            window = int((at - begin) / (end - begin) * WINDOWS)
            found[window] = min(found.get(window, (its[key], at)), (its[key], at))
    return [(at, low) for low, at in found.values()]


def judge_leaks(all_series, begin, end, margin):
    held, seconds = True, end - begin
    print(f"\n{'growth of lowest values':30} {'per minute':>10} {'in all':>10} {'permitted':>10} {'windows':>8}  verdict")
    for title, series, key, absolute in LEAKS:
        points = lows(all_series[series], key, begin, end)
        grown = growth(points, seconds)
        row = f"{title:30} {grown * 60 / seconds:+10.2f} {grown:+10.2f}"
        if absolute is None:
            print(f"{row} {'-':>10} {len(points):8}  not judged")
            continue
        permitted = absolute * max(1, 180 / seconds) * margin / 100
        right = grown <= permitted
        held &= right
        print(f"{row} {permitted:+10.2f} {len(points):8}  {'holds' if right else 'FAILED'}")
    return held


def thirds(series, begin, end):
    length = (end - begin) / 3
    first = [it for at, it in series if begin <= at < begin + length]
    last = [it for at, it in series if end - length <= at < end]
    return first, last


def judge(all_series, begin, end, margin):
    held, short = True, max(1, 180 / (end - begin))
    print(f"\n{'medians of thirds':30} {'first':>10} {'last':>10} {'permitted':>10} {'samples':>8}  verdict")
    for title, series, key, share, absolute in JUDGED:
        first, last = thirds(all_series[series], begin, end)
        if not first or not last:
            print(f"{title:30} {'-':>10} {'-':>10} {'-':>10} {len(first) + len(last):8}  NOT MEASURED")
            held = False
            continue
        before, after = (statistics.median(it[key] for it in these) for these in (first, last))
        permitted = (before * share + absolute * (short if series == "echo" else 1)) * margin / 100
        right = after - before <= permitted and (key != "stations" or before - after <= permitted)
        held &= right
        print(f"{title:30} {before:10.2f} {after:10.2f} {permitted:+10.2f} {len(first) + len(last):8}  {'holds' if right else 'FAILED'}")
    sent, lost = (sum(it[column] for _, it in all_series["echo"]) for column in (2, 3))
    print(f"echoes: {sent:.0f}, lost {lost:.0f}")
    return held


def run(program, directory, seconds, margin):
    # memory by 4 KiB pages: a huge page would hide small growth
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    soak = Soak(program, directory)
    soak.start()
    children = {"reflect": Lines("reflect"), "echo": Lines("echo"), "storm": Lines("storm")}
    activities = {
        "churn": Activity(soak.churn, 0.02),
        "learn": Activity(soak.learn, 0.02),
        "loop": Activity(soak.loop, 0.5),
        "flap": Activity(soak.flap, 0.1),
        "hang": Activity(soak.hang, 0.1),
        "restart": Activity(soak.restart, 0.2),
    }
    for activity in activities.values():
        activity.start()

    def is_warm():
        """Each activity has been done, and all stations are learned."""
        done = all(it.count > 1 for it in activities.values()) and activities["learn"].count > STATIONS / 50
        return done or any(it.failure for it in activities.values())

    wait_for("each activity", is_warm, 12 * PATIENCE)
    begin = time.monotonic()
    end = begin + seconds
    sampling = Activity(soak.sample, max(0.1, seconds / 1000))
    sampling.start()
    everything = activities | {"sample": sampling}
    while (left := end - time.monotonic()) > 0 and not any(it.failure for it in everything.values()):
        time.sleep(min(left, 1))
        if soak.samples and int(left) % 60 == 0:
            its = soak.samples[-1][1]
            print(f"   {time.monotonic() - begin:6.0f} s: " + ", ".join(f"{name} {value:.6g}" for name, value in its.items()), flush=True)
    end = min(end, time.monotonic())
    for activity in everything.values():
        activity.end()
    for child in children.values():
        child.end()
    print("\ndone: " + ", ".join(f"{name} {it.count} times" for name, it in everything.items()) + f", storm {len(children['storm'].lines)} bursts")
    problems = [f"{name}: {it.failure}" for name, it in everything.items() if it.failure]
    if not children["storm"].lines:
        problems.append("storm: nothing was sent")
    series = {"main": soak.samples, "second": soak.restarts, "echo": children["echo"].lines}
    if not judge(series, begin, end, margin):
        problems.append("the last third is not as the first one")
    if not judge_leaks(series, begin, end, margin):
        problems.append("something grows steadily")
    for name, switch in ("main", soak.main), ("second", soak.second):
        switch.end(signal.SIGTERM)
        if switch.process.returncode:
            problems.append(f"the {name} switch ended with {switch.process.returncode}")
        with open(f"{directory}/{name}/log") as log:
            problems += [f"{name}: {line.strip()}" for line in log if "panicked" in line]
    for problem in problems:
        print(f"FAILED: {problem}")
    return not problems


if __name__ == "__main__":
    what, arguments = sys.argv[1], sys.argv[2:]
    if what == "run":
        sys.exit(0 if run(arguments[0], arguments[1], int(arguments[2]), int(arguments[3])) else 1)
    {"echo": echo, "reflect": reflect, "storm": storm}[what]()
