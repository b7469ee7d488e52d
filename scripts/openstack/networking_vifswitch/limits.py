"""QoS rules as storm limits of a port.

A switch port limits frames that are delivered to many: broadcast, multicast and unknown unicast. It does not limit known
unicast. Neutron's rules mean all traffic, so they are refused unless the operator accepts limits of flooded traffic only.
"""

BANDWIDTH, PACKETS = "bandwidth_limit", "packet_rate_limit"
CLASSES = ("broadcast", "multicast", "unknown_unicast")
MAX_KBPS = 200_000_000  # `bps` of the switch: 1000 to 200 000 000 000
MAX_KPPS = 1_000_000  # `pps` of the switch: 1 to 1 000 000 000
DEFAULTS = {"broadcast": {"pps": 500}, "multicast": {"pps": 10_000}, "unknown_unicast": {"pps": 1000}}
MIN_BURST_BYTES = 9238  # the longest frame


def refusal(rule):
    """Why a rule does not fit, or None."""
    ranges = {BANDWIDTH: (MAX_KBPS, "max_kbps"), PACKETS: (MAX_KPPS, "max_kpps")}
    if rule.type not in ranges:
        return f'rule "{rule.type}": the switch has no such limit; use {BANDWIDTH} or {PACKETS}'
    most, key = ranges[rule.type]
    if rule.direction != "egress":
        return f'rule "{rule.type}", direction "{rule.direction}": only what a port sends is limited; use "egress"'
    if not 1 <= rule.rate <= most:
        return f'rule "{rule.type}", {key} = {rule.rate}: use 1 to {most}'
    return None


def storm(rules, of_network):
    """The `storm` key of a port with these rules, as the switch writes it, or None. `of_network` is `storm` of its network,
    which a rule only tightens."""
    rules = [rule for rule in rules if refusal(rule) is None]
    if not rules:
        return None
    return {name: limit(rules, class_of(of_network, name)) for name in CLASSES}


def class_of(of_network, name):
    """The limit of a class on the network; {} without one."""
    if of_network == "off":
        return {}
    found = (of_network or {}).get(name, DEFAULTS[name])
    return {} if found == "off" else dict(found)


def limit(rules, before):
    """The limit `before`, tightened by the rules."""
    now = {"action": "drop+event", **before}
    for rule in rules:
        rate = rule.rate * 1000
        if rule.type == BANDWIDTH:
            tighten(now, "bps", rate, "burst_bytes", rule.burst * 125 or max(rate // 8, MIN_BURST_BYTES))
        else:
            tighten(now, "pps", rate, "burst", rule.burst * 1000 or rate)
    if "pps" in now:
        now.setdefault("burst", now["pps"])
    if "bps" in now:
        now.setdefault("burst_bytes", max(now["bps"] // 8, MIN_BURST_BYTES))
    return now


def tighten(now, rate_key, rate, burst_key, burst):
    if now.get(rate_key, rate) >= rate:
        now[rate_key], now[burst_key] = rate, burst
