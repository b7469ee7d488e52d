//! Learns the maximum frame length of a device, to tell whether the kernel refused a frame for its length or for lack
//! of space. No system calls.
//!
//! For a packet socket that bypasses the queueing discipline, ENOBUFS has three meanings, and so has EBUSY for AF_XDP
//! (`packet_direct_xmit` and `net_xmit_errno` of the kernel): the driver's queue is stopped; the driver's receiver,
//! such as the backlog behind a veth or the ring of a tap, is full; or this frame is refused, because it is longer than
//! the MTU of a veth's peer, or because the kernel would have to segment it. The first two hold for the following
//! frames as well, the third does not. No system call tells them apart, but the lengths that passed before do.

/// Failures after which the limit is assumed to be lower. While there is no space for long frames there is none for
/// short ones either, and some long ones pass.
const FAILURES: u32 = 64;

/// Length that every netdev accepts: the minimum MTU of 68 (`ETH_MIN_MTU`) and the header. Without space for such a
/// frame there is none for any.
pub(in crate::device) const ALWAYS_TAKEN: u32 = 68 + 14;

/// Learned limit, from the lengths of passed and failed frames.
#[derive(Debug, Clone, Copy)]
pub(in crate::device) struct Limit {
    /// Maximum length that has passed.
    passed: u32,
    /// Minimum length that failed although it had passed before; reset when such a length passes.
    suspect: u32,
    /// Number of such failures.
    failures: u32,
    /// Maximum length that has passed since.
    since: u32,
}

impl Limit {
    pub(in crate::device) fn new() -> Limit {
        Limit { passed: 0, suspect: u32::MAX, failures: 0, since: 0 }
    }

    /// Maximum length that has passed.
    #[inline(always)]
    pub(in crate::device) fn max_passed(&self) -> u32 {
        self.passed
    }

    /// Records that frames have passed, of at most `len` bytes.
    #[inline]
    pub(in crate::device) fn passed(&mut self, len: u32) {
        if len > self.passed {
            self.passed = len;
        }
        if self.failures > 0 {
            self.passed_again(len);
        }
    }

    #[cold]
    fn passed_again(&mut self, len: u32) {
        self.since = self.since.max(len);
        if self.since >= self.suspect {
            *self = Limit { passed: self.passed, ..Limit::new() };
        }
    }

    /// Whether a frame of `len` bytes was refused for its length; `false`: for lack of space.
    pub(in crate::device) fn refuses(&mut self, len: u32) -> bool {
        if len > self.passed {
            return true;
        }
        self.suspect = self.suspect.min(len);
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES || self.since == 0 {
            return false;
        }
        *self = Limit { passed: self.since, ..Limit::new() };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_longer_than_any_sent_is_refused() {
        let mut limit = Limit::new();
        assert!(limit.refuses(1514));
        limit.passed(1414);
        assert!(limit.refuses(1415) && limit.refuses(1514));
        assert!(!limit.refuses(1414) && !limit.refuses(60), "the device was full");
    }

    #[test]
    fn a_full_device_is_distinguished_from_a_refusing_one() {
        let mut limit = Limit::new();
        limit.passed(1514);
        for round in 0..10_000 {
            assert!(!limit.refuses(1514), "in round {round}");
            assert!(!limit.refuses(60), "in round {round}");
            if round % 20 == 19 {
                limit.passed(1514);
            }
        }
    }

    #[test]
    fn a_lowered_limit_is_detected() {
        let mut limit = Limit::new();
        limit.passed(1514);
        let mut believed = 0;
        while !limit.refuses(1514) {
            limit.passed(1414);
            believed += 1;
            assert!(believed < 100);
        }
        for _ in 0..100 {
            assert!(limit.refuses(1514));
            limit.passed(1414);
        }
        limit.passed(1514);
        assert!(!limit.refuses(1514), "and a limit that rises");
    }
}
