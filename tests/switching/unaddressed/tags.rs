//! VLAN tags of guests pass unmodified, and the FDB ignores them. Needs root; makes its own namespaces.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::event::Timespec;
use rustix::thread::nanosleep;
use vifswitch::control::api::responses::StationView;
use vifswitch::wire::Mac;

use support::host::Finally;
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, ping, tcp_both_ways};

/// VLANs of a guest: interface name, and tags of its frames.
const INNER: [(&str, &[u8]); 3] =
    [("inner1", &[0x81, 0, 0, 101]), ("inner2", &[0x81, 0, 0, 102]), ("inner3", &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 103])];

/// Forwards frames between a guest's network card and its VLAN interfaces until done; needs no VLAN support in the
/// kernel.
fn carry(card: &Nic, inner: &[Nic], done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let mut is_idle = true;
        for (nic, (_, tags)) in inner.iter().zip(INNER) {
            while let Some(frame) = nic.try_take() {
                card.send(&tagged(&frame, tags));
                is_idle = false;
            }
        }
        while let Some(frame) = card.try_take() {
            is_idle = false;
            let here = inner.iter().zip(INNER).find(|(_, (_, tags))| frame[12..].starts_with(tags));
            if let Some((nic, (_, tags))) = here {
                nic.send(&[&frame[..12], &frame[12 + tags.len()..]].concat());
            }
        }
        if is_idle {
            let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 200_000 });
        }
    }
}

fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// Whether the tags of an ARP or IPv4 frame match the network of its sender address.
fn is_where_it_says(frame: &[u8]) -> bool {
    let tags = INNER.iter().position(|(_, tags)| frame[12..].starts_with(tags));
    let after = 12 + tags.map_or(0, |at| INNER[at].1.len());
    let sender = match frame[after..after + 2] {
        [8, 0] => &frame[after + 14..],
        [8, 6] => &frame[after + 16..],
        _ => return false,
    };
    sender[..3] == [10, 6, tags.map_or(0, |at| at as u8 + 1)]
}

/// Shows: REQ-16, AT-17
#[test]
fn vlan_tags_of_guests_pass_unmodified() {
    for on in [&[DeviceKind::Tap][..], &[DeviceKind::Xdp], &[DeviceKind::Packet]] {
        let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "c"]) else { return };
        let address = |inner: u8, host: usize| Ipv4Addr::new(10, 6, inner, host as u8 + 1);
        let guests = [0, 1].map(|host| {
            let (namespace, vif) = (&setup.spaces[host], &setup.vifs[host]);
            let inner = INNER.map(|(name, _)| {
                let nic = Nic::owned_tap(namespace, name);
                // The same MAC address on all VLANs and untagged.
                namespace.ip(&format!("link set dev {name} address {} mtu 1400 up", vif.mac));
                nic
            });
            for (number, name) in (0..).zip([vif.name.as_str(), "inner1", "inner2", "inner3"]) {
                namespace.ip(&format!("addr add {}/24 dev {name}", address(number, host)));
            }
            (setup.nic(host), inner)
        });
        let listeners = [0, 1, 2].map(|at| setup.nic(at));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let _finally = Finally(&done);
            for (card, inner) in &guests {
                scope.spawn(|| carry(card, inner, &done));
            }
            for number in 0..4u8 {
                ping(&setup.spaces[0], address(number, 1), 5);
                let tags = if number == 0 { &[][..] } else { INNER[usize::from(number) - 1].1 };
                let echo = [tags, &[8, 0]].concat();
                let seen = listeners[1].rest();
                let is_echo = |frame: &&Vec<u8>| frame[12..].starts_with(&echo) && frame[23 + tags.len()] == 1;
                assert_eq!(seen.iter().filter(is_echo).count(), 5, "{on:?}, {number}");
                assert!(seen.iter().all(|frame| is_where_it_says(frame)), "{on:?}, {number}: {seen:02x?}");
                tcp_both_ways(&setup.spaces[0], &setup.spaces[1], address(number, 1), 200_000);
                let seen = listeners[1].rest();
                assert!(!seen.is_empty() && seen.iter().all(|frame| is_where_it_says(frame)), "{on:?}, {number}");
            }
        });
        // One station for all VLANs.
        let stations: Vec<StationView> = setup.daemon.get("/v1/fdb");
        assert_eq!(stations.len(), 3, "{stations:?}");
        // The bystander has received the flooded requests, and nothing else.
        let ports = setup.daemon.await_idle();
        let received = listeners[2].rest();
        assert!(
            !received.is_empty() && received.iter().all(|frame| frame[..6] == [0xff; 6]),
            "{on:?}: {received:02x?}"
        );
        assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
    }
}

/// A station is learned and moves independently of VLAN tags.
///
/// Shows: REQ-16
#[test]
fn a_station_is_learned_independently_of_tags() {
    let station = Mac::from_bits(0x0a00_0000_0001);
    for on in [&[DeviceKind::Tap][..], &[DeviceKind::Xdp], &[DeviceKind::Packet]] {
        let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "c"]) else { return };
        for vif in &setup.vifs {
            setup.daemon.done(&["set", &vif.port, "port_security=off"], "");
        }
        let nics = [0, 1, 2].map(|at| setup.nic(at));
        let from_it = experiment(Mac::BROADCAST, station, b"here I am");
        let to_it = experiment(station, setup.vifs[2].mac, b"there you are");
        let tags = [&[0x81, 0, 0, 101][..], &[0x81, 0, 0, 102], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 101], &[]];
        // At one port, then at the other.
        for (at, away) in [(0, 1), (1, 0)] {
            let said = tagged(&from_it, tags[at]);
            nics[at].send(&said);
            assert!(nics[away].take() == said && nics[2].take() == said, "{on:?}");
            for tags in tags {
                let requests = tagged(&to_it, tags);
                nics[2].send(&requests);
                assert!(nics[at].take() == requests, "{on:?}, {tags:02x?}");
            }
            setup.daemon.await_idle();
            assert!(nics[away].rest().is_empty(), "{on:?}: no frame at the old port");
        }
    }
}
