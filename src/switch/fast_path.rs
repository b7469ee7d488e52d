//! Fast path for known unicast.
//!
//! [`Decider::decide`] defines the policy. The fast path gives the same verdict for frames that the FDB alone
//! decides and that need no write to it; the FDB also holds copies of pinned stations.

use super::decide::Decider;
use super::fdb::PERMANENT;
use super::lookup_key::LookupKey;
use super::{MAX_PORTS, Verdict};
use crate::frame::BURST;

/// Mask of a whole burst.
const ALL: u64 = u64::MAX;
const _: () = assert!(BURST == u64::BITS as usize);

impl Decider<'_> {
    /// Decides the lookup keys of a burst, with the result of deciding them one by one.
    #[inline(always)]
    pub(super) fn decide_all(&mut self, keys: &[LookupKey], verdicts: &mut [Verdict]) {
        let mut left = self.fast_path(keys, verdicts);
        while left != 0 {
            let (next, at) = (left.trailing_zeros() + 1, left.trailing_zeros() as usize);
            left &= left - 1;
            let reported = self.updates.len();
            self.decide_one(&keys[at], at, &mut verdicts[at]);
            if self.updates.len() > reported {
                // An entry was added or moved and may have replaced another: earlier lookups may be stale.
                left = ALL.checked_shl(next).unwrap_or(0) & ALL >> (BURST - keys.len());
            }
        }
    }

    #[inline(never)] // keeps register pressure off the fast path
    fn decide_one(&mut self, key: &LookupKey, index: usize, verdict: &mut Verdict) {
        if !key.is_none() {
            *verdict = self.decide(key, index);
        }
    }

    /// Decides frames whose source is in its home bucket at this port with a current timestamp, and whose
    /// destination is in its home bucket at another port. Returns the mask of the other frames, and prefetches
    /// their further buckets.
    #[inline(never)] // to limit register pressure
    fn fast_path(&self, keys: &[LookupKey], verdicts: &mut [Verdict]) -> u64 {
        let (id, oldest, lines, open) = (self.port.config.id, self.oldest, self.fdb.lines(), self.config.open());
        // If each source must be checked, only entries pinned to the port qualify.
        let since = if self.port.checks_source { PERMANENT } else { self.now_secs };
        let mut left = 0;
        for (index, (key, verdict)) in keys.iter().zip(verdicts).enumerate() {
            // `LookupKey::NONE` has a source that is never in the FDB. Groups and invalid sources are not in it
            // either.
            let is_known =
                lines.lookup_home(key.source, key.source_hash).is_some_and(|source| source.is_current(id, since));
            if is_known
                && let Some(entry) = lines.lookup_home(key.destination, key.destination_hash)
                && let Some(to) = entry.port_since(oldest)
                && to != id
                && open[to.index() % MAX_PORTS] == to
            {
                *verdict = Verdict::To(to);
            } else {
                left |= 1 << index;
                self.prefetch_overflow(key);
            }
        }
        left
    }

    /// Prefetches the overflow buckets of a key.
    #[cold]
    #[inline(never)]
    fn prefetch_overflow(&self, key: &LookupKey) {
        for (station, hash) in [(key.source, key.source_hash), (key.destination, key.destination_hash)] {
            if !station.mac().is_group() && self.fdb.lines().lookup_home(station, hash).is_none() {
                self.fdb.prefetch_behind(hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{BURST, Batch, Magazine, Pool};
    use crate::switch::lookup_key::parse;
    use crate::switch::{
        DropReason, FdbEntry, ForwardingConfig, HashKey, Limits, NetworkConfig, NetworkId, PortConfig, PortId,
        ReservedMask, Security, Station, Switch, VmId,
    };
    use crate::time::MonoTime;
    use crate::wire::{Mac, Offload, ProbeKey};

    static POOL: LazyLock<&Pool> = LazyLock::new(|| Pool::new(512).unwrap());

    /// Ports 0 to 3, of which 2 and 3 have one owner, and stations dampened at some of them.
    fn config(picky: bool, ports: u16, dampened: &[(u64, u16)]) -> Arc<ForwardingConfig> {
        let network = NetworkConfig {
            id: NetworkId::new(0),
            mtu: 1500,
            ageing: 300,
            limits: Limits { network: 12, port: 5 },
            anti_spoof: true,
            reserved: ReservedMask::VM_DEFAULT,
        };
        let port = |index: u16| PortConfig {
            security: if picky { Security::Mac([mac(2)].into()) } else { Security::Off },
            worker: Some(0),
            ..PortConfig::vif(
                PortId::new(index, 0),
                NetworkId::new(0),
                VmId(u32::from(index.min(2))),
                mac(100 + u64::from(index)),
            )
        };
        let mut config =
            ForwardingConfig::compile(HashKey::new([5; 16]), vec![network], (0..ports).map(port).collect(), Vec::new());
        let dampened =
            dampened.iter().map(|&(number, port)| (Station::new(NetworkId::new(0), mac(number)), PortId::new(port, 0)));
        config.dampen(dampened);
        Arc::new(config)
    }

    fn mac(number: u64) -> Mac {
        Mac::from_bits(0x0200_0000_0000 | number)
    }

    /// Learned, unknown, pinned and invalid addresses.
    fn address() -> impl Strategy<Value = Mac> {
        prop_oneof![
            8 => (0u64..14).prop_map(mac),
            4 => (100u64..104).prop_map(mac),
            1 => Just(Mac::BROADCAST),
            1 => Just(Mac::from_bits(0x0180_c200_0001)),
            1 => Just(Mac::ZERO),
        ]
    }

    /// Verdicts of a burst from port 0.
    fn decider(switch: &mut Switch, batch: &Batch, now_secs: u32, is_short: bool) -> Vec<Verdict> {
        let Switch { config, fdb, updates, flap_detector: flaps, pin_reports: reports, keys, .. } = switch;
        let port = config.compiled_port(PortId::new(0, 0)).unwrap();
        let mut verdicts = [Verdict::Drop(DropReason::PortClosed); BURST];
        let keys = &mut keys[..batch.len()];
        let instant = MonoTime::from_secs(now_secs.into());
        parse(config, port, batch, instant, &mut verdicts, keys);
        let mut decider = Decider {
            config,
            port,
            batch,
            fdb,
            updates,
            flaps,
            reports,
            now: instant,
            now_secs,
            oldest: now_secs - 300,
            not_learned: false,
        };
        if is_short {
            decider.decide_all(keys, &mut verdicts);
        } else {
            for (index, (key, verdict)) in keys.iter().zip(&mut verdicts).enumerate() {
                decider.decide_one(key, index, verdict);
            }
        }
        verdicts[..keys.len()].to_vec()
    }

    /// The second frame of the burst is for the station that the first one has moved to its own port.
    #[test]
    fn a_station_that_moves_within_a_burst_is_no_longer_at_its_old_port() {
        let mut cache = Magazine::new(*POOL);
        let mut switch = Switch::new(16, HashKey::new([5; 16]), ProbeKey::new([6; 16]).into());
        switch.replace_config(config(false, 4, &[]), MonoTime::from_secs(1));
        for (number, port, last_seen) in [(1, 0, 1001), (2, 1, 1000)] {
            let station = Station::new(NetworkId::new(0), mac(number));
            switch.restore(&[FdbEntry { station, port: PortId::new(port, 0), last_seen }]);
        }
        let mut batch = Batch::new();
        for (to, from) in [(Mac::BROADCAST, mac(2)), (mac(2), mac(1))] {
            let bytes = [&to.octets()[..], &from.octets(), &[0x88, 0xb5], &[0; 46]].concat();
            batch.push(cache.frame(&bytes, Offload::NONE).unwrap());
        }
        assert_eq!(decider(&mut switch, &batch, 1001, true)[1], Verdict::Drop(DropReason::Hairpin));
        batch.clear(&mut cache);
    }

    proptest! {
        /// Compares the fast path with the slow path for each frame.
        #[test]
        fn the_fast_path_agrees_with_the_slow_path(
            entry in vec((0u64..14, 0u16..4, 600u32..1002), 0..14),
            bursts in vec(vec((address(), address(), 10usize..70), 0..BURST), 1..4),
            picky: bool,
            dampened in vec((0u64..14, 0u16..3), 0..4),
        ) {
            let mut results = [Vec::new(), Vec::new()];
            for (is_short, results) in [true, false].into_iter().zip(&mut results) {
                let mut cache = Magazine::new(*POOL);
                let mut switch = Switch::new(16, HashKey::new([5; 16]), ProbeKey::new([6; 16]).into());
                switch.replace_config(config(picky, 4, &[]), MonoTime::from_secs(1));
                for &(number, port, last_seen) in &entry {
                    let station = Station::new(NetworkId::new(0), mac(number));
                    switch.restore(&[FdbEntry { station, port: PortId::new(port, 0), last_seen }]);
                }
                // Stations of the last port are no longer valid.
                switch.replace_config(config(picky, 3, &dampened), MonoTime::from_secs(1));
                for (now, frames) in (1000..).zip(&bursts) {
                    let mut batch = Batch::new();
                    for (to, from, len) in frames {
                        let bytes = [&to.octets()[..], &from.octets(), &[0x88, 0xb5], &[0; 60]].concat();
                        batch.push(cache.frame(&bytes[..*len], Offload::NONE).unwrap());
                    }
                    let verdicts = decider(&mut switch, &batch, now, is_short);
                    let mut page = Vec::with_capacity(20);
                    switch.fdb().page(0, &mut page);
                    results.push((verdicts, page, switch.updates().collect::<Vec<_>>()));
                    batch.clear(&mut cache);
                }
            }
            prop_assert_eq!(&results[0], &results[1]);
        }
    }
}
