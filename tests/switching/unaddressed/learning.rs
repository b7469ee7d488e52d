//! Stations are learned from Ethernet sources and from the configuration, never from ARP or ND content. Needs root;
//! makes its own namespaces.

use vifswitch::control::api::responses::{StationKind, StationView, Status};
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment, frame};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, guests, ping};

const ALIKE: [&[DeviceKind]; 3] = [&[DeviceKind::Tap], &[DeviceKind::Xdp], &[DeviceKind::Packet]];

/// A station behind a port, not the port's own address.
const STATION: Mac = Mac::from_bits(0x0a00_0000_0001);

/// One port per string of keys, each of a VM of its own.
fn setup(on: &[DeviceKind], keys: &[&str]) -> Option<Setup> {
    let vms = &["a", "b", "c", "d"][..keys.len()];
    let (spaces, vifs) = guests(vms, on, 1500)?;
    let vifs: Vec<Vif> = vifs.into_iter().zip(keys).map(|(vif, keys)| Vif { more: (*keys).into(), ..vif }).collect();
    Some(Setup { daemon: Daemon::over(&vifs), vifs, spaces })
}

fn stations(setup: &Setup, mac: Mac) -> Vec<StationView> {
    let mut all: Vec<StationView> = setup.daemon.get("/v1/fdb");
    all.retain(|station| station.mac_address == mac.to_string());
    all
}

/// The port is active at once, and one frame suffices to learn its station.
///
/// Shows: REQ-13, AT-08
#[test]
fn an_unaddressed_port_is_active_at_once() {
    for on in ALIKE {
        let keys = "port_security = \"off\"\nfixed_ips = []\nip_allocation = \"none\"";
        let Some(setup) = setup(on, &[keys, "", ""]) else { return };
        assert_eq!(setup.daemon.port(&setup.vifs[0]).status, Status::Active);
        let [a, b, c] = [0, 1, 2].map(|at| setup.nic(at));
        let [own, peer] = [0, 1].map(|at| setup.vifs[at].mac);
        for (source, kind) in [(own, StationKind::Pinned), (STATION, StationKind::Learned)] {
            let first = experiment(peer, source, b"the first");
            a.send(&first);
            assert_eq!(b.take(), first);
            let [station] = stations(&setup, source).try_into().unwrap();
            assert_eq!((station.kind, station.port_id.as_str()), (kind, "port-1"));
            let back = experiment(source, peer, b"the reply, before any ARP");
            b.send(&back);
            assert_eq!(a.take(), back);
        }
        let ports = setup.daemon.await_idle();
        assert_eq!((ports[1].counts.forwarded, ports[1].counts.flooded, ports[2].counts.tx_frames), (2, 0, 0));
        assert!([a, b, c].iter().all(|nic| nic.rest().is_empty()), "{on:?}: no other frame was sent");
    }
}

/// Unicast to a known station reaches only its port, even if it has never sent.
///
/// Shows: REQ-13, AT-09
#[test]
fn a_bystander_receives_no_unicast_of_others() {
    for on in ALIKE {
        let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["sender", "receiver", "bystander"]) else {
            return;
        };
        let [a, b, c] = [0, 1, 2].map(|at| setup.nic(at));
        let silent = experiment(setup.vifs[1].mac, setup.vifs[0].mac, b"are you there?");
        for _ in 0..5 {
            a.send(&silent);
            assert_eq!(b.take(), silent);
        }
        setup.daemon.await_idle();
        assert_eq!(setup.daemon.port(&setup.vifs[1]).counts.rx_frames, 0, "the station has not sent yet");
        assert!(c.rest().is_empty(), "{on:?}: its address is known from the configuration");

        let addresses = [0, 1].map(|at| setup.address(at));
        for (at, to) in [(0, 1), (1, 0)] {
            let (mac, device) = (setup.vifs[to].mac, &setup.vifs[at].name);
            setup.spaces[at].ip(&format!("neigh add {} lladdr {mac} dev {device}", addresses[to]));
        }
        ping(&setup.spaces[0], addresses[1], 5);
        let ports = setup.daemon.await_idle();
        assert_eq!((a.rest().len(), b.rest().len(), c.rest().len()), (5, 5, 0), "{on:?}");
        assert_eq!((ports[0].counts.flooded, ports[1].counts.flooded, ports[2].counts.tx_frames), (0, 0, 0));
    }
}

/// A port without unknown unicast, and a promiscuous port.
///
/// Shows: REQ-15
#[test]
fn unknown_unicast_and_promiscuous_settings_apply() {
    for on in ALIKE {
        let keys = ["port_security = \"off\"", "", "unknown_unicast = \"suppress\"", "promiscuous = true"];
        let Some(setup) = setup(on, &keys) else { return };
        let [a, b, c, d] = [0, 1, 2, 3].map(|at| setup.nic(at));
        let [own, peer] = [0, 1].map(|at| setup.vifs[at].mac);
        let unknown = experiment(STATION, peer, b"where are you?");
        b.send(&unknown);
        assert!([&a, &d].into_iter().all(|nic| nic.take() == unknown));
        let learned = experiment(peer, STATION, b"here I am");
        a.send(&learned);
        assert!([&b, &d].into_iter().all(|nic| nic.take() == learned));
        for _ in 0..5 {
            for (from, to, frame) in
                [(&b, &a, experiment(STATION, peer, b"ah")), (&a, &b, experiment(peer, own, b"so"))]
            {
                from.send(&frame);
                assert!(to.take() == frame && d.take() == frame, "{on:?}");
            }
        }
        let all = experiment(Mac::BROADCAST, peer, b"to all");
        b.send(&all);
        assert!([&a, &c, &d].into_iter().all(|nic| nic.take() == all), "{on:?}: the first frame it receives");
        let counts = setup.daemon.await_idle().into_iter().map(|port| port.counts).collect::<Vec<_>>();
        assert_eq!((counts[2].not_flooded, counts[2].mirror_copies, counts[2].tx_frames), (1, 0, 1));
        assert_eq!((counts[3].not_flooded, counts[3].mirror_copies, counts[3].tx_frames), (0, 11, 13));
        assert_eq!(
            (counts[0].mirror_copies + counts[0].not_flooded, counts[1].mirror_copies + counts[1].not_flooded),
            (0, 0)
        );
        assert!([a, b, c, d].iter().all(|nic| nic.rest().is_empty()));
    }
}

/// A station that has moved announces itself and is reached at its new port from that frame on.
///
/// Shows: REQ-25
#[test]
fn an_announced_station_moves_at_once() {
    // RARP request (RFC 903), as QEMU sends it.
    let who = [&[0, 1, 8, 0, 6, 4, 0, 3][..], &STATION.octets(), &[0; 4], &STATION.octets(), &[0; 22]].concat();
    let rarp = frame(Mac::BROADCAST, STATION, 0x8035, &who);
    // Gratuitous ARP (RFC 5227, 3): a request for its own address.
    let own = [10, 5, 0, 77];
    let mine = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &STATION.octets(), &own, &[0; 6], &own, &[0; 18]].concat();
    let garp = frame(Mac::BROADCAST, STATION, 0x0806, &mine);
    for on in ALIKE {
        let off = "port_security = \"off\"";
        let Some(setup) = setup(on, &[off, off, ""]) else { return };
        let nics = [0, 1, 2].map(|at| setup.nic(at));
        let asks = |asker: &Nic, tale: String| {
            let frame = experiment(STATION, setup.vifs[2].mac, tale.as_bytes());
            asker.send(&frame);
            frame
        };
        for (at, said) in [(0, &rarp), (1, &rarp), (0, &garp), (1, &garp)] {
            nics[at].send(said);
            assert!(nics[1 - at].take() == *said && nics[2].take() == *said, "{on:?}");
            for number in 0..3 {
                let requests = asks(&nics[2], format!("to {at}: {number}"));
                assert_eq!(nics[at].take(), requests, "{on:?}");
            }
            setup.daemon.await_idle();
            assert!(nics[1 - at].rest().is_empty(), "{on:?}: no frame reached the old port");
            let [station] = stations(&setup, STATION).try_into().unwrap();
            assert_eq!(station.port_id, setup.vifs[at].port);
        }
        let ports = setup.daemon.await_idle();
        assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
    }
}
