"""The running agent: threads, events, heartbeats, restarts of the switch. Nothing waits for a fixed time."""

import logging
import threading
import time
import unittest

from networking_vifswitch import agent as agents
from networking_vifswitch.agent import Agent
from networking_vifswitch.desired import Settings
from networking_vifswitch.facts import ACTIVE, DOWN
from networking_vifswitch.switch import Switch

from tests.fakes import FakeNeutron, FakeSwitch

PATIENCE = 20


class Running(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        logging.disable(logging.CRITICAL)
        cls.pauses = agents.PAUSE, agents.MAX_PAUSE
        agents.PAUSE = agents.MAX_PAUSE = 0.02

    @classmethod
    def tearDownClass(cls):
        logging.disable(logging.NOTSET)
        agents.PAUSE, agents.MAX_PAUSE = cls.pauses

    def setUp(self):
        self.switch, self.neutron = FakeSwitch(), FakeNeutron()
        self.agent = Agent("host1", self.neutron, Switch(self.switch.path), Settings(), resync=3600, taps=dict)
        threading.Thread(target=self.agent.run, args=(0.05,), name="agent", daemon=True).start()
        self.addCleanup(self.end)
        self.until(lambda: any(path == "/v1/events" for path, _ in self.switch.queries))

    def end(self):
        """Ends the agent before its switch, with all its threads: what one of them logs later is found by another test."""
        self.agent.stop()
        self.join("agent")
        self.switch.close()  # with the connection of the events
        self.join("heartbeat")
        self.join("events")

    def join(self, name):
        for thread in threading.enumerate():
            if thread.name == name:
                thread.join(PATIENCE)
                self.assertFalse(thread.is_alive(), f"the agent's thread {name} does not end")

    def until(self, holds):
        end = time.monotonic() + PATIENCE
        while not holds():
            self.assertLess(time.monotonic(), end, "not in time")
            time.sleep(0.01)

    def add(self, name, **keys):
        self.neutron.add(name, **keys)
        self.agent.hint_port(name, {"host1"})

    def watch_agent(self):
        """Ids of the events that the agent has seen, and whether a pass has failed since."""
        seen, failed, on_event, once = [], threading.Event(), self.agent.on_event, self.agent.once

        def note_event(event):
            seen.append(event["id"])
            on_event(event)

        def note_failure():
            try:
                once()
            except Exception:
                failed.set()
                raise

        self.agent.on_event, self.agent.once = note_event, note_failure
        return seen, failed

    def test_a_hint_attaches_the_port_and_an_event_reports_it(self):
        self.switch.status["p1"] = DOWN, "no_carrier"
        self.add("p1")
        self.until(lambda: self.switch.port("p1")[0])
        self.assertEqual(self.neutron.reported("up"), [])
        self.switch.set_status("p1", ACTIVE, "ok")
        self.until(lambda: self.neutron.reported("up") == [{"p1"}])
        self.switch.set_status("p1", DOWN, "no_device")
        self.until(lambda: self.neutron.reported("down") == [{"p1"}])

    def test_a_short_flap_is_reported_down_before_it_is_up(self):
        self.add("p1")
        self.until(lambda: self.neutron.reported("up"))
        self.neutron.calls.clear()
        self.switch.event("port_down", ["p1"])
        self.switch.event("port_up", ["p1"])
        self.until(lambda: self.neutron.reported("up"))
        reports = [call for call in self.neutron.calls if call[0] == "devices"]
        self.assertEqual(reports[:2], [("devices", frozenset(), {"p1"}), ("devices", {"p1"}, frozenset())])

    def test_what_an_operator_removes_comes_back(self):
        self.add("p1")
        self.until(lambda: self.switch.port("p1")[0])
        Switch(self.switch.path).request("DELETE", "/v1/ports/p1")
        self.until(lambda: self.switch.port("p1")[0])

    def test_a_restarted_switch_without_its_state_is_filled_again_and_events_continue(self):
        seen, failed = self.watch_agent()
        self.add("p1")
        self.until(lambda: self.neutron.reported("up"))
        last = 99 + len(self.switch.events)
        self.until(lambda: last in seen)
        self.switch.kill()
        # A pass that has read the configuration before must not read the ports afterwards: they are gone then.
        self.agent.hint(look=True)
        self.until(failed.is_set)
        self.switch.vms, self.switch.networks = [], {}
        self.switch.restart()
        self.until(lambda: self.switch.port("p1")[0])
        self.until(lambda: ("/v1/events", {"follow": "true", "after": str(last)}) in self.switch.queries)
        self.assertEqual(self.neutron.reported("down"), [], "no flap: the port is up before it is looked at")

    def test_a_gap_in_the_events_makes_the_agent_look(self):
        self.add("p1")
        self.until(lambda: self.neutron.reported("up"))
        self.switch.status["p1"] = DOWN, "no_device"
        self.switch.event("gap", gap={"first_missing": 5, "next_id": 103})
        self.until(lambda: self.neutron.reported("down"))

    def test_heartbeats_stop_while_the_switch_is_dead(self):
        answers, ask = [], self.agent.switch.is_ready

        def counted():
            answers.append(ask())
            return answers[-1]

        self.agent.switch.is_ready = counted
        self.until(lambda: len(self.neutron.heartbeats) > 2)
        self.switch.kill()
        self.until(lambda: answers[-1:] == [False])
        before, asked = len(self.neutron.heartbeats), len(answers)
        self.until(lambda: len(answers) > asked + 3)
        self.assertEqual(len(self.neutron.heartbeats), before)
        self.switch.restart()
        self.until(lambda: len(self.neutron.heartbeats) > before)

    def test_a_failing_server_is_asked_again_and_everything_is_pulled(self):
        self.until(lambda: self.agent.pulled > 0 and not self.agent.hints)
        before = self.neutron.calls.count(("port_ids",))
        self.neutron.report_state = lambda *_: False  # a heartbeat that fails has the same effect
        self.neutron.failing = TimeoutError()
        self.add("p1")
        self.until(lambda: ("ports", frozenset({"p1"})) in self.neutron.calls)
        self.assertIsNone(self.switch.port("p1")[0])
        self.neutron.failing = None
        self.until(lambda: self.switch.port("p1")[0])
        self.until(lambda: self.neutron.calls.count(("port_ids",)) > before)

    def test_a_lost_connection_to_the_broker_makes_the_agent_pull_everything_twice(self):
        """At once, and when all consumers are back."""
        self.until(lambda: self.agent.pulled > 0 and not self.agent.hints)
        before = self.neutron.calls.count(("port_ids",))
        self.agent.hint_broker()
        self.until(lambda: self.neutron.calls.count(("port_ids",)) >= before + 2)

    def test_heartbeats_say_that_security_groups_are_not_enforced(self):
        self.until(lambda: len(self.neutron.heartbeats) > 1)
        self.assertEqual(self.neutron.heartbeats[0]["security_groups"], "not enforced")
        sent = [call for call in self.neutron.calls if call[0] == "report_state"]
        self.assertEqual(sent[:2], [("report_state", True), ("report_state", False)], "one of them is the first")

    def test_an_error_of_neutron_is_logged_in_a_line_without_its_traceback(self):
        class RemoteError(Exception):
            """As that of oslo.messaging."""

            exc_type, value = "PendingRollbackError", "rolled back\n1 row(s)"

            def __str__(self):
                return "Remote error: PendingRollbackError rolled back\n['Traceback (most recent call last): ...']"

        logging.disable(logging.NOTSET)
        self.addCleanup(logging.disable, logging.CRITICAL)
        with self.assertLogs(agents.LOG, logging.WARNING) as logged:
            self.neutron.failing = RemoteError()
            self.add("p1")
            self.until(lambda: any("will try again" in line for line in logged.output))
            self.neutron.failing = None
        errors = [line for line in logged.output if "will try again" in line]  # heartbeats fail as well
        self.assertTrue(all(line.splitlines()[0].endswith(": PendingRollbackError: rolled back") for line in errors), errors)


class Waiting(unittest.TestCase):
    def test_everything_is_pulled_after_the_resync_interval(self):
        neutron, fake = FakeNeutron(), FakeSwitch()
        self.addCleanup(fake.close)
        now = [0.0]
        agent = Agent("host1", neutron, Switch(fake.path), Settings(), resync=60, taps=dict, clock=lambda: now[0])
        agent.once()
        now[0] = 61.0
        agent.wait()
        self.assertTrue(agent.hints.everything)


if __name__ == "__main__":
    unittest.main()
