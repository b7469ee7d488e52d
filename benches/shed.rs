//! Cost of a broadcast storm with and without early drop in XDP: one worker with two AF_XDP ports on taps, one of which
//! receives broadcasts at full speed, with the default limit. Run as root.
//!
//! ```text
//! cargo bench --bench shed -- [--runs 3] [--seconds 2]
//! ```
//!
//! The tap's owner writes on core 0; the worker is on core 1 and may sleep. On a tap the program runs on the owner's
//! core, so that its cost shows in the rate that the owner reaches. Without early drop the worker is the same, over a
//! device that ignores requests to drop. Prints the worker's CPU time in percent of a core and per frame of the storm,
//! as medians over interleaved runs. Needs an idle machine: if the worker does not get its core, frames are missed in
//! either case.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use vifswitch::device::xdp::{self, Mode, Settings};
use vifswitch::device::{Device, DeviceCaps};
use vifswitch::frame::{Batch, Magazine, TxBatch, TxStats};
use vifswitch::switch::StormLimits;
use vifswitch::sys::cores;
use vifswitch::wire::Mac;
use vifswitch::worker::{Command, Pace, RxQueue};

use support::host::Namespace;
use support::host::nic::Nic;
use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// A device that ignores requests to drop.
struct NoEarlyDrop(Box<dyn Device>);

impl Device for NoEarlyDrop {
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()> {
        self.0.receive(batch, magazine)
    }
    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        self.0.transmit(tx, batch, magazine)
    }
    fn release(&mut self) {
        self.0.release();
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }
    fn is_cheap_to_poll(&self) -> bool {
        self.0.is_cheap_to_poll()
    }
    fn max_burst(&self) -> usize {
        self.0.max_burst()
    }
    fn moderation_time(&self) -> Duration {
        self.0.moderation_time()
    }
    fn caps(&self) -> DeviceCaps {
        self.0.caps()
    }
    fn rx_missed(&mut self) -> u64 {
        self.0.rx_missed()
    }
}

/// Result of a run.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Frames per second that the owner has written.
    offered: f64,
    /// Share of these that found the rings full.
    rx_missed: f64,
    /// Share of the time that the worker was running.
    busy: f64,
    /// CPU time of the worker in nanoseconds per written frame.
    each: f64,
}

fn on_core(core: usize) {
    assert!(cores::pin(core), "core {core} is not available");
}

fn run(sheds: bool, len: usize, long: Duration) -> Option<Figures> {
    let namespace = Namespace::new()?;
    let taps = ["storm", "other"].map(|name| {
        let tap = Nic::owned_tap(&namespace, name);
        namespace.ip(&format!("link set dev {name} up"));
        tap
    });
    let mut lab = Lab::new(Setup { slots: 16384, ..Setup::default() }, &[PortSpec::new(0, 0), PortSpec::new(0, 1)]);
    lab.change_ports(|ports| ports[0].storm.limits = StormLimits::VM_DEFAULT.into());
    for (name, port) in ["storm", "other"].into_iter().zip(lab.ports.clone()) {
        let settings = Settings {
            name: name.into(),
            netns: namespace.netns(),
            queues: None,
            mode: Mode::Auto,
            replace_xdp_program: false,
            mtu: 1500,
            vlan_demux: false,
            fill: 2048,
            owner: name.into(),
        };
        let device = xdp::open(&settings, lab.pool).unwrap().queues.remove(0);
        lab.close(port, 0).expect("its in-memory device");
        lab.open(RxQueue::new(port, 0, if sheds { device } else { Box::new(NoEarlyDrop(device)) }));
    }
    let worker = lab.workers.remove(0);
    let thread = thread::spawn(move || {
        on_core(1);
        worker.run(Pace::Adaptive);
        let spent = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
    });
    let bytes = frame(Mac::BROADCAST, mac(0), 0x88b5, &vec![7; len - 14]);
    let (start, mut sent) = (Instant::now(), 0u64);
    while start.elapsed() < long {
        for _ in 0..64 {
            taps[0].send(&bytes);
        }
        sent += 64;
        while taps[1].try_take().is_some() {}
    }
    let elapsed = start.elapsed();
    let (reply, queues) = oneshot::channel();
    assert!(lab.mailboxes[0].send(Command::Stop(reply)));
    let mut queues = queues.blocking_recv().unwrap();
    let spent = thread.join().unwrap();
    let rx_missed: u64 =
        queues.iter_mut().map(|queue| queue.device.rx_missed()).sum::<u64>() + lab.sum(0, |c| c.rx_missed.get());
    let received = lab.sum(0, |c| c.rx_frames.get());
    // Some may still be in the rings.
    assert!(received + rx_missed <= sent, "{received} and {rx_missed} of {sent}");
    Some(Figures {
        offered: sent as f64 / elapsed.as_secs_f64(),
        rx_missed: rx_missed as f64 / sent as f64,
        busy: spent.as_secs_f64() / elapsed.as_secs_f64(),
        each: spent.as_nanos() as f64 / sent as f64,
    })
}

fn median(all: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = all.iter().map(of).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(default, |at| arguments[at + 1].parse().unwrap_or_else(|_| panic!("{name} takes a number")))
    };
    let (runs, long) = (number("--runs", 3), Duration::from_secs(number("--seconds", 2)));
    on_core(0);
    println!("{:<10} {:<9} {:>12} {:>9} {:>10} {:>12}", "", "", "frames/s", "rx_missed", "CPU", "CPU/frame");
    for len in [60, 1514] {
        let mut all = [Vec::new(), Vec::new()];
        for _ in 0..runs {
            for (sheds, figures) in [false, true].into_iter().zip(&mut all) {
                let Some(run) = run(sheds, len, long) else { return };
                figures.push(run);
            }
        }
        for (what, figures) in ["received", "dropped"].iter().zip(&all) {
            println!(
                "{:<10} {what:<9} {:>12.0} {:>8.1}% {:>9.1}% {:>9.1} ns",
                format!("{len} bytes"),
                median(figures, |f| f.offered),
                median(figures, |f| f.rx_missed) * 100.0,
                median(figures, |f| f.busy) * 100.0,
                median(figures, |f| f.each),
            );
        }
    }
}
