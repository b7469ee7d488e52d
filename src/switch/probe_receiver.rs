//! Receives returned loop probes. The ingress worker checks that a probe is of this switch, fresh, and not a
//! duplicate, so that control gets only genuine ones.
//!
//! *Forgeries cannot mask genuine probes.* A guest can send any frame to the probe address, and replay probes.
//! These are dropped at the cost of one hash. The limit on reports to control, 100 per second and port, is used up
//! only by genuine probes that are not duplicates and come from other ports.

use std::time::Duration;

use super::{DropReason, MAX_PORTS, PortId};
use crate::frame::{BURST, Frame};
use crate::time::MonoTime;
use crate::wire::{Probe, ProbeKey};

/// Maximum age of a probe. Control forgets sent probes after this time.
pub const MAX_AGE: Duration = Duration::from_secs(3);

/// Maximum time of a probe ahead of the worker's clock: a worker reads the clock at the start of `poll_once`, and
/// control may send a probe after that.
const MAX_SKEW: Duration = Duration::from_secs(1);

/// Time for which a probe is remembered, in milliseconds: until it is stale.
#[allow(clippy::cast_possible_truncation)] // 4000
const PROBE_MEMORY_MS: u64 = (MAX_AGE.as_millis() + MAX_SKEW.as_millis()) as u64;

/// Probes remembered per port, which limits reports to 100 per second.
const MAX_PER_PORT: usize = 400;

/// A loop probe of this switch has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReturnedProbe {
    /// Ingress port, which differs from the port that sent it.
    pub at: PortId,
    /// Contents.
    pub probe: Probe,
}

/// Recently returned probes at one worker.
#[derive(Debug)]
pub(super) struct ProbeReceiver {
    key: ProbeKey,
    /// [`MAX_PER_PORT`] entries per port index, encoded by [`remember`]. Pages never written cost no memory, and
    /// few ports ever receive a probe.
    recent: Vec<u64>,
    /// By port index: position of its oldest entry.
    oldest: Vec<u16>,
    /// Pending reports.
    pub(super) returned: Vec<ReturnedProbe>,
}

impl ProbeReceiver {
    pub(super) fn new(key: ProbeKey) -> ProbeReceiver {
        ProbeReceiver {
            key,
            recent: vec![0; MAX_PORTS * MAX_PER_PORT],
            oldest: vec![0; MAX_PORTS],
            returned: Vec::with_capacity(BURST),
        }
    }

    /// Checks a frame to the probe address at port `at`, and returns its drop reason.
    #[cold]
    pub(super) fn receive(&mut self, at: PortId, frame: &[u8], now: MonoTime) -> DropReason {
        let Ok(probe) = Probe::read(frame, &self.key) else { return DropReason::ProbeForged };
        let is_fresh = now.since(probe.sent) <= MAX_AGE && probe.sent.since(now) <= MAX_SKEW;
        if !is_fresh || probe.port == at.bits() {
            return DropReason::ProbeStale;
        }
        let note = remember(probe.sequence, now);
        let received = &mut self.recent[at.index() % MAX_PORTS * MAX_PER_PORT..][..MAX_PER_PORT];
        if received.iter().any(|&one| one >> TIME == note >> TIME && is_recent(one, note)) {
            return DropReason::ProbeStale;
        }
        let oldest = &mut self.oldest[at.index() % MAX_PORTS];
        let place = &mut received[usize::from(*oldest)];
        if !is_recent(*place, note) && self.returned.len() < BURST {
            *place = note;
            *oldest = if usize::from(*oldest) + 1 < MAX_PER_PORT { *oldest + 1 } else { 0 };
            self.returned.push(ReturnedProbe { at, probe });
        }
        DropReason::Probe
    }
}

/// The bytes of a frame if it has one segment, as a probe always has.
pub(super) fn contiguous<'a>(frame: &Frame, head: &'a [u8]) -> &'a [u8] {
    if frame.len() as usize == head.len() { head } else { &[] }
}

/// Bits of the time in an entry: milliseconds, enough for 34 years. The sequence number's low bits are above.
const TIME: u32 = 40;

/// Encodes a probe. Zero (no entry) is never recent.
const fn remember(sequence: u64, now: MonoTime) -> u64 {
    sequence << TIME | (now.nanos() / 1_000_000 + PROBE_MEMORY_MS + 1) & ((1 << TIME) - 1)
}

/// Whether `one` is recent enough to be remembered at the time of `other`.
const fn is_recent(one: u64, other: u64) -> bool {
    const MASK: u64 = (1 << TIME) - 1;
    (other.wrapping_sub(one) & MASK) <= PROBE_MEMORY_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mac;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const KEY: ProbeKey = ProbeKey::new([3; 16]);
    const AT: PortId = PortId::new(7, 2);

    fn frame(sequence: u64, sent: MonoTime, port: PortId) -> [u8; Probe::LEN] {
        Probe { sent, sequence, port: port.bits(), network: 1, vm: 2, mac: Mac::ZERO }.write(&KEY)
    }

    /// Reported probes with their times, the recent ones.
    #[derive(Default)]
    struct Model(Vec<(u64, u64)>);

    impl Model {
        fn receive(&mut self, sequence: u64, sent: u64, is_own: bool, now: u64) -> (DropReason, bool) {
            self.0.retain(|(at, _)| now / 1_000_000 - at / 1_000_000 <= 4000);
            let is_known = self.0.iter().any(|(_, reported)| *reported == sequence);
            if now > sent + 3_000_000_000 || sent > now + 1_000_000_000 || is_own || is_known {
                return (DropReason::ProbeStale, false);
            }
            let has_room = self.0.len() < 400;
            if has_room {
                self.0.push((now, sequence));
            }
            (DropReason::Probe, has_room)
        }
    }

    proptest! {
        /// For any probes, fresh, old or repeated: the reports agree with the model.
        #[test]
        fn reported_probes_are_fresh_and_new(
            start in 0..20_000_000_000u64,
            probes in vec((0..40u64, 0..5_000_000_000u64, prop::bool::weighted(0.05), 0..300_000_000u64), 1..200),
        ) {
            let (mut probe_receiver, mut model, mut now) = (ProbeReceiver::new(KEY), Model::default(), start);
            for (number, (sequence, age, is_own, pause)) in probes.into_iter().enumerate() {
                now += pause;
                // From 1.5 s in the future to 3.5 s in the past.
                let sent = (now + 1_500_000_000).saturating_sub(age);
                let port = if is_own { AT } else { PortId::new(8, 2) };
                let frame = frame(sequence, MonoTime::from_nanos(sent), port);
                let received = probe_receiver.receive(AT, &frame, MonoTime::from_nanos(now));
                let reported = probe_receiver.returned.drain(..).collect::<Vec<_>>();
                prop_assert_eq!((received, !reported.is_empty()), model.receive(sequence, sent, is_own, now), "probe {}", number);
                prop_assert!(reported.iter().all(|reported| reported.at == AT && reported.probe.sequence == sequence));
            }
        }

        /// At most 100 reports per second and port, and no fewer below that.
        #[test]
        fn reports_per_port_are_limited_to_100_per_second(pauses in vec(0..20_000_000u64, 2000)) {
            let (mut probe_receiver, mut model, mut now) = (ProbeReceiver::new(KEY), Model::default(), 1_000_000_000);
            for (sequence, pause) in (0..).zip(pauses) {
                now += pause;
                let frame = frame(sequence, MonoTime::from_nanos(now), PortId::new(8, 2));
                let received = probe_receiver.receive(AT, &frame, MonoTime::from_nanos(now));
                let reported = probe_receiver.returned.drain(..).count() == 1;
                prop_assert_eq!((received, reported), model.receive(sequence, now, false, now));
            }
        }
    }

    /// Whatever else is received: a valid probe is reported.
    #[test]
    fn a_valid_probe_is_always_reported() {
        let (mut probe_receiver, now) = (ProbeReceiver::new(KEY), MonoTime::from_secs(100));
        let other = PortId::new(8, 2);
        for sequence in 0..50 {
            let probe = frame(sequence, now, other);
            assert_eq!(probe_receiver.receive(AT, &probe, now), DropReason::Probe);
            assert_eq!(probe_receiver.returned.drain(..).count(), 1, "{sequence}");
            for place in 0..probe.len() {
                let mut bent = probe;
                bent[place] ^= 0x10;
                assert_eq!(
                    probe_receiver.receive(AT, &bent, now) == DropReason::ProbeForged,
                    !(6..12).contains(&place)
                );
            }
            for _ in 0..1000 {
                assert_eq!(probe_receiver.receive(AT, &probe, now), DropReason::ProbeStale, "again");
                assert_eq!(
                    probe_receiver.receive(AT, &frame(sequence, now, AT), now),
                    DropReason::ProbeStale,
                    "the port's own probe"
                );
                let old = frame(1_000_000, now - MAX_AGE - Duration::from_nanos(1), other);
                assert_eq!(probe_receiver.receive(AT, &old, now), DropReason::ProbeStale, "too old");
            }
            assert!(probe_receiver.returned.is_empty());
        }
    }
}
