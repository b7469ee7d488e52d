"""The table of scripts/bench: its rows, and what was measured for them.

    bench_table.py table RESULTS                  prints the table; exit code 1 if a row misses its target or has no figure
    bench_table.py markdown RESULTS               prints it for README.md
    bench_table.py rows                           prints the name of each row
    bench_table.py criterion DIRECTORY            prints the medians of the micro benchmarks as figures

RESULTS has lines "KEY FIGURE FOREIGN DISTANCE", and a line "= part NAME" or "= peer NAME" for each part that was begun and
each peer that is installed. Runs during which other processes took more than FOREIGN_MAX % of a core, or whose cores were
more than twice as distant as usual, do not count if there are others.
"""

import json
import math
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

FOREIGN_MAX = 20  # % of a core
SIZES = 64, 512, 1518
SEGMENTS = 500, 200
ALWAYS = ""  # a peer that is part of every host


@dataclass
class Peer:
    name: str
    key: str
    target: float | None = None
    needs: str = ALWAYS


@dataclass
class Row:
    part: str
    what: str
    key: str
    higher: bool  # whether more is better
    peers: list = field(default_factory=list)


def rows():
    bridge = "Linux bridge"

    def bridges(key, target):
        return [
            Peer(f"{bridge}, netfilter hooks on", f"{key}.bridge-on.gbit", target, "netfilter"),
            Peer(f"{bridge}, netfilter hooks off", f"{key}.bridge-off.gbit", target),
            Peer(f"{bridge}, hooks off, RPS to core 1", f"{key}.bridge-rps.gbit"),
        ]

    yield Row("tcp", "TCP tap to tap, Gbit/s", "tcp.ours.gbit", True, bridges("tcp", 0.95))
    yield Row("tcp", "TCP veth to veth, `packet`, Gbit/s", "tcp.packet.gbit", True, bridges("tcp", 0.9))
    for mss in SEGMENTS:
        yield Row("mss", f"TCP, MSS {mss}, `packet`, Gbit/s", f"mss.packet-{mss}.gbit", True,
                  [Peer(f"{bridge}, netfilter hooks off", f"mss.bridge-{mss}.gbit", 0.8)])
    yield Row("vxlan", "TCP in VXLAN, segmented by the switch, `packet`, Gbit/s", "vxlan.whole.gbit", True,
              [Peer("the same, segmented by the sender", "vxlan.segmented.gbit", 1)])
    yield Row("frames", "64 B tap to tap, Mpps", "frames.ours.mpps", True, [Peer("bare read/write loop", "frames.loop.mpps", 0.95)])
    for mode, pace, loop, target in ("busy", "busy", "busy", 1.5), ("sleep", "adaptive", "sleeping", 1.25):
        for what, goal in ("p50", target), ("p99", None):
            yield Row("latency", f"latency {what} tap to tap, 10 000 frames/s, `{pace}`, µs", f"latency.ours-{mode}.{what}", False,
                      [Peer(f"bare {loop} loop", f"latency.loop-{mode}.{what}", goal)])
    yield Row("idle", "idle with 64 ports, % of a core", "idle.ours.own", False, [Peer("one core", "idle.limit.own", 0.01)])
    for size in SIZES:
        yield Row("veth", f"{size} B veth to veth, `xdp`, Mpps", f"veth.xdp-{size}.mpps", True, [
            Peer(f"{bridge}, netfilter hooks off", f"veth.bridge-{size}.mpps", 1.05),
            Peer(f"{bridge}, hooks off, RPS to core 1", f"veth.rps-{size}.mpps"),
            Peer("testpmd, af_xdp", f"veth.testpmd-xdp-{size}.mpps", 0.95, "testpmd"),
            Peer("Open vSwitch, afxdp", f"veth.ovs-{size}.mpps", 0.95, "ovs"),
        ])
    for size in SIZES:
        yield Row("veth", f"{size} B veth to veth, `packet`, Mpps", f"veth.packet-{size}.mpps", True, [
            Peer(f"{bridge}, netfilter hooks off", f"veth.bridge-{size}.mpps"),
            Peer("testpmd, af_packet", f"veth.testpmd-packet-{size}.mpps", 0.95, "testpmd"),
        ])
    yield Row("nodrop", "no-drop rate (loss ≤ 0.1 %), 64 B, `xdp`, Mpps", "nodrop.xdp.mpps", True, [
        Peer("Open vSwitch, afxdp", "nodrop.ovs.mpps", 0.95, "ovs"),
        Peer("Open vSwitch, DPDK", "nodrop.ovs-dpdk.mpps", None, "ovs-dpdk"),
    ])
    for what, goal in ("p50", None), ("p99", 1):
        yield Row("half", f"latency {what} at half of the own maximum, `xdp`, µs", f"half.xdp.{what}", False, [
            Peer("Open vSwitch, afxdp", f"half.ovs.{what}", goal, "ovs"),
            Peer("Open vSwitch, DPDK", f"half.ovs-dpdk.{what}", goal, "ovs-dpdk"),
        ])
    # 10 000 frames/s is without receive moderation, 500 000 is with it
    for rate, note, latency, cost in ("10k", "10 000 frames/s", {"testpmd": 1}, {}), (
        "500k", "500 000 frames/s", {}, {"testpmd": 1.1, "ovs": 0.8},
    ):
        for what, unit, goals in (
            ("ns", "time of the switch's core per frame, ns", cost), ("p50", "latency p50, µs", latency), ("p99", "latency p99, µs", {}),
        ):
            yield Row("cost", f"{note}, `xdp`: {unit}", f"cost.xdp-{rate}.{what}", False, [
                Peer("testpmd, af_xdp", f"cost.testpmd-{rate}.{what}", goals.get("testpmd"), "testpmd"),
                Peer("Open vSwitch, afxdp", f"cost.ovs-{rate}.{what}", goals.get("ovs"), "ovs"),
            ])
    for kind in "xdp", "packet":
        peers = [(f"{bridge}, netfilter hooks off", "cost.bridge"), (f"{bridge}, hooks off, RPS to core 1", "cost.bridge-rps")]
        for what, figure, higher in ("frames that arrive, Mpps", "mpps", True), ("time of both cores per frame that arrives, ns", "cores_ns", False):
            yield Row("cost", f"500 000 frames/s, `{kind}`, `adaptive`, generator that sleeps: {what}",
                      f"cost.{kind}-adaptive.{figure}", higher, [Peer(name, f"{key}.{figure}") for name, key in peers])
    yield Row("guest", "`xdp` on 2 taps of a guest at full speed: time of the switch's core per frame, ns", "guest.two.ns", False,
              [Peer("testpmd, af_xdp", "guest.testpmd.ns", 1.15, "testpmd")])
    yield Row("guest", "the same on 64 taps, ns", "guest.many.ns", False, [Peer("on 2 taps", "guest.two.ns")])
    yield Row("many", "64 `xdp` ports, 62 idle, 64 B, Mpps", "many.many.mpps", True, [Peer("2 ports", "many.two.mpps", 0.85)])
    yield Row("restart", "traffic gap of a restart, ms", "restart.ours.planned", False, [Peer("one second", "restart.limit.planned", 1)])
    yield Row("restart", "traffic gap of `kill -9` and start, ms", "restart.ours.killed", False,
              [Peer("one second", "restart.limit.planned", 1)])
    for part, note in (
        ("many", "with 262 144 stations"), ("kept", "descriptors kept"), ("kept-many", "descriptors kept, 262 144 stations"),
        ("service", "under systemd"), ("service-many", "under systemd, 262 144 stations"),
    ):
        for what, name in ("planned", "a restart"), ("killed", "`kill -9` and start"):
            yield Row("restart", f"traffic gap of {name}, {note}, ms", f"restart.{part}.{what}", False,
                      [Peer("one second", "restart.limit.planned", 1)])
    yield from api_rows()
    yield from worker_rows()


def api_rows():
    """Rows of changes by API, in ms unless said otherwise."""
    for ports in 1000, 4000:
        host, limit = f"{ports // 1000} 000 ports", lambda name: f"api.limit.{name}"
        yield Row("api", f"`apply` of {host} from empty, ms", f"api-{ports}.apply", False,
                  [Peer("one second", limit("apply"), 1)] if ports == 1000 else [])
        yield Row("api", f"`PUT` of one more port beside {host}, ms", f"api-{ports}.put", False,
                  [Peer("its limit, ms", limit(f"put-{ports}"), 1)])
        yield Row("api", f"`GET` of one port of {host}, ms", f"api-{ports}.get", False, [Peer("its limit, ms", limit("get"), 1)])
        yield Row("api", f"32 clients put and delete ports beside {host}, changes/s", f"api-{ports}.crowd", True,
                  [Peer("its limit", limit("crowd"), 1)] if ports == 1000 else [])
        yield Row("api", f"32 clients change keys of {host}, changes/s", f"api-{ports}.keys", True,
                  [Peer("its limit", limit("crowd"), 1)] if ports == 1000 else [])


def worker_rows():
    """Rows of the micro benchmarks: one worker over memory, in ns per frame."""
    plain = "worker.poll_once/64B/8_ports/1000_stations"
    yield Row("worker", "worker alone, 64 B, 8 ports, 1000 stations, ns per frame", plain, False,
              [Peer("testpmd macswap, net_null with copies", "worker.testpmd.ns", None, "testpmd")])
    for stations, name in (65_536, "65 536"), (1_000_000, "1 000 000"):
        yield Row("worker", f"the same, {name} stations", f"worker.poll_once/64B/8_ports/{stations}_stations", False, [Peer("1000 stations", plain)])
    for burst in 1, 4, 16, 64:
        yield Row("worker", f"worker alone, bursts of {burst}, with `mac` security and storm limits, ns per frame", f"worker.bursts/8_ports/{burst}", False,
                  [Peer("bursts of 64", "worker.bursts/8_ports/64")] if burst < 64 else [])
    for mode in "mac", "mac+ip":
        yield Row("worker", f"worker alone, port security `{mode}`, ns per frame", f"worker.security/8_ports/{mode}", False,
                  [Peer("port security `off`", "worker.security/8_ports/off")])
    yield Row("worker", "flood to 64 ports with storm limits, ns per copy", "worker.flood/Owned,_limited/64B/64_members", False,
              [Peer("without limits", "worker.flood/Owned/64B/64_members")])


class Results:
    def __init__(self, path):
        self.parts, self.peers, self.runs = set(), {ALWAYS}, {}
        distances = []
        for line in Path(path).read_text().splitlines():
            key, *rest = line.split()
            if key == "=":
                {"part": self.parts, "peer": self.peers}[rest[0]].add(rest[1])
            else:
                figure, foreign, distance = map(float, rest)
                self.runs.setdefault(key, []).append((figure, foreign, distance))
                if distance:  # not of a constant
                    distances.append(distance)
        self.usual = statistics.median_low(distances) if distances else 0
        self.add_costs()

    def add_costs(self):
        """What both cores spent on a frame that arrived, in ns, of each run that has both figures."""
        for key in [key for key in self.runs if key.endswith(".mpps")]:
            name, rates = key.rsplit(".", 1)[0], self.runs[key]
            spent = self.runs.get(f"{name}.cores", [])
            if len(spent) == len(rates) and all(rate[0] for rate in rates):
                self.runs[f"{name}.cores_ns"] = [(10 * percent[0] / rate[0], *rate[1:]) for percent, rate in zip(spent, rates)]

    def counts(self, run):
        return run[1] <= FOREIGN_MAX and run[2] <= 2 * self.usual

    def figures(self, key):
        runs = self.runs.get(key, [])
        return sorted(run[0] for run in ([run for run in runs if self.counts(run)] or runs))

    def disturbed(self, key):
        return not any(map(self.counts, self.runs.get(key, [])))

    def median(self, key):
        figures = self.figures(key)
        return statistics.median(figures) if figures else None


def number(figure):
    if figure is None:
        return "-"
    return f"{figure:.0f}" if 1000 <= figure < math.inf else f"{figure:.3g}"


def spread(figures):
    middle = statistics.median(figures) if figures else 0
    if len(figures) < 2 or not middle or math.inf in figures:
        return "-"
    return f"{100 * (figures[-1] - figures[0]) / middle:.0f} %"


def ratio_of(ours, theirs):
    """NaN if there is none: neither of two switches that lose their frames is the better one."""
    if ours is None or theirs is None or ours == theirs and (not ours or math.isinf(ours)):
        return math.nan
    return ours / theirs if theirs else math.inf


def verdict(results, row, peer, ours, theirs, ratio):
    if ours is None or peer and theirs is None or peer and peer.target is not None and math.isnan(ratio):
        return "NOT MEASURED"
    if peer is None or peer.target is None:
        return "-"
    if results.disturbed(row.key) or results.disturbed(peer.key):
        return "disturbed"
    return "meets" if (ratio >= peer.target if row.higher else ratio <= peer.target) else "MISSES"


def line(results, row, peer):
    ours, theirs = results.median(row.key), results.median(peer.key) if peer else None
    ratio = ratio_of(ours, theirs)
    target = "-" if peer is None or peer.target is None else f"{'≥' if row.higher else '≤'} {peer.target:g}"
    cores = [number(results.median(f"{it.key.rsplit('.', 1)[0]}.cores")) for it in (row, peer) if it]
    return [
        row.what, number(ours), spread(results.figures(row.key)),
        peer.name if peer else "-", number(theirs), spread(results.figures(peer.key)) if peer else "-",
        "-" if math.isnan(ratio) else f"{ratio:.2f}", target, verdict(results, row, peer, ours, theirs, ratio), "; ".join(cores),
    ]


HEAD = ["what", "vifswitch", "spread", "beside it", "", "spread", "ratio", "target", "verdict", "CPU, %"]


def lines(results):
    for row in rows():
        if row.part not in results.parts:
            continue
        peers = [peer for peer in row.peers if peer.needs in results.peers]
        for peer in peers or [None]:
            yield line(results, row, peer)


def table(path):
    results = Results(path)
    body = list(lines(results))
    plain = [[cell.replace("`", "") for cell in row] for row in [HEAD, *body]]
    widths = [max(map(len, column)) for column in zip(*plain)]
    for cells in plain:
        words = [f"{cell:<{width}}" if at in (0, 3, 8) else f"{cell:>{width}}" for at, (cell, width) in enumerate(zip(cells, widths))]
        print("  ".join(words).rstrip())
    failed = [row for row in body if row[8] not in ("meets", "-")]
    print(f"\n{len(body)} rows: {sum(row[8] == 'meets' for row in body)} meet their target, "
          + ", ".join(f"{sum(row[8] == what for row in body)} {what}" for what in ("MISSES", "disturbed", "NOT MEASURED"))
          + ". CPU: of both cores, in % of one; ours; the other's.")
    if not body:
        print("nothing was measured")
    return 1 if failed or not body else 0


def markdown(path):
    print("| what | vifswitch (spread) | beside it | (spread) | ratio | target | verdict | CPU of both cores, % |")
    print("|---|---|---|---|---|---|---|---|")
    for what, ours, ours_spread, name, theirs, their_spread, ratio, target, result, cores in lines(Results(path)):
        beside = "-" if name == "-" else f"{name}: {theirs}"
        result = result if result in ("meets", "-") else f"**{result.lower()}**"
        print("|", " | ".join([what, f"{ours} ({ours_spread})", beside, their_spread, ratio, target, result, cores]), "|")


def criterion(directory):
    for about in sorted(Path(directory).glob("**/new/benchmark.json")):
        name = json.loads(about.read_text())["full_id"].replace(" ", "_")
        estimates = json.loads(about.with_name("estimates.json").read_text())
        print(name, f"{estimates['median']['point_estimate']:.3f}")


if __name__ == "__main__":
    what, arguments = sys.argv[1], sys.argv[2:]
    if what == "rows":
        print(*dict.fromkeys(row.what for row in rows()), sep="\n")
    elif what == "criterion":
        criterion(*arguments)
    elif what == "markdown":
        markdown(*arguments)
    else:
        sys.exit(table(*arguments))
