"""QoS rules as storm limits."""

import unittest

from networking_vifswitch.facts import Rule
from networking_vifswitch.limits import BANDWIDTH, PACKETS, refusal, storm


class Limits(unittest.TestCase):
    def test_a_rule_only_tightens_the_limits_of_the_network(self):
        of_network = {
            "broadcast": {"pps": 50, "burst": 9, "action": "drop"},
            "multicast": "off",
            "unknown_unicast": {"bps": 10_000_000},
        }
        event = {"action": "drop+event"}
        self.assertEqual(
            storm([Rule(PACKETS, "egress", 1, 2)], of_network),
            {
                "broadcast": {"pps": 50, "burst": 9, "action": "drop"},
                "multicast": {"pps": 1000, "burst": 2000, **event},
                "unknown_unicast": {"bps": 10_000_000, "burst_bytes": 1_250_000, "pps": 1000, "burst": 2000, **event},
            },
        )
        self.assertEqual(
            storm([Rule(BANDWIDTH, "egress", 20_000, 80)], of_network),
            {
                "broadcast": {"pps": 50, "burst": 9, "bps": 20_000_000, "burst_bytes": 10_000, "action": "drop"},
                "multicast": {"bps": 20_000_000, "burst_bytes": 10_000, **event},
                "unknown_unicast": {"bps": 10_000_000, "burst_bytes": 1_250_000, **event},
            },
        )

    def test_bursts_are_a_second_unless_the_rule_says_more(self):
        made = storm([Rule(BANDWIDTH, "egress", 1_000_000)], None)
        self.assertEqual(
            made["broadcast"],
            {
                "pps": 500,
                "burst": 500,
                "bps": 1_000_000_000,
                "burst_bytes": 125_000_000,
                "action": "drop+event",
            },
        )
        self.assertEqual(
            storm([Rule(PACKETS, "egress", 1)], "off")["broadcast"], {"pps": 1000, "burst": 1000, "action": "drop+event"}
        )
        self.assertEqual(storm([Rule(BANDWIDTH, "egress", 1)], "off")["multicast"]["burst_bytes"], 9238, "the longest frame")

    def test_rules_without_a_limit_are_refused_by_name(self):
        for rule, part in [
            (Rule("minimum_bandwidth"), '"minimum_bandwidth"'),
            (Rule("dscp_marking"), '"dscp_marking"'),
            (Rule(PACKETS, "ingress", 5), 'direction "ingress"'),
            (Rule(BANDWIDTH, "egress", 0), "max_kbps = 0: use 1 to 200000000"),
            (Rule(PACKETS, "egress", 1_000_001), "max_kpps = 1000001"),
        ]:
            self.assertIn(part, refusal(rule))
            self.assertIsNone(storm([rule], None))
        self.assertIsNone(refusal(Rule(PACKETS, "egress", 1_000_000)))


if __name__ == "__main__":
    unittest.main()
