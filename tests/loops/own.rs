//! Loops that no MAC address reveals, because the looping frames are the guest's own; and loops through several VMs.
//! Needs root; makes its own namespaces.

use std::time::Duration;

use serde_json::Value;
use vifswitch::time;
use vifswitch::wire::Mac;

use super::scene::{CULPRIT, NOISE, Said, Scenario, Talk, is_noise, looping, noise};
use support::host::nic::{Nic, frame};
use support::host::setup::{DeviceKind, on_every_kind, two_workers};
use support::host::{Namespace, await_that};

/// Frames that the limit of a VM on a network admits in a time: burst 500, 500 frames/s.
fn allowed(seconds: f64) -> u64 {
    (500.0 + 500.0 * seconds) as u64 + 1
}

fn is_contained_named_and_released(on: DeviceKind, scene: &Scenario) {
    let mut talk = Talk::of(scene);
    talk.request();
    scene.join("stp_state 0");
    let begin = time::now();
    scene.close_loop();
    scene.broadcast();
    let event = await_that("loop_start", || {
        // every request of the bystanders is answered throughout
        talk.request();
        scene.events_of("loop_start").into_iter().next()
    });
    let detected = talk.took(begin);
    talk.assert_within(&format!("{on:?}: the loop is detected"), Duration::from_secs(2), detected);
    scene.names_the_culprit(&event, "net1");
    // mitigation is in force when its event is emitted; frames in flight arrive, and no further copies are made
    assert!(scene.level() >= 1, "{:#?}", scene.loops());
    await_that("the last copy in flight", || {
        let before = talk.copies;
        scene.await_probes(CULPRIT, 1);
        talk.request();
        (talk.copies == before).then_some(())
    });
    let seconds = time::now().since(begin).as_secs_f64();
    assert!(talk.copies <= allowed(seconds), "{on:?}: {} copies in {seconds} s", talk.copies);
    let before = talk.copies;
    for _ in 0..3 {
        scene.await_probes(CULPRIT, 1);
        talk.request();
    }
    talk.rest();
    assert_eq!(talk.copies, before, "{on:?}: copies still arrive");
    assert_eq!(scene.events_of("loop_start").len(), 1, "{on:?}: one event while the loop lasts");
    assert!(scene.events_of("loop_stop").is_empty(), "{on:?}");

    scene.open_loop();
    scene.daemon.done(&["release", &scene.vif(CULPRIT, 0).port], "");
    let ended = scene.await_event("loop_stop");
    assert_eq!((&ended["vm"], &ended["network"]), (&CULPRIT.into(), &"net1".into()), "{ended:#}");
    // siblings reach each other again
    scene.namespace(CULPRIT).ip("link del gb");
    let [one, other] = [0, 1].map(|number| scene.nic(CULPRIT, number));
    let hello = noise(scene.vif(CULPRIT, 0).mac, 7);
    await_that("a broadcast between siblings", || {
        one.send(&hello);
        other.rest().contains(&hello).then_some(())
    });
    talk.round();
    talk.assert_prompt(&format!("{on:?}: bystanders of a loop"));
    assert_eq!(scene.events_of("loop_start").len(), 1, "{on:?}: the loop does not start again");
    for guest in ["a", "b"] {
        assert_eq!(scene.daemon.port(scene.vif(guest, 0)).counts.drops, [].into(), "{on:?}, {guest}");
    }
}

/// Shows: REQ-42, REQ-43, AT-12
#[test]
fn a_loop_of_two_siblings_is_contained_reported_and_released() {
    on_every_kind(|on| {
        let Some(scene) = Scenario::new(on, &looping(2), Said::default()) else { return };
        is_contained_named_and_released(on, &scene);
    });
}

/// Shows: REQ-42, REQ-43, AT-12
#[test]
fn a_loop_of_two_subports_is_contained_reported_and_released() {
    on_every_kind(|on| {
        let Some(scene) = Scenario::trunk(on, Said::default()) else { return };
        is_contained_named_and_released(on, &scene);
    });
}

/// Shows: REQ-43, AT-12
#[test]
fn a_loop_of_eight_siblings_is_contained_reported_and_released() {
    on_every_kind(|on| {
        let Some(scene) = Scenario::new(on, &looping(8), Said::default()) else { return };
        is_contained_named_and_released(on, &scene);
    });
}

#[test]
fn a_loop_over_two_workers_is_contained_reported_and_released() {
    let Some(switch) = two_workers() else { return };
    on_every_kind(|on| {
        let Some(scene) = Scenario::new(on, &looping(3), Said { switch, ..Said::default() }) else { return };
        is_contained_named_and_released(on, &scene);
    });
}

/// Bridges two netdevs of a guest.
fn bridge(namespace: &Namespace, names: [&str; 2]) {
    namespace.ip("link add gb type bridge stp_state 0 mcast_snooping 0");
    names.iter().for_each(|name| namespace.ip(&format!("link set dev {name} master gb")));
    namespace.ip("link set dev gb up");
}

/// Two VMs that each bridge the same two networks form one loop, though neither does alone.
///
/// Shows: REQ-41
#[test]
fn two_vms_that_bridge_the_same_networks_are_a_loop() {
    on_every_kind(|on| {
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
        assert!(scene.events_of("loop_start").is_empty(), "{on:?}: one bridging VM is no loop");
        bridged("m");
        let event = scene.await_event("loop_start");
        // the VM that closed the loop is the younger one
        assert_eq!(event["vm"], "m", "{event:#}");
        scene.nic("a", 0).send(&noise(scene.vif("a", 0).mac, 1));
        let there = scene.nic("b", 0);
        scene.await_probes("m", 1);
        // at most one copy is still in flight between the networks
        assert!(there.rest().iter().filter(|frame| is_noise(frame)).count() <= 1, "{on:?}");
    });
}

/// A link between two VMs outside the switch.
#[test]
fn an_external_link_between_two_vms_is_a_loop() {
    on_every_kind(|on| {
        let two: &[&str] = &["net1", "net2"];
        let guests: &[super::scene::Guest] = &[("a", &["net1"]), (CULPRIT, two), ("m", two)];
        let scene = Scenario::with(on, guests, Said::default(), |vifs| {
            vifs[2].iter_mut().for_each(|vif| vif.more = "port_security = \"off\"".into());
        });
        let Some(scene) = scene else { return };
        // the port of each on net1, and an end of the link
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
    });
}

/// Forged, replayed and late probes are counted and raise no loop; a real loop is detected among them.
///
/// Shows: REQ-41
#[test]
fn forged_and_replayed_probes_neither_raise_nor_hide_a_loop() {
    on_every_kind(|on| {
        let Some(scene) = Scenario::new(on, &looping(2), Said::default()) else { return };
        let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
        let probe = await_that("a probe", || nics[0].try_take_any().filter(|frame| is_probe(frame)));
        for bit in 0..8 * probe.len() {
            // the first bits are the destination and the magic of a probe
            if (8 * 14..).contains(&bit) {
                let mut forged = probe.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                nics[1].send(&forged);
            }
        }
        await_that("forged ones to be counted", || (scene.drops(CULPRIT, "probe_forged") > 0).then_some(()));
        // out of the port by which it returns
        nics[0].send(&probe);
        await_that("stale ones to be counted", || (scene.drops(CULPRIT, "probe_stale") > 0).then_some(()));
        scene.await_probes(CULPRIT, 2);
        scene.assert_calm("after forged probes");
        // the guest now loops, and forges more probes than it forwards
        scene.join("stp_state 0");
        scene.close_loop();
        let mut forged = probe.clone();
        *forged.last_mut().unwrap() ^= 1;
        let event = await_that("the loop, among forgeries", || {
            (0..64).for_each(|_| drop(nics[1].try_send(&forged)));
            scene.events_of("loop_start").into_iter().find(|event| event["vm"] == CULPRIT)
        });
        scene.names_the_culprit(&event, "net1");
    });
}

/// Probes have this destination group.
fn is_probe(frame: &[u8]) -> bool {
    frame[..6] == [0x03, 0x76, 0x69, 0x66, 0x73, 0x77]
}

/// After a restart, mitigation of an existing loop is in force at once.
#[test]
fn mitigation_is_in_force_at_once_after_a_restart() {
    on_every_kind(mitigation_outlives_a_kill);
}

fn mitigation_outlives_a_kill(on: DeviceKind) {
    let Some(mut scene) = Scenario::new(on, &looping(2), Said::default()) else { return };
    let text = std::fs::read_to_string(scene.daemon.file()).unwrap();
    scene.daemon.stop(rustix::process::Signal::TERM);
    scene.daemon.configure(&support::host::daemon::keeping(&text, &scene.daemon.state()));
    scene.daemon.start();
    scene.join("stp_state 0");
    scene.close_loop();
    scene.broadcast();
    scene.await_event("loop_start");
    assert!(scene.level() >= 1, "{:#?}", scene.loops());
    // The event is emitted before the state is stored.
    scene.daemon.await_stored("\"raised\":");
    scene.daemon.signal(rustix::process::Signal::KILL);
    scene.daemon.wait();
    scene.daemon.start();
    assert!(scene.level() >= 1, "{:#?}", scene.loops());
    // no frame of the guest loops
    let there = scene.nic("b", 0);
    scene.broadcast();
    scene.await_probes(CULPRIT, 1);
    let copies = there.rest().iter().filter(|frame| is_noise(frame)).count();
    assert!(copies <= 2, "{copies} copies after the restart");
    let starts: Vec<Value> = scene.events_of("loop_start");
    assert_eq!(starts.len(), 1, "the same loop: {starts:#?}");
}

/// A storm without a loop is limited likewise and reported as a storm.
///
/// Shows: REQ-51
#[test]
fn a_storm_is_no_loop() {
    on_every_kind(|on| {
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
        talk.assert_prompt(&format!("{on:?}: bystanders of a storm"));
        let seconds = time::now().since(begin).as_secs_f64();
        assert!(talk.copies <= allowed(seconds), "{on:?}: {} copies in {seconds} s", talk.copies);
        let ended = scene.await_event("storm_stop");
        assert_eq!(ended["vm"], CULPRIT, "{ended:#}");
        assert!(scene.events_of("loop_start").is_empty(), "{on:?}");
        assert_eq!(scene.events_of("storm_start").len(), scene.events_of("storm_stop").len(), "{on:?}");
    });
}
