//! AT-12: loops that no address gives away, as what goes round in them is the guest's own; and those that take
//! more than one VM.

use serde_json::Value;
use vifswitch::time;
use vifswitch::wire::Mac;

use super::scene::{CULPRIT, NOISE, Said, Scenario, Talk, is_noise, looping, noise};
use support::host::nic::{Nic, frame};
use support::host::setup::{DeviceKind, two_workers};
use support::host::{Namespace, await_that};

/// What the limit of a VM on a network lets through in a time: 500 at once, and 500 a second.
fn allowed(seconds: f64) -> u64 {
    (500.0 + 500.0 * seconds) as u64 + 1
}

fn is_contained_named_and_released(on: DeviceKind, siblings: usize, said: Said) {
    let Some(scene) = Scenario::new(on, &looping(siblings), said) else { return };
    let mut talk = Talk::of(&scene);
    talk.request();
    scene.join("stp_state 0");
    let begin = time::now();
    scene.close();
    scene.speak();
    let event = await_that("loop_start", || {
        // all the time, nobody who asks is left without an answer
        talk.request();
        scene.events_of("loop_start").into_iter().next()
    });
    scene.names_the_culprit(&event, "net1");
    // the first measure is in force when it is told; what is under way arrives, and nothing more is made of it
    assert!(scene.level() >= 1, "{:#?}", scene.loops());
    scene.await_probes(CULPRIT, 1);
    talk.request();
    let seconds = time::now().since(begin).as_secs_f64();
    assert!(talk.copies <= allowed(seconds), "{on:?}: {} copies in {seconds} s", talk.copies);
    let before = talk.copies;
    for _ in 0..3 {
        scene.await_probes(CULPRIT, 1);
        talk.request();
    }
    talk.rest();
    assert_eq!(talk.copies, before, "{on:?}: copies still come");
    assert_eq!(scene.events_of("loop_start").len(), 1, "{on:?}: told once, as long as it lasts");
    assert!(scene.events_of("loop_stop").is_empty(), "{on:?}");

    scene.open();
    scene.daemon.done(&["release", &scene.vif(CULPRIT, 0).port], "");
    let ended = scene.await_event("loop_stop");
    assert_eq!((&ended["vm"], &ended["network"]), (&CULPRIT.into(), &"net1".into()), "{ended:#}");
    // siblings are heard by each other again
    scene.namespace(CULPRIT).ip("link del gb");
    let [one, other] = [0, 1].map(|number| scene.nic(CULPRIT, number));
    let hello = noise(scene.vif(CULPRIT, 0).mac, 7);
    await_that("a broadcast between siblings", || {
        one.send(&hello);
        other.rest().contains(&hello).then_some(())
    });
    talk.round();
    assert_eq!(scene.events_of("loop_start").len(), 1, "{on:?}: it does not begin again by itself");
    for guest in ["a", "b"] {
        assert_eq!(scene.daemon.port(scene.vif(guest, 0)).counts.drops, [].into(), "{on:?}, {guest}");
    }
}

#[test]
fn a_loop_of_two_siblings_is_contained_named_and_released() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        is_contained_named_and_released(on, 2, Said::default());
    }
}

#[test]
fn a_loop_of_eight_siblings_is_contained_named_and_released() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        is_contained_named_and_released(on, 8, Said::default());
    }
}

#[test]
fn a_loop_over_two_workers_is_contained_named_and_released() {
    let Some(switch) = two_workers() else { return };
    is_contained_named_and_released(DeviceKind::Tap, 3, Said { switch, ..Said::default() });
}

/// A bridge over two netdevs of a guest, up.
fn bridge(namespace: &Namespace, names: [&str; 2]) {
    namespace.ip("link add gb type bridge stp_state 0 mcast_snooping 0");
    names.iter().for_each(|name| namespace.ip(&format!("link set dev {name} master gb")));
    namespace.ip("link set dev gb up");
}

/// Two VMs that each bridge two networks make one loop of both, though neither does alone.
#[test]
fn two_vms_that_bridge_the_same_networks_are_a_loop() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        let guests: &[super::scene::Guest] =
            &[("a", &["net1"]), ("b", &["net2"]), (CULPRIT, &["net1", "net2"]), ("m", &["net1", "net2"])];
        let scene = Scenario::with(on, guests, Said::default(), |vifs| {
            vifs[3].iter_mut().for_each(|vif| vif.more = "port_security = \"off\"".into());
        });
        let Some(scene) = scene else { return };
        let bridged = |guest: &str| bridge(scene.namespace(guest), [0, 1].map(|at| scene.vif(guest, at).name.as_str()));
        bridged(CULPRIT);
        let notice = scene.await_event("networks_bridged");
        assert_eq!(notice["vm"], CULPRIT, "{notice:#}");
        scene.await_probes(CULPRIT, 3);
        assert!(scene.events_of("loop_start").is_empty(), "{on:?}: one alone is none");
        bridged("m");
        let event = scene.await_event("loop_start");
        // the younger one is who has closed it
        assert_eq!(event["vm"], "m", "{event:#}");
        scene.nic("a", 0).send(&noise(scene.vif("a", 0).mac, 1));
        let there = scene.nic("b", 0);
        scene.await_probes("m", 1);
        // what still goes from one network to the other is at most one copy of it
        assert!(there.rest().iter().filter(|frame| is_noise(frame)).count() <= 1, "{on:?}");
    }
}

/// A wire between two VMs that the switch knows nothing of.
#[test]
fn a_way_around_the_switch_is_a_loop_of_two_vms() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        let two: &[&str] = &["net1", "net2"];
        let guests: &[super::scene::Guest] = &[("a", &["net1"]), (CULPRIT, two), ("m", two)];
        let scene = Scenario::with(on, guests, Said::default(), |vifs| {
            vifs[2].iter_mut().for_each(|vif| vif.more = "port_security = \"off\"".into());
        });
        let Some(scene) = scene else { return };
        // the port that each has on net1, and an end of the wire
        let [l, m] = [CULPRIT, "m"].map(|guest| scene.namespace(guest));
        l.ip(&format!("link add wire type veth peer name wire netns {}", m.0));
        for (namespace, guest) in [(l, CULPRIT), (m, "m")] {
            namespace.ip("link set dev wire up");
            bridge(namespace, [scene.vif(guest, 0).name.as_str(), "wire"]);
        }
        let event = scene.await_event("loop_start");
        let text = event["text"].as_str().unwrap();
        for guest in [CULPRIT, "m"] {
            assert!(text.contains(&scene.vif(guest, 0).port), "{on:?}: {text}");
        }
    }
}

/// What a guest makes up, sends again or sends too late is counted and says nothing of loops; and a loop that
/// there is is found among it.
#[test]
fn forged_and_repeated_probes_neither_make_a_loop_nor_hide_one() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        let Some(scene) = Scenario::new(on, &looping(2), Said::default()) else { return };
        let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
        let probe = await_that("a probe", || nics[0].try_take_any().filter(|frame| is_probe(frame)));
        for bit in 0..8 * probe.len() {
            // the first bits say whom it is for, and that it is a probe at all
            if (8 * 14..).contains(&bit) {
                let mut forged = probe.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                nics[1].send(&forged);
            }
        }
        await_that("forged ones to be counted", || (scene.drops(CULPRIT, "probe_forged") > 0).then_some(()));
        // out of the port that it comes back by
        nics[0].send(&probe);
        await_that("stale ones to be counted", || (scene.drops(CULPRIT, "probe_stale") > 0).then_some(()));
        scene.await_probes(CULPRIT, 2);
        scene.is_calm("after forged probes");
        // the guest is a loop now, and makes up more than it lets pass
        scene.join("stp_state 0");
        scene.close();
        let mut forged = probe.clone();
        *forged.last_mut().unwrap() ^= 1;
        let event = await_that("the loop, among forgeries", || {
            (0..64).for_each(|_| drop(nics[1].try_send(&forged)));
            scene.events_of("loop_start").into_iter().find(|event| event["vm"] == CULPRIT)
        });
        scene.names_the_culprit(&event, "net1");
    }
}

/// Probes are frames to this group.
fn is_probe(frame: &[u8]) -> bool {
    frame[..6] == [0x03, 0x76, 0x69, 0x66, 0x73, 0x77]
}

/// What stands in the log when a loop has been written down, and not before.
const ESCALATED: &[u8] = b"\"raised\":";

/// A loop that is there when the switch begins again is under the same measures at once.
#[test]
fn measures_outlive_the_switch() {
    let Some(mut scene) = Scenario::new(DeviceKind::Tap, &looping(2), Said::default()) else { return };
    let text = std::fs::read_to_string(scene.daemon.file()).unwrap();
    scene.daemon.stop(rustix::process::Signal::TERM);
    scene.daemon.configure(&support::host::daemon::keeping(&text, &scene.daemon.state()));
    scene.daemon.start();
    scene.join("stp_state 0");
    scene.close();
    scene.speak();
    scene.await_event("loop_start");
    assert!(scene.level() >= 1, "{:#?}", scene.loops());
    // What is told is told first, and then written down: into the database's log, as it is not to be opened.
    let mut log = scene.daemon.state().into_os_string();
    log.push("-wal");
    await_that("the loop in the log", || {
        let log = std::fs::read(&log).unwrap_or_default();
        log.windows(ESCALATED.len()).any(|bytes| bytes == ESCALATED).then_some(())
    });
    scene.daemon.signal(rustix::process::Signal::KILL);
    scene.daemon.wait();
    scene.daemon.start();
    assert!(scene.level() >= 1, "{:#?}", scene.loops());
    // nothing that the guest says to itself goes round
    let there = scene.nic("b", 0);
    scene.speak();
    scene.await_probes(CULPRIT, 1);
    let copies = there.rest().iter().filter(|frame| is_noise(frame)).count();
    assert!(copies <= 2, "{copies} copies after it has begun again");
    let starts: Vec<Value> = scene.events_of("loop_start");
    assert_eq!(starts.len(), 1, "it is the same loop: {starts:#?}");
}

/// Frames of a storm that is no loop at all are limited the same, and are called a storm.
#[test]
fn a_storm_is_no_loop() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        let Some(scene) = Scenario::new(on, &looping(2), Said::default()) else { return };
        let mut talk = Talk::of(&scene);
        let nic: Nic = scene.nic(CULPRIT, 0);
        let begin = time::now();
        let storm = frame(Mac::BROADCAST, scene.vif(CULPRIT, 0).mac, NOISE, &[0; 46]);
        let event = await_that("storm_start", || {
            (0..2000).for_each(|_| drop(nic.try_send(&storm)));
            talk.request();
            scene.events_of("storm_start").into_iter().next()
        });
        assert_eq!((&event["vm"], &event["network"]), (&CULPRIT.into(), &"net1".into()), "{event:#}");
        assert!(event["ports"].as_array().unwrap().contains(&scene.vif(CULPRIT, 0).port.as_str().into()), "{event:#}");
        talk.rest();
        let seconds = time::now().since(begin).as_secs_f64();
        assert!(talk.copies <= allowed(seconds), "{on:?}: {} copies in {seconds} s", talk.copies);
        let ended = scene.await_event("storm_stop");
        assert_eq!(ended["vm"], CULPRIT, "{ended:#}");
        assert!(scene.events_of("loop_start").is_empty(), "{on:?}");
        assert_eq!(scene.events_of("storm_start").len(), scene.events_of("storm_stop").len(), "{on:?}");
    }
}
