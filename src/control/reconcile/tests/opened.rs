//! Opened devices are taken over together while others are being opened, and at once if none is.

use super::*;
use crate::control::config::parse_json;
use crate::control::reconcile::devices::MAX_PAUSE;
use crate::control::reconcile::jobs::Ticket;
use crate::device::OpenError;

/// Two ports whose namespace does not exist.
fn two_ports() -> Config {
    let port = |id: &str, mac: &str| {
        json!({"port_id": id, "network_id": "a", "mac_address": mac,
            "device": {"kind": "tap", "name": id, "netns": "no-such-netns"}})
    };
    let ports = [port("p1", "02:00:00:00:00:01"), port("p2", "02:00:00:00:00:02")];
    let text = json!({"networks": [{"id": "a"}], "vms": [{"id": "v", "ports": ports}]});
    parse_json(&text.to_string(), "x").unwrap()
}

/// What an attempt to open the device of a port returns.
fn result(port: &Port) -> OpenResult {
    let settings = port.endpoint.device().unwrap().clone();
    let result = Err(OpenError::NoNamespace { at: settings.at() });
    OpenResult { port: port.key, settings, namespace: None, netdev: None, recognised: None, result }
}

#[tokio::test]
async fn results_wait_for_others_for_a_bounded_time_and_none_waits_alone() {
    let dir = tempfile::tempdir().unwrap();
    let begun_with = begin(two_ports(), &dir.path().join("state.db")).await;
    let begun = async |controller: &mut Controller| {
        assert_eq!(controller.opened_due(), None);
        let opening = State::Opening { reason: Reason::default() };
        for port in &mut controller.ports {
            (port.state, port.attempt) = (opening.clone(), Some(Ticket::default()));
        }
        controller.opened.push(result(&controller.ports[0]));
        // The other one is in progress.
        controller.next_opened = time::now() + Duration::from_secs(3600);
        controller.receive_opened().await;
        assert_eq!(controller.opened.len(), 1);
        assert!(controller.opened_due().is_some_and(|due| due > Duration::ZERO));
        // The time is over.
        controller.next_opened = time::now();
        assert_eq!(controller.opened_due(), Some(Duration::ZERO));
        controller.receive_opened().await;
        assert!(controller.opened.is_empty() && controller.next_opened <= time::now() + MAX_PAUSE);
        assert!(matches!(controller.ports[0].state, State::Down { .. }), "{:?}", controller.ports[0].state);
        // The last one waits for nobody.
        controller.next_opened = time::now() + Duration::from_secs(3600);
        controller.opened.push(result(&controller.ports[1]));
        assert_eq!(controller.opened_due(), Some(Duration::ZERO));
        controller.receive_opened().await;
        assert!(matches!(controller.ports[1].state, State::Down { .. }), "{:?}", controller.ports[1].state);
    };
    run_prepared(begun_with, begun, async |_| {}).await;
}
