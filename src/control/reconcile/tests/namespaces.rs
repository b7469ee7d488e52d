//! Namespaces of ports' devices.

use super::*;
use crate::control::config::parse_json;
use crate::control::reconcile::namespaces::in_use;
use crate::sys::netns::Netns;

#[tokio::test]
async fn the_namespace_of_each_device_is_in_use() {
    let port = |number: usize, netns: &str| {
        json!({"port_id": format!("p{number}"), "network_id": "a", "mac_address": format!("02:00:00:00:00:0{number}"),
            "device": {"kind": "tap", "name": format!("p{number}"), "netns": netns}})
    };
    // Neighbours have the same one, and so has one that is no neighbour.
    let ports: Vec<_> = (1..).zip(["x", "x", "y", "y", "z", "x"]).map(|(number, netns)| port(number, netns)).collect();
    let text = json!({"networks": [{"id": "a"}], "vms": [{"id": "v", "ports": ports}]});
    let dir = tempfile::tempdir().unwrap();
    let begun_with = begin(parse_json(&text.to_string(), "x").unwrap(), &dir.path().join("state.db")).await;
    let begun = async |controller: &mut Controller| {
        let of_ports = controller.ports.iter().map(|port| port.endpoint.device().unwrap().netns().clone());
        let of_ports: Vec<Netns> = of_ports.collect();
        let found: Vec<Netns> = in_use(&controller.ports).cloned().collect();
        assert_eq!(found, [0, 2, 4, 5].map(|at| of_ports[at].clone()), "of {of_ports:?}");
    };
    run_prepared(begun_with, begun, async |_| {}).await;
}
