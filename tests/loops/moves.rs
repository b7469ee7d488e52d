//! MAC addresses that move for legitimate reasons: live migration and VRRP. Needs root; makes its own namespaces.

use vifswitch::wire::Mac;

use super::scene::{Said, Scenario, noise};
use support::host::daemon::Vif;
use support::host::nic::{Nic, experiment, frame};
use support::host::setup::{DeviceKind, lay, on_every_kind};
use support::host::{Namespace, await_that};

const RARP: u16 = 0x8035;

/// Announcement of a migrated VM, as QEMU sends it: a RARP request for its own address.
fn announcement(mac: Mac) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 3];
    let payload = [&head[..], &mac.octets(), &[0; 4], &mac.octets(), &[0; 4], &[0; 18]].concat();
    frame(Mac::BROADCAST, mac, RARP, &payload)
}

/// Sends a frame to an address and waits for it at one port.
fn is_found(from: &Nic, (to, mac): (&Nic, Mac), sender: Mac, what: &str) {
    let hello = experiment(mac, sender, what.as_bytes());
    from.send(&hello);
    // An uplink pads short frames.
    await_that(what, || to.rest().iter().any(|frame| frame.starts_with(&hello)).then_some(()));
}

/// A VM migrates in from another host, behind the uplink, and back.
///
/// Shows: REQ-25, REQ-44, AT-13
#[test]
fn a_migrating_vm_is_reached_at_once_and_raises_nothing() {
    on_every_kind(|on| {
        let Some(scene) = Scenario::new(on, &[("a", &["net1"])], Said::default()) else { return };
        let Some(uplink) = scene.uplink(on) else { return };
        let (outside, here) = (Nic::new(&uplink.wire, &uplink.vif.name), scene.nic("a", 0));
        let a = scene.vif("a", 0).mac;
        let mac = Mac::from_bits(0x0200_0000_0a01);
        outside.send(&noise(mac, 0));
        await_that("the announcement", || here.rest().contains(&noise(mac, 0)).then_some(()));
        is_found(&here, (&outside, mac), a, "behind the uplink");
        for round in 0..3 {
            let Some(namespace) = Namespace::new() else { return };
            let mut vif = Vif { mac, ..Vif::new("m", 20 + round, &namespace) };
            if on != DeviceKind::Tap {
                (vif.kind, vif.netns) = (on.kind(), scene.spaces.last().unwrap().0.clone());
                lay(&vif, &namespace, 1500);
            }
            scene.daemon.attach(&vif);
            let arrived = Nic::new(&namespace, &vif.name);
            for _ in 0..5 {
                arrived.send(&announcement(mac));
            }
            // the last of five announcements shows that all have passed
            await_that("five announcements", || {
                let received = scene.daemon.port(&vif).counts.rx_frames;
                (received >= 5).then_some(())
            });
            is_found(&here, (&arrived, mac), a, &format!("arrived, {round}"));
            scene.daemon.detach(&vif);
            for _ in 0..5 {
                outside.send(&announcement(mac));
            }
            await_that("at its new port", || {
                (scene.place_of(mac).is_some_and(|(port, _)| port == "up0")).then_some(())
            });
            is_found(&here, (&outside, mac), a, &format!("behind the uplink again, {round}"));
        }
        scene.assert_calm("migrations");
        let drops = scene.daemon.port(scene.vif("a", 0)).counts.drops;
        assert_eq!(drops, [].into(), "{on:?}");
    });
}

/// A VRRP virtual router (RFC 5798) moves from one VM to another, and back.
///
/// Shows: REQ-44, AT-13
#[test]
fn a_virtual_router_that_moves_raises_nothing() {
    on_every_kind(|on| {
        let router = Mac::from_bits(0x0000_5e00_0101);
        let guests: &[super::scene::Guest] = &[("a", &["net1"]), ("b", &["net1"]), ("c", &["net1"])];
        let scene = Scenario::with(on, guests, Said::default(), |vifs| {
            for guest in &mut vifs[1..] {
                guest[0].more = format!("allowed_address_pairs = [{{ mac_address = \"{router}\" }}]");
            }
        });
        let Some(scene) = scene else { return };
        let nics = ["a", "b", "c"].map(|guest| scene.nic(guest, 0));
        let a = scene.vif("a", 0).mac;
        for number in 0..4u32 {
            let master = &nics[1 + number as usize % 2];
            master.send(&noise(router, number));
            await_that("the advertisement", || nics[0].rest().contains(&noise(router, number)).then_some(()));
            is_found(&nics[0], (master, router), a, &format!("master {number}"));
        }
        scene.assert_calm("a virtual router");
        for guest in ["a", "b", "c"] {
            assert_eq!(scene.daemon.port(scene.vif(guest, 0)).counts.drops, [].into(), "{on:?}, {guest}");
        }
    });
}
