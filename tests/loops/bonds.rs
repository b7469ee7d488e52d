//! AT-13, b and c: guests that join two siblings as one, without a loop. The kernel's bonding is not needed to
//! do as it does: one address behind one port after the other, or behind both at once.

use rustix::event::Timespec;
use rustix::thread::nanosleep;
use vifswitch::wire::Mac;

use super::scene::{CULPRIT, Said, Scenario, looping, noise};
use support::host::await_that;
use support::host::nic::experiment;
use support::host::setup::{DeviceKind, two_workers};

/// Siblings of which both may use the address of the first one.
fn bonded(on: DeviceKind, said: Said) -> Option<(Scenario, Mac)> {
    let scene = Scenario::with(on, &looping(2), said, |vifs| {
        let mac = vifs[2][0].mac;
        vifs[2][0].more = String::new();
        vifs[2][1].more = format!("allowed_address_pairs = [{{ mac_address = \"{mac}\" }}]");
    })?;
    let mac = scene.vif(CULPRIT, 0).mac;
    Some((scene, mac))
}

/// The address goes from one sibling to the other twenty times, as one of them fails. Each time it says so, and
/// is found there at once.
#[test]
fn a_bond_fails_over_and_nothing_is_raised() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        let Some((scene, mac)) = bonded(on, Said::default()) else { return };
        let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
        let peer = scene.nic("a", 0);
        for number in 0..20u32 {
            let active = &nics[number as usize % 2];
            active.send(&noise(mac, number));
            await_that("the announcement", || peer.rest().contains(&noise(mac, number)).then_some(()));
            let there = experiment(mac, scene.vif("a", 0).mac, &number.to_be_bytes());
            peer.send(&there);
            await_that("a frame to the active one", || active.rest().contains(&there).then_some(()));
            // Three a second: many times what AT-13 has, and less than a loop makes.
            let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 330_000_000 });
        }
        scene.is_calm("a bond that fails over");
        assert_eq!(scene.drops(CULPRIT, "dampened_source"), 0, "{on:?}");
    }
}

/// Both send with the same address, in turn, frame by frame: of a VM that may, nobody counts that.
#[test]
fn one_address_on_both_siblings_and_nothing_is_raised() {
    let two = two_workers().map(|switch| (DeviceKind::Tap, switch));
    for (on, switch) in [(DeviceKind::Tap, ""), (DeviceKind::Xdp, "")].into_iter().chain(two) {
        let said = Said { switch, culprit: "share_mac = true", ..Said::default() };
        let Some((scene, mac)) = bonded(on, said) else { return };
        let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
        let peer = scene.nic("a", 0);
        for number in 0..1000u32 {
            let frame = experiment(scene.vif("a", 0).mac, mac, &number.to_be_bytes());
            nics[number as usize % 2].send(&frame);
            assert!(peer.take() == frame, "{on:?}: frame {number}");
        }
        scene.is_calm("a bond that shares an address");
        assert_eq!(scene.drops(CULPRIT, "dampened_source"), 0, "{on:?}");
    }
}

/// Of a VM that has not said so, it is a loop's sign, and the address stays where it is.
#[test]
fn one_address_on_both_siblings_of_others_is_frozen() {
    for on in [DeviceKind::Tap, DeviceKind::Xdp] {
        let Some((scene, mac)) = bonded(on, Said::default()) else { return };
        let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
        let (peer, mut number) = (scene.nic("a", 0), 0u32);
        // one after the other, as bursts are one move each
        while scene.drops(CULPRIT, "dampened_source") == 0 {
            let frame = experiment(scene.vif("a", 0).mac, mac, &number.to_be_bytes());
            nics[number as usize % 2].send(&frame);
            number += 1;
            await_that("the frame, or its end", || {
                (peer.rest().contains(&frame) || scene.drops(CULPRIT, "dampened_source") > 0).then_some(())
            });
        }
        assert!(number > 5, "{on:?}: four moves are free");
        let event = scene.await_event("mac_dampened");
        assert_eq!(event["mac"], mac.to_string().as_str(), "{event:#}");
        let (port, kind) = scene.place_of(mac).unwrap();
        assert_eq!(kind, "dampened", "{on:?}: at {port}");
        // until somebody says that it is well
        scene.daemon.done(&["release", &port], "");
        assert_ne!(scene.place_of(mac).map(|(_, kind)| kind).as_deref(), Some("dampened"), "{on:?}");
    }
}
