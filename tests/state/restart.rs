//! Restart under traffic, measured as in RFC 6201 on ports of every kind, a subport and an uplink: the longest gap, and
//! that other ports receive nothing. `scripts/bench restart` measures it with the release binary. Needs root; makes its
//! own namespaces.

use std::time::Duration;

use rustix::process::Signal;
use support::host::await_that;
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::nic::{Nic, experiment, tagged};
use support::host::setup::{DeviceKind, guests};
use support::host::streams::{Stream, Streams, assert_within};
use vifswitch::control::api::responses::{StationKind, StationView};
use vifswitch::wire::Mac;

/// Frames per second of each stream.
const RATE: u64 = 2000;

/// Longest gap of a restart.
const GAP: Duration = Duration::from_secs(1);

/// VLAN ids of the subport and of the uplink.
const VLANS: [u16; 2] = [101, 120];

/// A station behind a port that is not the port's own address and must be learned.
fn station(number: u64) -> Mac {
    Mac::from_bits(0x0a00_0000_0000 + number)
}

/// Streams on one network: from a port of each kind to another, to a subport, and to the external network. Each is to a
/// station that the switch has learned. The ports of the first pair are taps.
#[test]
fn a_restart_under_traffic_floods_nothing() {
    let vms = ["tap", "xdp", "packet", "tap2", "xdp2", "packet2", "sub", "wire", "bystander"];
    let kinds = [DeviceKind::ALL, DeviceKind::ALL, [DeviceKind::Packet, DeviceKind::Xdp, DeviceKind::Tap]].concat();
    let Some((spaces, mut vifs)) = guests(&vms, &kinds, 1500) else { return };
    // The seventh is the parent of the subport, and the eighth an uplink.
    vifs.push(Vif::new("sub", 20, &spaces[6]).subport_of(&vifs[6], VLANS[0]));
    vifs.iter_mut().for_each(|vif| vif.more = "port_security = \"off\"".into());
    vifs[6].network = "net2".into();
    let ports: Vec<Vif> = vifs.iter().enumerate().filter(|(at, _)| *at != 7).map(|(_, vif)| vif.clone()).collect();
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500), ("net2", 1500)], &ports);
    let text = keeping(&text, &daemon.state()).replace("frames = 16384", "frames = 32768");
    let networks = format!("networks = [{{ network_id = \"net1\", vlan = {} }}]", VLANS[1]);
    daemon.configure(&format!("{text}[[uplinks]]\nid = \"wire\"\n{networks}\n{}\n", vifs[7].base()));
    daemon.start();
    let nic = |at: usize| Nic::new(&spaces[at], &vifs[at].name);
    let nics: Vec<Nic> = (0..9).map(nic).collect();
    let links = || (0..9).map(|at: usize| spaces[at].link(&vifs[at].name).unwrap()).collect::<Vec<_>>();
    let before = links();
    // Sender, receiver, and the port or uplink of the receiver's station.
    let streams = [(0, 3, "port-4"), (1, 4, "port-5"), (2, 5, "port-6"), (0, 6, "port-20"), (1, 7, "wire")]
        .into_iter()
        .enumerate();
    let hearer = |number: usize| station(10 + number as u64);
    let is_learned = |daemon: &Daemon| {
        let stations: Vec<StationView> = daemon.get("/v1/fdb");
        streams.clone().all(|(number, (_, _, port))| {
            let is_it = |station: &StationView| station.mac_address == hearer(number).to_string();
            let learned = stations.iter().find(|station| is_it(station) && station.kind == StationKind::Learned);
            learned.is_some_and(|station| station.port_id == port)
        })
    };
    for (number, (_, at, _)) in streams.clone() {
        let hello = experiment(Mac::BROADCAST, hearer(number), &[7; 46]);
        nics[at].send(&match at {
            6 => tagged(&hello, VLANS[0]),
            7 => tagged(&hello, VLANS[1]),
            _ => hello,
        });
    }
    await_that("the stations", || is_learned(&daemon).then_some(()));
    let bystander = &nics[8];
    (0..5).for_each(|_| drop(bystander.take()));
    let under_test = streams
        .clone()
        .map(|(number, (from, to, _))| Stream::new(nic(from), nic(to), (hearer(number), station(number as u64))));
    let Some(mut traffic) = Streams::interrupted(RATE, under_test.collect()) else { return };

    // The planned restart comes first: it stores learned stations, which the killed switch restores too.
    for (signal, what) in [(Signal::TERM, "planned restart"), (Signal::KILL, "kill -9 and immediate start")] {
        let gaps = traffic.gaps_during(|| {
            daemon.stop(signal);
            daemon.start();
        });
        assert!(gaps.missing > 0, "the restart was not under traffic");
        for ((_, (from, to, _)), gap) in streams.clone().zip(&gaps.each) {
            assert_within(&format!("{what}, {} to {}", vms[from], vms[to]), GAP, *gap, gaps.control);
        }
        assert!(is_learned(&daemon), "{what}");
        // A broadcast follows everything that may have been flooded.
        let all = experiment(Mac::BROADCAST, station(0), what.as_bytes());
        nics[0].send(&all);
        assert_eq!(bystander.take(), all, "the bystander received nothing else");
        assert_eq!(links(), before);
    }
}
