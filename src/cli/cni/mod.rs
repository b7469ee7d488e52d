//! `vifswitch cni`: the plugin of the Container Network Interface (CNI), by which container runtimes attach containers. A
//! runtime executes the binary without arguments: the environment says what to do, standard input has the network
//! configuration, and standard output gets the result or the error.
//!
//! | command | does |
//! |---|---|
//! | ADD | makes the network if it is missing, a port with a tap in the container's namespace, and configures addresses and routes |
//! | DEL | releases addresses, deletes the port. If the switch does not answer, that is recorded, and carried out by the next call |
//! | CHECK | compares port, interface, addresses and routes with the result of ADD |
//! | GC | deletes ports of the network whose attachments the runtime does not list |
//! | STATUS | whether containers can be attached now |
//!
//! Each command is idempotent. The plugin is a client of the API; it changes nothing but ports and networks with its owner
//! label, and interfaces of its ports.

mod add;
mod check;
mod config;
mod del;
mod environment;
mod error;
mod exec;
mod interface;
mod ipam;
mod names;
mod record;
mod result;
mod switch;
mod version;

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

pub use self::config::KEYS;
use self::config::{NetworkConfig, Strictness};
use self::environment::Environment;
use self::error::{CniError, code};
use self::version::{Command, SpecVersion};
use crate::cli::{say, warn};

/// The variable by which a runtime says what to do.
pub const COMMAND: &str = "CNI_COMMAND";

/// Time for which requests are repeated while the switch does not answer, when a container waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same when the request can be recorded, and when only the state is asked for.
const SHORT: Duration = Duration::from_secs(1);

/// Time for which a command waits for another one for the same attachment.
const LOCK: Duration = Duration::from_secs(60);

/// A call: what the runtime wants.
struct Call {
    environment: Environment,
    config: NetworkConfig,
}

/// Runs the command that the environment names. The exit code is 0, or 1 with an error on standard output.
pub fn run() -> ExitCode {
    if std::env::var_os(COMMAND).is_none() {
        let versions = SpecVersion::names();
        warn(format_args!(
            "{COMMAND} is not set: this is a CNI plugin (versions {versions}), which container runtimes execute"
        ));
        return ExitCode::from(2);
    }
    let (mut stdin, mut input) = (io::stdin().lock(), Vec::new());
    let limit = u64::try_from(config::MAX_LEN).unwrap_or(u64::MAX).saturating_add(1);
    let read = if stdin.is_terminal() { Ok(0) } else { (&mut stdin).take(limit).read_to_end(&mut input) };
    let get = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let done = match read {
        Ok(_) => execute(get, &input),
        Err(e) => Err(CniError::new(code::IO, format!("cannot read the network configuration: {e}"))),
    };
    match done {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => say(&format!("{result}\n")),
        Err(error) => {
            say(&format!("{}\n", error.to_json(version_of(&input))));
            ExitCode::FAILURE
        }
    }
}

/// The version in which an error is printed: that of the configuration, if it is known.
fn version_of(input: &[u8]) -> SpecVersion {
    let config: Value = serde_json::from_slice(input).unwrap_or_default();
    config["cniVersion"].as_str().and_then(SpecVersion::named).unwrap_or(SpecVersion::NEWEST)
}

/// Executes a command; returns what it prints.
fn execute(get: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Option<Value>, CniError> {
    let environment = Environment::read(get)?;
    let command = environment.command;
    if command == Command::Version {
        let versions = SpecVersion::ALL.map(SpecVersion::name);
        return Ok(Some(json!({ "cniVersion": version_of(input).name(), "supportedVersions": versions })));
    }
    let strictness = match command {
        Command::Del | Command::Gc => Strictness::Essentials,
        _ => Strictness::Everything,
    };
    let mut config = NetworkConfig::parse(input, strictness)?;
    if config.version < command.since() {
        let message =
            format!("cniVersion = {} has no {}; it exists since {}", config.version, command.name(), command.since());
        return Err(CniError::new(code::INCOMPATIBLE_VERSION, message));
    }
    config.prefer(environment.mac, environment.position);
    // Here and not first in the container's namespace, which would then not end while the plugin waits for the switch.
    drop(switch::runtime()?);
    let call = Call { environment, config };
    match command {
        Command::Add => call.add().map(Some),
        Command::Del => call.del().map(|()| None),
        Command::Check => call.check().map(|()| None),
        Command::Gc => call.gc().map(|()| None),
        Command::Status | Command::Version => call.status().map(|()| None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with<'v>(variables: &'v [(&'v str, &'v str)]) -> impl Fn(&str) -> Option<String> + 'v {
        move |name| variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn versions_are_listed_whatever_the_input() {
        for (input, version) in [
            ("", "1.1.0"),
            ("{", "1.1.0"),
            (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
            (r#"{"cniVersion":"9.0.0"}"#, "1.1.0"),
        ] {
            let printed = execute(with(&[(COMMAND, "VERSION")]), input.as_bytes()).unwrap();
            let wanted = json!({ "cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] });
            assert_eq!(printed, Some(wanted), "{input}");
        }
    }

    #[test]
    fn commands_of_later_versions_are_refused() {
        let variables = [(COMMAND, "GC"), ("CNI_CONTAINERID", "a"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")];
        let check = [(COMMAND, "CHECK"), variables[1], variables[2], variables[3]];
        for (variables, version) in [(&variables, "1.0.0"), (&check, "0.3.1")] {
            let config = json!({ "cniVersion": version, "name": "blue", "type": "vifswitch" }).to_string();
            let error = execute(with(variables), config.as_bytes()).unwrap_err();
            assert_eq!(error.code, code::INCOMPATIBLE_VERSION, "{error}");
        }
    }

    proptest! {
        /// Part of a valid configuration, one with a changed byte, and any bytes.
        #[test]
        fn any_input_is_answered(cut: usize, byte: u8, any: Vec<u8>) {
            let config = json!({ "cniVersion": "1.1.0", "name": "blue", "port": { "port_security": "mac" },
                                 "cni.dev/valid-attachments": [] });
            let text = config.to_string().into_bytes();
            let at = cut % text.len();
            let mut changed = text.clone();
            changed[at] = byte;
            for input in [&text[..at], &changed, &any] {
                prop_assert!(execute(with(&[(COMMAND, "VERSION")]), input).is_ok_and(|printed| printed.is_some()));
                // The environment is checked before the configuration.
                for command in ["ADD", "DEL", "CHECK", "x"] {
                    let error = execute(with(&[(COMMAND, command)]), input).unwrap_err();
                    prop_assert_eq!(error.code, code::INVALID_ENVIRONMENT);
                }
                for strictness in [Strictness::Everything, Strictness::Essentials] {
                    let _ = NetworkConfig::parse(input, strictness);
                }
            }
        }
    }
}
