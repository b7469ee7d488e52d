//! MAC updates between workers: a worker applies an update only as far as its own configuration allows, and updates
//! that cross leave all workers with the same view. Needs nothing of the host.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::switch::{
    DropReason, FdbEntry, ForwardingConfig, HashKey, NetworkId, PortConfig, PortId, Security, Station,
};
use vifswitch::time::MonoTime;
use vifswitch::wire::{Mac, Offload};
use vifswitch::worker::Command;

use crate::fdb::reached;
use crate::generators::wild;
use support::lab::{HASH_KEY, Lab, PortSpec, Setup, frame, mac};

/// The current configuration, except for one port.
fn changed(lab: &Lab, index: usize, change: impl Fn(&mut PortConfig)) -> Arc<ForwardingConfig> {
    let id = lab.ports[index];
    let mut ports: Vec<_> = lab.config.ports().cloned().collect();
    ports.iter_mut().filter(|port| port.id == id).for_each(change);
    let networks = vec![lab.config.network(NetworkId::new(0)).unwrap().clone()];
    Arc::new(ForwardingConfig::compile(HashKey::new(HASH_KEY), networks, ports, Vec::new()))
}

/// Applies a configuration at one worker while the others do not run.
fn set_rules_at(lab: &mut Lab, worker: usize, config: &Arc<ForwardingConfig>) {
    let port_counters = lab.port_counters[worker].iter().cloned().map(Some).collect();
    lab.command(worker, |reply| Command::Config(config.clone(), port_counters, reply));
}

/// Two workers with two ports each, and a small table whose buckets are often full.
fn crowded() -> Lab {
    let port_specs: Vec<_> = (0..4).map(|owner| PortSpec::new(0, owner)).collect();
    let mut lab = Lab::new(Setup { workers: 2, stations: 1024, ..Setup::default() }, &port_specs);
    for number in 0..1000 {
        assert!(lab.send(2, &frame(mac(0), Mac::from_bits(0x0600_0000_0000 + number), 0x88b5, &[0; 46])));
        lab.settle();
    }
    lab.all_received();
    lab
}

const PINNED: usize = 500;

fn pinned() -> impl Iterator<Item = Mac> {
    (0..PINNED).map(wild)
}

/// Asserts that frames to these addresses are forwarded to port 0 only.
fn assert_forwarded_to_port_0(lab: &mut Lab) {
    for address in pinned() {
        assert_eq!(reached(lab, 2, address, mac(2)), [0], "{address}");
    }
}

/// Pins these addresses to port 0; only worker 0 has applied that. Some find their bucket full, so that the FDB has
/// no copy of the pin; then the entries in it age.
fn pin_in_a_full_table(lab: &mut Lab) -> Arc<ForwardingConfig> {
    let config = changed(lab, 0, |port| port.security = Security::Mac(pinned().collect()));
    set_rules_at(lab, 0, &config);
    lab.advance(Duration::from_secs(301));
    for _ in 0..1000 {
        lab.workers[0].poll_once(lab.now);
    }
    config
}

#[test]
fn an_update_from_an_old_configuration_does_not_move_a_pin() {
    let mut lab = crowded();
    let config = pin_in_a_full_table(&mut lab);
    // Worker 1 learns the addresses behind its port 3 by an old configuration.
    for address in pinned() {
        assert!(lab.send(3, &frame(mac(1), address, 0x88b5, &[0; 46])));
        lab.workers[1].poll_once(lab.now);
        lab.workers[0].poll_once(lab.now);
    }
    lab.set_config(config);
    lab.all_received();
    assert_forwarded_to_port_0(&mut lab);
    lab.end();
}

#[test]
fn a_restored_entry_does_not_move_a_pin() {
    let mut lab = crowded();
    let config = pin_in_a_full_table(&mut lab);
    let (port, last_seen) = (lab.ports[3], lab.now.secs());
    let station = |address| FdbEntry { station: Station::new(NetworkId::new(0), address), port, last_seen };
    lab.command(0, |reply| Command::Learn(pinned().map(station).collect(), reply));
    lab.set_config(config);
    assert_forwarded_to_port_0(&mut lab);
    lab.end();
}

#[test]
fn an_update_names_no_source_that_port_security_refuses() {
    let mut lab = crowded();
    assert!(lab.send(3, &frame(mac(1), wild(0), 0x88b5, &[0; 46])));
    lab.workers[1].poll_once(lab.now);
    let config = changed(&lab, 3, |port| port.security = Security::Mac([].into()));
    set_rules_at(&mut lab, 0, &config);
    lab.workers[0].poll_once(lab.now);
    let (port, last_seen) = (lab.ports[3], lab.now.secs());
    let restored = FdbEntry { station: Station::new(NetworkId::new(0), wild(1)), port, last_seen };
    lab.command(0, |reply| Command::Learn(vec![restored], reply));
    lab.all_received();
    for address in [wild(0), wild(1)] {
        assert_eq!(reached(&mut lab, 2, address, mac(2)), [0, 1, 3], "{address} is unknown");
    }
    lab.end();
}

/// Stations of a closed port do not count towards the limits of the port that reuses its index.
#[test]
fn stations_of_a_closed_port_count_towards_no_limit() {
    use vifswitch::switch::{AtLimit, Limits, MacLimit};
    for policy in [AtLimit::Drop, AtLimit::ForwardUnlearned] {
        let limit = Some(MacLimit { stations: 5, policy });
        let limits = Limits { network: 8, port: 8 };
        let port_specs = [PortSpec { mac_limit: limit, ..PortSpec::new(0, 0) }, PortSpec::new(0, 1)];
        let mut lab = Lab::new(Setup { limits, ..Setup::default() }, &port_specs);
        for generation in 1..4 {
            for number in 0..5 {
                let address = wild(usize::from(generation) * 10 + number);
                assert_eq!(reached(&mut lab, 0, mac(1), address), [1], "station {number} of generation {generation}");
                assert_eq!(reached(&mut lab, 1, address, mac(1)), [0], "the station is known");
            }
            assert_eq!(lab.drops_in(0, DropReason::MacLimit) + lab.sum(0, |c| c.not_learned.get()), 0);
            // The port index is reused for another VM: all stations behind it become invalid.
            let (old, new) = (lab.ports[0], PortId::new(0, generation));
            let queue = lab.close(old, 0).unwrap();
            lab.change_ports(|all| all.iter_mut().filter(|port| port.id == old).for_each(|port| port.id = new));
            lab.ports[0] = new;
            lab.open(vifswitch::worker::RxQueue::new(new, 0, queue.device));
            assert_eq!(lab.workers[0].switch().fdb().len(), 0, "stations of a closed port are not counted");
        }
        lab.end();
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A station sends from a port.
    Speak {
        station: usize,
        port: usize,
    },
    /// A worker runs one `poll_once`. Its clock may lag by some nanoseconds.
    Run {
        worker: usize,
        late: u64,
    },
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let speak = (0..3usize, 0..6usize).prop_map(|(station, port)| Step::Speak { station, port });
    let run = (0..3usize, prop_oneof![3 => Just(0), 1 => 0..2_000_000u64]);
    let pass = prop_oneof![6 => Just(1u64), 4 => 1..100_000u64, 1 => Just(1_000_000_000), 1 => Just(999_000_000)];
    let step = prop_oneof![
        3 => speak,
        4 => run.prop_map(|(worker, late)| Step::Run { worker, late }),
        2 => pass.prop_map(Step::Advance),
    ];
    vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Workers are stepped in any order. Once all updates are applied, they know each station at the same port: where
    /// it sent last, or, as a known station is refreshed once a second, less than a second before.
    #[test]
    fn workers_agree_on_the_port_of_each_station(workers in 2..4usize, steps in steps()) {
        // Stations may move freely between these ports.
        let port_specs: Vec<_> = (0..6).map(|_| PortSpec { mac_sharing: true, ..PortSpec::new(0, 7) }).collect();
        let mut lab = Lab::new(Setup { workers: workers as u16, ..Setup::default() }, &port_specs);
        let mut clocks = vec![lab.now; workers];
        // Frames pending in loopback devices, and when each station sent at which port.
        let mut waiting: Vec<(usize, usize)> = Vec::new();
        let mut received: HashMap<usize, Vec<(MonoTime, usize)>> = HashMap::new();
        let mut run = |lab: &mut Lab, waiting: &mut Vec<(usize, usize)>, worker: usize, late: u64| {
            clocks[worker] = clocks[worker].max(lab.now - Duration::from_nanos(late));
            waiting.retain(|&(station, port)| {
                let is_its = port % workers == worker;
                if is_its {
                    received.entry(station).or_default().push((clocks[worker], port));
                }
                !is_its
            });
            lab.workers[worker].poll_once(clocks[worker]).done
        };
        for step in steps {
            match step {
                Step::Speak { station, port } => {
                    let bytes = frame(Mac::BROADCAST, wild(station), 0x88b5, &[0; 46]);
                    prop_assert!(lab.ends[port].send(&bytes, Offload::NONE));
                    waiting.push((station, port));
                }
                Step::Run { worker, late } => drop(run(&mut lab, &mut waiting, worker % workers, late)),
                Step::Advance(nanos) => lab.advance(Duration::from_nanos(nanos)),
            }
        }
        while (0..workers).map(|worker| run(&mut lab, &mut waiting, worker, 0)).sum::<usize>() > 0 {}
        for (station, mut received) in received {
            let views: Vec<Option<PortId>> = lab.workers.iter().map(|worker| {
                let fdb = worker.switch().fdb();
                let station = Station::new(NetworkId::new(0), wild(station));
                fdb.find(station, fdb.hash(station), 0)
            }).collect();
            prop_assert!(views.iter().all(|view| *view == views[0]), "station {}: {:?}, heard {:?}", station, views, received);
            received.sort_unstable();
            let last = received.last().unwrap().0;
            let lately = received.iter().filter(|(at, _)| last.since(*at) < Duration::from_secs(1));
            let ports: Vec<PortId> = lately.map(|&(_, port)| lab.ports[port]).collect();
            prop_assert!(ports.contains(&views[0].unwrap()), "station {}: {:?}, heard {:?}", station, views, received);
        }
        lab.end();
    }
}

/// A worker that does not run leaves no room for updates of others: they are counted, and sent again with later frames.
#[test]
fn lost_updates_are_counted_and_sent_again() {
    const SOURCES: usize = 6000;
    let port_specs: Vec<_> = (0..4).map(|owner| PortSpec::new(0, owner)).collect();
    let mut lab = Lab::new(Setup { workers: 2, stations: 16_384, ..Setup::default() }, &port_specs);
    let send_all = |lab: &mut Lab, both: bool| {
        for source in 0..SOURCES {
            // Between ports of the first worker.
            assert!(lab.send(0, &frame(mac(2), wild(source), 0x88b5, &[0; 46])));
            if source % 32 == 31 || source == SOURCES - 1 {
                lab.workers[0].poll_once(lab.now);
                if both {
                    lab.settle();
                }
                lab.received(2);
            }
        }
    };
    send_all(&mut lab, false);
    let lost = lab.counters[0].updates_lost.get();
    assert!(lost > 0 && (lost as usize) < SOURCES, "{lost}");
    lab.settle();
    let known = |lab: &mut Lab| {
        let all: HashSet<Mac> = lab.stations(1).iter().map(|entry| entry.station.mac()).collect();
        (0..SOURCES).filter(|&source| all.contains(&wild(source))).count()
    };
    assert_eq!(known(&mut lab), SOURCES - lost as usize);
    // A quarter of the ageing time.
    lab.advance(Duration::from_secs(75));
    send_all(&mut lab, true);
    assert_eq!(known(&mut lab), SOURCES, "all are known everywhere");
    assert_eq!(lab.counters[0].updates_lost.get(), lost);
    lab.end();
}
