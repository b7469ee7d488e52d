//! A whole worker over cables that copy each frame in and out: known unicast, 64 and 1514 bytes, 8
//! and 64 ports, 1 k to 1 M stations that are visited at random. The time is that of the worker
//! alone; filling and emptying the cables is not counted. Reported per frame.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vifswitch::device::memory::{Capacity, End};
use vifswitch::switch::Limits;
use vifswitch::wire::{Mac, Offload};

#[path = "../tests/common/mod.rs"]
mod common;
use common::{Lab, Plug, Setup, frame};

/// Frames in each cable between two refills.
const FILL: usize = 64;

fn station(number: usize) -> Mac {
    Mac::from_bits(0x0a_00_00_00_00_00 | number as u64)
}

/// Numbers that look random, the same each time.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % sides
    }
}

fn learned_lab(ports: usize, stations: usize) -> Lab {
    let limits = Limits { network: stations as u32 + 1, port: stations as u32 + 1 };
    // Few blocks, used again and again: what is measured is the worker, not memory that nobody has touched.
    let cable = Capacity { blocks: ports / 2 + 4, block_bytes: 1 << 17 };
    let setup = Setup { cable, slots: 16384, stations: stations as u32, limits, ..Setup::default() };
    let plugs: Vec<_> = (0..ports).map(|port| Plug::new(0, port as u32)).collect();
    let mut lab = Lab::new(setup, &plugs);
    for number in 0..stations {
        // to the sender itself, so that nothing is flooded
        let bytes = frame(station(number), station(number), 0x88b5, &[0; 46]);
        while !lab.send(number % ports, &bytes) {
            lab.settle();
            lab.ends.iter_mut().for_each(End::discard);
        }
    }
    lab.settle();
    assert_eq!(lab.workers[0].switch().fdb().len(), stations);
    for port in 0..ports {
        lab.ends[port].discard();
    }
    lab
}

/// Nanoseconds of the worker for `frames` frames between random stations.
fn run(lab: &mut Lab, stations: usize, len: usize, frames: u64, dice: &mut Dice) -> Duration {
    let ports = lab.ports.len();
    let payload = vec![0; len - 14];
    let mut spent = Duration::ZERO;
    let (mut done, mut counted) = (0, lab.total(|c| c.tx_frames.get()));
    let begin = counted;
    while done < frames {
        for port in 0..ports {
            for _ in 0..FILL {
                let source = dice.roll(stations / ports) * ports + port;
                let mut to = dice.roll(stations);
                if to % ports == port {
                    to = (to + 1) % stations;
                }
                assert!(lab.ends[port].stage(&frame(station(to), station(source), 0x88b5, &payload), Offload::NONE));
            }
            lab.ends[port].publish();
        }
        let now = lab.now;
        let start = Instant::now();
        while black_box(lab.workers[0].breathe(black_box(now))).done > 0 {}
        spent += start.elapsed();
        for end in &mut lab.ends {
            end.discard();
        }
        done += (ports * FILL) as u64;
        counted = lab.total(|c| c.tx_frames.get());
    }
    assert_eq!(counted - begin, done, "each frame arrives once");
    spent.mul_f64(frames as f64 / done as f64)
}

fn breath(c: &mut Criterion) {
    let mut group = c.benchmark_group("breath");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(3));
    for (ports, stations, len) in [
        (8, 16, 64),
        (8, 1_000, 64),
        (8, 65_536, 64),
        (8, 1_000_000, 64),
        (64, 1_000, 64),
        (64, 65_536, 64),
        (64, 1_000_000, 64),
        (8, 1_000, 1514),
        (64, 1_000, 1514),
    ] {
        let stations = stations / ports * ports;
        let mut lab = LazyCell::new(|| learned_lab(ports, stations));
        let mut dice = Dice(1);
        let name = BenchmarkId::new(format!("{len}B/{ports} ports"), format!("{stations} stations"));
        group.bench_function(name, |b| b.iter_custom(|frames| run(&mut lab, stations, len, frames, &mut dice)));
    }
    group.finish();
}

criterion_group!(benches, breath);
criterion_main!(benches);
