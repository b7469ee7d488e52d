//! The parts of a report: answers of the switch, and what the host has.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;

use super::super::block_on;
use super::{Content, MAX_PART};
use crate::control::api::client::Client;
use crate::control::config::{Source, SwitchSettings};
use crate::control::state::store;
use crate::device::DeviceLocation;
use crate::device::doctor::inspect;
use crate::sys::netns::{self, Netns, within};
use crate::sys::{cores, link};

/// Answers of the API: name of the part, and path.
pub(super) const REQUESTS: &[(&str, &str)] = &[
    ("configuration.json", "/v1/config"),
    ("status.json", "/v1/status"),
    ("log.json", "/v1/log"),
    ("confirm.json", "/v1/confirm"),
    ("ports.json", "/v1/ports"),
    ("uplinks.json", "/v1/uplinks"),
    ("networks.json", "/v1/networks"),
    ("vms.json", "/v1/vms"),
    ("workers.json", "/v1/workers"),
    ("drops.json", "/v1/drops"),
    ("storms.json", "/v1/storms"),
    ("loops.json", "/v1/loops"),
    ("audit.json", "/v1/audit"),
    ("events.jsonl", "/v1/events"),
    ("metrics.txt", "/metrics"),
];

/// Maximum number of netdevs that `doctor` inspects.
const MAX_INSPECTED: usize = 64;

/// Maximum number of namespaces that are listed.
const MAX_NAMESPACES: usize = 1024;

/// Maximum bytes of a file below /proc or /sys.
const MAX_FILE: u64 = 64 << 10;

pub(super) fn version() -> Content {
    Ok(format!("vifswitch {}\n", env!("CARGO_PKG_VERSION")).into_bytes())
}

/// One answer of the API.
pub(super) fn request(socket: &Path, path: &str) -> Content {
    let client = Client::new(socket);
    let (body, is_cut) = block_on(&client, client.get_at_most(path, MAX_PART)).map_err(|e| e.to_string())?;
    if is_cut { Err(format!("it has more than {} MiB", MAX_PART >> 20)) } else { Ok(body) }
}

/// The file as JSON, without comments: they may have secrets that no key names.
pub(super) fn configuration_file(path: &Path) -> Content {
    let source = source(path)?;
    // The text of an error may quote a secret.
    let raw = source.to_json().map_err(|errors| {
        let place = |line: Option<usize>| line.map_or(String::new(), |line| format!(", line {line}"));
        let first = errors.errors().first();
        format!("{}{}: {}", path.display(), place(first.and_then(|first| first.line)), errors.kind())
    })?;
    Ok(raw.to_string().into_bytes())
}

fn source(path: &Path) -> Result<Source, String> {
    let failed = |e: io::Error| format!("{}: {e}", path.display());
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_PART as u64 {
        return Err(format!("{}: not a file of at most {} MiB", path.display(), MAX_PART >> 20));
    }
    Source::read(path).map_err(|errors| format!("{}: {}", path.display(), errors.kind()))
}

/// What is known of the state file without opening it as a switch does.
pub(super) fn state_file(config: &Path) -> Content {
    let source = source(config).ok();
    let valid = source.as_ref().and_then(|source| source.config().ok()).map(|config| config.switch.state);
    let mut text = String::new();
    let path = valid.unwrap_or_else(|| {
        // An invalid configuration may still name the state.
        let named = source.and_then(|source| source.to_json().ok());
        let named = named.and_then(|json| Some(PathBuf::from(json["switch"]["state"].as_str()?)));
        let which = if named.is_some() { "the state that it names" } else { "the default state" };
        let _ = writeln!(text, "the configuration file is invalid or cannot be read; this is {which}");
        named.map_or_else(|| SwitchSettings::default().state, |path| Some(path).filter(|path| path != Path::new("")))
    });
    let Some(path) = path else { return Ok(b"the configuration file keeps no state\n".to_vec()) };
    for beside in ["", "-wal", "-shm"] {
        let mut file = path.clone().into_os_string();
        file.push(beside);
        let file = PathBuf::from(file);
        // Writing to a string does not fail.
        let _ = match fs::metadata(&file) {
            Ok(of) => {
                let mode = of.permissions().mode();
                writeln!(text, "{}: {} bytes, mode {mode:o}, owner {}:{}", file.display(), of.len(), of.uid(), of.gid())
            }
            Err(e) => writeln!(text, "{}: {e}", file.display()),
        };
    }
    let _ = match store::peek(&path) {
        Ok(Some(desired)) => writeln!(text, "readable; generation {}", desired.generation),
        Ok(None) => writeln!(text, "readable; it has no configuration"),
        Err(e) => writeln!(text, "not readable: {e}"),
    };
    Ok(text.into_bytes())
}

/// The process that listens at the socket.
pub(super) fn process(socket: &Path) -> Content {
    let stream = UnixStream::connect(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
    let peer = socket_peercred(&stream).map_err(|e| e.to_string())?;
    let directory = PathBuf::from(format!("/proc/{}", peer.pid.as_raw_nonzero()));
    let mut text = String::new();
    for name in ["cmdline", "status", "limits", "stat", "sched", "wchan"] {
        excerpt(&mut text, &directory.join(name));
    }
    let open = fs::read_dir(directory.join("fd")).map(|entries| entries.count());
    let _ = match open {
        Ok(open) => writeln!(text, "==> {open} open files"),
        Err(e) => writeln!(text, "==> open files: {e}"),
    };
    Ok(text.into_bytes())
}

/// Kernel, processors and memory. Not the kernel's command line, which may have secrets.
pub(super) fn kernel() -> Content {
    let mut text = format!("cores of this process: {:?}\n", cores::allowed());
    for path in [
        "/proc/version",
        "/etc/os-release",
        "/sys/devices/system/cpu/isolated",
        "/proc/sys/net/core/bpf_jit_enable",
        "/proc/sys/net/bridge/bridge-nf-call-iptables",
        "/proc/meminfo",
        "/proc/softirqs",
        "/proc/net/softnet_stat",
        "/proc/cpuinfo",
    ] {
        excerpt(&mut text, Path::new(path));
    }
    Ok(text.into_bytes())
}

/// All netdevs of the host's namespace.
pub(super) fn links() -> Content {
    let links = within(&Netns::Host, link::all).and_then(|links| links).map_err(|e| e.to_string())?;
    let mut text = String::new();
    for (name, link) in links {
        let _ = writeln!(text, "{name:?}: {link:?}");
    }
    Ok(text.into_bytes())
}

/// Names of namespaces, each with its identity.
pub(super) fn namespaces() -> Content {
    let entries = fs::read_dir(netns::NAMED).map_err(|e| format!("{}: {e}", netns::NAMED))?;
    let mut text = String::new();
    for entry in entries.filter_map(Result::ok).take(MAX_NAMESPACES) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let _ = writeln!(text, "{name:?}: {:?}", Netns::Named(name.clone()).identity());
    }
    Ok(text.into_bytes())
}

/// What `doctor` says of the netdevs of the host's namespace.
pub(super) fn doctor() -> Content {
    let links = within(&Netns::Host, link::all).and_then(|links| links).map_err(|e| e.to_string())?;
    let ethernet: Vec<String> = links.into_iter().filter(|(_, link)| link.ethernet).map(|(name, _)| name).collect();
    let mut text = String::new();
    for device in ethernet.iter().take(MAX_INSPECTED) {
        let _ = writeln!(text, "{}", inspect(&DeviceLocation { device: device.clone(), netns: Netns::Host }));
    }
    if ethernet.len() > MAX_INSPECTED {
        let _ = writeln!(text, "and {} more", ethernet.len() - MAX_INSPECTED);
    }
    Ok(text.into_bytes())
}

/// Appends the beginning of a file, or why it cannot be read.
fn excerpt(text: &mut String, path: &Path) {
    let read = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned())
    });
    let _ = match read {
        Ok(read) => writeln!(text, "==> {}\n{read}\n", path.display()),
        Err(e) => writeln!(text, "==> {}: {e}\n", path.display()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_file_that_cannot_be_parsed_is_named_by_its_line_without_its_text() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vifswitch.toml");
        fs::write(&file, "[switch]\nprobe_key = hunter2hunter2\n").unwrap();
        let error = configuration_file(&file).unwrap_err();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
        fs::write(&file, "# hunter2hunter2\n[switch]\nframes = 2048\n").unwrap();
        assert_eq!(configuration_file(&file).unwrap(), br#"{"switch":{"frames":2048}}"#);
        assert!(configuration_file(directory.path()).unwrap_err().contains("not a file"));
    }

    #[test]
    fn a_state_that_is_none_is_described() {
        let directory = tempfile::tempdir().unwrap();
        let (file, state) = (directory.path().join("vifswitch.toml"), directory.path().join("state.db"));
        fs::write(&file, format!("[switch]\nstate = {:?}\n", state.display().to_string())).unwrap();
        fs::write(&state, "not a database, but long enough to be taken for one by its size").unwrap();
        let text = String::from_utf8(state_file(&file).unwrap()).unwrap();
        assert!(text.contains("63 bytes") && text.contains("not readable"), "{text}");
    }

    #[test]
    fn the_state_of_an_invalid_configuration_is_the_one_that_it_names() {
        let directory = tempfile::tempdir().unwrap();
        let (file, state) = (directory.path().join("vifswitch.toml"), directory.path().join("state.db"));
        let described = |text: &str| {
            fs::write(&file, text).unwrap();
            String::from_utf8(state_file(&file).unwrap()).unwrap()
        };
        let text = described(&format!("[switch]\nstate = {:?}\nframes = -1\n", state.display().to_string()));
        assert!(text.contains("the state that it names") && text.contains(&state.display().to_string()), "{text}");
        assert_eq!(described("[switch]\nstate = \"\"\nframes = -1\n"), "the configuration file keeps no state\n");
        let text = described("[switch");
        let default = SwitchSettings::default().state.unwrap();
        assert!(text.contains("the default state") && text.contains(&default.display().to_string()), "{text}");
    }

    #[test]
    fn what_the_host_has_is_read() {
        for (part, word) in [(kernel(), "MemAvailable"), (version(), env!("CARGO_PKG_VERSION"))] {
            let text = String::from_utf8(part.unwrap()).unwrap();
            assert!(text.contains(word), "{text}");
        }
    }
}
