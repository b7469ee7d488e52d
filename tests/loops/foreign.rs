//! AT-11: a guest bridges its siblings, and what others send to everybody goes round in it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vifswitch::wire::Mac;

use super::scene::{CULPRIT, Said, Scenario, Talk, looping};
use support::host::Finally;
use support::host::setup::{DeviceKind, two_workers};

/// Asks until something has happened, and a bit longer.
fn ask_until(talk: &mut Talk, happened: impl Fn(&Scenario) -> bool + Sync) {
    let scene = talk.scene;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _finally = Finally(&done);
            support::host::await_that("what is asked for", || happened(scene).then_some(()));
        });
        while !done.load(Ordering::Relaxed) {
            talk.request();
        }
    });
}

fn nobody_notices(on: DeviceKind, siblings: usize, said: Said) {
    let Some(scene) = Scenario::new(on, &looping(siblings), said) else { return };
    let mut talk = Talk::of(&scene);
    scene.join("stp_state 0");
    talk.round();
    scene.close();
    for _ in 0..40 {
        talk.round();
    }
    ask_until(&mut talk, |scene| !scene.events_of("loop_start").is_empty());
    for _ in 0..40 {
        talk.round();
    }
    scene.names_the_culprit(&scene.events_of("loop_start")[0], "net1");
    for guest in ["a", "b"] {
        let vif = scene.vif(guest, 0);
        assert_eq!(scene.place_of(vif.mac), Some((vif.port.clone(), "pinned".into())), "{on:?}");
    }
    assert!(scene.drops(CULPRIT, "foreign_source") > 0, "{on:?}: the guard has had nothing to do");
    scene.open();
    for _ in 0..20 {
        talk.round();
    }
    talk.rest();
    assert!(talk.copies <= 2 * u64::from(talk.seeds), "{on:?}: {} copies of {} seeds", talk.copies, talk.seeds);
    assert_eq!(scene.events_of("loop_start").len(), 1, "{on:?}");
    for guest in ["a", "b"] {
        assert_eq!(scene.daemon.port(scene.vif(guest, 0)).counts.drops, [].into(), "{on:?}, {guest}");
    }
}

#[test]
fn nobody_notices_two_looping_siblings() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        nobody_notices(on, 2, Said::default());
    }
}

#[test]
fn nobody_notices_three_looping_siblings() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        nobody_notices(on, 3, Said::default());
    }
}

#[test]
fn nobody_notices_siblings_that_loop_on_two_workers() {
    let Some(switch) = two_workers() else { return };
    nobody_notices(DeviceKind::Tap, 2, Said { switch, ..Said::default() });
}

/// Without the guard, and with stations that are pinned to no port: the limits bound what others get, and the
/// stations are frozen where they belong.
#[test]
fn stations_that_loops_move_are_frozen_and_found_again() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        let said = Said { network: "anti_spoof = false", ..Said::default() };
        let scene = Scenario::with(on, &looping(2), said, |vifs| {
            vifs.iter_mut().flatten().for_each(|vif| vif.more = "port_security = \"off\"".into());
        });
        let Some(scene) = scene else { return };
        // addresses of theirs that no port has
        let macs = [0x0a00_0000_0001, 0x0a00_0000_0002].map(Mac::from_bits);
        let mut talk = Talk::new(&scene, macs);
        scene.join("stp_state 0");
        talk.round();
        let begin = vifswitch::time::now();
        scene.close();
        // what is lost meanwhile is not waited for
        let named = || scene.events_of("loop_start").is_empty();
        while named() {
            talk.seed();
            talk.ask_once();
        }
        scene.await_event("mac_dampened");
        // it may be that the freeze came first; both are found, with the loop still closed
        let first = talk.ask_once();
        support::host::await_that("a question that is heard", || {
            talk.ask_once();
            talk.is_heard(first).then_some(())
        });
        let dampened = scene.events_of("mac_dampened");
        assert!(
            dampened.iter().all(|event| macs.iter().any(|mac| event["mac"] == mac.to_string().as_str())),
            "{dampened:#?}"
        );
        scene.open();
        talk.rest();
        // of both bystanders and the culprit, each has the limit of a VM
        let seconds = vifswitch::time::now().since(begin).as_secs_f64();
        let most = 3.0 * (500.0 + 500.0 * seconds + 1.0);
        assert!((talk.copies as f64) < most, "{on:?}: {} copies in {seconds} s", talk.copies);
        talk.request();
    }
}
