//! Law 4: what the configuration says of IP addresses makes no difference to any frame, unless a port asks
//! for `mac+ip`. Random configurations, told nothing and told something, and the same frames through both.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::control::activation::Activations;
use vifswitch::control::blueprint::{self, Decided, Measures};
use vifswitch::control::config::parse_toml;
use vifswitch::control::failover::Groups;
use vifswitch::control::meters::Meters;
use vifswitch::control::places::Places;
use vifswitch::control::seats;
use vifswitch::switch::{DropReason, Rules, Secret, Security};
use vifswitch::wire::{Mac, Offload};

use crate::common::{Lab, Plug, Setup, frame, mac};
use crate::scenery::{self, Act};

/// What a port is told of its addresses: how they end, and how they were come by.
type Told = (Vec<u8>, Option<&'static str>);

static NOTHING: Told = (Vec::new(), None);

fn v4(port: usize, end: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, port as u8, end)
}

fn v6(port: usize, end: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, port as u16, end.into())
}

/// The rules that follow from a configuration. Ports of one VM stand next to each other.
fn rules(plugs: &[Plug], told: &[Told], security: Option<&str>, workers: u16) -> Rules {
    let mut text = String::from("[switch]\nstate = \"\"\n");
    for network in 0..2 {
        write!(text, "[[networks]]\nid = \"net{network}\"\nmtu = 9000\n").unwrap();
    }
    for (index, plug) in plugs.iter().enumerate() {
        if index == 0 || plugs[index - 1].owner != plug.owner {
            write!(text, "[[vms]]\nid = \"vm{}\"\n", plug.owner).unwrap();
        }
        let Plug { network, admin_up, .. } = plug;
        write!(text, "[[vms.ports]]\nport_id = \"p{index}\"\nnetwork_id = \"net{network}\"\n").unwrap();
        let address = mac(index);
        write!(text, "mac_address = \"{address}\"\nadmin_state_up = {admin_up}\n").unwrap();
        writeln!(text, "device = {{ kind = \"tap\", name = \"tap{index}\" }}").unwrap();
        let pairs: Vec<String> = match &plug.security {
            Security::Mac(also) => also.iter().map(|mac| format!("{{ mac_address = \"{mac}\" }}")).collect(),
            _ => Vec::new(),
        };
        let own = if plug.security == Security::Off { "off" } else { "mac" };
        writeln!(text, "port_security = \"{}\"", security.unwrap_or(own)).unwrap();
        if !pairs.is_empty() {
            writeln!(text, "allowed_address_pairs = [{}]", pairs.join(", ")).unwrap();
        }
        let (ends, allocation) = told.get(index).unwrap_or(&NOTHING);
        let all = ends.iter().flat_map(|&end| [v4(index, end).to_string(), v6(index, end).to_string()]);
        let all: Vec<String> = all.map(|address| format!("{address:?}")).collect();
        if !all.is_empty() {
            writeln!(text, "fixed_ips = [{}]", all.join(", ")).unwrap();
        }
        if let Some(allocation) = allocation {
            writeln!(text, "ip_allocation = \"{allocation}\"").unwrap();
        }
    }
    let config = parse_toml(&text, "law").unwrap_or_else(|e| panic!("{e}\n{text}"));
    let places = Places::first(&config);
    let seats = seats::seats(&config, &places);
    // The lab's ports stand in the same places.
    assert!(seats.iter().enumerate().all(|(index, seat)| seat.id.index() == index));
    let reached = seats.iter().map(|seat| (seat, Some(seat.id.index() as u16 % workers)));
    let mut meters = Meters::new(workers);
    meters.follow(&config);
    let (groups, measures, activations) = (Groups::default(), Measures::default(), Activations::default());
    let decided = Decided { groups: &groups, measures: &measures, activations: &activations };
    blueprint::rules(&config, &places, Secret::new([7; 16]), reached, &meters, decided)
}

/// A frame that says an address: of a port, mostly its own.
#[derive(Debug, Clone)]
struct Said {
    port: usize,
    whose: usize,
    end: u8,
    kind: u8,
    to: usize,
}

impl Said {
    fn bytes(&self, ports: usize) -> Vec<u8> {
        let Said { end, kind, .. } = *self;
        let (from, whose, to) = (self.port % ports, self.whose % ports, mac(self.to % ports));
        let (four, six) = (v4(whose, end).octets(), v6(whose, end).octets());
        match kind {
            0 => {
                let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac(from).octets(), &four, &[0; 6], &[10, 0, 0, 1]].concat();
                frame(Mac::BROADCAST, mac(from), 0x0806, &arp)
            }
            1 => {
                let ip = [&[0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0][..], &four, &[10, 0, 0, 1], &[0; 8]].concat();
                frame(to, mac(from), 0x0800, &ip)
            }
            2 => {
                let ip = [&[0x60, 0, 0, 0, 0, 8, 17, 64][..], &six, &v6(0, 1).octets(), &[0; 8]].concat();
                frame(to, mac(from), 0x86dd, &ip)
            }
            _ => {
                // A neighbour advertisement.
                let nd = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &six, &[2, 1], &mac(from).octets()].concat();
                let ip = [&[0x60, 0, 0, 0, 0, nd.len() as u8, 58, 255][..], &six, &v6(0, 1).octets(), &nd].concat();
                frame(to, mac(from), 0x86dd, &ip)
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Scene {
    Act(Act),
    Said(Said),
}

fn scenes() -> impl Strategy<Value = Vec<Scene>> {
    let said = (0..9usize, prop::option::weighted(0.3, 0..9usize), 0..4u8, 0..4u8, 0..9usize)
        .prop_map(|(port, whose, end, kind, to)| Said { port, whose: whose.unwrap_or(port), end, kind, to });
    (scenery::acts(9, 40), vec(said, 1..20)).prop_map(|(acts, said)| {
        let (mut acts, mut all) = (acts.into_iter(), Vec::new());
        for said in said {
            all.extend(acts.by_ref().take(2).map(Scene::Act));
            all.push(Scene::Said(said));
        }
        all.extend(acts.map(Scene::Act));
        all
    })
}

/// What each guest receives with its offload headers; and of each port, what went and what died.
type Outcome = (Vec<Vec<(Vec<u8>, Offload)>>, Vec<Vec<u64>>);

fn outcome(plugs: &[Plug], rules: Rules, workers: u16, scenes: &[Scene]) -> Outcome {
    let mut lab = Lab::new(Setup { workers, mtu: 9000, ..Setup::default() }, plugs);
    lab.set_rules(Arc::new(rules));
    for scene in scenes {
        let (port, bytes, offload) = match scene {
            Scene::Act(Act::Pass(seconds)) => {
                lab.pass(Duration::from_secs(*seconds));
                continue;
            }
            Scene::Act(Act::Send(sketch)) => (sketch.port(plugs.len()), sketch.bytes(plugs.len()), sketch.offload),
            Scene::Said(said) => (said.port % plugs.len(), said.bytes(plugs.len()), Offload::NONE),
        };
        assert!(lab.ends[port].send(&bytes, offload));
        lab.settle();
    }
    lab.check_ledger();
    let went = (0..plugs.len()).map(|port| {
        let sums = [lab.sum(port, |c| c.forwarded.get()), lab.sum(port, |c| c.flooded.get())];
        let died = DropReason::ALL.iter().flat_map(|&reason| [lab.drops_in(port, reason), lab.drops_out(port, reason)]);
        sums.into_iter().chain(died).collect()
    });
    let went = went.collect();
    let came = lab.ends.iter_mut().map(|end| std::iter::from_fn(|| end.take()).collect()).collect();
    lab.end();
    (came, went)
}

fn plugs() -> impl Strategy<Value = Vec<Plug>> {
    scenery::plugs(2).prop_map(|mut plugs| {
        plugs.sort_by_key(|plug| plug.owner);
        for plug in &mut plugs {
            if let Security::Mac(also) = &mut plug.security {
                let mut once = also.to_vec();
                once.sort();
                once.dedup();
                *also = once.into();
            }
        }
        plugs
    })
}

fn told() -> impl Strategy<Value = Vec<Told>> {
    let ends = prop::sample::subsequence(vec![0u8, 1, 2, 3], 0..=3);
    let allocation = prop::option::of(prop::sample::select(vec!["immediate", "deferred", "none"]));
    vec((ends, allocation), 10)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn addresses_that_are_configured_make_no_difference(plugs in plugs(), told in told(), scenes in scenes(), workers in 1..4u16) {
        let blank = outcome(&plugs, rules(&plugs, &[], None, workers), workers, &scenes);
        let these = outcome(&plugs, rules(&plugs, &told, None, workers), workers, &scenes);
        prop_assert!(these.0 == blank.0, "other frames");
        prop_assert_eq!(these.1, blank.1);
    }
}

/// The law can be broken: with `mac+ip` it is.
#[test]
fn addresses_make_a_difference_where_they_are_asked_for() {
    let plugs = [Plug::new(0, 0), Plug::new(0, 1)];
    let said = Said { port: 0, whose: 0, end: 1, kind: 1, to: 1 };
    let came = |told: &[Told]| {
        let rules = rules(&plugs, told, Some("mac+ip"), 1);
        outcome(&plugs, rules, 1, &[Scene::Said(said.clone())]).0[1].len()
    };
    assert_eq!((came(&[]), came(&[(vec![1], None)]), came(&[(vec![2], None)])), (0, 1, 0));
}
