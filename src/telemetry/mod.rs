//! Counters of ports and workers, and their exposition; and what limits the reports of each source.
//!
//! One thread writes a [`Counter`]; any thread reads it. Reading resets nothing. Each worker has its own
//! counters of a port, since several workers may receive and transmit its frames; control adds them up.
//!
//! # Counter audit
//!
//! The counters of all ports balance (a frame counts as [`Frame::count`](crate::frame::Frame::count)
//! frames):
//!
//! * per port, each received frame is forwarded, flooded, or dropped for a reason:
//!   `rx = forwarded + flooded + Σ drops in`;
//! * over all ports, each frame for egress is transmitted, or dropped for a reason:
//!   `Σ (forwarded + copies + probes + announcements) = Σ (tx + Σ drops out)`, except frames in flight
//!   between workers.
//!
//! [`audit`] checks this on a running switch.

#![forbid(unsafe_code)]

pub mod audit;
pub mod exposition;
pub mod source_limiter;
pub mod values;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::switch::{DropReason, ReservedGroup};

/// Log lines lost because standard error was full or failed. Global, like the log.
pub static LOG_LINES_LOST: AtomicU64 = AtomicU64::new(0);

/// Log messages left out because their source had too many.
pub static LOG_LINES_LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// A counter with one writer and any number of readers: a relaxed load and store, no locked add.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the thread that owns the counter may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets the value; for gauges.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The current value; it may lag behind the writer.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Dropped frames by reason.
#[derive(Debug)]
pub struct Drops([Counter; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Drops {
        Drops(std::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    /// Counts `frames` dropped for `reason`.
    #[inline]
    pub fn add(&self, reason: DropReason, frames: u64) {
        self.0[reason as usize].add(frames);
    }

    /// Frames dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }

    /// Frames dropped per reason, without zeros.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.get(reason))).filter(|&(_, frames)| frames > 0)
    }

    /// Frames dropped in total.
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, frames)| frames).sum()
    }
}

/// Dropped frames to reserved group addresses, by address.
#[derive(Debug, Default)]
pub struct ReservedGroups([Counter; ReservedGroup::COUNT]);

impl ReservedGroups {
    /// Counts `frames` to this address.
    pub fn add(&self, group: ReservedGroup, frames: u64) {
        self.0[group.index()].add(frames);
    }

    /// Frames dropped per address, without zeros.
    pub fn iter(&self) -> impl Iterator<Item = (ReservedGroup, u64)> + '_ {
        ReservedGroup::all().map(|group| (group, self.0[group.index()].get())).filter(|&(_, frames)| frames > 0)
    }
}

/// One worker's counters of one port. *In*: received from the port. *Out*: for transmission to it.
#[derive(Debug, Default)]
#[repr(align(128))] // two workers never write to one pair of cache lines
pub struct PortCounters {
    /// Frames received.
    pub rx_frames: Counter,
    /// Bytes received, without frame check sequence.
    pub rx_bytes: Counter,
    /// Received frames forwarded to one port.
    pub forwarded: Counter,
    /// Received frames flooded to the network.
    pub flooded: Counter,
    /// Copies of received frames: of flooded ones, and of others for promiscuous ports.
    pub copies: Counter,
    /// Loop probes for transmission to the port, dropped ones included.
    pub probes: Counter,
    /// Announcements of local stations for transmission to the port, dropped ones included.
    pub announcements: Counter,
    /// Frames lost before they could be received, as reported by the device. No other counter includes them.
    pub rx_missed: Counter,
    /// Frames transmitted.
    pub tx_frames: Counter,
    /// Bytes transmitted, without frame check sequence.
    pub tx_bytes: Counter,
    /// Transmitted frames that the device accepted and then lost, as reported by it.
    pub tx_lost: Counter,
    /// GSO packets segmented in software for this port.
    pub segmented: Counter,
    /// Other frames whose partial checksum was completed in software for this port.
    pub checksummed: Counter,
    /// Frames to unknown destinations that were not flooded to this port.
    pub not_flooded: Counter,
    /// Copies of frames for another port, made for this promiscuous port.
    pub mirror_copies: Counter,
    /// Frames from this port that passed although their source was not learned: the port is at its MAC limit.
    pub not_learned: Counter,
    /// Frames from this port dropped for [`DropReason::ReservedGroup`], by address.
    pub reserved_groups: ReservedGroups,
    /// Dropped frames from this port.
    pub drops_in: Drops,
    /// Dropped frames for this port.
    pub drops_out: Drops,
    /// Epoch of [`audit::Retired`].
    epoch: Counter,
}

/// Counters of one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Loop iterations.
    pub polls: Counter,
    /// Loop iterations with work.
    pub busy_polls: Counter,
    /// Nanoseconds spent in loop iterations with work.
    pub busy_nanos: Counter,
    /// Number of sleeps.
    pub sleeps: Counter,
    /// Polls of a queue skipped by drop back-off: its last bursts were dropped entirely.
    pub polls_skipped: Counter,
    /// Stations in the worker's FDB.
    pub stations: Counter,
    /// Stations not learned because the FDB had no free entry.
    pub refused: Counter,
    /// MAC updates lost because the ring to a peer was full. The worker sends them again.
    pub updates_lost: Counter,
    /// Events to control (loop probes, MAC flaps) lost because the channel was full.
    pub events_lost: Counter,
    /// Frames for one port handed off to other workers.
    pub peer_tx_frames: Counter,
    /// Frames for one port taken over from other workers.
    pub peer_rx_frames: Counter,
    /// Frames handed off to other workers for flooding.
    pub peer_tx_floods: Counter,
    /// Frames for flooding taken over from other workers.
    pub peer_rx_floods: Counter,
    /// Frames dropped because their port was closed while they were in flight between workers.
    pub closed_port_drops: Counter,
    /// Counters of removed ports.
    pub retired: audit::Retired,
}
