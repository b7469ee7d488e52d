//! Shedding at the door changes nothing but where frames die: a switch whose devices shed and one whose devices do
//! not let the same frames through at the same moments, and have the same books.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use vifswitch::device::memory::End;
use vifswitch::device::{Abilities, Device, Group, Shed};
use vifswitch::frame::{Batch, Cache, Lane, Sent};
use vifswitch::switch::{ClassLimit, DropReason, Meter, Pack, PortStorm, Rate, StormClass, StormLimits};
use vifswitch::time::Moment;
use vifswitch::wire::Mac;

use crate::common::{Lab, Plug, Setup, frame, mac};

/// What stands at the door of a port: until when frames to a group are shed, and what has been.
#[derive(Debug, Default)]
struct Door {
    until: [Moment; 2],
    shed: Shed,
}

/// The end of a cable that sheds what the guest sends, as [`House::send`] asks its door.
struct Shedder(End, Arc<Mutex<Door>>);

impl Device for Shedder {
    fn receive(&mut self, batch: &mut Batch, cache: &mut Cache) -> io::Result<()> {
        self.0.receive(batch, cache)
    }
    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        self.0.transmit(lane, batch, cache)
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }
    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }
    fn shed(&mut self, group: Group, until: Moment) {
        self.1.lock().unwrap().until[group as usize] = until;
    }
    fn was_shed(&mut self) -> Shed {
        std::mem::take(&mut self.1.lock().unwrap().shed)
    }
}

/// A laboratory, with doors that shed or without.
struct House {
    lab: Lab,
    doors: Vec<Arc<Mutex<Door>>>,
    sheds: bool,
    /// Frames and bytes that guests have sent, by port.
    sent: Vec<(u64, u64)>,
    shed: u64,
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

impl House {
    fn new(workers: u16, owners: &[u32], sheds: bool) -> House {
        let doors: Vec<_> = owners.iter().map(|_| Arc::<Mutex<Door>>::default()).collect();
        let plugs: Vec<_> = owners.iter().map(|&owner| Plug::new(0, owner)).collect();
        let lab = Lab::with_devices(Setup { workers, ..Setup::default() }, &plugs, |port, end| {
            Box::new(Shedder(end, doors[port].clone()))
        });
        let mut house = House { lab, doors, sheds, sent: vec![(0, 0); owners.len()], shed: 0 };
        // The meters, which stay.
        let packs: Vec<Meter> = (0..=owners.iter().copied().max().unwrap()).map(|_| Meter::default()).collect();
        house.lab.change_ports(|ports| {
            for port in ports {
                port.storm = PortStorm { meter: Meter::default(), limits: StormLimits::OFF, shared: false };
                let meter = packs[port.owner.0 as usize].clone();
                port.pack = Some(Pack { limits: StormLimits::OFF, meter, shared: workers > 1, ..Pack::default() });
            }
        });
        house
    }

    /// Puts limits for broadcasts and multicasts in force.
    fn limit(&mut self, limits: Limits) {
        let of = |limit: ClassLimit| {
            let limit = Some(limit).filter(|limit| *limit != ClassLimit::default());
            StormLimits::OFF.with(StormClass::Broadcast, limit).with(StormClass::Multicast, limit)
        };
        self.lab.change_ports(|ports| {
            for port in ports {
                port.storm.limits = of(ClassLimit { frames: limits.frames, bytes: limits.bytes });
                let pack = port.pack.as_mut().unwrap();
                (pack.limits, pack.copies) = (of(ClassLimit { frames: limits.common, bytes: None }), limits.copies);
            }
        });
    }

    /// A guest sends a frame; its door sheds it, or not.
    fn send(&mut self, port: usize, bytes: &[u8]) {
        self.sent[port].0 += 1;
        self.sent[port].1 += bytes.len() as u64;
        let to = Mac::new(*bytes.first_chunk().unwrap());
        let group = if to == Mac::BROADCAST { Group::Broadcast } else { Group::Multicast };
        let mut door = self.doors[port].lock().unwrap();
        if self.sheds && to.is_group() && to != Mac::BRIDGES && self.lab.now < door.until[group as usize] {
            door.shed[group].frames += 1;
            door.shed[group].bytes += bytes.len() as u64;
            self.shed += 1;
            return;
        }
        drop(door);
        assert!(self.lab.send(port, bytes));
    }

    /// All that is counted of a port. `exactly`: also of which limit frames died.
    fn books(&self, port: usize, exactly: bool) -> Vec<u64> {
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

/// What happens.
#[derive(Debug, Clone)]
enum Event {
    /// Frames come, each from a port, to an address, of some length.
    Frames(Vec<(usize, Mac, usize)>),
    /// Microseconds pass.
    Pass(u64),
    Limit(Limits),
    /// The counters are read.
    Audit,
}

fn frames() -> impl Strategy<Value = Event> {
    let to = prop_oneof![
        6 => Just(Mac::BROADCAST),
        3 => Just(Mac::from_bits(0x0100_5e00_0001)),
        1 => Just(Mac::BRIDGES),
        1 => Just(mac(77)),
        1 => Just(mac(1)),
    ];
    // A burst at most of each, so that both houses read them in the same breath.
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
        4 => (0u64..20_000).prop_map(Event::Pass),
        1 => limits().prop_map(Event::Limit),
        1 => Just(Event::Limit(Limits::OFF)),
        1 => Just(Event::Audit),
    ]
}

proptest! {
    #[test]
    fn shedding_changes_nothing_but_where_frames_die(
        workers in 1u16..4,
        limits in limits(),
        events in prop::collection::vec(event(), 1..40),
    ) {
        // A VM with two ports, and two with one.
        let mut houses = [false, true].map(|sheds| House::new(workers, &[0, 0, 1, 2], sheds));
        let mut exactly = limits.bytes.is_none();
        houses.iter_mut().for_each(|house| house.limit(limits));
        for event in events {
            for house in &mut houses {
                match &event {
                    Event::Frames(frames) => {
                        for &(port, to, len) in frames {
                            house.send(port, &frame(to, mac(port), 0x88b5, &vec![1; len]));
                        }
                        house.lab.settle();
                    }
                    Event::Pass(micros) => {
                        house.lab.pass(Duration::from_micros(*micros));
                        house.lab.step();
                    }
                    Event::Limit(limits) => {
                        exactly &= limits.bytes.is_none();
                        house.limit(*limits);
                    }
                    Event::Audit => {
                        let audit = house.lab.audit();
                        prop_assert!(audit.is_quiet() && audit.adds_up(), "{:#?}", audit);
                        for (port, (frames, bytes)) in house.sent.iter().enumerate() {
                            prop_assert_eq!(audit.port(port).rx_frames, *frames, "to the frame, even in the midst of it");
                            prop_assert_eq!(house.lab.sum(port, |c| c.rx_bytes.get()), *bytes);
                        }
                    }
                }
            }
            let [plain, shedding] = &mut houses;
            for port in 0..4 {
                prop_assert_eq!(plain.lab.received(port), shedding.lab.received(port), "port {}", port);
            }
        }
        for house in &mut houses {
            house.lab.audit();
        }
        let [plain, shedding] = houses;
        for port in 0..4 {
            prop_assert_eq!(plain.books(port, exactly), shedding.books(port, exactly), "port {}", port);
        }
        plain.lab.end();
        shedding.lab.end();
    }
}

/// At a limit of 1000 a second, nearly all of a storm dies at the door: one frame of each millisecond gets in, and
/// perhaps one more, of which the port dies for another moment.
#[test]
fn a_storm_dies_at_the_door() {
    for own in [true, false] {
        let mut house = House::new(1, &[0, 0, 1], true);
        let limit = Some(Rate::new(1000, 100));
        house.limit(if own {
            Limits { frames: limit, ..Limits::OFF }
        } else {
            Limits { common: limit, ..Limits::OFF }
        });
        let bytes = frame(Mac::BROADCAST, mac(0), 0x88b5, &[0; 46]);
        for _ in 0..10_000 {
            for _ in 0..20 {
                house.send(0, &bytes);
            }
            house.lab.step();
            house.lab.pass(Duration::from_micros(10));
        }
        house.lab.settle();
        let admitted = house.lab.received(2).len();
        assert!((199..=201).contains(&admitted), "{admitted}");
        let (sent, rest) = (house.sent[0].0, house.sent[0].0 - house.shed);
        assert!(rest < 100 + 20 + 2 * 20 * 100, "of {sent} frames {rest} were received");
        // What was shed last is in the books as soon as its time is over, without a word from anybody.
        house.lab.pass(Duration::from_millis(2));
        house.lab.step();
        assert_eq!(house.lab.sum(0, |c| c.rx_frames.get()), sent);
        let reason = if own { DropReason::StormBroadcast } else { DropReason::StormVm };
        assert_eq!(house.lab.drops_in(0, reason), sent - admitted as u64);
        let until = house.doors[0].lock().unwrap().until;
        assert_eq!(until, [Moment::default(); 2], "and the door need not look at its clock any more");
        house.lab.check_ledger();
        house.lab.end();
    }
}

/// Whatever ends it, nothing stays shed.
#[test]
fn nothing_stays_shed_at_a_port_whose_limits_are_lifted_or_whose_gate_is_closed() {
    for close in [false, true] {
        let mut house = House::new(1, &[0, 1], true);
        house.limit(Limits { frames: Some(Rate::new(1, 1)), ..Limits::OFF });
        let bytes = frame(Mac::BROADCAST, mac(0), 0x88b5, &[0; 46]);
        for _ in 0..5 {
            house.send(0, &bytes);
            house.lab.settle();
        }
        assert_eq!((house.lab.received(1).len(), house.shed), (1, 3));
        assert!(house.doors[0].lock().unwrap().until[0] > house.lab.now);
        if close {
            let port = house.lab.ports[0];
            assert!(house.lab.close(port, 0).is_some());
        } else {
            house.limit(Limits::OFF);
            house.send(0, &bytes);
            house.lab.settle();
            assert_eq!((house.lab.received(1).len(), house.shed), (1, 3));
        }
        assert_eq!(house.doors[0].lock().unwrap().until, [Moment::default(); 2]);
        assert_eq!(house.lab.sum(0, |c| c.rx_frames.get()), house.sent[0].0);
        house.lab.check_ledger();
        house.lab.end();
    }
}
