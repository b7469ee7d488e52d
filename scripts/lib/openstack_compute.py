"""Nova, Placement, Glance and libvirt for scripts/openstack-lab, and its guests: VMs of libvirt that answer by a serial line."""

import glob
import json
import os
import re
import socket
from xml.etree import ElementTree

from guests import Failed, run, wait_for
from openstack_services import RUN, Process, Rest, eventually, listens, write

NOVA_CONF = f"""[DEFAULT]
host = compute1
my_ip = 127.0.0.1
transport_url = rabbit://guest:guest@127.0.0.1:5672/
state_path = {RUN}/nova
instances_path = {RUN}/nova/instances
compute_driver = libvirt.LibvirtDriver
vif_plugging_timeout = 60
vif_plugging_is_fatal = True
rpc_response_timeout = 60
reserved_host_memory_mb = 0
[wsgi]
api_paste_config = {RUN}/etc/nova-paste.ini
[api_database]
connection = mysql+pymysql://root@127.0.0.1:3306/nova_api
[database]
connection = mysql+pymysql://root@127.0.0.1:3306/nova
[oslo_concurrency]
lock_path = {RUN}/lock
[neutron]
auth_type = none
endpoint = http://127.0.0.1:9696
endpoint_override = http://127.0.0.1:9696
[placement]
auth_type = admin_token
token = admin
endpoint = http://127.0.0.1:8778
endpoint_override = http://127.0.0.1:8778
[glance]
endpoint_override = http://127.0.0.1:9292
[service_user]
send_service_user_token = false
[libvirt]
virt_type = qemu
cpu_mode = none
images_type = raw
[vnc]
enabled = false
[spice]
enabled = false
[serial_console]
enabled = true
proxyclient_address = 127.0.0.1
port_range = 20000:20100
[conductor]
workers = 1
[scheduler]
workers = 1
[nova_sys_admin]
helper_command = {{venv}}/bin/privsep-helper --config-file {RUN}/etc/nova.conf
[privsep_osbrick]
helper_command = {{venv}}/bin/privsep-helper --config-file {RUN}/etc/nova.conf
"""

PLACEMENT_CONF = """[api]
auth_strategy = noauth2
[placement_database]
connection = mysql+pymysql://root@127.0.0.1:3306/placement
"""

GLANCE_CONF = f"""[DEFAULT]
enabled_backends = files:file
[database]
connection = mysql+pymysql://root@127.0.0.1:3306/glance
[glance_store]
default_backend = files
[files]
filesystem_store_datadir = {RUN}/glance
[paste_deploy]
config_file = {RUN}/etc/glance-paste.ini
flavor = keystone
"""

QEMU_CONF = """user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
"""
CONSOLE = "console=ttyS0 quiet panic=-1 no_timer_check ipv6.disable_ipv6=1"


class Compute:
    """The services, started one after the other."""

    def __init__(self, lab):
        self.lab = lab
        self.nova = Rest("http://127.0.0.1:8774/v2.1", **{"X-OpenStack-Nova-API-Version": "2.93"})
        self.glance = Rest("http://127.0.0.1:9292/v2")
        venv, etc = lab.venv, f"{RUN}/etc"
        write(f"{etc}/nova.conf", NOVA_CONF.format(venv=venv))
        write(f"{etc}/placement.conf", PLACEMENT_CONF)
        write(f"{etc}/glance-api.conf", GLANCE_CONF)
        for name, source in ("nova", "nova/api-paste.ini"), ("glance", "glance/glance-api-paste.ini"):
            with open(f"{venv}/etc/{source}") as file:
                # everybody is an administrator, instead of keystone's filter
                text = re.sub(r"keystonemiddleware\.auth_token:filter_factory", "openstack_wsgi:everybody", file.read())
            write(f"{etc}/{name}-paste.ini", text)
        self.env = {
            **lab.env,
            "OS_PLACEMENT_CONFIG_DIR": etc,
            "OS_GLANCE_CONFIG_DIR": etc,
            "OS_NOVA_CONFIG_DIR": etc,
            "OS_NOVA_CONFIG_FILES": "nova-paste.ini;nova.conf",
        }

    def service(self, name, *command):
        process = Process(name, command, self.env)
        self.lab.processes.append(process)
        return process.start()

    def wsgi(self, name, module, port):
        return self.service(name, *self.lab.wsgi, module, str(port))

    def nova_program(self, name):
        return self.service(name, f"{self.lab.venv}/bin/{name}", "--config-file", f"{RUN}/etc/nova.conf")

    def manage(self, program, config, *arguments):
        process = Process(
            program, [f"{self.lab.venv}/bin/{program}", "--config-file", f"{RUN}/etc/{config}", *arguments], self.env
        )
        if process.start().child.wait(240):
            raise Failed(f"{program} {' '.join(arguments)} ended with {process.child.returncode}: {process.tail()}")

    def start_libvirt(self):
        """In this mount namespace, nothing of it is left on the host. Nova looks for netdevs in /sys."""
        run("mount -t sysfs lab /sys")
        for directory in "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt":
            os.makedirs(directory, exist_ok=True)
            run(f"mount -t tmpfs libvirt {directory}")
        write("/etc/libvirt/qemu.conf", QEMU_CONF)
        write("/etc/libvirt/libvirtd.conf", 'auth_unix_rw = "none"\nunix_sock_group = "root"\n')
        self.libvirt = self.service("libvirtd", "libvirtd", "--config", "/etc/libvirt/libvirtd.conf")
        eventually("libvirtd listens", lambda: self.libvirt.lives() and os.path.exists("/run/libvirt/libvirt-sock"))

    def start(self):
        os.makedirs(f"{RUN}/nova/instances", exist_ok=True)
        for name in "nova", "nova_api", "nova_cell0", "placement", "glance":
            self.lab.sql(f"CREATE DATABASE {name}")
        self.start_libvirt()
        self.manage("placement-manage", "placement.conf", "db", "sync")
        placement = self.wsgi("placement", "placement.wsgi.api", 8778)
        self.manage("glance-manage", "glance-api.conf", "db_sync")
        glance = self.wsgi("glance", "glance.wsgi.api", 9292)
        self.manage("nova-manage", "nova.conf", "api_db", "sync")
        self.manage(
            "nova-manage",
            "nova.conf",
            "cell_v2",
            "map_cell0",
            "--database_connection",
            "mysql+pymysql://root@127.0.0.1:3306/nova_cell0",
        )
        self.manage("nova-manage", "nova.conf", "cell_v2", "create_cell", "--name", "cell1")
        self.manage("nova-manage", "nova.conf", "db", "sync")
        listens(8778, placement)
        listens(9292, glance)
        programs = [self.nova_program(name) for name in ("nova-conductor", "nova-scheduler", "nova-compute")]
        listens(8774, self.wsgi("nova-api", "nova.wsgi.osapi_compute", 8774))

        def is_up():
            for program in programs:
                program.lives()
            services = self.nova.ok("GET", "/os-services")
            return {one["binary"] for one in services if one["state"] == "up"} >= {
                "nova-conductor",
                "nova-scheduler",
                "nova-compute",
            }

        eventually("Nova's services are up", is_up, 90)
        self.manage("nova-manage", "nova.conf", "cell_v2", "discover_hosts")

    def image(self):
        """The guests' kernel and memory disk, in Glance. Returns the id of the image."""

        def put(name, form, path, **keys):
            container = form if form in ("aki", "ari") else "bare"
            made = self.glance(
                "POST",
                "/images",
                {"name": name, "disk_format": form, "container_format": container, "visibility": "public", **keys},
            )
            if made[0] != 201:
                raise Failed(f"image {name}: {made}")
            with open(path, "rb") as file:
                self.glance.ok(
                    "PUT", f"/images/{made[1]['id']}/file", data=file.read(), **{"Content-Type": "application/octet-stream"}
                )
            return made[1]["id"]

        kernel = put("kernel", "aki", os.environ["LAB_KERNEL"])
        ramdisk = put("ramdisk", "ari", os.environ["LAB_INITRD"])
        with open(f"{RUN}/disk.raw", "wb") as file:
            file.write(bytes(1 << 20))
        self.nova.ok("POST", "/flavors", {"flavor": {"name": "tiny", "ram": 192, "vcpus": 1, "disk": 0, "id": "1"}})
        return put(
            "guest",
            "raw",
            f"{RUN}/disk.raw",
            kernel_id=kernel,
            ramdisk_id=ramdisk,
            os_command_line=CONSOLE,
            hw_serial_port_count="2",
            hw_disk_bus="virtio",
        )


class Guest:
    """A VM of Nova. `ask` calls a function of guest.py in it, by its second serial line."""

    def __init__(self, compute, name, server):
        self.compute, self.name, self.id, self.line, self.lines = compute, name, server, None, None
        self.line = None

    def state(self):
        return self.compute.nova.ok("GET", f"/servers/{self.id}")

    def until(self, status, seconds=90):
        def reached():
            now = self.state()
            if now["status"] == "ERROR":
                raise Failed(f"{self.name}: {now.get('fault', {}).get('message')}")
            return now["status"] == status and now["OS-EXT-STS:task_state"] is None

        return eventually(f"{self.name} is {status}", reached, seconds)

    def serial_port(self):
        """Port at which QEMU listens for its second serial line, by libvirt's description of the running domain."""
        for path in glob.glob("/run/libvirt/qemu/*.xml"):
            try:
                domain = ElementTree.parse(path).find("domain")
            except (OSError, ElementTree.ParseError):
                continue  # being written, or gone
            if domain is not None and domain.findtext("uuid") == self.id:
                for serial in domain.iterfind("devices/serial[@type='tcp']"):
                    if serial.find("target").get("port") == "1":
                        return int(serial.find("source").get("service"))
        return None

    def connect(self):
        """Connects while the guest boots, and waits until it is ready."""
        self.close()
        self.line = wait_for(f"{self.name} has a QEMU that listens", self.connected, 90)
        self.line.settimeout(120)
        self.lines = self.line.makefile("rb")
        if self.read() != "ready":
            raise Failed(f"{self.name}: unexpected first message")
        return True

    def connected(self):
        port = self.serial_port()
        try:
            return port and socket.create_connection(("127.0.0.1", port), 10)
        except OSError:
            return None

    def close(self):
        if self.lines:
            self.lines.close()
            self.line.close()
            self.lines = None

    def ends(self):
        """Waits until this QEMU has ended."""
        self.line.settimeout(90)
        while self.lines.readline():
            pass
        self.close()

    def read(self):
        if not (line := self.lines.readline()):
            raise Failed(f"{self.name} has ended")
        said = json.loads(line)
        if "error" in said:
            raise Failed(f"{self.name}: {said['error']}")
        return said["answer"]

    def ask(self, do, *arguments):
        if self.lines is None:
            raise Failed(f"{self.name} has not booted")
        self.line.sendall(json.dumps({"do": do, "with": arguments}).encode() + b"\n")
        return self.read()

    def run(self, *commands):
        for command in commands:
            done = self.ask("run", command)
            if done["code"]:
                raise Failed(f"{self.name}: {command}: {done['output']}")
        return done["output"]

    def macs(self):
        """MAC addresses in the order of the PCI bus."""
        return [mac for _, _, mac in self.ask("nics")]

    def console(self):
        path = f"{RUN}/nova/instances/{self.id}/console.log"
        if not os.path.exists(path):
            return ""
        with open(path, errors="replace") as file:
            return file.read()[-2000:]
