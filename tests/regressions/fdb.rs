//! The table of stations: closed ports, limits, and what workers tell each other.

use vifswitch::wire::Mac;

use support::host::await_that;
use support::host::daemon::{Daemon, config};
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, guests};

/// Stations that may be learned behind a port.
const QUOTA: u64 = 8;

/// As many stations as a port may have are behind it, and the port becomes another generation: it is taken down and up,
/// or goes to another VM. The first of them that speaks then is the one that was silent longest.
#[test]
fn a_port_at_its_quota_may_become_another_one_while_its_stations_talk() {
    let Some((spaces, mut vifs)) = guests(&["a", "b"], &[DeviceKind::Tap], 1500) else { return };
    vifs[0].more = "port_security = \"off\"".into();
    let mut daemon = Daemon::new();
    // A large table, which is swept slowly: dead stations stay in it for long.
    let text = |vm: &str| {
        let mut vifs = vifs.clone();
        vifs[0].vm = vm.into();
        config(&daemon.socket(), "", &[("net1", 1500)], &vifs)
            .replace("stations = 4096", "stations = 2000000")
            .replace("mtu = 1500", &format!("mtu = 1500\nfdb_limit_per_port = {QUOTA}"))
    };
    let texts = [text("a"), text("c")];
    daemon.configure(&texts[0]);
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let [talker, listener] = [0, 1].map(|at| Nic::new(&spaces[at], &vifs[at].name));
    let said = |first: u64, stations: u64| -> Vec<Vec<u8>> {
        let of = |number: u64| experiment(vifs[1].mac, Mac::from_bits(0x0a00_0000_0000 + number), &[7; 46]);
        (first..first + stations).map(of).collect()
    };
    let arrive = |frames: &[Vec<u8>], daemon: &mut Daemon| {
        frames.iter().for_each(|frame| talker.send(frame));
        let mut came = Vec::new();
        await_that("all frames", || {
            assert!(daemon.is_running(), "{}", daemon.log());
            came.extend(listener.rest().into_iter().filter(|frame| frames.contains(frame)));
            (came.len() == frames.len()).then_some(())
        });
    };
    for round in 0..10u64 {
        arrive(&said(0, QUOTA), &mut daemon);
        if round.is_multiple_of(2) {
            daemon.done(&["set", "port-1", "admin_state_up=false"], "");
            daemon.done(&["set", "port-1", "admin_state_up=true"], "");
        } else {
            daemon.configure(&texts[usize::from(round % 4 == 1)]);
            daemon.done(&["apply", daemon.file().to_str().unwrap()], "");
        }
        daemon.await_active(&vifs[0]);
        arrive(&said(0, QUOTA), &mut daemon);
        // Strangers displace all of them.
        arrive(&said(100, 3 * QUOTA), &mut daemon);
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    let stations: serde_json::Value = daemon.get("/v1/fdb");
    let of = |station: &&serde_json::Value| station["port_id"] == "port-1" && station["kind"] == "learned";
    assert_eq!(stations.as_array().unwrap().iter().filter(of).count() as u64, QUOTA, "{stations:#}");
}

/// What was learned before a port was taken down does not count against its limit when it is up again.
#[test]
fn stations_from_before_a_port_was_down_do_not_count_against_its_mac_limit() {
    let Some((spaces, mut vifs)) = guests(&["a", "b"], &[DeviceKind::Tap], 1500) else { return };
    vifs[0].more = "port_security = \"off\"\nmac_limit = 8\nmac_limit_policy = \"drop\"".into();
    let mut daemon = Daemon::new();
    // A large table, which is swept slowly.
    let text = config(&daemon.socket(), "", &[("net1", 1500)], &vifs);
    daemon.configure(&text.replace("stations = 4096", "stations = 2000000"));
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let [talker, listener] = [0, 1].map(|at| Nic::new(&spaces[at], &vifs[at].name));
    for round in 0..10u64 {
        let frames = (0..QUOTA).map(|number| Mac::from_bits(0x0a00_0000_0000 | round << 8 | number));
        let frames: Vec<Vec<u8>> = frames.map(|mac| experiment(vifs[1].mac, mac, &[7; 46])).collect();
        frames.iter().for_each(|frame| talker.send(frame));
        let mut came = Vec::new();
        await_that("a frame from each station, or its end", || {
            came.extend(listener.rest().into_iter().filter(|frame| frames.contains(frame)));
            let refused = daemon.drops(&vifs[0], "mac_limit");
            assert_eq!(refused, 0, "in round {round}");
            (came.len() == frames.len()).then_some(())
        });
        for up in ["false", "true"] {
            daemon.done(&["set", "port-1", &format!("admin_state_up={up}")], "");
        }
    }
}
