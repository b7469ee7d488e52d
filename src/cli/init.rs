//! `vifswitch init`: writes a commented configuration from what this host has. Reads cores, memory, netdevs and namespaces;
//! changes nothing, and overwrites no file.

mod text;

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::CliError;
use super::table::printable;
use crate::device::DeviceLocation;
use crate::device::doctor::{Report, inspect};
use crate::sys::link::{self, Link};
use crate::sys::netns::{self, Netns, within};
use crate::sys::{cores, memory, stack};

/// Maximum number of netdevs of each sort, and of namespaces, that the file describes.
const MOST: usize = 32;

/// The arguments of `init`.
#[derive(Debug, Args)]
pub struct Init {
    /// File to create, which must not exist; `-` for standard output
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
}

/// What the host has.
#[derive(Debug, Default)]
struct Host {
    name: String,
    /// Cores that this process may use.
    cores: Vec<usize>,
    /// Cores that the kernel leaves to those who ask for them.
    isolated: Vec<usize>,
    /// Available bytes, and free bytes of huge pages.
    memory: Option<(u64, u64)>,
    /// Netdevs without addresses of the host that are no taps.
    candidates: Vec<Netdev>,
    /// Names of Ethernet netdevs that the host uses, each with the reason.
    in_use: Vec<(String, String)>,
    /// Taps of the host's namespace.
    taps: Vec<Netdev>,
    namespaces: Vec<Namespace>,
    /// What has been left out or could not be read.
    omitted: Vec<String>,
}

/// A netdev of the host's namespace.
#[derive(Debug)]
struct Netdev {
    report: Report,
    /// It belongs to hardware.
    is_physical: bool,
}

/// A named namespace.
#[derive(Debug)]
struct Namespace {
    name: String,
    /// Its netdevs but the loopback; an error if it could not be entered.
    netdevs: Result<Vec<String>, String>,
}

impl Init {
    /// Writes the file, or returns its text.
    pub fn run(&self) -> Result<String, CliError> {
        let text = text::configuration(&Host::read());
        if self.file == Path::new("-") {
            return Ok(text);
        }
        // Its keys may be secret one day: readable by the owner and the group only, as the packages install it.
        let created = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&self.file);
        let written = created.and_then(|mut file| file.write_all(text.as_bytes()));
        let path = self.file.display();
        written.map_err(|e| {
            let text = match e.kind() {
                io::ErrorKind::AlreadyExists => format!("{path}: exists already; name another file, or `-` to print"),
                _ => format!("{path}: {e}"),
            };
            CliError::Output(io::Error::new(e.kind(), text))
        })?;
        Ok(format!("{path}: written; `vifswitch check {path}` checks it\n"))
    }
}

impl Host {
    fn read() -> Host {
        let line = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let mut host = Host {
            name: line("/proc/sys/kernel/hostname"),
            cores: cores::allowed(),
            isolated: core_list(&line("/sys/devices/system/cpu/isolated")),
            memory: memory::available(),
            ..Host::default()
        };
        host.read_netdevs();
        host.read_namespaces();
        host
    }

    fn read_netdevs(&mut self) {
        let read = within(&Netns::Host, || Ok((link::all()?, stack::addresses().unwrap_or_default())));
        let (links, addresses) = match read.and_then(|read: io::Result<_>| read) {
            Ok(read) => read,
            Err(e) => return self.omitted.push(format!("netdevs: {e}")),
        };
        let used = used(&addresses);
        let (mut candidates, mut taps) = (Vec::new(), Vec::new());
        for (name, link) in links.into_iter().filter(|(_, link)| link.ethernet) {
            let reason = reason(&link, &used);
            match (link.tap.is_some(), reason) {
                (_, Some(reason)) => self.in_use.push((name, reason)),
                (true, None) => taps.push(name),
                (false, None) => candidates.push(name),
            }
        }
        let is_physical = |name: &str| Path::new("/sys/class/net").join(name).join("device").exists();
        candidates.sort_by_key(|name| !is_physical(name));
        let netdev = |device: String| {
            let is_physical = is_physical(&device);
            Netdev { report: inspect(&DeviceLocation { device, netns: Netns::Host }), is_physical }
        };
        self.candidates = self.at_most("netdevs", candidates).into_iter().map(netdev).collect();
        self.taps = self.at_most("taps", taps).into_iter().map(netdev).collect();
        let in_use = std::mem::take(&mut self.in_use);
        self.in_use = self.at_most("netdevs in use", in_use);
    }

    fn read_namespaces(&mut self) {
        let mut names: Vec<String> = match fs::read_dir(netns::NAMED) {
            Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return self.omitted.push(format!("namespaces in {}: {e}", netns::NAMED)),
        };
        names.sort();
        let read = |name: String| {
            let links = within(&Netns::Named(name.clone()), link::all).and_then(|links| links);
            let names = links.map(|links| links.into_iter().filter(|(_, link)| link.ethernet).map(|(name, _)| name));
            Namespace { name, netdevs: names.map(Iterator::collect).map_err(|e| e.to_string()) }
        };
        self.namespaces = self.at_most("namespaces", names).into_iter().map(read).collect();
    }

    /// The first ones; notes how many are left out.
    fn at_most<T>(&mut self, what: &str, mut all: Vec<T>) -> Vec<T> {
        if all.len() > MOST {
            self.omitted.push(format!("{} {what} more than the {MOST} described here", all.len() - MOST));
            all.truncate(MOST);
        }
        all
    }
}

/// Interface indexes of netdevs with an address other than a link-local one.
fn used(addresses: &[(u32, IpAddr)]) -> HashSet<u32> {
    let is_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    addresses.iter().filter(|(_, address)| !is_local(address)).map(|(index, _)| *index).collect()
}

/// Why a netdev is none that a switch should take over.
fn reason(link: &Link, used: &HashSet<u32>) -> Option<String> {
    if used.contains(&link.index) {
        return Some("it has addresses of this host".into());
    }
    (link.master != 0).then(|| "it belongs to a bridge or a bond".into())
}

/// Cores of a list as the kernel prints it: `1-3,7`.
fn core_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok().filter(|&last: &usize| last < cores::MAX_CORES)?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// A text for a comment: one line.
fn comment(text: &str) -> String {
    printable(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_parsed() {
        assert_eq!(core_list(""), [0_usize; 0]);
        assert_eq!(core_list("1-3,7"), [1, 2, 3, 7]);
        assert_eq!(core_list("0-99999999999,x,5"), [5]);
    }

    #[test]
    fn netdevs_that_the_host_uses_are_no_candidates() {
        let addresses = [(2, "10.0.0.1"), (3, "fe80::1"), (4, "2001:db8::1"), (5, "169.254.0.1")];
        let used = used(&addresses.map(|(index, address)| (index, address.parse().unwrap())));
        let link = |index, master| Link { index, master, ethernet: true, ..Link::default() };
        for (index, master, is_used) in
            [(2, 0, true), (3, 0, false), (4, 0, true), (5, 0, false), (6, 2, true), (7, 0, false)]
        {
            assert_eq!(reason(&link(index, master), &used).is_some(), is_used, "{index}");
        }
    }

    #[test]
    fn more_than_can_be_described_is_said() {
        let mut host = Host::default();
        assert_eq!(host.at_most("taps", vec![0; MOST]).len(), MOST);
        assert!(host.omitted.is_empty());
        assert_eq!(host.at_most("taps", vec![0; MOST + 5]).len(), MOST);
        assert!(host.omitted[0].starts_with("5 taps"), "{:?}", host.omitted);
    }
}
