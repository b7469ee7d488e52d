//! Stations that move: four times is a bond or a migration, five times is a loop.

use std::time::Duration;

use vifswitch::switch::{DropReason, FlapEvent, NetworkId, Security, Station};
use vifswitch::wire::Mac;
use vifswitch::worker::WorkerEvent;

use crate::builders::KINDS;
use crate::fdb::reached;
use crate::generators::wild;
use support::lab::{Lab, PortSpec, Setup, UplinkSpec, frame, mac, uplink_port};

/// Labs of every kind with these ports on one network, and an uplink if asked for.
fn labs(plugs: &[PortSpec], wires: &[UplinkSpec]) -> impl Iterator<Item = Lab> {
    KINDS
        .into_iter()
        .map(move |(workers, memory)| Lab::with_uplinks(Setup { workers, memory, ..Setup::default() }, plugs, wires))
}

fn plugs(owners: &[u32]) -> Vec<PortSpec> {
    owners.iter().map(|&owner| PortSpec::new(0, owner)).collect()
}

/// A station is heard at a port. Whether its frame came through.
fn speaks(lab: &mut Lab, port: usize, station: Mac) -> bool {
    let before = lab.drops_in(port, DropReason::DampenedSource);
    assert!(lab.send(port, &frame(Mac::BROADCAST, station, 0x88b5, &[0; 46])));
    lab.settle();
    let arrived = lab.all_received().iter().any(|frames| !frames.is_empty());
    let dropped = lab.drops_in(port, DropReason::DampenedSource) - before;
    assert_eq!(dropped, u64::from(!arrived), "it arrives, or has a reason not to");
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

#[test]
fn the_fifth_move_within_three_minutes_is_refused() {
    for mut lab in labs(&plugs(&[0, 1, 2]), &[]) {
        let station = wild(STATION);
        assert!(speaks(&mut lab, 0, station));
        for to in [1, 0, 1, 0] {
            lab.advance(Duration::from_secs(10));
            assert!(speaks(&mut lab, to, station));
            assert_eq!(reached(&mut lab, 2, station, mac(2)), [to], "it moves at once");
        }
        lab.advance(Duration::from_secs(10));
        for _ in 0..20 {
            assert!(!speaks(&mut lab, 1, station), "the fifth, and all after it");
            assert_eq!(reached(&mut lab, 2, station, mac(2)), [0], "it stays where it was");
            assert!(speaks(&mut lab, 0, station), "and is heard there");
        }
        assert_eq!(lab.events(), [moving(&lab, station, 0, 1)], "control is told once");
        // The first of the four is 180 seconds ago, less a little; and no longer.
        lab.advance(Duration::from_secs(140) - Duration::from_nanos(1));
        assert!(!speaks(&mut lab, 1, station));
        lab.advance(Duration::from_nanos(1));
        assert!(speaks(&mut lab, 1, station));
        assert!(!speaks(&mut lab, 0, station));
        // Each worker tells of it for itself, and this is another one's port.
        let is_new = lab.workers.len() > 1;
        let changed = if is_new { vec![moving_from_home(&lab, station, 1, 0, 0)] } else { vec![] };
        assert_eq!(lab.events(), changed, "nor is it news in the same three minutes");
        lab.advance(Duration::from_secs(10));
        assert!(speaks(&mut lab, 0, station));
        assert!(!speaks(&mut lab, 1, station));
        lab.advance(Duration::from_secs(30));
        for _ in 0..3 {
            speaks(&mut lab, 1, station);
            speaks(&mut lab, 0, station);
        }
        assert_eq!(lab.events().len(), 1, "but later it is");
        done(lab);
    }
}

/// Two VMs with an address of a VRRP group, which both of them list: three times it goes from one to the other.
#[test]
fn a_shared_address_may_fail_over() {
    let vrrp = Mac::from_bits(0x0000_5e00_0101);
    let mut plugs = plugs(&[0, 1, 2]);
    for plug in &mut plugs[..2] {
        plug.security = Security::Mac([vrrp].into());
    }
    for mut lab in labs(&plugs, &[]) {
        for to in [0, 1, 0, 1] {
            assert!(speaks(&mut lab, to, vrrp));
            assert_eq!(reached(&mut lab, 2, vrrp, mac(2)), [to]);
        }
        done(lab);
    }
}

/// Ports of two VMs with an address of a VRRP group in the pairs of both, and one of a third.
fn virtual_router(wires: &[UplinkSpec]) -> (Mac, Vec<Lab>) {
    let router = Mac::from_bits(0x0000_5e00_01c6);
    let mut plugs = plugs(&[0, 1, 2]);
    for plug in &mut plugs[..2] {
        plug.security = Security::Mac([router].into());
    }
    (router, labs(&plugs, wires).collect())
}

/// A backup that starts speaks from the group's address as well, and the master's adverts win (RFC 9568, 8.1.2).
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
        lab.advance(Duration::from_secs(100)); // the ports have arrived
        for _ in 0..20 {
            for to in [0, 3, 1] {
                assert!(speaks(&mut lab, to, router));
                lab.advance(Duration::from_millis(100));
            }
        }
        done(lab);
    }
}

/// Frames that go round move their source with each turn.
#[test]
fn an_address_allowed_at_both_ports_is_contained_at_the_rate_of_a_loop() {
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

/// Where control knows of a loop or a storm, four moves are enough for these addresses as well.
#[test]
fn a_suspect_does_not_share_an_address() {
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
            assert!(speaks(&mut lab, 1, router), "as soon as it is none");
            done(lab);
        }
    }
}

/// Without port security nobody said which addresses a port may use.
#[test]
fn a_port_without_security_is_allowed_no_address() {
    let router = Mac::from_bits(0x0000_5e00_01c6);
    let mut plugs = plugs(&[0, 1, 2]);
    for plug in &mut plugs[1..] {
        plug.security = Security::Mac([router].into());
    }
    for mut lab in labs(&plugs, &[]) {
        for to in [0, 1, 0, 1, 0] {
            assert!(speaks(&mut lab, to, router));
            lab.advance(Duration::from_secs(10));
        }
        assert!(!speaks(&mut lab, 1, router));
        assert_eq!(lab.events(), [moving(&lab, router, 0, 1)]);
        done(lab);
    }
}

/// The bond of a guest over two of its ports fails over 20 times in a minute.
#[test]
fn siblings_have_a_line_of_their_own() {
    for mut lab in labs(&plugs(&[7, 7, 1]), &[]) {
        let station = wild(STATION);
        for _ in 0..10 {
            for to in [0, 1] {
                assert!(speaks(&mut lab, to, station));
                assert_eq!(reached(&mut lab, 2, station, mac(2)), [to]);
                lab.advance(Duration::from_secs(3));
            }
        }
        assert_eq!(lab.events(), []);
        // Within one second it is too much.
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
        // What went on among siblings does not count elsewhere.
        for to in [2, 0, 2, 0] {
            assert!(speaks(&mut lab, to, station));
        }
        assert!(!speaks(&mut lab, 2, station));
        assert_eq!(lab.events(), [moving(&lab, station, 0, 2)]);
        done(lab);
    }
}

#[test]
fn who_shares_addresses_may_do_so_with_every_frame() {
    let mut plugs = plugs(&[7, 7, 1]);
    plugs[..2].iter_mut().for_each(|plug| plug.mac_sharing = true);
    for mut lab in labs(&plugs, &[]) {
        for round in 0..200 {
            assert!(speaks(&mut lab, round % 2, wild(STATION)));
            assert_eq!(reached(&mut lab, 2, wild(STATION), mac(2)), [round % 2]);
        }
        done(lab);
    }
}

/// Behind a port that does not learn, no source is known, moves or is dampened; also not where others hear of it.
#[test]
fn a_port_that_does_not_learn_is_a_piece_of_cable() {
    for mut lab in labs(&plugs(&[0, 1, 2]), &[]) {
        let ids = [lab.ports[0], lab.ports[1]];
        lab.change_ports(|all| {
            all.iter_mut().filter(|port| ids.contains(&port.id)).for_each(|port| port.learns = false)
        });
        for round in 0..50 {
            assert!(speaks(&mut lab, round % 2, wild(STATION)));
            assert_eq!(reached(&mut lab, round % 2, wild(5), wild(STATION)), [(round + 1) % 2, 2]);
        }
        assert!(lab.workers.iter().all(|worker| worker.switch().fdb().is_empty()));
        // What is known elsewhere stays there, and is reached from here.
        assert!(speaks(&mut lab, 2, wild(5)));
        assert!(speaks(&mut lab, 0, wild(5)));
        assert_eq!(reached(&mut lab, 1, wild(5), wild(STATION)), [2]);
        assert_eq!(lab.events(), []);
        done(lab);
    }
}

/// What comes from a port that is gone, or shut, is a migration, and counts for nothing.
#[test]
fn who_leaves_a_port_that_is_shut_is_free() {
    for mut lab in labs(&plugs(&[0, 1, 2]), &[]) {
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
            assert!(speaks(&mut lab, to, station), "none of these was counted");
        }
        assert!(!speaks(&mut lab, 1, station));
        assert_eq!(lab.events(), [moving(&lab, station, 0, 1)]);
        done(lab);
    }
}

/// A machine comes from another host: with it its addresses come in from the uplink to a port that is new. For its
/// first minute nobody counts; and what has been there for long does not wander in and out.
#[test]
fn a_port_has_a_minute_to_arrive() {
    let uplink = 2;
    for mut lab in labs(&plugs(&[0, 1]), &[UplinkSpec::new(&[(0, 0)])]) {
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
        // Opened again it is when it is administratively up again, and not when it comes out of quarantine.
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
        arrive(&mut lab);
        done(lab);
    }
}

/// What has aged is not there any more: it does not move, it comes.
#[test]
fn what_has_aged_comes_anew() {
    let mut lab = labs(&plugs(&[0, 1, 2]), &[]).next().unwrap();
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
