//! MAC flaps: four moves are a bond failover or a migration, the fifth within the window is a loop. Needs nothing of
//! the host.

use std::time::Duration;

use vifswitch::switch::{DropReason, FlapEvent, NetworkId, Security, Station};
use vifswitch::wire::Mac;
use vifswitch::worker::WorkerEvent;

use crate::builders::KINDS;
use crate::fdb::reached;
use crate::generators::wild;
use support::lab::{Lab, PortSpec, Setup, UplinkSpec, frame, mac, uplink_port};

/// Labs of every kind with these ports on one network, and optional uplinks.
fn labs(port_specs: &[PortSpec], uplink_specs: &[UplinkSpec]) -> impl Iterator<Item = Lab> {
    KINDS.into_iter().map(move |(workers, memory)| {
        Lab::with_uplinks(Setup { workers, memory, ..Setup::default() }, port_specs, uplink_specs)
    })
}

fn port_specs(owners: &[u32]) -> Vec<PortSpec> {
    owners.iter().map(|&owner| PortSpec::new(0, owner)).collect()
}

/// A station sends from a port. Whether its frame was forwarded.
fn speaks(lab: &mut Lab, port: usize, station: Mac) -> bool {
    let before = lab.drops_in(port, DropReason::DampenedSource);
    assert!(lab.send(port, &frame(Mac::BROADCAST, station, 0x88b5, &[0; 46])));
    lab.settle();
    let arrived = lab.all_received().iter().any(|frames| !frames.is_empty());
    let dropped = lab.drops_in(port, DropReason::DampenedSource) - before;
    assert_eq!(dropped, u64::from(!arrived), "the frame is forwarded or counted as dropped");
    arrived
}

fn moving(lab: &Lab, station: Mac, from: usize, to: usize) -> WorkerEvent {
    moving_from_home(lab, station, from, to, from)
}

fn moving_from_home(lab: &Lab, station: Mac, from: usize, to: usize, home: usize) -> WorkerEvent {
    let station = Station::new(NetworkId::new(0), station);
    WorkerEvent::Flap(FlapEvent { station, from: lab.ports[from], to: lab.ports[to], origin: lab.ports[home] })
}

fn done(mut lab: Lab) {
    assert_eq!(lab.events(), []);
    lab.check_counters();
    lab.end();
}

const STATION: usize = 3;

/// Shows: REQ-21
#[test]
fn the_fifth_move_within_three_minutes_is_refused() {
    for mut lab in labs(&port_specs(&[0, 1, 2]), &[]) {
        let station = wild(STATION);
        assert!(speaks(&mut lab, 0, station));
        for to in [1, 0, 1, 0] {
            lab.advance(Duration::from_secs(10));
            assert!(speaks(&mut lab, to, station));
            assert_eq!(reached(&mut lab, 2, station, mac(2)), [to], "the station moves at once");
        }
        lab.advance(Duration::from_secs(10));
        for _ in 0..20 {
            assert!(!speaks(&mut lab, 1, station), "the fifth and all later moves are refused");
            assert_eq!(reached(&mut lab, 2, station, mac(2)), [0], "the station stays at its port");
            assert!(speaks(&mut lab, 0, station), "frames from its port are forwarded");
        }
        assert_eq!(lab.events(), [moving(&lab, station, 0, 1)], "one event is emitted");
        // The first of the four moves is now just under 180 s ago; then just over.
        lab.advance(Duration::from_secs(140) - Duration::from_nanos(1));
        assert!(!speaks(&mut lab, 1, station));
        lab.advance(Duration::from_nanos(1));
        assert!(speaks(&mut lab, 1, station));
        assert!(!speaks(&mut lab, 0, station));
        // Each worker reports for itself, and this port is another worker's.
        let is_new = lab.workers.len() > 1;
        let changed = if is_new { vec![moving_from_home(&lab, station, 1, 0, 0)] } else { vec![] };
        assert_eq!(lab.events(), changed, "no second event within the window");
        lab.advance(Duration::from_secs(10));
        assert!(speaks(&mut lab, 0, station));
        assert!(!speaks(&mut lab, 1, station));
        lab.advance(Duration::from_secs(30));
        for _ in 0..3 {
            speaks(&mut lab, 1, station);
            speaks(&mut lab, 0, station);
        }
        assert_eq!(lab.events().len(), 1, "a later window emits an event");
        done(lab);
    }
}

/// Two VMs have a VRRP group address in their allowed pairs: it moves between them three times.
#[test]
fn a_shared_address_may_fail_over() {
    let vrrp = Mac::from_bits(0x0000_5e00_0101);
    let mut port_specs = port_specs(&[0, 1, 2]);
    for spec in &mut port_specs[..2] {
        spec.security = Security::Mac([vrrp].into());
    }
    for mut lab in labs(&port_specs, &[]) {
        for to in [0, 1, 0, 1] {
            assert!(speaks(&mut lab, to, vrrp));
            assert_eq!(reached(&mut lab, 2, vrrp, mac(2)), [to]);
        }
        done(lab);
    }
}

/// Ports of two VMs with a VRRP group address in the allowed pairs of both, and of a third VM.
fn virtual_router(uplink_specs: &[UplinkSpec]) -> (Mac, Vec<Lab>) {
    let router = Mac::from_bits(0x0000_5e00_01c6);
    let mut port_specs = port_specs(&[0, 1, 2]);
    for spec in &mut port_specs[..2] {
        spec.security = Security::Mac([router].into());
    }
    (router, labs(&port_specs, uplink_specs).collect())
}

/// A backup that starts sends from the group address too; the master's adverts win (RFC 9568, 8.1.2).
#[test]
fn an_address_allowed_at_both_ports_moves_as_often_as_masters_change() {
    let (router, labs) = virtual_router(&[]);
    for mut lab in labs {
        for _ in 0..60 {
            for (to, pause) in [(0, 200), (1, 30), (0, 1), (1, 800)] {
                assert!(speaks(&mut lab, to, router));
                assert_eq!(reached(&mut lab, 2, router, mac(2)), [to]);
                lab.advance(Duration::from_millis(pause));
            }
        }
        done(lab);
    }
}

/// Another member of the group is on another host.
#[test]
fn an_address_that_ports_share_with_an_uplink_moves_as_often() {
    let (router, labs) = virtual_router(&[UplinkSpec::new(&[(0, 0)])]);
    for mut lab in labs {
        lab.advance(Duration::from_secs(100)); // the ports were opened over a minute ago
        for _ in 0..20 {
            for to in [0, 3, 1] {
                assert!(speaks(&mut lab, to, router));
                lab.advance(Duration::from_millis(100));
            }
        }
        done(lab);
    }
}

/// Looping frames move their source on each pass.
#[test]
fn an_address_allowed_at_both_ports_is_refused_at_the_rate_of_a_loop() {
    let (router, labs) = virtual_router(&[]);
    for mut lab in labs {
        assert!(speaks(&mut lab, 0, router));
        for round in 1..=32 {
            assert!(speaks(&mut lab, round % 2, router), "move {round}");
            lab.advance(Duration::from_millis(10));
        }
        assert!(!speaks(&mut lab, 1, router));
        assert_eq!(lab.events(), [moving(&lab, router, 0, 1)]);
        done(lab);
    }
}

/// While control knows of a loop or storm, these addresses have the ordinary limit of four moves.
#[test]
fn a_suspect_port_has_the_ordinary_move_limit() {
    for suspect in [0, 1] {
        let (router, labs) = virtual_router(&[]);
        for mut lab in labs {
            let id = lab.ports[suspect];
            lab.change_ports(|all| all.iter_mut().filter(|port| port.id == id).for_each(|port| port.suspect = true));
            for to in [0, 1, 0, 1, 0] {
                assert!(speaks(&mut lab, to, router));
                lab.advance(Duration::from_secs(10));
            }
            assert!(!speaks(&mut lab, 1, router));
            assert_eq!(lab.events(), [moving(&lab, router, 0, 1)]);
            lab.change_ports(|all| all.iter_mut().for_each(|port| port.suspect = false));
            assert!(speaks(&mut lab, 1, router), "allowed once the port is no longer suspect");
            done(lab);
        }
    }
}

/// Without port security no address is configured as allowed.
#[test]
fn a_port_without_security_is_allowed_no_address() {
    let router = Mac::from_bits(0x0000_5e00_01c6);
    let mut port_specs = port_specs(&[0, 1, 2]);
    for spec in &mut port_specs[1..] {
        spec.security = Security::Mac([router].into());
    }
    for mut lab in labs(&port_specs, &[]) {
        for to in [0, 1, 0, 1, 0] {
            assert!(speaks(&mut lab, to, router));
            lab.advance(Duration::from_secs(10));
        }
        assert!(!speaks(&mut lab, 1, router));
        assert_eq!(lab.events(), [moving(&lab, router, 0, 1)]);
        done(lab);
    }
}

/// A guest's bond of two ports fails over 20 times in a minute.
#[test]
fn siblings_have_their_own_move_limit() {
    for mut lab in labs(&port_specs(&[7, 7, 1]), &[]) {
        let station = wild(STATION);
        for _ in 0..10 {
            for to in [0, 1] {
                assert!(speaks(&mut lab, to, station));
                assert_eq!(reached(&mut lab, 2, station, mac(2)), [to]);
                lab.advance(Duration::from_secs(3));
            }
        }
        assert_eq!(lab.events(), []);
        // The fifth move within one second is refused.
        for to in [0, 1, 0, 1] {
            lab.advance(Duration::from_millis(200));
            assert!(speaks(&mut lab, to, station));
        }
        assert!(!speaks(&mut lab, 0, station));
        assert_eq!(lab.events(), [moving(&lab, station, 1, 0)]);
        lab.advance(Duration::from_millis(399));
        assert!(!speaks(&mut lab, 0, station));
        lab.advance(Duration::from_millis(1));
        assert!(speaks(&mut lab, 0, station));
        // Moves between siblings do not count for moves between VMs.
        for to in [2, 0, 2, 0] {
            assert!(speaks(&mut lab, to, station));
        }
        assert!(!speaks(&mut lab, 2, station));
        assert_eq!(lab.events(), [moving(&lab, station, 0, 2)]);
        done(lab);
    }
}

#[test]
fn mac_sharing_allows_a_move_per_frame() {
    let mut port_specs = port_specs(&[7, 7, 1]);
    port_specs[..2].iter_mut().for_each(|spec| spec.mac_sharing = true);
    for mut lab in labs(&port_specs, &[]) {
        for round in 0..200 {
            assert!(speaks(&mut lab, round % 2, wild(STATION)));
            assert_eq!(reached(&mut lab, 2, wild(STATION), mac(2)), [round % 2]);
        }
        done(lab);
    }
}

/// Behind a port that does not learn, no source is learned, moved or dampened, at any worker.
#[test]
fn a_port_that_does_not_learn_moves_no_station() {
    for mut lab in labs(&port_specs(&[0, 1, 2]), &[]) {
        let ids = [lab.ports[0], lab.ports[1]];
        lab.change_ports(|all| {
            all.iter_mut().filter(|port| ids.contains(&port.id)).for_each(|port| port.learns = false)
        });
        for round in 0..50 {
            assert!(speaks(&mut lab, round % 2, wild(STATION)));
            assert_eq!(reached(&mut lab, round % 2, wild(5), wild(STATION)), [(round + 1) % 2, 2]);
        }
        assert!(lab.workers.iter().all(|worker| worker.switch().fdb().is_empty()));
        // Stations known at other ports stay there and are reachable.
        assert!(speaks(&mut lab, 2, wild(5)));
        assert!(speaks(&mut lab, 0, wild(5)));
        assert_eq!(reached(&mut lab, 1, wild(5), wild(STATION)), [2]);
        assert_eq!(lab.events(), []);
        done(lab);
    }
}

/// Moves from a port that is closed, administratively down or quarantined are migrations and not counted.
#[test]
fn moves_from_a_blocked_port_are_not_counted() {
    for mut lab in labs(&port_specs(&[0, 1, 2]), &[]) {
        let station = wild(STATION);
        assert!(speaks(&mut lab, 0, station));
        for round in 0..12 {
            let (from, to) = (round % 2, (round + 1) % 2);
            let shut = lab.ports[from];
            let set = |lab: &mut Lab, is_shut: bool| {
                lab.change_ports(|all| {
                    for port in all.iter_mut().filter(|port| port.id == shut) {
                        if round % 4 < 2 { port.admin_up = !is_shut } else { port.quarantined = is_shut }
                    }
                });
            };
            set(&mut lab, true);
            assert!(speaks(&mut lab, to, station));
            set(&mut lab, false);
        }
        for to in [1, 0, 1, 0] {
            assert!(speaks(&mut lab, to, station), "moves with MAC sharing are not counted");
        }
        assert!(!speaks(&mut lab, 1, station));
        assert_eq!(lab.events(), [moving(&lab, station, 0, 1)]);
        done(lab);
    }
}

/// A VM migrates in from another host: its stations move from the uplink to a port opened within the last minute and
/// are not counted. Moves between uplink and an older port are.
///
/// Shows: REQ-25
#[test]
fn moves_to_a_port_are_free_in_its_first_minute() {
    let uplink = 2;
    for mut lab in labs(&port_specs(&[0, 1]), &[UplinkSpec::new(&[(0, 0)])]) {
        let station = wild(STATION);
        let arrive = |lab: &mut Lab| {
            for _ in 0..10 {
                assert!(speaks(lab, uplink, station) && speaks(lab, 0, station));
            }
        };
        arrive(&mut lab);
        lab.advance(Duration::from_secs(60) - Duration::from_nanos(1));
        arrive(&mut lab);
        lab.advance(Duration::from_nanos(1));
        for to in [uplink, 0, uplink, 0] {
            assert!(speaks(&mut lab, to, station));
        }
        assert!(!speaks(&mut lab, uplink, station));
        let found = FlapEvent {
            station: Station::new(NetworkId::new(0), station),
            from: lab.ports[0],
            to: uplink_port(0, 0),
            origin: lab.ports[0],
        };
        assert_eq!(lab.events(), [WorkerEvent::Flap(found)]);
        // Setting the port administratively up reopens it; leaving quarantine does not.
        let id = lab.ports[0];
        for (hold, is_free) in [(true, false), (false, true)] {
            for shut in [true, false] {
                lab.change_ports(|all| {
                    for port in all.iter_mut().filter(|port| port.id == id) {
                        if hold { port.quarantined = shut } else { port.admin_up = !shut }
                    }
                });
            }
            assert_eq!(speaks(&mut lab, uplink, station), is_free, "held: {hold}");
        }
        // More than 32 within a second are reported.
        lab.advance(Duration::from_secs(1));
        arrive(&mut lab);
        done(lab);
    }
}

/// They may be a loop over another host, so control is told and probes the port. A few are a migration.
#[test]
fn many_moves_to_a_port_in_its_first_minute_are_reported() {
    let uplink = 1;
    for mut lab in labs(&port_specs(&[0]), &[UplinkSpec::new(&[(0, 0)])]) {
        let station = wild(STATION);
        assert!(speaks(&mut lab, uplink, station));
        for _ in 0..16 {
            assert!(speaks(&mut lab, 0, station) && speaks(&mut lab, uplink, station));
        }
        assert_eq!(lab.events(), [], "32 moves within a second");
        for _ in 0..16 {
            assert!(speaks(&mut lab, 0, station) && speaks(&mut lab, uplink, station));
        }
        let reported = lab.events();
        let ends = [lab.ports[0], uplink_port(0, 0)];
        let is_right = |event: &WorkerEvent| match event {
            WorkerEvent::AllowedFlap(flap) => {
                flap.station.mac() == station
                    && ends.contains(&flap.from)
                    && ends.contains(&flap.to)
                    && flap.from != flap.to
            }
            _ => false,
        };
        assert!(!reported.is_empty() && reported.iter().all(is_right), "{reported:?}");
        done(lab);
    }
}

/// An aged station is learned, not moved.
#[test]
fn an_aged_station_does_not_move() {
    let mut lab = labs(&port_specs(&[0, 1, 2]), &[]).next().unwrap();
    for round in 0..12 {
        assert!(speaks(&mut lab, round % 2, wild(STATION)));
        lab.advance(Duration::from_secs(300));
    }
    for round in 0..5 {
        assert!(speaks(&mut lab, round % 2, wild(STATION)));
    }
    assert!(!speaks(&mut lab, 1, wild(STATION)));
    assert_eq!(lab.events(), [moving(&lab, wild(STATION), 0, 1)]);
    done(lab);
}
