//! The table of stations: closed ports, limits, and what workers tell each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vifswitch::wire::Mac;

use crate::host::daemon::{Daemon, config};
use crate::host::nic::{Nic, experiment};
use crate::host::rig::{On, guests};
use crate::host::{Finally, await_that};

/// Stations that may be learned behind a port.
const QUOTA: u64 = 8;

/// As many stations as a port may have talk behind it while the port goes from one VM to another and back. Each time
/// the first of them that speaks moves to the next generation of the port, whose list is at its quota.
#[test]
fn a_port_at_its_quota_may_go_to_another_vm_while_its_stations_talk() {
    let Some((spaces, mut vifs)) = guests(&["a", "b"], &[On::Tap], 1500) else { return };
    vifs[0].more = "port_security = \"off\"".into();
    let mut daemon = Daemon::new();
    // A large table, which is swept slowly: dead stations stay in it for long.
    let text = |vm: &str, vifs: &[_]| {
        let mut vifs: Vec<crate::host::daemon::Vif> = vifs.to_vec();
        vifs[0].vm = vm.into();
        config(&daemon.socket(), "", &[("net1", 1500)], &vifs)
            .replace("stations = 4096", "stations = 1000000")
            .replace("mtu = 1500", &format!("mtu = 1500\nfdb_limit_per_port = {QUOTA}"))
    };
    let texts = [text("a", &vifs), text("c", &vifs)];
    daemon.configure(&texts[0]);
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let [talker, listener] = [0, 1].map(|at| Nic::new(&spaces[at], &vifs[at].name));
    let frames: Vec<Vec<u8>> = (0..QUOTA)
        .map(|number| experiment(vifs[1].mac, Mac::from_bits(0x0a00_0000_0000 + number), &number.to_be_bytes()))
        .collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let stranger = |number| experiment(vifs[1].mac, Mac::from_bits(0x0b00_0000_0000 + number), &[7; 46]);
            let strangers: Vec<Vec<u8>> = (0..2 * QUOTA).map(stranger).collect();
            for turn in 1u64.. {
                // The queue of the tap may be full: the guest is faster than the switch.
                frames.iter().for_each(|frame| drop(talker.try_send(frame)));
                listener.rest();
                if turn.is_multiple_of(200) {
                    // They displace all that is in the list of the port.
                    strangers.iter().for_each(|frame| drop(talker.try_send(frame)));
                }
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        // Another port keeps the worker busy, so that it comes less often to sweep the table.
        scope.spawn(|| {
            let noise = experiment(vifs[0].mac, vifs[1].mac, &[7; 46]);
            while !done.load(Ordering::Relaxed) {
                drop(listener.try_send(&noise));
            }
        });
        let _end = Finally(&done);
        for turn in 1..=80 {
            daemon.configure(&texts[turn % 2]);
            daemon.done(&["apply", daemon.file().to_str().unwrap()], "");
            assert!(daemon.is_running(), "{}", daemon.log());
        }
    });
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    // It still forwards, and knows as many of the stations as it may, behind the port as it is now.
    await_that("all stations to be known", || {
        frames.iter().for_each(|frame| talker.send(frame));
        let stations: serde_json::Value = daemon.get("/v1/fdb");
        let of = |station: &&serde_json::Value| station["port_id"] == "port-1" && station["kind"] == "learned";
        (stations.as_array().unwrap().iter().filter(of).count() as u64 == QUOTA).then_some(())
    });
    let last = experiment(vifs[1].mac, Mac::from_bits(0x0a00_0000_0000), b"the last one");
    talker.send(&last);
    await_that("a frame from one of them", || listener.rest().contains(&last).then_some(()));
}

/// What was learned before a port was taken down does not count against its limit when it is up again.
#[test]
fn stations_from_before_a_port_was_down_do_not_count_against_its_mac_limit() {
    let Some((spaces, mut vifs)) = guests(&["a", "b"], &[On::Tap], 1500) else { return };
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
