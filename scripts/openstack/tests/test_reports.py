"""Which ports are reported, when, and how often."""

import unittest

from networking_vifswitch.facts import ACTIVE, DOWN, Port
from networking_vifswitch.reports import Reports

UP = {"status": ACTIVE, "status_code": "ok"}


def down(code):
    return {"status": DOWN, "status_code": code}


class Decisions(unittest.TestCase):
    def setUp(self):
        self.reports = Reports()

    def decide(self, known, state, flapped=(), now=0.0, unconnected=(), **keys):
        ports = {"p": Port("p", "net", "fa:16:3e:00:00:01", status=known, **keys)}
        states = {"p": state} if state else {}
        found = self.reports.decide(ports, states, dict.fromkeys(unconnected, ""), {"tapp": 4}, set(flapped), now)
        return "p" in found[0], "p" in found[1], found[2]

    def test_what_neutron_knows_is_not_reported(self):
        self.assertEqual(self.decide(ACTIVE, UP), (False, False, None))
        self.assertEqual(self.decide(DOWN, down("no_device")), (False, False, None))
        self.assertEqual(self.decide("BUILD", down("no_carrier")), (False, False, None))

    def test_what_neutron_does_not_know_is_reported(self):
        quarantined = {"status": "QUARANTINED", "status_code": "quarantined"}
        for known, state, wanted in [
            (DOWN, UP, (False, True)),
            (ACTIVE, down("no_carrier"), (True, False)),
            (ACTIVE, quarantined, (True, False)),
            (ACTIVE, None, (True, False)),
        ]:
            self.setUp()
            self.assertEqual(self.decide(known, state)[:2], wanted, state)

    def test_a_port_that_was_down_for_a_moment_is_reported_down_and_up(self):
        self.assertEqual(self.decide(ACTIVE, UP, flapped="p")[:2], (True, True))
        self.assertEqual(self.decide(ACTIVE, UP)[:2], (False, False))

    def test_a_port_that_is_being_opened_is_waited_for(self):
        for code in "opening", "reopening":
            self.setUp()
            self.assertEqual(self.decide(ACTIVE, down(code), now=5), (False, False, 15))
            self.assertEqual(self.decide(ACTIVE, down(code), now=14), (False, False, 15))
            self.assertEqual(self.decide(ACTIVE, down(code), now=15)[:2], (True, False))

    def test_a_flap_while_it_is_being_opened_is_not_forgotten(self):
        self.decide(ACTIVE, down("reopening"), flapped="p", now=5)
        self.assertEqual(self.decide(ACTIVE, UP, now=6)[:2], (True, True))

    def test_what_neutron_does_not_act_on_is_repeated_at_growing_intervals(self):
        """Another component may block the port: its DHCP agent."""
        times, now = [], 0.0
        while now < 200:
            _, up, again = self.decide(DOWN, UP, now=now)
            if up:
                times.append(now)
            self.assertGreater(again, now)
            now = again
        self.assertEqual(times[:6], [0, 1, 3, 7, 15, 31])
        self.assertEqual(times[-1] - times[-2], 30)

    def test_a_new_state_is_reported_at_once(self):
        self.decide(DOWN, UP, now=0)
        self.assertEqual(self.decide(ACTIVE, down("no_device"), now=0.1)[:2], (True, False))
        self.assertEqual(self.decide(DOWN, UP, now=0.2)[:2], (False, True))

    def test_a_port_of_a_network_without_uplink_is_down(self):
        self.assertEqual(self.decide(ACTIVE, UP, unconnected=["net"])[:2], (True, False))

    def test_a_plugged_port_that_migrates_here_is_reported_once_per_netdev(self):
        self.assertEqual(self.decide(ACTIVE, down("no_device"), is_active=False, now=1), (False, False, 1.2))
        self.assertEqual(self.decide(ACTIVE, down("no_carrier"), is_active=False)[:2], (False, True))
        self.assertEqual(self.decide(ACTIVE, down("no_carrier"), is_active=False), (False, False, None))
        ports = {"p": Port("p", "net", "fa:16:3e:00:00:01", is_active=False)}
        again = self.reports.decide(ports, {"p": UP}, {}, {"tapp": 5}, set(), 0)
        self.assertEqual(again[1], {"p"}, "another netdev: another try")

    def test_nothing_is_kept_about_ports_that_are_gone(self):
        self.decide(DOWN, UP)
        self.decide(ACTIVE, down("opening"))
        self.decide(ACTIVE, UP, is_active=False)
        self.reports.decide({}, {}, {}, {}, set(), 0)
        self.assertEqual((self.reports.sent, self.reports.passing, self.reports.plugged), ({}, {}, {}))


if __name__ == "__main__":
    unittest.main()
