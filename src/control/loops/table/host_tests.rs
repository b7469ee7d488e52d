//! Loops over hosts: several tables with a simulated clock, whose ports are connected by wires. Each host sees only the
//! probes that arrive at its own ports.

use proptest::prelude::*;

use super::*;
use crate::control::loops::schedule::TICK;

/// A wire between ports, by host and number. With `both_ways` false, only probes of the first arrive.
#[derive(Debug, Clone)]
struct Wire {
    ends: [(usize, usize); 2],
    both_ways: bool,
}

struct Hosts {
    tables: Vec<LoopTable>,
    layouts: Vec<Topology>,
    /// By host.
    ports: Vec<Vec<Endpoint>>,
    wires: Vec<Wire>,
    tick: u32,
}

impl Hosts {
    /// Ports by host and name. The VM of a port has the name of its first letter.
    fn new(ports: &[&[String]], wires: Vec<Wire>) -> Hosts {
        let ports: Vec<Vec<Endpoint>> =
            ports.iter().map(|names| names.iter().map(|name| local(name)).collect()).collect();
        let layout = |(number, ports): (usize, &Vec<Endpoint>)| {
            let networks = [("n".to_owned(), Duration::from_secs(1))];
            Topology::new(networks, ports.iter().cloned().map(|end| (end, 0))).on_host(&format!("h{number}"))
        };
        let layouts = ports.iter().enumerate().map(layout).collect();
        Hosts { tables: vec![LoopTable::default(); ports.len()], layouts, ports, wires, tick: 0 }
    }

    fn now(&self) -> MonoTime {
        MonoTime::from_secs(1000) + TICK * self.tick
    }

    fn is_quarantined(&self, (host, port): (usize, usize)) -> bool {
        self.tables[host].measures(&self.layouts[host]).quarantined.contains_key(&self.ports[host][port])
    }

    /// A probe of a port arrives at another one.
    fn probe(&mut self, from: (usize, usize), at: (usize, usize)) {
        let (sender, receiver) = (self.ports[from.0][from.1].clone(), self.ports[at.0][at.1].clone());
        let (is_blocked, now) = (self.is_quarantined(from), self.now());
        if from.0 == at.0 {
            self.tables[at.0].record_probe(sender, receiver, now);
        } else {
            let sender = Endpoint { host: Some(format!("h{}", from.0)), ..sender };
            self.tables[at.0].record_host_probe(sender, receiver, is_blocked, now);
        }
    }

    /// Some seconds, four ticks each.
    fn run(&mut self, seconds: u32) {
        for _ in 0..seconds * 4 {
            self.tick += 1;
            for Wire { ends: [a, b], both_ways } in self.wires.clone() {
                self.probe(a, b);
                if both_ways {
                    self.probe(b, a);
                }
            }
            let now = self.now();
            for (table, layout) in self.tables.iter_mut().zip(&self.layouts) {
                table.update(layout, &HashMap::new(), now);
            }
        }
    }
}

fn local(name: &str) -> Endpoint {
    Endpoint { vm: Some(name[..1].into()), network: "n".into(), port: name.into(), host: None }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn one_of_two_ports_is_quarantined_and_both_hosts_name_both() {
    let (first, second) = (names(&["a-1"]), names(&["b-1"]));
    let mut hosts = Hosts::new(&[&first, &second], vec![Wire { ends: [(0, 0), (1, 0)], both_ways: true }]);
    hosts.run(20);
    assert!(!hosts.is_quarantined((0, 0)) && hosts.is_quarantined((1, 0)));
    for (table, layout) in hosts.tables.iter().zip(&hosts.layouts) {
        let of = table.loops().next().unwrap();
        assert_eq!(of.escalation.level, Level::AllButOne, "the quarantine of the other host is respected");
        let text = crate::control::loops::describe::what(of, layout);
        assert!(
            ["\"a-1\"", "\"b-1\"", "VM \"a\"", "VM \"b\"", "on host \"h"].iter().all(|part| text.contains(part)),
            "{text}"
        );
    }
    let measures = |number: usize| {
        let of = hosts.tables[number].loops().next().unwrap();
        crate::control::loops::describe::measures(of, &hosts.layouts[number])
    };
    assert_eq!(measures(0), "port \"b-1\" is quarantined by host \"h1\"");
    assert_eq!(measures(1), "port \"b-1\" (#0) is quarantined");
}

/// The port that is to be quarantined is on a host that receives no probe: after a while the other host acts.
#[test]
fn a_host_that_does_not_know_is_not_waited_for() {
    let (first, second) = (names(&["b-1"]), names(&["a-1"]));
    let wire = Wire { ends: [(0, 0), (1, 0)], both_ways: false };
    let mut hosts = Hosts::new(&[&first, &second], vec![wire]);
    hosts.run(2);
    assert!(!hosts.is_quarantined((1, 0)), "host 0 is to quarantine b-1");
    hosts.run(3);
    assert!(hosts.is_quarantined((1, 0)), "host 0 has not");
}

proptest! {
    /// For any wires between the ports of up to three hosts: each is cut soon, where probes pass both ways at one end only
    /// unless further wires need the other, and when the wires are gone, so are the measures.
    #[test]
    fn every_wire_is_cut_and_released(
        sizes in prop::collection::vec(1..4usize, 2..=3),
        letters in prop::collection::vec("[a-d]", 9),
        wires in prop::collection::vec(((0..3usize, 0..3usize), (0..3usize, 0..3usize), any::<bool>()), 1..5),
    ) {
        let mut letters = letters.iter();
        let ports: Vec<Vec<String>> = sizes
            .iter()
            .enumerate()
            .map(|(host, &size)| (0..size).map(|port| format!("{}-{host}{port}", letters.next().unwrap())).collect())
            .collect();
        let wires: Vec<Wire> = wires
            .into_iter()
            .map(|(a, b, both_ways)| Wire { ends: [a, b], both_ways })
            .filter(|wire| wire.ends[0].0 != wire.ends[1].0)
            .filter(|wire| wire.ends.iter().all(|&(host, port)| host < sizes.len() && port < sizes[host]))
            .collect();
        let all: Vec<&[String]> = ports.iter().map(Vec::as_slice).collect();
        let mut hosts = Hosts::new(&all, wires.clone());
        hosts.run(6);
        for wire in &wires {
            let cut = wire.ends.map(|end| hosts.is_quarantined(end));
            prop_assert!(cut[0] || cut[1], "{wire:?}");
        }
        if let [wire] = &wires[..] && wire.both_ways {
            prop_assert!(wire.ends.iter().filter(|&&end| hosts.is_quarantined(end)).count() == 1);
        }
        hosts.run(60);
        prop_assert!(wires.iter().all(|wire| wire.ends.iter().any(|&end| hosts.is_quarantined(end))), "it stays cut");
        hosts.wires.clear();
        hosts.run(700);
        prop_assert!(hosts.tables.iter().all(|table| table.loops().next().is_none()));
    }
}
