//! Order: workers that poll in any order, with frames between them in flight, deliver what one worker delivers, in order
//! per source and destination, and lose nothing that is not counted. Needs nothing of the host.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::device::loopback::{LoopbackCapacity, RxMemory};
use vifswitch::wire::{Mac, Offload};

use crate::generators::{self, WILD, wild};
use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// An address of a frame.
#[derive(Debug, Clone, Copy)]
enum Address {
    /// Of the port itself.
    Port(usize),
    /// Of a station behind it.
    Behind(usize),
    /// Of a station that may be behind any port.
    Wild(usize),
    Broadcast,
}

impl Address {
    fn resolve(self, ports: usize) -> Mac {
        match self {
            Address::Port(port) => mac(port % ports),
            Address::Behind(port) => wild(WILD + port % ports),
            Address::Wild(number) => wild(number),
            Address::Broadcast => Mac::from_bits(0xffff_ffff_ffff),
        }
    }
}

/// One step of a test.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// A guest sends this many frames. The source is among its own, or wild.
    Send { port: usize, to: Address, from: Address, many: usize },
    /// One worker polls so many times.
    Poll(usize, usize),
}

/// Whose addresses frames have.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stations {
    /// Each behind one port, and announced before the first frame.
    Known,
    /// Anywhere, unknown at first, and moving.
    Moving,
}

/// Up to `many` frames at once, and `polls` polls for two sends.
fn acts(stations: Stations, many: usize, polls: u32) -> impl Strategy<Value = Vec<Act>> {
    let wilds = if stations == Stations::Moving { 4 } else { 0 };
    let to = prop_oneof![
        3 => (0..9usize).prop_map(Address::Port),
        3 => (0..9usize).prop_map(Address::Behind),
        wilds => (0..WILD).prop_map(Address::Wild),
        2 => Just(Address::Broadcast),
    ];
    let from = (0..9usize, 0..3 + wilds, 0..WILD).prop_map(|(port, kind, number)| {
        let from = match kind {
            0 => Address::Port(port),
            1 | 2 => Address::Behind(port),
            _ => Address::Wild(number),
        };
        (port, from)
    });
    let send = (from, to, 1..=many).prop_map(|((port, from), to, many)| Act::Send { port, to, from, many });
    vec(
        prop_oneof![2 => send, polls => (0..3usize, 1..=many).prop_map(|(worker, times)| Act::Poll(worker, times))],
        1..120,
    )
}

/// What arrived: by receiving and sending port, the numbers of the frames in order.
type Arrived = BTreeMap<(usize, usize), Vec<u32>>;

/// Runs the steps. Several workers poll as the steps say, a single one after each frame.
fn run(port_specs: &[PortSpec], workers: u16, memory: RxMemory, stations: Stations, acts: &[Act]) -> (Arrived, Lab) {
    let capacity = LoopbackCapacity { blocks: 64, block_bytes: 1 << 16 };
    let setup = Setup { workers, memory, capacity, ..Setup::default() };
    let mut lab = Lab::with_uplinks(setup, port_specs, &[]);
    let mut number = 0u32;
    let mut send = |lab: &mut Lab, port: usize, to: Mac, from: Mac| {
        let bytes = frame(to, from, 0x88b5, &[&number.to_be_bytes()[..], &[port as u8; 42]].concat());
        number += 1;
        let (bytes, offload) = lab.tagged(port, &bytes, Offload::NONE).unwrap();
        let base = lab.base(port);
        // A guest's own device may be full; then nothing was sent.
        lab.ends[base].stage(&bytes, offload);
        base
    };
    if stations == Stations::Known {
        for port in 0..port_specs.len() {
            for station in [Address::Port(port), Address::Behind(port)] {
                let base = send(&mut lab, port, Address::Broadcast.resolve(1), station.resolve(port_specs.len()));
                lab.ends[base].publish();
                lab.settle();
            }
        }
    }
    let mut arrived = Arrived::new();
    for act in acts {
        match *act {
            Act::Send { port, to, from, many } => {
                let port = port % port_specs.len();
                for sent in 1..=many {
                    let base = send(&mut lab, port, to.resolve(port_specs.len()), from.resolve(port_specs.len()));
                    if workers == 1 || sent == many {
                        lab.ends[base].publish();
                    }
                    if workers == 1 {
                        lab.settle();
                        take(&mut lab, &mut arrived);
                    }
                }
            }
            Act::Poll(worker, times) => {
                let worker = worker % lab.workers.len();
                for _ in 0..times {
                    let _ = lab.workers[worker].poll_once(lab.now);
                }
            }
        }
    }
    lab.settle();
    take(&mut lab, &mut arrived);
    (arrived, lab)
}

fn take(lab: &mut Lab, arrived: &mut Arrived) {
    for (port, frames) in lab.sorted().into_iter().enumerate() {
        for (bytes, _) in frames {
            let number = u32::from_be_bytes(bytes[14..18].try_into().unwrap());
            arrived.entry((port, usize::from(bytes[18]))).or_default().push(number);
        }
    }
}

/// Numbers grow per pair of ports: no frame overtakes another, and none arrives twice.
fn is_in_order(arrived: &Arrived) -> Result<(), TestCaseError> {
    for ((to, from), numbers) in arrived {
        prop_assert!(numbers.is_sorted_by(|one, next| one < next), "from {} to {}: {:?}", from, to, numbers);
    }
    Ok(())
}

/// Every frame that was sent to a device is at the guest behind it, and all counters balance.
fn is_counted(arrived: &Arrived, lab: &Lab) -> Result<(), TestCaseError> {
    lab.check_counters();
    let frames: usize = arrived.values().map(Vec::len).sum();
    prop_assert_eq!(frames as u64, lab.total(|counters| counters.tx_frames.get()));
    Ok(())
}

fn port_specs() -> impl Strategy<Value = Vec<PortSpec>> {
    generators::measured(prop_oneof![generators::port_specs(2), generators::trunks(2)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// While all stations are known, it does not matter who polls when.
    #[test]
    fn workers_that_poll_in_any_order_deliver_what_one_delivers(port_specs in port_specs(), acts in acts(Stations::Known, 8, 3)) {
        let (one, lab) = run(&port_specs, 1, RxMemory::Owned, Stations::Known, &acts);
        is_counted(&one, &lab)?;
        lab.end();
        for (workers, memory) in [(2, RxMemory::Owned), (3, RxMemory::Lent), (3, RxMemory::Owned)] {
            let (these, lab) = run(&port_specs, workers, memory, Stations::Known, &acts);
            is_in_order(&these)?;
            is_counted(&these, &lab)?;
            prop_assert_eq!(&these, &one, "{} workers, {:?}", workers, memory);
            lab.end();
        }
    }

    /// While stations move, a frame may be flooded or not, but no frame overtakes another of its flow.
    #[test]
    fn frames_of_moving_stations_keep_their_order(port_specs in port_specs(), acts in acts(Stations::Moving, 8, 3), workers in 2..4u16) {
        let (arrived, lab) = run(&port_specs, workers, RxMemory::Owned, Stations::Moving, &acts);
        is_in_order(&arrived)?;
        is_counted(&arrived, &lab)?;
        lab.end();
    }

    /// Workers that poll too seldom lose frames, in their devices and in full rings. Each is counted.
    #[test]
    fn frames_that_do_not_fit_are_counted(port_specs in port_specs(), acts in acts(Stations::Moving, 500, 1), workers in 2..4u16) {
        let (arrived, lab) = run(&port_specs, workers, RxMemory::Lent, Stations::Moving, &acts);
        is_in_order(&arrived)?;
        is_counted(&arrived, &lab)?;
        lab.end();
    }
}
