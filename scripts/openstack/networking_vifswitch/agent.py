"""The agent's loop: what Neutron says → the switch → what Neutron has to know.

Level-triggered. Notifications, events and netlink messages are hints: they only say that it is time to look. What is true
is pulled from Neutron and read from the switch, so a lost, repeated or reordered hint does no harm, and what was missed
is found by the next pass.
"""

import logging
import threading
import time

from networking_vifswitch import desired as wanted
from networking_vifswitch import links
from networking_vifswitch.facts import ACTIVE, OWNER, TRUNK_SUBPORT, Facts
from networking_vifswitch.reconcile import reconcile
from networking_vifswitch.reports import Reports
from networking_vifswitch.switch import Refused, Unreachable

LOG = logging.getLogger(__name__)
PAUSE = 1  # seconds before a failed pass is repeated; doubled up to MAX_PAUSE
MAX_PAUSE = 5
TRY_REFUSED = 5  # seconds before what the switch refused is tried again; doubled up to the resync interval
REBIND = 30  # seconds before Neutron is asked again to bind a subport
TOLD = 20  # refused ports that a heartbeat names


def one_line(problem):
    """A failure in a line of the log. An error that Neutron raised comes with Neutron's traceback, which is in its own log."""
    kind = getattr(problem, "exc_type", None) or type(problem).__name__
    lines = str(getattr(problem, "value", None) or problem).splitlines()
    return f"{kind}: {lines[0][:300]}" if lines else kind


class Hints:
    """What has to be pulled again."""

    def __init__(self, everything=False):
        self.everything, self.trunks, self.look = everything, False, False
        self.ports, self.networks, self.policies = set(), set(), set()
        self.flapped = set()  # ports that were down, if only for a moment

    def __bool__(self):
        return any(vars(self).values())

    def add(self, **what):
        for name, value in what.items():
            setattr(self, name, getattr(self, name) | value)

    def is_about_neutron(self):
        return bool(self.everything or self.trunks or self.ports or self.networks or self.policies)


class Agent:
    def __init__(self, host, neutron, switch, settings, told=None, resync=60, taps=links.taps, clock=time.monotonic):
        self.host, self.neutron, self.switch, self.settings = host, neutron, switch, settings
        self.told, self.resync, self.taps, self.clock = dict(told or {}), resync, taps, clock
        self.facts, self.reports = Facts(), Reports()
        self.condition = threading.Condition()
        self.hints = Hints(everything=True)
        self.seen = {}  # port → place in the order in which Neutron mentioned them
        self.mentions = 0
        self.strange_taps = {}  # taps of no known port → index, each of which caused a pull
        self.asked = {}  # subport → when Neutron was asked to bind it
        self.refused = {}
        self.again = None  # when to look without a hint
        self.refusals = 0  # passes in a row with something refused
        self.broker_again = None
        self.pulled = float("-inf")
        self.stopping = threading.Event()
        self.is_pulling = False  # then hints may be about what is being pulled, and none is ignored

    # ---- hints, from any thread ----

    def hint(self, **what):
        """Marks what has to be pulled, and wakes the loop."""
        with self.condition:
            self.hints.add(**what)
            self.condition.notify()

    def hint_port(self, port, hosts):
        if self.is_pulling or port in self.facts.ports or self.host in hosts:
            with self.condition:
                self.mentions += 1
                self.seen.setdefault(port, self.mentions)
            self.hint(ports={port})

    def hint_network(self, network):
        if self.is_pulling or network in self.facts.networks:
            self.hint(networks={network})

    def hint_trunk(self):
        self.hint(trunks=True)

    def hint_policy(self, policy):
        if self.is_pulling or policy in self.facts.policies:
            self.hint(policies={policy})

    def hint_all(self):
        self.hint(everything=True)

    def hint_broker(self):
        """A connection to the message broker was lost or is back: now, and once all consumers are back."""
        with self.condition:
            self.broker_again = self.clock() + 2
        self.hint(everything=True)

    def hint_link(self, name):
        """A tap has appeared, changed or gone. One of no known port may be of a VM that migrates to this host."""
        if name is None:
            self.hint(everything=True)
            return
        index = self.taps().get(name)
        if index is None:
            self.strange_taps.pop(name, None)
            self.hint(look=True)
        elif any(port.tap == name for port in list(self.facts.ports.values())):
            self.hint(look=True)
        elif self.strange_taps.get(name) != index:
            self.strange_taps[name] = index
            self.hint(everything=True)

    # ---- Neutron → facts ----

    def pull(self, hints):
        """Facts as they are now. Those of before stay if it fails."""
        before, neutron, now = self.facts, self.neutron, Facts()
        if hints.everything:
            now.ports = neutron.ports(neutron.port_ids())
        else:
            now.ports = {name: port for name, port in before.ports.items() if name not in hints.ports}
            if hints.ports:
                now.ports.update(neutron.ports(hints.ports))
        needed = {port.network_id for port in now.ports.values()}
        now.networks = {name: one for name, one in before.networks.items() if name in needed}
        stale = needed if hints.everything else needed - set(before.networks) | needed & hints.networks
        if stale:
            found = neutron.networks(stale)
            now.networks = {name: one for name, one in now.networks.items() if name not in stale} | found
        parents = {name for name, port in now.ports.items() if port.device_owner != TRUNK_SUBPORT}
        stale = parents if hints.everything or hints.trunks else parents & hints.ports
        now.trunks = {name: one for name, one in before.trunks.items() if name in parents - stale}
        if stale:
            now.trunks.update(neutron.trunks(stale))
        if self.settings.limits_flooded:
            needed = {port.policy_id for port in now.ports.values()} - {None}
            stale = needed if hints.everything else needed - set(before.policies) | needed & hints.policies
            now.policies = {name: one for name, one in before.policies.items() if name in needed - stale}
            if stale:
                now.policies.update(neutron.policies(stale))
        if hints.everything:
            self.tell_groups(now)
            self.pulled = self.clock()
        with self.condition:
            self.facts = now
            self.seen = {name: place for name, place in self.seen.items() if name in now.ports or name in self.hints.ports}

    def tell_groups(self, now):
        grouped = sum(port.has_groups for port in now.ports.values())
        if grouped != sum(port.has_groups for port in self.facts.ports.values()):
            LOG.warning("security groups are not enforced: %d of %d ports of this host have some", grouped, len(now.ports))

    def bind_subports(self):
        """Asks Neutron to bind the subports of the trunks of this host here. Returns whether it did."""
        now, asked = self.clock(), False
        for parent, trunk in self.facts.trunks.items():
            if not self.facts.ports[parent].is_active:
                continue
            missing = [port for port, _ in trunk.subports if port not in self.facts.ports]
            missing = [port for port in missing if now >= self.asked.get(port, float("-inf")) + REBIND]
            if missing:
                self.asked.update(dict.fromkeys(missing, now))
                self.neutron.bind_subports(trunk.id, missing)
                self.hint(ports=set(missing), trunks=True)
                asked = True
        known = {port for trunk in self.facts.trunks.values() for port, _ in trunk.subports}
        self.asked = {port: when for port, when in self.asked.items() if port in known}
        return asked

    # ---- one pass ----

    def once(self):
        """Takes the hints, and does what they are about. If it fails, they are kept for the next time."""
        with self.condition:
            hints, self.hints = self.hints, Hints()
            self.is_pulling = True
        try:
            if self.clock() >= self.pulled + self.resync:
                hints.everything = True
            if hints.is_about_neutron():
                self.pull(hints)
            self.is_pulling = False
            self.bind_subports()
            taps = self.taps()
            want = wanted.make(self.facts, self.settings, taps, self.seen)
            outcome = reconcile(self.switch, want, self.settings)
            unconnected = {**want.unconnected, **outcome.unconnected}
            self.report(self.switch.ports(OWNER), unconnected, taps, hints.flapped)
        except Exception:
            self.hint(**vars(hints))
            self.hint(look=True)
            self.is_pulling = False
            raise
        self.note_refused({**want.problems, **outcome.refused, **unconnected})
        if not outcome.is_complete:
            self.hint(look=True)

    def report(self, states, unconnected, taps, flapped):
        ports, now = self.facts.ports, self.clock()
        down, up, self.again = self.reports.decide(ports, states, unconnected, taps, flapped, now)
        # one after the other: of a single report, Neutron processes what is down last
        if down:
            LOG.info("down: %s", ", ".join(sorted(down)))
            self.neutron.devices((), down)
        if up:
            LOG.info("up: %s", ", ".join(sorted(up)))
            self.neutron.devices(up, ())
        if up or down:
            self.hint(ports={name for name in up | down if ports[name].is_active})  # was it believed?
        for parent, trunk in self.facts.trunks.items():
            ports = [parent, *(port for port, _ in trunk.subports)]
            if trunk.status != ACTIVE and all(states.get(port, {}).get("status") == ACTIVE for port in ports):
                self.neutron.trunk_status(trunk.id, ACTIVE)
                self.hint(trunks=True)

    def note_refused(self, refused):
        """Logs what is new, and when it is tried again."""
        for name, why in refused.items():
            if self.refused.get(name) != why:
                LOG.error("%s: %s", name, why)
        for name in self.refused.keys() - refused.keys():
            LOG.info("%s: accepted by the switch now", name)
        self.refused = refused
        self.refusals = self.refusals + 1 if refused else 0
        if refused:
            pause = min(TRY_REFUSED * 2 ** min(self.refusals - 1, 10), self.resync)
            self.again = min(self.again or float("inf"), self.clock() + pause)

    # ---- threads ----

    def run(self, report_interval):
        threading.Thread(target=self.heartbeats, args=(report_interval,), name="heartbeat", daemon=True).start()
        threading.Thread(target=self.follow, name="events", daemon=True).start()
        failures = 0
        while not self.stopping.is_set():
            self.wait()
            began = self.clock()
            try:
                self.once()
                failures = 0
                LOG.debug("%d ports, pass of %.3f s", len(self.facts.ports), self.clock() - began)
            except Exception as problem:
                failures += 1
                if isinstance(problem, (Unreachable, Refused)):
                    LOG.warning("will try again: %s", problem)
                else:
                    LOG.warning("will try again: %s", one_line(problem), exc_info=failures == 3)
                    self.hint(everything=True)
                self.stopping.wait(min(PAUSE * 2 ** min(failures - 1, 10), MAX_PAUSE))

    def stop(self):
        """Ends the threads; that of events when its connection ends."""
        self.stopping.set()
        self.hint(look=True)

    def wait(self):
        """Until there is a hint, or it is time to look."""
        with self.condition:
            while not self.hints:
                now = self.clock()
                moments = [self.pulled + self.resync]
                if self.again is not None:
                    moments.append(self.again)
                if self.broker_again is not None:
                    moments.append(self.broker_again)
                left = min(moments) - now
                if left > 0:
                    self.condition.wait(left)
                    continue
                if self.broker_again is not None and now >= self.broker_again:
                    self.broker_again, self.hints.everything = None, True
                elif now >= self.pulled + self.resync:
                    self.hints.everything = True
                else:
                    self.again, self.hints.look = None, True

    def follow(self, pause=0.5):
        """Events of the switch, over its restarts. An event without a place in between says that some are missing."""
        after = None
        while not self.stopping.is_set():
            try:
                for event in self.switch.follow(after, connected=lambda: self.hint(look=True)):
                    after = event.get("id", after)
                    self.on_event(event)
                    if event["kind"] == "gap":
                        after = event["gap"]["next_id"] - 1
            except (Unreachable, Refused, KeyError) as problem:
                LOG.warning("events: %s", problem)
            self.stopping.wait(pause)

    def on_event(self, event):
        ports = set(event.get("ports", ())) & self.facts.ports.keys()
        if event["kind"] == "port_down":
            self.hint(flapped=ports)
        if ports or event["kind"] == "gap" or (event["kind"] == "config" and not self.switch.is_own(event)):
            self.hint(look=True)

    def heartbeats(self, interval):
        is_first, was_ready = True, True
        while not self.stopping.is_set():
            try:
                is_ready = self.switch.is_ready()
                if is_ready:
                    again = self.neutron.report_state(self.configurations(), is_first)
                    if again and not is_first:
                        self.hint_all()
                    is_first = False
                elif was_ready:
                    LOG.error("the switch does not answer: no heartbeats, so that Neutron binds no more ports to this host")
                was_ready = is_ready
            except Exception as problem:
                LOG.warning("heartbeat: %s", one_line(problem))
                self.hint_all()
            self.stopping.wait(interval if was_ready else min(interval, 1))

    def configurations(self):
        """What `openstack network agent show` prints of this agent."""
        refused = self.refused
        return {
            **self.told,
            "devices": len(self.facts.ports),
            "security_groups": "not enforced",
            "refused": {name: refused[name][:200] for name in sorted(refused)[:TOLD]},
        }
