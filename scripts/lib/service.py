"""The switch as a service of systemd, under traffic. For scripts that run in a box (scripts/lib/box), as root.

    scripts/lib/box service.py PROGRAM        installs the unit, restarts and kills the switch under traffic, and checks both

Two namespaces, bench-a and bench-b, have the taps a0 and a2, and b0. Taps with `persist = false` exist only as long as someone
has them open.
"""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from stream import ALL, HEARER, Stream, flooded, frame
from traffic import BROADCAST, PATIENCE, Port

UNIT = "vifswitch.service"
API = "/run/vifswitch/api.sock"
CONFIG = Path("/etc/vifswitch/vifswitch.toml")
ROOT = Path(__file__).resolve().parents[2]
SPACES = "bench-a", "bench-b"
TAPS = {"a0": "bench-a", "b0": "bench-b", "a2": "bench-a"}
RATE = 500  # frames a second: a tap's queue holds those of eight seconds; a busy machine gives threads no core for some


def run(*command, check=True):
    """Runs a command; returns its output."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check and done.returncode:
        sys.exit(f"failed with {done.returncode}: {' '.join(command)}\n{done.stdout}")
    return done.stdout


def succeeds(*command):
    return not subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def await_that(what, is_so, patience=PATIENCE):
    """Waits until `is_so` returns something true, and returns that."""
    end = time.monotonic() + patience
    while not (found := is_so()):
        if time.monotonic() > end:
            sys.exit(f"waited for {patience} s: {what}")
        time.sleep(0.02)
    return found


def configuration():
    """Three ports on one network."""
    text = "[switch]\nframes = 8192\nstations = 524288\n"
    text += '[[networks]]\nid = "net"\nfdb_limit = 400000\nfdb_limit_per_port = 400000\n'
    for number, (tap, space) in enumerate(TAPS.items(), 1):
        text += f"""[[vms]]
id = "vm{number}"
[[vms.ports]]
port_id = "port{number}"
network_id = "net"
mac_address = "02:00:00:00:00:{number:02x}"
port_security = "off"
device = {{ kind = "tap", name = "{tap}", persist = false, netns = "{space}" }}
"""
    return text


def make_spaces():
    for space in SPACES:
        if not Path("/run/netns", space).exists():
            run("ip", "netns", "add", space)
            # the kernel sends IPv6 packets on its own
            run("ip", "netns", "exec", space, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")


def get(path):
    """Status and body of a read of the API."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(API)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: vifswitch\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.1 ") else 0, body


class Service:
    """The unit."""

    def __init__(self):
        self.api = API

    @staticmethod
    def installed(program, config=None):
        """Installs the binary and scripts/vifswitch.service, as the unit says, with a configuration: that of the three taps by default."""
        unit = ROOT / "scripts" / UNIT
        shutil.copy(program, "/usr/local/bin/vifswitch")
        shutil.copy(unit, Path("/etc/systemd/system", UNIT))
        run("systemd-sysusers", str(ROOT / "scripts/deb/sysusers.conf"))
        if config is None:
            make_spaces()
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.write_text(configuration() if config is None else config)
        run("systemctl", "daemon-reload")
        return Service()

    def show(self, name):
        return run("systemctl", "show", "--property", name, "--value", UNIT).strip()

    def pid(self):
        return int(self.show("MainPID"))

    def start(self):
        run("systemctl", "start", UNIT)
        self.await_ports()

    def restart(self, how):
        """Ends it with a signal, and waits until it runs again."""
        if how == signal.SIGTERM:
            run("systemctl", "restart", UNIT)
            return
        before = self.pid()
        os.kill(before, how)
        await_that("the killed switch to run again", lambda: self.show("ActiveState") == "active" and self.pid() not in (0, before))

    def end(self, _):
        run("systemctl", "stop", UNIT)

    def ports(self):
        status, body = get("/v1/ports")
        return json.loads(body) if status == 200 else []

    def await_ports(self, number=len(TAPS)):
        """Waits until all ports forward, and their queues are kept."""
        def is_so():
            return sum(port["status"] == "ACTIVE" for port in self.ports()) == number and int(self.show("NFileDescriptorStore")) > number

        try:
            await_that("active ports", is_so)
        except SystemExit:
            print(self.log(), file=sys.stderr)
            raise

    def log(self):
        return run("journalctl", "--unit", UNIT, "--no-pager", "--output", "cat", check=False)


class Links:
    """What the kernel reports of the taps: nothing, while their carrier stays."""

    def __init__(self):
        self.monitors = [
            subprocess.Popen(("ip", "-n", space, "-o", "monitor", "link"), stdout=subprocess.PIPE) for space in SPACES
        ]
        for space, monitor in zip(SPACES, self.monitors, strict=True):
            end = time.monotonic() + PATIENCE
            while not select.select([monitor.stdout], [], [], 0.1)[0]:
                if time.monotonic() > end:
                    sys.exit("ip monitor reports nothing")
                self.mark(space, "begin")

    @staticmethod
    def mark(space, name):
        """A change that is reported."""
        run("ip", "-n", space, "link", "add", name, "type", "veth", "peer", "name", f"{name}1")
        run("ip", "-n", space, "link", "del", name)

    def end(self):
        """The lines about taps."""
        lines = []
        for space, monitor in zip(SPACES, self.monitors, strict=True):
            self.mark(space, "end")
            while (line := monitor.stdout.readline().decode()) and "end1" not in line:
                lines.append(line.strip())
            monitor.kill()
            monitor.wait()
        # not anywhere in the line: a MAC address may begin with the name of a tap
        names = [re.match(r"(?:Deleted )?\d+: ([^:@]+)", line) for line in lines]
        return [line for line, name in zip(lines, names, strict=True) if name and name[1] in TAPS]


class Clients:
    """Two clients that ask the API all the time, each request on a connection of its own."""

    def __init__(self):
        self.answered, self.failed, self.ended = 0, [], False
        self.threads = [threading.Thread(target=self.ask, daemon=True) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def ask(self):
        while not self.ended:
            try:
                status, _ = get("/v1/ports")
            except OSError as why:
                self.failed.append(str(why))
                continue
            if status in (200, 429):
                self.answered += 1
            else:
                self.failed.append(f"status {status}")
            time.sleep(0.005)

    def end(self):
        """How many requests failed."""
        self.ended = True
        for thread in self.threads:
            thread.join()
        return self.failed


class Watch:
    """Traffic, links and clients over something that happens to the service."""

    def __init__(self):
        self.ports = Port("bench-a", "a0"), Port("bench-b", "b0"), Port("bench-a", "a2")
        sender, receiver, third = self.ports
        receiver.send(frame(BROADCAST, HEARER, ALL))
        if not third.listen_until(frame(BROADCAST, HEARER, ALL)):
            sys.exit("the third port receives nothing")
        flooded(sender, third)
        self.links, self.clients = Links(), Clients()
        self.stream = Stream(sender, receiver, RATE)
        self.stream.await_one()
        await_that("answers of the API", lambda: self.clients.answered > 2)

    def end(self):
        """What was seen, as a dictionary."""
        sender, _, third = self.ports
        self.stream.await_one()
        answered = self.clients.answered
        await_that("answers of the API", lambda: self.clients.answered > answered + 2)
        lost, links, failed = self.stream.finish(), self.links.end(), self.clients.end()
        stray = flooded(sender, third)
        for port in self.ports:
            port.socket.close()
        return {
            "offered": self.stream.offered + 1,
            "lost": lost,
            "flooded": stray,
            "link changes": links,
            "failed requests": failed,
            "answered": self.clients.answered,
            "longest latency, ms": round(self.stream.longest * 1000),
        }


def judge(what, seen, is_killed=False):
    """Prints what was seen, and fails unless nothing was lost. A killed process cuts off the requests that it is answering."""
    # what the two clients had asked when the process was killed
    cut_off = ("Connection reset by peer", "status 0", "Broken pipe") if is_killed else ()
    refused = [why for why in seen["failed requests"] if not any(of in why for of in cut_off)]
    faults = [name for name in ("lost", "flooded", "link changes") if seen[name]] + ["failed requests"] * bool(refused)
    print(
        f"   {'FAIL' if faults else 'ok':5} {what}: {seen['lost']} of {seen['offered']} frames lost, {seen['flooded']} flooded, "
        f"{len(seen['link changes'])} changes of links, {len(seen['failed requests'])} of {seen['answered']} requests failed, "
        f"longest latency {seen['longest latency, ms']} ms",
        flush=True,
    )
    if faults:
        sys.exit(f"{what}: {', '.join(faults)}: {json.dumps(seen, indent=1)}")


def main():
    service = Service.installed(sys.argv[1])
    service.start()
    try:
        for what, how in (("a planned restart", signal.SIGTERM), ("a reload", signal.SIGHUP), ("kill -9", signal.SIGKILL)):
            before, watch = service.pid(), Watch()
            if how == signal.SIGHUP:
                run("systemctl", "reload", UNIT)
            else:
                service.restart(how)
            judge(what, watch.end(), how == signal.SIGKILL)
            if (service.pid() == before) != (how == signal.SIGHUP):
                sys.exit(f"{what}: process {before} became {service.pid()}")
            service.await_ports()
    except SystemExit:
        print(service.log(), file=sys.stderr)
        raise
    service.end(signal.SIGTERM)
    if int(service.show("NFileDescriptorStore")):
        sys.exit("a stopped service keeps descriptors")
    remaining = [tap for tap, space in TAPS.items() if succeeds("ip", "-n", space, "link", "show", tap)]
    if remaining:
        sys.exit(f"taps that do not persist exist after a stop: {remaining}")
    print("   ok    a stop ends taps and closes what was kept")


if __name__ == "__main__":
    main()
