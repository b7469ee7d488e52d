//! DEL and GC: detach containers; and what calls before have left for later.
//!
//! Addresses are released first. A container is removed whether the switch answers or not: a port that cannot be deleted now
//! is recorded as detached, and the next call of the plugin deletes it.

use std::collections::HashSet;
use std::time::Duration;

use super::error::{CniError, code};
use super::interface::Place;
use super::ipam::Ipam;
use super::record::{Locked, Record, Records};
use super::switch::Switch;
use super::version::Command;
use super::{Call, LOCK, SHORT, names};
use crate::time;

/// Maximum records that a call carries out, and time for it: the container of the call waits.
const LATER: (usize, Duration) = (64, Duration::from_secs(3));

impl Call {
    /// Detaches a container. One that is not attached is detached.
    pub(super) fn del(&self) -> Result<(), CniError> {
        let port = self.port_id();
        let records = Records::of(&self.config.state);
        let locked = match records.lock(&port, LOCK) {
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                return Err(CniError::new(code::TRY_AGAIN, e.to_string()));
            }
            // Without a directory for records, only what is not done now is lost.
            locked => locked.map_err(|e| CniError::new(code::IO, e.to_string())),
        };
        let released = self.ipam().and_then(|ipam| ipam.as_ref().map_or(Ok(()), Ipam::del));
        let detached = self.detach(&port, locked);
        self.carry_out(&records);
        // The container's interface ends with its namespace, if not now.
        released.and(detached)
    }

    /// The record of an attachment that has none.
    pub(super) fn new_record(&self, port: &str) -> Record {
        Record {
            port_id: port.to_owned(),
            socket: self.config.socket.clone(),
            owner: self.config.owner.clone(),
            is_detached: false,
            mac: None,
            addressing: None,
        }
    }

    fn detach(&self, port: &str, locked: Result<Locked, CniError>) -> Result<(), CniError> {
        let recorded = locked.as_ref().map_err(Clone::clone).and_then(|locked| {
            let before = locked.read(port);
            // The configuration may have been changed since.
            let record = before.unwrap_or_else(|| self.new_record(port));
            let record = Record { is_detached: true, mac: None, addressing: None, ..record };
            locked.write(&record).map_err(|e| CniError::new(code::IO, e.to_string()))?;
            Ok((record.socket, record.owner))
        });
        let (socket, owner) =
            recorded.clone().unwrap_or_else(|_| (self.config.socket.clone(), self.config.owner.clone()));
        let deleted = Switch::at(&socket, SHORT)?.delete_port(port, &owner);
        if let Some(netns) = &self.environment.netns {
            // That of a VM is the plugin's own; the switch has deleted its own, if it has answered.
            let removed = Place { netns, name: &self.environment.interface, port }.remove();
            if let (Err(e), Ok(())) = (removed, &deleted) {
                super::warn(e);
            }
        }
        match (deleted, recorded) {
            (Ok(()), _) => {
                // A record that stays is carried out once more.
                let _ = locked.map(Locked::remove);
                Ok(())
            }
            (Err(e), Ok(_)) => {
                super::warn(format_args!("{e}; port {port:?} will be deleted by the next call of the plugin"));
                Ok(())
            }
            (Err(e), Err(why)) => Err(CniError::of_switch(&e).with(format!("and it cannot be recorded: {why}"))),
        }
    }

    /// Deletes ports that calls before have recorded as detached, as far as the switch answers.
    pub(super) fn carry_out(&self, records: &Records) {
        let (most, patience) = LATER;
        let until = time::now() + patience;
        let is_detached = |port: &String| records.peek(port).is_some_and(|record| record.is_detached);
        for port in records.ports().into_iter().filter(is_detached).take(most) {
            if until <= time::now() {
                return;
            }
            // A call for the attachment may be running.
            let Some((locked, record)) = records.lock_detached(&port) else { continue };
            let deleted = Switch::at(&record.socket, Duration::ZERO)
                .is_ok_and(|switch| switch.delete_port(&port, &record.owner).is_ok());
            if deleted {
                let _ = locked.remove();
            } else if record.socket == self.config.socket {
                return;
            }
        }
    }

    /// Deletes ports of the network whose attachments the runtime does not list.
    pub(super) fn gc(&self) -> Result<(), CniError> {
        let config = &self.config;
        let Some(valid) = &config.valid_attachments else {
            let message = "GC needs a list of attachments under cni.dev/valid-attachments";
            return Err(CniError::new(code::INVALID_CONFIG, message));
        };
        let valid: HashSet<String> =
            valid.iter().map(|of| names::port_id(&config.name, &of.container, &of.interface)).collect();
        let records = Records::of(&config.state);
        self.carry_out(&records);
        let switch = Switch::at(&config.socket, SHORT)?;
        let prefix = names::prefix(&config.name);
        let of_switch = switch.ports_of(&config.owner).map_err(|e| CniError::of_switch(&e))?;
        let stale: HashSet<String> = of_switch
            .into_iter()
            .chain(records.ports())
            .filter(|port| port.starts_with(&prefix) && !valid.contains(port))
            .collect();
        let mut failures = Vec::new();
        for port in &stale {
            // An attachment that is being made is not listed yet.
            let locked = match records.try_lock(port) {
                Ok(Some(locked)) => locked,
                Ok(None) => continue,
                Err(e) => {
                    failures.push(e.to_string());
                    continue;
                }
            };
            match switch.delete_port(port, &config.owner) {
                Ok(()) => drop(locked.remove()),
                Err(e) => failures.push(e.to_string()),
            }
        }
        if let Some(ipam) = self.ipam()? {
            ipam.call_if_known(Command::Gc)?;
        }
        if failures.is_empty() { Ok(()) } else { Err(CniError::new(code::TRY_AGAIN, failures.join("; "))) }
    }
}
