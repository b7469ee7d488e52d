//! Bodies of the API: a new configuration, ports to attach, keys of a port. What is accepted changes a configuration to a
//! valid one that differs as the answer says.

use std::sync::OnceLock;

use vifswitch::control::compile::plan::plan;
use vifswitch::control::config::{
    Config, SwitchSettings, parse_json_over, parse_json_part, parse_network_json, parse_port_json,
    parse_port_keys_json, parse_ports_json, parse_toml, parse_uplink_json, parse_vm_json,
};
use vifswitch::control::desired::change::Change;
use vifswitch::control::desired::diff::describe_changes;

use super::Input;

/// What is changed: ports of each kind, a trunk, uplinks.
const BEFORE: &str = include_str!("../before.toml");

pub fn run(data: &[u8]) {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let before = CONFIG.get_or_init(|| parse_toml(BEFORE, "before.toml").unwrap());
    let mut input = Input(data);
    let (kind, name) = (input.byte() % 9, input.byte());
    let Ok(body) = std::str::from_utf8(input.0) else { return };
    let ports: Vec<_> = before.ports().map(|(_, port)| port.id().to_owned()).collect();
    let port = ports[usize::from(name) % ports.len()].clone();
    let vms = ["new", before.vms[0].id.as_str(), before.vms[1].id.as_str()];
    let vm = vms[usize::from(name) % vms.len()];
    let change = match kind {
        0 => parse_json_over(body, "body", before.switch.clone()).map(Change::Apply),
        1 => parse_ports_json(body, "body", vm).map(|ports| Change::Attach { vm: vm.to_owned(), ports }),
        2 => parse_port_keys_json(body, "body").map(|keys| Change::Set { port, keys }),
        3 => parse_json_over(body, "body", SwitchSettings::default()).map(Change::Apply),
        4 => parse_port_json(body, "body", &port).map(|(vm, port)| Change::PutPort { vm, port }),
        5 => parse_network_json(body, "body", &before.networks[0].id).map(Change::PutNetwork),
        6 => parse_uplink_json(body, "body", "up").map(Change::PutUplink),
        7 => parse_vm_json(body, "body", vm).map(|(settings, ports)| Change::PutVm {
            vm: vm.to_owned(),
            settings,
            ports,
        }),
        _ => parse_json_part(body, "body", before.switch.clone())
            .map(|config| Change::ApplyOwned { owner: "neutron".to_owned(), config }),
    };
    let change = match change {
        Ok(change) => change,
        Err(errors) => return assert!(!errors.errors().is_empty() && !errors.to_string().is_empty()),
    };
    match change.to(before) {
        Ok(after) => {
            super::config::check(&after);
            let (steps, changes) = (plan(before, &after), describe_changes(before, &after));
            assert_eq!(*before == after, changes.is_empty(), "{changes:?}");
            assert!(!changes.is_empty() || steps.is_empty(), "{steps:?}");
            if !matches!(change, Change::Attach { .. }) {
                assert_eq!(change.to(&after).as_ref(), Ok(&after), "the same change again changes nothing");
            }
        }
        Err(refused) => assert!(!refused.message.is_empty() && !refused.kind.is_empty()),
    }
}
