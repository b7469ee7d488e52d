"""Which ports are up or down for Neutron, decided by `status_code` of the switch, never by prose."""

from networking_vifswitch.facts import ACTIVE

PASSING = {"opening", "reopening"}  # codes of a state that ends by itself
PASSES = 10  # seconds after which it counts as down
PLUGGED = {"ok", "warning", "no_carrier"}  # the netdev is there; a VM that migrates has no carrier yet
REPEAT = (1, 30)  # seconds between reports that Neutron does not act on: first, at most


class Reports:
    """Remembers what was reported when, so that nothing is reported all the time."""

    def __init__(self):
        self.flapped = set()  # of those whose state passes, ports that went down
        self.passing = {}  # port → since when its state passes
        self.sent = {}  # port → (what, when, seconds until it is repeated)
        self.plugged = {}  # port that migrates to this host → index of the netdev that was reported

    def decide(self, ports, states, unconnected, taps, flapped, now):
        """Ports to be reported down and then up, and when to look again (None: after the next event).

        `flapped`: those that went down since the last report, also if they are up again.
        """
        flapped, self.flapped = flapped | self.flapped, set()
        down, up, again = set(), set(), []
        for port in ports.values():
            state = states.get(port.id, {})
            code = state.get("status_code", "unknown")
            if not port.is_active:
                self.migrating(port, code, taps, up, again, now)
                continue
            self.plugged.pop(port.id, None)
            if code in PASSING:
                since = self.passing.setdefault(port.id, now)
                if now < since + PASSES:
                    again.append(since + PASSES)
                    if port.id in flapped:
                        self.flapped.add(port.id)
                    continue
            else:
                self.passing.pop(port.id, None)
            is_up = state.get("status") == ACTIVE and port.network_id not in unconnected
            is_known = port.status == ACTIVE
            if is_known and (not is_up or port.id in flapped):
                self.send(port.id, "down", down, again, now)
            if is_up and (not is_known or port.id in down):
                self.send(port.id, "up", up, again, now, port.id in down)
            if is_up == is_known:
                self.sent.pop(port.id, None)
        for known in (self.passing, self.sent, self.plugged):
            for gone in known.keys() - ports.keys():
                del known[gone]
        return down, up, min(again, default=None)

    def send(self, port, what, into, again, now, at_once=False):
        """Reports it, unless the same was reported a moment ago: then later."""
        before, when, pause = self.sent.get(port, (None, 0, 0))
        if before == what and now < when + pause and not at_once:
            again.append(when + pause)
            return
        pause = min(pause * 2, REPEAT[1]) if before == what else REPEAT[0]
        self.sent[port] = what, now, pause
        into.add(port)
        again.append(now + pause)

    def migrating(self, port, code, taps, up, again, now):
        """Nova starts a migration once the destination has reported the port, before QEMU has its tap: without carrier."""
        index = taps.get(port.tap)
        if index is None:
            self.plugged.pop(port.id, None)
        elif self.plugged.get(port.id) != index:
            if code in PLUGGED:
                self.plugged[port.id] = index
                up.add(port.id)
            else:
                again.append(now + 0.2)
