//! Opened devices are taken over together while others are being opened, and at once if none is. Workers get the
//! configuration with new ports when their devices are open.

use super::*;
use crate::control::config::parse_json;
use crate::control::reconcile::apply::MAX_DEFERRAL;
use crate::control::reconcile::devices::MAX_PAUSE;
use crate::control::reconcile::jobs::Ticket;
use crate::device::OpenError;

/// So many ports of a VM, whose namespace does not exist.
fn ports(count: usize) -> Config {
    let port = |number: usize| {
        json!({"port_id": format!("p{number}"), "network_id": "a", "mac_address": format!("02:00:00:00:00:0{number}"),
            "device": {"kind": "tap", "name": format!("p{number}"), "netns": "no-such-netns"}})
    };
    let ports: Vec<_> = (1..=count).map(port).collect();
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
    let begun_with = begin(ports(2), &dir.path().join("state.db")).await;
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

#[tokio::test]
async fn a_configuration_waits_for_the_devices_of_new_ports_for_a_bounded_time() {
    let dir = tempfile::tempdir().unwrap();
    let begun_with = begin(ports(1), &dir.path().join("state.db")).await;
    let begun = async |controller: &mut Controller| {
        let (count, later) =
            (|of: &Controller| of.forwarding.ports().count(), || time::now() + Duration::from_secs(3600));
        // The time is over while devices are being opened.
        controller.apply(ports(3), Apply::default()).await;
        assert!(controller.config_due.is_some_and(|due| due <= time::now() + MAX_DEFERRAL));
        assert!(controller.applying.is_some() && count(controller) == 1, "no answer before");
        controller.config_due = controller.config_due.map(|_| time::now());
        controller.receive_opened().await;
        assert_eq!((count(controller), controller.config_due), (3, None));
        assert!(controller.applying.is_none());
        // None is being opened any more.
        controller.apply(ports(4), Apply::default()).await;
        controller.config_due = controller.config_due.map(|_| later());
        assert_eq!(count(controller), 3);
        while controller.config_due.is_some() {
            let outcome = controller.device_events.recv().await.unwrap();
            controller.receive(outcome).await;
        }
        assert!(count(controller) == 4 && controller.applying.is_none());
        // What also removes a port waits for nothing, even if there is nothing to be closed: its attempt hangs.
        let hangs = &mut controller.ports[0];
        hangs.state = State::Opening { reason: Reason::default() };
        (hangs.attempt, hangs.is_overdue) = (Some(Ticket::default()), true);
        let mut other = ports(5);
        other.vms[0].ports.remove(0);
        controller.apply(other, Apply::default()).await;
        assert_eq!((count(controller), controller.config_due), (4, None));
        assert!(controller.forwarding.ports().all(|port| port.mac != "02:00:00:00:00:01".parse().unwrap()));
    };
    run_prepared(begun_with, begun, async |_| {}).await;
}
