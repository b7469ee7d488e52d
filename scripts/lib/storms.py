"""Evaluates measurements of scripts/storm-lab: records, and tables.

    storms.py loop SWITCH K SEEDS TOLD [EVENTS]     records a run of `stormload loop`, with the switch's events
    storms.py storm SWITCH CLASS PAIR AT TOLD       records a run of `stormload storm`
    storms.py stalls TOLD                           records a run of `stormload stalls`
    storms.py line < RESULTS                        prints the last run in one line
    storms.py all QUICK < RESULTS                   prints the tables and the verdict
    storms.py markdown < RESULTS                    prints the tables for docs/benchmarks.md

Results are lines of JSON. The latency during a storm is the median of the 99th percentiles of all tenths of a second of
all runs, because on a machine whose cores stall now and then, as virtual ones do, stalls dominate that of a whole run.
That one is printed as well, and so is the time for which the cores stalled when idle.
"""

import json
import math
import statistics
import sys
from datetime import datetime

OURS = {"xdp": "vifswitch xdp", "tap": "vifswitch tap"}
NAMES = {"bridge": "Linux bridge", "ovs": "Open vSwitch"} | OURS
CULPRIT, VERDICT = "l", "loop_start"
NAMED, HEALED = 2.0, 1.0  # seconds
RATIO = 2.0  # of p99 latencies


def told(path):
    with open(path) as file:
        return json.load(file)


def loop(switch, k, seeds, path, events=None):
    it = told(path) | {"switch": switch, "k": int(k), "seeds_of": seeds, "named": None}
    if events:
        with open(events) as file:
            for event in map(json.loads, file):
                everybody = {f"l{number}" for number in range(int(k))}
                culprits = set(event.get("ports", []))
                # of siblings, at least two are named, and no other port
                if event["kind"] == VERDICT and event.get("vm") == CULPRIT and len(culprits) > 1 and culprits <= everybody:
                    it["named"] = datetime.fromisoformat(event["time"]).timestamp() - it["closed"]
                    it["sentence"] = event["text"]
                    break
    return it


def storm(switch, kind, pair, at, path):
    return told(path) | {"switch": switch, "class": kind, "pair": pair, "at": at}


def stalls(path):
    return told(path)


def loss(part):
    return 100 * part["lost"] / part["sent"]


def short(seconds, none="never"):
    if seconds is None:
        return none
    return "at once" if seconds == 0 else f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.0f} ms"


def count(number):
    return f"{number:,.0f}".replace(",", " ")


def finite(figure):
    return math.inf if figure is None else figure


def p99(runs):
    return statistics.median(finite(figure) for it in runs for figure in it["p99s_us"])


def us(figure):
    """A percentile that ends among lost frames is none."""
    return "lost" if figure is None or math.isinf(figure) else f"{figure:.1f} us"


def line(it):
    if "stalled" in it:
        return f"   core {it['cpu']:.0f}, with nothing to do, stood still for {100 * it['stalled']:.2f} % of the time, {it['longest_ms']:.1f} ms at most"
    if "k" in it:
        return (
            f"   {NAMES[it['switch']]:14} k = {it['k']}, {it['seeds_of']:7}  {count(it['copies_per_second']):>9} copies/s, "
            f"loss {loss(it['during']):.2f} %, p99 {us(it['during']['p99_us'])}, contained {short(it['contained'])}, "
            f"still {short(it['still'])}, named {short(it['named'])}, healed {short(it['healed'])}"
        )
    where = "beside the switch" if it["at"] == "x0" else "at the switch"
    return (
        f"   {NAMES[it['switch']]:14} {it['class']} {where}, {count(it['storm_per_second'])}/s; {it['pair']}: "
        f"{count(it['rate'])} frames/s, lost {it['lost']}, p50 {us(it['p50_us'])}, p99 {us(it['p99_us'])} (of a tenth of it: {us(p99([it]))})"
    )


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join([row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]))


def loops(results, broken):
    for k, seeds in dict.fromkeys((it["k"], it["seeds_of"]) for it in results):
        runs = [it for it in results if (it["k"], it["seeds_of"]) == (k, seeds)]
        what = "broadcasts of bystanders" if seeds == "foreign" else "one broadcast of its own"
        print(f"\nL bridges {k} siblings: {what}")
        rows = [["", *(NAMES[it["switch"]] for it in runs)]]

        def row(name, cell):
            rows.append([name, *(cell(it) for it in runs)])

        row("copies/s at a bystander, mean", lambda it: count(it["copies_per_second"]))
        row("copies/s, the worst 100 ms", lambda it: count(it["peak_per_second"]))
        row("unicast lost between bystanders", lambda it: f"{loss(it['during']):.2f} %")
        row("their latency p99", lambda it: us(it["during"]["p99_us"]))
        row("the same before the loop", lambda it: us(it["before"]["p99_us"]))
        row("contained after", lambda it: short(it["contained"]))
        row("ordinary traffic only, after", lambda it: short(it["still"]))
        row("culprit named after", lambda it: short(it["named"]))
        row("unicast lost after the loop", lambda it: f"{loss(it['after']):.2f} %")
        row("healed after its end", lambda it: short(it["healed"], "not in 2 s"))
        table(rows)
        for it in runs:
            if it["switch"] in OURS:
                promises(it, f"{NAMES[it['switch']]}, {k} siblings, {seeds}", broken)


def promises(it, where, broken):
    lost = sum(it[part]["lost"] for part in ("during", "after"))
    if lost:
        broken.append(f"{where}: bystanders lost {lost} unicast frames")
    # what a bystander receives in any case, and one copy more; or what the limits pass
    most = 2 * it["seeds"] if it["seeds_of"] == "foreign" else it["allowed"]
    if it["copies"] > most or it["contained"] != 0:
        broken.append(f"{where}: {it['copies']} copies, more than {most}, contained {short(it['contained'])}")
    if it["named"] is None or it["named"] > NAMED:
        broken.append(f"{where}: named {short(it['named'])}")
    if it["healed"] is None or it["healed"] > HEALED:
        broken.append(f"{where}: healed {short(it['healed'])}")


def storm_rows(results):
    rows = []
    for key in dict.fromkeys((it["switch"], it["class"], it["pair"]) for it in results):
        runs = [it for it in results if (it["switch"], it["class"], it["pair"]) == key]
        here, beside = ([it for it in runs if it["at"] == at] for at in ("l0", "x0"))
        latency, base = p99(here), p99(beside)
        whole = (us(statistics.median(finite(it["p99_us"]) for it in these)) for these in (here, beside))
        lost = sum(it["lost"] for it in here)
        where = f"{NAMES[key[0]]}, {key[1]}, {'its network' if key[2] == 'a0:b0' else 'another one'}"
        rate = statistics.median(it["rate"] for it in here)
        storms = [statistics.median(it["storm_per_second"] for it in these) for these in (here, beside)]
        calm = min(it["storm_per_second"] for it in runs) == 0
        ratio = f"{latency / base:.2f}" if math.isfinite(base) else "-"
        cells = [where, count(rate), *map(count, storms), str(lost), us(latency), us(base), ratio, *whole]
        rows.append({"cells": cells, "where": where, "lost": lost, "p99": latency, "base": base, "runs": len(here), "calm": calm})
    return rows


def storms(results, quick, broken):
    print("\nA guest storms as fast as it can; others send at a fixed rate (medians)")
    rows = storm_rows(results)
    head = ["", "frames/s", "storm/s", "beside", "lost", "p99", "beside", "ratio", "of whole runs", "beside"]
    table([head, *(row["cells"] for row in rows)])
    for row in rows:
        if row["calm"]:
            broken.append(f"{row['where']}: a run without a single frame of the storm")
        if row["lost"] and not quick:
            broken.append(f"{row['where']}: {row['lost']} frames lost in {row['runs']} runs")
        if not quick and (math.isinf(row["base"]) or row["p99"] > RATIO * row["base"]):
            broken.append(f"{row['where']}: p99 {us(row['p99'])}, more than {RATIO} times {us(row['base'])}")


def everything(quick):
    results, broken = [json.loads(text) for text in sys.stdin], []
    if here := [it for it in results if "k" in it]:
        loops(here, broken)
    if here := [it for it in results if "class" in it]:
        storms(here, quick, broken)
    print()
    for promise in broken:
        print(f"BROKEN  {promise}")
    if not broken:
        print("all targets are met")
    return not broken


def markdown():
    results = [json.loads(text) for text in sys.stdin]
    if here := [it for it in results if "k" in it]:
        print("| L bridges | on | copies/s at a bystander, the worst 100 ms | unicast lost | p99 before, in the loop | contained "
              "| only ordinary traffic | named | lost after | healed |")
        print("|---|---|---|---|---|---|---|---|---|---|")
    for it in here:
        seeds = "others' broadcasts" if it["seeds_of"] == "foreign" else "one of its own"
        print("|", " | ".join([
            f"{it['k']} siblings, {seeds}", NAMES[it["switch"]],
            f"{count(it['copies_per_second'])}, {count(it['peak_per_second'])}", f"{loss(it['during']):.2f} %",
            f"{us(it['before']['p99_us'])} and {us(it['during']['p99_us'])}", short(it["contained"]), short(it["still"]),
            short(it["named"]), f"{loss(it['after']):.2f} %", short(it["healed"], "not in 2 s"),
        ]), "|")
    if here := [it for it in results if "class" in it]:
        rows = storm_rows(here)
        print("\n| storm | frames/s of others | frames/s of the storm | beside | lost | p99 | beside the switch | ratio "
              "| of whole runs | beside |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for row in rows:
            print("|", " | ".join(row["cells"]), "|")


if __name__ == "__main__":
    what, arguments = sys.argv[1], sys.argv[2:]
    if what == "all":
        sys.exit(0 if everything(arguments[0] != "") else 1)
    if what == "markdown":
        markdown()
    elif what == "line":
        print(line(json.loads(sys.stdin.read().splitlines()[-1])), flush=True)
    else:
        print(json.dumps({"loop": loop, "storm": storm, "stalls": stalls}[what](*arguments)))
