//! Guests with several interfaces that route, bridge different networks, or send between siblings, without a loop.
//! Needs root; makes its own namespaces.

use std::net::Ipv4Addr;

use super::scene::{CULPRIT, Guest, Said, Scenario, is_noise, looping, noise};
use support::host::nic::experiment;
use support::host::setup::{DeviceKind, on_every_kind, ping, two_workers};
use support::host::{Namespace, await_that};

/// Two networks, and a guest on both.
const BETWEEN: &[Guest] = &[("a", &["net1"]), ("b", &["net2"]), (CULPRIT, &["net1", "net2"])];

fn forwards(namespace: &Namespace) {
    namespace.run_in(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
}

/// Shows: REQ-44, AT-13
#[test]
fn a_guest_that_routes_raises_nothing() {
    on_every_kind(|on| {
        let Some(scene) = Scenario::new(on, BETWEEN, Said::default()) else { return };
        let [one, two] = [1, 2].map(|network| move |host| Ipv4Addr::new(10, 5, network, host));
        let router = scene.namespace(CULPRIT);
        forwards(router);
        for (namespace, name, address) in [
            (router, &scene.vif(CULPRIT, 0).name, one(1)),
            (router, &scene.vif(CULPRIT, 1).name, two(1)),
            (scene.namespace("a"), &scene.vif("a", 0).name, one(2)),
            (scene.namespace("b"), &scene.vif("b", 0).name, two(2)),
        ] {
            namespace.ip(&format!("addr add {address}/24 dev {name}"));
        }
        scene.namespace("a").ip(&format!("route add 10.5.2.0/24 via {}", one(1)));
        scene.namespace("b").ip(&format!("route add 10.5.1.0/24 via {}", two(1)));
        for _ in 0..3 {
            ping(scene.namespace("a"), two(2), 20);
            scene.await_probes(CULPRIT, 1);
        }
        scene.assert_calm("a router");
        assert!(
            scene.loops().is_empty() && scene.events_of("networks_bridged").is_empty(),
            "{on:?}: routing is not reported as bridging"
        );
    });
}

/// Shows: REQ-41, REQ-44, AT-13
#[test]
fn a_guest_that_bridges_two_networks_is_only_reported() {
    on_every_kind(|on| {
        let Some(scene) = Scenario::new(on, BETWEEN, Said::default()) else { return };
        scene.join("stp_state 0");
        scene.close_loop();
        let [a, b] = ["a", "b"].map(|guest| scene.nic(guest, 0));
        let [at_a, at_b] = ["a", "b"].map(|guest| scene.vif(guest, 0).mac);
        scene.await_event("networks_bridged");
        for number in 0..100u32 {
            for (from, to, macs) in [(&a, &b, (at_b, at_a)), (&b, &a, (at_a, at_b))] {
                let hello = experiment(macs.0, macs.1, &number.to_be_bytes());
                from.send(&hello);
                await_that("a frame through the guest", || to.rest().contains(&hello).then_some(()));
            }
        }
        a.send(&noise(at_a, 1));
        scene.await_probes(CULPRIT, 4);
        assert_eq!(b.rest().iter().filter(|frame| is_noise(frame)).count(), 1, "{on:?}: one broadcast, one copy");
        scene.assert_calm("a guest that bridges two networks");
        let notices = scene.events_of("networks_bridged");
        assert_eq!(notices.len(), 1, "{on:?}: one event");
        let text = notices[0]["text"].as_str().unwrap();
        assert!(["net1", "net2", CULPRIT].iter().all(|part| text.contains(part)), "{text}");
        assert_eq!(scene.loops().len(), 1, "{on:?}: shown while the guest bridges");
        scene.open_loop();
        await_that("the notice has ended", || scene.loops().is_empty().then_some(()));
    });
}

/// Unicast between siblings at their maximum rate.
fn siblings_talk(on: DeviceKind, switch: &'static str) {
    let Some(scene) = Scenario::new(on, &looping(2), Said { switch, ..Said::default() }) else { return };
    let nics = [0, 1].map(|number| scene.nic(CULPRIT, number));
    let macs = [0, 1].map(|number| scene.vif(CULPRIT, number).mac);
    let bystander = scene.nic("a", 0);
    for number in 0..500u32 {
        for (from, to) in [(0, 1), (1, 0)] {
            // a full ring, and no more than fits
            let burst: Vec<Vec<u8>> = (0..64)
                .map(|at: u32| experiment(macs[to], macs[from], &[number.to_be_bytes(), at.to_be_bytes()].concat()))
                .collect();
            burst.iter().for_each(|frame| nics[from].send(frame));
            assert!(
                nics[to].take_until(&burst[63]).iter().filter(|frame| frame[12..14] == burst[0][12..14]).count() >= 63
            );
        }
    }
    scene.await_probes(CULPRIT, 3);
    scene.assert_calm("siblings that exchange frames");
    assert!(bystander.rest().is_empty(), "{on:?}: no other port receives them");
    for vif in &scene.vifs[scene.at(CULPRIT)] {
        assert_eq!(scene.daemon.port(vif).counts.drops, [].into(), "{on:?}");
    }
}

/// Shows: REQ-44, AT-13
#[test]
fn traffic_between_siblings_raises_nothing() {
    on_every_kind(|on| siblings_talk(on, ""));
    if let Some(switch) = two_workers() {
        siblings_talk(DeviceKind::Tap, switch);
    }
}
