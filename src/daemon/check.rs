//! `vifswitch check`: validates a configuration, checks whether this host can run it, and previews what a start would
//! change in the stored state. Changes nothing.
//!
//! The checks run with the capabilities of a running switch. What prevents a start is an error; the exit code is that
//! of `vifswitch run`. What only keeps a port down is a warning: a running switch waits for what is missing.

mod host;

use std::future::ready;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use futures_util::FutureExt;
use serde::Serialize;
use serde_json::{Value, json};

use super::fragments::{self, Fragments};
use super::needed;
use crate::control::config::{self, Config, ConfigErrors, ConfigFile};
use crate::control::state::{self, StartPreview};
use crate::sys::privileges;

/// Severity of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Severity {
    /// The switch starts anyway.
    Warning,
    /// The switch does not start until something on this host changes.
    InTheWay,
    /// The switch does not start on this host; the configuration has to change.
    Wrong,
}

/// Result of a check of the configuration against the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CheckResult {
    severity: Severity,
    /// What the result is about: a key or a port.
    about: String,
    message: String,
}

impl Severity {
    /// Exit code of `vifswitch run` with this result.
    fn code(self) -> u8 {
        match self {
            Severity::Warning => 0,
            Severity::InTheWay => 1,
            Severity::Wrong => 2,
        }
    }
}

/// Checks a configuration and prints the results. Exit code 0 if a switch would start with it; else the exit code of
/// `vifswitch run`.
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
    let mut config = file.config.clone();
    let (fragments, mut results) = apply_fragments(path, &mut config);
    let config = &config;
    // Best effort: without the right to drop capabilities, there are no more than a switch has.
    let _ = privileges::keep_only(&needed(&config.switch));
    results.extend(host::check_host(config));
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
    let with = match fragments {
        0 => String::new(),
        number => format!(", with {number} fragments of {}", fragments::DIRECTORY),
    };
    print(&format!("{}: valid: {networks} networks, {vms} VMs, {ports} ports{uplinks}{with}\n", path.display()))?;
    if let Some((at, preview)) = &state {
        print(&describe_preview(at, preview))?;
    }
    for CheckResult { severity, about, message } in &results {
        match severity {
            Severity::Warning => print(&format!("warning: {about}: {message}\n"))?,
            // Standard error may be closed; the exit code remains.
            Severity::InTheWay | Severity::Wrong => {
                let _ = writeln!(io::stderr(), "{}: {about}: {message}", path.display());
            }
        }
    }
    Ok(ExitCode::from(worst.code()))
}

/// Applies the fragments beside a configuration file. Returns their number, and a warning for each that would not be
/// applied.
fn apply_fragments(path: &Path, config: &mut Config) -> (usize, Vec<CheckResult>) {
    let warning = |about: String, message| CheckResult { severity: Severity::Warning, about, message };
    let read = match Fragments::read(&fragments::directory(path)) {
        Ok(read) => read,
        Err(why) => return (0, vec![warning(fragments::DIRECTORY.to_owned(), why)]),
    };
    let refused = fragments::settle(read.pending(&config.to_sparse()), |fragment| {
        ready(fragment.change.to(config).map(|changed| *config = changed).map_err(|error| error.message))
    });
    // Nothing in it waits.
    let refused = refused.now_or_never().unwrap_or_default();
    let unreadable = read.unreadable().map(|(name, why)| (name.to_owned(), why.to_owned()));
    let about = |name| format!("{}/{name}", fragments::DIRECTORY);
    (read.len(), unreadable.chain(refused).map(|(name, why)| warning(about(name), why)).collect())
}

/// Prints `text`. A closed pipe (`| head`) is not an error: the exit code remains.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => Err(why),
        _ => Ok(()),
    }
}

/// Path of the stored state and what a start would change in it, if there is one.
fn preview_state<'f>(file: &'f ConfigFile, results: &mut Vec<CheckResult>) -> Option<(&'f Path, StartPreview)> {
    let path = file.config.switch.state.as_deref()?;
    match state::preview(file, path) {
        Ok(preview) => Some((path, preview?)),
        Err(why) => {
            // One cause, one warning: this one names the consequence.
            results.retain(|result| result.about != "switch.state");
            let message = format!("{why}; a switch started now runs the configuration file and refuses changes");
            results.push(CheckResult { severity: Severity::Warning, about: "switch.state".into(), message });
            None
        }
    }
}

/// A preview as text.
fn describe_preview(path: &Path, StartPreview { changes, dropped, unknown }: &StartPreview) -> String {
    let path = path.display();
    let mut text = String::new();
    if changes.is_empty() {
        text.push_str(&format!("stored state {path}: a start changes nothing in it\n"));
    }
    let parts = [
        (changes, "a start changes in it"),
        (dropped, "a start drops from it, because the file has precedence"),
        (unknown, "unknown to this version, kept unmodified"),
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
