//! Tells whether the kernel did not send a frame for its length or for lack of room.
//!
//! For a packet socket that bypasses the queueing discipline, ENOBUFS has three meanings, and so has EBUSY for AF_XDP (`packet_direct_xmit` and
//! `net_xmit_errno` of the kernel): the queue of the driver is stopped; what the driver hands frames to, such as the
//! backlog behind a veth or the ring of a tap, has no room; or this one frame was refused, because it is longer than the
//! MTU at the other end of a veth, or because the kernel would have to segment it. The first two hold for the frames
//! behind it as well, the third does not. No call tells them apart, so what has passed before does.

/// Failures after which a limit is believed to have come down: while there is no room for long frames, there is none
/// for short ones either, and some of the long ones find room.
const FAILURES: u32 = 64;

/// The longest frame that every netdev takes: the smallest MTU is 68 (`ETH_MIN_MTU`), and the header comes on top. If
/// there is no buffer for this one, there is none for any.
pub(in crate::device) const ALWAYS_TAKEN: u32 = 68 + 14;

/// What is known of how long frames may be, learned from those that passed and those that failed.
#[derive(Debug, Clone, Copy)]
pub(in crate::device) struct Limit {
    /// The longest that has passed.
    passed: u32,
    /// The shortest that has failed since one so long has passed, though one so long had passed before.
    suspect: u32,
    /// How often that happened.
    failures: u32,
    /// The longest that has passed since then.
    since: u32,
}

impl Limit {
    pub(in crate::device) fn new() -> Limit {
        Limit { passed: 0, suspect: u32::MAX, failures: 0, since: 0 }
    }

    /// The longest frame that has passed.
    #[inline(always)]
    pub(in crate::device) fn max_passed(&self) -> u32 {
        self.passed
    }

    /// Notes that frames have been sent, the longest of which had `len` bytes.
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

    /// Whether a frame of `len` bytes, for which there was no buffer, was refused for its length.
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
    fn a_frame_longer_than_any_that_passed_is_refused() {
        let mut limit = Limit::new();
        assert!(limit.refuses(1514));
        limit.passed(1414);
        assert!(limit.refuses(1415) && limit.refuses(1514));
        assert!(!limit.refuses(1414) && !limit.refuses(60), "there was no room");
    }

    #[test]
    fn a_device_that_is_full_is_never_taken_for_one_that_refuses() {
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
    fn a_limit_that_comes_down_is_found() {
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
        assert!(!limit.refuses(1514), "and one that comes up");
    }
}
