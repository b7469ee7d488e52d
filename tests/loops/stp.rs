//! Guests whose bridge runs the spanning tree protocol block their own loop, if BPDUs pass between siblings. Needs
//! root; makes its own namespaces.

use super::scene::{CULPRIT, Said, Scenario, Talk, looping, state_of};
use support::host::await_that;
use support::host::nic::Nic;
use support::host::setup::on_every_kind;

/// States of the two ports of the guest's bridge.
fn states(scene: &Scenario) -> [String; 2] {
    [0, 1].map(|number| state_of(scene.namespace(CULPRIT), &scene.vif(CULPRIT, number).name))
}

/// The shortest timers (IEEE 802.1D-2004, 17.14), to keep the test short.
const STP: &str = "stp_state 1 forward_delay 200 hello_time 100 max_age 600";

/// Shows: REQ-45, AT-14
#[test]
fn a_guest_with_stp_blocks_one_of_its_siblings() {
    on_every_kind(|on| {
        let Some(scene) = Scenario::new(on, &looping(2), Said::default()) else { return };
        scene.join(STP);
        scene.close_loop();
        await_that("one blocking and one forwarding port", || {
            let mut states = states(&scene);
            states.sort();
            (states == ["blocking", "forwarding"]).then_some(())
        });
        let mut talk = Talk::of(&scene);
        let inside = Nic::new(scene.namespace(CULPRIT), "gb");
        for _ in 0..20 {
            talk.round();
        }
        scene.await_probes(CULPRIT, 4);
        talk.rest();
        assert_eq!(talk.copies, 20, "{on:?}: each frame once");
        let received = inside.rest().iter().filter(|frame| super::scene::is_noise(frame)).count();
        assert_eq!(received, 40, "{on:?}: the guest receives each of both once");
        scene.assert_calm("a guest with STP");
        let drops = |vif| scene.daemon.port(vif).counts.drops;
        for vif in &scene.vifs[scene.at(CULPRIT)] {
            // the guest's bridge forwards none of the probes it receives
            assert_eq!(drops(vif), [].into(), "{on:?}");
        }
    });
}

/// Where the network drops BPDUs, the guest cannot detect its loop, and the switch does.
///
/// Shows: AT-14
#[test]
fn without_bpdus_the_switch_detects_the_loop() {
    on_every_kind(|on| {
        let said = Said { network: "reserved_groups = \"none\"", ..Said::default() };
        let Some(scene) = Scenario::new(on, &looping(2), said) else { return };
        scene.join(STP);
        scene.close_loop();
        let event = scene.await_event("loop_start");
        scene.names_the_culprit(&event, "net1");
        assert_eq!(states(&scene), ["forwarding", "forwarding"], "{on:?}: the guest does not detect its loop");
        assert!(scene.drops(CULPRIT, "reserved_group") > 0, "{on:?}");
        let mut talk = Talk::of(&scene);
        for _ in 0..20 {
            talk.round();
        }
        talk.rest();
        assert!(talk.copies <= 40, "{on:?}: {} copies of 20", talk.copies);
    });
}
