//! Announcements of local stations to external networks. Needs root; makes its own namespaces.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use vifswitch::time;
use vifswitch::wire::Mac;

use crate::wires::{VLANS, announced, attach_waiting, await_events, lay_wire, untagged, wired};
use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment};
use support::host::setup::two_workers;
use support::host::{Namespace, await_that};

/// Number of announcements received on a link, by VLAN and address.
type Came = BTreeMap<(u16, Mac), usize>;

/// Receives pending announcements.
fn take(wire: &Nic, came: &mut Came) {
    while let Some(frame) = wire.try_take_any() {
        for vlan in VLANS {
            if let Some(mac) = untagged(vlan, &frame).as_deref().and_then(announced) {
                *came.entry((vlan, mac)).or_default() += 1;
            }
        }
    }
}

/// Waits until each of these was received three times, and checks for some time that no further one arrives.
fn await_announced(wire: &Nic, wanted: &[(u16, Mac)], tale: &str) -> Duration {
    let (mut came, start) = (Came::new(), time::now());
    let mut first = None;
    let has = |came: &Came, times: usize| wanted.iter().all(|one| came.get(one).is_some_and(|&count| count >= times));
    await_that(tale, || {
        take(wire, &mut came);
        if first.is_none() && has(&came, 1) {
            first = Some(time::now().since(start));
        }
        has(&came, 3).then_some(())
    });
    let last = time::now();
    await_that("the absence of further announcements", || {
        take(wire, &mut came);
        (time::now().since(last) > Duration::from_millis(500)).then_some(())
    });
    let expected: Came = wanted.iter().map(|&one| (one, 3)).collect();
    assert_eq!(came, expected, "{tale}");
    first.unwrap()
}

fn uplink(daemon: &Daemon, id: &str) -> Value {
    let all: Value = daemon.get("/v1/uplinks");
    all.as_array().unwrap().iter().find(|uplink| uplink["uplink_id"] == id).unwrap().clone()
}

/// A VRRP address that two VMs may use: pinned to neither.
const SHARED: Mac = Mac::new([0, 0, 0x5e, 0, 1, 9]);
/// An allowed address of one VM only.
const PAIR: Mac = Mac::new([0, 0, 0x5e, 0, 1, 1]);
/// A station behind a guest without port security.
const GUEST_STATION: Mac = Mac::new([6, 0, 0, 0, 0, 0x77]);

/// Four VMs: two only receive, one forwards for others, one has its port down; and two links.
struct Scenario {
    daemon: Daemon,
    vifs: Vec<Vif>,
    spaces: Vec<Namespace>,
    outside: Namespace,
    host: Namespace,
}

impl Scenario {
    fn new(switch: &str, wires: &[&str]) -> Option<Scenario> {
        let spaces: Vec<Namespace> = (0..5).map(|_| Namespace::new()).collect::<Option<_>>()?;
        let (host, outside) = (Namespace::new()?, Namespace::new()?);
        wires.iter().for_each(|wire| lay_wire(&host, &outside, wire));
        let more = [
            format!("allowed_address_pairs = [{{ mac_address = \"{PAIR}\" }}, {{ mac_address = \"{SHARED}\" }}]"),
            format!("allowed_address_pairs = [{{ mac_address = \"{SHARED}\" }}]"),
            "port_security = \"off\"".into(),
            "admin_state_up = false".into(),
        ];
        let vif = |(number, more): (usize, String)| Vif {
            more,
            ..Vif::new(&format!("vm-{number}"), number as u8, &spaces[number])
        };
        let vifs: Vec<Vif> = more.into_iter().enumerate().map(vif).collect();
        let mut daemon = Daemon::new();
        daemon.configure(&wired(&daemon, switch, &vifs, &host, wires));
        daemon.start();
        vifs[..3].iter().for_each(|vif| drop(daemon.await_active(vif)));
        Some(Scenario { daemon, vifs, spaces, outside, host })
    }

    fn wire(&self, name: &str) -> Nic {
        Nic::new(&self.outside, name)
    }

    /// Asserts that guests have received frames of guests only.
    fn check_guests(&self, nics: &[Nic]) {
        for (nic, vif) in nics.iter().zip(&self.vifs) {
            let mut all = std::iter::from_fn(|| nic.try_take_any());
            assert!(all.all(|frame| announced(&frame).is_none()), "{} has received an announcement", vif.port);
        }
    }

    fn check_books(&self) {
        let is_balanced = || self.daemon.get::<Value>("/v1/audit")["balanced"].as_bool();
        await_that("balanced counters", || is_balanced().filter(|&is_balanced| is_balanced));
    }

    fn nics(&self) -> Vec<Nic> {
        self.vifs.iter().zip(&self.spaces).map(|(vif, namespace)| Nic::new(namespace, &vif.name)).collect()
    }
}

fn each(wires: &'static [&'static str]) -> impl Iterator<Item = Scenario> {
    [Some(""), two_workers()].into_iter().flatten().filter_map(move |switch| Scenario::new(switch, wires))
}

#[test]
fn local_stations_are_announced_where_an_uplink_takes_over() {
    let net1 = VLANS[0];
    for scene in each(&["up0", "up1"]) {
        let (first, second, nics) = (scene.wire("up0"), scene.wire("up1"), scene.nics());
        let waiting = Vif::new("waiting", 4, &scene.spaces[4]);
        attach_waiting(&scene.daemon, &waiting);
        // A station behind a guest, and an address that is not pinned.
        nics[2].send(&experiment(Mac::BROADCAST, GUEST_STATION, &[0; 46]));
        nics[1].send(&experiment(Mac::BROADCAST, SHARED, &[0; 46]));
        await_that("both have been learned", || {
            let all: Value = scene.daemon.get("/v1/fdb");
            let learned = all.as_array().unwrap().iter().filter(|station| station["kind"] == "learned").count();
            (learned == 2).then_some(())
        });
        let own = [0, 1, 2].map(|index| scene.vifs[index].mac);
        let mut wanted: Vec<(u16, Mac)> =
            own.into_iter().chain([PAIR, SHARED, GUEST_STATION]).map(|mac| (net1, mac)).collect();
        wanted.sort_unstable();
        let announced = |id| uplink(&scene.daemon, id)["announcements"].as_u64().unwrap_or_default();
        // The second uplink is active first if it was opened first.
        await_that("the preferred uplink", || {
            uplink(&scene.daemon, "up0")["active"].as_bool().filter(|&active| active)
        });
        // The announcements of the start are over.
        await_that("silence", || {
            let sum = || announced("up0") + announced("up1");
            let (before, start) = (sum(), time::now());
            await_that("a while", || (time::now().since(start) > Duration::from_millis(1500)).then_some(()));
            (sum() == before).then_some(())
        });
        for wire in [&first, &second] {
            take(wire, &mut Came::new());
        }
        let before = announced("up1");
        scene.outside.ip("link set dev up0 down");
        let took = await_announced(&second, &wanted, "fail-over");
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_eq!((announced("up1"), uplink(&scene.daemon, "up1")["active"].as_bool()), (before + 18, Some(true)));
        scene.outside.ip("link set dev up0 up");
        await_announced(&first, &wanted, "fail-back");
        scene.check_guests(&nics);
        scene.check_books();
    }
}

#[test]
fn ports_are_announced_when_they_become_active_or_move() {
    let [net1, net2] = VLANS;
    for scene in each(&["up0"]) {
        let (wire, nics) = (scene.wire("up0"), scene.nics());
        let attached = Vif::new("attached", 4, &scene.spaces[4]);
        let silence = || {
            let (mut last, mut came) = (time::now(), Came::new());
            await_that("silence", || {
                take(&wire, &mut came);
                if !std::mem::take(&mut came).is_empty() {
                    last = time::now();
                }
                (time::now().since(last) > Duration::from_millis(1500)).then_some(())
            });
        };
        silence();
        scene.daemon.attach(&attached);
        await_announced(&wire, &[(net1, attached.mac)], "attached");
        scene.daemon.done(&["set", &attached.port, "network_id=net2"], "");
        await_announced(&wire, &[(net2, attached.mac)], "on another network");
        let down = &scene.vifs[3];
        scene.daemon.done(&["set", &down.port, "admin_state_up=true"], "");
        await_announced(&wire, &[(net1, down.mac)], "set up");
        scene.daemon.detach(&attached);
        attach_waiting(&scene.daemon, &attached);
        scene.daemon.await_active(&attached);
        let mut came = Came::new();
        let start = time::now();
        await_that("the absence of its announcement", || {
            take(&wire, &mut came);
            (time::now().since(start) > Duration::from_millis(1500)).then_some(())
        });
        assert_eq!(came, Came::new(), "the port has not sent");
        let guest = Nic::new(&scene.spaces[4], &attached.name);
        guest.send(&experiment(scene.vifs[0].mac, attached.mac, &[0; 46]));
        await_announced(&wire, &[(net1, attached.mac)], "heard");
        await_events(&scene.daemon, "port_activated", &attached.port, 1);
        // The link goes down and comes up elsewhere.
        scene.outside.ip("link set dev up0 down");
        await_events(&scene.daemon, "port_down", "up0", 1);
        scene.outside.ip("link set dev up0 up");
        let mut all: Vec<(u16, Mac)> = scene.vifs.iter().map(|vif| (net1, vif.mac)).collect();
        all.extend([(net1, PAIR), (net1, attached.mac)]);
        await_announced(&wire, &all, "the link is up again");
        scene.check_guests(&nics);
        scene.check_books();
        drop(scene.host);
    }
}
