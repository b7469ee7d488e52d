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
    pub(super) fn hear(&mut self, at: PortId, frame: &[u8], now: Moment) -> DropReason {
        let Ok(probe) = Probe::read(frame, &self.key) else { return DropReason::ProbeForged };
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
            *oldest = if usize::from(*oldest) + 1 < MOST { *oldest + 1 } else { 0 };
            self.returned.push(Returned { at, probe });
        }
        DropReason::Probe
    }
}

/// The bytes of a frame, if they are in one piece, as those of a probe always are.
pub(super) fn whole<'a>(frame: &Frame, head: &'a [u8]) -> &'a [u8] {
    if frame.len() as usize == head.len() { head } else { &[] }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mac;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const KEY: ProbeKey = ProbeKey::new([3; 16]);
    const AT: PortId = PortId::new(7, 2);

    fn frame(sequence: u64, sent: Moment, port: PortId) -> [u8; Probe::LEN] {
        Probe { sent, sequence, port: port.bits(), network: 1, owner: 2, mac: Mac::ZERO }.write(&KEY)
    }

    /// What has been told of, with its time, and never forgotten.
    #[derive(Default)]
    struct Model(Vec<(u64, u64)>);

    impl Model {
        fn hear(&mut self, sequence: u64, sent: u64, is_own: bool, now: u64) -> (DropReason, bool) {
            let lately = |at: u64| now / 1_000_000 - at / 1_000_000 <= 4000;
            let told: Vec<_> = self.0.iter().filter(|(at, _)| lately(*at)).map(|(_, told)| *told).collect();
            if now > sent + 3_000_000_000 || sent > now + 1_000_000_000 || is_own || told.contains(&sequence) {
                return (DropReason::ProbeStale, false);
            }
            let has_room = told.len() < 400;
            if has_room {
                self.0.push((now, sequence));
            }
            (DropReason::Probe, has_room)
        }
    }

    proptest! {
        /// However they come, fresh or not, once or again: what is told of is what the model tells of.
        #[test]
        fn what_is_told_is_fresh_and_new(
            start in 0..20_000_000_000u64,
            probes in vec((0..40u64, 0..5_000_000_000u64, prop::bool::weighted(0.05), 0..300_000_000u64), 1..200),
        ) {
            let (mut ears, mut model, mut now) = (Ears::new(KEY), Model::default(), start);
            for (number, (sequence, age, is_own, pause)) in probes.into_iter().enumerate() {
                now += pause;
                // From a second and a half in the future to three and a half in the past.
                let sent = (now + 1_500_000_000).saturating_sub(age);
                let port = if is_own { AT } else { PortId::new(8, 2) };
                let frame = frame(sequence, Moment::from_nanos(sent), port);
                let heard = ears.hear(AT, &frame, Moment::from_nanos(now));
                let told = ears.returned.drain(..).collect::<Vec<_>>();
                prop_assert_eq!((heard, !told.is_empty()), model.hear(sequence, sent, is_own, now), "probe {}", number);
                prop_assert!(told.iter().all(|told| told.at == AT && told.probe.sequence == sequence));
            }
        }

        /// No port is told of more than 100 a second, and none less for the bound being there.
        #[test]
        fn a_port_is_told_of_a_hundred_a_second(pauses in vec(0..20_000_000u64, 2000)) {
            let (mut ears, mut model, mut now) = (Ears::new(KEY), Model::default(), 1_000_000_000);
            for (sequence, pause) in (0..).zip(pauses) {
                now += pause;
                let frame = frame(sequence, Moment::from_nanos(now), PortId::new(8, 2));
                let heard = ears.hear(AT, &frame, Moment::from_nanos(now));
                let told = ears.returned.drain(..).count() == 1;
                prop_assert_eq!((heard, told), model.hear(sequence, now, false, now));
            }
        }
    }

    /// Whatever else comes, and however often: a true one is told of.
    #[test]
    fn nothing_masks_a_true_one() {
        let (mut ears, now) = (Ears::new(KEY), Moment::from_secs(100));
        let other = PortId::new(8, 2);
        for sequence in 0..50 {
            let probe = frame(sequence, now, other);
            assert_eq!(ears.hear(AT, &probe, now), DropReason::Probe);
            assert_eq!(ears.returned.drain(..).count(), 1, "{sequence}");
            for place in 0..probe.len() {
                let mut bent = probe;
                bent[place] ^= 0x10;
                assert_eq!(ears.hear(AT, &bent, now) == DropReason::ProbeForged, !(6..12).contains(&place));
            }
            for _ in 0..1000 {
                assert_eq!(ears.hear(AT, &probe, now), DropReason::ProbeStale, "again");
                assert_eq!(ears.hear(AT, &frame(sequence, now, AT), now), DropReason::ProbeStale, "its own");
                let old = frame(1_000_000, now - FRESH - Duration::from_nanos(1), other);
                assert_eq!(ears.hear(AT, &old, now), DropReason::ProbeStale, "too old");
            }
            assert!(ears.returned.is_empty());
        }
    }
}
