//! Loop probes that come back. Each is looked at where it comes in: that it is one of this switch, is fresh, and
//! was not here before. So what control hears of is true, and as little of it as there is truth.
//!
//! *Nobody can mask a true one.* A guest can send what it likes to the address of probes, and what it has seen
//! again and again. All that dies before it costs anything but the time of a hash: the bound on what is told to
//! control, 100 a second of each port, is only used up by probes that are true, were not here before and
//! come from other ports. Each of these is what control wants to know.

use std::time::Duration;

use super::{DropReason, MOST_PORTS, PortId};
use crate::frame::{BURST, Frame};
use crate::time::Moment;
use crate::wire::{Probe, ProbeKey};

/// How old a probe may be. Control forgets after this time what it has sent.
pub const FRESH: Duration = Duration::from_secs(3);

/// From how far in the future a probe may be: a worker reads the clock when its breath begins, and control may send
/// one in the middle of that.
const AHEAD: Duration = Duration::from_secs(1);

/// How long a probe is remembered, in milliseconds: until it is stale by itself.
#[allow(clippy::cast_possible_truncation)] // 4000
const REMEMBERED: u64 = (FRESH.as_millis() + AHEAD.as_millis()) as u64;

/// Probes that are remembered of each port, and so those that are told of within that time: 100 a second.
const MOST: usize = 400;

/// A loop probe of this switch has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returned {
    /// The port at which it came in, which is not the one it was sent by.
    pub at: PortId,
    /// What it says.
    pub probe: Probe,
}

/// What one worker remembers of the probes that came back.
#[derive(Debug)]
pub(super) struct Ears {
    key: ProbeKey,
    /// [`MOST`] for each port, by its place: the last ones that were told of, each as [`note`] has it. Memory that is
    /// never written to costs nothing, and few ports ever hear a probe.
    heard: Vec<u64>,
    /// By the place of each port: where its oldest one stands.
    oldest: Vec<u16>,
    /// What is to be told, since it was last asked for.
    pub(super) returned: Vec<Returned>,
}

impl Ears {
    pub(super) fn new(key: ProbeKey) -> Ears {
        Ears {
            key,
            heard: vec![0; MOST_PORTS * MOST],
            oldest: vec![0; MOST_PORTS],
            returned: Vec::with_capacity(BURST),
        }
    }

    /// Listens to a frame to the address of probes that came in at port `at`, and says what it dies as.
    #[cold]
    pub(super) fn hear(&mut self, at: PortId, frame: &Frame, head: &[u8], now: Moment) -> DropReason {
        let whole = if frame.len() as usize == head.len() { head } else { &[] };
        let Ok(probe) = Probe::read(whole, &self.key) else { return DropReason::ProbeForged };
        let is_fresh = now.since(probe.sent) <= FRESH && probe.sent.since(now) <= AHEAD;
        if !is_fresh || probe.port == at.bits() {
            return DropReason::ProbeStale;
        }
        let note = note(probe.sequence, now);
        let heard = &mut self.heard[at.index() % MOST_PORTS * MOST..][..MOST];
        if heard.iter().any(|&one| one >> TIME == note >> TIME && is_recent(one, note)) {
            return DropReason::ProbeStale;
        }
        let oldest = &mut self.oldest[at.index() % MOST_PORTS];
        let place = &mut heard[usize::from(*oldest)];
        if !is_recent(*place, note) && self.returned.len() < BURST {
            *place = note;
            *oldest = (*oldest + 1) % MOST as u16;
            self.returned.push(Returned { at, probe });
        }
        DropReason::Probe
    }
}

/// Bits of a note that are the time: milliseconds, enough for 34 years. Above them the sequence number, as far as it
/// tells apart what is sent in a few seconds.
const TIME: u32 = 40;

/// What is remembered of a probe. Zero, where there is nothing yet, is never recent.
const fn note(sequence: u64, now: Moment) -> u64 {
    sequence << TIME | (now.nanos() / 1_000_000 + REMEMBERED + 1) & ((1 << TIME) - 1)
}

/// Whether one was noted not so long before another that it is forgotten.
const fn is_recent(one: u64, other: u64) -> bool {
    const MASK: u64 = (1 << TIME) - 1;
    (other.wrapping_sub(one) & MASK) <= REMEMBERED
}
