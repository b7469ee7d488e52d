"""The services of scripts/openstack-lab: MariaDB, RabbitMQ, Neutron, switches and agents, each as a process.

Everything is below /run/openstack-lab, in namespaces that end with the script. Two hosts are network namespaces with a
switch and an agent each, joined by a wire, `eth1`; a third one, `compute1`, is the lab's own namespace.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from guests import Failed, run, wait_for
from openstack_config import AGENT_CONF, BROKER, MYSQL, NEUTRON_CONF, POLICY, RUN, SWITCH_CONF

LIB = os.path.dirname(os.path.abspath(__file__))
PROJECT = "d" * 32
NEUTRON = "http://127.0.0.1:9696/v2.0"
RABBIT = "/usr/lib/rabbitmq/bin/rabbitmq-server"


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    return path


class Process:
    """A process with its log. It can be started again."""

    def __init__(self, name, command, env=None, space=None):
        self.name, self.log = name, f"{RUN}/log/{name}"
        self.command = (["ip", "netns", "exec", space] if space else []) + list(command)
        self.env, self.child = {**os.environ, **(env or {})}, None
        os.makedirs(f"{RUN}/log", exist_ok=True)

    def start(self):
        with open(self.log, "a") as output:
            self.begin = output.tell()
            self.child = subprocess.Popen(
                self.command,
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self

    def kill(self, signal_=signal.SIGKILL):
        """Ends the process and its children, and waits for it."""
        if self.child and self.child.poll() is None:
            os.killpg(self.child.pid, signal_)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait(10)

    def stop(self):
        self.kill(signal.SIGTERM)

    def lives(self):
        """Fails with the end of the log if the process has ended."""
        if self.child.poll() is not None:
            raise Failed(f"{self.name} has ended with {self.child.returncode}: {self.tail()}")
        return True

    def tail(self, lines=12):
        with open(self.log, errors="replace") as file:
            return "\n".join(file.read().splitlines()[-lines:])

    def said(self, text, since_start=False):
        with open(self.log, errors="replace") as file:
            file.seek(self.begin if since_start else 0)
            return text in file.read()


def listens(port, process, seconds=60):
    """Waits until a process listens at a TCP port."""

    def connects():
        process.lives()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    wait_for(f"{process.name} listens at {port}: see its log", connects, seconds)


class Rest:
    """A service with JSON over HTTP. Answers are (status, body)."""

    def __init__(self, url, **headers):
        self.url, self.headers = url, {"Content-Type": "application/json", "X-Project-Id": PROJECT, "X-Roles": "admin", **headers}

    def __call__(self, method, path, body=None, data=None, **headers):
        payload = data if data is not None else json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, payload, {**self.headers, **headers}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def ok(self, method, path, body=None, **more):
        """The object in the answer, which has to be a success."""
        status, answer = self(method, path, body, **more)
        if status >= 300:
            raise Failed(f"{method} {path}: {status} {answer}")
        if isinstance(answer, dict) and len(answer) == 1:
            return next(iter(answer.values()))
        return answer

    def make(self, kind, **keys):
        return self.ok("POST", f"/{kind}s", {kind: keys})


class SwitchApi:
    def __init__(self, path):
        self.path = path

    def __call__(self, method, path, body=None):
        connection = http.client.HTTPConnection("vifswitch", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        try:
            connection.sock.connect(self.path)
            text = json.dumps(body) if body is not None else None
            connection.request(method, f"/v1/{path}", text, {"Content-Type": "application/json"} if body is not None else {})
            answer = connection.getresponse()
            found = answer.read()
            if answer.status >= 400:
                raise Failed(f"{method} {path}: {answer.status} {found.decode()}")
            return json.loads(found) if found else None
        finally:
            connection.close()

    def get(self, path):
        return self("GET", path)

    def ports(self, **filters):
        return {port["port_id"]: port for port in self.get("ports") if all(port.get(k) == v for k, v in filters.items())}

    def order(self, vm):
        return [port["port_id"] for port in self.get("ports") if port["device_id"] == vm]


class Host:
    """A compute host: a switch and an agent, in a network namespace (None: the lab's own)."""

    def __init__(self, lab, name, space):
        self.name, self.space, self.directory = name, space, f"{RUN}/{name}"
        self.socket = f"{self.directory}/api.sock"
        config = SWITCH_CONF.format(socket=self.socket, directory=self.directory, wire=f"wire-{name}"[:15], number=len(lab.hosts))
        write(f"{self.directory}/vifswitch.toml", config)
        write(
            f"{self.directory}/agent.conf",
            AGENT_CONF.format(host=name, socket=self.socket, flat=f"flat-{name}"[:15]),
        )
        self.api = SwitchApi(self.socket)
        self.switch = Process(
            f"{name}-switch", [lab.vifswitch, "run", "--config", f"{self.directory}/vifswitch.toml"], None, space
        )
        configs = ["--config-file", f"{RUN}/etc/neutron.conf", "--config-file", f"{self.directory}/agent.conf"]
        self.agent = Process(f"{name}-agent", [f"{RUN}/site/bin/neutron-vifswitch-agent", *configs], lab.env, space)

    def start_switch(self):
        self.switch.start()

        def answers():
            self.switch.lives()
            try:
                return self.api.get("status")["ready"]
            except (OSError, http.client.HTTPException, Failed):
                return False

        wait_for(f"the switch of {self.name} is ready", answers)

    def start(self):
        self.start_switch()
        self.agent.start()

    def ip(self, command):
        return run(f"ip {f'-n {self.space} ' if self.space else ''}{command}")


class Lab:
    """All services. `venv` is the virtual environment, `vifswitch` the program."""

    def __init__(self, venv, vifswitch, with_nova):
        self.venv, self.vifswitch, self.with_nova = venv, vifswitch, with_nova
        self.env = {
            "PYTHONPATH": f"{RUN}/site",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OS_NEUTRON_CONFIG_DIR": f"{RUN}/etc",
            "OS_NEUTRON_CONFIG_FILES": "neutron.conf",
            "PYTHONWARNINGS": "ignore",
            "HOME": RUN,
        }
        self.neutron = Rest(NEUTRON)
        write(f"{RUN}/my.cnf", MYSQL)
        write(f"{RUN}/etc/neutron.conf", NEUTRON_CONF.format(notify=with_nova))
        write(f"{RUN}/etc/neutron-policy.yaml", POLICY)
        with open(f"{venv}/etc/neutron/api-paste.ini") as file:
            write(f"{RUN}/etc/neutron-paste.ini", file.read())
        self.database = Process("mariadb", ["mariadbd", f"--defaults-file={RUN}/my.cnf"])
        self.broker = Process("rabbitmq", [RABBIT], self.broker_env())
        # Beside what the services import. Here are modules of ours, whose names are not meant for them.
        shutil.copy(f"{LIB}/openstack_wsgi.py", f"{RUN}/site")
        self.wsgi = [f"{venv}/bin/python", f"{RUN}/site/openstack_wsgi.py"]
        self.server = Process("neutron", [*self.wsgi, "neutron", "9696"], self.env)
        self.processes, self.hosts = [self.database, self.broker, self.server], {}

    def broker_env(self):
        base = f"{RUN}/rabbitmq"
        write(
            f"{base}/rabbitmq.conf", "listeners.tcp.default = 5672\nloopback_users = none\nlog.console = true\nlog.file = false\n"
        )
        write(f"{base}/enabled", "[].\n")
        return {
            "RABBITMQ_NODENAME": "lab@localhost",
            "RABBITMQ_MNESIA_BASE": base,
            "RABBITMQ_LOG_BASE": base,
            "RABBITMQ_CONFIG_FILE": f"{base}/rabbitmq",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{base}/enabled",
            "RABBITMQ_PID_FILE": f"{base}/pid",
            "HOME": base,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        }

    def sql(self, text):
        return run(["mariadb", f"--socket={RUN}/mysql.sock", "-u", "root", "-e", text])

    def start_network(self):
        """Two namespaces with a way to the broker, and wires between all hosts: eth for VLANs, and one for a flat network."""
        run(f"ip addr add {BROKER}/32 dev lo")
        run("ip link add cable type bridge")
        run("ip link add flat type bridge")
        for bridge in "cable", "flat":
            run(f"ip link set {bridge} up mtu 9100")
        names = ["host1", "host2"] + (["compute1"] if self.with_nova else [])
        for number, name in enumerate(names):
            space = name if name != "compute1" else None
            inside = f"netns {space}" if space else ""
            if space:
                run(f"ip netns add {space}")
                run(f"ip netns exec {space} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
                run(f"ip -n {space} link set lo up")
                near, far = f"10.255.{number + 1}.1", f"10.255.{number + 1}.2"
                run(f"ip link add mgmt-{name} type veth peer name mgmt {inside}")
                run(f"ip addr add {near}/24 dev mgmt-{name}")
                run(f"ip link set mgmt-{name} up")
                run(f"ip -n {space} addr add {far}/24 dev mgmt")
                run(f"ip -n {space} link set mgmt up")
                run(f"ip -n {space} route add {BROKER} via {near}")
            for kind, bridge in ("wire", "cable"), ("flat", "flat"):
                run(f"ip link add b-{kind}{number} mtu 9100 type veth peer name {f'{kind}-{name}'[:15]} mtu 9100 {inside}")
                run(f"ip link set b-{kind}{number} master {bridge} up")
                run(f"ip {f'-n {space} ' if space else ''}link set {f'{kind}-{name}'[:15]} up")
            self.hosts[name] = Host(self, name, space)

    def start_services(self):
        """Database and broker, beside each other, and Neutron on them."""
        self.broker.start()
        run(["mariadb-install-db", f"--defaults-file={RUN}/my.cnf", "--auth-root-authentication-method=normal", "--skip-test-db"])
        self.database.start()
        wait_for("MariaDB answers", lambda: self.database.lives() and os.path.exists(f"{RUN}/mysql.sock"))
        listens(3306, self.database)
        self.sql("CREATE DATABASE neutron")
        self.manage("neutron-db-manage", "--config-file", f"{RUN}/etc/neutron.conf", "upgrade", "heads")
        listens(5672, self.broker)
        self.server.start()
        listens(9696, self.server)

    def manage(self, program, *arguments):
        """Runs a command of the virtual environment to its end."""
        process = Process(program, [f"{self.venv}/bin/{program}", *arguments], self.env).start()
        if process.child.wait(180):
            raise Failed(f"{program} ended with {process.child.returncode}: {process.tail()}")

    def restart_broker(self):
        """As after a crash: SIGKILL, and started again."""
        self.broker.kill()
        self.broker.start()
        listens(5672, self.broker)

    def problems(self):
        """Lines of logs that tell of a defect: tracebacks of the project's own programs."""
        found = []
        for host in self.hosts.values():
            for process in host.agent, host.switch:
                if os.path.exists(process.log):
                    with open(process.log, errors="replace") as file:
                        found += re.findall(r"^.*(?:Traceback|panicked).*$", file.read(), re.MULTILINE)
        return found

    def stop(self):
        for host in self.hosts.values():
            for process in host.agent, host.switch:
                process.kill()
        for process in reversed(self.processes):
            process.kill()


def eventually(what, look, seconds=20):
    """Waits until it holds. Returns the seconds that took."""
    began = time.monotonic()
    wait_for(what, look, seconds, 0.02)
    return time.monotonic() - began
