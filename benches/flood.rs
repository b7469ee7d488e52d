//! Flooding by one worker: broadcasts from one port to all others of its network, over copying in-memory devices. Time
//! of the worker alone, per copy. Without storm limits, and with limits of port and VM that pass all frames: the
//! difference is the cost of the limits.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

mod running;

use std::cell::LazyCell;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vifswitch::device::loopback::{Loopback, LoopbackCapacity, RxMemory};
use vifswitch::frame::BURST;
use vifswitch::switch::{ClassLimit, PortPolicer, Rate, StormLimits, VmPolicer};
use vifswitch::wire::{Mac, Offload};

use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// A rate beyond all that is sent.
const PLENTY: Rate = Rate::new(16_000_000_000, u64::MAX);

/// A network with this many ports, optionally with storm limits.
fn network(members: usize, memory: RxMemory, limited: bool) -> Lab {
    let port_specs: Vec<_> = (0..members).map(|port| PortSpec::new(0, port as u32)).collect();
    // Few chunks, which stay in the cache: measures the worker, not memory access.
    let loopback = LoopbackCapacity { blocks: 2, block_bytes: 1 << 17 };
    let mut lab = Lab::new(Setup { capacity: loopback, memory, ..Setup::default() }, &port_specs);
    if limited {
        let limits = Arc::new(StormLimits([Some(ClassLimit::frames(PLENTY)); 3]));
        lab.change_ports(|ports| {
            for port in ports {
                port.storm = PortPolicer { limits: limits.clone(), ..PortPolicer::default() };
                port.vm_policer =
                    Some(VmPolicer { limits: limits.clone(), copies: Some(PLENTY), ..VmPolicer::default() });
            }
        });
    }
    lab
}

/// Time of the worker for `copies` copies.
fn run(lab: &mut Lab, copies: u64, bytes: &[u8]) -> Duration {
    let each = lab.ports.len() as u64 - 1;
    let before = lab.total(|c| c.tx_frames.get());
    let mut spent = Duration::ZERO;
    let mut done = 0;
    while done < copies {
        for _ in 0..BURST {
            assert!(lab.ends[0].stage(bytes, Offload::NONE));
        }
        lab.ends[0].publish();
        spent += running::until_idle(lab);
        lab.ends.iter_mut().for_each(Loopback::discard);
        done += BURST as u64 * each;
    }
    assert_eq!(lab.total(|c| c.tx_frames.get()) - before, done, "each copy arrives");
    spent.mul_f64(copies as f64 / done as f64)
}

fn flood(c: &mut Criterion) {
    let mut group = c.benchmark_group("flood");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(2));
    for (memory, limited) in [(RxMemory::Owned, false), (RxMemory::Owned, true), (RxMemory::Lent, false)] {
        for members in [2, 8, 64, 256] {
            let mut lab = LazyCell::new(|| network(members, memory, limited));
            for len in [64, 1514] {
                let bytes = frame(Mac::BROADCAST, mac(0), 0x88b5, &vec![0; len - 14]);
                let name = BenchmarkId::new(
                    format!("{memory:?}{}/{len}B", if limited { ", limited" } else { "" }),
                    format!("{members} members"),
                );
                group.bench_function(name, |b| b.iter_custom(|copies| run(&mut lab, copies, &bytes)));
            }
        }
    }
    group.finish();
}

criterion_group!(benches, flood);
criterion_main!(benches);
