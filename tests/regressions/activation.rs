//! Activation: inactive ports, pins that yield, live migration, VRRP. Needs root; makes its own namespaces.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::process::Signal;
use rustix::thread::nanosleep;
use vifswitch::time::{self, MonoTime};
use vifswitch::wire::Mac;

use crate::wires::{
    VLANS, WirePlace, announced, arrives, attach_waiting, await_events, events, gratuitous_arp, lay_wire, rarp,
    station, tagged, unsolicited_advertisement, untagged, vrrp_advert, wired,
};
use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment};
use support::host::setup::two_workers;
use support::host::{Finally, Namespace, await_that};

const OBSERVER: usize = 0;
const OTHER: usize = 1;
const VM: usize = 2;

/// An observer, another VM, the VM under test, and an external network.
struct Scenario {
    daemon: Daemon,
    vifs: [Vif; 3],
    spaces: [Namespace; 3],
    outside: Namespace,
    _host: Namespace,
}

/// Index of the VM's port in a scenario.
const HERE: &[usize] = &[0];
const OUTSIDE: &[usize] = &[1];

impl Scenario {
    /// The VM's port is attached from the start, or not yet.
    fn new(switch: &str, is_attached: bool) -> Option<Scenario> {
        let spaces = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
        let (host, outside) = (Namespace::new()?, Namespace::new()?);
        lay_wire(&host, &outside, "up0");
        let vif = |number: usize| Vif::new(&format!("vm-{number}"), number as u8, &spaces[number]);
        let vifs = [vif(OBSERVER), vif(OTHER), vif(VM)];
        let mut daemon = Daemon::new();
        let first = if is_attached { &vifs[..] } else { &vifs[..VM] };
        daemon.configure(&wired(&daemon, switch, first, &host, &["up0"]));
        daemon.start();
        Some(Scenario { daemon, vifs, spaces, outside, _host: host })
    }

    /// With one worker, and with two if possible.
    fn each(is_attached: bool) -> impl Iterator<Item = Scenario> {
        [Some(""), two_workers()].into_iter().flatten().filter_map(move |switch| Scenario::new(switch, is_attached))
    }

    fn nic(&self, index: usize) -> Nic {
        Nic::new(&self.spaces[index], &self.vifs[index].name)
    }

    fn wire(&self) -> Nic {
        Nic::new(&self.outside, "up0")
    }

    fn restart(&mut self, signal: Signal) {
        self.daemon.stop(signal);
        self.daemon.start();
        self.vifs.iter().for_each(|vif| drop(self.daemon.await_active(vif)));
    }
}

/// Senders of a scenario, and the current port of the VM.
struct Lines {
    observer: (Nic, Mac),
    other: (Nic, Mac),
    vm: (Nic, Mac),
    wire: Nic,
}

impl Lines {
    fn of(scene: &Scenario) -> Lines {
        let line = |index: usize| (scene.nic(index), scene.vifs[index].mac);
        Lines { observer: line(OBSERVER), other: line(OTHER), vm: line(VM), wire: scene.wire() }
    }

    /// Where frames from the observer to the VM arrive.
    fn reached(&self, tale: &str) -> Vec<usize> {
        let places = [WirePlace(&self.vm.0, None), WirePlace(&self.wire, Some(VLANS[0]))];
        arrives((&self.observer.0, self.observer.1), self.vm.1, &places, tale)
    }

    fn await_reached(&self, places: &[usize], tale: &str) {
        let mut number = 0;
        await_that(tale, || {
            number += 1;
            (self.reached(&format!("{tale} {number}")) == places).then_some(())
        });
    }

    /// The VM sends a frame to the observer, from this host or from the external network.
    fn speak(&self, is_present: bool, tale: &str) {
        let frame = experiment(self.observer.1, self.vm.1, tale.as_bytes());
        if is_present {
            self.vm.0.send(&frame)
        } else {
            self.wire.send(&tagged(VLANS[0], &frame))
        }
        await_that(tale, || self.observer.0.try_take().filter(|frame| frame[14..].starts_with(tale.as_bytes())));
    }

    fn announce_outside(&self, frame: &[u8]) {
        self.wire.send(&tagged(VLANS[0], frame));
    }

    /// The other VM is announced externally and then sends: by then all earlier reports have been handled.
    fn await_all_reports(&self, scene: &Scenario, count: usize) {
        let port = &scene.vifs[OTHER].port;
        self.announce_outside(&rarp(self.other.1));
        await_events(&scene.daemon, "pin_yielded", port, count);
        self.other.0.send(&experiment(self.observer.1, self.other.1, b"here"));
        await_events(&scene.daemon, "port_activated", port, count);
    }
}

#[test]
fn an_inactive_port_draws_no_traffic_before_its_first_frame() {
    for mut scene in Scenario::each(false) {
        let vif = scene.vifs[VM].clone();
        let wire = scene.wire();
        let observer = (scene.nic(OBSERVER), scene.vifs[OBSERVER].mac);
        wire.send(&tagged(VLANS[0], &experiment(observer.1, vif.mac, b"from outside")));
        observer.0.take();
        attach_waiting(&scene.daemon, &vif);
        scene.daemon.await_active(&vif);
        let lines = Lines::of(&scene);
        for round in 0..3 {
            assert_eq!(lines.reached(&format!("waiting {round}")), OUTSIDE, "the VM has not sent here");
        }
        lines.speak(false, "still outside");
        // A frame that port security refuses does not activate the port.
        lines.vm.0.send(&experiment(observer.1, Mac::new([6, 0, 0, 0, 0, 1]), b"spoofed"));
        scene.daemon.await_port("a spoofed frame", &vif, |port| port.counts.drops.contains_key("spoofed_source"));
        assert_eq!(lines.reached("spoofed"), OUTSIDE);
        assert_eq!(events(&scene.daemon, "port_activated", &vif.port).len(), 0);
        lines.vm.0.send(&rarp(vif.mac));
        lines.await_reached(HERE, "activated");
        let event = await_events(&scene.daemon, "port_activated", &vif.port, 1);
        assert_eq!((&event["vm"], &event["mac"]), (&vif.vm.as_str().into(), &vif.mac.to_string().as_str().into()));
        assert_eq!(station(&scene.daemon, vif.mac), Some((vif.port.clone(), "pinned".into())));
        lines.speak(false, "no announcement");
        assert_eq!(lines.reached("pinned"), HERE);
        drop(lines);
        // A VM that only receives stays reachable over a restart, and when its port is set down and up.
        for signal in [Signal::TERM, Signal::KILL] {
            await_that("the stored state", || std::fs::metadata(scene.daemon.state()).ok().map(drop));
            scene.daemon.done(&["set", &vif.port, "promiscuous=false"], "");
            scene.restart(signal);
            let lines = Lines::of(&scene);
            lines.speak(false, "after the restart");
            assert_eq!(lines.reached("restarted"), HERE);
            scene.daemon.done(&["set", &vif.port, "admin_state_up=false"], "");
            scene.daemon.done(&["set", &vif.port, "admin_state_up=true"], "");
            scene.daemon.await_active(&vif);
            lines.speak(false, "after down and up");
            assert_eq!(lines.reached("up again"), HERE);
        }
        assert_eq!(events(&scene.daemon, "port_activated", &vif.port).len(), 1, "one event");
    }
}

#[test]
fn a_pin_yields_to_an_announcement_from_an_uplink_until_the_next_frame_of_the_port() {
    let forms: [fn(Mac) -> Vec<u8>; 3] = [rarp, gratuitous_arp, unsolicited_advertisement];
    for (round, mut scene) in Scenario::each(true).enumerate() {
        let vif = scene.vifs[VM].clone();
        // Each form has its own switch, as the address would otherwise exceed the move limit.
        for (number, form) in forms.into_iter().enumerate() {
            let lines = Lines::of(&scene);
            assert_eq!(lines.reached(&format!("{round} {number} before")), HERE);
            lines.announce_outside(&form(vif.mac));
            lines.await_reached(OUTSIDE, "yielded");
            let event = await_events(&scene.daemon, "pin_yielded", &vif.port, number + 1);
            assert!(event["text"].as_str().unwrap().contains("uplink \"up0\""), "{event}");
            assert_eq!(station(&scene.daemon, vif.mac), Some(("up0".into(), "learned".into())));
            drop(lines);
            scene.restart(Signal::TERM);
            let lines = Lines::of(&scene);
            lines.speak(false, "still outside");
            assert_eq!(lines.reached("yielded after the restart"), OUTSIDE);
            lines.speak(true, "back");
            assert_eq!(lines.reached("back"), HERE, "from the first frame on");
            await_events(&scene.daemon, "port_activated", &vif.port, number + 1);
            assert_eq!(station(&scene.daemon, vif.mac), Some((vif.port.clone(), "pinned".into())));
            drop(lines);
            scene.restart(Signal::TERM);
        }
    }
}

/// An external network with a loop returns the announcements of the guest and of the switch.
#[test]
fn a_pin_does_not_yield_to_the_echo_of_a_local_announcement() {
    for scene in Scenario::each(true) {
        let vif = &scene.vifs[VM];
        // The switch has announced it when it became active.
        let (lines, wire) = (Lines::of(&scene), scene.wire());
        lines.await_reached(HERE, "reached");
        scene.daemon.done(&["set", &vif.port, "network_id=net2"], "");
        scene.daemon.done(&["set", &vif.port, "network_id=net1"], "");
        let is_own = |frame: &Vec<u8>| announced(frame) == Some(vif.mac);
        let own = await_that("an announcement of the switch", || {
            wire.try_take_any().and_then(|frame| untagged(VLANS[0], &frame)).filter(is_own)
        });
        // On the network where the address is pinned, and on the one where it would be learned.
        for vlan in VLANS {
            (0..3).for_each(|_| lines.wire.send(&tagged(vlan, &own)));
        }
        for said in [rarp(vif.mac), gratuitous_arp(vif.mac)] {
            lines.vm.0.send(&said);
            let came = await_that("the guest's announcement", || {
                wire.try_take().and_then(|frame| untagged(VLANS[0], &frame)).filter(|frame| *frame == said)
            });
            lines.announce_outside(&came);
        }
        lines.await_all_reports(&scene, 1);
        assert_eq!(events(&scene.daemon, "pin_yielded", &vif.port).len(), 0);
        let uplinks: serde_json::Value = scene.daemon.get("/v1/uplinks");
        assert_eq!(uplinks[0]["drops"]["own_announcement"], 6, "no guest has received them");
        assert_eq!(lines.reached("at the end"), HERE);
    }
}

#[test]
fn an_address_that_flaps_stays_at_the_local_port() {
    for scene in Scenario::each(true) {
        let (lines, vif) = (Lines::of(&scene), &scene.vifs[VM]);
        for round in 1..=2 {
            lines.announce_outside(&rarp(vif.mac));
            await_events(&scene.daemon, "pin_yielded", &vif.port, round);
            lines.speak(true, "here");
            await_events(&scene.daemon, "port_activated", &vif.port, round);
            // Frames of the guest were just received; later an announcement can be no echo.
            let received = time::now();
            await_that("the end of the echo time", || {
                (time::now().since(received) > Duration::from_secs(1)).then_some(())
            });
        }
        lines.announce_outside(&rarp(vif.mac));
        let event = await_events(&scene.daemon, "mac_dampened", &vif.port, 1);
        assert_eq!(event["mac"], vif.mac.to_string());
        for _ in 0..3 {
            lines.announce_outside(&rarp(vif.mac));
            assert_eq!(lines.reached("dampened"), HERE);
        }
        assert_eq!(events(&scene.daemon, "pin_yielded", &vif.port).len(), 2);
        lines.speak(true, "its frames are forwarded");
    }
}

/// A backup is attached after the master on another host has taken over, and later becomes the master. Only the
/// periodic advertisements show where the virtual routers are.
#[test]
fn the_address_of_a_virtual_router_follows_the_adverts_of_its_master() {
    let routers = [Mac::new([0, 0, 0x5e, 0, 1, 7]), Mac::new([0, 0, 0x5e, 0, 2, 7])];
    let pairs = routers.map(|router| format!("{{ mac_address = \"{router}\" }}")).join(", ");
    for mut scene in Scenario::each(false) {
        scene.vifs[VM].more = format!("allowed_address_pairs = [{pairs}]");
        let vif = scene.vifs[VM].clone();
        let pinned = Some((vif.port.clone(), "pinned".into()));
        let outside = Some(("up0".into(), "learned".into()));
        scene.wire().send(&tagged(VLANS[0], &vrrp_advert(routers[0])));
        await_that("the master is learned at the uplink", || {
            (station(&scene.daemon, routers[0]) == outside).then_some(())
        });
        scene.daemon.attach(&vif);
        scene.daemon.await_active(&vif);
        let mut lines = Lines::of(&scene);
        for (number, router) in routers.into_iter().enumerate() {
            lines.vm.1 = router;
            assert_eq!(station(&scene.daemon, router), pinned);
            lines.announce_outside(&vrrp_advert(router));
            lines.await_reached(OUTSIDE, "the master is external");
            let event = await_events(&scene.daemon, "pin_yielded", &vif.port, number + 1);
            assert_eq!(event["mac"], router.to_string());
            assert_eq!(station(&scene.daemon, router), outside);
            (0..100).for_each(|_| lines.announce_outside(&vrrp_advert(router)));
        }
        assert_eq!(station(&scene.daemon, vif.mac), pinned, "the VM itself is here");
        // What a backup sends from the address makes it no master, however often that is.
        for (round, router) in routers.into_iter().cycle().take(10).enumerate() {
            lines.vm.1 = router;
            lines.speak(true, &format!("report {round}"));
            lines.announce_outside(&vrrp_advert(router));
            lines.await_reached(OUTSIDE, &format!("the master is still outside {round}"));
        }
        let wire = scene.wire();
        for (number, router) in routers.into_iter().enumerate() {
            lines.vm.1 = router;
            let advert = vrrp_advert(router);
            lines.vm.0.send(&advert);
            let event = await_events(&scene.daemon, "port_activated", &vif.port, number + 1);
            assert_eq!(event["mac"], router.to_string());
            assert_eq!(station(&scene.daemon, router), pinned, "the master is here");
            // A network with a loop returns the next ones.
            wire.rest();
            for _ in 0..3 {
                lines.vm.0.send(&advert);
                let came = await_that("the external advertisement", || {
                    wire.try_take().and_then(|frame| untagged(VLANS[0], &frame)).filter(|frame| *frame == advert)
                });
                lines.announce_outside(&came);
            }
        }
        lines.await_all_reports(&scene, 1);
        for router in routers {
            lines.vm.1 = router;
            assert_eq!(lines.reached("at the end"), HERE);
        }
        let counts =
            ["pin_yielded", "port_activated", "mac_dampened"].map(|kind| events(&scene.daemon, kind, &vif.port).len());
        assert_eq!(counts, [2, 2, 0]);
    }
}

#[test]
fn a_port_that_is_administratively_down_pins_nothing() {
    for scene in Scenario::each(true) {
        let (lines, vif) = (Lines::of(&scene), &scene.vifs[VM]);
        assert_eq!(lines.reached("up"), HERE);
        scene.daemon.done(&["set", &vif.port, "admin_state_up=false"], "");
        let down = |tale: &str| {
            let places = [WirePlace(&lines.wire, Some(VLANS[0]))];
            arrives((&lines.observer.0, lines.observer.1), vif.mac, &places, tale)
        };
        assert_eq!(down("down"), [0], "the frame reaches every possible place");
        lines.speak(false, "from outside");
        assert_eq!(down("learned outside"), [0]);
        assert_eq!(station(&scene.daemon, vif.mac), Some(("up0".into(), "learned".into())));
        scene.daemon.done(&["set", &vif.port, "admin_state_up=true"], "");
        assert_eq!(lines.reached("up again"), HERE);
        assert_eq!(station(&scene.daemon, vif.mac), Some((vif.port.clone(), "pinned".into())));
    }
}

/// Longest interruption of a stream.
#[derive(Debug, Default)]
struct Gap {
    last: Option<MonoTime>,
    max_len: Duration,
}

impl Gap {
    fn came(&mut self, now: MonoTime) {
        if let Some(last) = self.last.replace(now) {
            self.max_len = self.max_len.max(now.since(last));
        }
    }

    fn end(&mut self) -> Duration {
        self.came(time::now());
        self.max_len
    }
}

/// Sends requests to the VM and to the other observer continuously, and replies to the other one.
struct Observer<'a> {
    nic: Nic,
    mac: Mac,
    other: Mac,
    vm: Mac,
    /// Replies of the other observer.
    answers: &'a AtomicU64,
    gaps: &'a Mutex<[Gap; 2]>,
}

const REQUEST: u8 = 1;
const REPLY: u8 = 2;

impl Observer<'_> {
    fn run(&self, done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) {
            for to in [self.vm, self.other] {
                self.nic.send(&experiment(to, self.mac, &[REQUEST; 46]));
            }
            while let Some(frame) = self.nic.try_take() {
                let (to, from) = (&frame[..6], &frame[6..12]);
                if to != self.mac.octets() || frame[12..14] != [0x88, 0xb5] {
                    continue;
                }
                match (frame[14], from == self.vm.octets()) {
                    (REQUEST, _) => self.nic.send(&experiment(self.other, self.mac, &[REPLY; 46])),
                    (_, of_vm) => {
                        self.gaps.lock().unwrap()[usize::from(!of_vm)].came(time::now());
                        self.answers.fetch_add(u64::from(!of_vm), Ordering::Relaxed);
                    }
                }
            }
            let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
        }
    }
}

const PAUSED: usize = 2;

/// The VM at one of two places: it replies where it runs, and ignores frames elsewhere.
fn run_vm(nic: &Nic, at: usize, mac: Mac, place: &AtomicUsize, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        for frame in nic.rest() {
            let from = Mac::new(frame[6..12].try_into().unwrap());
            if place.load(Ordering::Relaxed) == at && frame[..6] == mac.octets() && frame[14] == REQUEST {
                nic.send(&experiment(from, mac, &[REPLY; 46]));
            }
        }
        let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 200_000 });
    }
}

/// Two hosts with a link between them. The port at the destination is attached while the VM runs at the source, as
/// libvirt does; then the VM is paused, and resumes at the destination, whose VMM announces it.
#[test]
fn a_live_migration_interrupts_no_observer_for_half_a_second() {
    let spaces: Option<Vec<Namespace>> = (0..6).map(|_| Namespace::new()).collect();
    let Some(spaces) = spaces else { return };
    let [source, destination, observers @ .., at_source, at_destination] = &spaces[..] else { unreachable!() };
    lay_wire(source, destination, "up0");
    let mac = Mac::new([2, 0, 0, 0, 0x0f, 1]);
    let vm = |namespace: &Namespace| Vif { mac, ..Vif::new("vm", 9, namespace) };
    let observer = |number: usize| Vif::new("observer", number as u8, &observers[number]);
    let cores = if two_workers().is_some() { ["cores = [0]", "cores = [1]"] } else { [""; 2] };
    let switch = |number: usize, host: &Namespace, vifs: &[Vif]| {
        let mut daemon = Daemon::new();
        daemon.configure(&wired(&daemon, cores[number], vifs, host, &["up0"]));
        daemon.start();
        vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
        daemon
    };
    let (old, new) = (vm(at_source), vm(at_destination));
    let daemons = [switch(0, source, &[observer(0), old.clone()]), switch(1, destination, &[observer(1)])];

    let (done, answers, place) = (AtomicBool::new(false), AtomicU64::new(0), AtomicUsize::new(0));
    let gaps: [Mutex<[Gap; 2]>; 2] = [Mutex::default(), Mutex::default()];
    thread::scope(|scope| {
        let _finally = Finally(&done);
        for number in 0..2 {
            let (vif, other) = (observer(number), observer(1 - number));
            let nic = Nic::new(&observers[number], &vif.name);
            let (answers, gaps) = (&answers, &gaps[number]);
            let observer = Observer { nic, mac: vif.mac, other: other.mac, vm: mac, answers, gaps };
            let done = &done;
            scope.spawn(move || observer.run(done));
        }
        let (place, done, answers) = (&place, &done, &answers);
        let at_source = Nic::new(at_source, &old.name);
        scope.spawn(move || run_vm(&at_source, 0, mac, place, done));
        // This many replies of the control stream, which continues whatever happens to the VM: a second or more.
        let pass = |what: &str| {
            let before = answers.load(Ordering::Relaxed);
            await_that(what, || (answers.load(Ordering::Relaxed) >= before + 1600).then_some(()));
        };
        let has_answered = |gaps: &Mutex<[Gap; 2]>| gaps.lock().unwrap().iter().all(|gap| gap.last.is_some());
        await_that("both are answered", || gaps.iter().all(has_answered).then_some(()));
        pass("before the migration");
        // The destination's tap exists before the VM: QEMU has opened it, and sends nothing.
        attach_waiting(&daemons[1], &new);
        daemons[1].await_active(&new);
        let rarps = Nic::new(at_destination, &new.name);
        let at_destination = Nic::new(at_destination, &new.name);
        scope.spawn(move || run_vm(&at_destination, 1, mac, place, done));
        pass("while memory is copied");
        place.store(PAUSED, Ordering::Relaxed);
        let paused = time::now();
        await_that("the VM is paused", || (time::now().since(paused) > Duration::from_millis(30)).then_some(()));
        place.store(1, Ordering::Relaxed);
        rarps.send(&rarp(mac));
        pass("at the destination");
        daemons[0].detach(&old);
        pass("after the source has been detached");
    });
    let ends = gaps.map(|gaps| gaps.into_inner().unwrap().map(|mut gap| gap.end()));
    let [[at_source, control_there], [at_destination, control_here]] = ends;
    println!(
        "longest gaps: VM {at_source:?} at the source, {at_destination:?} at the destination; control stream {control_there:?}, {control_here:?}"
    );
    for (gap, control) in [(at_source, control_there), (at_destination, control_here)] {
        // Half a second, plus the time for which the machine itself stood still.
        assert!(gap < Duration::from_millis(500) + 2 * control, "{gap:?}, control stream {control:?}");
    }
    await_events(&daemons[0], "pin_yielded", &old.port, 1);
    await_events(&daemons[1], "port_activated", &new.port, 1);
}
