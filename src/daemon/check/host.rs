//! Checks a configuration against the host: cores, paths, namespaces, netdevs, capabilities. Reads /proc and file
//! permissions, binds the addresses of TCP listeners for a moment, and changes nothing.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
use rustix::process::{Resource, getrlimit};

use super::super::{choose_cores, needed, probe_key};
use super::{CheckResult, Severity};
use crate::control::api::socket::is_listened_at;
use crate::control::compile::endpoints::{self, ConfigRef, Endpoint, EndpointAttachment};
use crate::control::compile::ids::IdAllocator;
use crate::control::config::Config;
use crate::device::{self, OpenError, Settings};
use crate::frame::SLOT;
use crate::sys::netns::Netns;
use crate::sys::{memory, privileges};

/// Open files besides device queues: sockets, and a few per worker.
const OTHER_FILES: u64 = 256;

/// Netlink sockets per watched namespace.
const FILES_OF_A_NAMESPACE: u64 = 2;

/// All results, by descending severity.
pub(super) fn check_host(config: &Config) -> Vec<CheckResult> {
    let mut results = Vec::new();
    let endpoints = match endpoints::check_capacity(config) {
        Ok(()) => endpoints::endpoints(config, &IdAllocator::first(config)),
        Err(why) => {
            results.push(result(Severity::InTheWay, "configuration", why));
            Vec::new()
        }
    };
    let running = sockets(config, &mut results);
    cores(config, &mut results);
    if let Some(Err(why)) = config.switch.probe_key.as_deref().map(probe_key::read) {
        let why = why.strip_prefix("switch.probe_key = ").unwrap_or(&why).to_owned();
        results.push(result(Severity::Wrong, "switch.probe_key", why));
    }
    state(config, &mut results);
    pool(config, &mut results);
    files(&endpoints, &mut results);
    rights(config, &endpoints, &mut results);
    if devices(&endpoints).any(|device| matches!(device, Settings::Tap(_))) {
        tun(&mut results);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let Some(device) = endpoint.device() else { continue };
        let is_subport = |other: &Endpoint| matches!(other.attachment, EndpointAttachment::Parent { endpoint, .. } if endpoint == index);
        let adds_tags = match endpoint.config_ref {
            ConfigRef::Uplink { index } => config.uplinks[index].networks.iter().any(|of| of.vlan.is_some()),
            ConfigRef::Port { .. } => endpoints.iter().any(is_subport),
        };
        port(config, endpoint, (device, adds_tags), running, &mut results);
    }
    let warnings = config.lint().into_iter();
    results.extend(warnings.map(|warning| result(Severity::Warning, &warning.about, warning.message)));
    results.sort_by_key(|result| std::cmp::Reverse(result.severity));
    results
}

/// All devices. Subports have none.
fn devices(endpoints: &[Endpoint]) -> impl Iterator<Item = &Settings> {
    endpoints.iter().filter_map(Endpoint::device)
}

fn result(severity: Severity, about: &str, message: impl ToString) -> CheckResult {
    CheckResult { severity, about: about.into(), message: message.to_string() }
}

fn cores(config: &Config, results: &mut Vec<CheckResult>) {
    if let Err(why) = choose_cores(&config.switch) {
        // The message begins with the key, which `about` names already.
        let why = why.strip_prefix("switch.cores = ").unwrap_or(&why).to_owned();
        results.push(result(Severity::Wrong, "switch.cores", why));
    }
}

/// Checks the API's sockets and TCP listeners. Whether a switch listens at the socket for changes.
fn sockets(config: &Config, results: &mut Vec<CheckResult>) -> bool {
    let path = &config.switch.api;
    let shown = path.display();
    let running = match is_listened_at(path) {
        Ok(running) => running,
        Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => {
            let why = format!("{shown} exists and is not a socket; remove it or set another path");
            results.push(result(Severity::InTheWay, "switch.api", why));
            return false;
        }
        Err(why) => {
            results.push(result(Severity::InTheWay, "switch.api", format!("{shown}: {why}")));
            return false;
        }
    };
    if running {
        let why = format!("a switch is already running at {shown}; a second one would not start");
        results.push(result(Severity::Warning, "switch.api", why));
        // It may itself listen at the other addresses.
        return true;
    }
    if let Some(why) = unwritable(path) {
        results.push(result(Severity::InTheWay, "switch.api", why));
    }
    if let Some(path) = &config.switch.api_read
        && let Some(why) = occupied(path).or_else(|| unwritable(path))
    {
        results.push(result(Severity::InTheWay, "switch.api_read", why));
    }
    for (key, address) in [("switch.metrics", config.switch.metrics), ("switch.pages", config.switch.pages)] {
        if let Some(address) = address
            && let Err(why) = try_address(address)
        {
            let why = format!("cannot listen at {address}: {}", std::io::Error::from(why));
            results.push(result(Severity::InTheWay, key, why));
        }
    }
    false
}

/// Why no socket can be made at `path`, because of what is there.
fn occupied(path: &Path) -> Option<String> {
    let shown = path.display();
    match is_listened_at(path) {
        Ok(false) => None,
        Ok(true) => Some(format!("another process listens at {shown}; set another path")),
        Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => {
            Some(format!("{shown} exists and is not a socket; remove it or set another path"))
        }
        Err(why) => Some(format!("{shown}: {why}")),
    }
}

/// Binds an address for a moment, without listening.
fn try_address(address: SocketAddr) -> rustix::io::Result<()> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)
}

/// Why no file can be created at `path`; `None` if one can. Missing directories would be created.
fn unwritable(path: &Path) -> Option<String> {
    let directory = path.ancestors().skip(1).find(|directory| directory.exists())?;
    // A bare file name has the current directory as parent.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    if !directory.is_dir() {
        return Some(format!("{} is not a directory", directory.display()));
    }
    let why = access(directory, Access::WRITE_OK | Access::EXEC_OK).err()?;
    Some(format!("cannot create files in {}: {}", directory.display(), std::io::Error::from(why)))
}

fn state(config: &Config, results: &mut Vec<CheckResult>) {
    let Some(path) = &config.switch.state else { return };
    let why = match fs::metadata(path) {
        Ok(file) if !file.is_file() => Some(format!("{} is not a file", path.display())),
        Ok(_) => access(path, Access::READ_OK | Access::WRITE_OK)
            .err()
            .map(|why| format!("cannot read and write {}: {}", path.display(), std::io::Error::from(why))),
        Err(_) => None,
    };
    if let Some(why) = why.or_else(|| unwritable(path)) {
        results.push(result(Severity::Warning, "switch.state", format!("{why}; state would not be stored")));
    }
}

fn pool(config: &Config, results: &mut Vec<CheckResult>) {
    let needed = u64::from(config.switch.frames) * SLOT as u64;
    let Some((ordinary, huge)) = memory::available() else { return };
    if needed > ordinary.max(huge) {
        let (needed, ordinary) = (needed >> 20, ordinary >> 20);
        let why = format!(
            "{} frames may need {needed} MiB, but {ordinary} MiB are available; reduce switch.frames, or the kernel may \
             kill the switch",
            config.switch.frames
        );
        results.push(result(Severity::Warning, "switch.frames", why));
    }
}

fn files(endpoints: &[Endpoint], results: &mut Vec<CheckResult>) {
    let namespaces: HashSet<_> = devices(endpoints).map(Settings::netns).collect();
    let needed = devices(endpoints).map(Settings::files).sum::<u64>()
        + FILES_OF_A_NAMESPACE * namespaces.len() as u64
        + OTHER_FILES;
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|&limit| limit < needed) {
        let why = format!("up to {needed} open files needed, but the limit is {limit}; raise it (ulimit -n)");
        results.push(result(Severity::Warning, "open files", why));
    }
}

/// Capabilities that this configuration needs and the process lacks.
fn rights(config: &Config, endpoints: &[Endpoint], results: &mut Vec<CheckResult>) {
    let namespaces = || devices(endpoints).map(Settings::netns);
    for privilege in needed(&config.switch) {
        let of_use = match privilege {
            privileges::NET_ADMIN => !endpoints.is_empty(),
            privileges::NET_RAW => devices(endpoints).any(Settings::is_foreign),
            privileges::IPC_LOCK => {
                let is_limited = getrlimit(Resource::Memlock).current.is_some();
                is_limited && devices(endpoints).any(|device| matches!(device, Settings::Xdp(_)))
            }
            privileges::BPF => devices(endpoints).any(|device| match device {
                Settings::Xdp(_) => true,
                Settings::Packet(packet) => packet.isolate,
                _ => false,
            }),
            privileges::PERFMON => devices(endpoints).any(|device| matches!(device, Settings::Xdp(_))),
            privileges::SYS_ADMIN => namespaces().any(|netns| *netns != Netns::Host),
            privileges::SYS_PTRACE => {
                namespaces().any(|netns| matches!(netns, Netns::At(path) if path.starts_with("/proc")))
            }
            _ => true,
        };
        if of_use && !privilege.is_held() {
            let why = format!("missing; without it, {}", privilege.without);
            results.push(result(Severity::Warning, privilege.name, why));
        }
    }
}

fn tun(results: &mut Vec<CheckResult>) {
    let path = "/dev/net/tun";
    let why = match fs::metadata(path) {
        Ok(file) if !file.file_type().is_char_device() => "not a character device".to_owned(),
        Ok(_) => match access(path, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => return,
            Err(why) => std::io::Error::from(why).to_string(),
        },
        Err(why) => why.to_string(),
    };
    results.push(result(Severity::Warning, path, format!("{why}; without it, taps cannot be created or opened")));
}

fn port(
    config: &Config,
    endpoint: &Endpoint,
    (device, adds_tags): (&Settings, bool),
    running: bool,
    results: &mut Vec<CheckResult>,
) {
    let about = match endpoint.labels(config).vm {
        Some(vm) => format!("{endpoint} (VM {vm:?})"),
        None => endpoint.to_string(),
    };
    match device::preflight(device, adds_tags) {
        Ok(warnings) => results.extend(warnings.iter().map(|warning| result(Severity::Warning, &about, warning))),
        // Most likely by the running switch, which reports it itself if not.
        Err(OpenError::Busy { .. }) if running => {}
        Err(why) => results.push(result(Severity::Warning, &about, format!("would be DOWN: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_checked_by_its_nearest_directory() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(unwritable(&file), None);
        assert_eq!(unwritable(&directory.path().join("new/newer/file")), None);
        assert!(unwritable(&file.join("below")).unwrap().contains("not a directory"));
        assert_eq!(unwritable(Path::new("name")), None);
    }

    #[test]
    fn an_address_in_use_is_reported() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(try_address(address).is_err());
        drop(listener);
        assert_eq!(try_address(address), Ok(()));
    }
}
