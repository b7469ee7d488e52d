//! Scripts of an interface (`<script path=…/>`), which libvirt calls when it has made a tap and before it deletes it: also when
//! a NIC is plugged or unplugged, of which no hook is told. They get the name of the tap and nothing else.
//!
//! The port is in the metadata of a running domain. libvirtd has it in a file, since it must not be asked while it waits. While
//! a domain starts, its taps are left to `start`, which attaches all ports in one request.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::LibvirtHook;
use super::domain::{Domain, MAX_LEN};
use super::edit::Edit;
use super::error::HookError;
use super::port::{Attach, Declared};
use super::records::Records;
use super::switch::Switch;
use crate::wire::Mac;

/// Where the kernel shows netdevs of the namespace.
const NETDEVS: &str = "/sys/class/net";

/// Maximum domains of a host.
const MAX_DOMAINS: usize = 16_384;

/// A tap was made: attaches its port, unless its domain is being started.
pub fn up(hook: &LibvirtHook, tap: &str) -> Result<(), HookError> {
    let mac = address(Path::new(NETDEVS), tap)?;
    let records = Records::of(&hook.records).lock()?;
    if records.all().iter().any(|(_, record)| record.awaits_tap(mac)) {
        return Ok(());
    }
    let (domain, port) = find(&running(&hook.domains)?, tap, mac).map_err(HookError::Domain)?;
    let port = port.on(&domain, Some(tap), Attach::Running).map_err(HookError::Domain)?;
    Switch::of(hook)?.edit(&records, &Edit::Add { vm: domain.name, port })
}

/// A tap goes: deletes its port. One that stays, since the switch does not answer, is found without netdev by the next call.
pub fn down(hook: &LibvirtHook, tap: &str) -> Result<(), HookError> {
    check_name(tap)?;
    let records = Records::of(&hook.records).lock()?;
    Switch::of(hook)?.edit(&records, &Edit::RemoveDevice { dev: tap.to_owned() })
}

/// Checks that this is the name of a netdev, before it becomes part of a path.
fn check_name(tap: &str) -> Result<(), HookError> {
    let is_name = (1..=15).contains(&tap.len()) && tap != "." && tap != "..";
    if is_name && tap.chars().all(|c| c != '/' && !c.is_whitespace() && !c.is_control()) {
        return Ok(());
    }
    Err(HookError::Domain(format!("{tap:?} is not the name of a netdev; libvirt gives that of the tap")))
}

/// MAC address of a netdev.
fn address(netdevs: &Path, tap: &str) -> Result<Mac, HookError> {
    check_name(tap)?;
    let path = netdevs.join(tap).join("address");
    let text = fs::read_to_string(&path).map_err(HookError::file("read", &path))?;
    text.trim().parse().map_err(|_| HookError::Domain(format!("{tap:?} has no MAC address; it is no Ethernet device")))
}

/// Running domains with ports, by the files of libvirtd. One that cannot be read is passed over.
fn running(directory: &Path) -> Result<Vec<Domain>, HookError> {
    let entries = fs::read_dir(directory).map_err(HookError::file("read", directory))?;
    let domain = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let mut xml = String::new();
        let is_xml = path.extension().is_some_and(|ending| ending == "xml");
        let limit = u64::try_from(MAX_LEN).unwrap_or(u64::MAX);
        is_xml.then(|| File::open(&path).and_then(|file| file.take(limit).read_to_string(&mut xml)))?.ok()?;
        Domain::parse(&xml).ok().filter(|domain| !domain.ports.is_empty())
    };
    Ok(entries.take(MAX_DOMAINS).filter_map(domain).collect())
}

/// The port of a tap: one that no other tap of its domain has already.
fn find(domains: &[Domain], tap: &str, mac: Mac) -> Result<(Domain, Declared), String> {
    let is_free = |domain: &Domain, port: &Declared| {
        domain.interface(port.mac).map_or(true, |(_, interface)| interface.dev.as_deref().is_none_or(|dev| dev == tap))
    };
    let ports = domains.iter().flat_map(|domain| domain.ports.iter().map(move |port| (domain, port)));
    let mut found = ports.filter(|(domain, port)| port.may_be_of_tap(mac) && is_free(domain, port));
    match (found.next(), found.next()) {
        (Some((domain, port)), None) => Ok((domain.clone(), port.clone())),
        (Some((one, port)), Some((other, second))) => Err(format!(
            "tap {tap:?} may be of port {:?} (domain {:?}) or of port {:?} (domain {:?}): their MAC addresses differ in the \
             first octet at most; give one of them another address",
            port.id, one.name, second.id, other.name
        )),
        (None, _) => {
            let rest = mac.to_string();
            Err(format!(
                "no running domain has a port in its metadata for the MAC address ??{} of tap {tap:?}; add it with `virsh \
                 metadata DOMAIN {} --live --config --key vs --set …` before the interface is attached",
                rest.get(2..).unwrap_or_default(),
                super::domain::NAMESPACE
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = include_str!("../../../tests/golden/libvirt/status.xml");

    fn mac(text: &str) -> Mac {
        text.parse().unwrap()
    }

    #[test]
    fn the_port_of_a_tap_is_in_the_file_of_its_domain() {
        let directory = tempfile::tempdir().unwrap();
        let plugged =
            STATUS.replace("</vs:ports>", "<vs:port id='vm1-d' mac='52:54:00:00:01:0d' network='net1'/></vs:ports>");
        fs::write(directory.path().join("vm1.xml"), &plugged).unwrap();
        fs::write(directory.path().join("vm1.pid"), "7").unwrap();
        fs::write(directory.path().join("broken.xml"), "<").unwrap();
        let domains = running(directory.path()).unwrap();
        assert_eq!(domains.len(), 1);
        let (domain, port) = find(&domains, "vnet7", mac("fe:54:00:00:01:0d")).unwrap();
        assert_eq!((domain.name.as_str(), port.id.as_str()), ("vm1", "vm1-d"));
        // a repeat for a tap that the domain has already
        assert_eq!(find(&domains, "vnet0", mac("fe:54:00:00:01:0a")).unwrap().1.id, "vm1-a");
        // the same address on another tap
        let error = find(&domains, "vnet7", mac("fe:54:00:00:01:0a")).unwrap_err();
        assert!(error.contains("??:54:00:00:01:0a") && error.contains("virsh metadata"), "{error}");
        fs::write(directory.path().join("vm2.xml"), plugged.replace("vm1", "vm2")).unwrap();
        let error = find(&running(directory.path()).unwrap(), "vnet7", mac("fe:54:00:00:01:0d")).unwrap_err();
        assert!(error.contains("vm1-d") && error.contains("vm2-d"), "{error}");
    }

    #[test]
    fn only_a_name_of_a_netdev_becomes_part_of_a_path() {
        for wrong in ["", ".", "..", "../x", "a/b", "a b", "a\n", "sixteen-bytes-is"] {
            let error = address(Path::new("/sys/class/net"), wrong).unwrap_err();
            assert!(error.to_string().contains("not the name of a netdev"), "{wrong:?}: {error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let error = address(directory.path(), "vnet7").unwrap_err().to_string();
        assert!(error.contains("vnet7/address"), "{error}");
        fs::create_dir(directory.path().join("vnet7")).unwrap();
        fs::write(directory.path().join("vnet7/address"), "fe:54:00:00:01:0a\n").unwrap();
        assert_eq!(address(directory.path(), "vnet7").unwrap(), mac("fe:54:00:00:01:0a"));
        fs::write(directory.path().join("vnet7/address"), "\n").unwrap();
        assert!(address(directory.path(), "vnet7").unwrap_err().to_string().contains("no MAC address"));
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = running(Path::new("/nowhere/libvirt")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/libvirt"), "{error}");
    }
}
