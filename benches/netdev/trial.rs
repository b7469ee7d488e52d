//! Trials: frames from one netdev to another, whatever connects them, at full speed or at a rate.
//!
//! At a rate, frame n is *due* at n / rate after the start. A sender that is late sends the frame as soon as it can, and its
//! latency begins when it was due: a switch that slows the sender down makes no frame look faster. A frame that does not
//! arrive has an infinite latency.

use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use vifswitch::sys::packet::NOTHING;

use super::generator::{BURST, Generator};
use super::sink::Sink;
use super::{EXPERIMENT, Place};

const HERE: [u8; 6] = [2, 0xaa, 0, 0, 0, 0];
const THERE: [u8; 6] = [2, 0xbb, 0, 0, 0, 0];
/// A frame that has not arrived this long after the last one was sent is lost.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Pause of a sender that sleeps while no frame is due.
const PAUSE: Duration = Duration::from_micros(50);
/// Maximum change of the host's clock during a trial.
const STEP: Duration = Duration::from_millis(1);
/// Steps of the search for the no-drop rate; each halves the interval.
const STEPS: u32 = 7;
/// A sender that is slower than this share of the rate has not tried that rate.
const KEPT: f64 = 0.97;

/// A path from a netdev to another one.
pub struct Trial {
    from: Place,
    to: Place,
    size: usize,
}

/// Frames per second.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    pub offered: f64,
    pub received: f64,
}

/// Latencies of all frames of a trial at a rate.
#[derive(Debug, Clone)]
pub struct Latencies {
    /// In µs, ascending; infinite for each lost frame.
    all: Vec<f64>,
    /// Until the last frame was sent.
    pub rates: Rates,
}

impl Latencies {
    /// The latency, in µs, that this share of the frames does not exceed.
    pub fn at(&self, share: f64) -> f64 {
        let at = (self.all.len() as f64 * share).ceil() as usize;
        self.all[at.clamp(1, self.all.len()) - 1]
    }

    /// Frames that were due.
    pub fn sent(&self) -> usize {
        self.all.len()
    }

    pub fn lost(&self) -> usize {
        self.all.iter().filter(|latency| latency.is_infinite()).count()
    }
}

/// When frames are due.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub rate: f64,
    pub frames: u64,
}

impl Schedule {
    /// Time after the start at which a frame is due.
    pub fn due(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.rate)
    }

    /// Frames that are due by this time after the start.
    pub fn due_by(&self, time: Duration) -> u64 {
        ((time.as_secs_f64() * self.rate) as u64 + 1).min(self.frames)
    }
}

/// The host's clock, which the kernel stamps frames with, since 1970.
fn wall() -> Duration {
    let time = clock_gettime(ClockId::Realtime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Trial {
    /// `size` counts the FCS (4 bytes).
    pub fn new(from: Place, to: Place, size: usize) -> Trial {
        Trial { from, to, size }
    }

    fn frame(&self, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        let mut frame = [to, from].concat();
        frame.extend(EXPERIMENT.to_be_bytes());
        frame.resize(self.size - 4, 0);
        frame
    }

    /// A generator. The receiver sends a frame first, from which the switch learns its port.
    fn generator(&self) -> Generator {
        self.to.socket(NOTHING).send(&self.frame(HERE, THERE)).unwrap();
        Generator::new(&self.from, &self.frame(THERE, HERE))
    }

    /// Sends as fast as possible. Counts what the receiving netdev gets within the time.
    pub fn flood(&self, warm_up: Duration, time: Duration) -> Rates {
        let mut generator = self.generator();
        let mut counters = self.to.counters();
        let mut send_for = |time: Duration| {
            let begin = Instant::now();
            while begin.elapsed() < time {
                generator.send(BURST);
            }
        };
        send_for(warm_up);
        let (before, begin) = (counters.received(), Instant::now());
        let mut sent = 0;
        while begin.elapsed() < time {
            sent += generator.send(BURST);
        }
        let (received, spent) = (counters.received() - before, begin.elapsed().as_secs_f64());
        Rates { offered: sent as f64 / spent, received: received as f64 / spent }
    }

    /// Latencies at a rate. Frames of the warm-up are not counted. With `sleeps` the sender sleeps while nothing is due.
    pub fn paced(&self, rate: f64, burst: u64, warm_up: Duration, time: Duration, sleeps: bool) -> Latencies {
        let (mut generator, mut sink) = (self.generator(), Sink::new(&self.to));
        let schedule = Schedule { rate, frames: ((warm_up + time).as_secs_f64() * rate) as u64 };
        let first = schedule.due_by(warm_up) as usize - 1;
        let mut came: Vec<Option<Duration>> = vec![None; schedule.frames as usize];
        let mut arrived = 0;
        let (began, begin) = (wall(), Instant::now());
        let mut last = begin;
        let give_up = 2 * (warm_up + time);
        while arrived < schedule.frames && last.elapsed() < TIMEOUT {
            let now = begin.elapsed();
            let due = schedule.due_by(now) - generator.sent();
            if due > 0 && now < give_up {
                generator.send(due.min(burst));
                last = Instant::now();
            }
            for _ in 0..BURST {
                let Some((number, time)) = sink.take() else { break };
                if let Some(came @ None) = came.get_mut(number as usize) {
                    *came = Some(time);
                    arrived += 1;
                }
            }
            if sleeps && due <= burst {
                thread::sleep(PAUSE);
            }
        }
        let spent = last.duration_since(begin);
        let step = (wall() - began).abs_diff(begin.elapsed());
        assert!(step < STEP, "the clock of the host was set during the trial, by {step:?}");
        assert_eq!(sink.missed(), 0, "the sink has missed frames");
        let latency = |(number, came): (usize, &Option<Duration>)| {
            let since = began + schedule.due(number as u64);
            came.map_or(f64::INFINITY, |came| came.saturating_sub(since).as_secs_f64() * 1e6)
        };
        let mut all: Vec<f64> = came.iter().enumerate().skip(first).map(latency).collect();
        all.sort_unstable_by(f64::total_cmp);
        let [offered, received] = [generator.sent(), arrived].map(|frames| frames as f64 / spent.as_secs_f64());
        Latencies { all, rates: Rates { offered, received } }
    }

    /// Frames received of those sent at a rate, counted by the receiving netdev.
    fn counted(&self, rate: f64, time: Duration) -> (Rates, f64) {
        let mut generator = self.generator();
        let mut counters = self.to.counters();
        let schedule = Schedule { rate, frames: (time.as_secs_f64() * rate) as u64 };
        let (before, begin) = (counters.received(), Instant::now());
        while generator.sent() < schedule.frames && begin.elapsed() < 2 * time {
            let due = schedule.due_by(begin.elapsed()) - generator.sent();
            if due > 0 {
                generator.send(due);
            }
        }
        let spent = begin.elapsed().as_secs_f64();
        // until none arrives any more
        let (mut received, mut last) = (0, Instant::now());
        while received < generator.sent() && last.elapsed() < TIMEOUT / 10 {
            let now = counters.received() - before;
            if now > received {
                (received, last) = (now, Instant::now());
            }
        }
        let rates = Rates { offered: generator.sent() as f64 / spent, received: received as f64 / spent };
        (rates, 1.0 - received as f64 / generator.sent() as f64)
    }

    /// The highest rate, found by bisection, of which at most this share is lost. Zero if there is none.
    pub fn no_drop(&self, loss: f64, time: Duration) -> Rates {
        let most = self.flood(time / 5, time);
        let (mut low, mut high) = (0.0, most.offered.min(1.3 * most.received));
        let mut best = Rates::default();
        for step in 0..STEPS {
            let rate = if step == 0 { high } else { (low + high) / 2.0 };
            let (rates, lost) = self.counted(rate, time);
            if lost <= loss && rates.offered >= KEPT * rate {
                (low, best) = (rate, rates);
                if step == 0 {
                    break;
                }
            } else {
                high = rate;
            }
        }
        best
    }
}
