//! Isolation: whatever one guest sends at its maximum rate, others lose nothing, on its network and on others.
//! Latency is not measured here. Needs root; makes its own namespaces.

use vifswitch::wire::Mac;

use super::scene::{CULPRIT, Guest, NOISE, Said, Scenario};
use support::host::await_that;
use support::host::nic::{Nic, frame};
use support::host::setup::{DeviceKind, pass, two_workers};
use support::host::streams::{Stream, Streams};

/// Two guests that exchange frames on the network of the storm, one that exchanges frames with a station behind an
/// uplink, two on another network, and the storming guest.
const GUESTS: &[Guest] =
    &[("a", &["net1"]), ("b", &["net1"]), ("u", &["net1"]), ("c", &["net2"]), ("d", &["net2"]), (CULPRIT, &["net1"])];

/// Frames per second of each stream; minimum frames of a storm.
const RATE: u64 = 2000;
const STORM: u64 = 100_000;

fn others_lose_nothing(on: DeviceKind, switch: &'static str) {
    // low limits, so that any storm exceeds them
    let network = "storm = { multicast = { pps = 500 }, unknown_unicast = { pps = 500 } }";
    let Some(scene) = Scenario::new(on, GUESTS, Said { switch, network, ..Said::default() }) else { return };
    let Some(uplink) = scene.uplink(on) else { return };
    let [a, b, u, c, d, l] = ["a", "b", "u", "c", "d", CULPRIT].map(|guest| scene.vif(guest, 0));
    let outside = (&uplink.wire, &uplink.vif);
    let at = |guest: &str| (scene.namespace(guest), scene.vif(guest, 0));
    // its station is learned from then on
    let (here, there) = (scene.nic("u", 0), Nic::new(outside.0, &outside.1.name));
    pass((&there, outside.1), (&here, u), &"from outside".repeat(4));
    let pairs = [(at("a"), at("b")), (at("c"), at("d")), (outside, at("u")), (at("u"), outside)];
    let pairs = pairs.map(|(from, to)| Stream::between(from, to));
    let Some(mut streams) = Streams::through(&scene.daemon, RATE, pairs.into()) else { return };
    let nic = scene.nic(CULPRIT, 0);
    for (class, to) in [
        ("broadcast", Mac::BROADCAST),
        ("multicast", Mac::from_bits(0x0100_5e01_0203)),
        ("unknown_unicast", Mac::from_bits(0x0200_0000_dead)),
    ] {
        let storm = frame(to, l.mac, NOISE, &[0; 46]);
        let gaps = streams.gaps_during(|| {
            let mut sent = 0u64;
            while sent < STORM {
                // frames that the kernel refuses are not part of the storm
                sent += u64::from(nic.try_send(&storm).is_ok());
            }
        });
        gaps.assert_smooth(&format!("{on:?} {switch}, {class}: bystanders"));
        let reason = format!("storm_{class}");
        await_that("refused frames of the storm", || (scene.drops(CULPRIT, &reason) > 0).then_some(()));
        let counts = |vif| scene.daemon.port(vif).counts;
        for vif in [a, b, u, c, d] {
            let mut drops = counts(vif).drops;
            if !switch.is_empty() && vif.network == "net1" {
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
fn a_storm_costs_others_no_frame_on_packet_sockets() {
    others_lose_nothing(DeviceKind::Packet, "");
}

/// Shows: REQ-36, AT-19
#[test]
fn a_storm_costs_others_no_frame_on_two_workers() {
    let Some(switch) = two_workers() else { return };
    DeviceKind::ALL.into_iter().for_each(|on| others_lose_nothing(on, switch));
}
