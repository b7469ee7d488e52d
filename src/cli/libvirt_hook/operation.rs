//! Operations on a domain, as libvirt names them (<https://libvirt.org/hooks.html>).

use std::io::Read;

use super::LibvirtHook;
use super::domain::{Domain, MAX_LEN};
use super::edit::Edit;
use super::error::HookError;
use super::port::{self, Attach};
use super::records::{Record, Records};
use super::switch::Switch;

/// An operation on a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is to be started; nothing is made yet.
    Prepare,
    /// Its taps are made; QEMU does not run yet.
    Start,
    /// It runs, and libvirtd has been restarted.
    Reconnect,
    /// QEMU has ended, however.
    Stopped,
    /// All that it used is released; also after a start that failed.
    Release,
    /// It comes from another host. The XML on standard output would replace its own.
    Migrate,
    /// Nothing is to be done: `started`, `restore`, `attach`, and what later versions of libvirt have.
    Other,
}

impl Operation {
    /// The one with this name.
    pub fn named(name: &str) -> Operation {
        match name {
            "prepare" => Operation::Prepare,
            "start" => Operation::Start,
            "reconnect" => Operation::Reconnect,
            "stopped" => Operation::Stopped,
            "release" => Operation::Release,
            "migrate" => Operation::Migrate,
            _ => Operation::Other,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Prepare => "prepare",
            Operation::Start => "start",
            Operation::Reconnect => "reconnect",
            Operation::Stopped => "stopped",
            Operation::Release => "release",
            Operation::Migrate => "migrate",
            Operation::Other => "other",
        }
    }

    /// Whether an error ends it. A failed `reconnect` would end a running VM.
    pub fn may_fail(self) -> bool {
        matches!(self, Operation::Prepare | Operation::Start)
    }

    /// Carries it out. A domain without ports of the switch is left alone, whatever the state of the switch.
    pub fn carry_out(self, hook: &LibvirtHook, name: &str, input: impl Read) -> Result<(), HookError> {
        if self == Operation::Other {
            return Ok(());
        }
        let domain = Domain::parse(&read(input)?).map_err(HookError::Domain)?;
        let records = Records::of(&hook.records);
        // Its metadata may have been taken away while it ran.
        let ends = matches!(self, Operation::Stopped | Operation::Release);
        if domain.ports.is_empty() && !(ends && records.has(&domain.uuid)) {
            return Ok(());
        }
        // A migrated domain may get another name: the hook's argument is the one that it has here.
        let domain = Domain { name: name.to_owned(), ..domain };
        let records = records.lock()?;
        let known = records.read(&domain.uuid).unwrap_or_else(|| Record::of(&domain));
        let ports = |how| port::ports(&domain, how).map_err(HookError::Domain);
        let vm = domain.name.clone();
        match self {
            Operation::Migrate => records.write(&domain.uuid, &Record { incoming: true, ..known }),
            Operation::Prepare => {
                ports(Attach::Check)?;
                let (incoming, gone) = (known.incoming, known.gone);
                records.write(&domain.uuid, &Record { incoming, gone, starting: true, ..Record::of(&domain) })
            }
            Operation::Start | Operation::Reconnect => {
                let is_running = self == Operation::Reconnect;
                let how = match (is_running, known.incoming) {
                    (true, _) => Attach::Running,
                    (false, true) => Attach::Incoming,
                    (false, false) => Attach::Boot,
                };
                Switch::of(hook)?.edit(&records, &Edit::Put { vm, ports: ports(how)?, is_running })?;
                records.remove(&domain.uuid)
            }
            Operation::Stopped | Operation::Release => {
                // If the switch does not answer, the next call finds this record.
                records.write(&domain.uuid, &Record { vm: vm.clone(), gone: true, ..Record::default() })?;
                Switch::of(hook)?.edit(&records, &Edit::Remove { vm })?;
                records.remove(&domain.uuid)
            }
            Operation::Other => Ok(()),
        }
    }
}

/// Reads the domain's XML, which libvirt writes to standard input.
fn read(input: impl Read) -> Result<String, HookError> {
    let mut xml = String::new();
    let limit = u64::try_from(MAX_LEN).unwrap_or(u64::MAX).saturating_add(1);
    let read = input.take(limit).read_to_string(&mut xml);
    read.map_err(|e| HookError::Domain(format!("cannot read the domain's XML from standard input: {e}")))?;
    Ok(xml)
}
