//! A guest bridges its siblings, and broadcasts of other VMs loop through it. Needs root; makes its own namespaces.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vifswitch::wire::Mac;

use super::scene::{CULPRIT, Said, Scenario, Talk, looping, noise};
use support::host::Finally;
use support::host::nic::Nic;
use support::host::setup::{DeviceKind, on_every_kind, two_workers};

/// Sends requests until the condition holds, and for a short time after.
fn ask_until(talk: &mut Talk, happened: impl Fn(&Scenario) -> bool + Sync) {
    let scene = talk.scene;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _finally = Finally(&done);
            support::host::await_that("the event", || happened(scene).then_some(()));
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
    scene.close_loop();
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
    assert!(scene.drops(CULPRIT, "foreign_source") > 0, "{on:?}: anti-spoofing dropped nothing");
    scene.open_loop();
    for _ in 0..20 {
        talk.round();
    }
    talk.rest();
    talk.assert_prompt(&format!("{on:?}: bystanders of a loop"));
    assert!(talk.copies <= 2 * u64::from(talk.seeds), "{on:?}: {} copies of {} broadcasts", talk.copies, talk.seeds);
    assert_eq!(scene.events_of("loop_start").len(), 1, "{on:?}");
    for guest in ["a", "b"] {
        assert_eq!(scene.daemon.port(scene.vif(guest, 0)).counts.drops, [].into(), "{on:?}, {guest}");
    }
}

/// Shows: REQ-22, REQ-40, AT-11
#[test]
fn two_looping_siblings_do_not_disturb_others() {
    on_every_kind(|on| nobody_notices(on, 2, Said::default()));
}

/// Shows: AT-11
#[test]
fn three_looping_siblings_do_not_disturb_others() {
    on_every_kind(|on| nobody_notices(on, 3, Said::default()));
}

#[test]
fn looping_siblings_on_two_workers_do_not_disturb_others() {
    let Some(switch) = two_workers() else { return };
    on_every_kind(|on| nobody_notices(on, 2, Said { switch, ..Said::default() }));
}

/// A station is dampened at a port of the guest, which forwards its frames, before the guest is known to loop. Once it
/// is, the station is reached where it is.
#[test]
fn a_station_dampened_at_a_port_that_turns_out_to_loop_is_released() {
    let said = Said { network: "anti_spoof = false", ..Said::default() };
    let scene = Scenario::with(DeviceKind::Tap, &looping(2), said, |vifs| {
        vifs.iter_mut().flatten().for_each(|vif| vif.more = "port_security = \"off\"".into());
    });
    let Some(scene) = scene else { return };
    let macs = [0x0a00_0000_0001, 0x0a00_0000_0002].map(Mac::from_bits);
    let mut talk = Talk::new(&scene, macs);
    talk.round();
    // the guest forwards without a loop
    let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
    for number in 0u32.. {
        nics[number as usize % 2].send(&noise(macs[0], number));
        support::host::await_that("the frame, or its drop", || {
            let frames = nics.iter().flat_map(Nic::rest);
            let came = frames.into_iter().any(|frame| frame == noise(macs[0], number));
            (came || scene.drops(CULPRIT, "dampened_source") > 0).then_some(())
        });
        if !scene.events_of("mac_dampened").is_empty() {
            break;
        }
    }
    let (port, kind) = scene.place_of(macs[0]).unwrap();
    assert!(scene.vifs[2].iter().any(|vif| vif.port == port) && kind == "dampened", "{kind} at {port}");
    scene.join("stp_state 0");
    scene.close_loop();
    scene.await_event("loop_start");
    talk.await_heard();
}

/// Without anti-spoofing, and with stations pinned to no port: the limits bound what others receive, and the stations
/// are dampened at their own ports.
///
/// Shows: REQ-21, REQ-22, AT-11
#[test]
fn stations_moved_by_a_loop_are_dampened_and_recover() {
    on_every_kind(|on| {
        let said = Said { network: "anti_spoof = false\nprobe_seconds = 3", ..Said::default() };
        let scene = Scenario::with(on, &looping(2), said, |vifs| {
            vifs.iter_mut().flatten().for_each(|vif| vif.more = "port_security = \"off\"".into());
        });
        let Some(scene) = scene else { return };
        // addresses that are no port's own
        let macs = [0x0a00_0000_0001, 0x0a00_0000_0002].map(Mac::from_bits);
        let mut talk = Talk::new(&scene, macs);
        scene.join("stp_state 0");
        talk.round();
        // stations move before a probe can name the loop, after which they do not
        scene.await_probes(CULPRIT, 1);
        let begin = vifswitch::time::now();
        scene.close_loop();
        // lost requests are not waited for
        let named = || scene.events_of("loop_start").is_empty();
        while named() {
            talk.seed();
            talk.ask_once();
        }
        scene.await_event("mac_dampened");
        // the loop or the dampening may be detected first; both are, while the loop is still closed
        talk.await_heard();
        let dampened = scene.events_of("mac_dampened");
        assert!(
            dampened.iter().all(|event| macs.iter().any(|mac| event["mac"] == mac.to_string().as_str())),
            "{dampened:#?}"
        );
        scene.open_loop();
        talk.rest();
        // both bystanders and the culprit have the limit of one VM each
        let seconds = vifswitch::time::now().since(begin).as_secs_f64();
        let most = 3.0 * (500.0 + 500.0 * seconds + 1.0);
        assert!((talk.copies as f64) < most, "{on:?}: {} copies in {seconds} s", talk.copies);
        talk.request();
    });
}
