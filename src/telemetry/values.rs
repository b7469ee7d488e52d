//! Counters by name, as they are handed over to the next process.

use std::collections::BTreeMap;

use super::{Counter, PortCounters, WorkerCounters};
use crate::switch::{DropReason, ReservedGroup};

/// Counters by name, without zeros.
pub type Values = BTreeMap<String, u64>;

/// Prefixes of the names of dropped frames and of reserved groups.
const DROPS_IN: &str = "drops_in.";
const DROPS_OUT: &str = "drops_out.";
const RESERVED: &str = "reserved.";

impl PortCounters {
    /// Adds the counters to `values`.
    pub fn add_to(&self, values: &mut Values) {
        self.plain().into_iter().for_each(|(name, counter)| add(values, name.to_owned(), counter.get()));
        for (prefix, drops) in [(DROPS_IN, &self.drops_in), (DROPS_OUT, &self.drops_out)] {
            drops.iter().for_each(|(reason, frames)| add(values, format!("{prefix}{}", reason.name()), frames));
        }
        for (group, frames) in self.reserved_groups.iter() {
            add(values, format!("{RESERVED}{}", group.name()), frames);
        }
    }

    /// New counters with these values. `None`: a name is unknown, so that the counters would not balance.
    pub fn of(values: &Values) -> Option<PortCounters> {
        let counters = PortCounters::default();
        for (name, &value) in values {
            counters.find(name)?.set(value);
        }
        Some(counters)
    }

    fn plain(&self) -> [(&'static str, &Counter); 16] {
        [
            ("rx_frames", &self.rx_frames),
            ("rx_bytes", &self.rx_bytes),
            ("forwarded", &self.forwarded),
            ("flooded", &self.flooded),
            ("copies", &self.copies),
            ("probes", &self.probes),
            ("announcements", &self.announcements),
            ("rx_missed", &self.rx_missed),
            ("tx_frames", &self.tx_frames),
            ("tx_bytes", &self.tx_bytes),
            ("tx_lost", &self.tx_lost),
            ("segmented", &self.segmented),
            ("checksummed", &self.checksummed),
            ("not_flooded", &self.not_flooded),
            ("mirror_copies", &self.mirror_copies),
            ("not_learned", &self.not_learned),
        ]
    }

    fn find(&self, name: &str) -> Option<&Counter> {
        for (prefix, drops) in [(DROPS_IN, &self.drops_in), (DROPS_OUT, &self.drops_out)] {
            if let Some(name) = name.strip_prefix(prefix) {
                let reason = DropReason::ALL.into_iter().find(|reason| reason.name() == name)?;
                return drops.0.get(reason as usize);
            }
        }
        if let Some(name) = name.strip_prefix(RESERVED) {
            let group = ReservedGroup::all().find(|group| group.name() == name)?;
            return self.reserved_groups.0.get(group.index());
        }
        self.plain().into_iter().find(|(plain, _)| *plain == name).map(|(_, counter)| counter)
    }
}

impl WorkerCounters {
    /// Adds what balances the counters of the ports to `values`: counts of removed ports, and of frames between workers.
    pub fn add_to(&self, values: &mut Values) {
        self.balancing().into_iter().for_each(|(name, counter)| add(values, name.to_owned(), counter.get()));
    }

    /// Sets these values. Call it before the worker runs, which is the only one to write them then. Frames that were between
    /// two workers at the end count as dropped. Unknown names are ignored: their counts are in no sum.
    pub fn set_values(&self, values: &Values) {
        for (name, counter) in self.balancing() {
            counter.set(values.get(name).copied().unwrap_or_default());
        }
        let lost = self.peer_tx_frames.get().saturating_sub(self.peer_rx_frames.get());
        self.peer_rx_frames.add(lost);
        self.closed_port_drops.add(lost);
        self.peer_rx_floods.set(self.peer_tx_floods.get());
    }

    /// Counts a port that no longer exists with the removed ones. As [`WorkerCounters::set_values`].
    pub fn add_removed(&self, port: &PortCounters) {
        self.retired.add_removed(port);
    }

    fn balancing(&self) -> [(&'static str, &Counter); 11] {
        let [forwarded, copies, probes, announcements, tx_frames, drops_out] = self.retired.sums();
        [
            ("peer_tx_frames", &self.peer_tx_frames),
            ("peer_rx_frames", &self.peer_rx_frames),
            ("peer_tx_floods", &self.peer_tx_floods),
            ("peer_rx_floods", &self.peer_rx_floods),
            ("closed_port_drops", &self.closed_port_drops),
            ("removed.forwarded", forwarded),
            ("removed.copies", copies),
            ("removed.probes", probes),
            ("removed.announcements", announcements),
            ("removed.tx_frames", tx_frames),
            ("removed.drops_out", drops_out),
        ]
    }
}

/// Adds a value to that of its name. Wraps as counters do.
fn add(values: &mut Values, name: String, value: u64) {
    if value > 0 {
        let sum = values.entry(name).or_default();
        *sum = sum.wrapping_add(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each counter keeps its value, and every one has a name.
    #[test]
    fn counters_keep_their_values() {
        let (before, mut number) = (PortCounters::default(), 0);
        let mut next = || {
            number += 1;
            number
        };
        before.plain().into_iter().for_each(|(_, counter)| counter.set(next()));
        before.drops_in.0.iter().chain(&before.drops_out.0).for_each(|counter| counter.set(next()));
        before.reserved_groups.0.iter().for_each(|counter| counter.set(next()));
        let mut values = Values::new();
        before.add_to(&mut values);
        let after = PortCounters::of(&values).unwrap();
        assert_eq!(format!("{after:?}"), format!("{before:?}"), "all but the epoch, which is zero in both");
        assert_eq!(values.len() as u64, number);
        // Those of two workers add up.
        before.add_to(&mut values);
        assert_eq!(PortCounters::of(&values).unwrap().rx_frames.get(), 2);
        values.insert("drops_in.unheard_of".into(), 1);
        assert!(PortCounters::of(&values).is_none());
    }

    #[test]
    fn frames_between_workers_count_as_dropped() {
        let values = [("peer_tx_frames", 9), ("peer_rx_frames", 7), ("peer_tx_floods", 5), ("removed.tx_frames", 3)];
        let counters = WorkerCounters::default();
        counters.set_values(&values.map(|(name, value)| (name.to_owned(), value)).into());
        assert_eq!((counters.peer_rx_frames.get(), counters.closed_port_drops.get()), (9, 2));
        assert_eq!(counters.peer_rx_floods.get(), 5);
        let mut after = Values::new();
        counters.add_to(&mut after);
        assert_eq!(after["removed.tx_frames"], 3);
    }
}
