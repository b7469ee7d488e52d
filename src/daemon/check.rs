//! `vifswitch check`: is a configuration right, would this host carry it, and what would a start with it make of the
//! stored state? Nothing is touched.
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
use crate::control::config::{self, Config, ConfigErrors, ConfigFile};
use crate::control::state::{self, StartPreview};
use crate::sys::privileges;

/// What a finding comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Severity {
    /// The switch would start all the same.
    Warning,
    /// It would not: something is in the way on this host.
    InTheWay,
    /// It would not, and never will on this host: the configuration has to be changed.
    Wrong,
}

/// Something that the host says to the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CheckResult {
    severity: Severity,
    /// What it is about: a key, or a port.
    about: String,
    message: String,
}

impl Severity {
    /// The exit code of a switch that is started all the same.
    fn code(self) -> u8 {
        match self {
            Severity::Warning => 0,
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
        Err(why) => super::report_error(format_args!("vifswitch check: cannot write: {why}"), 1),
    }
}

fn print_findings(path: &Path, json: bool) -> io::Result<ExitCode> {
    let file = match config::load_file(path) {
        Ok(file) => file,
        Err(errors) if json => {
            print(&format!("{:#}\n", problems(path, &errors)))?;
            return Ok(ExitCode::from(2));
        }
        Err(errors) => return Ok(super::report_error(errors, 2)),
    };
    let config = &file.config;
    // What cannot be given up was not there: then nothing is asked with more than a switch has.
    let _ = privileges::keep_only(&needed(&config.switch));
    let mut results = host::check_host(config);
    let state = preview_state(&file, &mut results);
    let worst = results.iter().map(|result| result.severity).max().unwrap_or(Severity::Warning);
    if json {
        print(&format!("{:#}\n", report(path, config, &results, state.as_ref())))?;
        return Ok(ExitCode::from(worst.code()));
    }
    let (networks, vms, ports) = sizes(config);
    let uplinks = match config.uplinks.len() {
        0 => String::new(),
        uplinks => format!(", {uplinks} uplinks"),
    };
    print(&format!("{}: right: {networks} networks, {vms} VMs, {ports} ports{uplinks}\n", path.display()))?;
    if let Some((at, preview)) = &state {
        print(&describe_preview(at, preview))?;
    }
    for CheckResult { severity, about, message } in &results {
        match severity {
            Severity::Warning => print(&format!("warning: {about}: {message}\n"))?,
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

/// What a start would make of the stored state, and where that is, if there is one.
fn preview_state<'f>(file: &'f ConfigFile, results: &mut Vec<CheckResult>) -> Option<(&'f Path, StartPreview)> {
    let path = file.config.switch.state.as_deref()?;
    match state::preview(file, path) {
        Ok(preview) => Some((path, preview?)),
        Err(why) => {
            let message =
                format!("{why}; a switch that starts now runs as the configuration file says, and takes no changes");
            results.push(CheckResult { severity: Severity::Warning, about: "switch.state".into(), message });
            None
        }
    }
}

/// What a start would make of the stored state, for people to read.
fn describe_preview(path: &Path, StartPreview { changes, dropped, unknown }: &StartPreview) -> String {
    let path = path.display();
    let mut text = String::new();
    if changes.is_empty() {
        text.push_str(&format!("stored state {path}: a start changes nothing in it\n"));
    }
    let parts = [
        (changes, "a start changes in it"),
        (dropped, "a start drops from it, because the file has precedence"),
        (unknown, "not understood by this version, and kept as it is"),
    ];
    for (sentences, what) in parts {
        if !sentences.is_empty() {
            text.push_str(&format!("stored state {path}: {what}:\n"));
        }
        sentences.iter().for_each(|sentence| text.push_str(&format!("  {sentence}\n")));
    }
    text
}

fn sizes(config: &Config) -> (usize, usize, usize) {
    (config.networks.len(), config.vms.len(), config.vms.iter().map(|vm| vm.ports.len()).sum())
}

fn report(path: &Path, config: &Config, results: &[CheckResult], state: Option<&(&Path, StartPreview)>) -> Value {
    let (networks, vms, ports) = sizes(config);
    let starts = results.iter().all(|result| result.severity == Severity::Warning);
    json!({
        "file": path.display().to_string(),
        "right": true,
        "problems": [],
        "networks": networks,
        "vms": vms,
        "ports": ports,
        "uplinks": config.uplinks.len(),
        "starts": starts,
        "findings": results,
        "state": state.map(|(path, StartPreview { changes, dropped, unknown })| json!({
            "path": path.display().to_string(),
            "changes": changes,
            "dropped": dropped,
            "unread": unknown,
        })),
    })
}

fn problems(path: &Path, errors: &ConfigErrors) -> Value {
    let problem = |problem: &config::ConfigError| {
        json!({
            "line": problem.line,
            "key": problem.key,
            "value": problem.value,
            "owner": problem.owner,
            "kind": problem.kind,
            "message": problem.message,
        })
    };
    let problems: Vec<Value> = errors.errors().iter().map(problem).collect();
    json!({
        "file": path.display().to_string(),
        "right": false,
        "problems": problems,
        "starts": false,
        "findings": [],
    })
}
