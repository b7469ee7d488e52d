//! FDB alone: lookup hit, lookup miss, refresh, learning of a new station that evicts an old one, and restoring into an
//! empty table; one by one, and in bursts with prefetch. Stations are accessed at random. Reported per access.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vifswitch::frame::BURST;
use vifswitch::switch::{Fdb, FdbEntry, HashKey, Limits, NetworkId, PortId, Station};
use vifswitch::wire::Mac;

const AGEING: u32 = 300;
const PORTS: usize = 64;

/// An FDB, and the stations to access, in order.
struct Fixture {
    fdb: Fdb,
    limits: Limits,
    known: Vec<Station>,
    unknown: Vec<Station>,
    now: u32,
}

fn station(number: u64) -> Station {
    Station::new(NetworkId::new(1), Mac::from_bits(0x0a_00_00_00_00_00 | number))
}

fn port(number: u64) -> PortId {
    PortId::new((number % PORTS as u64) as u16, 0)
}

/// Port of a station.
fn home(station: Station) -> PortId {
    port(station.mac().bits() & 0xffff_ffff)
}

/// Deterministic pseudo-random numbers.
struct Rng(u64);
impl Rng {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides
    }
}

impl Fixture {
    /// Creates a full FDB.
    fn new(stations: u64) -> Fixture {
        let limits = Limits { network: stations as u32, port: stations as u32 };
        let mut fdb = Fdb::new(stations as u32, HashKey::new([7; 16]));
        for number in 0..stations {
            fdb.learn(station(number), fdb.hash(station(number)), port(number), 1, limits, AGEING);
        }
        assert_eq!(fdb.len() as u64, stations);
        let mut rng = Rng(1);
        let visits = stations.clamp(1 << 12, 1 << 18);
        let mut visits = |first: u64| (0..visits).map(|_| station(first + rng.below(stations))).collect();
        Fixture { known: visits(0), unknown: visits(stations), fdb, limits, now: 1 }
    }

    /// Time of `visits` accesses to these stations, burst by burst. `ahead`: prefetches each burst before its first
    /// access, as a worker does.
    fn visit(
        fdb: &mut Fdb,
        stations: &[Station],
        visits: u64,
        ahead: bool,
        mut visit: impl FnMut(&mut Fdb, Station, u64),
    ) -> Duration {
        let bursts = visits.div_ceil(BURST as u64);
        let start = Instant::now();
        for burst in stations.chunks_exact(BURST).cycle().take(bursts as usize) {
            let mut hashes = [0; BURST];
            for (hash, station) in hashes.iter_mut().zip(burst) {
                *hash = fdb.hash(*station);
                if ahead {
                    fdb.prefetch(*hash);
                }
            }
            for (station, hash) in burst.iter().zip(hashes) {
                visit(fdb, *station, hash);
            }
        }
        start.elapsed().mul_f64(visits as f64 / (bursts * BURST as u64) as f64)
    }

    fn find(&mut self, hit: bool, visits: u64, ahead: bool) -> Duration {
        let (now, mut found) = (self.now, 0u64);
        let stations = if hit { &self.known } else { &self.unknown };
        let spent = Fixture::visit(&mut self.fdb, stations, visits, ahead, |fdb, station, hash| {
            found += u64::from(black_box(fdb.find(station, hash, (now + 1).saturating_sub(AGEING))).is_some());
        });
        assert_eq!(found > 0, hit);
        spent
    }

    /// Each station is refreshed for the first time in a second, or, mostly, once more in it.
    fn refresh(&mut self, visits: u64, ahead: bool) -> Duration {
        let limits = self.limits;
        let mut now = self.now;
        let mut seen = 0;
        let spent = Fixture::visit(&mut self.fdb, &self.known, visits, ahead, |fdb, station, hash| {
            seen += 1;
            now += u32::from(seen % 65_536 == 0);
            black_box(fdb.learn(station, hash, home(station), now, limits, AGEING));
        });
        self.now = now + 1;
        spent
    }

    /// Each station is new and evicts the oldest one of its port.
    fn learn(&mut self, visits: u64, ahead: bool, fresh: &mut Rng) -> Duration {
        let (limits, now, len) = (self.limits, self.now, self.fdb.len());
        let mut spent = Duration::ZERO;
        let mut left = visits;
        while left > 0 {
            let now_visits = left.min(1 << 16);
            left -= now_visits;
            // Unused numbers, so that no station is known.
            let first = (fresh.0 + 1) << 20;
            fresh.0 += 1;
            let stations: Vec<_> =
                (0..(now_visits as usize).next_multiple_of(BURST) as u64).map(|n| station(first + n)).collect();
            spent += Fixture::visit(&mut self.fdb, &stations, now_visits, ahead, |fdb, station, hash| {
                black_box(fdb.learn(station, hash, home(station), now, limits, AGEING));
            });
        }
        assert_eq!(self.fdb.len(), len, "each new station evicts one");
        spent
    }
}

/// Time of restoring `visits` stations into empty tables, which get full.
fn restore(stations: u64, visits: u64, ahead: bool) -> Duration {
    let limits = Limits { network: stations as u32, port: stations as u32 };
    let mut spent = Duration::ZERO;
    for first in (0..visits).step_by(stations as usize) {
        let mut fdb = Fdb::new(stations as u32, HashKey::new([7; 16]));
        let entry = |number| FdbEntry { station: station(number), port: port(number), last_seen: 1 };
        let entries: Vec<_> = (0..stations.min(visits - first)).map(entry).collect();
        let start = Instant::now();
        for (index, &entry) in entries.iter().enumerate() {
            if let (true, Some(ahead)) = (ahead, entries.get(index + BURST)) {
                fdb.prefetch_to_add(fdb.hash(ahead.station));
            }
            assert!(fdb.restore(entry, fdb.hash(entry.station), limits));
        }
        spent += start.elapsed();
    }
    spent
}

fn fdb(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(2));
    for stations in [1 << 10, 1 << 16, 1 << 20] {
        let mut fixture = LazyCell::new(|| Fixture::new(stations));
        let mut learning = LazyCell::new(|| Fixture::new(stations));
        let mut fresh = Rng(1);
        for ahead in [false, true] {
            let name = |what: &str| {
                BenchmarkId::new(
                    format!("{what}/{}", if ahead { "ahead" } else { "plain" }),
                    format!("{stations} stations"),
                )
            };
            group.bench_function(name("hit"), |b| b.iter_custom(|n| fixture.find(true, n, ahead)));
            group.bench_function(name("miss"), |b| b.iter_custom(|n| fixture.find(false, n, ahead)));
            group.bench_function(name("refresh"), |b| b.iter_custom(|n| fixture.refresh(n, ahead)));
            group.bench_function(name("learn"), |b| b.iter_custom(|n| learning.learn(n, ahead, &mut fresh)));
            group.bench_function(name("restore"), |b| b.iter_custom(|n| restore(stations, n, ahead)));
        }
    }
    group.finish();
}

criterion_group!(benches, fdb);
criterion_main!(benches);
