//! The generator and the sink of `scripts/bench`, between two real taps and a bare loop. Needs root.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use support::host::Namespace;

use crate::netdev::Place;
use crate::netdev::forward::{self, Forwarder};
use crate::netdev::generator::BURST;
use crate::netdev::trial::{Latencies, Schedule, Trial};

const RATE: f64 = 2000.0;
const TIME: Duration = Duration::from_millis(200);

/// Two taps in a namespace, up.
struct Taps {
    namespace: Namespace,
    forwarder: Forwarder,
}

impl Taps {
    fn new() -> Option<Taps> {
        let namespace = Namespace::new()?;
        let forwarder = namespace.run_in(|| forward::open(["a", "b"], true));
        for tap in ["a", "b"] {
            namespace.ip(&format!("link set dev {tap} up"));
        }
        Some(Taps { namespace, forwarder })
    }

    fn place(&self, device: &str) -> Place {
        Place { netns: self.namespace.netns(), device: device.into() }
    }

    fn trial(&self, size: usize) -> Trial {
        Trial::new(self.place("a"), self.place("b"), size)
    }

    fn received(&self) -> u64 {
        self.place("b").counters().received()
    }

    /// Does `work` while frames are forwarded.
    fn forwarding<T>(&self, work: impl FnOnce() -> T) -> T {
        let ended = AtomicBool::new(false);
        thread::scope(|threads| {
            threads.spawn(|| self.forwarder.run(true, || ended.load(Ordering::Relaxed)));
            let _end = End(&ended);
            work()
        })
    }
}

/// Ends the forwarder, also when a check fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// That of a rate, of which all frames count.
fn paced(trial: &Trial, rate: f64, time: Duration, sleeps: bool) -> Latencies {
    trial.paced(rate, BURST, Duration::ZERO, time, sleeps)
}

#[test]
fn the_load_generator_counts_each_frame_and_its_latency_between_taps() {
    let Some(taps) = Taps::new() else { return };
    taps.forwarding(|| {
        for (size, sleeps) in [(64, true), (1518, false)] {
            let before = taps.received();
            let them = paced(&taps.trial(size), RATE, TIME, sleeps);
            assert_eq!((them.sent(), them.lost()), (400, 0), "{size} bytes");
            assert_eq!(taps.received() - before, 400, "{size} bytes");
            let [half, most, all] = [0.5, 0.99, 1.0].map(|share| them.at(share));
            assert!(0.0 < half && half <= most && most <= all && all.is_finite(), "{half} {most} {all}");
        }
        let rates = taps.trial(64).flood(Duration::ZERO, TIME);
        assert!(rates.received > 0.0 && rates.offered > 0.0, "{rates:?}");
    });
}

/// A switch that loses frames, or slows the sender down, must not look faster for it.
#[test]
fn lost_frames_and_frames_that_could_not_be_sent_have_an_infinite_latency() {
    let Some(taps) = Taps::new() else { return };
    let trial = taps.trial(64);
    let lost = paced(&trial, RATE, TIME, false);
    assert_eq!((lost.sent(), lost.lost()), (400, 400));
    assert_eq!(lost.at(0.001), f64::INFINITY);
    // More than any sender sends: what is due and never sent counts.
    let hasty = taps.forwarding(|| paced(&trial, 1e8, Duration::from_millis(5), false));
    assert_eq!(hasty.sent(), 500_000);
    assert!(hasty.lost() > 250_000 && hasty.rates.offered < 1e8, "{} lost", hasty.lost());
    assert_eq!(hasty.at(0.99), f64::INFINITY);
}

/// A frame that is sent late was due at its time all the same.
#[test]
fn frames_are_due_by_their_number_alone() {
    let schedule = Schedule { rate: 1000.0, frames: 500 };
    assert_eq!(schedule.due(0), Duration::ZERO);
    assert_eq!(schedule.due(250), Duration::from_millis(250));
    for (time, due) in [(0, 1), (99, 100), (499, 500), (700, 500)] {
        assert_eq!(schedule.due_by(Duration::from_millis(time)), due, "after {time} ms");
    }
}
