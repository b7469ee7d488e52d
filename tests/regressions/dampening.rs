//! MAC addresses that move legitimately (VRRP, bonds, HSR), and the events where they do not. Needs root; makes its
//! own namespaces.

use std::time::Duration;

use serde_json::Value;
use vifswitch::time;
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment, frame};
use support::host::setup::{DeviceKind, guests};
use support::host::{Namespace, await_that};

/// Virtual router MAC of VRRP group 198 (RFC 9568, 7.3).
const ROUTER: Mac = Mac::from_bits(0x0000_5e00_01c6);

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A client and two routers, which may use the address of the group.
struct Scenario {
    daemon: Daemon,
    vifs: Vec<Vif>,
    nics: Vec<Nic>,
    _spaces: Vec<Namespace>,
}

impl Scenario {
    /// `keys`: further keys of the two routers' ports.
    fn new(keys: [&str; 2]) -> Option<Scenario> {
        let (spaces, mut vifs) = guests(&["a", "b", "c"], &[DeviceKind::Tap], 1500)?;
        for (vif, keys) in vifs[1..].iter_mut().zip(keys) {
            vif.more = keys.into();
        }
        let daemon = Daemon::over(&vifs);
        vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
        let nics = spaces.iter().zip(&vifs).map(|(namespace, vif)| Nic::new(namespace, &vif.name)).collect();
        Some(Scenario { daemon, vifs, nics, _spaces: spaces })
    }

    /// A router sends a multicast frame, which the client receives.
    fn speaks(&self, router: usize, frame: &[u8]) {
        self.nics[router].send(frame);
        await_that("the frame of a router", || self.nics[0].rest().iter().any(|came| came == frame).then_some(()));
    }

    /// Port and kind of the FDB entry of the group's address.
    fn place(&self) -> (String, String) {
        let stations: Value = self.daemon.get("/v1/fdb");
        let of = |station: &&Value| station["mac_address"] == ROUTER.to_string();
        let station = stations.as_array().unwrap().iter().find(of).expect("the station is known").clone();
        (station["port_id"].as_str().unwrap().into(), station["kind"].as_str().unwrap().into())
    }

    /// Events of these kinds.
    fn events(&self, kinds: &[&str]) -> Vec<Value> {
        let events = self.daemon.page("/v1/events");
        let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| kinds.contains(&event["kind"].as_str().unwrap_or_default())).collect()
    }
}

const DAMPENED: [&str; 2] = ["mac_dampened", "mac_dampened"];

fn pairs() -> String {
    format!("allowed_address_pairs = [{{ mac_address = \"{ROUTER}\" }}]")
}

/// An advert as the master sends it every second, and as the kernel of a starting backup sends it from the same
/// address.
fn advert(number: u8) -> Vec<u8> {
    let payload = [&[0x45, 0xc0, 0, 0x28, 0, number, 0, 0, 0xff, 0x70, 0, 0, 10, 5, 0, 2, 224, 0, 0, 18][..], &[0; 26]];
    frame(Mac::new([0x01, 0, 0x5e, 0, 0, 0x12]), ROUTER, IPV4, &payload.concat())
}

fn of_a_backup(number: u8) -> Vec<u8> {
    let payload = [&[0x60, 0, 0, 0, 0, 0, 59, 255][..], &[0; 32], &[number], &[0; 10]];
    frame(Mac::new([0x33, 0x33, 0, 0, 0, 0x16]), ROUTER, IPV6, &payload.concat())
}

#[test]
fn a_virtual_address_follows_the_master_while_a_backup_starts() {
    let Some(scene) = Scenario::new([&pairs(), &pairs()]) else { return };
    scene.speaks(1, &advert(0));
    scene.speaks(2, &advert(1)); // c is the master now, and b starts as a backup
    for number in 2..8 {
        scene.speaks(1, &of_a_backup(number));
        scene.speaks(2, &advert(number));
    }
    assert_eq!(scene.place(), ("port-3".into(), "learned".into()));
    let hello = experiment(ROUTER, scene.vifs[0].mac, b"to the master");
    scene.nics[0].send(&hello);
    await_that("a frame to the master", || scene.nics[2].rest().contains(&hello).then_some(()));
    assert!(!scene.nics[1].rest().contains(&hello), "the backup receives none");
    assert_eq!(scene.events(&DAMPENED), Vec::<Value>::new());
}

/// For a port without port security no addresses are configured, so that it can take over none.
#[test]
fn a_port_without_security_cannot_take_over_a_virtual_address() {
    let Some(scene) = Scenario::new([&pairs(), "port_security = \"off\""]) else { return };
    // The address is pinned to the only port that is allowed to use it.
    scene.speaks(1, &advert(0));
    scene.nics[2].send(&advert(1));
    let refused =
        || scene.daemon.drops(&scene.vifs[2], "foreign_source") + scene.daemon.drops(&scene.vifs[2], "spoofed_source");
    await_that("a frame of the other router to be refused", || (refused() > 0).then_some(()));
    assert_eq!(scene.place().0, "port-2");
}

/// A storming VM has the ordinary limit of four moves, as have addresses that no port is allowed to use.
#[test]
fn a_virtual_address_is_dampened_if_a_port_storms() {
    let storm = "storm = { broadcast = { pps = 10, burst = 10 } }";
    let Some(scene) = Scenario::new([&format!("{}\n{storm}", pairs()), &pairs()]) else { return };
    scene.speaks(1, &advert(0));
    let noise = experiment(Mac::BROADCAST, scene.vifs[1].mac, &[7; 46]);
    let storm = || (0..40).for_each(|_| scene.nics[1].send(&noise));
    await_that("the storm", || {
        storm();
        scene.events(&["storm_start"]).pop()
    });
    let refused = || {
        let of = |router: &Vif| {
            scene.daemon.drops(router, "dampened_source") + scene.daemon.drops(router, "dampened_source")
        };
        scene.vifs[1..].iter().map(of).sum::<u64>()
    };
    // More than four moves, and fewer per second than are allowed without a storm.
    let is_refused = (0..40u8).any(|number| {
        storm();
        scene.nics[if number % 2 == 0 { 2 } else { 1 }].send(&advert(number));
        let sent = time::now();
        await_that("a while", || (time::now().since(sent) > Duration::from_millis(50)).then_some(()));
        refused() > 0
    });
    assert!(is_refused, "further moves are allowed");
    let event = await_that("the station to be dampened", || scene.events(&DAMPENED).pop());
    assert_eq!(event["mac"], ROUTER.to_string(), "{event:#}");
    assert_eq!(scene.place().0, "port-3", "at the port that does not storm");
}

/// LACP of the second port of a bond has the address of the first one.
#[test]
fn the_second_port_of_a_bond_is_reported_with_the_key_that_allows_it() {
    // On one network and on two.
    for network in ["net1", "net2"] {
        let Some((spaces, mut vifs)) = guests(&["a", "a"], &[DeviceKind::Tap], 1500) else { return };
        vifs[1] = vifs[1].clone().on(network);
        let daemon = Daemon::with("", &[("net1", 1500), ("net2", 1500)], &vifs);
        vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
        let leg = Nic::new(&spaces[1], &vifs[1].name);
        let lacp = frame(Mac::new([0x01, 0x80, 0xc2, 0, 0, 2]), vifs[0].mac, 0x8809, &[1; 46]);
        let reported = || -> Vec<Value> {
            let events = daemon.page("/v1/events");
            let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            events.filter(|event| event["text"].as_str().unwrap_or_default().contains("share_mac")).collect()
        };
        for _ in 0..100 {
            leg.send(&lacp);
        }
        let event = await_that("an event that names the key", || reported().pop());
        assert_eq!(event["vm"], "a", "{event:#}");
        assert_eq!(event["ports"], serde_json::json!(["port-2", "port-1"]), "{event:#}");
        assert_eq!(event["mac"], vifs[0].mac.to_string(), "{event:#}");
        // However often and long it happens, there is one event.
        let (mut sent, start) = (100, time::now());
        await_that("two seconds", || {
            leg.send(&lacp);
            sent += 1;
            (time::now().since(start) > Duration::from_secs(2)).then_some(())
        });
        let refused = || daemon.drops(&vifs[1], "spoofed_source");
        await_that("all of them to be refused", || (refused() == sent).then_some(()));
        assert_eq!(reported().len(), 1);
        // The remedy in the event works.
        let pair = format!("allowed_address_pairs=[{{ mac_address = \"{}\" }}]", vifs[0].mac);
        daemon.done(&["set", "port-2", &pair], "");
        leg.send(&frame(Mac::BROADCAST, vifs[0].mac, 0x88b5, &[1; 46]));
        await_that("one of them to pass", || (daemon.port(&vifs[1]).counts.flooded > 0).then_some(()));
        assert_eq!(refused(), sent);
    }
}

/// An HSR ring (IEC 62439-3): each node sends a frame in both directions, and forwards frames from one port to the
/// other, so that on each network between two nodes the same source arrives from both sides.
struct Ring {
    daemon: Daemon,
    vifs: Vec<Vif>,
    nics: Vec<Nic>,
    _spaces: Vec<Namespace>,
}

/// Behind the first node.
const SOURCE: Mac = Mac::from_bits(0x0a00_0000_0001);
const DESTINATION: Mac = Mac::from_bits(0x0a00_0000_0002);

/// Egress port of a node and ingress port of the next one, around the ring.
const ROUND: [[(usize, usize); 3]; 2] = [[(1, 2), (3, 4), (5, 0)], [(0, 5), (4, 3), (2, 1)]];

impl Ring {
    fn new() -> Option<Ring> {
        let (spaces, mut vifs) = guests(&["a", "a", "b", "b", "c", "c"], &[DeviceKind::Tap], 1500)?;
        let networks = ["net1", "net2", "net2", "net3", "net3", "net1"];
        for (vif, network) in vifs.iter_mut().zip(networks) {
            *vif = Vif { more: "port_security = \"off\"".into(), ..vif.clone().on(network) };
        }
        let daemon = Daemon::with("", &[("net1", 1500), ("net2", 1500), ("net3", 1500)], &vifs);
        vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
        let nics = spaces.iter().zip(&vifs).map(|(namespace, vif)| Nic::new(namespace, &vif.name)).collect();
        Some(Ring { daemon, vifs, nics, _spaces: spaces })
    }

    /// Sends a frame around in one direction. Fails with the node at which it was dropped.
    fn send(&self, way: usize, number: u32) -> Result<(), String> {
        let sent = experiment(DESTINATION, SOURCE, &[&[way as u8][..], &number.to_be_bytes(), &[0; 41]].concat());
        for (from, to) in ROUND[way] {
            let vif = &self.vifs[from];
            let refused = || self.daemon.drops(vif, "dampened_source") + self.daemon.drops(vif, "dampened_source");
            let before = refused();
            self.nics[from].send(&sent);
            let arrived = await_that("the frame at the next node, or its drop", || {
                let came = self.nics[to].rest().contains(&sent);
                (came || refused() > before).then_some(came)
            });
            if !arrived {
                return Err(vif.port.clone());
            }
        }
        Ok(())
    }
}

#[test]
fn in_a_ring_the_setting_that_the_event_names_helps() {
    let Some(ring) = Ring::new() else { return };
    let dropped = (0..10).find_map(|number| [0, 1].into_iter().find_map(|way| ring.send(way, number).err()));
    assert!(dropped.is_some(), "without the setting, a loop looks the same");
    let event = await_that("an event that names the setting", || {
        let events = ring.daemon.page("/v1/events");
        events.lines().find(|event| event.contains("mac_learning")).map(str::to_owned)
    });
    assert!(event.contains(&SOURCE.to_string()), "{event}");
    for vif in &ring.vifs {
        ring.daemon.done(&["set", &vif.port, "mac_learning=false"], "");
    }
    for number in 100..200 {
        for way in [0, 1] {
            ring.send(way, number).unwrap();
        }
    }
    // One direction suffices, whichever it is, and at once.
    (200..220).for_each(|number| ring.send(1, number).unwrap());
    (220..240).for_each(|number| ring.send(0, number).unwrap());
    let ports: Value = ring.daemon.get("/v1/ports");
    assert!(ports.as_array().unwrap().iter().all(|port| port["mac_learning"] == false), "{ports:#}");
}

/// The ports of a bond are one interface of the guest: its floods by one port do not return by the other.
#[test]
fn floods_of_one_bond_port_do_not_return_by_the_other() {
    let Some((spaces, mut vifs)) = guests(&["a", "a", "b"], &[DeviceKind::Tap], 1500) else { return };
    let bond = vifs[0].mac;
    vifs[1].more = format!("allowed_address_pairs = [{{ mac_address = \"{bond}\" }}]");
    let mut daemon = Daemon::new();
    let text = support::host::daemon::config(&daemon.socket(), "", &[("net1", 1500)], &vifs);
    let keys = "id = \"a\"\nshare_mac = true\nsibling_split_horizon = true\n";
    daemon.configure(&text.replacen("id = \"a\"\n", keys, 1));
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let nics: Vec<Nic> = spaces.iter().zip(&vifs).map(|(namespace, vif)| Nic::new(namespace, &vif.name)).collect();
    for number in 0..20u8 {
        // Duplicate address detection.
        let solicitation =
            frame(Mac::new([0x33, 0x33, 0xff, 0, 1, 1]), bond, IPV6, &[&[number][..], &[0; 63]].concat());
        let leg = usize::from(number % 2);
        nics[leg].send(&solicitation);
        await_that("the other VM to receive it", || nics[2].rest().contains(&solicitation).then_some(()));
        // Broadcasts arrive by both ports, and nothing else has arrived before.
        let marker = frame(Mac::BROADCAST, vifs[2].mac, 0x88b5, &[number; 46]);
        nics[2].send(&marker);
        for nic in &nics[..2] {
            assert!(nic.take() == marker, "its own frame returned");
        }
    }
}
