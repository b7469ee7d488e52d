//! A whole worker over copying in-memory devices: known unicast, 64 and 1514 bytes, 8 and 64 ports, 1 k to 1 M stations
//! at random. Time of the worker alone, without filling and emptying the devices, per frame; it reads the clock as it does
//! when it runs. UDP datagrams between ports with each kind of port security: the difference is its cost. And bursts of 1 to
//! 64 frames at ports as VMs have them by default, with port security and storm limits.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

mod running;

use std::cell::LazyCell;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vifswitch::device::loopback::{Loopback, LoopbackCapacity};
use vifswitch::switch::{Binding, Limits, PortPolicer, Security, StormLimits, VmPolicer};
use vifswitch::wire::{Mac, Offload, Prefix};

use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// Frames per device between two refills.
const FILL: usize = 64;

fn station(number: usize) -> Mac {
    Mac::from_bits(0x0a_00_00_00_00_00 | number as u64)
}

/// Deterministic pseudo-random numbers.
struct Rng(u64);
impl Rng {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % sides
    }
}

fn learned_lab(ports: usize, stations: usize) -> Lab {
    let limits = Limits { network: stations as u32 + 1, port: stations as u32 + 1 };
    // Few chunks, which stay in the cache: measures the worker, not memory access.
    let loopback = LoopbackCapacity { blocks: ports / 2 + 4, block_bytes: 1 << 17 };
    let setup = Setup { capacity: loopback, slots: 16384, stations: stations as u32, limits, ..Setup::default() };
    let port_specs: Vec<_> = (0..ports).map(|port| PortSpec::new(0, port as u32)).collect();
    let mut lab = Lab::new(setup, &port_specs);
    for number in 0..stations {
        // To itself, so that it is not flooded.
        let bytes = frame(station(number), station(number), 0x88b5, &[0; 46]);
        while !lab.send(number % ports, &bytes) {
            lab.settle();
            lab.ends.iter_mut().for_each(Loopback::discard);
        }
    }
    lab.settle();
    assert_eq!(lab.workers[0].switch().fdb().len(), stations);
    for port in 0..ports {
        lab.ends[port].discard();
    }
    lab
}

/// Time of the worker for `frames` frames between random stations.
fn run(lab: &mut Lab, stations: usize, len: usize, frames: u64, rng: &mut Rng) -> Duration {
    let ports = lab.ports.len();
    let payload = vec![0; len - 14];
    let mut spent = Duration::ZERO;
    let (mut done, mut counted) = (0, lab.total(|c| c.tx_frames.get()));
    let begin = counted;
    while done < frames {
        for port in 0..ports {
            for _ in 0..FILL {
                let source = rng.below(stations / ports) * ports + port;
                let mut to = rng.below(stations);
                if to % ports == port {
                    to = (to + 1) % stations;
                }
                assert!(lab.ends[port].stage(&frame(station(to), station(source), 0x88b5, &payload), Offload::NONE));
            }
            lab.ends[port].publish();
        }
        spent += running::until_idle(lab);
        for end in &mut lab.ends {
            end.discard();
        }
        done += (ports * FILL) as u64;
        counted = lab.total(|c| c.tx_frames.get());
    }
    assert_eq!(counted - begin, done, "each frame arrives once");
    spent.mul_f64(frames as f64 / done as f64)
}

fn poll_once(c: &mut Criterion) {
    let mut group = c.benchmark_group("poll_once");
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
        let mut rng = Rng(1);
        let name = BenchmarkId::new(format!("{len}B/{ports} ports"), format!("{stations} stations"));
        group.bench_function(name, |b| b.iter_custom(|frames| run(&mut lab, stations, len, frames, &mut rng)));
    }
    group.finish();
}

/// Additional bindings per port in the case "many".
const MANY: usize = 300;

/// IP address of port `index`.
fn ip(index: usize) -> [u8; 4] {
    [10, 0, (index / 256) as u8, (index % 256) as u8]
}

/// Ports with security off, own MAC, one binding, or that and many more bindings.
fn secured_lab(ports: usize, mode: &str) -> Lab {
    let loopback = LoopbackCapacity { blocks: ports / 2 + 4, block_bytes: 1 << 17 };
    let bind = |mac, ip: [u8; 4]| Binding { mac, ip: Some(Prefix::host(ip.into())) };
    let security = |port: usize| match mode {
        "off" => Security::Off,
        "mac" => Security::Mac([].into()),
        "mac+ip" => Security::MacIp([bind(mac(port), ip(port))].into()),
        _ => {
            let more = (0..MANY)
                .map(|n| bind(if n % 2 == 0 { mac(port) } else { station(port * MANY + n) }, [10, 9, 1, 2 * n as u8]));
            Security::MacIp(more.chain([bind(mac(port), ip(port))]).collect())
        }
    };
    let port_specs: Vec<_> =
        (0..ports).map(|port| PortSpec { security: security(port), ..PortSpec::new(0, port as u32) }).collect();
    Lab::new(Setup { capacity: loopback, slots: 16384, ..Setup::default() }, &port_specs)
}

/// Ports with security by MAC and the storm limits of VMs.
fn limited_lab(ports: usize) -> Lab {
    let mut lab = secured_lab(ports, "mac");
    lab.change_ports(|ports| {
        for port in ports {
            port.storm = PortPolicer { limits: StormLimits::VM_DEFAULT.into(), ..PortPolicer::default() };
            port.vm_policer = Some(VmPolicer { limits: StormLimits::VM_DEFAULT.into(), ..VmPolicer::default() });
        }
    });
    lab
}

/// Time of the worker for `frames` datagrams of UDP over IPv4, 64 bytes, from each port to the next, `fill` at a time.
fn run_secured(lab: &mut Lab, fill: usize, frames: u64) -> Duration {
    let ports = lab.ports.len();
    let datagram = |port: usize| {
        let mut bytes = vec![0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0];
        bytes.extend([ip(port), ip((port + 1) % ports)].concat());
        bytes.resize(50, 0);
        frame(mac((port + 1) % ports), mac(port), 0x0800, &bytes)
    };
    let datagrams: Vec<_> = (0..ports).map(datagram).collect();
    let (mut spent, mut done) = (Duration::ZERO, 0);
    let begin = lab.total(|c| c.tx_frames.get());
    while done < frames {
        for (end, bytes) in lab.ends.iter_mut().zip(&datagrams) {
            (0..fill).for_each(|_| assert!(end.stage(bytes, Offload::NONE)));
            end.publish();
        }
        spent += running::until_idle(lab);
        lab.ends.iter_mut().for_each(Loopback::discard);
        done += (ports * fill) as u64;
    }
    assert_eq!(lab.total(|c| c.tx_frames.get()) - begin, done, "each frame arrives once");
    spent.mul_f64(frames as f64 / done as f64)
}

/// Cost of port security: the same datagrams between ports with each kind.
fn security(c: &mut Criterion) {
    let mut group = c.benchmark_group("security");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(3));
    for ports in [8, 64] {
        for mode in ["off", "mac", "mac+ip", "mac+ip, many"] {
            let mut lab = LazyCell::new(|| secured_lab(ports, mode));
            let name = BenchmarkId::new(format!("{ports} ports"), mode);
            group.bench_function(name, |b| b.iter_custom(|frames| run_secured(&mut lab, FILL, frames)));
        }
    }
    group.finish();
}

/// Cost of a frame by the length of the bursts in which frames arrive at each port.
fn bursts(c: &mut Criterion) {
    let mut group = c.benchmark_group("bursts");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(3));
    for ports in [2, 8, 64] {
        for fill in [1, 4, 16, 64] {
            let mut lab = LazyCell::new(|| limited_lab(ports));
            let name = BenchmarkId::new(format!("{ports} ports"), fill);
            group.bench_function(name, |b| b.iter_custom(|frames| run_secured(&mut lab, fill, frames)));
        }
    }
    group.finish();
}

criterion_group!(benches, poll_once, security, bursts);
criterion_main!(benches);
