//! AT-19 without its latency: whatever one guest sends, as fast as it can, others lose nothing, on its network
//! and on others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vifswitch::wire::Mac;

use super::scene::{CULPRIT, Guest, NOISE, Said, Scenario};
use support::host::nic::frame;
use support::host::setup::{DeviceKind, stream, two_workers};
use support::host::{Finally, await_that};

/// Two that talk on the network of the storm, two on another one, and who storms.
const GUESTS: &[Guest] =
    &[("a", &["net1"]), ("b", &["net1"]), ("c", &["net2"]), ("d", &["net2"]), (CULPRIT, &["net1"])];

/// Frames that are sent in a second from one to another, and in a storm before it may end.
const RATE: u64 = 2000;
const STORM: u64 = 100_000;

fn others_lose_nothing(on: DeviceKind, switch: &'static str) {
    for (class, to) in [
        ("broadcast", Mac::BROADCAST),
        ("multicast", Mac::from_bits(0x0100_5e01_0203)),
        ("unknown_unicast", Mac::from_bits(0x0200_0000_dead)),
    ] {
        // so little that any storm is one, also where it does not come to the limit that is usual
        let network = "storm = { multicast = { pps = 500 }, unknown_unicast = { pps = 500 } }";
        let Some(scene) = Scenario::new(on, GUESTS, Said { switch, network, ..Said::default() }) else { return };
        let nics = ["a", "b", "c", "d", CULPRIT].map(|guest| scene.nic(guest, 0));
        let [a, b, c, d, l] = ["a", "b", "c", "d", CULPRIT].map(|guest| scene.vif(guest, 0));
        let done = AtomicBool::new(false);
        let storm = frame(to, l.mac, NOISE, &[0; 46]);
        thread::scope(|scope| {
            let here = scope.spawn(|| stream((&nics[0], a), (&nics[1], b), RATE, &done));
            let there = scope.spawn(|| stream((&nics[2], c), (&nics[3], d), RATE, &done));
            {
                let _finally = Finally(&done);
                let mut sent = 0u64;
                while sent < STORM {
                    // what the kernel does not take is no storm either
                    sent += u64::from(nics[4].try_send(&storm).is_ok());
                    if here.is_finished() || there.is_finished() {
                        break; // one of them has failed
                    }
                }
            }
            let (here, there) = (here.join().unwrap(), there.join().unwrap());
            assert!(here > 0 && there > 0 && done.load(Ordering::Relaxed), "{on:?}, {class}: {here} and {there}");
        });
        let reason = format!("storm_{class}");
        await_that("refused frames of the storm", || (scene.drops(CULPRIT, &reason) > 0).then_some(()));
        let counts = |vif| scene.daemon.port(vif).counts;
        for vif in [a, b, c, d] {
            let mut drops = counts(vif).drops;
            if !switch.is_empty() && (vif.port == a.port || vif.port == b.port) {
                // A worker that stands still for a while is kept half a ring of the storm's copies, and no more.
                drops.remove("peer_full");
            }
            assert_eq!(drops, [].into(), "{on:?}, {class}: {}", vif.port);
        }
        // Nothing else is: what left and such copies are the storm and the stream, of which none was missing.
        for (vif, from) in [(a, b), (b, a)] {
            await_that("the books to agree", || {
                let (here, storm) = (counts(vif), counts(l));
                let dead: u64 = here.drops.values().sum();
                (here.tx_frames + dead == storm.flooded + counts(from).forwarded).then_some(())
            });
        }
        let audit = scene.daemon.done(&["show", "drops", "--verify"], "");
        assert!(audit.contains("adds up"), "{on:?}, {class}: {audit}");
    }
}

#[test]
fn others_lose_nothing_in_a_storm_on_taps() {
    others_lose_nothing(DeviceKind::Tap, "");
}

#[test]
fn others_lose_nothing_in_a_storm_on_af_xdp() {
    others_lose_nothing(DeviceKind::Xdp, "");
}

#[test]
fn others_lose_nothing_in_a_storm_on_two_workers() {
    let Some(switch) = two_workers() else { return };
    others_lose_nothing(DeviceKind::Tap, switch);
    others_lose_nothing(DeviceKind::Xdp, switch);
}
