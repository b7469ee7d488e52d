//! Describes loops as text, for events and status.

use std::collections::BTreeSet;
use std::time::Duration;

use super::detection::{Edge, LoopKey};
use super::escalation::Level;
use super::snapshot::Clocks;
use super::status::{LoopKind, LoopStatus};
use super::table::{BridgingNotice, EndReason, EndedLoop, Loop};
use super::topology::{Endpoint, Topology};
use crate::time::rfc3339;

/// `a`, `a and b`, `a, b and c`
pub fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}

fn vm(vm: Option<&String>) -> String {
    vm.map_or_else(|| "an uplink".into(), |vm| format!("VM {vm:?}"))
}

/// Ends in configuration order.
fn sorted<'e>(ends: impl IntoIterator<Item = &'e Endpoint>, topology: &Topology) -> Vec<&'e Endpoint> {
    let mut ends: Vec<&Endpoint> = ends.into_iter().collect();
    ends.sort_by_key(|end| (end.vm.is_none(), topology.order(end)));
    ends
}

fn each(ends: &[&Endpoint], topology: &Topology) -> String {
    let messages: Vec<String> = ends.iter().map(|end| topology.describe(end)).collect();
    let ports = ends.iter().all(|end| end.vm.is_some());
    match (ports, ends.len()) {
        (true, 1) => format!("port {}", messages[0]),
        (true, _) => format!("ports {}", list(&messages)),
        _ => list(&ends.iter().map(|end| end.to_string()).collect::<Vec<_>>()),
    }
}

/// The VM that causes a loop: of several the one attached last, or over hosts the one whose port is to be quarantined;
/// then the others.
fn culprits(of: &Loop, topology: &Topology) -> Vec<String> {
    let mut vms: Vec<&String> = Vec::new();
    if let LoopKey::CrossHost { vm, other_vm, .. } = &of.key {
        let yields = |(a, b): &Edge| if a.host.is_none() { topology.yields(a, b) } else { topology.yields(b, a) };
        let ours = of.edges.keys().any(yields);
        vms.extend(if ours { [vm, other_vm] } else { [other_vm, vm] });
        vms.dedup();
    }
    for end in sorted(of.ends(), topology).into_iter().rev() {
        if let Some(vm) = &end.vm
            && !vms.contains(&vm)
        {
            vms.push(vm);
        }
    }
    for (a, b) in &of.other_edges {
        for vm in [&a.vm, &b.vm].into_iter().flatten() {
            if !vms.contains(&vm) {
                vms.push(vm);
            }
        }
    }
    vms.into_iter().cloned().collect()
}

/// What is connected, by which VM.
pub fn what(of: &Loop, topology: &Topology) -> String {
    let ends = sorted(of.ends(), topology);
    match &of.key {
        LoopKey::IntraVm { vm, network } => {
            format!("VM {vm:?} loops its {} on network {network:?}", each(&ends, topology))
        }
        LoopKey::External { network, vms } => {
            let (a, b) = (vm(vms.0.as_ref()), vm(vms.1.as_ref()));
            format!(
                "{a} and {b} are connected outside of the switch on network {network:?}, by {}",
                each(&ends, topology)
            )
        }
        LoopKey::CrossHost { network, vm, host, other_vm } => {
            let (here, there): (Vec<&Endpoint>, Vec<&Endpoint>) =
                ends.iter().copied().partition(|end| end.host.is_none());
            format!(
                "{} of VM {vm:?} and {} of VM {other_vm:?} on host {host:?} are connected outside of the switches on network \
                 {network:?}",
                each(&here, topology),
                each(&there, topology)
            )
        }
        LoopKey::InterNetwork { ends: pair } => {
            let others: BTreeSet<String> =
                of.other_edges.iter().map(|(a, b)| vm(a.vm.as_ref().or(b.vm.as_ref()))).collect();
            let others: Vec<String> = others.into_iter().collect();
            let bridged = bridging(pair, topology);
            format!(
                "{bridged}, which {} bridges as well",
                if others.is_empty() { "another path".into() } else { list(&others) }
            )
        }
    }
}

/// Which networks are bridged, by which VM.
pub fn bridging(pair: &Edge, topology: &Topology) -> String {
    let (a, b) = pair;
    let vms: BTreeSet<String> = [a, b].into_iter().map(|end| vm(end.vm.as_ref())).collect();
    let vms: Vec<String> = vms.into_iter().collect();
    let verb = if vms.len() == 1 { "bridges" } else { "bridge" };
    let ends = sorted([a, b], topology);
    format!("{} {verb} networks {:?} and {:?} by {}", list(&vms), a.network, b.network, each(&ends, topology))
}

/// Measures.
pub fn measures(of: &Loop, topology: &Topology) -> String {
    let quarantined = sorted(of.quarantined(topology), topology);
    match (of.escalation.level, &of.key) {
        (Level::SplitHorizon, _) => "frames that one of these ports floods are not sent to the others".into(),
        (Level::AllButOne, LoopKey::CrossHost { .. }) => cross_host_measures(of, &quarantined, topology),
        _ if quarantined.is_empty() => "no port can be quarantined".into(),
        (Level::AllButOne | Level::All, _) => {
            let verb = if quarantined.len() == 1 { "is" } else { "are" };
            format!("{} {verb} quarantined", each(&quarantined, topology))
        }
    }
}

/// What this host quarantines, and what the other one does.
fn cross_host_measures(of: &Loop, quarantined: &[&Endpoint], topology: &Topology) -> String {
    let verb = |ends: &[&Endpoint]| if ends.len() == 1 { "is" } else { "are" };
    let here =
        (!quarantined.is_empty()).then(|| format!("{} {} quarantined", each(quarantined, topology), verb(quarantined)));
    let others: Vec<&Edge> =
        of.edges.keys().filter(|(a, b)| !quarantined.contains(&a) && !quarantined.contains(&b)).collect();
    let is_done = others.iter().all(|edge| of.blocked.contains(edge));
    let others: BTreeSet<&Endpoint> = others.iter().map(|(a, b)| if a.host.is_some() { a } else { b }).collect();
    let others = sorted(others, topology);
    let there = others.first().and_then(|end| end.host.as_ref()).map(|host| {
        let done = if is_done { "" } else { "to be " };
        format!("{} {} {done}quarantined by host {host:?}", each(&others, topology), verb(&others))
    });
    here.into_iter().chain(there).collect::<Vec<_>>().join(", and ")
}

/// Full description: VM, ports, start, counts, measures, end.
pub fn summary(of: &Loop, over: Option<&EndedLoop>, topology: &Topology, clocks: Clocks) -> String {
    let since = rfc3339(clocks.wall(of.escalation.since));
    let (what, dropped) = (what(of, topology), of.dropped);
    let dropped = format!("{dropped} {} dropped by storm limits", if dropped == 1 { "frame" } else { "frames" });
    let level = of.escalation.level.number();
    match over {
        None => {
            let until = rfc3339(clocks.wall(of.escalation.until));
            let mitigation = measures(of, topology);
            format!(
                "{what}, since {since}; {dropped}; level {level}: {mitigation}, until {until}, longer if the loop persists"
            )
        }
        Some(over) => {
            let (ended, seen) = (rfc3339(clocks.wall(over.at)), rfc3339(clocks.wall(of.escalation.last_seen)));
            let why = match over.why {
                EndReason::Gone => format!("last seen {seen}, ended {ended}"),
                EndReason::Released => format!("released {ended}"),
                EndReason::Detached => format!("ports detached {ended}"),
            };
            format!("{what}, from {since}; {dropped}; level {level} was reached; {why}")
        }
    }
}

/// A duration as text: `10 minutes`.
pub fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds % 3600 == 0 && seconds > 3600 => format!("{} hours", seconds / 3600),
        3600 => "1 hour".into(),
        seconds if seconds % 60 == 0 && seconds > 60 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} seconds"),
    }
}

/// Status of a loop.
pub fn view(of: &Loop, over: Option<&EndedLoop>, topology: &Topology, clocks: Clocks) -> LoopStatus {
    let time = |at| rfc3339(clocks.wall(at));
    let ports = |ends: Vec<&Endpoint>| ends.into_iter().map(|end| end.port.clone()).collect();
    let vms = culprits(of, topology);
    let networks: Vec<String> = of.networks().into_iter().map(str::to_owned).collect();
    LoopStatus {
        kind: match of.key {
            LoopKey::IntraVm { .. } => LoopKind::IntraVm,
            LoopKey::External { .. } => LoopKind::External,
            LoopKey::CrossHost { .. } => LoopKind::CrossHost,
            LoopKey::InterNetwork { .. } => LoopKind::InterNetwork,
        },
        device_id: vms.first().cloned().unwrap_or_default(),
        device_ids: vms,
        network_id: networks.first().cloned().unwrap_or_default(),
        network_ids: networks,
        ports: ports(sorted(of.ends(), topology)),
        hosts: of.ends().into_iter().filter_map(|end| end.host.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
        active: over.is_none(),
        level: of.escalation.level.number(),
        measures: if over.is_none() { measures(of, topology) } else { "ended".into() },
        quarantined: if over.is_none() { ports(sorted(of.quarantined(topology), topology)) } else { Vec::new() },
        since: time(of.escalation.since),
        seen: time(of.escalation.last_seen),
        until: over.is_none().then(|| time(of.escalation.until)),
        ended: over.map(|over| time(over.at)),
        repeats: of.escalation.repeats,
        dropped_frames: of.dropped,
        text: summary(of, over, topology, clocks),
    }
}

/// Status of bridged networks.
pub fn notice_status(notice: &BridgingNotice, topology: &Topology, clocks: Clocks) -> LoopStatus {
    let (a, b) = &notice.edge;
    let ends = sorted([a, b], topology);
    let vms: BTreeSet<&String> = ends.iter().filter_map(|end| end.vm.as_ref()).collect();
    let vms: Vec<String> = vms.into_iter().cloned().collect();
    let networks: BTreeSet<&String> = ends.iter().map(|end| &end.network).collect();
    let networks: Vec<String> = networks.into_iter().cloned().collect();
    let (since, seen) = (rfc3339(clocks.wall(notice.since)), rfc3339(clocks.wall(notice.seen)));
    let bridgings = bridging(&notice.edge, topology);
    LoopStatus {
        kind: LoopKind::Notice,
        device_id: vms.first().cloned().unwrap_or_default(),
        device_ids: vms,
        network_id: networks.first().cloned().unwrap_or_default(),
        network_ids: networks,
        ports: ends.iter().map(|end| end.port.clone()).collect(),
        hosts: Vec::new(),
        active: notice.is_there,
        level: 0,
        measures: "none: no loop".into(),
        quarantined: Vec::new(),
        since: since.clone(),
        ended: (!notice.is_there).then(|| seen.clone()),
        seen: seen.clone(),
        until: None,
        repeats: 0,
        dropped_frames: 0,
        text: match notice.is_there {
            true => format!("{bridgings}, since {since}; no loop unless another VM bridges them too"),
            false => format!("{bridgings}, from {since} to {seen}; no loop"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::loops::table::LoopTable;
    use crate::time::MonoTime;
    use std::collections::HashMap;
    use std::time::UNIX_EPOCH;

    #[test]
    fn a_loop_is_described_in_one_sentence() {
        let end = |vm: &str, network: &str, port: &str| Endpoint {
            vm: Some(vm.into()),
            network: network.into(),
            port: port.into(),
            host: None,
        };
        let ends = [
            end("fw-3", "net1", "b"),
            end("fw-3", "net1", "a"),
            end("fw-3", "net2", "c"),
            end("x", "net1", "d"),
            end("x", "net2", "e"),
        ];
        let networks = ["net1", "net2"].map(|network| (network.to_owned(), Duration::from_secs(1)));
        let topology = Topology::new(networks, ends.iter().cloned().zip([0, 2, 3, 0, 1]));
        let mut table = LoopTable::default();
        let now = MonoTime::from_secs(100);
        for (from, to) in [(0, 1), (0, 2), (3, 4)] {
            table.record_probe(ends[from].clone(), ends[to].clone(), now);
        }
        table.update(&topology, &HashMap::new(), now);
        let clocks = Clocks { now: now + Duration::from_secs(1), wall: UNIX_EPOCH + Duration::from_secs(86_401) };
        let messages: Vec<String> = table.loops().map(|of| summary(of, None, &topology, clocks)).collect();
        assert_eq!(
            messages,
            [
                "VM \"fw-3\" loops its ports \"b\" (#0) and \"a\" (#2) on network \"net1\", since 1970-01-02T00:00:00.000Z; \
                 0 frames dropped by storm limits; level 1: frames that one of these ports floods are not sent to the others, \
                 until 1970-01-02T00:05:00.000Z, longer if the loop persists",
                "VM \"x\" bridges networks \"net1\" and \"net2\" by ports \"d\" (#0) and \"e\" (#1), which VM \"fw-3\" bridges as \
                 well, since 1970-01-02T00:00:00.000Z; 0 frames dropped by storm limits; level 2: port \"e\" (#1) is \
                 quarantined, until 1970-01-02T00:05:00.000Z, longer if the loop persists",
            ]
        );
        let notices: Vec<String> = table.notices(now).map(|of| notice_status(of, &topology, clocks).text).collect();
        assert_eq!(
            notices[0],
            "VM \"fw-3\" bridges networks \"net1\" and \"net2\" by ports \"b\" (#0) and \"c\" (#3), since \
             1970-01-02T00:00:00.000Z; no loop unless another VM bridges them too"
        );
        table.release("a", now);
        let over = table.ended().next().unwrap();
        let messages = summary(&over.loop_state, Some(over), &topology, clocks);
        assert!(
            messages
                .ends_with("0 frames dropped by storm limits; level 1 was reached; released 1970-01-02T00:00:00.000Z"),
            "{messages}"
        );
    }
}
