//! Streams of numbered frames through the switch, and beside them a control stream over a veth outside it: their longest
//! gaps show a switch that stands still, although no queue overflows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::thread::nanosleep;
use vifswitch::time::{self, MonoTime};
use vifswitch::wire::Mac;

use super::core_waits::{CoreWaits, longer};
use super::daemon::{Daemon, Vif};
use super::nic::{Nic, experiment};
use super::{Finally, Namespace, await_that};

/// Interval between two looks at the clock.
const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000 };

/// Maximum frames of a stream at once: a sender that was not scheduled does not catch up.
const BURST: u64 = 32;

/// What a gap may be longer than promised, besides twice the gap of the control. How long workers waited for a core is
/// not part of a gap; but other load takes time from the kernel's threads, too.
const TOLERANCE: Duration = Duration::from_millis(500);

/// The same for the shortest of several times: what the switch causes recurs each time.
const RECURRING: Duration = Duration::from_millis(60);

/// Asserts a promised time, where the control took so long in the same run.
pub fn assert_within(what: &str, promised: Duration, took: Duration, control: Duration) {
    println!("{what}: {took:?} of {promised:?}, control {control:?}");
    assert!(took <= promised + TOLERANCE + 2 * control, "{what}: {took:?}, promised {promised:?}, control {control:?}");
}

/// Asserts that the shortest of several times, each with that of the control, is as promised.
pub fn assert_shortest_within(what: &str, promised: Duration, took: &[(Duration, Duration)]) {
    println!("{what}: {took:?} of {promised:?}");
    let is_kept = |&(took, control): &(Duration, Duration)| took <= promised + RECURRING + 2 * control;
    assert!(took.iter().any(is_kept), "{what}: {took:?}, promised {promised:?}");
}

/// A veth outside the switch, and its ends.
pub fn veth() -> Option<(Namespace, [Nic; 2])> {
    let namespace = Namespace::new()?;
    namespace.ip("link add veth0 type veth peer name veth1");
    let ends = ["veth0", "veth1"];
    ends.iter().for_each(|end| namespace.ip(&format!("link set dev {end} up")));
    let ends = ends.map(|end| Nic::new(&namespace, end));
    Some((namespace, ends))
}

/// Numbered frames from one netdev to another.
pub struct Stream {
    sender: Nic,
    pub receiver: Nic,
    /// Destination and source.
    addresses: (Mac, Mac),
    sent: u64,
    /// The number after that of the last received frame.
    came: u64,
    missing: u64,
    last: MonoTime,
    longest_gap: Duration,
}

impl Stream {
    pub fn new(sender: Nic, receiver: Nic, addresses: (Mac, Mac)) -> Stream {
        Stream {
            sender,
            receiver,
            addresses,
            sent: 0,
            came: 0,
            missing: 0,
            last: time::now(),
            longest_gap: Duration::ZERO,
        }
    }

    /// From one port to another, each with its guest's namespace.
    pub fn between((from, sender): (&Namespace, &Vif), (to, receiver): (&Namespace, &Vif)) -> Stream {
        let addresses = (receiver.mac, sender.mac);
        Stream::new(Nic::new(from, &sender.name), Nic::new(to, &receiver.name), addresses)
    }

    fn send(&mut self) {
        let (to, from) = self.addresses;
        // Between two runs of the switch a tap has no carrier.
        let _ = self.sender.try_send(&experiment(to, from, &self.sent.to_be_bytes()));
        self.sent += 1;
    }

    fn read(&mut self, waits: Option<&CoreWaits>) {
        let (to, from) = self.addresses;
        let header = [to.octets(), from.octets()].concat();
        while let Some(frame) = self.receiver.try_take() {
            // Other frames may arrive, some of them flooded.
            if !frame.starts_with(&header) {
                continue;
            }
            // Behind a tag, if there is one.
            let at = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
            let number = u64::from_be_bytes(frame[at..at + 8].try_into().unwrap());
            assert!(number >= self.came, "{number} after {}: reordered or duplicated", self.came);
            self.missing += number - self.came;
            self.came = number + 1;
            let now = time::now();
            self.longest_gap = longer(self.longest_gap, (self.last, now), waits);
            self.last = now;
        }
    }
}

/// Longest gaps during an operation, without the time for which workers waited for a core.
#[derive(Debug)]
pub struct Gaps {
    /// Of each stream through the switch, and the longest of them.
    pub each: Vec<Duration>,
    pub switch: Duration,
    pub control: Duration,
    /// Frames sent, and those lost through the switch.
    pub sent: u64,
    pub missing: u64,
}

impl Gaps {
    /// Asserts that no frame was lost, and that the switch did not stand still.
    pub fn assert_smooth(&self, what: &str) {
        assert!(self.sent > 0 && self.missing == 0, "{what}: {self:?}");
        assert_within(what, Duration::ZERO, self.switch, self.control);
    }

    /// The same for an operation that was repeated.
    pub fn assert_all_smooth(all: &[Gaps], what: &str) {
        all.iter().for_each(|gaps| gaps.assert_smooth(what));
        let all: Vec<_> = all.iter().map(|gaps| (gaps.switch, gaps.control)).collect();
        assert_shortest_within(what, Duration::ZERO, &all);
    }
}

/// Streams through the switch, and one over a veth outside the switch, sent and received by one thread.
pub struct Streams {
    pub switch: Vec<Stream>,
    control: Stream,
    _veth: Namespace,
    /// Of the switch, unless it is started again.
    waits: Option<CoreWaits>,
    /// Frames per second of each stream.
    rate: u64,
    /// Maximum frames of each stream in flight: as many as any queue holds, or more where frames are lost.
    window: u64,
}

impl Streams {
    /// Streams of `rate` frames per second through a switch that is a process. `None` if the host cannot run the test.
    pub fn through(daemon: &Daemon, rate: u64, switch: Vec<Stream>) -> Option<Streams> {
        Streams::new(rate, switch).map(|streams| Streams { waits: Some(CoreWaits::of(daemon.pid())), ..streams })
    }

    /// The same, through a switch that is part of the test.
    pub fn new(rate: u64, switch: Vec<Stream>) -> Option<Streams> {
        let (veth, [from, to]) = veth()?;
        let control = Stream::new(from, to, switch[0].addresses);
        Some(Streams { switch, control, _veth: veth, waits: None, rate, window: 2 * BURST })
    }

    /// The same, to be interrupted: frames are sent whether earlier ones have arrived or not.
    pub fn interrupted(rate: u64, switch: Vec<Stream>) -> Option<Streams> {
        Streams::new(rate, switch).map(|streams| Streams { window: u64::MAX, ..streams })
    }

    fn each(&mut self, work: impl FnMut(&mut Stream)) {
        self.switch.iter_mut().chain([&mut self.control]).for_each(work);
    }

    fn read(&mut self) {
        self.switch.iter_mut().for_each(|stream| stream.read(self.waits.as_ref()));
        self.control.read(None);
    }

    /// Longest gaps while another thread does `work`, of a switch that is a process and goes on running.
    pub fn gaps_of(&mut self, daemon: &Daemon, work: impl FnOnce() + Send) -> Gaps {
        self.waits = Some(CoreWaits::of(daemon.pid()));
        let gaps = self.gaps_during(work);
        self.waits = None;
        gaps
    }

    /// Longest gaps while another thread does `work`.
    pub fn gaps_during(&mut self, work: impl FnOnce() + Send) -> Gaps {
        let start = time::now();
        self.each(|stream| (stream.missing, stream.last, stream.longest_gap) = (0, start, Duration::ZERO));
        let before = self.switch[0].sent;
        let (rate, window) = (self.rate, self.window);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let work = scope.spawn(|| {
                let _done = Finally(&done);
                work();
            });
            let mut scheduled = 0;
            // Later frames show a gap that lasts to the end.
            let mut behind = 0;
            while behind < 20 {
                let due = time::now().since(start).as_micros() as u64 * rate / 1_000_000;
                let burst = (due - scheduled).min(BURST);
                scheduled = due;
                self.each(|stream| {
                    (0..burst.min(window.saturating_sub(stream.sent - stream.came))).for_each(|_| stream.send());
                });
                self.read();
                if let Some(waits) = &mut self.waits {
                    waits.sample();
                }
                behind += u32::from(done.load(Ordering::Relaxed) && burst > 0);
                let _ = nanosleep(&INTERVAL);
            }
            work.join().unwrap();
        });
        await_that("the last frames of all streams", || {
            self.read();
            let has_ended = |stream: &Stream| stream.came == stream.sent;
            (self.switch.iter().all(has_ended) && has_ended(&self.control)).then_some(())
        });
        assert_eq!(self.control.missing, 0, "by the veth");
        let each: Vec<Duration> = self.switch.iter().map(|stream| stream.longest_gap).collect();
        Gaps {
            switch: each.iter().copied().max().unwrap(),
            each,
            control: self.control.longest_gap,
            sent: self.switch[0].sent - before,
            missing: self.switch.iter().map(|stream| stream.missing).sum(),
        }
    }
}
