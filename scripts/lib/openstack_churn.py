"""Churn of scripts/openstack-lab: ports are created, attached, detached and deleted by Neutron, while agents, switches and
RabbitMQ are killed at random. Once it is quiet, the switches contain what Neutron says, and nothing else has changed."""

import random
import threading
import time
import uuid

from guests import Failed
from openstack_faults import foreign
from openstack_neutron import ACTIVE, Nova
from openstack_services import eventually

RUNS = "SECURITY GROUPS ARE NOT ENFORCED"  # what an agent logs when it begins
QUIET = 10  # seconds in which everything has to converge


class Churn:
    def __init__(self, lab, seed):
        self.lab, self.nova, self.dice = lab, Nova(lab), random.Random(seed)
        self.nets = [lab.neutron.make("network", name=f"churn{n}") for n in range(3)]
        lab.neutron.make("subnet", network_id=self.nets[0]["id"], cidr="10.6.0.0/22", ip_version=4, enable_dhcp=False)
        self.vms = [str(uuid.uuid4()) for _ in range(4)]
        self.where = {}  # port → host, once it is attached
        self.done = dict.fromkeys(("create", "attach", "detach", "delete"), 0)
        self.kills = dict.fromkeys(("agent", "switch", "rabbitmq"), 0)
        self.over = threading.Event()
        self.trouble = None

    def hosts(self):
        return [self.lab.hosts["host1"], self.lab.hosts["host2"]]

    # ---- what Neutron and Nova do ----

    def step(self, number):
        loose = [name for name in self.nova.ports if name not in self.where]
        choices = {"create": 3, "attach": 4 if loose else 0, "detach": 2 if self.where else 0, "delete": 1 if loose else 0}
        what = self.dice.choices(list(choices), list(choices.values()))[0]
        self.done[what] += 1
        if what == "create":
            keys = {"fixed_ips": []} if self.dice.random() < 0.5 else {}
            if self.dice.random() < 0.3:
                keys.update(port_security_enabled=False, security_groups=[])
            self.nova.port(f"p{number}", self.dice.choice(self.nets), **keys)
        elif what == "attach":
            name = self.dice.choice(loose)
            host = f"host{self.dice.randrange(2) + 1}"
            if self.attach(name, host):
                self.where[name] = host
        elif what == "detach":
            self.detach(self.dice.choice(list(self.where)))
        else:
            self.nova.delete(self.dice.choice(loose))

    def attach(self, name, host):
        bound = self.nova.bind(name, self.dice.choice(self.vms) + host, host)
        if bound["binding:vif_type"] != "tap":
            # the agent is taken for dead: Nova would fail the boot, and unbind
            self.nova.update(name, **{"device_id": "", "device_owner": "", "binding:host_id": ""})
            return False
        self.nova.plug(name, host)
        return True

    def detach(self, name):
        host = self.where.pop(name)
        if self.dice.random() < 0.7:
            self.nova.unplug(name, host)
            self.nova.update(name, **{"device_id": "", "device_owner": "", "binding:host_id": ""})
        else:  # deleted while it is attached
            self.nova.delete(name, host=host)

    # ---- what fails ----

    def killer(self, kinds, pause):
        dice = random.Random(self.dice.random())
        try:
            while not self.over.wait(dice.uniform(*pause)):
                kind = dice.choice(kinds)
                self.kills[kind] += 1
                host = dice.choice(self.hosts())
                if kind == "agent":
                    host.agent.kill()
                    self.over.wait(dice.uniform(0, 1))
                    host.agent.start()
                elif kind == "switch":
                    host.switch.kill()
                    self.over.wait(dice.uniform(0, 1))
                    host.start_switch()
                else:
                    self.lab.restart_broker()
        except Exception as problem:  # reported by the check, which would wait for ever otherwise
            self.trouble = problem

    # ---- what holds then ----

    def differences(self):
        """What is not as Neutron says."""
        found = []
        ports = {
            p["id"]: p for p in self.lab.neutron.ok("GET", "/ports") if p["id"] in {q["id"] for q in self.nova.ports.values()}
        }
        for host in self.hosts():
            wanted = {self.nova.id(name) for name, where in self.where.items() if where == host.name}
            there = host.api.ports(owner="neutron")
            mine = {name for name, port in there.items() if port["network_id"] in {net["id"] for net in self.nets}}
            if mine != wanted:
                found.append(f"{host.name} lacks {wanted - mine} and has {mine - wanted} too many")
            for name in mine & wanted:
                states = there[name]["status"], ports.get(name, {}).get("status")
                if states != (ACTIVE, ACTIVE):
                    found.append(f"{host.name}: {name} is {states[0]} ({there[name]['status_code']}), for Neutron {states[1]}")
        return found

    def converges(self, what):
        last = []

        def same():
            last[:] = self.differences()
            return not last

        try:
            return eventually(what, same, QUIET)
        except Failed:
            raise Failed(f"{what} within {QUIET} s: {last[:5]}") from None


def run_churn(lab, check, count, kinds, seed):
    """`count` operations, with kills of these kinds."""
    neutron, churn = lab.neutron, Churn(lab, seed)
    foreign_before = {}

    def operate():
        for host in churn.hosts():
            host.api(
                "PUT",
                "ports/churn-foreign",
                {
                    "device_id": "churn-vm",
                    "network_id": "operators",
                    "mac_address": "02:00:00:00:00:99",
                    "device": {"kind": "tap", "name": "churn0", "persist": False},
                },
            )
            foreign_before[host.name] = foreign(host)
        threads = [threading.Thread(target=churn.killer, args=([kind], pause), daemon=True) for kind, pause in kinds.items()]
        for thread in threads:
            thread.start()
        try:
            for number in range(count):
                churn.step(number)
        finally:
            churn.over.set()
            for thread in threads:
                thread.join(120)
        if churn.trouble:
            raise churn.trouble
        # quiet begins when what was killed last runs again
        return eventually("the agents run", lambda: all(host.agent.said(RUNS, since_start=True) for host in churn.hosts()), 90)

    def said(text):
        print(f"         {text}", flush=True)

    check(f"churn: {count} operations by Neutron (seed {seed}), with kills of {', '.join(kinds)}", operate)
    said(f"operations {churn.done}, kills {churn.kills}, {len(churn.where)} ports attached at the end")
    check(f"churn: {QUIET} s of quiet later each port is where Neutron says, and ACTIVE", lambda: churn.converges("converged"))

    def empty():
        for name, host in list(churn.where.items()):
            churn.where.pop(name)
            churn.nova.delete(name, host=host)
        churn.nova.delete(*churn.nova.ports)
        took = churn.converges("empty")
        for net in churn.nets:
            neutron.ok("DELETE", f"/networks/{net['id']}")
        ids = {net["id"] for net in churn.nets}
        eventually(
            "no network is left",
            lambda: not any(n["network_id"] in ids for host in churn.hosts() for n in host.api.get("networks")),
            QUIET,
        )
        return took

    check("churn: when they are deleted nothing is left", empty)

    def untouched():
        for host in churn.hosts():
            if (now := foreign(host)) != foreign_before[host.name]:
                raise Failed(f"{host.name}: {now}, before {foreign_before[host.name]}")
            if host.api.get("ports/churn-foreign")["status"] != ACTIVE:
                raise Failed("the port of others is not ACTIVE")
            host.api("DELETE", "ports/churn-foreign")
        return True

    check("churn: the ports and networks of others are as they were", untouched)
    return time.monotonic()
