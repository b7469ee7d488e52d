//! Activation of pins: inactive ports, announcements received on an uplink, and announcements sent by the switch.
//! Needs nothing of the host.

use std::time::Duration;

use vifswitch::switch::{DropReason, HashKey, NetworkId, PinReport, PortId, Security, Station};
use vifswitch::wire::{Announcement, Mac};
use vifswitch::worker::{Command, WorkerEvent};

use crate::builders::{KINDS, done};
use support::lab::{HASH_KEY, Lab, PortSpec, Setup, UplinkSpec, frame, mac, uplink_port};

/// Two VMs and an uplink on one network.
const A: usize = 0;
const B: usize = 1;
const W: usize = 2;

/// An address in the allowed pairs of both VMs, or of the first one only.
const VRRP: Mac = Mac::new([0, 0, 0x5e, 0, 1, 1]);

fn labs(security: &Security) -> impl Iterator<Item = Lab> {
    let port_specs = [PortSpec { security: security.clone(), ..PortSpec::new(0, 0) }, PortSpec::new(0, 1)];
    KINDS.into_iter().map(move |(workers, memory)| {
        Lab::with_uplinks(Setup { workers, memory, ..Setup::default() }, &port_specs, &[UplinkSpec::new(&[(0, 0)])])
    })
}

fn station(mac: Mac) -> Station {
    Station::new(NetworkId::new(0), mac)
}

fn own_announcement(mac: Mac) -> Vec<u8> {
    Announcement::write(mac, HashKey::new(HASH_KEY).announcements()).to_vec()
}

/// A RARP announcement, as another switch or a VMM sends it.
fn announcement(mac: Mac) -> Vec<u8> {
    let mut frame = own_announcement(mac);
    frame[44..].fill(0);
    frame
}

/// Makes the port at `index` pin its own addresses, or nothing.
fn pin(lab: &mut Lab, index: usize, pins: bool) {
    let id = lab.ports[index];
    lab.change_ports(|ports| ports.iter_mut().filter(|port| port.id == id).for_each(|port| port.pins = pins));
}

/// Ports that receive a frame to a station.
fn reached(lab: &mut Lab, from: usize, to: Mac) -> Vec<usize> {
    let source = if from == W { Mac::from_bits(0x0600_0000_0001) } else { mac(from) };
    assert!(lab.send(from, &frame(to, source, 0x88b5, &[0; 46])));
    arrived(lab)
}

fn arrived(lab: &mut Lab) -> Vec<usize> {
    lab.settle();
    let received = lab.all_received();
    received.iter().enumerate().flat_map(|(port, frames)| vec![port; frames.len()]).collect()
}

fn reports(lab: &mut Lab) -> Vec<PinReport> {
    let found = lab.events().into_iter();
    found.map(|event| if let WorkerEvent::Pin(report, _) = event { report } else { panic!("{event:?}") }).collect()
}

#[test]
fn an_inactive_port_attracts_no_traffic_until_its_first_frame() {
    for security in [Security::Off, Security::Mac([VRRP].into())] {
        for mut lab in labs(&security) {
            pin(&mut lab, A, false);
            assert_eq!(reached(&mut lab, B, mac(A)), [A, W], "the station is unknown");
            assert!(lab.send(W, &frame(Mac::BROADCAST, mac(A), 0x88b5, &[0; 46])));
            arrived(&mut lab);
            assert_eq!(reached(&mut lab, B, mac(A)), [W], "the station is learned at the uplink");
            assert_eq!(reports(&mut lab), []);
            // More moves than the flap limit allows.
            for _ in 0..10 {
                assert!(lab.send(W, &frame(Mac::BROADCAST, mac(A), 0x88b5, &[0; 46])));
                arrived(&mut lab);
                lab.advance(Duration::from_secs(1));
                assert!(lab.send(A, &announcement(mac(A))));
                assert_eq!(arrived(&mut lab), [B, W], "a port's own address is never refused");
                assert_eq!(reached(&mut lab, B, mac(A)), [A], "the station moves at once, at every worker");
                let report = PinReport::Received { at: lab.ports[A], station: station(mac(A)) };
                assert_eq!(reports(&mut lab), [report]);
            }
            pin(&mut lab, A, true);
            assert_eq!(reached(&mut lab, B, mac(A)), [A]);
            assert!(lab.send(A, &frame(mac(B), mac(A), 0x88b5, &[0; 46])));
            assert_eq!(arrived(&mut lab), [B]);
            assert_eq!(reports(&mut lab), [], "an active port is not reported");
            done(lab);
        }
    }
}

#[test]
fn refused_frames_activate_nothing() {
    for mut lab in labs(&Security::Mac([].into())) {
        pin(&mut lab, A, false);
        assert!(lab.send(A, &frame(Mac::BROADCAST, VRRP, 0x88b5, &[0; 46])));
        assert_eq!(arrived(&mut lab), [0; 0]);
        assert_eq!(lab.drops_in(A, DropReason::SpoofedSource), 1);
        assert_eq!(reports(&mut lab), []);
        done(lab);
    }
}

#[test]
fn a_port_that_is_down_pins_nothing() {
    for mut lab in labs(&Security::Off) {
        let id = lab.ports[A];
        lab.change_ports(|ports| ports.iter_mut().filter(|port| port.id == id).for_each(|port| port.admin_up = false));
        assert_eq!(reached(&mut lab, B, mac(A)), [W]);
        assert!(lab.send(W, &frame(mac(B), mac(A), 0x88b5, &[0; 46])));
        assert_eq!(arrived(&mut lab), [B]);
        assert_eq!(reached(&mut lab, B, mac(A)), [W], "the station is learned at the uplink");
        done(lab);
    }
}

/// A subport whose parent is administratively down pins nothing either.
#[test]
fn a_subport_of_a_parent_that_is_down_pins_nothing() {
    for (workers, memory) in KINDS {
        let port_specs = [PortSpec::new(1, 0), PortSpec::new(0, 1), PortSpec::new(0, 0).subport_of(0, 7)];
        let mut lab = Lab::with_uplinks(
            Setup { workers, memory, ..Setup::default() },
            &port_specs,
            &[UplinkSpec::new(&[(0, 0)])],
        );
        assert_eq!(reached(&mut lab, 1, mac(2)), [0]);
        lab.change_config(|ports, trunks| {
            ports[0].admin_up = false;
            trunks.iter_mut().filter(|trunk| trunk.id == PortId::new(0, 0)).for_each(|of| of.admin_up = false);
        });
        assert_eq!(reached(&mut lab, 1, mac(2)), [3]);
        done(lab);
    }
}

/// A subport is activated by a frame with its tag, not by a frame of its parent.
#[test]
fn an_inactive_subport_is_activated_by_its_own_frames() {
    for (workers, memory) in KINDS {
        let port_specs = [PortSpec::new(1, 0), PortSpec::new(0, 1), PortSpec::new(0, 0).subport_of(0, 7)];
        let mut lab = Lab::with_uplinks(
            Setup { workers, memory, ..Setup::default() },
            &port_specs,
            &[UplinkSpec::new(&[(0, 0)])],
        );
        pin(&mut lab, 2, false);
        assert!(lab.send(W + 1, &frame(Mac::BROADCAST, mac(2), 0x88b5, &[0; 46])));
        arrived(&mut lab);
        assert_eq!(reached(&mut lab, 1, mac(2)), [W + 1]);
        assert!(lab.send(0, &frame(Mac::BROADCAST, mac(0), 0x88b5, &[0; 46])));
        arrived(&mut lab);
        assert_eq!(reports(&mut lab), []);
        let own = frame(Mac::BROADCAST, mac(2), 0x88b5, &[0; 46]);
        assert!(lab.send(0, &[&own[..12], &[0x81, 0, 0, 7], &own[12..]].concat()));
        assert_eq!(arrived(&mut lab), [1, W + 1]);
        assert_eq!(reports(&mut lab), [PinReport::Received { at: lab.ports[2], station: station(mac(2)) }]);
        assert_eq!(reached(&mut lab, 1, mac(2)), [0]);
        done(lab);
    }
}

#[test]
fn an_announcement_from_outside_is_reported_and_other_frames_are_not() {
    for mut lab in labs(&Security::Mac([VRRP].into())) {
        for address in [mac(A), VRRP] {
            let elsewhere =
                PinReport::Elsewhere { pinned: lab.ports[A], at: uplink_port(0, 0), station: station(address) };
            assert!(lab.send(W, &frame(Mac::BROADCAST, address, 0x88b5, &[0; 46])));
            assert!(lab.send(W, &frame(mac(B), address, 0x8035, &announcement(address)[14..])));
            assert_eq!(arrived(&mut lab), [A, B, B]);
            assert_eq!(reports(&mut lab), [], "other frames may be spoofed and are not reported");
            for _ in 0..100 {
                assert!(lab.send(W, &announcement(address)));
                assert_eq!(arrived(&mut lab), [A, B]);
            }
            assert_eq!(reports(&mut lab), [elsewhere], "repeated announcements are reported once");
            assert_eq!(reached(&mut lab, B, address), [A], "control decides");
        }
        // Addresses unknown here, and an address learned here.
        assert!(lab.send(W, &announcement(Mac::from_bits(0x0600_0000_0001))));
        assert_eq!(arrived(&mut lab), [A, B]);
        assert_eq!(reports(&mut lab), []);
        done(lab);
    }
}

/// The advertisement of the master of [`VRRP`]'s virtual router, which resigns with priority 0.
fn advert(priority: u8) -> Vec<u8> {
    let ip = [0x45, 0xc0, 0, 28, 0, 0, 0, 0, 255, 112, 0, 0, 10, 5, 0, 2, 224, 0, 0, 18];
    let message = [0x31, 1, priority, 1, 0, 1, 0, 0];
    frame(Mac::new([0x01, 0, 0x5e, 0, 0, 0x12]), VRRP, 0x0800, &[&ip[..], &message, &[0; 18]].concat())
}

/// Ten per second, which is one report each; a thousand per second are reported 20 times.
#[test]
fn adverts_of_a_virtual_router_are_reported_until_its_pin_has_yielded() {
    for mut lab in labs(&Security::Mac([VRRP].into())) {
        let id = lab.ports[A];
        let elsewhere = PinReport::Elsewhere { pinned: id, at: uplink_port(0, 0), station: station(VRRP) };
        let send = |lab: &mut Lab, from: usize, frame: &[u8], count: u32, interval: Duration| {
            for _ in 0..count {
                assert!(lab.send(from, frame));
                assert_eq!(arrived(lab).len(), 2, "the frame is flooded");
                lab.advance(interval);
            }
            reports(lab)
        };
        assert_eq!(send(&mut lab, W, &advert(0), 10, Duration::from_millis(100)), [], "the master resigns");
        assert_eq!(send(&mut lab, W, &advert(100), 10, Duration::from_millis(100)), [elsewhere; 10]);
        let rapid = send(&mut lab, W, &advert(100), 1000, Duration::from_millis(1));
        assert!(rapid.len() <= 20 && rapid.iter().all(|&report| report == elsewhere), "{} reports", rapid.len());
        // Advertisements of the guest are reported too, as they may be returned.
        let announced = PinReport::Announced { at: id, station: station(VRRP) };
        assert_eq!(send(&mut lab, A, &advert(100), 10, Duration::from_millis(100)), [announced; 10]);
        assert_eq!(send(&mut lab, A, &advert(0), 10, Duration::from_millis(100)), []);
        lab.change_ports(|ports| {
            ports.iter_mut().filter(|port| port.id == id).for_each(|port| port.released_pins = vec![VRRP])
        });
        assert_eq!(send(&mut lab, W, &advert(100), 1000, Duration::from_millis(1)), [], "the pin has yielded");
        assert_eq!(reached(&mut lab, B, VRRP), [W]);
        // Control must know what a backup and what a master has sent.
        let received = PinReport::Received { at: id, station: station(VRRP) };
        let other = frame(Mac::new([0x01, 0, 0x5e, 0, 0, 0x16]), VRRP, 0x0800, &[0; 46]);
        assert_eq!(send(&mut lab, A, &other, 1, Duration::ZERO), [received]);
        lab.advance(Duration::from_millis(100));
        assert_eq!(send(&mut lab, A, &advert(0), 1, Duration::ZERO), [received]);
        assert_eq!(send(&mut lab, A, &advert(100), 1, Duration::ZERO), [announced]);
        assert_eq!(send(&mut lab, A, &announcement(VRRP), 1, Duration::ZERO), []);
        done(lab);
    }
}

#[test]
fn a_yielded_address_returns_with_its_next_frame() {
    for mut lab in labs(&Security::Mac([VRRP].into())) {
        let id = lab.ports[A];
        lab.change_ports(|ports| {
            ports.iter_mut().filter(|port| port.id == id).for_each(|port| port.released_pins = vec![VRRP])
        });
        assert!(lab.send(W, &announcement(VRRP)));
        arrived(&mut lab);
        assert_eq!(reached(&mut lab, B, VRRP), [W]);
        assert_eq!(reached(&mut lab, B, mac(A)), [A], "the port's own address stays pinned");
        assert_eq!(reached(&mut lab, A, VRRP), [W]);
        assert_eq!(reports(&mut lab), []);
        assert!(lab.send(A, &frame(mac(B), VRRP, 0x88b5, &[0; 46])));
        assert_eq!(arrived(&mut lab), [B]);
        assert_eq!(reports(&mut lab), [PinReport::Received { at: id, station: station(VRRP) }]);
        assert_eq!(reached(&mut lab, B, VRRP), [A]);
        done(lab);
    }
}

#[test]
fn announcements_of_a_guest_are_reported() {
    for mut lab in labs(&Security::Mac([].into())) {
        assert!(lab.send(A, &frame(Mac::BROADCAST, mac(A), 0x88b5, &[0; 46])));
        arrived(&mut lab);
        assert_eq!(reports(&mut lab), []);
        assert!(lab.send(A, &announcement(mac(A))));
        assert_eq!(arrived(&mut lab), [B, W]);
        assert_eq!(reports(&mut lab), [PinReport::Announced { at: lab.ports[A], station: station(mac(A)) }]);
        done(lab);
    }
}

/// An announcement received on the uplink is dropped if its station is dampened at its own port.
#[test]
fn a_pinned_station_can_be_dampened_at_its_port() {
    for mut lab in labs(&Security::Mac([].into())) {
        let at = lab.ports[A];
        lab.dampen(&[(station(mac(A)), at), (station(mac(B)), at)]);
        assert!(lab.send(W, &announcement(mac(A))));
        assert_eq!(arrived(&mut lab), [0; 0]);
        assert_eq!(lab.drops_in(W, DropReason::DampenedSource), 1);
        assert!(lab.send(A, &announcement(mac(A))));
        assert_eq!(arrived(&mut lab), [B, W]);
        assert_eq!(reached(&mut lab, B, mac(A)), [A]);
        assert_eq!(reached(&mut lab, A, mac(B)), [B], "other pins stay");
        reports(&mut lab);
        done(lab);
    }
}

/// The announcement leaves by the uplink, tagged, and is counted there. No guest receives it, even if the external
/// network returns it.
#[test]
fn announcements_of_the_switch_leave_by_uplinks_only() {
    for (workers, memory) in KINDS {
        let port_specs = [PortSpec::new(0, 0), PortSpec::new(0, 1), PortSpec::new(1, 2)];
        let uplink_specs = [UplinkSpec::new(&[(120, 0), (0, 1)])];
        let mut lab = Lab::with_uplinks(Setup { workers, memory, ..Setup::default() }, &port_specs, &uplink_specs);
        let (by, worker) = (uplink_port(0, 0), 3 % usize::from(workers));
        let bytes: [u8; Announcement::LEN] = own_announcement(mac(A)).try_into().unwrap();
        let all = vec![(by, bytes), (uplink_port(0, 1), bytes), (lab.ports[B], bytes), (PortId::new(77, 0), bytes)];
        lab.command(worker, |reply| Command::Announce(all.clone(), reply));
        lab.settle();
        let received = lab.all_received();
        let tagged = [&bytes[..12], &[0x81, 0, 0, 120], &bytes[12..]].concat();
        assert_eq!(received[3], [tagged.clone(), bytes.to_vec()]);
        assert!(received[..3].iter().all(Vec::is_empty));
        assert_eq!((lab.sum(3, |c| c.announcements.get()), lab.total(|c| c.announcements.get())), (2, 2));
        // An external network returns the announcement of a pinned, a learned and an unknown station.
        let learned = Mac::from_bits(0x0600_0000_0001);
        assert!(lab.send(A, &frame(Mac::BROADCAST, learned, 0x88b5, &[0; 46])));
        arrived(&mut lab);
        for station in [mac(A), learned, Mac::from_bits(0x0600_0000_0002)] {
            let bytes = own_announcement(station);
            let tagged = [&bytes[..12], &[0x81, 0, 0, 120], &bytes[12..]].concat();
            assert!(lab.send(3, &tagged));
            assert_eq!(arrived(&mut lab), [0; 0]);
        }
        assert_eq!(lab.drops_in(3, DropReason::OwnAnnouncement), 3);
        assert_eq!(reached(&mut lab, B, learned), [A], "a returned announcement is not learned");
        assert_eq!(reports(&mut lab), []);
        // A backup uplink sends none and reports that.
        lab.change_config(|_, trunks| trunks[0].backup = true);
        lab.command(worker, |reply| Command::Announce(vec![(by, bytes)], reply));
        assert_eq!(lab.drops_out(3, DropReason::Standby), 1);
        assert!(lab.audit().is_balanced());
        done(lab);
    }
}
