//! The environment variables of a call: which command, for which interface of which container.

use std::path::PathBuf;

use super::error::{CniError, code};
use super::names;
use super::version::Command;
use crate::sys::tun;
use crate::wire::Mac;

/// Maximum length of a variable in bytes.
const MAX_LEN: usize = 4096;

/// Keys of `CNI_ARGS` that the plugin knows.
const ARGS: [&str; 3] = ["IgnoreUnknown", "MAC", "POSITION"];

/// The variables of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for commands that concern no container.
    pub container: String,
    /// `CNI_NETNS`
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`
    pub interface: String,
    /// `CNI_PATH`: directories of plugins.
    pub path: Vec<PathBuf>,
    /// `MAC` of `CNI_ARGS`.
    pub mac: Option<Mac>,
    /// `POSITION` of `CNI_ARGS`.
    pub position: Option<u16>,
}

fn wrong(message: impl Into<String>) -> CniError {
    CniError::new(code::INVALID_ENVIRONMENT, message)
}

impl Environment {
    /// Reads the variables by `get`.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Environment, CniError> {
        let name = get("CNI_COMMAND").unwrap_or_default();
        let command = Command::named(&name).ok_or_else(|| {
            let known = Command::ALL.map(Command::name).join(", ");
            wrong(format!("CNI_COMMAND = {name:?}: no such command; use one of {known}"))
        })?;
        let is_missing = |name: &&&str| get(name).is_none_or(|value| value.is_empty());
        let missing: Vec<&str> = command.required().iter().filter(is_missing).copied().collect();
        if !missing.is_empty() {
            return Err(wrong(format!(
                "{} needs {}, which the runtime has not set",
                command.name(),
                missing.join(", ")
            )));
        }
        let value = |name: &str| match get(name).unwrap_or_default() {
            text if text.len() > MAX_LEN => Err(wrong(format!("{name} is longer than {MAX_LEN} bytes"))),
            text => Ok(text),
        };
        let path = value("CNI_PATH")?.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        // libcni sets the others to "dummy" for commands that concern no container.
        if command.required().is_empty() {
            let (container, interface) = (String::new(), String::new());
            return Ok(Environment { command, container, netns: None, interface, path, mac: None, position: None });
        }
        let container = value("CNI_CONTAINERID")?;
        if !container.is_empty() && !names::is_name(&container) {
            return Err(wrong(format!("CNI_CONTAINERID = {container:?}: {}", names::RULE)));
        }
        let interface = value("CNI_IFNAME")?;
        if !interface.is_empty() && !tun::is_name(&interface) {
            let rule = "use 1 to 15 bytes without spaces, '/', ':' and '%'";
            return Err(wrong(format!("CNI_IFNAME = {interface:?}: no name of an interface; {rule}")));
        }
        let netns = Some(value("CNI_NETNS")?).filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Some(path) = netns.as_ref().filter(|path| !path.is_absolute()) {
            return Err(wrong(format!("CNI_NETNS = {path:?}: not an absolute path")));
        }
        let (mac, position) = arguments(&value("CNI_ARGS")?)?;
        Ok(Environment { command, container, netns, interface, path, mac, position })
    }
}

/// `MAC` and `POSITION` of `CNI_ARGS`: pairs of key and value, as in `IgnoreUnknown=1;MAC=02:00:00:00:01:0a`.
fn arguments(text: &str) -> Result<(Option<Mac>, Option<u16>), CniError> {
    let mut pairs = Vec::new();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let pair = pair.split_once('=');
        pairs
            .push(pair.ok_or_else(|| wrong(format!("CNI_ARGS = {text:?}: expected pairs of KEY=VALUE, joined by ;")))?);
    }
    let find = |key: &str| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
    let ignores =
        find("IgnoreUnknown").is_some_and(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"));
    if let Some((unknown, _)) = pairs.iter().find(|(name, _)| !ignores && !ARGS.contains(name)) {
        let known = ARGS.join(", ");
        return Err(wrong(format!("CNI_ARGS: unknown key {unknown:?}; use {known}, or set IgnoreUnknown=1")));
    }
    let mac = find("MAC").map(|text| {
        let mac: Result<Mac, _> = text.parse();
        mac.ok().filter(|mac| mac.is_station()).ok_or_else(|| {
            wrong(format!("CNI_ARGS: MAC = {text:?}: not a unicast MAC address; one looks like 02:00:00:00:01:0a"))
        })
    });
    let position = find("POSITION").map(|text| {
        text.parse().map_err(|_| wrong(format!("CNI_ARGS: POSITION = {text:?}: not a number from 0 to 65535")))
    });
    Ok((mac.transpose()?, position.transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, CniError> {
        Environment::read(|name| variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned()))
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "4f-a_1.x"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
    ];

    #[test]
    fn the_variables_of_a_call_are_read() {
        let mut variables = ADD.to_vec();
        variables.push(("CNI_PATH", "/opt/cni/bin::/usr/lib/cni"));
        variables.push(("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;MAC=02:00:00:00:01:0a;POSITION=3"));
        let read = read(&variables).unwrap();
        assert_eq!(
            (read.command, read.container.as_str(), read.interface.as_str()),
            (Command::Add, "4f-a_1.x", "eth0")
        );
        assert_eq!(read.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")]);
        assert_eq!((read.mac.unwrap().to_string().as_str(), read.position), ("02:00:00:00:01:0a", Some(3)));
    }

    #[test]
    fn each_wrong_variable_is_named() {
        for (name, value, part) in [
            ("CNI_COMMAND", "PLUG", "\"PLUG\": no such command"),
            ("CNI_CONTAINERID", "", "ADD needs CNI_CONTAINERID"),
            ("CNI_CONTAINERID", "../x", "CNI_CONTAINERID = \"../x\""),
            ("CNI_IFNAME", "eth0/1", "CNI_IFNAME = \"eth0/1\""),
            ("CNI_IFNAME", "sixteen-bytes-16", "15 bytes"),
            ("CNI_NETNS", "a", "not an absolute path"),
            ("CNI_ARGS", "MAC", "KEY=VALUE"),
            ("CNI_ARGS", "MAC=ff:ff:ff:ff:ff:ff", "not a unicast MAC address"),
            ("CNI_ARGS", "POSITION=70000", "0 to 65535"),
            ("CNI_ARGS", "MACC=02:00:00:00:01:0a", "unknown key \"MACC\""),
        ] {
            let mut variables: Vec<_> = ADD.into_iter().filter(|(of, _)| *of != name).collect();
            variables.push((name, value));
            let error = read(&variables).unwrap_err();
            assert_eq!(error.code, code::INVALID_ENVIRONMENT);
            assert!(error.message.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_namespace_that_is_gone_does_not_prevent_detaching() {
        let gone = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")];
        assert_eq!(read(&gone).unwrap().netns, None);
        let dummy = ["CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_CONTAINERID"].map(|name| (name, "dummy:/"));
        for command in [Command::Version, Command::Status, Command::Gc] {
            let variables: Vec<_> = dummy.into_iter().chain([("CNI_COMMAND", command.name())]).collect();
            assert_eq!(read(&variables).unwrap().netns, None);
        }
    }

    proptest! {
        #[test]
        fn any_values_are_read_or_refused(values in proptest::collection::vec(".{0,20}", 6), command in 0..7usize) {
            let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"];
            let mut variables: Vec<(&str, &str)> = names.into_iter().zip(values.iter().map(String::as_str)).collect();
            let command = Command::ALL.get(command).map_or(values[5].as_str(), |command| command.name());
            variables.push(("CNI_COMMAND", command));
            if let Ok(read) = read(&variables) {
                prop_assert!(read.container.is_empty() || names::is_name(&read.container));
                prop_assert!(read.netns.is_none_or(|path| path.is_absolute()));
            }
        }
    }
}
