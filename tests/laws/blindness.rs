//! Blindness: configured IP addresses change no frame, unless a port has port security `mac+ip`. Sends the same
//! frames through random configurations with and without addresses. Needs nothing of the host.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::control::compile::activation::Activations;
use vifswitch::control::compile::endpoints;
use vifswitch::control::compile::failover::Groups;
use vifswitch::control::compile::forwarding::{self, ControlState, MitigationState};
use vifswitch::control::compile::ids::IdAllocator;
use vifswitch::control::compile::policers::Policers;
use vifswitch::control::config::{Config, parse_toml};
use vifswitch::switch::{DropReason, ForwardingConfig, HashKey, Security};
use vifswitch::wire::{Mac, Offload};

use crate::generators::{self, Act};
use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// `fixed_ips` and allowed pairs of a port as last octets, and its `ip_allocation`.
type PortAddresses = (Vec<u8>, Option<&'static str>);

static NO_ADDRESSES: PortAddresses = (Vec::new(), None);

fn v4(port: usize, end: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, port as u8, end)
}

fn v6(port: usize, end: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, port as u16, end.into())
}

/// Compiles the forwarding configuration. Ports of one VM are adjacent.
fn forwarding_config(
    port_specs: &[PortSpec],
    events: &[PortAddresses],
    security: Option<&str>,
    workers: u16,
) -> ForwardingConfig {
    let mut text = String::from("[switch]\nstate = \"\"\n");
    for network in 0..2 {
        write!(text, "[[networks]]\nid = \"net{network}\"\nmtu = 9000\n").unwrap();
    }
    for (index, spec) in port_specs.iter().enumerate() {
        if index == 0 || port_specs[index - 1].owner != spec.owner {
            write!(text, "[[vms]]\nid = \"vm{}\"\n", spec.owner).unwrap();
        }
        let PortSpec { network, admin_up, .. } = spec;
        write!(text, "[[vms.ports]]\nport_id = \"p{index}\"\nnetwork_id = \"net{network}\"\n").unwrap();
        let address = mac(index);
        write!(text, "mac_address = \"{address}\"\nadmin_state_up = {admin_up}\n").unwrap();
        writeln!(text, "device = {{ kind = \"tap\", name = \"tap{index}\" }}").unwrap();
        let pairs: Vec<String> = match &spec.security {
            Security::Mac(also) => also.iter().map(|mac| format!("{{ mac_address = \"{mac}\" }}")).collect(),
            _ => Vec::new(),
        };
        let own = if spec.security == Security::Off { "off" } else { "mac" };
        writeln!(text, "port_security = \"{}\"", security.unwrap_or(own)).unwrap();
        if !pairs.is_empty() {
            writeln!(text, "allowed_address_pairs = [{}]", pairs.join(", ")).unwrap();
        }
        let (ends, allocation) = events.get(index).unwrap_or(&NO_ADDRESSES);
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
    let places = IdAllocator::first(&config);
    let endpoints = endpoints::endpoints(&config, &places);
    // The lab assigns the same port ids.
    assert!(endpoints.iter().enumerate().all(|(index, endpoint)| endpoint.id.index() == index));
    let reached = endpoints.iter().map(|endpoint| (endpoint, Some(endpoint.id.index() as u16 % workers)));
    let mut policers = Policers::new(workers);
    policers.follow(&Config::default(), &config);
    let (groups, mitigation, activations) = (Groups::default(), MitigationState::default(), Activations::default());
    let decided = ControlState { groups: &groups, mitigation: &mitigation, activations: &activations };
    forwarding::compile(&config, &places, HashKey::new([7; 16]), reached, &policers, decided)
}

/// A frame that carries an IP address of a port, mostly its sender's.
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
enum Step {
    Act(Act),
    Said(Said),
}

fn scenes() -> impl Strategy<Value = Vec<Step>> {
    let said = (0..9usize, prop::option::weighted(0.3, 0..9usize), 0..4u8, 0..4u8, 0..9usize)
        .prop_map(|(port, whose, end, kind, to)| Said { port, whose: whose.unwrap_or(port), end, kind, to });
    (generators::acts(9, 40), vec(said, 1..20)).prop_map(|(acts, said)| {
        let (mut acts, mut all) = (acts.into_iter(), Vec::new());
        for said in said {
            all.extend(acts.by_ref().take(2).map(Step::Act));
            all.push(Step::Said(said));
        }
        all.extend(acts.map(Step::Act));
        all
    })
}

/// Frames that each guest receives, with `virtio_net_hdr`; forwarded and dropped counts of each port.
type Outcome = (Vec<Vec<(Vec<u8>, Offload)>>, Vec<Vec<u64>>);

fn outcome(port_specs: &[PortSpec], config: ForwardingConfig, workers: u16, scenes: &[Step]) -> Outcome {
    let mut lab = Lab::new(Setup { workers, mtu: 9000, ..Setup::default() }, port_specs);
    lab.set_config(Arc::new(config));
    for scene in scenes {
        let (port, bytes, offload) = match scene {
            Step::Act(Act::Advance(seconds)) => {
                lab.advance(Duration::from_secs(*seconds));
                continue;
            }
            Step::Act(Act::Send(sketch)) => {
                (sketch.port(port_specs.len()), sketch.bytes(port_specs.len()), sketch.offload)
            }
            Step::Said(said) => (said.port % port_specs.len(), said.bytes(port_specs.len()), Offload::NONE),
        };
        assert!(lab.ends[port].send(&bytes, offload));
        lab.settle();
    }
    lab.check_counters();
    let went = (0..port_specs.len()).map(|port| {
        let sums = [lab.sum(port, |c| c.forwarded.get()), lab.sum(port, |c| c.flooded.get())];
        let dropped =
            DropReason::ALL.iter().flat_map(|&reason| [lab.drops_in(port, reason), lab.drops_out(port, reason)]);
        sums.into_iter().chain(dropped).collect()
    });
    let went = went.collect();
    let came = lab.ends.iter_mut().map(|end| std::iter::from_fn(|| end.take()).collect()).collect();
    lab.end();
    (came, went)
}

fn port_specs() -> impl Strategy<Value = Vec<PortSpec>> {
    generators::port_specs(2).prop_map(|mut port_specs| {
        port_specs.sort_by_key(|spec| spec.owner);
        for spec in &mut port_specs {
            if let Security::Mac(also) = &mut spec.security {
                let mut once = also.to_vec();
                once.sort();
                once.dedup();
                *also = once.into();
            }
        }
        port_specs
    })
}

fn port_addresses() -> impl Strategy<Value = Vec<PortAddresses>> {
    let ends = prop::sample::subsequence(vec![0u8, 1, 2, 3], 0..=3);
    let allocation = prop::option::of(prop::sample::select(vec!["immediate", "deferred", "none"]));
    vec((ends, allocation), 10)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Shows: REQ-05
    #[test]
    fn configured_addresses_change_no_frame(port_specs in port_specs(), events in port_addresses(), scenes in scenes(), workers in 1..4u16) {
        let blank = outcome(&port_specs, forwarding_config(&port_specs, &[], None, workers), workers, &scenes);
        let these = outcome(&port_specs, forwarding_config(&port_specs, &events, None, workers), workers, &scenes);
        prop_assert!(these.0 == blank.0, "other frames");
        prop_assert_eq!(these.1, blank.1);
    }
}

/// Control: with `mac+ip`, addresses do change what is forwarded.
#[test]
fn configured_addresses_matter_with_mac_ip() {
    let port_specs = [PortSpec::new(0, 0), PortSpec::new(0, 1)];
    let said = Said { port: 0, whose: 0, end: 1, kind: 1, to: 1 };
    let came = |events: &[PortAddresses]| {
        let config = forwarding_config(&port_specs, events, Some("mac+ip"), 1);
        outcome(&port_specs, config, 1, &[Step::Said(said.clone())]).0[1].len()
    };
    assert_eq!((came(&[]), came(&[(vec![1], None)]), came(&[(vec![2], None)])), (0, 1, 0));
}
