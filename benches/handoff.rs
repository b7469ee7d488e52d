//! Handoff between workers: two workers, stepped by hand, with one port each, compared to one worker with both; and the
//! handoff ring alone. Reported per frame; the times of both workers are added, because they share one core here.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

mod running;

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rtrb::RingBuffer;
use vifswitch::device::loopback::{Loopback, RxMemory};
use vifswitch::frame::{BURST, Magazine, Pool};
use vifswitch::switch::PortId;
use vifswitch::wire::Offload;
use vifswitch::worker::peer::{HandoffFrame, HandoffTarget};

use support::lab::{Lab, PortSpec, Setup, frame, mac};

fn pair(workers: u16, memory: RxMemory) -> Lab {
    Lab::new(Setup { workers, memory, ..Setup::default() }, &[PortSpec::new(0, 0), PortSpec::new(0, 1)])
}

/// Total time of all workers for `frames` frames from port 0 to port 1.
fn run(lab: &mut Lab, frames: u64, bytes: &[u8]) -> Duration {
    let before = lab.sum(1, |c| c.tx_frames.get());
    let mut spent = Duration::ZERO;
    let mut done = 0;
    while done < frames {
        for _ in 0..2 {
            (0..BURST).for_each(|_| assert!(lab.ends[0].stage(bytes, Offload::NONE)));
            lab.ends[0].publish();
        }
        spent += running::until_idle(lab);
        lab.ends.iter_mut().for_each(Loopback::discard);
        done += 2 * BURST as u64;
    }
    assert_eq!(lab.sum(1, |c| c.tx_frames.get()) - before, done, "each frame arrives once");
    spent.mul_f64(frames as f64 / done as f64)
}

/// Time of `frames` handoff frames through a ring, in bursts.
fn ring(pool: &'static Pool, frames: u64) -> Duration {
    let mut magazine = Magazine::new(pool);
    let (mut there, mut here) = RingBuffer::<HandoffFrame>::new(1024);
    let address = HandoffTarget::Port(PortId::new(1, 0));
    let mut free_slots: Vec<_> = (0..BURST).map(|_| magazine.frame(&[0; 60], Offload::NONE).unwrap()).collect();
    let bursts = frames.div_ceil(BURST as u64);
    let start = Instant::now();
    for _ in 0..bursts {
        for frame in free_slots.drain(..) {
            there.push(HandoffFrame { frame, target: black_box(address), priority: None }).unwrap();
        }
        while let Ok(handoff) = here.pop() {
            black_box(handoff.target);
            free_slots.push(handoff.frame);
        }
    }
    start.elapsed().mul_f64(frames as f64 / (bursts * BURST as u64) as f64)
}

fn handoff(c: &mut Criterion) {
    let mut group = c.benchmark_group("handoff");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(2));
    for memory in [RxMemory::Owned, RxMemory::Lent] {
        for workers in [1, 2] {
            let mut lab = LazyCell::new(|| pair(workers, memory));
            for len in [64, 1514] {
                let bytes = frame(mac(1), mac(0), 0x88b5, &vec![0; len - 14]);
                let name = BenchmarkId::new(format!("{memory:?}/{len}B"), format!("{workers} workers"));
                group.bench_function(name, |b| b.iter_custom(|frames| run(&mut lab, frames, &bytes)));
            }
        }
    }
    let pool = LazyCell::new(|| Pool::new(256).unwrap());
    group.bench_function("ring", |b| b.iter_custom(|handoffs| ring(*pool, handoffs)));
    group.finish();
}

criterion_group!(benches, handoff);
criterion_main!(benches);
