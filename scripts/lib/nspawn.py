"""Containers of systemd-nspawn on the switch. For scripts/nspawn-lab, in a box (scripts/lib/box), as root.

    scripts/lib/box nspawn.py lab PROGRAM      checks what docs/integrations/nspawn.md says
    scripts/lib/box nspawn.py stay PROGRAM     starts the same containers, prints "running", and stays until it is killed

PROGRAM is the switch. The files of the page, which are its blocks whose first line is a comment with a path, are installed as
they are: fw has taps in a namespace of its own, web has veths. Each check waits for what it expects.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import service as services
from service import ROOT, Service, run, succeeds
from traffic import BROADCAST, Port, experiment, llc

PAGE = ROOT / "docs/integrations/nspawn.md"
MACHINES = Path("/var/lib/machines")
CONFIG = """[switch]
frames = 8192
stations = 4096
[[networks]]
id = "net1"
"""
FRAGMENT = Path("/etc/vifswitch/conf.d/web.toml")
# Interfaces with their addresses, all on one network. Those of fw are taps, those of web veths.
ADDRESSES = {"fw": {"eth0": "10.5.0.10", "eth1": "10.5.0.11"}, "web": {"eth0": "10.5.0.20", "eth1": "10.5.0.21"}}
# what the container of a veth sets; that of a tap is the port's
MACS = {"eth0": "02:00:00:00:02:0a", "eth1": "02:00:00:00:02:0b"}
PORTS = {"fw": ("fw-a", "fw-b", "fw-c"), "web": ("web-a", "web-b")}
WEB_0, FW_2 = bytes.fromhex("02000000020a"), bytes.fromhex("02000000010c")
# The first process of a container. Signal 37 is SIGRTMIN+3, by which systemd-nspawn asks it to end.
INIT = """#!/bin/sh
trap 'exit 0' 37
ls /sys/class/net > /found
{}
while :; do
    sleep 1000 &
    wait
done
"""

shown = 0


def check(is_so, what, *details):
    """Prints one line, and ends with the first check that fails."""
    global shown
    print(f"   {'ok    ' if is_so else 'FAILED'} {what}", flush=True)
    if not is_so:
        for detail in details:
            print(f"          {detail}", flush=True)
        sys.exit(f"check failed: {what}")
    shown += 1


def await_that(what, is_so):
    """Waits until `is_so` returns something true, and returns that. A check that is only shown when it fails."""
    try:
        return services.await_that(what, is_so)
    except SystemExit as why:
        check(False, what, why)


def title(text):
    print(f"\n== {text}", flush=True)


# ---- what the page says ----


def files(page=PAGE):
    """The files of a page, by path."""
    found = {}
    for block in page.read_text().split("\n```")[1::2]:
        lines = block.splitlines()[1:]
        if lines and lines[0].startswith("# /"):
            found[Path(lines[0][2:])] = "\n".join(lines[1:]) + "\n"
    return found


def make_root(machine):
    """A root file system of one program. Its first process configures the interfaces."""
    root = MACHINES / machine
    for name in ("bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "usr", "var", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for name in ("sh", "ip", "ls", "sleep"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/os-release").write_text("ID=busybox\n")
    lines = []
    for table, (interface, address) in enumerate(ADDRESSES[machine].items(), 101):
        if machine == "web":
            lines.append(f"ip link set {interface} address {MACS[interface]}")
            lines += [f"echo {value} > /proc/sys/net/ipv4/conf/{interface}/{key}"
                      for key, value in (("arp_ignore", 1), ("arp_announce", 2), ("rp_filter", 2))]
        # addresses, rules and routes of fw outlive the container
        lines += [f"ip address replace {address}/24 dev {interface}", f"ip link set {interface} up",
                  f"ip rule del from {address} 2>/dev/null", f"ip rule add from {address} table {table}",
                  f"ip route replace 10.5.0.0/24 dev {interface} src {address} table {table}"]
    init = root / "sbin/init"
    init.write_text(INIT.format("\n".join(lines)))
    init.chmod(0o755)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def prepare_box():
    """Gives a box what containers need."""
    # systemd-nspawn registers containers by D-Bus, which a box does not start
    for name in ("dbus.service", "dbus.socket"):
        Path("/etc/systemd/system", name).unlink(missing_ok=True)
    # A user namespace may mount /proc and /sys only where a whole one is mounted already; those of a box are partly read-only.
    for kind in ("proc", "sysfs"):
        Path("/run/whole", kind).mkdir(parents=True)
        run("mount", "-t", kind, kind, f"/run/whole/{kind}")
    # AF_XDP locks the pool in memory, and a host may not let the systemd of a box raise the limit
    write(Path("/etc/systemd/system/vifswitch.service.d/lock.conf"),
          "[Service]\nCapabilityBoundingSet=CAP_IPC_LOCK\nAmbientCapabilities=CAP_IPC_LOCK\n")


def prepare(program):
    """Installs the switch, the files of the page and the root file systems. Starts the switch."""
    prepare_box()
    # in place of the host's containers
    run("mount", "-t", "tmpfs", "machines", str(MACHINES))
    for path, text in files().items():
        write(path, text)
    for machine in ADDRESSES:
        make_root(machine)
    service = Service.installed(program, CONFIG)
    run("systemctl", "start", "dbus.socket", "vifswitch.service")
    return service


# ---- containers ----


def unit(machine):
    return f"systemd-nspawn@{machine}.service"


def leader(machine):
    """The first process of a running container; None if it does not run."""
    found = run("machinectl", "show", machine, "--property", "Leader", "--value", check=False).strip()
    return int(found) if found.isdigit() else None


def await_leader(machine, other_than=None):
    return await_that(f"{machine} runs", lambda: (pid := leader(machine)) and pid != other_than and pid)


def inside(machine, *command):
    """A command in the network namespace of a container."""
    return "nsenter", f"--net=/proc/{leader(machine)}/ns/net", *command


def links(*prefix):
    """Netdevs by name, with their index."""
    return {link["ifname"]: link["ifindex"] for link in json.loads(run(*prefix, "ip", "-j", "link", "show"))}


def ports():
    return {port["port_id"]: port for port in json.loads(run("vifswitch", "show", "ports", "--json"))}


def are_up(*machines):
    """Whether all ports of these containers forward."""
    now = ports() if succeeds("vifswitch", "show") else {}
    return all(now.get(port, {}).get("status") == "ACTIVE" for machine in machines for port in PORTS[machine])


def pairs():
    """Each interface with an address, and each address of the other container."""
    for machine, other in (("fw", "web"), ("web", "fw")):
        for interface, address in ADDRESSES[machine].items():
            for to in ADDRESSES[other].values():
                yield machine, interface, address, to


def pings(machine, address, to):
    return succeeds(*inside(machine, "ping", "-q", "-n", "-c", "1", "-W", "2", "-I", address, to))


def all_ping():
    return all(pings(machine, address, to) for machine, _, address, to in pairs())


def await_pings(what):
    await_that(what, all_ping)
    check(True, what)


def dropped():
    """Frames that port security dropped."""
    return [drop for drop in json.loads(run("vifswitch", "show", "drops", "--json")) if drop["reason"].startswith(("spoofed", "foreign"))]


# ---- checks ----


def start():
    title("Start: fw with taps, web with veths")
    run("systemctl", "start", unit("fw"))
    await_leader("fw")
    file = MACHINES / "fw/found"
    found = await_that("the first process of fw", lambda: file.exists() and file.read_text().split())
    check(found == ["eth0", "eth1", "eth2", "lo"], "the first process of fw finds all its interfaces", found)
    check(links() == {"lo": 1}, "there is no netdev on the host for it", links())
    run("systemctl", "start", unit("web"))
    await_leader("web")
    check(sorted(links()) == ["lo", "web-0", "web-1"], "the host's ends of web's veths are those of its ports", links())
    await_that("ports of both", lambda: are_up("fw", "web"))
    now = ports()
    kinds = {port: now[port]["device"]["kind"] for machine in PORTS for port in PORTS[machine]}
    check(sorted(set(kinds.values())) == ["packet", "tap", "xdp"], f"all ports are ACTIVE, as tap, packet and xdp: {', '.join(kinds)}", kinds)
    order = [port["port_id"] for port in json.loads(run("vifswitch", "show", "ports", "--json")) if port["device_id"] == "fw"]
    check(order == list(PORTS["fw"]), "in the order of the file", order)


def traffic():
    title("Traffic")
    for machine, interface, address, to in pairs():
        what = f"{interface} of {machine} ({address}) pings {to}"
        await_that(what, lambda m=machine, a=address, t=to: pings(m, a, t))
        check(True, what)
    check(not dropped(), "port security has dropped nothing", dropped())
    addresses = json.loads(run("ip", "-n", "fw", "-j", "-4", "address", "show", "dev", "eth2"))
    check(not [of for link in addresses for of in link.get("addr_info", [])], "eth2 of fw has no address", addresses)
    # the name is for Port; it goes with `unname`
    run("ip", "netns", "attach", "web-named", str(leader("web")))
    near, far = Port("fw", "eth2"), Port("web-named", "eth0")
    for what, frame, back in (
        ("a frame of an experimental type", experiment(WEB_0, FW_2, 1400, "to"), experiment(FW_2, WEB_0, 60, "back")),
        ("a frame with LLC", llc(WEB_0, FW_2, "to"), llc(FW_2, WEB_0, "back")),
        ("a frame from another address than the port's", experiment(WEB_0, bytes.fromhex("020000000c0c"), 60, "other"), None),
        ("a broadcast", experiment(BROADCAST, FW_2, 60, "all"), None),
    ):
        near.send(frame)
        passed = far.listen_until(frame)
        if back:
            far.send(back)
            passed = passed and near.listen_until(back)
        check(passed, f"{what} passes {'between' if back else 'from'} eth2 of fw {'and' if back else 'to'} eth0 of web")
    near.socket.close()
    far.socket.close()
    run("ip", "netns", "del", "web-named")
    for interface, address in ADDRESSES["web"].items():
        check(transfers(address), f"8 MiB by TCP from fw to {interface} of web")


def transfers(address):
    """Whether a stream of 8 MiB arrives at web, whole."""
    server = "import socket\ns = socket.create_server(('', 4711))\nprint('listening', flush=True)\nc = s.accept()[0]\nn = 0\n" \
        "while b := c.recv(65536): n += len(b)\nprint(n)"
    client = f"import socket\nc = socket.create_connection(('{address}', 4711), 10)\nc.sendall(bytes(8 << 20))"
    receiver = subprocess.Popen(inside("web", sys.executable, "-c", server), stdout=subprocess.PIPE, text=True)
    try:
        receiver.stdout.readline()
        sent = succeeds(*inside("fw", "timeout", "20", sys.executable, "-c", client))
        return sent and receiver.communicate(timeout=20)[0].strip() == str(8 << 20)
    except subprocess.TimeoutExpired:
        return False
    finally:
        receiver.kill()
        receiver.wait()


def killed():
    title("Containers are killed and restarted")
    taps = links("ip", "netns", "exec", "fw")
    for machine in ("fw", "web"):
        before = leader(machine)
        run("systemctl", "kill", "--signal", "KILL", unit(machine))
        await_leader(machine, other_than=before)
        await_that(f"ports of {machine}", lambda m=machine: are_up(m))
        await_pings(f"{machine} is killed, systemd starts it again, and all pairs ping")
    check(links("ip", "netns", "exec", "fw") == taps, "the taps of fw are the same ones", taps)
    before = leader("fw")
    run("systemctl", "restart", unit("fw"))
    await_leader("fw", other_than=before)
    check(links("ip", "netns", "exec", "fw") == taps, "also after systemctl restart", taps)
    await_pings("and all pairs ping")
    run("systemctl", "stop", unit("web"))
    now = ports()
    check(sorted(links()) == ["lo"], "a stop of web ends its veths", links())
    await_that("ports that are down", lambda: all(port["status"] == "DOWN" for name, port in ports().items() if name in PORTS["web"]))
    check(True, f"and its ports are DOWN: {ports()['web-a']['status_code']}", now)


def restarted(service):
    title("The switch is restarted")
    run("systemctl", "start", unit("web"))
    await_leader("web")
    await_that("ports of web", lambda: are_up("web"))
    await_pings("web is started again, and all pairs ping")
    before, taps = (leader("fw"), leader("web")), links("ip", "netns", "exec", "fw")
    for how in (signal.SIGTERM, signal.SIGKILL):
        service.restart(how)
        await_that("ports of both", lambda: are_up("fw", "web"))
        await_pings(f"{'systemctl restart' if how == signal.SIGTERM else 'kill -9'} of the switch: all pairs ping")
    check((leader("fw"), leader("web")) == before and links("ip", "netns", "exec", "fw") == taps, "containers and taps are the same ones")
    title("The switch is down")
    service.end(signal.SIGTERM)
    for machine in ("fw", "web"):
        run("systemctl", "stop", unit(machine))
    check(not succeeds("systemctl", "start", unit("fw")), "fw does not start")
    run("journalctl", "--sync")
    why = run("journalctl", "--unit", unit("fw"), "--output", "cat", "--no-pager", "--lines", "20")
    check("no switch is listening" in why, "and its journal says why: no switch is listening", why)
    run("systemctl", "start", unit("web"))
    check(await_leader("web"), "web starts")
    run("systemctl", "start", "vifswitch.service")
    await_leader("fw")
    await_that("ports of both", lambda: are_up("fw", "web"))
    await_pings("when the switch runs again, systemd starts fw, and all pairs ping")


def end(service):
    title("The end")
    run("systemctl", "stop", unit("fw"))
    check(are_up("fw"), "a stop of fw keeps its taps, and its ports ACTIVE", ports())
    run("vifswitch", "apply", "--owner", "nspawn-fw", "/dev/null")
    check(not set(ports()) & set(PORTS["fw"]) and links("ip", "netns", "exec", "fw") == {"lo": 1},
          "vifswitch apply of nothing removes both", ports(), links("ip", "netns", "exec", "fw"))
    run("systemctl", "stop", "netns@fw.service", unit("web"))
    FRAGMENT.unlink()
    run("systemctl", "reload", "vifswitch.service")
    await_that("no ports", lambda: not ports())
    check(True, "without its fragment, and after a reload, web has no ports")
    check(links() == {"lo": 1} and not os.listdir("/run/netns"), "no netdev and no namespace is left", links(), os.listdir("/run/netns"))
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    left = [path for path in mounts if "nspawn" in path or f"{MACHINES}/" in path or path.startswith("/run/netns/")]
    check(not left, "no mount", left)
    processes = [line for line in run("ps", "-eo", "args=").splitlines() if "systemd-nspawn" in line or "sleep 1000" in line]
    check(not processes, "no process of a container", processes)
    check("No machines" in run("machinectl", "list"), "and no registered machine")
    audit = subprocess.run(("vifswitch", "show", "drops", "--verify"), stdout=subprocess.PIPE, text=True)
    check(audit.returncode == 0, "the counters of the switch add up", audit.stdout)
    service.end(signal.SIGTERM)
    failed = run("systemctl", "--failed", "--no-legend", "--plain")
    check(failed == "", "no unit has failed", failed)


def main():
    what, program = sys.argv[1:]
    service = prepare(program)
    try:
        if what == "stay":
            run("systemctl", "start", unit("fw"), unit("web"))
            await_that("ports of both", lambda: are_up("fw", "web"))
            print("running", flush=True)
            signal.pause()
        start()
        traffic()
        killed()
        restarted(service)
        end(service)
    except SystemExit:
        print(run("journalctl", "--no-pager", "--lines", "60", "--unit", "vifswitch.service", "--unit", "systemd-nspawn@*",
                  "--unit", "netns@*", check=False), file=sys.stderr)
        raise
    print(f"\nnspawn-lab: all {shown} checks passed", flush=True)


if __name__ == "__main__":
    main()
