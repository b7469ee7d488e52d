//! Parses parts of a configuration: ports to attach, keys of a port to set, a configuration without `[switch]`.
//!
//! They are parsed and validated like the same tables of a file. Conflicts with other tables, such as a duplicate
//! address, are not detected here.

use super::diagnostics::{Diagnostics, Path};
use super::error::{ConfigError, ConfigErrors, SyntaxError, kind, quoted};
use super::lowering::Lowering;
use super::model::{Config, Network, Port, SwitchSettings, Uplink, VmSettings};
use super::parse::{self, Node, Value};
use super::raw::{self, Read};
use super::{check_over, lower, lowering};

/// Key of a single port that names its VM.
const OWNER: &str = "device_id";
/// Keys of a port whose values are tables.
const TABLES: [&str; 2] = ["device", "storm"];
/// Table of its VM's keys, beside the port's keys.
const VM: &str = "vm";

/// Keys of a port to change.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PortKeys {
    /// New values. Absent keys stay.
    pub given: raw::Port,
    /// New values of its VM's keys.
    pub vm: raw::VmKeys,
    /// Keys that are `null`, which get their default, such as `fixed_ips`, `device.netns` or `vm.storm`.
    pub cleared: Vec<String>,
}

impl From<raw::Port> for PortKeys {
    fn from(given: raw::Port) -> PortKeys {
        PortKeys { given, ..PortKeys::default() }
    }
}

/// Parses and validates a configuration in JSON. Without `switch`, uses the given settings.
pub fn parse_json_over(text: &str, name: &str, switch: SwitchSettings) -> Result<Config, ConfigErrors> {
    check_over(parse::from_json(text), name, switch)
}

/// Parses what an owner wants, in JSON: a configuration whose networks and parents may be those of others. What conflicts
/// with the rest is not detected here. Without `switch`, uses the given settings.
pub fn parse_json_part(text: &str, name: &str, switch: SwitchSettings) -> Result<Config, ConfigErrors> {
    part(parse::from_json(text), name, switch)
}

/// Lowers a part of a configuration.
pub(super) fn part(
    document: Result<Node, SyntaxError>,
    name: &str,
    switch: SwitchSettings,
) -> Result<Config, ConfigErrors> {
    let root = parsed(document, name)?;
    let mut diagnostics = Diagnostics::new(name, &root);
    let raw = raw::Config::read(&root, &Path::default(), &mut diagnostics).unwrap_or_default();
    let mut config = lower::lower(&raw, &mut diagnostics);
    if raw.switch.is_none() {
        config.switch = switch;
    }
    config.order_ports();
    diagnostics.finish().map_or(Ok(config), Err)
}

/// Parses and validates ports of VM `vm` in JSON: one table, or a list. They may name their VM with `device_id`, and
/// must not name another. Duplicates are returned.
pub fn parse_ports_json(text: &str, name: &str, vm: &str) -> Result<Vec<Port>, ConfigErrors> {
    let root = parsed(parse::from_json(text), name)?;
    let mut diagnostics = Diagnostics::new(name, &root);
    let top = Path::default();
    let ports = match &root.value {
        Value::List(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| one_port(item, &top.item(index), Some(vm), &mut diagnostics).1)
            .collect(),
        Value::Table(_) => vec![one_port(&root, &top, Some(vm), &mut diagnostics).1],
        _ => {
            diagnostics.push(&top, kind::WRONG_TYPE, "expected a port (a table of keys) or a list of ports");
            Vec::new()
        }
    };
    diagnostics.finish().map_or(Ok(ports), Err)
}

/// Parses port `id` in JSON, and the VM named by its `device_id`. Its `port_id` may be absent, and must not be another.
pub fn parse_port_json(text: &str, name: &str, id: &str) -> Result<(String, Port), ConfigErrors> {
    parse_entity(text, name, ("port_id", id), |root, diagnostics| one_port(root, &Path::default(), None, diagnostics))
}

/// The same for network `id`.
pub fn parse_network_json(text: &str, name: &str, id: &str) -> Result<Network, ConfigErrors> {
    parse_entity(text, name, ("id", id), |root, diagnostics| {
        let raw = raw::Network::read(root, &Path::default(), diagnostics).unwrap_or_default();
        Lowering { path: Path::default(), diagnostics }.network(&raw)
    })
}

/// The same for uplink `id`.
pub fn parse_uplink_json(text: &str, name: &str, id: &str) -> Result<Uplink, ConfigErrors> {
    parse_entity(text, name, ("id", id), |root, diagnostics| {
        let raw = raw::Uplink::read(root, &Path::default(), diagnostics).unwrap_or_default();
        Lowering { path: Path::default(), diagnostics }.uplink(&raw)
    })
}

/// The same for VM `id`: its settings, and its ports if the text has `ports`.
pub fn parse_vm_json(text: &str, name: &str, id: &str) -> Result<(VmSettings, Option<Vec<Port>>), ConfigErrors> {
    parse_entity(text, name, ("id", id), |root, diagnostics| {
        let raw = raw::Vm::read(root, &Path::default(), diagnostics).unwrap_or_default();
        let vm = Lowering { path: Path::default(), diagnostics }.vm(&raw);
        (vm.settings(), raw.ports.is_some().then_some(vm.ports))
    })
}

/// Parses one entity, whose id the request names: the text may name the same.
fn parse_entity<T>(
    text: &str,
    name: &str,
    (key, id): (&str, &str),
    parse: impl FnOnce(&Node, &mut Diagnostics<'_>) -> T,
) -> Result<T, ConfigErrors> {
    let mut root = parsed(parse::from_json(text), name)?;
    let mut wrong = false;
    if let Value::Table(entries) = &mut root.value {
        entries.retain(|(of, node)| of != key || node.value != Value::Null);
        match entries.iter().find(|(of, _)| of == key) {
            Some((_, node)) => wrong = matches!(&node.value, Value::Text(text) if text != id),
            None => entries.push((key.to_owned(), Node { value: Value::Text(id.to_owned()), line: None })),
        }
    }
    let mut diagnostics = Diagnostics::new(name, &root);
    if wrong {
        let message = format!("the request names {}; remove the key, or change the request", quoted(id));
        diagnostics.push(&Path::default().key(key), kind::CONTRADICTION, message);
    }
    let entity = parse(&root, &mut diagnostics);
    diagnostics.finish().map_or(Ok(entity), Err)
}

/// Parses keys of a port in JSON. Checks only the types of values.
pub fn parse_port_keys_json(text: &str, name: &str) -> Result<PortKeys, ConfigErrors> {
    port_keys(parse::from_json(text), name)
}

/// One port, and the VM named by its `device_id`.
pub(super) fn port(document: Result<Node, SyntaxError>, name: &str) -> Result<(String, Port), ConfigErrors> {
    let root = parsed(document, name)?;
    let mut diagnostics = Diagnostics::new(name, &root);
    let port = one_port(&root, &Path::default(), None, &mut diagnostics);
    diagnostics.finish().map_or(Ok(port), Err)
}

/// Some keys of a port.
pub(super) fn port_keys(document: Result<Node, SyntaxError>, name: &str) -> Result<PortKeys, ConfigErrors> {
    let root = parsed(document, name)?;
    let mut diagnostics = Diagnostics::new(name, &root);
    let (mut keys, mut vm) = (root.clone(), None);
    if let Value::Table(entries) = &mut keys.value {
        vm = entries.iter().position(|(key, _)| key == VM).map(|at| entries.remove(at).1);
    }
    let given = raw::Port::read(&keys, &Path::default(), &mut diagnostics).unwrap_or_default();
    let mut cleared = null_keys(&keys, "");
    let of_vm = vm.as_ref().and_then(|vm| {
        cleared.extend(null_keys(vm, "vm."));
        cleared.extend(vm.get("storm").into_iter().flat_map(|storm| null_keys(storm, "vm.storm.")));
        raw::VmKeys::read(vm, &Path::default().key(VM), &mut diagnostics)
    });
    for key in TABLES {
        cleared.extend(root.get(key).into_iter().flat_map(|table| null_keys(table, &format!("{key}."))));
    }
    diagnostics.finish().map_or(Ok(PortKeys { given, vm: of_vm.unwrap_or_default(), cleared }), Err)
}

/// Keys of a table whose value is `null`.
fn null_keys(table: &Node, prefix: &str) -> Vec<String> {
    let Value::Table(entries) = &table.value else { return Vec::new() };
    let empty = entries.iter().filter(|(_, node)| node.value == Value::Null);
    empty.map(|(key, _)| format!("{prefix}{key}")).collect()
}

fn parsed(document: Result<Node, SyntaxError>, name: &str) -> Result<Node, ConfigErrors> {
    document.map_err(|error| ConfigErrors::from(ConfigError::of_syntax(name, error)))
}

/// A port and its VM: the one it names, or `vm`. One of the two is required.
fn one_port(node: &Node, path: &Path, vm: Option<&str>, diagnostics: &mut Diagnostics<'_>) -> (String, Port) {
    let mut owner = None;
    let mut keys = node.clone();
    if let Value::Table(entries) = &mut keys.value {
        let given = entries.iter().position(|(key, _)| key == OWNER).map(|at| entries.remove(at).1);
        let given = given.filter(|node| node.value != Value::Null);
        let at = path.key(OWNER);
        owner = given.and_then(|node| String::read(&node, &at, diagnostics));
        match (&owner, vm) {
            (Some(owner), Some(vm)) if owner != vm => {
                let message = format!("the request names VM {}; remove the key, or change the request", quoted(vm));
                diagnostics.push(&at, kind::CONTRADICTION, message);
            }
            (Some(owner), None) => {
                if let Some(wrong) = lowering::wrong_id(owner) {
                    diagnostics.push(&at, kind::BAD_VALUE, wrong);
                }
            }
            (None, None) if diagnostics.is_missing(&at) => {
                diagnostics.push(&at, kind::MISSING, "required: the id of the port's VM");
            }
            _ => {}
        }
    }
    let raw = raw::Port::read(&keys, path, diagnostics).unwrap_or_default();
    let port = lower::port(path.clone(), &raw, diagnostics);
    (owner.or_else(|| vm.map(str::to_owned)).unwrap_or_default(), port)
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::super::testgen;
    use super::*;
    use proptest::prelude::*;

    /// A valid port.
    const PORT: &str =
        r#""port_id": "p1", "network_id": "net1", "mac_address": "02:00:00:00:01:0a", "device": { "kind": "tap" }"#;

    fn kinds(errors: &ConfigErrors) -> Vec<(&str, &str)> {
        errors.errors().iter().map(|problem| (problem.key.as_str(), problem.kind)).collect()
    }

    proptest! {
        #[test]
        fn ports_are_parsed_as_in_a_file(config in testgen::config()) {
            for vm in &config.vms {
                let raw: Vec<_> = vm.ports.iter().map(Port::to_raw).collect();
                let list = serde_json::to_string(&raw).unwrap();
                prop_assert_eq!(parse_ports_json(&list, "x", &vm.id), Ok(vm.ports.clone()));
                for (port, raw) in vm.ports.iter().zip(&raw) {
                    let one = serde_json::to_string(raw).unwrap();
                    prop_assert_eq!(parse_ports_json(&one, "x", &vm.id), Ok(vec![port.clone()]));
                    prop_assert_eq!(parse_port_keys_json(&one, "x"), Ok(raw.clone().into()));
                    let mut table = toml::Table::try_from(raw).unwrap();
                    table.insert(OWNER.into(), vm.id.clone().into());
                    let source = Source::of("x", table.to_string().into_bytes()).unwrap();
                    prop_assert_eq!(source.port(), Ok((vm.id.clone(), port.clone())));
                }
            }
        }
    }

    #[test]
    fn a_duplicate_port_is_passed_on() {
        let list = format!("[{{{PORT}}}, {{{PORT}}}]");
        assert_eq!(parse_ports_json(&list, "x", "fw-3").unwrap().len(), 2);
    }

    #[test]
    fn a_port_may_name_only_its_vm() {
        let text = |vm: &str| format!(r#"[{{{PORT}, "device_id": {vm}}}]"#);
        for vm in [r#""fw-3""#, "null"] {
            assert_eq!(parse_ports_json(&text(vm), "x", "fw-3").unwrap().len(), 1);
        }
        let errors = parse_ports_json(&text(r#""web""#), "x", "fw-3").unwrap_err();
        assert_eq!(kinds(&errors), [("[0].device_id", kind::CONTRADICTION)]);
        assert!(errors.to_string().ends_with("(port \"p1\")"), "{errors}");
        let errors = parse_ports_json(&text("7"), "x", "fw-3").unwrap_err();
        assert_eq!(kinds(&errors), [("[0].device_id", kind::WRONG_TYPE)]);
    }

    #[test]
    fn a_single_port_must_name_its_vm() {
        let port = |text: String| Source::of("x", text.into_bytes()).unwrap().port();
        assert_eq!(port(format!(r#"{{{PORT}, "device_id": "fw-3"}}"#)).unwrap().0, "fw-3");
        for (vm, wrong) in [("", kind::MISSING), (r#", "device_id": """#, kind::BAD_VALUE)] {
            let errors = port(format!("{{{PORT}{vm}}}")).unwrap_err();
            assert_eq!(kinds(&errors), [("device_id", wrong)]);
        }
    }

    #[test]
    fn every_error_is_reported() {
        let errors = parse_ports_json(r#"[{"port_id": ""}, 7, {"portid": "x"}]"#, "x", "fw-3").unwrap_err();
        let messages = kinds(&errors);
        for problem in [
            ("[0].port_id", kind::BAD_VALUE),
            ("[0].mac_address", kind::MISSING),
            ("[1]", kind::WRONG_TYPE),
            ("[2].portid", kind::UNKNOWN_KEY),
        ] {
            assert!(messages.contains(&problem), "{problem:?}: {messages:?}");
        }
        for text in ["7", "null", "\"p1\""] {
            let errors = parse_ports_json(text, "x", "fw-3").unwrap_err();
            assert_eq!(kinds(&errors), [("", kind::WRONG_TYPE)], "{text}");
        }
        let errors = parse_port_keys_json(r#"{"admin_state_up": 1, "device": {"queue": 2}}"#, "x").unwrap_err();
        assert_eq!(kinds(&errors), [("admin_state_up", kind::WRONG_TYPE), ("device.queue", kind::UNKNOWN_KEY)]);
    }

    #[test]
    fn missing_keys_of_the_switch_are_unchanged() {
        let running = SwitchSettings { cores: vec![3], ..SwitchSettings::default() };
        let over = |text| parse_json_over(text, "x", running.clone()).unwrap().switch;
        assert_eq!(over("{}"), running);
        assert_eq!(over(r#"{"switch": null}"#), running);
        assert_eq!(over(r#"{"switch": {}}"#), SwitchSettings::default());
        assert_eq!(over(r#"{"switch": {"cores": [2]}}"#).cores, [2]);
    }
}
