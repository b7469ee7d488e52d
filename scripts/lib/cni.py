"""Runs scripts/cni-lab.

    cni.py lab BINARY PLUGINS RUN CHURN     the plugin as a runtime executes it
    cni.py podman BINARY PLUGINS RUN        the same under podman

BINARY is the switch, PLUGINS the directory of Debian's CNI plugins, RUN a directory. Needs root and the Python standard library.
Each check waits for what it expects, at most PATIENCE seconds.
"""

import concurrent.futures
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

PATIENCE = 10  # seconds
VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
TRY_AGAIN = 11
# what a container may have without CAP_SYS_RESOURCE
NPROC = 1024
# what sbr leaves to the stack: answer for addresses of the interface alone, and with its address
SYSCTLS = {f"net.ipv4.conf.IFNAME.{key}": value for key, value in (("arp_ignore", "1"), ("arp_announce", "2"), ("rp_filter", "2"))}

shown = 0


def ok(what):
    global shown
    shown += 1
    print(f"   ok    {what}", flush=True)


def fail(what, *details):
    for detail in details:
        print(f"         {detail}", flush=True)
    sys.exit(f"check failed: {what}")


def check(is_so, what, *details):
    if not is_so:
        fail(what, *details)
    ok(what)


def title(text):
    print(f"\n== {text}", flush=True)


def run(*command, may_fail=False, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    if done.returncode and not may_fail:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def await_that(look, what):
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        if time.monotonic() > end:
            fail(f"within {PATIENCE} seconds: {what}")
        time.sleep(0.05)
    return found


class Unix(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path):
        super().__init__("vifswitch", timeout=10)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.path)


class Switch:
    """The switch, which can be killed and started again."""

    def __init__(self, binary, directory):
        self.binary, self.directory = binary, directory
        self.socket = f"{directory}/api.sock"
        self.process = None
        os.makedirs(directory, exist_ok=True)
        run("ip", "netns", "add", "ops")
        with open(f"{directory}/switch.toml", "w") as file:
            file.write(f"""
[switch]
api = "{self.socket}"
state = "{directory}/state.db"
frames = 8192
stations = 4096

[[networks]]
id = "ops"
mtu = 9000

[[vms]]
id = "ops"

  [[vms.ports]]
  port_id = "ops"
  network_id = "ops"
  mac_address = "02:00:00:00:0f:01"
  device = {{ kind = "tap", name = "eth0", netns = "ops" }}
""")

    def start(self):
        log = open(f"{self.directory}/log", "a")
        self.process = subprocess.Popen(
            [self.binary, "run", "--config", f"{self.directory}/switch.toml"], stdout=log, stderr=log)

    def await_ready(self):
        await_that(lambda: self.get("/v1/status", {}).get("ready"), "a switch that is ready")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        return self.process.wait(timeout=30)

    def get(self, path, default=None):
        try:
            connection = Unix(self.socket)
            connection.request("GET", path)
            answer = connection.getresponse()
            return json.loads(answer.read())
        except (OSError, http.client.HTTPException):
            if default is None:
                raise
            return default

    def ports(self):
        """Ports of containers, by id."""
        return {port["port_id"]: port for port in self.get("/v1/ports?owner=cni", [])}

    def events(self, after=0):
        """Events, those after the one with this id."""
        connection = Unix(self.socket)
        connection.request("GET", f"/v1/events?after={after}")
        return [json.loads(line) for line in connection.getresponse().read().splitlines()]

    def of_operator(self):
        """What belongs to the operator, and must stay as it is."""
        config = self.get("/v1/config")
        link = json.loads(run("ip", "-n", "ops", "-j", "link", "show", "eth0").stdout)[0]
        ours = [vm for vm in config["vms"] if vm["id"] == "ops"], [of for of in config["networks"] if of["id"] == "ops"]
        return ours, (link["ifindex"], link["address"], link["mtu"])


class Failed(Exception):
    """A plugin has failed."""

    def __init__(self, plugin, error):
        super().__init__(f"{plugin}: {error}")
        self.code = error.get("code")


class Runtime:
    """What libcni does: executes a list of plugins, and keeps the results of ADD."""

    def __init__(self, switch, binary, plugins, directory):
        self.switch, self.directory = switch, directory
        self.results = {}
        self.path = f"{plugins}:{directory}/bin"
        os.makedirs(f"{directory}/bin", exist_ok=True)
        os.symlink(binary, f"{directory}/bin/vifswitch")
        self.plugins = plugins

    def network(self, name, subnet=None, version="1.1.0", behind=(), **keys):
        """A list of plugins: ours, and those behind it."""
        ours = {"type": "vifswitch", "socket": self.switch.socket, "state_directory": f"{self.directory}/records"} | keys
        if subnet:
            ours["ipam"] = {
                "type": "host-local", "dataDir": f"{self.directory}/leases", "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "192.0.2.0/24"}]}
        return {"cniVersion": version, "name": name, "plugins": [ours, *behind]}

    def execute(self, command, plugin, network, container="", interface="", netns="", result=None, **more):
        # Debian's plugins implement 1.0.0
        version = network["cniVersion"] if plugin["type"] == "vifswitch" else min(network["cniVersion"], "1.0.0")
        config = plugin | {"cniVersion": version, "name": network["name"]} | more
        if result is not None:
            config["prevResult"] = result | {"cniVersion": version}
        paths = [f"{directory}/{plugin['type']}" for directory in self.path.split(":")]
        program = next(path for path in paths if os.path.exists(path))
        variables = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": interface,
                     "CNI_PATH": self.path, "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=lab", "PATH": os.environ["PATH"]}
        done = run(program, input=json.dumps(config), env=variables, may_fail=True)
        output = json.loads(done.stdout) if done.stdout.strip() else None
        if done.returncode:
            raise Failed(plugin["type"], output or {"msg": done.stderr, "code": None})
        return output

    def add(self, network, container, interface, netns):
        result = None
        for plugin in network["plugins"]:
            result = self.execute("ADD", plugin, network, container, interface, netns, result)
        self.results[network["name"], container, interface] = result
        return result

    def delete(self, network, container, interface, netns=""):
        result = self.results.pop((network["name"], container, interface), None)
        for plugin in reversed(network["plugins"]):
            try:
                self.execute("DEL", plugin, network, container, interface, netns, result)
            except Failed:
                # sbr 1.1.1 fails if namespace or interface are gone
                if plugin["type"] != "sbr":
                    raise

    def check(self, network, container, interface, netns):
        result = self.results[network["name"], container, interface]
        # only ours: tuning 1.1.1 looks for the sysctls of an interface named IFNAME
        self.execute("CHECK", network["plugins"][0], network, container, interface, netns, result)

    def status(self, network):
        self.execute("STATUS", network["plugins"][0], network)

    def gc(self, network):
        valid = [{"containerID": container, "ifname": interface}
                 for name, container, interface in self.results if name == network["name"]]
        self.execute("GC", network["plugins"][0], network, **{"cni.dev/valid-attachments": valid})

    def leases(self):
        """Names of addresses that host-local has allocated."""
        found = []
        for directory, _, files in os.walk(f"{self.directory}/leases"):
            found += [f"{os.path.basename(directory)}/{file}" for file in files if file[0].isdigit()]
        return sorted(found)

    def records(self):
        directory = f"{self.directory}/records"
        return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def space(name):
    """Path of a new namespace."""
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    return f"/run/netns/{name}"


def links(name):
    return sorted(link["ifname"] for link in json.loads(run("ip", "-n", name, "-j", "link").stdout))


def addresses(name, interface):
    found = json.loads(run("ip", "-n", name, "-j", "-4", "address", "show", "dev", interface).stdout)
    return [f"{of['local']}/{of['prefixlen']}" for link in found for of in link.get("addr_info", [])]


def ping(name, address, interface=None, count=1):
    source = ["-I", interface] if interface else []
    done = run("ip", "netns", "exec", name, "ping", "-q", "-n", "-c", str(count), "-i", "0.1", "-W", "3", *source, address,
               may_fail=True)
    return done.returncode == 0


def address_of(result, index=-1):
    return result["ips"][index]["address"].split("/")[0]


def validate(result, version):
    """The fields that this version of the specification requires."""
    ours = result["interfaces"][-1]
    assert result["cniVersion"] == version and {"name", "mac", "sandbox"} <= ours.keys(), result
    assert ("mtu" in ours) == (version == "1.1.0"), result
    assert all(("version" in ip) == (version < "1.0.0") for ip in result["ips"]), result


def commands(runtime):
    title("Every command in every version")
    for version in VERSIONS:
        network = runtime.network("versions", "10.70.0.0/24", version, mtu=1400)
        netns = space("v")
        listed = runtime.execute("VERSION", network["plugins"][0], network)
        assert listed["supportedVersions"] == VERSIONS, listed
        result = runtime.add(network, "v", "eth0", netns)
        validate(result, version)
        did = ["VERSION", "ADD"]
        again = runtime.add(network, "v", "eth0", netns)
        check(again == result, f"{version}: ADD answers the same twice: {result['ips'][0]['address']}", again, result)
        if version >= "0.4.0":
            runtime.check(network, "v", "eth0", netns)
            did.append("CHECK")
        if version >= "1.1.0":
            runtime.status(network)
            runtime.gc(network)
            assert len(runtime.switch.ports()) == 1
            did += ["STATUS", "GC"]
        runtime.delete(network, "v", "eth0", netns)
        runtime.delete(network, "v", "eth0", netns)
        run("ip", "netns", "del", "v")
        check(not runtime.switch.ports() and not runtime.leases() and not runtime.records(),
              f"{version}: {', '.join(did)}, and DEL twice leaves nothing", runtime.switch.ports(), runtime.leases(), runtime.records())


def siblings(runtime):
    title("Two interfaces of each container on one network, with tuning and sbr behind the plugin")
    behind = [{"type": "tuning", "sysctl": SYSCTLS}, {"type": "sbr"}]
    network = runtime.network("pairs", "10.71.0.0/24", behind=behind, port={"port_security": "mac+ip"})
    results = {}
    for name in ("p1", "p2"):
        netns = space(name)
        for interface in ("eth1", "eth0"):
            results[name, interface] = runtime.add(network, name, interface, netns)
    order = [port["device"]["name"] for port in runtime.switch.get("/v1/ports") if port["device_id"] == "p1"]
    check(order == ["eth0", "eth1"], f"the switch has them in the order of their names: {', '.join(order)}", order)
    for mine in ("eth0", "eth1"):
        for other in ("eth0", "eth1"):
            to = address_of(results["p2", other])
            check(ping("p1", to, mine), f"{mine} of p1 pings {other} of p2 ({to}), under mac+ip")
    drops = [drop for drop in runtime.switch.get("/v1/drops") if drop["reason"].startswith("spoofed")]
    check(not drops, "no frame was dropped by port security", drops)
    for name in ("p1", "p2"):
        for interface in ("eth0", "eth1"):
            runtime.check(network, name, interface, f"/run/netns/{name}")
    ok("CHECK of the plugin agrees with what sbr has moved to other tables")
    title("The switch is killed")
    to = address_of(results["p2", "eth0"])
    runtime.switch.kill()
    check(addresses("p1", "eth0") == [f"{address_of(results['p1', 'eth0'])}/24"], "interfaces and addresses stay")
    runtime.switch.start()
    await_that(lambda: ping("p1", to, "eth0"), "pings after the start")
    ok("pings go on after it was started again")
    title("A namespace is gone, the switch is down")
    run("ip", "netns", "del", "p2")
    runtime.delete(network, "p2", "eth0")
    runtime.delete(network, "p2", "eth1")
    check(len(runtime.leases()) == 2, "DEL of a container whose namespace is gone succeeds")
    runtime.switch.kill()
    runtime.delete(network, "p1", "eth0", "/run/netns/p1")
    runtime.delete(network, "p1", "eth1", "/run/netns/p1")
    check(not runtime.leases() and links("p1") == ["lo"], "DEL while the switch is down succeeds: leases and interfaces are gone",
          runtime.leases(), links("p1"))
    try:
        runtime.add(network, "p1", "eth0", "/run/netns/p1")
        fail("ADD without a switch succeeds")
    except Failed as error:
        check(error.code == TRY_AGAIN, f"ADD says to try again: {error}")
    runtime.delete(network, "p1", "eth0", "/run/netns/p1")
    runtime.switch.start()
    runtime.switch.await_ready()
    runtime.status(network)
    check(not runtime.switch.ports() and not runtime.records() and links("p1") == ["lo"],
          "after its start, the next call deletes the ports", runtime.switch.ports(), runtime.records(), links("p1"))
    run("ip", "netns", "del", "p1")


def ends(runtime):
    title("Namespaces end, and DEL never comes")
    switch = runtime.switch
    networks = {"eth0": runtime.network("ends", "10.76.0.0/24"), "tap0": runtime.network("ends-vm", "10.77.0.0/24", mode="vm")}
    after = switch.events()[-1]["id"]

    def attach(name, netns):
        return [runtime.add(network, name, interface, netns) for interface, network in networks.items()]

    def are_gone():
        gone = {f"ends:{name}:eth0" for name in "ef"} | {f"ends-vm:{name}:tap0" for name in "ef"}
        return not gone & switch.ports().keys()

    def replace():
        for name in "ef":
            run("ip", "netns", "del", name)
            space(name)

    results = {name: attach(name, space(name)) for name in "ef"}
    lifetimes = {port["lifetime"] for port in switch.ports().values()}
    check(lifetimes == {"netns"}, "four ports of both modes have lifetime = \"netns\"", lifetimes)
    began = time.monotonic()
    for name in "ef":
        run("ip", "netns", "del", name)
    await_that(are_gone, "ports that end with their namespaces")
    ok(f"the ports are gone {time.monotonic() - began:.1f} s after the namespaces, without DEL and GC")
    told = sorted(port for event in switch.events(after) if event["kind"] == "port_ended" for port in event["ports"])
    check(told == ["ends-vm:e:tap0", "ends-vm:f:tap0", "ends:e:eth0", "ends:f:eth0"], "an event port_ended tells of each", told)
    check(len(runtime.leases()) == 4 and len(runtime.records()) > 0, "leases and records wait for DEL", runtime.leases())
    again = {name: attach(name, space(name)) for name in "ef"}
    check(again == results, "ADD with the same names answers the same", again, results)
    check(ping("e", address_of(results["f"][0])), "e pings f")
    replace()
    again = {name: attach(name, f"/run/netns/{name}") for name in "ef"}
    check(again == results and ping("e", address_of(results["f"][0])), "and at once in namespaces that replace the ones before", again, results)
    switch.kill()
    replace()
    switch.start()
    again = {name: attach(name, f"/run/netns/{name}") for name in "ef"}
    check(again == results, "and if they were replaced while the switch was down", again, results)
    await_that(lambda: ping("e", address_of(results["f"][0])), "pings after the start")
    for name in "ef":
        for interface, network in networks.items():
            runtime.check(network, name, interface, f"/run/netns/{name}")
    ok("CHECK agrees")
    for name in "ef":
        run("ip", "netns", "del", name)
    await_that(are_gone, "ports that end with their namespaces")
    for name in "ef":
        for interface, network in networks.items():
            runtime.delete(network, name, interface, "" if name == "e" else f"/run/netns/{name}")
    check(not runtime.leases() and not runtime.records(), "DEL of ports that have ended leaves nothing", runtime.leases(), runtime.records())


def parallel(runtime):
    title("Eight containers at once, on two networks that do not exist")
    names = [f"c{number}" for number in range(8)]
    networks = [runtime.network("left", "10.72.0.0/24", mtu=1450), runtime.network("right", "10.73.0.0/24")]
    of = {name: networks[number % 2] for number, name in enumerate(names)}
    spaces = {name: space(name) for name in names}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        # each one twice, as a confused runtime does
        calls = {name: [pool.submit(runtime.add, of[name], name, "eth0", spaces[name]) for _ in range(2)] for name in names}
        results = {name: [call.result() for call in both] for name, both in calls.items()}
    check(all(first == second for first, second in results.values()), "both calls for a container answer the same")
    ports = runtime.switch.ports()
    check(len(ports) == 8 and all(port["status"] == "ACTIVE" for port in ports.values()), "eight ports, all ACTIVE", ports)
    found = {network["network_id"]: network["mtu"] for network in runtime.switch.get("/v1/networks?owner=cni")}
    check(found.items() >= {"left": 1450, "right": 1500}.items(), f"each network was made once: {found}")
    check(ping("c0", address_of(results["c6"][0])) and not ping("c0", address_of(results["c1"][0])), "c0 pings c6, and not c1 on the other network")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: runtime.delete(of[name], name, "eth0", spaces[name]), names))
    check(not runtime.switch.ports() and not runtime.leases() and not runtime.records(), "eight DELs at once leave nothing")
    for name in names:
        run("ip", "netns", "del", name)


class Churn:
    """Containers that come and go, as a runtime makes them, while the switch is killed."""

    WORKERS = 4

    def __init__(self, runtime, count, seed):
        self.runtime, self.count, self.seed = runtime, count, seed
        self.network = runtime.network("churn", "10.74.0.0/22")
        self.alive = {}
        # the runtime was killed: namespaces are gone, and DEL comes much later
        self.abandoned = {}
        self.retries = self.kills = 0
        self.quiet = threading.Event()

    def attach(self, dice, name, interface, netns):
        """As runtimes do: what fails is detached, and tried again."""
        end = time.monotonic() + 60
        while True:
            try:
                self.runtime.add(self.network, name, interface, netns)
                return
            except Failed as error:
                self.runtime.delete(self.network, name, interface, netns)
                self.retries += 1
                if error.code != TRY_AGAIN or time.monotonic() > end:
                    raise
            time.sleep(dice.uniform(0, 0.2))

    def worker(self, number):
        dice = random.Random(self.seed * 100 + number)
        for round in range(number, self.count, self.WORKERS):
            name = f"x{round}"
            netns = space(name)
            interfaces = [f"eth{n}" for n in range(dice.choice((1, 1, 2)))]
            for interface in interfaces:
                self.attach(dice, name, interface, netns)
            if dice.random() < 0.2:
                self.alive[name] = interfaces
                continue
            is_gone = dice.random() < 0.4
            if is_gone:
                run("ip", "netns", "del", name)
                if dice.random() < 0.4:
                    self.abandoned[name] = interfaces
                    continue
            for interface in interfaces:
                for _ in range(dice.choice((1, 1, 2))):
                    self.runtime.delete(self.network, name, interface, "" if is_gone else netns)
            if not is_gone:
                run("ip", "netns", "del", name)

    def killer(self):
        dice = random.Random(self.seed)
        while not self.quiet.wait(dice.uniform(0.1, 0.8)):
            self.runtime.switch.kill()
            self.kills += 1
            self.quiet.wait(dice.choice((0.05, 0.05, 0.05, 1.5)))
            self.runtime.switch.start()

    def differences(self):
        """What is not yet as the containers are."""
        runtime = self.runtime
        wanted, waiting = (
            {f"churn:{name}:{interface}" for name, interfaces in of.items() for interface in interfaces}
            for of in (self.alive, self.abandoned))
        ports = runtime.switch.ports()
        found = {
            "ports": set(ports) ^ wanted,
            "not ACTIVE": {port for port, of in ports.items() if of["status"] != "ACTIVE"},
            "records": {record.rsplit(".", 1)[0] for record in runtime.records()} ^ (wanted | waiting),
            "leases": set() if len(runtime.leases()) == len(wanted | waiting) else runtime.leases(),
            "interfaces": [name for name, of in self.alive.items() if links(name) != sorted([*of, "lo"])],
        }
        return {what: it for what, it in found.items() if it}

    def run(self):
        title(f"{self.count} containers come and go while the switch is killed (SEED={self.seed})")
        killer = threading.Thread(target=self.killer)
        killer.start()
        try:
            with concurrent.futures.ThreadPoolExecutor(self.WORKERS) as pool:
                list(pool.map(self.worker, range(self.WORKERS)))
        finally:
            self.quiet.set()
            killer.join()
        began = time.monotonic()
        left = {"not looked": True}
        while left and time.monotonic() < began + PATIENCE:
            try:
                # as containerd does every few seconds
                self.runtime.status(self.network)
            except Failed:
                pass
            left = self.differences()
            time.sleep(0.1 if left else 0)
        took = time.monotonic() - began
        check(not left, f"{self.kills} kills, {self.retries} ADDs tried again; {took:.1f} s later all is as the "
              f"{len(self.alive)} containers that are left", json.dumps(left, default=sorted))
        for name, interfaces in self.abandoned.items():
            for interface in interfaces:
                self.runtime.delete(self.network, name, interface)
        count = len(self.abandoned)
        self.abandoned = {}
        left = self.differences()
        check(not left, f"DEL of {count} containers whose ports had ended by themselves leaves nothing", json.dumps(left, default=sorted))
        pairs = list(self.alive)
        if len(pairs) > 1:
            to = self.runtime.results["churn", pairs[0], "eth0"]
            check(ping(pairs[-1], address_of(to)), f"{pairs[-1]} pings {pairs[0]}")
        for name, interfaces in self.alive.items():
            for interface in interfaces:
                self.runtime.check(self.network, name, interface, f"/run/netns/{name}")
                self.runtime.delete(self.network, name, interface, f"/run/netns/{name}")
            run("ip", "netns", "del", name)
        check(self.kills > 0, "CHECK agrees with all of them, and DEL removes them")


def lab(binary, plugins, directory, churn):
    seed = int(os.environ.get("SEED") or random.randrange(1 << 30))
    switch = Switch(binary, directory)
    switch.start()
    switch.await_ready()
    await_that(lambda: switch.get("/v1/ports/ops").get("status") == "ACTIVE", "the operator's port")
    before = switch.of_operator()
    runtime = Runtime(switch, binary, plugins, directory)
    try:
        commands(runtime)
        siblings(runtime)
        ends(runtime)
        parallel(runtime)
        Churn(runtime, churn, seed).run()
        title("The end")
        check(switch.of_operator() == before, "port, network and interface of the operator are untouched", before, switch.of_operator())
        check(not switch.ports() and not runtime.leases() and not runtime.records(), "no port, lease and record is left")
        check(sorted(os.listdir("/run/netns")) == ["ops"], "no namespace is left", os.listdir("/run/netns"))
        audit = run(binary, "show", "drops", "--verify", "--socket", switch.socket, may_fail=True)
        check(audit.returncode == 0, "the counters add up", audit.stdout)
        check(switch.stop() == 0, "the switch ends with exit code 0")
    except BaseException:
        run("tail", "-n", "15", f"{directory}/log", may_fail=True)
        print(subprocess.run(["tail", "-n", "15", f"{directory}/log"], capture_output=True, text=True).stdout, flush=True)
        raise
    print(f"\ncni-lab: all {shown} checks passed", flush=True)


# ---- podman ----


class Podman:
    """podman with directories of its own, and a root file system of one program."""

    def __init__(self, directory, plugins):
        self.directory = directory
        for name in ("networks", "root", "runroot", "tmp", "rootfs/bin"):
            os.makedirs(f"{directory}/podman/{name}", exist_ok=True)
        self.base = f"{directory}/podman"
        shutil.copy(shutil.which("busybox"), f"{self.base}/rootfs/bin/busybox")
        for name in ("sh", "ip", "ping", "sleep"):
            os.symlink("busybox", f"{self.base}/rootfs/bin/{name}")
        with open(f"{self.base}/containers.conf", "w") as file:
            file.write(f"""
[network]
network_backend = "cni"
cni_plugin_dirs = ["{directory}/bin", "{plugins}"]
network_config_dir = "{self.base}/networks"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc={NPROC}:{NPROC}"]
""")

    def __call__(self, *arguments, may_fail=False):
        command = ["podman", "--root", f"{self.base}/root", "--runroot", f"{self.base}/runroot", "--tmpdir", f"{self.base}/tmp",
                   "--storage-driver", "vfs", "--runtime", "runc", *arguments]
        return run(*command, may_fail=may_fail, env=os.environ | {"CONTAINERS_CONF": f"{self.base}/containers.conf"})

    def network(self, network):
        path = f"{self.base}/networks/{network['name']}.conflist"
        with open(path, "w") as file:
            json.dump(network, file)

    def start(self, name, *options):
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", f"nproc={NPROC}:{NPROC}"]
        return self("run", "--detach", "--name", name, *limits, *options, "--rootfs",
                    f"{self.base}/rootfs", "sleep", "1000", may_fail=True)


def podman(binary, plugins, directory):
    title("podman")
    # of the lab before
    run("ip", "netns", "del", "ops", may_fail=True)
    switch = Switch(binary, f"{directory}/p")
    switch.start()
    switch.await_ready()
    runtime = Runtime(switch, binary, plugins, f"{directory}/p")
    podman = Podman(f"{directory}/p", plugins)
    behind = [{"type": "tuning", "sysctl": SYSCTLS}, {"type": "sbr"}]
    # podman 4.3 reads 0.4.0 and 1.0.0
    network = runtime.network("lab", "10.75.0.0/24", "1.0.0", behind=behind, port={"port_security": "mac+ip"})
    podman.network(network)
    option = "lab:interface_name=eth0"
    first = podman.start("one", "--network", option)
    if first.returncode:
        sys.exit("podman cannot run a container on this host; the checks with podman were NOT made:\n" + first.stderr)
    ok("podman runs a container: " + first.stdout.strip()[:12])
    second = podman.start("two", "--network", option)
    check(second.returncode == 0, "and another one", second.stderr)
    address = {name: json.loads(podman("inspect", name).stdout)[0]["NetworkSettings"]["Networks"]["lab"]["IPAddress"]
               for name in ("one", "two")}
    pinged = podman("exec", "one", "ping", "-c", "2", "-W", "3", "-I", address["one"], address["two"], may_fail=True)
    check(pinged.returncode == 0, f"one pings two: {address}", pinged.stdout, pinged.stderr)
    podman("network", "disconnect", "lab", "one")
    check(len(switch.ports()) == 1, "podman network disconnect detaches it")
    podman("network", "connect", "lab", "one")
    check(len(switch.ports()) == 2, "podman network connect attaches it")
    switch.kill()
    podman("rm", "--force", "--time", "0", "one")
    ok("podman rm while the switch is down")
    switch.start()
    switch.await_ready()
    podman("rm", "--force", "--time", "0", "two")
    runtime.status(network | {"cniVersion": "1.1.0"})
    check(not switch.ports() and not runtime.leases() and not runtime.records(), "no port, lease and record is left",
          switch.ports(), runtime.leases(), runtime.records())
    switch.stop()
    print(f"\ncni-lab: all {shown} checks with podman passed", flush=True)


if __name__ == "__main__":
    word, binary, plugins, directory, *more = sys.argv[1:]
    if word == "lab":
        lab(binary, plugins, directory, int(more[0]))
    else:
        podman(binary, plugins, directory)
