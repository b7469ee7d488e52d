"""Containers of LXD 5.0 on the switch. For scripts/nspawn-lab --lxd, in a box (scripts/lib/box), as root.

    scripts/lib/box lxd.py PROGRAM PACKAGES      installs the Debian packages in a directory, and checks what
                                                 docs/integrations/incus.md says

PROGRAM is the switch. The commands and the fragment of the page are executed as they are, but for the name of the program, `lxc`.
fw has `packet` ports, web one of kind `xdp`. Containers are privileged: in a box LXC cannot mount the file systems of others.
"""

import json
import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import nspawn
from nspawn import CONFIG, await_that, check, files, links, ports, prepare_box, title, write
from service import ROOT, Service, run, succeeds
from traffic import BROADCAST, Port, experiment

PAGE = ROOT / "docs/integrations/incus.md"
ADDRESSES = {"fw": {"eth0": "10.5.0.10", "eth1": "10.5.0.11"}, "web": {"eth0": "10.5.0.20"}}
PORTS = {"fw": ("fw-a", "fw-b", "fw-c"), "web": ("web-a",)}
WEB = """
[[vms]]
id = "web"
[[vms.ports]]
port_id = "web-a"
network_id = "net1"
mac_address = "02:00:00:00:02:0a"
device = { kind = "xdp", name = "web-0" }
"""
FRAGMENT = Path("/etc/vifswitch/conf.d/fw.toml")
INIT = """#!/bin/sh
case $(hostname) in
{}
esac
while :; do
    sleep 1000 &
    wait
done
"""
METADATA = "architecture: x86_64\ncreation_date: 1\nproperties: {os: busybox, release: '1', description: busybox}\n"


def commands():
    """The commands of the page that add NICs."""
    lines = PAGE.read_text().splitlines()
    return [line.split()[1:] for line in lines if line.startswith("incus config device add fw ")]


def lxc(*command):
    return run("timeout", "60", "lxc", *command)


def state(machine):
    return json.loads(lxc("query", f"/1.0/instances/{machine}/state"))


def make_image():
    """An image of one program, whose first process configures the interfaces."""
    image = Path("/tmp/image")
    root = image / "rootfs"
    for name in ("bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "usr", "var", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for name in ("sh", "ip", "hostname", "sleep"):
        (root / "bin" / name).symlink_to("busybox")
    cases = []
    for machine, addresses in ADDRESSES.items():
        lines = []
        for table, (interface, address) in enumerate(addresses.items(), 101):
            lines += [f"echo {value} > /proc/sys/net/ipv4/conf/{interface}/{key}"
                      for key, value in (("arp_ignore", 1), ("arp_announce", 2), ("rp_filter", 2))]
            lines += [f"ip address add {address}/24 dev {interface}", f"ip rule add from {address} table {table}",
                      f"ip route add 10.5.0.0/24 dev {interface} src {address} table {table}"]
        cases.append(f"{machine})\n" + "\n".join(lines) + "\n;;")
    write(root / "sbin/init", INIT.format("\n".join(cases)))
    (root / "sbin/init").chmod(0o755)
    write(image / "metadata.yaml", METADATA)
    with tarfile.open("/tmp/image.tar.gz", "w:gz") as archive:
        archive.add(image / "metadata.yaml", "metadata.yaml")
        archive.add(root, "rootfs")
    lxc("image", "import", "/tmp/image.tar.gz", "--alias", "busybox")


def prepare(program, packages):
    """Installs LXD and the switch, makes both containers, and starts the switch."""
    prepare_box()
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "dbus.socket")
    # before the socket of the service is there
    Path("/var/lib/lxd").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "mode=711", "lxd", "/var/lib/lxd")
    debs = [str(path) for path in Path(packages).glob("*.deb")]
    if debs:
        # without the triggers of other packages, but for the one of libraries
        run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--no-triggers", "--install", *debs)
        run("ldconfig")
    for path, text in files(PAGE).items():
        write(path, text)
    service = Service.installed(program, CONFIG + WEB)
    run("timeout", "60", "systemctl", "start", "vifswitch.service", "lxd.socket", "lxd.service")
    lxc("storage", "create", "default", "dir")
    make_image()
    for machine in ADDRESSES:
        lxc("init", "busybox", machine, "--storage", "default", "--config", "security.privileged=true")
    for command in commands():
        lxc(*command)
    lxc("config", "device", "add", "web", "eth0", "nic", "nictype=p2p", "name=eth0", "host_name=web-0", "hwaddr=02:00:00:00:02:0a")
    return service


def inside(machine, *command):
    return "nsenter", f"--net=/proc/{state(machine)['pid']}/ns/net", *command


def are_up(*machines):
    now = ports() if succeeds("vifswitch", "show") else {}
    return all(now.get(port, {}).get("status") == "ACTIVE" for machine in machines for port in PORTS[machine])


def status_codes(machine):
    return {ports()[port]["status_code"] for port in PORTS[machine]}


def start(machine, *how):
    """Starts a container. The end of its veth has no offloads where the port is of kind `xdp`."""
    # LXD refuses while it still puts away what was before
    await_that(f"{machine} starts", lambda: succeeds("timeout", "60", "lxc", *(how or ("start",)), machine))
    if machine == "web":
        run(*inside("web", "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off"))
    await_that(f"ports of {machine}", lambda: are_up(machine))


def all_ping():
    for machine, other in (("fw", "web"), ("web", "fw")):
        for address in ADDRESSES[machine].values():
            for to in ADDRESSES[other].values():
                if not succeeds(*inside(machine, "ping", "-q", "-n", "-c", "1", "-W", "2", "-I", address, to)):
                    return False
    return True


def await_pings(what):
    await_that(what, all_ping)
    check(True, what)


def passes_any():
    """Whether a frame of any kind passes from the port without addresses."""
    run("ip", "netns", "attach", "lxd-fw", str(state("fw")["pid"]))
    run("ip", "netns", "attach", "lxd-web", str(state("web")["pid"]))
    near, far = Port("lxd-fw", "eth2"), Port("lxd-web", "eth0")
    sent = experiment(BROADCAST, bytes.fromhex("020000000c0c"), 1400, "any")
    near.send(sent)
    passed = far.listen_until(sent)
    for port in near, far:
        port.socket.close()
    for name in ("lxd-fw", "lxd-web"):
        run("ip", "netns", "del", name)
    return passed


def main():
    program, packages = sys.argv[1:]
    title("Start")
    service = prepare(program, packages)
    try:
        check(status_codes("fw") == status_codes("web") == {"no_device"}, "before the start the ports wait: no_device", ports())
        for machine in ADDRESSES:
            start(machine)
        check(sorted(links()) == ["fw-0", "fw-1", "fw-2", "lo", "web-0"], "the host's ends have the names of host_name", links())
        there = json.loads(run(*inside("fw", "ip", "-j", "link", "show")))
        macs = {link["ifname"]: link["address"] for link in there if link["ifname"] != "lo"}
        keys = [dict(word.split("=") for word in command if "=" in word) for command in commands()]
        wanted = {of["name"]: of["hwaddr"] for of in keys}
        check(macs == wanted, f"names and MAC addresses in the container are those of the page: {macs}", wanted)
        await_pings("all pairs of addresses ping each other")
        drops = [drop for drop in json.loads(run("vifswitch", "show", "drops", "--json")) if drop["reason"].startswith("spoofed")]
        check(not drops, "port security has dropped nothing", drops)
        check(passes_any(), "a frame of any kind passes from the port without addresses")

        title("Containers are killed and restarted, NICs plugged")
        os.kill(state("fw")["pid"], signal.SIGKILL)
        await_that("fw is stopped", lambda: state("fw")["status"] == "Stopped")
        await_that("ports that are down", lambda: status_codes("fw") == {"no_device"})
        check(sorted(links()) == ["lo", "web-0"], "fw is killed: its netdevs are gone, its ports DOWN: no_device", links())
        start("fw")
        await_pings("fw is started again, and all pairs ping")
        start("web", "restart", "--force")
        await_pings("web is restarted, and all pairs ping")
        lxc("config", "device", "remove", "fw", "eth2")
        await_that("a port that is down", lambda: ports()["fw-c"]["status_code"] == "no_device")
        lxc(*next(command for command in commands() if "eth2" in command))
        await_that("a port of the NIC that is plugged", lambda: ports()["fw-c"]["status_code"] == "no_carrier")
        run(*inside("fw", "ip", "link", "set", "eth2", "up"))
        await_that("ports of fw", lambda: are_up("fw"))
        check(passes_any(), "eth2 is unplugged and plugged while fw runs, and its port is ACTIVE again")

        title("The switch and LXD are restarted")
        before = state("fw")["pid"], state("web")["pid"]
        for what, how in (("systemctl restart", signal.SIGTERM), ("kill -9", signal.SIGKILL)):
            service.restart(how)
            await_that("ports of both", lambda: are_up("fw", "web"))
            await_pings(f"{what} of the switch: all pairs ping")
        run("timeout", "60", "systemctl", "restart", "lxd.service")
        check(are_up("fw", "web") and all_ping(), "restart of LXD: ports stay ACTIVE, and all pairs ping")
        check((state("fw")["pid"], state("web")["pid"]) == before, "the containers are the same ones")
        service.end(signal.SIGTERM)
        lxc("restart", "--force", "fw")
        run("systemctl", "start", "vifswitch.service")
        await_that("ports of both", lambda: are_up("fw", "web"))
        await_pings("fw is restarted while the switch is down: when it runs again, all pairs ping")

        title("The end")
        lxc("stop", "--force", "fw")
        lxc("delete", "fw")
        FRAGMENT.unlink()
        run("systemctl", "reload", "vifswitch.service")
        await_that("no ports of fw", lambda: set(ports()) == {"web-a"})
        check(sorted(links()) == ["lo", "web-0"], "fw and its fragment are deleted: no netdev and no port of it is left", links())
    except SystemExit:
        print(run("journalctl", "--no-pager", "--lines", "60", "--unit", "vifswitch.service", "--unit", "lxd.service", check=False),
              file=sys.stderr)
        raise
    print(f"\nnspawn-lab: all {nspawn.shown} checks with LXD passed", flush=True)


if __name__ == "__main__":
    main()
