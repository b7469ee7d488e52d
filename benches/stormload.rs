//! Load for `scripts/storm-lab`: traffic of two bystanders while a guest makes a loop or a storm, and what they
//! observe. Not run by `cargo bench`.
//!
//! ```text
//! stormload loop --a NETNS:DEVICE --b NETNS:DEVICE --guest NETNS:BRIDGE --seeds foreign|own
//!     [--before S] [--during S] [--after S] [--rate PPS] [--limit PPS --burst FRAMES] [--cpu N] [--other-cpu N]
//! stormload storm --a NETNS:DEVICE --b NETNS:DEVICE --storm NETNS:DEVICE [--to broadcast|multicast|unknown]
//!     [--rate PPS] [--time S] [--cpu N]
//! stormload stalls [--time S] [--cpu N]
//! ```
//!
//! `loop`: A sends requests to B at a rate, and B answers. B sends nothing else, so that the switch finds it only if it
//! still has its FDB entry. After a while the guest's bridge is set up, which closes a loop if it has two ports on one
//! network, and set down again. `foreign`: until then A and B each send a broadcast every 50 ms; `own`: the guest's
//! bridge sends a single one after it is up. Requests and measurement run on one core; the bridge and the broadcasts on
//! the other one, so that the storm does not run on the measuring core.
//!
//! `storm`: A sends to B at a rate; with the rest of the same core a third host sends as fast as it can.
//!
//! `stalls`: watches the clock of a core to measure how long the core does something else.
//!
//! All print one line of JSON. Latencies begin when a request was due, not when it was sent: a storm that delays the sender
//! delays the request. A frame that arrives within [`TIMEOUT`] is late, not lost. Percentiles are of all requests; one
//! that ends among lost ones is `null`.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

mod netdev;

use std::collections::HashMap;
use std::io::IoSlice;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use netdev::{EXPERIMENT, Place, stay_on};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use serde_json::{Value, json};
use vifswitch::sys::packet::{NOTHING, Socket, Statistics};
use vifswitch::wire::Mac;

/// Ethertypes for local experiments (IEEE 802-2014, 9.2.3), which no stack answers: requests of the bystanders, and
/// frames to multiply.
const TALK: u16 = EXPERIMENT;
const NOISE: u16 = 0x88b6;
/// Maximum latency. Long, because a thread that waits for a busy core is late without losing frames.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between broadcasts of a bystander.
const SEED: Duration = Duration::from_millis(50);
/// Sampling interval of a bystander's copies.
const LOOK: Duration = Duration::from_millis(10);
/// Window for rates of copies and for latencies.
const WINDOW: Duration = Duration::from_millis(100);
/// Minimum duration of a stall: longer than an interrupt.
const STALL: Duration = Duration::from_micros(200);
/// Maximum copies per window in ordinary traffic.
const ORDINARY: u64 = 10;

type Options<'a> = HashMap<&'a str, &'a str>;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let options: Options =
        words.get(1..).unwrap_or_default().chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let message = match words.first().map(String::as_str) {
        Some("loop") => around(&options),
        Some("storm") => storm(&options),
        Some("stalls") => stalls(&options),
        _ => {
            eprintln!("usage: stormload loop|storm|stalls --a NETNS:DEVICE --b NETNS:DEVICE …");
            std::process::exit(2);
        }
    };
    println!("{message}");
}

fn number(options: &Options, key: &str, default: f64) -> f64 {
    options.get(key).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{key}: {text}")))
}

fn seconds(options: &Options, key: &str, default: f64) -> Duration {
    Duration::from_secs_f64(number(options, key, default))
}

fn frame(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = [&to.octets(), &from.octets(), &kind.to_be_bytes()[..]].concat();
    frame.resize(60, 0);
    frame
}

/// One direction, from a netdev to another.
struct Way {
    from: Socket,
    to: Socket,
    frame: Vec<u8>,
}

impl Way {
    fn new(from: &Place, to: &Place) -> Way {
        Way { from: from.socket(NOTHING), to: to.socket(TALK), frame: frame(to.mac(), from.mac(), TALK) }
    }

    /// Sends a numbered frame. A frame that the kernel refuses is lost, as others are.
    fn send(&mut self, number: usize) {
        self.frame[14..18].copy_from_slice(&(number as u32).to_be_bytes());
        match self.from.send(&self.frame) {
            Err(e) if !matches!(Errno::from_io_error(&e), Some(Errno::AGAIN | Errno::NOBUFS)) => {
                panic!("sending: {e}")
            }
            _ => {}
        }
    }

    /// Number of the next received frame. Ignores frames of the other direction, which a loop returns.
    fn take(&self) -> Option<usize> {
        let mut room = [0; 2048];
        while let Some(received) = self.to.receive(&mut room).unwrap() {
            if received.len == self.frame.len() && room[..12] == self.frame[..12] {
                return Some(u32::from_be_bytes(room[14..18].try_into().unwrap()) as usize);
            }
        }
        None
    }
}

/// Numbered requests from one bystander to another, with the times when they were due and of arrival, or of the answer.
struct Talk {
    way: Way,
    back: Option<Way>,
    rate: f64,
    due: Vec<Duration>,
    /// Requests received by the other one.
    received: Vec<bool>,
    /// Duplicates received by the other one.
    again: u64,
    came: Vec<Option<Duration>>,
}

impl Talk {
    fn new(from: &Place, to: &Place, rate: f64, answered: bool) -> Talk {
        let (way, back) = (Way::new(from, to), answered.then(|| Way::new(to, from)));
        Talk { way, back, rate, due: vec![], received: vec![], again: 0, came: vec![] }
    }

    fn say(&mut self) {
        let number = self.due.len();
        self.due.push(Duration::from_secs_f64(number as f64 / self.rate));
        self.received.push(false);
        self.came.push(None);
        self.way.send(number);
    }

    /// Sends the requests that are due by this time, at most `most`. Whether these were all.
    fn say_due(&mut self, time: Duration, most: usize) -> bool {
        let due = ((time.as_secs_f64() * self.rate) as usize).saturating_sub(self.due.len());
        for _ in 0..due.min(most) {
            self.say();
        }
        due <= most
    }

    /// Receives at most `most` frames per direction. The first of several copies counts.
    fn receive(&mut self, begin: Instant, most: usize) {
        for _ in 0..most {
            let Some(number) = self.way.take() else { break };
            match self.received.get_mut(number) {
                Some(received @ false) => {
                    *received = true;
                    match &mut self.back {
                        Some(back) => back.send(number),
                        None => self.came[number] = Some(begin.elapsed()),
                    }
                }
                _ => self.again += 1,
            }
        }
        for _ in 0..most {
            let Some(number) = self.back.as_ref().and_then(Way::take) else { break };
            if let Some(came @ None) = self.came.get_mut(number) {
                *came = Some(begin.elapsed());
            }
        }
    }

    /// Whether all have arrived.
    fn is_complete(&self) -> bool {
        self.came.iter().all(Option::is_some)
    }

    /// Whether a request arrived in time.
    fn arrived(&self, number: usize) -> bool {
        self.came[number].is_some_and(|came| came.saturating_sub(self.due[number]) < TIMEOUT)
    }

    /// Requests due within a time span.
    fn within(&self, from: Duration, to: Duration) -> impl Iterator<Item = usize> {
        (0..self.due.len()).filter(move |&number| (from..to).contains(&self.due[number]))
    }
}

/// Loss and latency of the requests of a time span.
fn outcome(talk: &Talk, from: Duration, to: Duration) -> Value {
    let (mut sent, mut lost, mut times) = (0u64, 0u64, Vec::new());
    for number in talk.within(from, to) {
        sent += 1;
        lost += u64::from(!talk.arrived(number));
        let came = talk.came[number].filter(|_| talk.arrived(number));
        times.extend(came.map(|came| came.saturating_sub(talk.due[number]).as_secs_f64() * 1e6));
    }
    times.sort_by(f64::total_cmp);
    // lost ones come last
    let at = |part: f64| times.get((sent as f64 * part) as usize).map(|us| (us * 10.0).round() / 10.0);
    json!({ "sent": sent, "lost": lost, "p50_us": at(0.5), "p99_us": at(0.99) })
}

/// When the guest's bridge was set up or down.
#[derive(Debug, Clone, Copy)]
struct BridgeCycle {
    /// Just before the loop was closed, or just after it was opened; since the start of the measurement.
    at: Duration,
    /// The same as wall clock time.
    wall: SystemTime,
}

struct Loop<'a> {
    places: [Place; 2],
    guest: Place,
    own: bool,
    options: &'a Options<'a>,
    closed: OnceLock<BridgeCycle>,
    opened: OnceLock<BridgeCycle>,
}

fn around(options: &Options) -> Value {
    let [a, b, guest] = ["--a", "--b", "--guest"].map(|key| Place::written(options[key]));
    let own = match options["--seeds"] {
        "own" => true,
        "foreign" => false,
        other => panic!("--seeds {other}: own or foreign"),
    };
    let (closed, opened) = (OnceLock::new(), OnceLock::new());
    let it = Loop { places: [a, b], guest, own, options, closed, opened };
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| it.make(begin));
        it.measure(begin)
    })
}

impl Loop<'_> {
    /// Closes and opens the loop, and sends the broadcasts that circulate in it.
    fn make(&self, begin: Instant) {
        stay_on(number(self.options, "--other-cpu", 1.0) as usize);
        let [before, during] =
            [("--before", 1.0), ("--during", 2.0)].map(|(key, default)| seconds(self.options, key, default));
        let seeds = self.places.each_ref().map(|place| {
            let frame = frame(Mac::BROADCAST, place.mac(), NOISE);
            (place.socket(NOTHING), frame)
        });
        let bridge = |state: &str| {
            let path = self.guest.netns.path().expect("a named namespace");
            let ns = path.file_name().unwrap().to_str().unwrap();
            let done = Command::new("ip").args(["-n", ns, "link", "set", "dev", &self.guest.device, state]).status();
            assert!(done.unwrap().success(), "cannot set the guest's bridge {state}");
        };
        let seed_until = |end: Duration| {
            while begin.elapsed() < end {
                if !self.own {
                    // Ignores errors: the storm may fill the queue.
                    seeds.iter().for_each(|(socket, frame)| drop(socket.send(frame)));
                }
                thread::sleep(SEED.min(end.saturating_sub(begin.elapsed())));
            }
        };
        seed_until(before);
        self.closed.set(BridgeCycle { at: begin.elapsed(), wall: SystemTime::now() }).unwrap();
        bridge("up");
        if self.own {
            self.guest.socket(NOTHING).send(&frame(Mac::BROADCAST, self.guest.mac(), NOISE)).unwrap();
        }
        seed_until(before + during);
        bridge("down");
        self.opened.set(BridgeCycle { at: begin.elapsed(), wall: SystemTime::now() }).unwrap();
    }

    /// Sends requests until the end, and measures.
    fn measure(&self, begin: Instant) -> Value {
        stay_on(number(self.options, "--cpu", 0.0) as usize);
        let [a, b] = &self.places;
        let mut talk = Talk::new(a, b, number(self.options, "--rate", 1000.0), true);
        let mut seen = Seen::new(b);
        let after = seconds(self.options, "--after", 2.0);
        loop {
            let now = begin.elapsed();
            let ended = self.opened.get().map(|turn| turn.at + after);
            if ended.is_some_and(|end| now > end + TIMEOUT || now > end && talk.is_complete()) {
                break;
            }
            talk.say_due(ended.map_or(now, |end| now.min(end)), 16);
            talk.receive(begin, 256);
            if seen.samples.last().is_none_or(|(at, _)| now > *at + LOOK) {
                seen.look(begin, &talk);
            }
        }
        self.report(&talk, &seen)
    }

    fn report(&self, talk: &Talk, seen: &Seen) -> Value {
        let (closed, opened) = (*self.closed.get().unwrap(), *self.opened.get().unwrap());
        let warm = closed.at.mul_f64(0.2);
        let end = opened.at + seconds(self.options, "--after", 2.0);
        let (rate, burst) = (number(self.options, "--limit", 500.0), number(self.options, "--burst", 500.0));
        let copies = seen.between(closed.at, opened.at);
        // plus the first frames from A to B, twice
        let allowed = |t: Duration| burst + (rate + 2.0 / SEED.as_secs_f64()) * t.as_secs_f64() + 2.0;
        // time of the last one in the span; `null` if the span ends with one
        let until = |bad: Vec<Duration>| match bad.last() {
            None => json!(0.0),
            Some(&last) if last + 2 * WINDOW > opened.at => Value::Null,
            Some(&last) => json!((last - closed.at).as_secs_f64()),
        };
        let samples = || seen.samples.iter().filter(|(at, _)| (closed.at..opened.at).contains(at));
        let excess = samples()
            .filter(|(at, _)| seen.between(closed.at, *at) as f64 > allowed(*at - closed.at))
            .map(|(at, _)| *at);
        let noisy = samples().filter(|(at, _)| seen.between(*at - WINDOW, *at) > ORDINARY).map(|(at, _)| *at);
        let peak = samples().map(|(at, _)| seen.between(*at - WINDOW, *at)).max().unwrap_or_default();
        let lost_after = talk.within(opened.at, end).filter(|&number| !talk.arrived(number));
        let healed = match lost_after.map(|number| talk.due[number]).max() {
            None => json!(0.0),
            Some(last) if last + 2 * WINDOW > end => Value::Null,
            Some(last) => json!((last - opened.at).as_secs_f64()),
        };
        json!({
            "closed": wall(closed.wall), "opened": wall(opened.wall),
            "seconds": (opened.at - closed.at).as_secs_f64(),
            "before": outcome(talk, warm, closed.at),
            "during": outcome(talk, closed.at, opened.at),
            "after": outcome(talk, opened.at, end),
            "seeds": if self.own { 1 } else { seen_seeds(opened.at - closed.at) }, "copies": copies, "allowed": allowed(opened.at - closed.at) as u64,
            "copies_per_second": copies as f64 / (opened.at - closed.at).as_secs_f64(),
            "peak_per_second": peak as f64 / WINDOW.as_secs_f64(),
            "contained": until(excess.collect()), "still": until(noisy.collect()), "healed": healed,
        })
    }
}

/// Broadcasts of the other bystander that one receives within a time.
fn seen_seeds(time: Duration) -> u64 {
    time.div_duration_f64(SEED).ceil() as u64
}

/// Seconds since 1970.
fn wall(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Samples of the number of frames that a bystander has received and that were not for it, or duplicates.
struct Seen {
    noise: Socket,
    /// Broadcasts received so far.
    received: u64,
    samples: Vec<(Duration, u64)>,
}

impl Seen {
    fn new(place: &Place) -> Seen {
        let noise = place.socket(NOISE);
        // Not read: frames that do not fit are counted as well, at least cost.
        noise.set_room(0, 0).unwrap();
        Seen { noise, received: 0, samples: vec![] }
    }

    fn look(&mut self, begin: Instant, talk: &Talk) {
        let Statistics { taken, lost } = self.noise.statistics().unwrap();
        self.received += u64::from(taken) + u64::from(lost);
        self.samples.push((begin.elapsed(), self.received + talk.again));
    }

    /// Number of frames received between two times.
    fn between(&self, from: Duration, to: Duration) -> u64 {
        let at = |time: Duration| {
            let after = self.samples.partition_point(|(at, _)| *at <= time);
            self.samples[after.saturating_sub(1)].1
        };
        at(to).saturating_sub(at(from))
    }
}

fn storm(options: &Options) -> Value {
    const BURST: usize = 8;
    stay_on(number(options, "--cpu", 0.0) as usize);
    let [a, b, x] = ["--a", "--b", "--storm"].map(|key| Place::written(options[key]));
    let (rate, time) = (number(options, "--rate", 100_000.0), seconds(options, "--time", 2.0));
    let to = match options.get("--to").copied().unwrap_or("broadcast") {
        "broadcast" => Mac::BROADCAST,
        "multicast" => Mac::from_bits(0x0100_5e01_0203),
        "unknown" => Mac::from_bits(0x0200_0000_dead),
        other => panic!("--to {other}: broadcast, multicast or unknown"),
    };
    let (noise, socket) = (frame(to, x.mac(), NOISE), x.socket(NOTHING));
    let mut talk = Talk::new(&a, &b, rate, false);
    // The receiver sends first, so that the switch learns its port.
    Way::new(&b, &a).send(0);
    let warm = Duration::from_millis(200);
    let (begin, mut storm) = (Instant::now(), 0u64);
    while begin.elapsed() < warm + time {
        let is_on_time = talk.say_due(begin.elapsed(), BURST);
        talk.receive(begin, 64);
        if !is_on_time {
            continue;
        }
        let slices = [IoSlice::new(&noise)];
        let mut controls: [_; BURST] = std::array::from_fn(|_| SendAncillaryBuffer::default());
        let mut messages: Vec<_> = controls.iter_mut().map(|control| MMsgHdr::new(&slices, control)).collect();
        match sendmmsg(&socket, &mut messages, SendFlags::DONTWAIT) {
            Ok(sent) => storm += sent as u64,
            Err(Errno::AGAIN | Errno::NOBUFS) => {}
            Err(e) => panic!("sending: {e}"),
        }
    }
    let spent = begin.elapsed();
    while !talk.say_due(spent, BURST) {
        talk.receive(begin, 64);
    }
    while begin.elapsed() < spent + TIMEOUT && !talk.is_complete() {
        talk.receive(begin, 64);
    }
    let stored = talk.within(warm, spent).count() as f64 / (spent - warm).as_secs_f64();
    let mut message = outcome(&talk, warm, spent);
    let windows = (0..).map(|number| warm + number * WINDOW).take_while(|&from| from + WINDOW <= spent);
    let p99s: Vec<_> = windows.map(|from| outcome(&talk, from, from + WINDOW)["p99_us"].take()).collect();
    let storm = (storm as f64 / spent.as_secs_f64()).round();
    let more = json!({ "rate": stored.round(), "storm_per_second": storm, "p99s_us": p99s });
    message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    message
}

fn stalls(options: &Options) -> Value {
    stay_on(number(options, "--cpu", 1.0) as usize);
    let time = seconds(options, "--time", 2.0);
    let (begin, mut last, mut stalls) = (Instant::now(), Duration::ZERO, Vec::new());
    while last < time {
        let now = begin.elapsed();
        stalls.extend(Some(now - last).filter(|&stall| stall > STALL));
        last = now;
    }
    let [all, max_len] = [stalls.iter().sum(), stalls.iter().max().copied().unwrap_or_default()];
    json!({ "cpu": number(options, "--cpu", 1.0), "stalled": all.as_secs_f64() / time.as_secs_f64(),
        "longest_ms": max_len.as_secs_f64() * 1e3 })
}
