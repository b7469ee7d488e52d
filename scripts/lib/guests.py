"""Guests of one switch, for scripts/interop: a network namespace each, with its own hostname and /run.

A scenario is a generator function over a `Scene`. Before its `yield` it declares guests; after it the switch runs, every
port is ACTIVE and every guest has its addresses. It returns what was seen, or raises `Failed`. All scenarios share one
switch, each with networks of its own, and run beside each other in threads.
"""

import collections
import concurrent.futures
import importlib.util
import json
import os
import select
import shlex
import shutil
import socket
import subprocess
import time
import traceback

from traffic import inside

PATIENCE = 60  # seconds to wait for an event; a right outcome comes within a few
KINDS = ["tap", "xdp", "packet"]
SWITCH = "switch"  # namespace of the switch's ends of veths
FILES = "/run/guests"  # a guest's /run is a directory in it

Nic = collections.namedtuple("Nic", "ips net keys vlan vlans")


class Failed(Exception):
    """A scenario has not had its outcome."""


def nic(*ips, net="", vlan=None, vlans=None, **keys):
    """A NIC of a guest, with its addresses, as in 192.0.2.1/24. `keys` are further keys of its port. With `vlan`, it is
    a subport of the NIC before it. With `vlans`, it is no port but an uplink, with these networks: {net: VLAN}."""
    return Nic(ips, net, keys, vlan, vlans)


def run(command):
    """Runs a command, a list or a line of words, and returns its output. Fails with its output if it fails."""
    command = shlex.split(command) if isinstance(command, str) else command
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise Failed(f"{shlex.join(command)}: {(done.stderr + done.stdout).strip()}")
    return done.stdout


def wait_for(what, look, seconds=PATIENCE, pause=0.05):
    """Polls until `look` returns something true, and returns it."""
    end = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(pause)
    return seen


class Guest:
    """A guest. Its NICs are eth0, eth1, …; its /run is the directory `self.files`."""

    def __init__(self, scene, name, nics):
        self.scene, self.name, self.nics = scene, f"{scene.name}-{name}", nics
        self.files = f"{FILES}/{self.name}"
        self.logs = {}
        os.makedirs(f"{self.files}/tmp")  # $TMPDIR is /run/tmp
        run(f"ip netns add {self.name}")
        inside = f"hostname {self.name}; mount --bind {self.files} /run; echo; exec sleep infinity"
        command = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", inside]
        self.holder = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.holder.stdout.readline()
        self.run("ip link set lo up")
        self.macs = [scene.mac(len(scene.guests), index) for index in range(len(nics))]

    def inside(self, command):
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", "--uts", "--", *shlex.split(command)]

    def run(self, command):
        return run(self.inside(command))

    def tries(self, command):
        """The output of the command, or "" if it failed."""
        try:
            return self.run(command)
        except Failed:
            return ""

    def start(self, command):
        """Starts a daemon in the foreground. Its output is logged."""
        log = f"{self.files}/{os.path.basename(command.split()[0])}.log"
        with open(log, "a") as output:
            self.logs[log] = subprocess.Popen(
                self.inside(command), stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )

    def log(self, program):
        with open(f"{self.files}/{program}.log", errors="replace") as file:
            return file.read()

    def write(self, name, text):
        """Writes a file in its /run, and returns its path for the guest."""
        os.makedirs(os.path.dirname(f"{self.files}/{name}"), exist_ok=True)
        with open(f"{self.files}/{name}", "w") as file:
            file.write(text)
        return f"/run/{name}"

    def socket(self, *what):
        """A socket in the guest's network namespace."""
        return inside(self.name, lambda: socket.socket(*what))

    def pings(self, address, options=""):
        return self.tries(f"ping -q -n -c 1 -W 1 {options} {address}")

    def waits_for_ping(self, address, options=""):
        wait_for(f"{self.name} pings {address}", lambda: self.pings(address, options))

    def connect(self, index, nic, kind):
        """Creates the netdev of a NIC, unless the switch does. Returns its port or uplink in a configuration."""
        name, mac = f"eth{index}", self.macs[index]
        if nic.vlan is not None:
            device = {"parent": f"{self.name}-{index - 1}", "vlan": nic.vlan}
        elif kind == "tap":
            device = {"device": {"kind": kind, "name": name, "netns": self.name, "persist": False}}
        else:
            end = f"v{self.scene.number}-{len(self.scene.guests)}-{index}"
            theirs = f"peer name {name} address {mac} netns {self.name} mtu {self.scene.mtu}"
            run(f"ip -n {SWITCH} link add {end} mtu {self.scene.mtu + 200} type veth {theirs}")
            if kind == "xdp":
                self.run(f"ethtool -K {name} tx off tso off gso off")
            run(f"ip -n {SWITCH} link set {end} up")
            self.run(f"ip link set {name} up")
            device = {"device": {"kind": kind, "name": end, "netns": SWITCH}}
        if nic.vlans:
            networks = [{"network_id": self.scene.network(n), "vlan": v} for n, v in nic.vlans.items()]
            return {"id": f"{self.name}-{index}", "networks": networks, **device}
        ips = [ip.split("/")[0] for ip in nic.ips]
        port = {"port_id": f"{self.name}-{index}", "network_id": self.scene.network(nic.net), "mac_address": mac}
        return {**port, "fixed_ips": ips, **device, **nic.keys}

    def configure(self):
        """Gives the NICs their addresses."""
        for index, nic in enumerate(self.nics):
            for ip in nic.ips if nic.vlan is None else ():
                self.run(f"ip addr add {ip} dev eth{index} {'nodad' if ':' in ip else ''}")


class Scene:
    """What one scenario declares and sees."""

    def __init__(self, switch, number, name, scenario, kinds):
        self.switch, self.number, self.name, self.mtu = switch, number, name, 1500
        self.guests, self.networks, self.ports, self.uplinks = [], {}, [], []
        self.kinds = [kinds[(number + i) % len(kinds)] for i in range(len(kinds))]
        self.used = 0  # device kinds, in turn
        self.play = scenario(self)
        self.result, self.seconds = None, 0

    def guest(self, name, *nics):
        guest = Guest(self, name, nics)
        ports = []
        for index, nic in enumerate(nics):
            kind = self.kinds[self.used % len(self.kinds)]
            self.used += nic.vlan is None
            port = guest.connect(index, nic, kind)
            (self.uplinks if nic.vlans else ports).append(port)
        if ports:
            self.ports.append({"id": guest.name, "ports": ports})
        self.guests.append(guest)
        return guest

    def mac(self, guest, nic):
        """The MAC address of a NIC, by the guest's index."""
        return f"02:00:00:{self.number:02x}:{guest:02x}:{nic:02x}"

    def network(self, name):
        key = f"{self.name}-{name}".rstrip("-")
        self.networks.setdefault(key, {"id": key, "mtu": self.mtu})
        return key

    def drops(self):
        """Dropped frames of its ports: {(port, reason): count}."""
        ours = [p for p in self.switch.show("ports") if p["network_id"] in self.networks]
        drops = {(p["port_id"], why): count for p in ours for why, count in p["drops"].items() if count}
        return collections.Counter(drops)

    def declare(self):
        """Up to the yield."""
        self.step(lambda: next(self.play))

    def step(self, work):
        try:
            work()
        except (Failed, OSError, subprocess.TimeoutExpired) as error:
            self.result = error
        except SystemExit as error:  # a check of wires.py or traffic.py
            self.result = Failed(error)
        except Exception:  # a fault of the scenario's code
            self.result = Failed(traceback.format_exc())

    def perform(self):
        """From the yield to the end."""
        since = time.monotonic()

        def finish():
            for guest in self.guests:
                guest.configure()
            try:
                next(self.play)
                raise AssertionError("a scenario has one yield")
            except StopIteration as end:
                self.result = end.value

        self.step(finish)
        self.seconds = time.monotonic() - since
        return self

    def failed(self):
        return isinstance(self.result, Exception)

    def report(self):
        """Prints its outcome."""
        print(f"{'FAILED' if self.failed() else 'ok'} {self.name} ({self.seconds:.0f} s): {self.result}", flush=True)
        if self.failed():
            self.explain()

    def end(self):
        """Stops its daemons."""
        for guest in self.guests:
            for daemon in guest.logs.values():
                daemon.terminate()

    def explain(self):
        """What may tell why it failed: daemons that ended, their last lines, dropped frames."""
        for guest in self.guests:
            for log, daemon in guest.logs.items():
                ended = "" if daemon.poll() is None else f" (ended with {daemon.returncode})"
                with open(log, errors="replace") as file:
                    lines = file.read().splitlines()[-12:]
                print(f"    {guest.name} {os.path.basename(log)}{ended}", *lines, sep="\n      | ")
        for line in self.switch.cli("events").splitlines():
            if f"{self.name}-" in line:
                print(f"    event: {line}")
        for (port, why), count in self.drops().items():
            print(f"    {port}: {count} frames dropped: {why}")


class Switch:
    """The switch: one process."""

    def __init__(self, program, directory):
        self.program, self.directory, self.process = program, directory, None
        self.api = f"{directory}/api.sock"

    def start(self, scenes):
        """Starts it with the networks, ports and uplinks of these scenes, and waits until all ports are ACTIVE."""
        config = {
            "switch": {"api": self.api, "state": ""},
            "networks": [network for scene in scenes for network in scene.networks.values()],
            "vms": [vm for scene in scenes for vm in scene.ports],
            "uplinks": [uplink for scene in scenes for uplink in scene.uplinks],
        }
        path = f"{self.directory}/config.json"
        with open(path, "w") as file:
            json.dump(config, file)
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notices.bind(f"{self.directory}/notify")
        environment = os.environ | {"NOTIFY_SOCKET": f"{self.directory}/notify"}
        with open(f"{self.directory}/log", "w") as log:
            command = [self.program, "run", "--config", path]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + PATIENCE
        while True:
            if select.select([notices], [], [], 0.2)[0] and b"READY=1" in notices.recv(4096):
                break
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failed("the switch did not become ready")
        try:
            wait_for("all ports are ACTIVE", lambda: not self.down())
        except Failed as error:
            raise Failed(f"{error}: {self.down()}") from None

    def down(self):
        ports = self.show("ports") + self.show("uplinks")
        return [f"{p.get('port_id', p.get('id'))}: {p.get('reason')}" for p in ports if p["status"] != "ACTIVE"]

    def show(self, what):
        return json.loads(self.cli(f"show {what} --json"))

    def cli(self, command):
        return run([self.program, *command.split(), "--socket", self.api])

    def stop(self):
        """Ends it. Fails unless every frame was accounted for and it ended with 0."""
        self.cli("show drops --verify")
        self.process.terminate()
        if code := self.process.wait(PATIENCE):
            raise Failed(f"the switch ended with {code}")

    def log(self):
        with open(f"{self.directory}/log", errors="replace") as file:
            return file.read()


def prepare():
    """The namespace of the switch. The caller has namespaces of its own (scripts/lib/isolated)."""
    os.makedirs("/run/vifswitch")
    run(f"ip netns add {SWITCH}")
    # the kernel would send IPv6 packets from the switch's ends of veths
    run(f"ip netns exec {SWITCH} sysctl -qw net.ipv6.conf.default.disable_ipv6=1")


def is_there(program):
    """Whether a program of Debian, or a Python module as in python:scapy, is installed."""
    if program.startswith("python:"):
        return importlib.util.find_spec(program.removeprefix("python:"))
    return shutil.which(program)


def missing(programs):
    """Packages of those programs that are absent, from {program: package}."""
    return sorted({package for program, package in programs.items() if not is_there(program)})


def play(scenarios, program, kinds):
    """Plays these scenarios, {name: (scenario, needed programs)}, and prints their outcomes. True if none failed."""
    prepare()
    switch = Switch(program, "/run/vifswitch")
    failed, scenes, packages = [], [], set()
    for number, (name, (scenario, programs)) in enumerate(scenarios.items(), 1):
        if absent := missing(programs):
            print(f"skipped {name}: needs {' '.join(absent)}", flush=True)
            packages |= set(absent)
            continue
        scene = Scene(switch, number, name, scenario, kinds)
        scene.declare()
        scenes.append(scene)
    ready = [scene for scene in scenes if not scene.failed()]
    try:
        switch.start(ready)
        with concurrent.futures.ThreadPoolExecutor(len(ready) or 1) as threads:
            for done in concurrent.futures.as_completed([threads.submit(scene.perform) for scene in ready]):
                done.result().report()
                done.result().end()
        switch.stop()
    except Failed as error:
        failed.append("the switch")
        print(f"FAILED the switch: {error}", switch.log(), sep="\n")
    for scene in scenes:
        if scene not in ready:
            scene.report()
    failed += [scene.name for scene in scenes if scene.failed()]
    if packages:
        print(f"scripts/interop --install installs what is missing: {' '.join(sorted(packages))}")
    print(f"interop: {len(scenes) - len(failed)} ok, {len(failed)} failed, {len(scenarios) - len(scenes)} skipped")
    return not failed
