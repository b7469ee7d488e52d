//! Law 1: what comes in goes out, or dies with a reason; and every slot comes home.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::device::fault::{Fault, Faults};
use vifswitch::device::memory::{Capacity, Memory};
use vifswitch::wire::Offload;

use crate::common::{Lab, Plug, Setup, frame, mac};
use crate::scenery::{self, Sketch, any_frame, header};

#[derive(Debug, Clone)]
enum Act {
    Send(Sketch),
    Step,
    Pass(u64),
    /// The guest reads what has arrived for it, or else its cable fills up.
    Read(usize),
    Flip(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        20 => any_frame().prop_map(Act::Send),
        6 => Just(Act::Step),
        1 => (0..400u64).prop_map(Act::Pass),
        3 => (0..9usize).prop_map(Act::Read),
        1 => (0..9usize).prop_map(Act::Flip),
    ];
    vec(act, 20..200)
}

fn faults() -> impl Strategy<Value = Option<Faults>> {
    let some = (any::<u64>(), 0..500u32, 0..500u32, proptest::option::weighted(0.3, 0..60u64))
        .prop_map(|(seed, lose, full, die_after)| Some(Faults { seed, lose, full, die_after }));
    prop_oneof![2 => Just(None), 1 => some]
}

/// How many frames a super-frame stands for.
fn count(bytes: &[u8], offload: &Offload) -> u64 {
    offload.segmentation(bytes, bytes.len() as u32).map_or(1, |parts| u64::from(parts.frames))
}

/// What the guest at `port` has received, in frames.
fn read(lab: &mut Lab, port: usize) -> u64 {
    std::iter::from_fn(|| lab.ends[port].take()).map(|(bytes, offload)| count(&bytes, &offload)).sum()
}

struct Case {
    plugs: Vec<Plug>,
    faults: Vec<Option<Faults>>,
    setup: Setup,
    acts: Vec<Act>,
}

fn run(case: Case) {
    let Case { plugs, faults, setup, acts } = case;
    let ports = plugs.len();
    let lost: Vec<Arc<AtomicU64>> = (0..ports).map(|_| Arc::default()).collect();
    let mut losses = lost.clone();
    // A frame may wait in a cable for a slot only where there are few.
    let plenty = setup.slots >= 2048;
    let mut lab = Lab::with_devices(setup, &plugs, |port, end| match faults[port] {
        None => Box::new(end),
        Some(faults) => {
            let device = Fault::new(end, faults);
            losses[port] = device.lost();
            Box::new(device)
        }
    });
    let mut received = vec![0; ports];
    let mut offered = vec![0; ports];
    for act in acts {
        match act {
            Act::Send(sketch) => {
                let (port, bytes) = (sketch.port(ports), sketch.bytes(ports));
                if lab.ends[port].send(&bytes, sketch.offload) {
                    offered[port] += 1;
                }
            }
            Act::Step => _ = lab.step(),
            Act::Pass(seconds) => lab.pass(Duration::from_secs(seconds)),
            Act::Read(port) => received[port % ports] += read(&mut lab, port % ports),
            Act::Flip(port) => {
                let port = lab.ports[port % ports];
                lab.change_ports(|all| {
                    all.iter_mut().filter(|rules| rules.id == port).for_each(|rules| rules.admin_up ^= true);
                });
            }
        }
    }
    lab.settle();
    lab.check_ledger();
    for port in 0..ports {
        received[port] += read(&mut lab, port);
        assert_eq!(received[port], lab.sum(port, |c| c.tx_frames.get()), "what port {port} was sent, it got");
        // Super-frames count for more than they are offered as.
        let arrived = lab.sum(port, |c| c.rx_frames.get()) + losses[port].load(Ordering::Relaxed);
        let dies = faults[port].is_some_and(|faults| faults.die_after.is_some());
        assert!(!plenty || dies || arrived >= offered[port], "port {port}: {arrived} of {}", offered[port]);
    }
    lab.end();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn frames_and_slots_are_conserved(
        plugs in scenery::plugs(3),
        faults in vec(faults(), 9),
        workers in prop::sample::select(vec![1u16, 2, 3]),
        memory in scenery::memory(),
        blocks in prop::sample::select(vec![2usize, 8, 256]),
        block_bytes in prop::sample::select(vec![9000usize, 1 << 17]),
        slots in prop::sample::select(vec![64u32, 300, 2048]),
        mtu in prop::sample::select(vec![1500u16, 9000, 65_000]),
        acts in acts(),
    ) {
        let cable = Capacity { blocks, block_bytes };
        let setup = Setup { workers, slots, cable, memory, mtu, stations: 16, ..Setup::default() };
        run(Case { plugs, faults, setup, acts });
    }
}

/// A super-frame whose headers begin far behind its start counts as the same number of frames
/// wherever its bytes lie: in one piece, or in slots that each hold a part of it.
#[test]
fn a_lie_about_headers_is_counted_alike_everywhere() {
    for start in (2500..4500).step_by(50) {
        let offload = header(1, 1, 1000, start, 16);
        let mut verdicts = Vec::new();
        for (workers, memory) in [(1, Memory::Lent), (2, Memory::Lent), (1, Memory::Owned), (2, Memory::Owned)] {
            let setup = Setup { workers, memory, mtu: 9000, ..Setup::default() };
            let mut lab = Lab::new(setup, &[Plug::new(0, 0), Plug::new(0, 1)]);
            assert!(lab.ends[0].send(&frame(mac(1), mac(0), 0x88b5, &[0x50; 20_000]), offload));
            lab.settle();
            verdicts.push((lab.sum(0, |c| c.rx_frames.get()), lab.sum(1, |c| c.tx_frames.get())));
            lab.check_ledger();
            lab.end();
        }
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "headers from {start} on: {verdicts:?}");
    }
}
