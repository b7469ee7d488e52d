"""A switch and a Neutron server for tests: the API over a real unix socket, and the calls of rpc.Neutron."""

import contextlib
import http.server
import json
import os
import socketserver
import tempfile
import threading
import urllib.parse

from networking_vifswitch.facts import ACTIVE, DOWN, Network, Port, Segment

PORT_KEYS = {
    "device_id",
    "network_id",
    "mac_address",
    "fixed_ips",
    "ip_allocation",
    "port_security",
    "allowed_address_pairs",
    "unknown_unicast",
    "promiscuous",
    "mac_learning",
    "mac_limit",
    "storm",
    "activation",
    "admin_state_up",
    "device",
    "parent",
    "vlan",
    "position",
    "owner",
}


class Problem(Exception):
    def __init__(self, status, kind, detail):
        super().__init__(detail)
        self.status, self.kind = status, kind


class FakeSwitch:
    """Desired configuration, generations, and events, with the rules of the real one that the agent meets."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.directory.name, "api.sock")
        self.networks, self.uplinks, self.vms = {}, {}, []
        self.generation, self.condition, self.events = 1, threading.Condition(), []
        self.status = {}  # port → (status, code); others are ACTIVE
        self.is_ready = True
        self.writes = []  # (method, path, body) of accepted changes
        self.before_write = lambda method, path: None  # called once before each write
        self.server, self.connections, self.queries = None, set(), []
        self.requests = []  # methods of all requests
        self.start()

    # ---- the process ----

    def start(self):
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self):
                return "unix"

            def log_message(self, *_):
                pass

            def do(self):
                with contextlib.suppress(OSError):
                    fake.serve(self)

            do_GET = do_PUT = do_DELETE = do_PATCH = do

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

            def process_request(self, request, address):
                fake.connections.add(request)
                super().process_request(request, address)

            def shutdown_request(self, request):
                fake.connections.discard(request)
                super().shutdown_request(request)

        self.server = Server(self.path, Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self):
        """Ends as by SIGKILL: connections end, and the socket file stays."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)
        with self.condition:
            self.condition.notify_all()

    def restart(self):
        os.unlink(self.path)
        self.start()

    def close(self):
        self.kill()
        self.directory.cleanup()

    # ---- state ----

    def port(self, name):
        """VM and keys of a port, or (None, None)."""
        return next(((vm["id"], p) for vm in self.vms for p in vm["ports"] if p["port_id"] == name), (None, None))

    def order(self, vm):
        return next(([p["port_id"] for p in one["ports"]] for one in self.vms if one["id"] == vm), [])

    def config(self):
        return {"networks": list(self.networks.values()), "uplinks": list(self.uplinks.values()), "vms": self.vms}

    def event(self, kind, ports=(), **more):
        with self.condition:
            self.events.append({"id": 100 + len(self.events), "kind": kind, "ports": list(ports), **more})
            self.condition.notify_all()

    def set_status(self, port, status, code, kind=None):
        self.status[port] = status, code
        self.event(kind or ("port_up" if status == ACTIVE else "port_down"), [port])

    # ---- requests ----

    def serve(self, http_request):
        length = int(http_request.headers.get("Content-Length", 0))
        body = json.loads(http_request.rfile.read(length)) if length else None
        path, _, query = http_request.path.partition("?")
        query = dict(urllib.parse.parse_qsl(query))
        at = int(query["after"]) - 99 if "after" in query else len(self.events)
        self.queries.append((path, query))  # from here on, a test may count on later events
        self.requests.append(http_request.command)
        if path == "/v1/events":
            return self.stream(http_request, at)
        try:
            with self.condition:
                status, answer = self.answer(http_request, path, query, body)
        except Problem as problem:
            status, answer = problem.status, {"kind": problem.kind, "detail": str(problem), "problems": []}
        text = json.dumps(answer).encode()
        http_request.send_response(status)
        http_request.send_header("ETag", f'"{self.generation}"')
        http_request.send_header("Content-Length", str(len(text)))
        http_request.end_headers()
        http_request.wfile.write(text)

    def stream(self, http_request, at):
        server = self.server
        http_request.send_response(200)
        http_request.send_header("Content-Type", "text/event-stream")
        http_request.send_header("Connection", "close")
        http_request.end_headers()
        while True:
            with self.condition:
                while at >= len(self.events) and http_request.request in self.connections and server is self.server:
                    self.condition.wait(0.05)
                if at >= len(self.events):
                    return
                event = self.events[at]
            http_request.wfile.write(f"id: {event['id']}\ndata: {json.dumps(event)}\n\n".encode())
            at += 1

    def answer(self, http_request, path, query, body):
        method = http_request.command
        if method == "GET":
            if path == "/v1/status":
                return 200, {"ready": self.is_ready}
            if path == "/v1/config":
                return 200, self.config()
            if path == "/v1/ports":
                return 200, [self.view(p) for vm in self.vms for p in vm["ports"] if p.get("owner") == query.get("owner")]
            raise Problem(404, "unknown_path", path)
        self.before_write(method, path)
        wanted = http_request.headers.get("If-Match")
        if wanted and wanted != f'"{self.generation}"':
            raise Problem(412, "generation_moved", f"the configuration has generation {self.generation}")
        before = json.dumps(self.config())
        kind, _, name = path.removeprefix("/v1/").partition("/")
        name = urllib.parse.unquote(name)
        handler = getattr(self, f"{method.lower()}_{kind}", None)
        if handler is None:
            raise Problem(405, "method", f"{method} {path}")
        handler(name, body)
        if json.dumps(self.config()) == before:
            return 200, {"changes": []}
        self.generation += 1
        self.writes.append((method, path, body))
        self.event("config", by={"request_id": http_request.headers.get("X-Request-Id")})
        return 200, {"changes": [path], "generation": self.generation}

    def view(self, port):
        status, code = self.status.get(port["port_id"], (ACTIVE, "ok"))
        if port.get("admin_state_up") is False:
            status, code = DOWN, "admin_down"
        return {"port_id": port["port_id"], "status": status, "status_code": code, "status_reason": "prose"}

    def put_networks(self, name, body):
        if not 68 <= body.get("mtu", 1500) <= 9216:
            raise Problem(400, "bad_value", f"mtu = {body['mtu']}: 68 to 9216")
        kept = {key: value for key, value in body.items() if (key, value) != ("mtu", 1500)}
        self.networks[name] = {"id": name, **kept}

    def delete_networks(self, name, _):
        on_uplinks = [up for up in self.uplinks.values() if any(one["network_id"] == name for one in up["networks"])]
        if on_uplinks or any(p["network_id"] == name for vm in self.vms for p in vm["ports"]):
            raise Problem(409, "network_in_use", f"network {name} is in use")
        self.networks.pop(name, None)

    def put_uplinks(self, name, body):
        entries = body["networks"]
        if not entries:
            raise Problem(400, "bad_value", "networks: at least one")
        if len({one.get("vlan") for one in entries}) != len(entries):
            raise Problem(409, "contradiction", "a VLAN id is used twice")
        for one in entries:
            if one["network_id"] not in self.networks:
                raise Problem(404, "unknown_network", one["network_id"])
        partners = [up for up in self.uplinks.values() if up.get("group") and up.get("group") == body.get("group")]
        if any(up["networks"] != entries for up in partners if up["id"] != name):
            raise Problem(409, "contradiction", "not those of the other uplink of the group")
        self.uplinks[name] = {"id": name, **body}

    def delete_uplinks(self, name, _):
        self.uplinks.pop(name, None)

    def put_config(self, _, body):
        self.networks = {one["id"]: one for one in body.get("networks", ())}
        self.uplinks = {one["id"]: one for one in body.get("uplinks", ())}
        self.vms = body.get("vms", [])

    def put_ports(self, name, body):
        if unknown := body.keys() - PORT_KEYS:
            raise Problem(400, "unknown_key", f"{unknown}")
        if body["network_id"] not in self.networks:
            raise Problem(404, "unknown_network", body["network_id"])
        for vm in self.vms:
            for port in vm["ports"]:
                same = (port["network_id"], port["mac_address"]) == (body["network_id"], body["mac_address"])
                if same and port["port_id"] != name:
                    raise Problem(409, "duplicate_mac", f"port {port['port_id']} has {body['mac_address']}")
        if body.get("parent") and self.port(body["parent"])[0] != body["device_id"]:
            raise Problem(404, "unknown_parent", body["parent"])
        port = {"port_id": name, **{key: value for key, value in body.items() if key != "device_id"}}
        of, before = self.port(name)
        if of == body["device_id"]:
            ports = next(vm for vm in self.vms if vm["id"] == of)["ports"]
            ports[ports.index(before)] = port
        else:
            if before:
                self.delete_ports(name, None)
            vm = next((vm for vm in self.vms if vm["id"] == body["device_id"]), None)
            if vm is None:
                vm = {"id": body["device_id"], "ports": []}
                self.vms.append(vm)
            vm["ports"].append(port)
            ports = vm["ports"]
        if any("position" in one for one in ports):
            ports.sort(key=lambda one: one.get("position", 1 << 16))

    def delete_ports(self, name, _):
        if subports := [p["port_id"] for vm in self.vms for p in vm["ports"] if p.get("parent") == name]:
            raise Problem(409, "has_subports", f"{subports}")
        for vm in self.vms:
            vm["ports"] = [port for port in vm["ports"] if port["port_id"] != name]
        self.vms = [vm for vm in self.vms if vm["ports"]]


class FakeNeutron:
    """What rpc.Neutron does, on dictionaries. A port that is reported becomes what was reported."""

    def __init__(self):
        self.db, self.nets, self.trunks_by_parent, self.rules = {}, {}, {}, {}
        self.calls = []
        self.failing = None  # an exception for each call
        self.heartbeats = []
        self.called = threading.Condition()

    def note(self, *call):
        with self.called:
            self.calls.append(call)
            self.called.notify_all()
        if self.failing:
            raise self.failing

    def port_ids(self):
        self.note("port_ids")
        return set(self.db)

    def ports(self, ids):
        self.note("ports", frozenset(ids))
        return {name: self.db[name] for name in ids if name in self.db}

    def networks(self, ids):
        self.note("networks", frozenset(ids))
        return {name: self.nets[name] for name in ids if name in self.nets}

    def trunks(self, parents):
        self.note("trunks", frozenset(parents))
        return {name: self.trunks_by_parent[name] for name in parents if name in self.trunks_by_parent}

    def policies(self, ids):
        self.note("policies", frozenset(ids))
        return {name: self.rules[name] for name in ids if name in self.rules}

    def devices(self, up, down):
        self.note("devices", frozenset(up), frozenset(down))
        for names, status in ((up, ACTIVE), (down, DOWN)):
            for name in names:
                if name in self.db and self.db[name].is_active:
                    self.change(name, status=status)

    def bind_subports(self, trunk, ports):
        self.note("bind_subports", trunk, frozenset(ports))

    def trunk_status(self, trunk, status):
        self.note("trunk_status", trunk, status)

    def report_state(self, configurations, is_first):
        self.note("report_state", is_first)
        self.heartbeats.append(configurations)
        return is_first

    def listen(self, agent):
        pass

    # ---- for tests ----

    def change(self, name, **keys):
        self.db[name] = Port(**{**vars(self.db[name]), **keys})

    def add(self, name, network="net1", **keys):
        self.nets.setdefault(network, Network(network))
        number = len(self.db) + 1
        made = {"mac": f"fa:16:3e:00:00:{number:02x}", "device_id": "vm1", "segment": Segment("local"), **keys}
        self.db[name] = Port(id=name, network_id=network, **made)
        return self.db[name]

    def reported(self, what):
        """Names of the ports that were reported: "up" or "down", one set per report."""
        index = {"up": 1, "down": 2}[what]
        return [set(call[index]) for call in self.calls if call[0] == "devices" and call[index]]
