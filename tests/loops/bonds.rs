//! Guests that bond two siblings without a loop: one MAC address that moves between two ports, or is used at both.
//! Frames imitate the bond; the kernel's bonding driver is not needed. Needs root; makes its own namespaces.

use rustix::event::Timespec;
use rustix::thread::nanosleep;
use vifswitch::wire::Mac;

use super::scene::{CULPRIT, Said, Scenario, looping, noise};
use support::host::await_that;
use support::host::nic::experiment;
use support::host::setup::{DeviceKind, on_every_kind, two_workers};

/// Siblings that may both use the address of the first one.
fn bonded(on: DeviceKind, said: Said) -> Option<(Scenario, Mac)> {
    let scene = Scenario::with(on, &looping(2), said, |vifs| {
        let mac = vifs[2][0].mac;
        vifs[2][0].more = String::new();
        vifs[2][1].more = format!("allowed_address_pairs = [{{ mac_address = \"{mac}\" }}]");
    })?;
    let mac = scene.vif(CULPRIT, 0).mac;
    Some((scene, mac))
}

/// The address fails over between the siblings twenty times. Each failover is announced, and frames reach the new
/// port at once.
///
/// Shows: REQ-44, AT-13
#[test]
fn a_bond_that_fails_over_raises_nothing() {
    on_every_kind(|on| {
        let Some((scene, mac)) = bonded(on, Said::default()) else { return };
        let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
        let peer = scene.nic("a", 0);
        for number in 0..20u32 {
            let active = &nics[number as usize % 2];
            active.send(&noise(mac, number));
            await_that("the announcement", || peer.rest().contains(&noise(mac, number)).then_some(()));
            let there = experiment(mac, scene.vif("a", 0).mac, &number.to_be_bytes());
            peer.send(&there);
            await_that("a frame to the active sibling", || active.rest().contains(&there).then_some(()));
            // Three failovers per second: far more than a bond makes, fewer than a loop.
            let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 330_000_000 });
        }
        scene.assert_calm("a bond that fails over");
        assert_eq!(scene.drops(CULPRIT, "dampened_source"), 0, "{on:?}");
    });
}

/// Both siblings send from the same address, alternating per frame: with `share_mac`, moves are not counted.
///
/// Shows: REQ-44, AT-13
#[test]
fn a_shared_address_raises_nothing_with_share_mac() {
    let two = two_workers().map(|switch| (DeviceKind::Tap, switch));
    for (on, switch) in DeviceKind::ALL.map(|on| (on, "")).into_iter().chain(two) {
        let said = Said { switch, culprit: "share_mac = true", ..Said::default() };
        let Some((scene, mac)) = bonded(on, said) else { return };
        let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
        let peer = scene.nic("a", 0);
        for number in 0..1000u32 {
            let frame = experiment(scene.vif("a", 0).mac, mac, &number.to_be_bytes());
            nics[number as usize % 2].send(&frame);
            assert!(peer.take() == frame, "{on:?}: frame {number}");
        }
        scene.assert_calm("a bond that shares an address");
        assert_eq!(scene.drops(CULPRIT, "dampened_source"), 0, "{on:?}");
    }
}

/// Without `share_mac`, that counts as flapping, and the address stays at its port.
#[test]
fn a_shared_address_is_dampened_without_share_mac() {
    on_every_kind(|on| {
        let Some((scene, mac)) = bonded(on, Said::default()) else { return };
        let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
        let (peer, mut number) = (scene.nic("a", 0), 0u32);
        // one frame at a time: a burst is one move
        while scene.drops(CULPRIT, "dampened_source") == 0 {
            let frame = experiment(scene.vif("a", 0).mac, mac, &number.to_be_bytes());
            nics[number as usize % 2].send(&frame);
            number += 1;
            await_that("the frame, or its drop", || {
                (peer.rest().contains(&frame) || scene.drops(CULPRIT, "dampened_source") > 0).then_some(())
            });
        }
        assert!(number > 5, "{on:?}: four moves are allowed");
        let event = scene.await_event("mac_dampened");
        assert_eq!(event["mac"], mac.to_string().as_str(), "{event:#}");
        let (port, kind) = scene.place_of(mac).unwrap();
        assert_eq!(kind, "dampened", "{on:?}: at {port}");
        // until an operator releases the address
        scene.daemon.done(&["release", &port], "");
        assert_ne!(scene.place_of(mac).map(|(_, kind)| kind).as_deref(), Some("dampened"), "{on:?}");
    });
}
