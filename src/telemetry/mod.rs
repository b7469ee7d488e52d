//! What is counted, and how it is told.
//!
//! A [`Counter`] is written by one thread and read by any. It only grows; nothing is reset by
//! reading. The counters of a port exist once per worker, since a port's frames may come in and
//! go out on several; control adds them up.
//!
//! # The ledger
//!
//! The counters of all ports balance (frames are counted as [`Frame::count`](crate::frame::Frame::count)
//! has it):
//!
//! * at each port, what came in was forwarded, flooded, or dropped for a reason:
//!   `rx = forwarded + flooded + Σ drops in`;
//! * over all ports, what was to go out went out, or was dropped for a reason:
//!   `Σ (forwarded + copies + probes + announcements) = Σ (tx + Σ drops out)`, but for frames that are on their way
//!   between workers at this moment.
//!
//! [`audit`] proves it on a switch that runs.

#![forbid(unsafe_code)]

pub mod audit;
pub mod exposition;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::switch::{DropReason, ReservedGroup};

/// Log lines that were lost, because standard error was not read in time or refused them. Of the process, as its log
/// is.
pub static LOG_LINES_LOST: AtomicU64 = AtomicU64::new(0);

/// A number that one thread adds to and any thread may read: a plain load and store, not a locked
/// addition.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only ever called by the one thread that owns the counter.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Replaces the value, for what is a level rather than a count.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value at some moment not long ago.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many frames died, by reason.
#[derive(Debug)]
pub struct Drops([Counter; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Drops {
        Drops(std::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    /// Counts `frames` that died for `reason`.
    #[inline]
    pub fn add(&self, reason: DropReason, frames: u64) {
        self.0[reason as usize].add(frames);
    }

    /// How many died for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }

    /// How many died for each reason there was.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.get(reason))).filter(|&(_, frames)| frames > 0)
    }

    /// How many died in all.
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, frames)| frames).sum()
    }
}

/// How many frames to reserved group addresses were refused, by address.
#[derive(Debug, Default)]
pub struct ReservedGroups([Counter; ReservedGroup::COUNT]);

impl ReservedGroups {
    /// Counts `frames` to this address.
    pub fn add(&self, group: ReservedGroup, frames: u64) {
        self.0[group.index()].add(frames);
    }

    /// How many there were to each address, if there were any.
    pub fn iter(&self) -> impl Iterator<Item = (ReservedGroup, u64)> + '_ {
        ReservedGroup::all().map(|group| (group, self.0[group.index()].get())).filter(|&(_, frames)| frames > 0)
    }
}

/// What one worker counts of one port. *In*: from the guest into the switch. *Out*: to the guest.
#[derive(Debug, Default)]
#[repr(align(128))] // two workers never write to one pair of cache lines
pub struct PortCounters {
    /// Frames that came in.
    pub rx_frames: Counter,
    /// And their bytes, without frame check sequence.
    pub rx_bytes: Counter,
    /// Frames that came in and were meant for one port.
    pub forwarded: Counter,
    /// Frames that came in and were meant for everybody on the network.
    pub flooded: Counter,
    /// Copies that were made of the flooded ones, and, for promiscuous ports, of the others.
    pub copies: Counter,
    /// Loop probes that the switch sent out of it, or was to send.
    pub probes: Counter,
    /// Announcements of local stations that the switch sent out of it, or was to send.
    pub announcements: Counter,
    /// Frames that came and were lost before they could be received, as far as the device tells: they are
    /// in no other counter.
    pub rx_missed: Counter,
    /// Frames that went out.
    pub tx_frames: Counter,
    /// And their bytes, without frame check sequence.
    pub tx_bytes: Counter,
    /// Of these: frames that a device took and lost before they left, as far as it tells.
    pub tx_lost: Counter,
    /// Super-frames that were divided for it into the frames they stand for.
    pub segmented: Counter,
    /// Other frames of which a checksum was completed for it.
    pub checksummed: Counter,
    /// Frames that it did not get because they were for stations that nobody knows.
    pub not_flooded: Counter,
    /// Copies that were made for it because it is promiscuous, of frames for one other port.
    pub mirror_copies: Counter,
    /// Frames from this port that were let pass though their source could not be learned, at its MAC limit.
    pub not_learned: Counter,
    /// Of the frames from this port that died for [`DropReason::ReservedGroup`]: to which one they were.
    pub reserved_groups: ReservedGroups,
    /// Frames from this port that died.
    pub drops_in: Drops,
    /// Frames for this port that died.
    pub drops_out: Drops,
    /// Known to [`audit::Retired`].
    epoch: Counter,
}

/// What one worker counts of itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Breaths taken.
    pub polls: Counter,
    /// Breaths in which there was something to do.
    pub busy_polls: Counter,
    /// Nanoseconds of these.
    pub busy_nanos: Counter,
    /// Times it went to sleep.
    pub sleeps: Counter,
    /// Times a gate was not read, because nothing has lived of what it brought.
    pub polls_skipped: Counter,
    /// Stations in its table.
    pub stations: Counter,
    /// Times a station went unlearned for lack of room.
    pub refused: Counter,
    /// Sightings that did not fit the ring to a peer. They are told again.
    pub updates_lost: Counter,
    /// Loop probes and stations that move of which control was not told, for lack of room.
    pub events_lost: Counter,
    /// Frames for one port that were handed to other workers.
    pub peer_tx_frames: Counter,
    /// And those that were taken over from them.
    pub peer_rx_frames: Counter,
    /// Frames to be flooded by other workers that were handed to them.
    pub peer_tx_floods: Counter,
    /// And those that were taken over from them.
    pub peer_rx_floods: Counter,
    /// Frames that died because their port was closed while they were on their way to it.
    pub closed_port_drops: Counter,
    /// What was counted of ports that are no more.
    pub retired: audit::Retired,
}
