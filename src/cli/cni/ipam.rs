//! Delegation to an IPAM plugin, which is executed with the same configuration and variables.
//!
//! An IPAM plugin that is older than `cniVersion` is called with the newest version that both implement.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::environment::Environment;
use super::error::{CniError, code};
use super::exec::{self, Printed};
use super::result::AddResult;
use super::version::{Command, SpecVersion};

/// Time for one call. A DHCP client waits for its server.
const PATIENCE: Duration = Duration::from_secs(30);

/// Maximum output of one call.
const MAX_OUTPUT: usize = 1 << 20;

/// An IPAM plugin with the configuration that it gets.
pub struct Ipam<'c> {
    kind: &'c str,
    program: PathBuf,
    config: &'c Value,
    environment: &'c Environment,
    version: SpecVersion,
}

impl<'c> Ipam<'c> {
    /// Finds the plugin in the directories of `CNI_PATH`.
    pub fn find(
        kind: &'c str,
        config: &'c Value,
        version: SpecVersion,
        environment: &'c Environment,
    ) -> Result<Ipam<'c>, CniError> {
        let candidates = environment.path.iter().map(|directory| directory.join(kind));
        let program = candidates.into_iter().find(|path| is_executable(path)).ok_or_else(|| {
            let path: Vec<String> = environment.path.iter().map(|path| path.display().to_string()).collect();
            let message = format!("no IPAM plugin {kind:?} in CNI_PATH = {:?}; install it there", path.join(":"));
            CniError::new(code::INVALID_CONFIG, message)
        })?;
        Ok(Ipam { kind, program, config, environment, version })
    }

    /// Allocates addresses.
    pub fn add(&self) -> Result<AddResult, CniError> {
        let result = self.call(Command::Add)?;
        let wrong = |why| CniError::new(code::DECODE, format!("IPAM plugin {}: invalid result: {why}", self.kind));
        let mut result = AddResult::parse(&result).map_err(wrong)?;
        // The interface is ours.
        result.interfaces.clear();
        result.ips.iter_mut().for_each(|ip| ip.interface = None);
        Ok(result)
    }

    /// Releases the addresses of the attachment.
    pub fn del(&self) -> Result<(), CniError> {
        self.call(Command::Del).map(drop)
    }

    /// Asks whether the addresses are still allocated.
    pub fn check(&self) -> Result<(), CniError> {
        self.call(Command::Check).map(drop)
    }

    /// A command that plugins of before 1.1.0 lack; they are not called.
    pub fn call_if_known(&self, command: Command) -> Result<(), CniError> {
        if self.supported()?.contains(&SpecVersion::V1_1_0) { self.call(command).map(drop) } else { Ok(()) }
    }

    fn call(&self, command: Command) -> Result<Value, CniError> {
        match self.call_as(command, self.version) {
            Err(error) if error.code == code::INCOMPATIBLE_VERSION => {
                // Nothing has been done.
                let older = self.supported()?.into_iter().filter(|version| *version < self.version).max();
                older.map_or(Err(error), |version| self.call_as(command, version))
            }
            done => done,
        }
    }

    fn call_as(&self, command: Command, version: SpecVersion) -> Result<Value, CniError> {
        let mut config = self.config.clone();
        config["cniVersion"] = version.name().into();
        let input = config.to_string();
        let printed = self.execute(command, input.as_bytes())?;
        if printed.status.success() {
            return self.json(&printed.output);
        }
        let why = format!("IPAM plugin {} failed at {}", self.kind, command.name());
        let output: Value = serde_json::from_slice(&printed.output).unwrap_or_default();
        let text = |key: &str| output[key].as_str().unwrap_or_default().to_owned();
        let Some(code) = output["code"].as_u64().and_then(|code| u32::try_from(code).ok()) else {
            let output = String::from_utf8_lossy(&printed.output[..printed.output.len().min(200)]).into_owned();
            return Err(CniError::new(code::IO, format!("{why}: {}", printed.status)).with(output));
        };
        Err(CniError::new(code, format!("{why}: {}", text("msg"))).with(text("details")))
    }

    /// Versions that the plugin implements.
    fn supported(&self) -> Result<Vec<SpecVersion>, CniError> {
        let input = format!("{{\"cniVersion\":\"{}\"}}", SpecVersion::NEWEST);
        let printed = self.execute(Command::Version, input.as_bytes())?;
        let versions = self.json(&printed.output)?;
        let names = versions["supportedVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        Ok(names.filter_map(SpecVersion::named).collect())
    }

    fn json(&self, output: &[u8]) -> Result<Value, CniError> {
        if output.trim_ascii().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(output)
            .map_err(|e| CniError::new(code::DECODE, format!("IPAM plugin {} printed no JSON: {e}", self.kind)))
    }

    fn execute(&self, command: Command, input: &[u8]) -> Result<Printed, CniError> {
        let Environment { container, netns, interface, .. } = self.environment;
        let netns = netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let variables = [
            ("CNI_COMMAND", command.name().to_owned()),
            ("CNI_CONTAINERID", container.clone()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", interface.clone()),
        ];
        exec::run(&self.program, &variables, input, (PATIENCE, MAX_OUTPUT)).map_err(|e| {
            CniError::new(code::IO, format!("IPAM plugin {} at {}: {e}", self.program.display(), command.name()))
        })
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|of| of.is_file() && of.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use tempfile::TempDir;

    /// An IPAM plugin that is a shell script. It logs its calls.
    struct Fake {
        directory: TempDir,
        environment: Environment,
    }

    impl Fake {
        fn new(script: &str) -> Fake {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("fake");
            let log = directory.path().join("log");
            let text = format!("#!/bin/sh\ninput=$(cat)\necho \"$CNI_COMMAND $input\" >>{}\n{script}\n", log.display());
            // Written under another name: a fork of another test may hold it open, and could not be executed.
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            let environment = Environment {
                command: Command::Add,
                container: "c1".into(),
                netns: None,
                interface: "eth0".into(),
                path: vec!["/nowhere".into(), directory.path().to_owned()],
                mac: None,
                position: None,
            };
            Fake { directory, environment }
        }

        fn run<T>(&self, call: impl Fn(&Ipam<'_>) -> Result<T, CniError>) -> Result<T, CniError> {
            let config = json!({ "cniVersion": "1.1.0", "name": "blue", "ipam": { "type": "fake" } });
            let ipam = Ipam::find("fake", &config, SpecVersion::V1_1_0, &self.environment)?;
            loop {
                match call(&ipam) {
                    Err(error) if error.message.contains("busy") => {}
                    done => return done,
                }
            }
        }

        fn calls(&self) -> Vec<String> {
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            log.lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn addresses_are_those_of_the_plugin() {
        let fake = Fake::new(
            r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.5/24","interface":0}],"interfaces":[{"name":"x"}]}'"#,
        );
        let result = fake.run(|ipam| ipam.add()).unwrap();
        assert_eq!((result.interfaces.len(), result.ips[0].interface), (0, None));
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.5/24");
        let calls = fake.calls();
        assert!(calls.len() == 1 && calls[0].starts_with("ADD ") && calls[0].contains("\"blue\""), "{calls:?}");
    }

    /// Debian's plugins of 2022 implement 1.0.0.
    #[test]
    fn an_older_plugin_is_called_with_a_version_that_it_implements() {
        let fake = Fake::new(
            r#"case "$CNI_COMMAND $input" in
            VERSION*) echo '{"cniVersion":"1.0.0","supportedVersions":["0.1.0","0.4.0","1.0.0"]}' ;;
            *1.1.0*) echo '{"code":1,"msg":"incompatible CNI versions"}'; exit 1 ;;
            *) echo '{"ips":[{"address":"10.0.0.5/24"}]}' ;;
            esac"#,
        );
        assert_eq!(fake.run(|ipam| ipam.add()).unwrap().ips.len(), 1);
        let calls: Vec<String> = fake.calls().iter().map(|call| call.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(calls, ["ADD", "VERSION", "ADD"]);
        // and not with commands that it lacks
        fake.run(|ipam| ipam.call_if_known(Command::Gc)).unwrap();
        assert!(!fake.calls().iter().any(|call| call.starts_with("GC")), "{:?}", fake.calls());
    }

    #[test]
    fn its_errors_are_passed_on() {
        let fake = Fake::new(r#"echo '{"code":11,"msg":"no free address","details":"of 254"}'; exit 1"#);
        let error = fake.run(|ipam| ipam.add()).unwrap_err();
        assert_eq!((error.code, error.details.as_str()), (11, "of 254"));
        assert!(error.message.contains("fake failed at ADD: no free address"), "{error}");
        for (script, code, part) in [
            ("echo nothing; exit 2", code::IO, "exit status: 2"),
            ("echo nothing", code::DECODE, "no JSON"),
            (r#"echo '{"ips":[{"address":"x"}]}'"#, code::DECODE, "prefix length"),
        ] {
            let error = Fake::new(script).run(|ipam| ipam.add()).unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.message.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_plugin_that_is_not_there_is_named() {
        let fake = Fake::new("");
        let config = json!({});
        let error = Ipam::find("host-local", &config, SpecVersion::V1_0_0, &fake.environment).err().unwrap();
        assert!(error.message.contains("host-local") && error.message.contains("CNI_PATH"), "{error}");
    }
}
