//! Early drop in XDP changes only where frames are dropped: a switch whose devices drop early forwards the same
//! frames and has the same counters as one whose devices do not. Needs nothing of the host.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use vifswitch::device::loopback::Loopback;
use vifswitch::device::{Device, DeviceCaps, GroupClass, XdpDropped};
use vifswitch::frame::{Batch, Magazine, TxBatch, TxStats};
use vifswitch::switch::{ClassLimit, DropReason, PolicerState, PortPolicer, Rate, StormClass, StormLimits, VmPolicer};
use vifswitch::time::MonoTime;
use vifswitch::wire::Mac;

use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// Early drop of a port: the time until which each group class is blocked, and the counts of dropped frames.
#[derive(Debug, Default)]
struct BlockState {
    until: [MonoTime; 2],
    dropped: XdpDropped,
}

/// A loopback device with early drop. [`EarlyDropLab::send`] applies it.
struct EarlyDropDevice(Loopback, Arc<Mutex<BlockState>>);

impl Device for EarlyDropDevice {
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()> {
        self.0.receive(batch, magazine)
    }
    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        self.0.transmit(tx, batch, magazine)
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }
    fn caps(&self) -> DeviceCaps {
        self.0.caps()
    }
    fn xdp_drop(&mut self, group: GroupClass, until: MonoTime) {
        self.1.lock().unwrap().until[group as usize] = until;
    }
    fn take_xdp_dropped(&mut self) -> XdpDropped {
        std::mem::take(&mut self.1.lock().unwrap().dropped)
    }
}

/// A lab with or without early drop.
struct EarlyDropLab {
    lab: Lab,
    block_states: Vec<Arc<Mutex<BlockState>>>,
    drops_early: bool,
    /// Frames and bytes sent by guests, by port.
    sent: Vec<(u64, u64)>,
    dropped: u64,
}

/// Limits of ports, in frames and in bytes, and of VMs.
#[derive(Debug, Clone, Copy)]
struct Limits {
    frames: Option<Rate>,
    bytes: Option<Rate>,
    common: Option<Rate>,
    copies: Option<Rate>,
}

impl Limits {
    const OFF: Limits = Limits { frames: None, bytes: None, common: None, copies: None };
}

impl EarlyDropLab {
    fn new(workers: u16, owners: &[u32], drops_early: bool) -> EarlyDropLab {
        let block_states: Vec<_> = owners.iter().map(|_| Arc::<Mutex<BlockState>>::default()).collect();
        let port_specs: Vec<_> = owners.iter().map(|&owner| PortSpec::new(0, owner)).collect();
        let lab = Lab::with_devices(Setup { workers, ..Setup::default() }, &port_specs, |port, end| {
            Box::new(EarlyDropDevice(end, block_states[port].clone()))
        });
        let mut early_drop_lab =
            EarlyDropLab { lab, block_states, drops_early, sent: vec![(0, 0); owners.len()], dropped: 0 };
        // Policer states, which all later configurations share.
        let vm_policers: Vec<PolicerState> =
            (0..=owners.iter().copied().max().unwrap()).map(|_| PolicerState::default()).collect();
        early_drop_lab.lab.change_ports(|ports| {
            for port in ports {
                port.storm =
                    PortPolicer { state: PolicerState::default(), limits: StormLimits::OFF.into(), shared: false };
                let state = vm_policers[port.vm.0 as usize].clone();
                port.vm_policer = Some(VmPolicer {
                    limits: StormLimits::OFF.into(),
                    state,
                    shared: workers > 1,
                    ..VmPolicer::default()
                });
            }
        });
        early_drop_lab
    }

    /// Applies limits to broadcast and multicast.
    fn limit(&mut self, limits: Limits) {
        let of = |limit: ClassLimit| {
            let limit = Some(limit).filter(|limit| *limit != ClassLimit::default());
            StormLimits::OFF.with(StormClass::Broadcast, limit).with(StormClass::Multicast, limit)
        };
        self.lab.change_ports(|ports| {
            for port in ports {
                port.storm.limits = of(ClassLimit { frames: limits.frames, bytes: limits.bytes }).into();
                let vm_policer = port.vm_policer.as_mut().unwrap();
                (vm_policer.limits, vm_policer.copies) =
                    (of(ClassLimit { frames: limits.common, bytes: None }).into(), limits.copies);
            }
        });
    }

    /// A guest sends a frame; early drop may drop it.
    fn send(&mut self, port: usize, bytes: &[u8]) {
        self.sent[port].0 += 1;
        self.sent[port].1 += bytes.len() as u64;
        let to = Mac::new(*bytes.first_chunk().unwrap());
        let group = if to == Mac::BROADCAST { GroupClass::Broadcast } else { GroupClass::Multicast };
        let mut state = self.block_states[port].lock().unwrap();
        if self.drops_early && to.is_group() && to != Mac::BRIDGE_GROUP && self.lab.now < state.until[group as usize] {
            state.dropped[group].frames += 1;
            state.dropped[group].bytes += bytes.len() as u64;
            self.dropped += 1;
            return;
        }
        drop(state);
        assert!(self.lab.send(port, bytes));
    }

    /// All counters of a port. `exactly`: keeps the storm drop reasons apart.
    fn counters(&self, port: usize, exactly: bool) -> Vec<u64> {
        let mut all: Vec<u64> = DropReason::ALL.into_iter().map(|reason| self.lab.drops_in(port, reason)).collect();
        if !exactly {
            for class in [StormClass::Broadcast, StormClass::Multicast] {
                all[DropReason::StormVm as usize] += std::mem::take(&mut all[class.reason() as usize]);
            }
        }
        all.push(self.lab.sum(port, |c| c.rx_frames.get()));
        all.push(self.lab.sum(port, |c| c.rx_bytes.get()));
        all.push(self.lab.sum(port, |c| c.flooded.get()));
        all.push(self.lab.sum(port, |c| c.forwarded.get()));
        all.push(self.lab.sum(port, |c| c.copies.get()));
        all.push(self.lab.sum(port, |c| c.tx_frames.get()));
        all
    }
}

/// One step.
#[derive(Debug, Clone)]
enum Event {
    /// Frames arrive: ingress port, destination, length.
    Frames(Vec<(usize, Mac, usize)>),
    /// Advances the clock, in µs.
    Advance(u64),
    Limit(Limits),
    /// Audits the counters.
    Audit,
}

fn frames() -> impl Strategy<Value = Event> {
    let to = prop_oneof![
        6 => Just(Mac::BROADCAST),
        3 => Just(Mac::from_bits(0x0100_5e00_0001)),
        1 => Just(Mac::BRIDGE_GROUP),
        1 => Just(mac(77)),
        1 => Just(mac(1)),
    ];
    // At most one burst per port, so that both labs receive them in the same `poll_once`.
    prop::collection::vec((0usize..4, to, 0usize..300), 1..60).prop_map(Event::Frames)
}

fn limits() -> impl Strategy<Value = Limits> {
    let rate = |most: u64| prop::option::of((1..most, 1u64..20).prop_map(|(rate, burst)| Rate::new(rate, burst)));
    let bytes = (1000u64..1_000_000, 1000u64..5000).prop_map(|(rate, burst)| Rate::new(rate, burst));
    (rate(5000), prop::option::weighted(0.3, bytes), rate(5000), rate(20_000))
        .prop_map(|(frames, bytes, common, copies)| Limits { frames, bytes, common, copies })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => frames(),
        4 => (0u64..20_000).prop_map(Event::Advance),
        1 => limits().prop_map(Event::Limit),
        1 => Just(Event::Limit(Limits::OFF)),
        1 => Just(Event::Audit),
    ]
}

proptest! {
    #[test]
    fn early_drop_changes_no_forwarding_and_no_counter(
        workers in 1u16..4,
        limits in limits(),
        events in prop::collection::vec(event(), 1..40),
    ) {
        // A VM with two ports, and two VMs with one.
        let mut labs = [false, true].map(|drops_early| EarlyDropLab::new(workers, &[0, 0, 1, 2], drops_early));
        let mut exactly = limits.bytes.is_none();
        labs.iter_mut().for_each(|lab| lab.limit(limits));
        for event in events {
            for lab in &mut labs {
                match &event {
                    Event::Frames(frames) => {
                        for &(port, to, len) in frames {
                            lab.send(port, &frame(to, mac(port), 0x88b5, &vec![1; len]));
                        }
                        lab.lab.settle();
                    }
                    Event::Advance(micros) => {
                        lab.lab.advance(Duration::from_micros(*micros));
                        lab.lab.step();
                    }
                    Event::Limit(limits) => {
                        exactly &= limits.bytes.is_none();
                        lab.limit(*limits);
                    }
                    Event::Audit => {
                        let audit = lab.lab.audit();
                        prop_assert!(audit.is_idle() && audit.is_balanced(), "{:#?}", audit);
                        for (port, (frames, bytes)) in lab.sent.iter().enumerate() {
                            prop_assert_eq!(audit.port(port).rx_frames, *frames, "frames dropped early are counted at any time");
                            prop_assert_eq!(lab.lab.sum(port, |c| c.rx_bytes.get()), *bytes);
                        }
                    }
                }
            }
            let [plain, dropping] = &mut labs;
            for port in 0..4 {
                prop_assert_eq!(plain.lab.received(port), dropping.lab.received(port), "port {}", port);
            }
        }
        for lab in &mut labs {
            lab.lab.audit();
        }
        let [plain, dropping] = labs;
        for port in 0..4 {
            prop_assert_eq!(plain.counters(port, exactly), dropping.counters(port, exactly), "port {}", port);
        }
        plain.lab.end();
        dropping.lab.end();
    }
}

/// At a limit of 1000 frames/s, nearly all frames of a storm are dropped early: of each millisecond the switch
/// receives one frame, and perhaps one more that extends the block.
#[test]
fn early_drop_takes_nearly_all_of_a_storm() {
    for own in [true, false] {
        let mut lab = EarlyDropLab::new(1, &[0, 0, 1], true);
        let limit = Some(Rate::new(1000, 100));
        lab.limit(if own { Limits { frames: limit, ..Limits::OFF } } else { Limits { common: limit, ..Limits::OFF } });
        let bytes = frame(Mac::BROADCAST, mac(0), 0x88b5, &[0; 46]);
        let mut admitted = 0;
        for _ in 0..10_000 {
            for _ in 0..20 {
                lab.send(0, &bytes);
            }
            lab.lab.step();
            lab.lab.advance(Duration::from_micros(10));
            admitted += lab.lab.received(2).len();
        }
        lab.lab.settle();
        admitted += lab.lab.received(2).len();
        assert!((199..=201).contains(&admitted), "{admitted}");
        let (sent, rest) = (lab.sent[0].0, lab.sent[0].0 - lab.dropped);
        assert!(rest < 100 + 20 + 2 * 20 * 100, "the switch received {rest} of {sent} frames");
        // Frames dropped last are counted as soon as the block ends, without further traffic.
        lab.lab.advance(Duration::from_millis(2));
        lab.lab.step();
        assert_eq!(lab.lab.sum(0, |c| c.rx_frames.get()), sent);
        let reason = if own { DropReason::StormBroadcast } else { DropReason::StormVm };
        assert_eq!(lab.lab.drops_in(0, reason), sent - admitted as u64);
        let until = lab.block_states[0].lock().unwrap().until;
        assert_eq!(until, [MonoTime::default(); 2], "early drop is off");
        lab.lab.check_counters();
        lab.lab.end();
    }
}

/// Early drop ends with the limit or with the queue.
#[test]
fn early_drop_ends_with_the_limit_or_the_queue() {
    for close in [false, true] {
        let mut lab = EarlyDropLab::new(1, &[0, 1], true);
        lab.limit(Limits { frames: Some(Rate::new(1, 1)), ..Limits::OFF });
        let bytes = frame(Mac::BROADCAST, mac(0), 0x88b5, &[0; 46]);
        for _ in 0..5 {
            lab.send(0, &bytes);
            lab.lab.settle();
        }
        assert_eq!((lab.lab.received(1).len(), lab.dropped), (1, 3));
        assert!(lab.block_states[0].lock().unwrap().until[0] > lab.lab.now);
        if close {
            let port = lab.lab.ports[0];
            assert!(lab.lab.close(port, 0).is_some());
        } else {
            lab.limit(Limits::OFF);
            lab.send(0, &bytes);
            lab.lab.settle();
            assert_eq!((lab.lab.received(1).len(), lab.dropped), (1, 3));
        }
        assert_eq!(lab.block_states[0].lock().unwrap().until, [MonoTime::default(); 2]);
        assert_eq!(lab.lab.sum(0, |c| c.rx_frames.get()), lab.sent[0].0);
        lab.lab.check_counters();
        lab.lab.end();
    }
}
