//! `vifswitch check`: is a configuration right, and would this host carry it? Nothing is touched.
//!
//! The host is asked with the rights that a running switch has. What would keep it from starting is
//! an error, and the exit code is the one that it would end with. What would only keep a port down
//! is a remark: a switch that runs waits for whatever is missing.

mod host;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Value, json};

use super::needed;
use crate::control::config::{self, Config, Errors};
use crate::sys::privileges;

/// What a finding comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Severity {
    /// The switch would start all the same.
    Remark,
    /// It would not: something is in the way on this host.
    InTheWay,
    /// It would not, and never will on this host: the configuration has to be changed.
    Wrong,
}

/// Something that the host says to the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    severity: Severity,
    /// What it is about: a key, or a port.
    about: String,
    message: String,
}

impl Severity {
    /// The exit code of a switch that is started all the same.
    fn code(self) -> u8 {
        match self {
            Severity::Remark => 0,
            Severity::InTheWay => 1,
            Severity::Wrong => 2,
        }
    }
}

/// Says whether a configuration is right, and what this host says to it. Exit code 0 if a switch
/// would start with it; otherwise that with which it would end.
pub fn check(path: &Path, json: bool) -> ExitCode {
    match print_findings(path, json) {
        Ok(code) => code,
        Err(why) => super::complain(format_args!("vifswitch check: cannot write: {why}"), 1),
    }
}

fn print_findings(path: &Path, json: bool) -> io::Result<ExitCode> {
    let config = match config::check(path) {
        Ok(config) => config,
        Err(errors) if json => {
            print(&format!("{:#}\n", problems(path, &errors)))?;
            return Ok(ExitCode::from(2));
        }
        Err(errors) => return Ok(super::complain(errors, 2)),
    };
    // What cannot be given up was not there: then nothing is asked with more than a switch has.
    let _ = privileges::keep_only(&needed(&config.switch));
    let findings = host::ask(&config);
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Remark);
    if json {
        print(&format!("{:#}\n", report(path, &config, &findings)))?;
        return Ok(ExitCode::from(worst.code()));
    }
    let (networks, vms, ports) = sizes(&config);
    let uplinks = match config.uplinks.len() {
        0 => String::new(),
        uplinks => format!(", {uplinks} uplinks"),
    };
    print(&format!("{}: right: {networks} networks, {vms} VMs, {ports} ports{uplinks}\n", path.display()))?;
    for Finding { severity, about, message } in &findings {
        match severity {
            Severity::Remark => print(&format!("remark: {about}: {message}\n"))?,
            // If standard error is closed there is nobody to read it; the exit code says the same.
            Severity::InTheWay | Severity::Wrong => {
                let _ = writeln!(io::stderr(), "{}: {about}: {message}", path.display());
            }
        }
    }
    Ok(ExitCode::from(worst.code()))
}

/// Prints `text`. A reader who has read enough and left is no error: the exit code says what was found.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => Err(why),
        _ => Ok(()),
    }
}

fn sizes(config: &Config) -> (usize, usize, usize) {
    (config.networks.len(), config.vms.len(), config.vms.iter().map(|vm| vm.ports.len()).sum())
}

fn report(path: &Path, config: &Config, findings: &[Finding]) -> Value {
    let (networks, vms, ports) = sizes(config);
    let starts = findings.iter().all(|finding| finding.severity == Severity::Remark);
    json!({
        "file": path.display().to_string(),
        "right": true,
        "problems": [],
        "networks": networks,
        "vms": vms,
        "ports": ports,
        "uplinks": config.uplinks.len(),
        "starts": starts,
        "findings": findings,
    })
}

fn problems(path: &Path, errors: &Errors) -> Value {
    let problem = |problem: &config::Problem| {
        json!({
            "line": problem.line,
            "key": problem.key,
            "value": problem.value,
            "owner": problem.owner,
            "kind": problem.kind,
            "message": problem.message,
        })
    };
    let problems: Vec<Value> = errors.problems().iter().map(problem).collect();
    json!({
        "file": path.display().to_string(),
        "right": false,
        "problems": problems,
        "starts": false,
        "findings": [],
    })
}
