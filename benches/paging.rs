//! Effect of control requests on the data path: one worker over in-memory devices, known unicast between 8 ports, 64
//! bytes, a million FDB entries. Alone, and while control on another core reads the whole FDB repeatedly, as `show fdb`
//! does. Alternating in one run; the ratio counts.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vifswitch::control::workers::WorkerHandles;
use vifswitch::device::loopback::{Loopback, LoopbackCapacity};
use vifswitch::switch::Limits;
use vifswitch::sys::cores;
use vifswitch::wire::{Mac, Offload};

use support::lab::{Lab, PortSpec, Setup, frame};

const PORTS: usize = 8;
const STATIONS: usize = 1 << 20;
/// Frames per device between two refills.
const FILL: usize = 64;
/// Rounds of each kind, and the worker's time in one.
const ROUNDS: usize = 31;
const ROUND_TIME: Duration = Duration::from_millis(100);

fn station(number: usize) -> Mac {
    Mac::from_bits(0x0a_00_00_00_00_00 | number as u64)
}

fn learned_lab() -> Lab {
    let limits = Limits { network: STATIONS as u32 + 1, port: STATIONS as u32 + 1 };
    let loopback = LoopbackCapacity { blocks: PORTS / 2 + 4, block_bytes: 1 << 17 };
    let setup = Setup { capacity: loopback, slots: 16384, stations: STATIONS as u32, limits, ..Setup::default() };
    let port_specs: Vec<_> = (0..PORTS).map(|port| PortSpec::new(0, port as u32)).collect();
    let mut lab = Lab::new(setup, &port_specs);
    for number in 0..STATIONS {
        // To itself, so that it is not flooded.
        let bytes = frame(station(number), station(number), 0x88b5, &[0; 46]);
        while !lab.send(number % PORTS, &bytes) {
            lab.settle();
            lab.ends.iter_mut().for_each(Loopback::discard);
        }
    }
    lab.settle();
    lab.ends.iter_mut().for_each(Loopback::discard);
    assert_eq!(lab.workers[0].switch().fdb().len(), STATIONS);
    lab
}

/// Time of the worker per frame in nanoseconds, over a round, without filling and emptying the devices.
fn round(lab: &mut Lab, next: &mut usize) -> f64 {
    let (mut spent, mut frames) = (Duration::ZERO, 0);
    while spent < ROUND_TIME {
        for port in 0..PORTS {
            for _ in 0..FILL {
                // A stride coprime to the number of stations visits all of them, in an order that defeats prefetching.
                *next = (*next + 611_953 * PORTS) % STATIONS;
                let other = *next * 5 % STATIONS;
                let (source, to) = (station(*next + port), station(other + (port + 3) % PORTS));
                assert!(lab.ends[port].stage(&frame(to, source, 0x88b5, &[0; 50]), Offload::NONE));
            }
            lab.ends[port].publish();
        }
        let begin = Instant::now();
        // One iteration receives all frames and executes a pending command: the maximum rate of commands.
        let work = lab.workers[0].poll_once(lab.now);
        let time = begin.elapsed();
        lab.now = lab.now + time;
        spent += time;
        assert!(work.done >= PORTS * FILL);
        lab.ends.iter_mut().for_each(Loopback::discard);
        frames += PORTS * FILL;
    }
    spent.as_nanos() as f64 / frames as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let allowed = cores::allowed();
    let [.., first, second] = allowed[..] else {
        eprintln!("skipped: needs two cores, one for the worker and one for control");
        return;
    };
    let mut lab = learned_lab();
    // Frames that the FDB was learned from were not transmitted.
    let counted = |lab: &Lab| (lab.total(|c| c.rx_frames.get()), lab.total(|c| c.forwarded.get()));
    let (received, forwarded) = counted(&lab);
    let workers = WorkerHandles::new(lab.mailboxes.clone(), lab.counters.clone());
    let [paging, asking, done] = [false; 3].map(AtomicBool::new);
    let tables = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cores::pin(first);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            while !done.load(Ordering::SeqCst) {
                asking.store(true, Ordering::SeqCst);
                if paging.load(Ordering::SeqCst) {
                    assert_eq!(runtime.block_on(workers.stations()).unwrap().len(), STATIONS);
                    tables.fetch_add(1, Ordering::Relaxed);
                }
                asking.store(false, Ordering::SeqCst);
                std::hint::spin_loop();
            }
        });
        cores::pin(second);
        let (mut alone, mut paged, mut next) = (Vec::new(), Vec::new(), 0);
        round(&mut lab, &mut next);
        for _ in 0..ROUNDS {
            alone.push(round(&mut lab, &mut next));
            paging.store(true, Ordering::SeqCst);
            paged.push(round(&mut lab, &mut next));
            paging.store(false, Ordering::SeqCst);
            // Pending requests are answered before the next round.
            while asking.load(Ordering::SeqCst) {
                lab.step();
            }
        }
        done.store(true, Ordering::SeqCst);
        let (received, forwarded) = (counted(&lab).0 - received, counted(&lab).1 - forwarded);
        assert_eq!(received, forwarded, "nothing is flooded or dropped");
        let ratios = alone.iter().zip(&paged).map(|(alone, paged)| paged / alone).collect();
        let (alone, paged) = (median(alone), median(paged));
        println!("alone {alone:.1} ns per frame, while the FDB is read {paged:.1} ns ({tables:?} reads)");
        println!("ratio {:.3}, median of {ROUNDS} pairs", median(ratios));
    });
}
