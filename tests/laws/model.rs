//! A reference model of the switch, simple instead of fast, and a comparison with the real one frame by frame. Needs
//! nothing of the host.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::switch::{AtLimit, DropReason, ReservedGroup, ReservedMask, Security};
use vifswitch::telemetry::PortCounters;
use vifswitch::wire::Mac;

use crate::generators::{self, Sketch, plain};
use support::lab::{Lab, PortSpec, Setup, mac};

const MTU: usize = 1500;
const AGEING: u64 = 300;

type Address = [u8; 6];

/// Expected receivers and counts of a frame, or its drop reason.
type Expectation = Result<Delivery, DropReason>;

#[derive(Debug, Default)]
struct Delivery {
    /// Ports that receive it by destination.
    to: Vec<usize>,
    /// Ports that receive a copy because they are promiscuous.
    mirror_copies: Vec<usize>,
    /// Ports that do not receive it because they take no unknown unicast.
    not_flooded: Vec<usize>,
    /// Its source was not learned, because of the MAC limit.
    not_learned: bool,
}

struct Model {
    port_specs: Vec<PortSpec>,
    reserved: u16,
    /// By network and address: port and time of the last frame.
    learned: HashMap<(u16, Address), (usize, u64)>,
    /// Times of the moves of each station, per move limit.
    flaps: HashMap<(u16, Address, Line), Vec<u64>>,
    now: u64,
}

/// Which move limit applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Line {
    /// Ports of one VM.
    Siblings,
    /// Both ports are allowed to use the address.
    Allowed,
    All,
}

impl Model {
    /// Whether an entry may have aged at one worker and not at another: peers receive a refresh only once per quarter
    /// of the ageing time.
    fn is_unsure(&self) -> bool {
        self.learned.values().any(|(_, seen)| (AGEING / 4 * 3..AGEING).contains(&(self.now - seen)))
    }

    /// Whether the address is a port's own or in its allowed pairs.
    fn allows(&self, port: usize, address: Address) -> bool {
        match &self.port_specs[port].security {
            Security::Off => mac(port).octets() == address,
            security => mac(port).octets() == address || security.macs().any(|also| also.octets() == address),
        }
    }

    fn network(&self, port: usize) -> u16 {
        self.port_specs[port].network
    }

    /// The only port of the network with this address, if it is administratively up.
    fn pinned(&self, network: u16, address: Address) -> Option<usize> {
        let mut listing =
            (0..self.port_specs.len()).filter(|&port| self.network(port) == network && self.allows(port, address));
        listing.next().filter(|&port| listing.next().is_none() && self.port_specs[port].admin_up)
    }

    fn find(&self, network: u16, address: Address) -> Option<usize> {
        let learned = self.learned.get(&(network, address)).filter(|(_, seen)| self.now - seen < AGEING);
        self.pinned(network, address).or(learned.map(|(port, _)| *port))
    }

    fn frame(&mut self, from: usize, frame: &[u8]) -> Expectation {
        let spec = &self.port_specs[from];
        if !spec.admin_up {
            return Err(DropReason::AdminDown);
        }
        if spec.quarantined {
            return Err(DropReason::Quarantined);
        }
        if frame.len() < 14 {
            return Err(DropReason::Runt);
        }
        let is_tag = |at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00]));
        let whole_tag = |at: usize| is_tag(at) && frame.len() >= at + 6;
        let tags = if !whole_tag(12) {
            0
        } else if !whole_tag(16) {
            1
        } else {
            2
        };
        if frame.len() > MTU + 14 + 4 * tags {
            return Err(DropReason::TooLong);
        }
        let (to, source): (Address, Address) = (frame[..6].try_into().unwrap(), frame[6..12].try_into().unwrap());
        if source[0] & 1 == 1 || source == [0; 6] {
            return Err(DropReason::BadSource);
        }
        if to[..5] == [0x01, 0x80, 0xc2, 0, 0] && to[5] < 16 && self.reserved & 1 << to[5] == 0 {
            return Err(DropReason::ReservedGroup);
        }
        let network = spec.network;
        let pinned = self.pinned(network, source);
        if pinned.is_some_and(|owner| self.port_specs[owner].owner != spec.owner) {
            return Err(DropReason::ForeignSource);
        }
        if spec.security != Security::Off && !self.allows(from, source) {
            return Err(DropReason::SpoofedSource);
        }
        if matches!(self.port_specs[from].security, Security::MacIp(_)) && !self.may_say(from, source, frame) {
            return Err(DropReason::SpoofedIp);
        }
        let found = if to[0] & 1 == 1 { None } else { self.find(network, to) };
        if found == Some(from) {
            return Err(DropReason::Hairpin);
        }
        let mut not_learned = false;
        if pinned.is_none() {
            match self.port_specs[from].mac_limit.filter(|limit| !self.has_room(from, source, limit.stations)) {
                Some(limit) if limit.policy == AtLimit::Drop => return Err(DropReason::MacLimit),
                Some(_) => not_learned = true,
                None if self.may_move(from, source) => _ = self.learned.insert((network, source), (from, self.now)),
                None => return Err(DropReason::DampenedSource),
            }
        }
        let others = |which: &dyn Fn(&PortSpec) -> bool| -> Vec<usize> {
            let spec = &self.port_specs[from];
            // BPDUs pass in any case.
            let is_bpdu = [[0x01, 0x80, 0xc2, 0, 0, 0], [0x01, 0, 0x0c, 0xcc, 0xcc, 0xcd]].contains(&to);
            let is_there = |port: &usize| {
                let other = &self.port_specs[*port];
                let is_split = spec.split_horizon && other.owner == spec.owner && !is_bpdu;
                *port != from && other.network == network && other.admin_up && !other.quarantined && !is_split
            };
            (0..self.port_specs.len()).filter(is_there).filter(|&port| which(&self.port_specs[port])).collect()
        };
        match found {
            Some(port) => {
                let mut mirror_copies = others(&|spec| spec.promiscuous);
                mirror_copies.retain(|&watcher| watcher != port);
                Ok(Delivery { to: vec![port], mirror_copies, not_learned, ..Delivery::default() })
            }
            None if to == source => Err(DropReason::Hairpin),
            None if to[0] & 1 == 1 => Ok(Delivery { to: others(&|_| true), not_learned, ..Delivery::default() }),
            None => {
                let wants = |spec: &PortSpec| spec.unknown_unicast || spec.promiscuous;
                let not_flooded = others(&|spec| !wants(spec));
                Ok(Delivery { to: others(&wants), not_flooded, not_learned, ..Delivery::default() })
            }
        }
    }

    /// Whether the flap limit allows the source at this port. Records the move if so.
    fn may_move(&mut self, to: usize, source: Address) -> bool {
        let network = self.network(to);
        let Some(&(from, seen)) = self.learned.get(&(network, source)) else { return true };
        let (from, to) = ((from, &self.port_specs[from]), (to, &self.port_specs[to]));
        let is_gone = self.now - seen >= AGEING || !from.1.admin_up || from.1.quarantined;
        let are_siblings = from.1.owner == to.1.owner;
        if from.0 == to.0 || is_gone || are_siblings && to.1.mac_sharing {
            return true;
        }
        // Ports that are both allowed to use an address have a higher limit.
        let has_source_policy = from.1.security != Security::Off && to.1.security != Security::Off;
        let are_allowed = has_source_policy && self.allows(from.0, source) && self.allows(to.0, source);
        let (line, free, time) = match (are_siblings, are_allowed) {
            (true, _) => (Line::Siblings, 4, 1),
            (false, true) => (Line::Allowed, 32, 1),
            (false, false) => (Line::All, 4, 180),
        };
        let flaps = self.flaps.entry((network, source, line)).or_default();
        let may = flaps.iter().filter(|&&at| self.now - at < time).count() < free;
        if may {
            flaps.push(self.now);
        }
        may
    }

    /// Whether the source is learned behind the port, or the limits allow it. A port's own address does not count;
    /// with port security, pairs are not limited.
    fn has_room(&self, port: usize, source: Address, most: u32) -> bool {
        let is_known = |address: &Address, after: usize, seen: u64| {
            after == port && self.now - seen < AGEING && *address != mac(port).octets()
        };
        let known = self.learned.iter().filter(|((network, address), (after, seen))| {
            *network == self.network(port) && is_known(address, *after, *seen)
        });
        self.port_specs[port].security != Security::Off
            || source == mac(port).octets()
            || known.clone().any(|((_, address), _)| *address == source)
            || known.count() < most as usize
    }

    /// Whether an IP address is bound to a MAC address.
    fn is_bound(&self, port: usize, address: Address, ip: IpAddr) -> bool {
        let Security::MacIp(bindings) = &self.port_specs[port].security else { return true };
        let mut its = bindings.iter().filter(|binding| binding.mac.octets() == address);
        let [a, b, c, d, e, f] = address;
        let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        its.clone().count() > 0 && ip == IpAddr::from(link_local)
            || its.any(|binding| binding.ip.is_none_or(|prefix| prefix.contains(ip)))
    }

    /// Whether `mac+ip` allows the ARP, ND and IP frames that the generator makes.
    fn may_say(&self, port: usize, source: Address, frame: &[u8]) -> bool {
        let Security::MacIp(bindings) = &self.port_specs[port].security else { return true };
        let speaks = bindings.iter().any(|binding| binding.mac.octets() == source);
        let mut at = 12;
        while matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00])) {
            at += 4;
        }
        let Some(kind) = frame.get(at..at + 2) else { return false };
        let body = &frame[at + 2..];
        let six = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&body[at..at + 16]).unwrap());
        match kind {
            [0x08, 0x06] if body.len() >= 28 => {
                let address = body[8..14].try_into().unwrap();
                let ip = <[u8; 4]>::try_from(&body[14..18]).unwrap();
                self.allows(port, address) && ip == [0; 4] || self.is_bound(port, address, ip.into())
            }
            [0x08, 0x00] if body.len() >= 20 => {
                let ip = <[u8; 4]>::try_from(&body[12..16]).unwrap();
                let asks = body.len() >= 28 && body[9] == 17 && body[20..24] == [0, 68, 0, 67] || body[9] == 2;
                ip == [0; 4] && asks && speaks || self.is_bound(port, source, ip.into())
            }
            [0x86, 0xdd] if body.len() >= 40 => {
                let ip = six(8);
                if body[6] != 58 {
                    return self.is_bound(port, source, ip);
                }
                let message = &body[40..];
                let Some(kind) = message.first() else { return false };
                let asks = [133, 135].contains(kind) && speaks && ip.is_unspecified();
                if !asks && !self.is_bound(port, source, ip) {
                    return false;
                }
                if *kind == 137 {
                    return true;
                }
                if message.len() < usize::from(body[5]) {
                    return false;
                }
                let fixed = [8, 16, 24, 24][usize::from(*kind) - 133];
                let link = message.get(fixed + 2..fixed + 8).map(|link| Address::try_from(link).unwrap());
                match (kind, link) {
                    (136, link) => self.is_bound(port, link.unwrap_or(source), six(48)),
                    (_, Some(link)) if ip.is_unspecified() => self.allows(port, link),
                    (_, Some(link)) => self.is_bound(port, link, ip),
                    (_, None) => true,
                }
            }
            [0x08, 0x06 | 0x00] | [0x86, 0xdd] => false,
            _ => true,
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Send(Sketch),
    Advance(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let pass = prop_oneof![Just(1u64), Just(AGEING - 1), Just(AGEING), 0..600u64];
    vec(prop_oneof![12 => plain().prop_map(Act::Send), 1 => pass.prop_map(Act::Advance)], 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_switch_agrees_with_the_model(
        port_specs in generators::measured(generators::port_specs(3)),
        memory in generators::memory(),
        reserved in generators::reserved(),
        workers in prop::sample::select(vec![1u16, 1, 3]),
        acts in acts(),
    ) {
        let ports = port_specs.len();
        let mut lab = Lab::new(Setup { workers, memory, mtu: MTU as u16, reserved, ..Setup::default() }, &port_specs);
        let ReservedMask(reserved) = reserved;
        let mut model = Model { port_specs, reserved, learned: HashMap::new(), flaps: HashMap::new(), now: 0 };
        let mut groups: HashMap<(usize, Address), u64> = HashMap::new();
        for (number, act) in acts.iter().enumerate() {
            let sketch = match act {
                Act::Advance(seconds) => {
                    lab.advance(Duration::from_secs(*seconds));
                    model.now += seconds;
                    while workers > 1 && model.is_unsure() {
                        lab.advance(Duration::from_secs(1));
                        model.now += 1;
                    }
                    continue;
                }
                Act::Send(sketch) => sketch,
            };
            // No two frames have the same time: between workers the port would decide which is later.
            lab.advance(Duration::from_nanos(1));
            let (from, bytes) = (sketch.port(ports), sketch.bytes(ports));
            let before = DropReason::ALL.map(|reason| lab.drops_in(from, reason));
            let count = |lab: &Lab| -> Vec<_> {
                (0..ports)
                    .map(|port| {
                        let sum = |of: fn(&PortCounters) -> u64| lab.sum(port, of);
                        [sum(|c| c.mirror_copies.get()), sum(|c| c.not_flooded.get()), sum(|c| c.not_learned.get())]
                    })
                    .collect()
            };
            let counted = count(&lab);
            let expected = model.frame(from, &bytes);
            prop_assert!(lab.send(from, &bytes));
            lab.settle();
            for (reason, before) in DropReason::ALL.into_iter().zip(before) {
                let dropped = lab.drops_in(from, reason) - before;
                prop_assert_eq!(dropped, u64::from(expected.as_ref().err() == Some(&reason)), "act {}: {:?}, not {:?}", number, reason, expected);
            }
            if expected.as_ref().err() == Some(&DropReason::ReservedGroup) {
                *groups.entry((from, bytes[..6].try_into().unwrap())).or_default() += 1;
            }
            let delivery = expected.unwrap_or_default();
            for (port, (before, now)) in counted.into_iter().zip(count(&lab)).enumerate() {
                let has = |ports: &[usize]| u64::from(ports.contains(&port));
                let not_learned = u64::from(delivery.not_learned && port == from);
                let more = [has(&delivery.mirror_copies), has(&delivery.not_flooded), not_learned];
                prop_assert_eq!([0, 1, 2].map(|i| now[i] - before[i]), more, "act {}: counted at port {}", number, port);
            }
            let reached: HashSet<usize> = delivery.to.into_iter().chain(delivery.mirror_copies).collect();
            for port in 0..ports {
                // A frame may be forwarded to a port that is down or quarantined and is dropped there.
                let expected = reached.contains(&port) && model.port_specs[port].admin_up && !model.port_specs[port].quarantined;
                let received = lab.received(port);
                prop_assert_eq!(received.len(), usize::from(expected), "act {}: frames at port {}", number, port);
                prop_assert!(received.iter().all(|frame| *frame == bytes), "act {}: changed at port {}", number, port);
            }
        }
        for port in 0..ports {
            let mut counted: HashMap<&str, u64> = HashMap::new();
            for (group, frames) in lab.port_counters.iter().flat_map(|port_counters| port_counters[port].reserved_groups.iter()) {
                *counted.entry(group.name()).or_default() += frames;
            }
            let its = groups.iter().filter(|((at, _), _)| *at == port);
            let named = its.map(|((_, to), frames)| (ReservedGroup::new(Mac::new(*to)).unwrap().name(), *frames));
            prop_assert_eq!(counted, named.collect());
        }
        let shut = [DropReason::AdminDown, DropReason::Quarantined];
        let down = (0..ports).flat_map(|port| shut.map(|reason| lab.drops_out(port, reason))).sum::<u64>();
        prop_assert_eq!(lab.total(|c| c.drops_out.total()), down, "no other frame is dropped at egress");
        lab.check_counters();
        lab.end();
    }
}
