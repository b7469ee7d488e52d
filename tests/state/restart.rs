//! Restart under traffic, measured as in RFC 6201: lost frames at a fixed rate. Asserts that the gap ends and that
//! other ports receive nothing; prints its length. `scripts/bench restart` measures it with the release binary. Needs
//! root; makes its own namespaces.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::process::Signal;
use rustix::thread::nanosleep;
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::nic::{Nic, experiment};
use support::host::{Finally, Namespace, await_that};
use vifswitch::control::api::responses::{StationKind, StationView};
use vifswitch::time;
use vifswitch::wire::Mac;

/// Frames per second.
const RATE: u64 = 10_000;

/// Stations behind ports that are not the ports' own addresses and must be learned.
const SPEAKER: Mac = Mac::from_bits(0x0a00_0000_0001);
const HEARER: Mac = Mac::from_bits(0x0a00_0000_0002);

/// A stream from the first port to a station behind the second.
struct Stream {
    offered: AtomicU64,
    /// Frames received, and number of the last one.
    came: AtomicU64,
    last: AtomicU64,
    ended: AtomicBool,
}

impl Stream {
    /// Sends frames at the rate and receives them, until stopped.
    fn run(&self, from: &Nic, to: &Nic) {
        let start = time::now();
        while !self.ended.load(Ordering::Relaxed) {
            let due = time::now().since(start).as_micros() as u64 * RATE / 1_000_000;
            for number in self.offered.load(Ordering::Relaxed)..due {
                // Between two runs of the switch the tap has no carrier: the frame is lost here.
                let _ = from.try_send(&experiment(HEARER, SPEAKER, &number.to_be_bytes()));
                self.offered.store(number + 1, Ordering::Relaxed);
            }
            self.take(to);
            // Paced by the clock; late frames are caught up.
            let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 200_000 });
        }
    }

    fn take(&self, to: &Nic) {
        while let Some(frame) = to.try_take() {
            let number = u64::from_be_bytes(frame[14..22].try_into().unwrap());
            let before = self.last.swap(number + 1, Ordering::Relaxed);
            assert!(number >= before, "{number} after {before}: reordered or duplicated");
            self.came.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until a frame not yet sent has arrived.
    fn await_one(&self) {
        let offered = self.offered.load(Ordering::Relaxed);
        await_that("a frame of the stream", || (self.last.load(Ordering::Relaxed) > offered).then_some(()));
    }
}

#[test]
fn a_restart_under_traffic_floods_nothing() {
    let Some(spaces) = (0..3).map(|_| Namespace::new()).collect::<Option<Vec<_>>>() else { return };
    let vifs = (1..).zip(&spaces).zip(["a", "b", "c"]);
    let vifs: Vec<Vif> = vifs.map(|((number, namespace), vm)| Vif::new(vm, number, namespace)).collect();
    let vifs: Vec<Vif> = vifs.into_iter().map(|vif| Vif { more: "port_security = \"off\"".into(), ..vif }).collect();
    let mut daemon = Daemon::new();
    daemon.configure(&keeping(&config(&daemon.socket(), "", &[("net1", 1500)], &vifs), &daemon.state()));
    daemon.start();
    let links = || [0, 1, 2].map(|at: usize| spaces[at].link(&vifs[at].name).unwrap());
    let before = links();
    let nics: Vec<Nic> = spaces.iter().zip(&vifs).map(|(namespace, vif)| Nic::new(namespace, &vif.name)).collect();
    // The receiver's station is learned from its own frames.
    let hello = experiment(Mac::BROADCAST, HEARER, b"here I am");
    nics[1].send(&hello);
    assert_eq!((nics[0].take(), nics[2].take()), (hello.clone(), hello));

    // The planned restart comes first: it stores learned stations, which the killed switch restores too.
    for (signal, what) in [(Signal::TERM, "planned restart"), (Signal::KILL, "kill -9 and immediate start")] {
        let stream = Stream {
            offered: AtomicU64::new(0),
            came: AtomicU64::new(0),
            last: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        };
        thread::scope(|scope| {
            scope.spawn(|| stream.run(&nics[0], &nics[1]));
            let finally = Finally(&stream.ended);
            stream.await_one();
            daemon.stop(signal);
            daemon.start();
            stream.await_one();
            drop(finally);
        });
        // Frames in flight arrive before this one.
        let end = experiment(HEARER, SPEAKER, &u64::MAX.wrapping_sub(1).to_be_bytes());
        nics[0].send(&end);
        await_that("the last frame", || {
            stream.take(&nics[1]);
            (stream.last.load(Ordering::Relaxed) == u64::MAX).then_some(())
        });
        let (offered, came) = (stream.offered.into_inner(), stream.came.into_inner() - 1);
        let lost = offered - came;
        let gap = Duration::from_micros(lost * 1_000_000 / RATE);
        println!("{what}: {lost} of {offered} frames lost at {RATE} frames/s, a gap of {} ms", gap.as_millis());
        assert!(came > 0 && lost > 0, "the restart was not under traffic");
        let stations: Vec<StationView> = daemon.get("/v1/fdb");
        let hearer = stations.iter().find(|station| station.mac_address == HEARER.to_string()).unwrap();
        assert_eq!((hearer.kind, hearer.port_id.as_str()), (StationKind::Learned, "port-2"));
        // A broadcast follows everything that may have been flooded.
        let all = experiment(Mac::BROADCAST, SPEAKER, b"all");
        nics[0].send(&all);
        assert_eq!((nics[1].take(), nics[2].take()), (all.clone(), all), "the third port received nothing else");
        assert_eq!(links(), before);
    }
}
