//! Isolation: whatever one guest sends at its maximum rate, others lose nothing, on its network and on others.
//! Latency is not measured here. Needs root; makes its own namespaces.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vifswitch::wire::Mac;

use super::scene::{CULPRIT, Guest, NOISE, Said, Scenario};
use support::host::nic::frame;
use support::host::setup::{DeviceKind, stream, two_workers};
use support::host::{Finally, await_that};

/// Two guests that exchange frames on the network of the storm, two on another network, and the storming guest.
const GUESTS: &[Guest] =
    &[("a", &["net1"]), ("b", &["net1"]), ("c", &["net2"]), ("d", &["net2"]), (CULPRIT, &["net1"])];

/// Frames per second of each stream; minimum frames of a storm.
const RATE: u64 = 2000;
const STORM: u64 = 100_000;

fn others_lose_nothing(on: DeviceKind, switch: &'static str) {
    for (class, to) in [
        ("broadcast", Mac::BROADCAST),
        ("multicast", Mac::from_bits(0x0100_5e01_0203)),
        ("unknown_unicast", Mac::from_bits(0x0200_0000_dead)),
    ] {
        // low limits, so that any storm exceeds them
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
                    // frames that the kernel refuses are not part of the storm
                    sent += u64::from(nics[4].try_send(&storm).is_ok());
                    if here.is_finished() || there.is_finished() {
                        break; // one of the streams has failed
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
        // No other frame is dropped: transmitted frames and those copies add up to the storm and the complete stream.
        for (vif, from) in [(a, b), (b, a)] {
            await_that("balanced counters", || {
                let (here, storm) = (counts(vif), counts(l));
                let dead: u64 = here.drops.values().sum();
                (here.tx_frames + dead == storm.flooded + counts(from).forwarded).then_some(())
            });
        }
        let audit = scene.daemon.done(&["show", "drops", "--verify"], "");
        assert!(audit.contains("adds up"), "{on:?}, {class}: {audit}");
    }
}

/// Shows: REQ-36, AT-19
#[test]
fn a_storm_costs_others_no_frame_on_taps() {
    others_lose_nothing(DeviceKind::Tap, "");
}

/// Shows: REQ-36, AT-19
#[test]
fn a_storm_costs_others_no_frame_on_af_xdp() {
    others_lose_nothing(DeviceKind::Xdp, "");
}

/// Shows: REQ-36, AT-19
#[test]
fn a_storm_costs_others_no_frame_on_two_workers() {
    let Some(switch) = two_workers() else { return };
    others_lose_nothing(DeviceKind::Tap, switch);
    others_lose_nothing(DeviceKind::Xdp, switch);
}
