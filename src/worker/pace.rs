//! When to breathe again, and which gates to look at.
//!
//! A worker that finds nothing to do polls on for a while and then goes to sleep until a device
//! becomes readable or its bell rings (`adaptive`), or goes on polling (`busy`).
//!
//! Sleeping costs the first frame after a pause the time it takes the kernel to wake a thread, and
//! costs whoever sent it an interrupt to another core. Polling costs a core. So how long to poll is
//! learned from how long the pauses are, as hypervisors do it for halted guests: where they are
//! short, polling longer bridges them and the worker never sleeps under load; where they are longer
//! than [`SPIN`], polling is in vain, and the worker soon sleeps at once.
//!
//! A gate that was quiet for a while is left to *rest*: asking epoll once for all resting gates is
//! cheaper than asking each of them. So a worker's speed depends little on how many quiet ports it
//! has.
//!
//! And a gate that is loud is *unwatched*: it is read at each breath anyhow, while for each frame that
//! arrives at a watched descriptor the kernel calls epoll, on the core of whoever sends, and for each that
//! leaves by it as well, on ours. Before the worker sleeps, and before such a gate rests, it is watched again;
//! what has arrived by then is reported at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::Bell;
use super::gate::{Gate, GateState, Gates};
use crate::frame::Cache;
use crate::sys::event::Poller;
use crate::time::Moment;

/// How long an adaptive worker polls in vain before it goes to sleep, at most.
pub const SPIN: Duration = Duration::from_micros(60);

/// And at least.
const LEAST_SPIN: Duration = Duration::from_micros(4);

/// Pauses up to this long could have been bridged: [`SPIN`], and what waking up takes.
const SHORT: Duration = Duration::from_micros(90);

/// The longest sleep; a worker that nobody wakes looks up once in this time.
const NAP: Duration = Duration::from_secs(1);

/// The longest sleep while a device has work of which no descriptor tells.
const SHORT_NAP: Duration = Duration::from_millis(1);

/// Reads in vain after which a gate may rest.
const QUIET: u8 = 64;

/// Bursts from and to a gate since it is watched, after which it is unwatched: so many that the two system
/// calls, one now and one before the next sleep, are nothing beside them.
const LOUD: u8 = 64;

/// Open gates up to which none rests: reading so few is as cheap as asking epoll.
const FEW: usize = 4;

/// The key of the bell; the keys of gates are their numbers.
const BELL: u64 = u64::MAX;

/// Whether a worker with nothing to do sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// It polls for [`SPIN`] at most, then sleeps.
    #[default]
    Adaptive,
    /// It never sleeps.
    Busy,
}

#[derive(Debug)]
pub(super) struct Pacer {
    poller: Poller,
    /// Gates without a descriptor: while there are any, sleeping would miss their frames.
    deaf: usize,
    resting: usize,
    /// Gates that have been loud.
    unwatched: usize,
    /// Whether there has been a gate whose descriptor is watched edge-triggered.
    has_edges: bool,
    busy_until: Moment,
    /// How long to poll in vain at present.
    spin: Duration,
}

impl Pacer {
    pub(super) fn new(bell: &Bell) -> io::Result<Pacer> {
        let poller = Poller::new()?;
        poller.add(bell.as_fd(), BELL)?;
        Ok(Pacer {
            poller,
            deaf: 0,
            resting: 0,
            unwatched: 0,
            has_edges: false,
            busy_until: Moment::default(),
            spin: SPIN,
        })
    }

    /// Watches a gate that has been opened.
    pub(super) fn watch(&mut self, number: usize, gate: &Gate) -> io::Result<()> {
        let Some(fd) = gate.device.fd() else {
            self.deaf += 1;
            return Ok(());
        };
        let key = number as u64;
        if !gate.device.needs_inspection() {
            return self.poller.add(fd, key);
        }
        self.has_edges = true;
        self.poller.add_edges(fd, key)?;
        let Some(second) = gate.device.second_fd() else { return Ok(()) };
        self.poller.add_edges(second, key).inspect_err(|_| drop(self.poller.remove(fd)))
    }

    /// Removes the descriptors of a gate from the set. Whether they were in it.
    fn remove(&self, gate: &Gate, fd: BorrowedFd<'_>) -> bool {
        if let Some(second) = gate.device.second_fd() {
            let _ = self.poller.remove(second);
        }
        self.poller.remove(fd).is_ok()
    }

    /// Watches a gate no longer: it is about to be closed, or its device is gone.
    pub(super) fn forget(&mut self, gate: &mut Gate) {
        match gate.device.fd() {
            Some(_) if gate.loud == LOUD => self.unwatched -= 1,
            // The descriptor may be dead already, and out of the set with that.
            Some(fd) => drop(self.remove(gate, fd)),
            None => self.deaf -= 1,
        }
        gate.loud = 0;
        if gate.state == GateState::Resting {
            gate.state = GateState::Polled;
            self.resting -= 1;
        }
    }

    /// Notes that a gate had nothing to read.
    #[inline]
    pub(super) fn was_quiet(&mut self, number: usize, gate: &mut Gate, open: usize) {
        gate.quiet = gate.quiet.saturating_add(1);
        if gate.quiet >= QUIET && open > FEW && !gate.never_rests && self.watch_again(number, gate) {
            gate.state = GateState::Resting;
            self.resting += 1;
        }
    }

    /// Notes that a gate had something to read, or to send.
    #[inline]
    pub(super) fn was_loud(&mut self, gate: &mut Gate) {
        if gate.loud < LOUD && gate.state == GateState::Polled {
            gate.loud += 1;
            if gate.loud == LOUD {
                self.unwatch(gate);
            }
        }
    }

    #[cold]
    fn unwatch(&mut self, gate: &mut Gate) {
        match gate.device.fd() {
            Some(fd) if self.remove(gate, fd) => self.unwatched += 1,
            _ => gate.loud = 0,
        }
    }

    /// Whether a gate is watched, if need be again.
    fn watch_again(&mut self, number: usize, gate: &mut Gate) -> bool {
        if gate.loud == LOUD {
            if self.watch(number, gate).is_err() {
                return false;
            }
            self.unwatched -= 1;
        }
        gate.loud = 0;
        true
    }

    /// Whether all gates are watched, after those that have been loud are again.
    fn watch_all(&mut self, gates: &mut Gates) -> bool {
        for number in 0..gates.len() {
            if self.unwatched == 0 {
                break;
            }
            if let Some(gate) = gates.get_mut(number).filter(|gate| gate.loud == LOUD) {
                self.watch_again(number, gate);
            }
        }
        self.unwatched == 0
    }

    /// Looks which resting gates have something to read.
    #[inline]
    pub(super) fn rouse(&mut self, gates: &mut Gates, bell: &Bell) {
        if self.resting > 0 {
            self.wait(Duration::ZERO, gates, bell);
        }
    }

    /// Waits for a descriptor. Whether any of those reported has something to do.
    fn wait(&mut self, patience: Duration, gates: &mut Gates, bell: &Bell) -> bool {
        let (mut roused, mut has_work) = (0, false);
        let ready = |key, readable: bool| {
            if key == BELL {
                bell.clear();
                has_work = true;
            } else if let Some(gate) = usize::try_from(key).ok().and_then(|number| gates.get_mut(number)) {
                // A frame that has been received already leaves an edge behind.
                if !readable && gate.device.needs_inspection() && !gate.device.inspect() {
                    return;
                }
                has_work = true;
                if gate.state == GateState::Resting {
                    gate.state = GateState::Polled;
                    gate.quiet = 0;
                    roused += 1;
                }
            }
        };
        // Nothing that a running worker could do about an error of epoll, and none is documented
        // for a valid descriptor: the gates are read at the next breath all the same.
        let _ = self.poller.wait(patience, ready);
        self.resting -= roused;
        has_work
    }

    /// Notes that there was something to do at `now`.
    #[inline]
    pub(super) fn was_busy(&mut self, now: Moment) {
        self.busy_until = now;
    }

    /// Whether it is time to sleep, at `now`.
    #[inline]
    pub(super) fn is_tired(&self, now: Moment) -> bool {
        self.deaf == 0 && now.since(self.busy_until) >= self.spin
    }

    /// Notes that it was woken at `now`, and learns from how long the pause was.
    pub(super) fn was_woken(&mut self, now: Moment) {
        let pause = now.since(self.busy_until);
        self.spin = if pause <= SHORT { SPIN.min(self.spin * 2) } else { LEAST_SPIN.max(self.spin / 2) };
        self.busy_until = now;
    }

    /// Whether a device has work of which no descriptor will tell.
    fn has_untold_work(gates: &mut Gates, cache: &mut Cache) -> bool {
        let mut any = false;
        for number in 0..gates.len() {
            if let Some(gate) = gates.get_mut(number).filter(|gate| gate.state != GateState::Gone) {
                any |= gate.device.prepare_sleep(cache);
            }
        }
        any
    }

    /// Sleeps until something happens. `has_news` looks into mailbox and rings; whatever is put
    /// there after that rings the bell. It does not sleep while there is a gate that it cannot watch, as the
    /// kernel has no memory for that.
    pub(super) fn sleep(
        &mut self,
        gates: &mut Gates,
        cache: &mut Cache,
        bell: &Bell,
        has_news: impl FnOnce() -> bool,
    ) -> bool {
        bell.arm();
        let mut sleeps = self.watch_all(gates) && !has_news();
        if sleeps && self.has_edges {
            // Edges of frames that have been received would end the sleep at once.
            sleeps = !self.wait(Duration::ZERO, gates, bell);
        }
        if sleeps {
            let patience = if Pacer::has_untold_work(gates, cache) { SHORT_NAP } else { NAP };
            self.wait(patience, gates, bell);
        }
        bell.disarm();
        sleeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a worker whose frames come `gap` apart still sleeps, once it has got used to them.
    fn sleeps(gap: Duration) -> bool {
        let mut pacer = Pacer::new(&Bell::new().unwrap()).unwrap();
        let mut now = Moment::from_secs(1);
        let mut slept = false;
        for _ in 0..20 {
            pacer.was_busy(now);
            slept = pacer.is_tired(now + gap);
            now = now + gap;
            if slept {
                pacer.was_woken(now);
            }
        }
        slept
    }

    #[test]
    fn short_pauses_are_bridged_and_long_ones_slept_through() {
        assert!(!sleeps(Duration::from_micros(10)));
        assert!(!sleeps(Duration::from_micros(55)));
        assert!(sleeps(Duration::from_micros(100)));
        assert!(sleeps(Duration::from_secs(1)));
    }

    #[test]
    fn long_pauses_are_not_polled_through_in_vain() {
        let mut pacer = Pacer::new(&Bell::new().unwrap()).unwrap();
        let mut now = Moment::from_secs(1);
        for _ in 0..10 {
            pacer.was_busy(now);
            now = now + Duration::from_millis(1);
            pacer.was_woken(now);
        }
        assert!(pacer.is_tired(now + LEAST_SPIN));
    }
}
