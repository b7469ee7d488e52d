//! Receives returned loop probes. The ingress worker checks that a probe is of this switch, fresh, and not a
//! duplicate, so that control gets only genuine ones.
//!
//! *Forgeries cannot mask genuine probes.* A guest can send any frame to the probe address, and replay probes.
//! These are dropped at the cost of one hash. The limit on reports to control, 100 per second and port, is used up
//! only by genuine probes that are not duplicates and come from other ports.
//!
//! *Probes of other hosts* are accepted with a shared key. Their numbers rise with each probe of a host, so of each host
//! only a probe that is later than all before is accepted; and their age by the wall clock is bounded. So a recorded probe
//! is of no use after a later one, and of none after half a minute. They have a limit of their own, so that they cannot
//! use up that of the switch's own probes.

use std::time::Duration;

use super::{DropReason, MAX_PORTS, PortId};
use crate::frame::{BURST, Frame};
use crate::time::MonoTime;
use crate::wire::{HostProbe, Probe, ProbeKeys, ReadProbe};

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

/// Maximum difference between the wall clocks of a host's probe and of this host, including the time on the way.
pub const MAX_HOST_AGE: Duration = Duration::from_secs(30);

/// Hosts remembered per port. A port is rarely connected to more than one.
const HOSTS_PER_PORT: usize = 4;

/// Reports of other hosts' probes per port and second.
const HOST_PROBES_PER_SECOND: u32 = 100;

/// A loop probe of this switch has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReturnedProbe {
    /// Ingress port, which differs from the port that sent it.
    pub at: PortId,
    /// Contents.
    pub probe: Probe,
}

/// A loop probe of another host has been received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedHostProbe {
    /// Ingress port.
    pub at: PortId,
    /// Contents.
    pub probe: HostProbe,
}

/// The last probe of a host at one port.
#[derive(Debug, Clone, Copy, Default)]
struct SeenHost {
    /// Start of its switch.
    start: u64,
    /// Number that its next probe has at least; 0 for none.
    next: u64,
    /// Time of the last probe.
    at: MonoTime,
}

/// Probes of other hosts at one port.
#[derive(Debug, Clone, Copy, Default)]
struct HostProbes {
    hosts: [SeenHost; HOSTS_PER_PORT],
    /// Second of the last report, and reports in it.
    second: u32,
    reports: u32,
}

impl HostProbes {
    /// Whether a probe is later than all of its host.
    fn is_new(&self, probe: &HostProbe) -> bool {
        !self.hosts.iter().any(|host| host.start == probe.start && probe.probe.sequence < host.next)
    }

    /// Records a probe. `false`: the limit is reached.
    fn record(&mut self, probe: &HostProbe, now: MonoTime) -> bool {
        if self.second != now.secs() {
            (self.second, self.reports) = (now.secs(), 0);
        }
        if self.reports == HOST_PROBES_PER_SECOND {
            return false;
        }
        self.reports += 1;
        let known = self.hosts.iter().position(|host| host.start == probe.start && host.next > 0);
        let oldest = || (0..HOSTS_PER_PORT).min_by_key(|&place| self.hosts[place].at).unwrap_or(0);
        let place = known.unwrap_or_else(oldest);
        self.hosts[place] = SeenHost { start: probe.start, next: probe.probe.sequence.saturating_add(1), at: now };
        true
    }
}

/// Recently returned probes at one worker.
#[derive(Debug)]
pub(super) struct ProbeReceiver {
    keys: ProbeKeys,
    /// Milliseconds since 1970 at the boot of the host.
    pub(super) boot_millis: u64,
    /// By port index; empty without a shared key.
    of_hosts: Vec<HostProbes>,
    /// [`MAX_PER_PORT`] entries per port index, encoded by [`remember`]. Pages never written cost no memory, and
    /// few ports ever receive a probe.
    recent: Vec<u64>,
    /// By port index: position of its oldest entry.
    oldest: Vec<u16>,
    /// Pending reports.
    pub(super) returned: Vec<ReturnedProbe>,
    /// Pending reports of other hosts' probes.
    pub(super) received: Vec<ReceivedHostProbe>,
}

impl ProbeReceiver {
    pub(super) fn new(keys: ProbeKeys) -> ProbeReceiver {
        let of_hosts = if keys.shared.is_some() { MAX_PORTS } else { 0 };
        ProbeReceiver {
            keys,
            boot_millis: 0,
            of_hosts: vec![HostProbes::default(); of_hosts],
            received: Vec::with_capacity(of_hosts.min(BURST)),
            recent: vec![0; MAX_PORTS * MAX_PER_PORT],
            oldest: vec![0; MAX_PORTS],
            returned: Vec::with_capacity(BURST),
        }
    }

    /// Checks a frame to the probe address at port `at`, and returns its drop reason.
    #[cold]
    pub(super) fn receive(&mut self, at: PortId, frame: &[u8], now: MonoTime) -> DropReason {
        let probe = match self.keys.read(frame) {
            Ok(ReadProbe::Own(probe)) => probe,
            Ok(ReadProbe::Host(probe)) => return self.receive_of_host(at, probe, now),
            Err(_) => return DropReason::ProbeForged,
        };
        self.receive_own(at, probe, now)
    }

    fn receive_own(&mut self, at: PortId, probe: Probe, now: MonoTime) -> DropReason {
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

    fn receive_of_host(&mut self, at: PortId, probe: HostProbe, now: MonoTime) -> DropReason {
        let wall = self.boot_millis.saturating_add(now.nanos() / 1_000_000);
        let Some(seen) = self.of_hosts.get_mut(at.index()) else { return DropReason::ProbeForged };
        if u128::from(wall.abs_diff(probe.wall_millis)) > MAX_HOST_AGE.as_millis() || !seen.is_new(&probe) {
            return DropReason::ProbeStale;
        }
        if self.received.len() < BURST && seen.record(&probe, now) {
            self.received.push(ReceivedHostProbe { at, probe });
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
    use crate::wire::{HostKey, Mac, ProbeKey, ProbeName};
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
            let (mut probe_receiver, mut model, mut now) = (ProbeReceiver::new(KEY.into()), Model::default(), start);
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
            let (mut probe_receiver, mut model, mut now) = (ProbeReceiver::new(KEY.into()), Model::default(), 1_000_000_000);
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
        let (mut probe_receiver, now) = (ProbeReceiver::new(KEY.into()), MonoTime::from_secs(100));
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

    const SHARED: [u8; 16] = [4; 16];

    fn with_shared_key(boot_millis: u64) -> ProbeReceiver {
        let mut receiver = ProbeReceiver::new(ProbeKeys { own: KEY, shared: Some(HostKey::new(SHARED, 1)) });
        receiver.boot_millis = boot_millis;
        receiver
    }

    /// Frame of another host's probe.
    fn of_host(key: [u8; 16], start: u64, sequence: u64, wall_millis: u64) -> Vec<u8> {
        let probe = HostProbe {
            probe: Probe { sent: MonoTime::from_secs(7), sequence, port: 1, network: 1, vm: 1, mac: Mac::ZERO },
            start,
            wall_millis,
            network: 1,
            is_quarantined: false,
            is_suspect: true,
            host: ProbeName::new("other"),
            vm: ProbeName::new("v"),
            port: ProbeName::new("p"),
        };
        probe.write(&HostKey::new(key, start)).as_ref().to_vec()
    }

    proptest! {
        /// For any probes of a few hosts, in any order, of any age, some repeated: each is reported once at most, none is
        /// after a later one of its host, none is too old, and no more than the limit.
        #[test]
        fn probes_of_hosts_are_fresh_new_and_limited(
            boot_millis in 0..1u64 << 42,
            probes in vec((2..5u64, 0..30u64, 0..70_000u64, 0..400u64), 1..300),
        ) {
            let (mut receiver, mut now) = (with_shared_key(boot_millis), MonoTime::from_secs(1000));
            let (mut last, mut reports) = (std::collections::HashMap::new(), std::collections::HashMap::new());
            for (start, sequence, age, pause) in probes {
                now = now + Duration::from_millis(pause);
                let wall = boot_millis + now.nanos() / 1_000_000;
                // From 35 s in the past to 35 s in the future.
                let sent = (wall + 35_000).saturating_sub(age);
                let received = receiver.receive(AT, &of_host(SHARED, start, sequence, sent), now);
                let reported = receiver.received.drain(..).collect::<Vec<_>>();
                prop_assert!(receiver.returned.is_empty(), "none of this switch");
                let is_right = wall.abs_diff(sent) <= 30_000 && last.get(&start).is_none_or(|&last| sequence > last);
                prop_assert_eq!(received, if is_right { DropReason::Probe } else { DropReason::ProbeStale });
                let in_second = reports.entry(now.secs()).or_insert(0);
                prop_assert_eq!(reported.len() == 1, is_right && *in_second < HOST_PROBES_PER_SECOND);
                if let Some(reported) = reported.first() {
                    *in_second += 1;
                    last.insert(start, sequence);
                    prop_assert_eq!((reported.at, reported.probe.start, reported.probe.probe.sequence), (AT, start, sequence));
                }
            }
        }
    }

    /// Another key, and no key at all.
    #[test]
    fn probes_of_hosts_with_another_key_are_forged() {
        let now = MonoTime::from_secs(100);
        let (genuine, foreign) = (of_host(SHARED, 2, 1, 100_000), of_host([5; 16], 2, 1, 100_000));
        let mut receiver = with_shared_key(0);
        assert_eq!(receiver.receive(AT, &foreign, now), DropReason::ProbeForged);
        assert_eq!(receiver.receive(AT, &genuine, now), DropReason::Probe);
        assert_eq!(receiver.received.len(), 1);
        let mut without = ProbeReceiver::new(KEY.into());
        assert_eq!(without.receive(AT, &genuine, now), DropReason::ProbeForged);
        assert!(without.received.is_empty() && without.returned.is_empty());
    }

    /// A probe of this switch under the shared key is one of its own.
    #[test]
    fn own_probes_under_the_shared_key_have_returned() {
        let (mut receiver, now) = (with_shared_key(0), MonoTime::from_secs(7));
        assert_eq!(receiver.receive(AT, &of_host(SHARED, 1, 1, 0), now), DropReason::Probe);
        assert_eq!((receiver.returned.len(), receiver.received.len()), (1, 0));
    }

    /// However many recorded probes of other hosts a guest replays, its own loops are found.
    #[test]
    fn probes_of_hosts_do_not_use_up_the_limit_of_own_ones() {
        let (mut receiver, now) = (with_shared_key(0), MonoTime::from_secs(100));
        for number in 0..10_000 {
            receiver.receive(AT, &of_host(SHARED, 2 + number % 7, number, 100_000), now);
            receiver.received.clear();
        }
        assert_eq!(receiver.receive(AT, &frame(1, now, PortId::new(8, 2)), now), DropReason::Probe);
        assert_eq!(receiver.returned.len(), 1);
    }
}
