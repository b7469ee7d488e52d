//! Commands that change a running switch. Configurations are parsed here before the request is sent, so that an error
//! names the line of the file.

use std::fmt::Write;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Method;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use super::keys;
use super::table::printable;
use super::{CliError, Connection, block_on};
use crate::control::api::client::{Client, escaped};
use crate::control::api::responses::{Attached, Flushed, PortView};
use crate::control::config::{self, Source};
use crate::control::desired::change::ChangeResult;

/// The arguments of `apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// Configuration file, TOML or JSON; `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Revert after SECONDS unless confirmed by `vifswitch confirm`
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    confirm: Option<u32>,
    /// Replace only what has this label; what the file has gets it
    #[arg(long, value_name = "LABEL")]
    owner: Option<String>,
    #[command(flatten)]
    at: Connection,
}

/// The arguments of `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// Configuration file, TOML or JSON; `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    at: Connection,
}

/// The arguments of `confirm`.
#[derive(Debug, Args)]
pub struct Confirm {
    /// Revert the change now instead
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    at: Connection,
}

/// The arguments of `attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// Port with its `device_id`, TOML or JSON; `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Network namespace of its device, as an open descriptor of this command: 3 with `3</proc/PID/ns/net`
    #[arg(long, value_name = "FD")]
    netns_fd: Option<u32>,
    #[command(flatten)]
    at: Connection,
}

/// The arguments of `detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// Port id
    #[arg(value_name = "PORT")]
    port: String,
    #[command(flatten)]
    at: Connection,
}

/// The arguments of `set`.
#[derive(Debug, Args)]
pub struct Set {
    /// Port id
    #[arg(value_name = "PORT")]
    port: String,
    /// Keys as in the configuration, such as `device.queues=2`; an empty value restores the default: `device.netns=`
    #[arg(value_name = "KEY=VALUE", required = true)]
    keys: Vec<String>,
    #[command(flatten)]
    at: Connection,
}

/// The arguments of `flush`.
#[derive(Debug, Args)]
pub struct Flush {
    /// Only entries of this network
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Only entries of this port or uplink
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Only entries of this MAC address
    #[arg(long, value_name = "MAC")]
    mac: Option<crate::wire::Mac>,
    #[command(flatten)]
    at: Connection,
}

/// The arguments of `release`.
#[derive(Debug, Args)]
pub struct Release {
    /// Port id
    #[arg(value_name = "PORT")]
    port: String,
    #[command(flatten)]
    at: Connection,
}

impl Apply {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let body = match &self.owner {
            Some(_) => part(&self.file)?,
            None => configuration(&self.file)?,
        };
        let confirm = self.confirm.map(|seconds| format!("confirm={seconds}"));
        let owner = self.owner.as_deref().map(|owner| format!("owner={}", escaped(owner)));
        let query: Vec<String> = confirm.into_iter().chain(owner).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let path = format!("/v1/config{mark}{}", query.join("&"));
        self.at.request(Method::PUT, &path, Some(&body), |changed: ChangeResult| {
            let mut text = format_result(&changed, "no changes");
            if let Some(seconds) = self.confirm
                && !changed.changes.is_empty()
            {
                // Writing to a string does not fail.
                let _ = writeln!(text, "reverts in {seconds} seconds unless confirmed by `vifswitch confirm`");
            }
            text
        })
    }
}

impl Diff {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let body = configuration(&self.file)?;
        let none = "no changes";
        self.at.request(Method::POST, "/v1/config/diff", Some(&body), |changed: ChangeResult| {
            format_result(&changed, none)
        })
    }
}

impl Confirm {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let (method, done) = if self.cancel { (Method::DELETE, "cancelled") } else { (Method::POST, "confirmed") };
        self.at.request(method, "/v1/confirm", None, |changed: ChangeResult| {
            format!("{done}:\n{}", format_result(&changed, "no changes"))
        })
    }
}

impl Attach {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let (client, vm, body) = self.port()?;
        let path = format!("/v1/vms/{}/ports", escaped(&vm));
        self.at.request_by(&client, Method::POST, &path, Some(&body), |attached: Attached| {
            let Attached { changes, warnings, ports } = attached;
            let mut text = format_result(&ChangeResult { changes, warnings, ..ChangeResult::default() }, "no changes");
            for port in &ports {
                let _ = writeln!(text, "{}", printable(port_state(port)));
            }
            text
        })
    }
}

impl Attach {
    /// The port's VM and body, and a client that passes its namespace, if that is a descriptor.
    fn port(&self) -> Result<(Client, String, Value), CliError> {
        let (client, source) = (Client::new(&self.at.socket), source(&self.file)?);
        let Some(descriptor) = self.netns_fd else {
            return Ok((client, source.port()?.0, source.to_json()?));
        };
        let mut body = source.to_json()?;
        let file = format!("/proc/self/fd/{descriptor}");
        // Without a device the port is refused here.
        if let Some(device) = body["device"].as_object_mut() {
            device.insert("netns".into(), file.as_str().into());
        }
        let (vm, _) = Source::of(self.file.display().to_string(), body.to_string().into_bytes())?.port()?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(file.as_str(), flags, Mode::empty()).map_err(|why| {
            CliError::Usage(format!(
                "--netns-fd {descriptor}: {why}; open it for the command: {descriptor}</proc/PID/ns/net"
            ))
        })?;
        // The only one that is passed.
        body["device"]["netns"] = "fd:0".into();
        Ok((client.passing(namespace), vm, body))
    }
}

impl Detach {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let path = format!("/v1/ports/{}", escaped(&self.port));
        let client = Client::new(&self.at.socket);
        let answer = block_on(&client, client.request(Method::DELETE, &path, None))?;
        if answer.is_empty() {
            // There is none: the answer to reading it says so.
            block_on(&client, client.get_json(&path))?;
        }
        let changed = || client.parse(answer.as_bytes()).map(|changed| format_result(&changed, "no changes"));
        Ok(if self.at.json { answer + "\n" } else { changed()? })
    }
}

impl Set {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let keys = keys::parse(&self.keys).map_err(CliError::Usage)?;
        config::parse_port_keys_json(&keys.to_string(), "set")?;
        let path = format!("/v1/ports/{}", escaped(&self.port));
        let none = "no changes";
        self.at.request(Method::PATCH, &path, Some(&keys), |changed: ChangeResult| format_result(&changed, none))
    }
}

impl Flush {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let mut body = json!({});
        for (key, value) in [
            ("network_id", self.network.clone()),
            ("port_id", self.port.clone()),
            ("mac_address", self.mac.map(|mac| mac.to_string())),
        ] {
            if let Some(value) = value {
                body[key] = value.into();
            }
        }
        self.at.request(Method::POST, "/v1/fdb/flush", Some(&body), |Flushed { flushed }| match flushed {
            1 => "flushed 1 entry\n".to_owned(),
            _ => format!("flushed {flushed} entries\n"),
        })
    }
}

impl Release {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let path = format!("/v1/ports/{}/release", escaped(&self.port));
        let none = "nothing to release";
        self.at.request(Method::POST, &path, None, |changed: ChangeResult| format_result(&changed, none))
    }
}

impl Connection {
    /// Sends a request; returns the response as text, or as JSON with `--json`.
    pub(super) fn request<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        words: impl FnOnce(T) -> String,
    ) -> Result<String, CliError> {
        self.request_by(&Client::new(&self.socket), method, path, body, words)
    }

    /// The same, by this client.
    fn request_by<T: serde::de::DeserializeOwned>(
        &self,
        client: &Client,
        method: Method,
        path: &str,
        body: Option<&Value>,
        words: impl FnOnce(T) -> String,
    ) -> Result<String, CliError> {
        let answer = block_on(client, client.request(method, path, body))?;
        Ok(if self.json { answer + "\n" } else { words(client.parse(answer.as_bytes())?) })
    }
}

/// Reads a file or standard input.
fn source(file: &Path) -> Result<Source, CliError> {
    if file != Path::new("-") {
        return Ok(Source::read(file)?);
    }
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).map_err(|e| CliError::Usage(format!("cannot read standard input: {e}")))?;
    Ok(Source::of("standard input", bytes)?)
}

/// Checks a part of a configuration; returns it unmodified as JSON.
fn part(file: &Path) -> Result<Value, CliError> {
    let source = source(file)?;
    source.part()?;
    Ok(source.to_json()?)
}

/// Checks a configuration; returns it unmodified as JSON.
fn configuration(file: &Path) -> Result<Value, CliError> {
    let source = source(file)?;
    source.config()?;
    Ok(source.to_json()?)
}

/// Changes and warnings, one per line; `none` if there are no changes.
pub(super) fn format_result(changed: &ChangeResult, none: &str) -> String {
    let mut text = String::new();
    let changes = changed.changes.iter().map(|line| ("", line));
    for (mark, line) in changes.chain(changed.warnings.iter().map(|line| ("note: ", line))) {
        let _ = writeln!(text, "{mark}{}", printable(line.clone()));
    }
    if changed.changes.is_empty() { format!("{none}\n{text}") } else { text }
}

/// Status of a port in one line.
fn port_state(port: &PortView) -> String {
    let status = port.status.name();
    let reason = if port.status_reason.is_empty() { String::new() } else { format!(": {}", port.status_reason) };
    format!("port {} of VM {} is {status}{reason}", port.port_id, port.device_id)
}
