//! Why a port or uplink has its status: a code for programs, a text for people.

use std::fmt;
use std::io;

use serde::Serialize;
use utoipa::ToSchema;

use crate::device::OpenError;
use crate::device::properties::{Outdated, OutdatedKind};

/// Why a port or uplink has its status. The set is closed: each reason has one of these codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// ACTIVE, without warnings.
    Ok,
    /// ACTIVE, with warnings.
    Warning,
    /// An uplink that is ACTIVE while another one of its group forwards.
    Backup,
    /// Its device is being opened for the first time.
    #[default]
    Opening,
    /// Its device is closed, to be opened with other settings.
    Reopening,
    /// The call that opens its device has not returned in time.
    OpenOverdue,
    /// `admin_state_up` is false.
    AdminDown,
    /// The parent of this subport is not ACTIVE; its code says why.
    ParentDown,
    /// Its network namespace does not exist.
    NoNamespace,
    /// The file of its network namespace exists, and the switch sees no namespace bound to it.
    NamespaceUnbound,
    /// Its network namespace, with which it ends, exists, and the name leads to none or another one.
    NamespaceUnnamed,
    /// Its network namespace, with which it ends, has ended: it is about to be removed.
    NamespaceEnded,
    /// Its netdev does not exist.
    NoDevice,
    /// Its netdev is set down.
    LinkDown,
    /// Its netdev has no carrier: the other end is down or not connected.
    NoCarrier,
    /// Another process, port or program uses its device.
    InUse,
    /// The switch lacks a capability for its device.
    NoPermission,
    /// The host is out of memory, descriptors, queues or locked memory.
    NoResources,
    /// Its device does not suit its settings.
    DeviceUnsuitable,
    /// A system call for its device failed.
    DeviceError,
    /// Its worker polls as many queues as it can.
    WorkerFull,
    /// The mitigation of loops and storms has quarantined it.
    Quarantined,
    /// It does not exist any more: it was removed while a request waited for it.
    Removed,
}

impl ReasonCode {
    /// All codes.
    pub const ALL: [ReasonCode; 23] = {
        use ReasonCode::*;
        [
            Ok,
            Warning,
            Backup,
            Opening,
            Reopening,
            OpenOverdue,
            AdminDown,
            ParentDown,
            NoNamespace,
            NamespaceUnbound,
            NamespaceUnnamed,
            NamespaceEnded,
            NoDevice,
            LinkDown,
            NoCarrier,
            InUse,
            NoPermission,
            NoResources,
            DeviceUnsuitable,
            DeviceError,
            WorkerFull,
            Quarantined,
            Removed,
        ]
    };

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            ReasonCode::Ok => "ok",
            ReasonCode::Warning => "warning",
            ReasonCode::Backup => "backup",
            ReasonCode::Opening => "opening",
            ReasonCode::Reopening => "reopening",
            ReasonCode::OpenOverdue => "open_overdue",
            ReasonCode::AdminDown => "admin_down",
            ReasonCode::ParentDown => "parent_down",
            ReasonCode::NoNamespace => "no_namespace",
            ReasonCode::NamespaceUnbound => "namespace_unbound",
            ReasonCode::NamespaceUnnamed => "namespace_unnamed",
            ReasonCode::NamespaceEnded => "namespace_ended",
            ReasonCode::NoDevice => "no_device",
            ReasonCode::LinkDown => "link_down",
            ReasonCode::NoCarrier => "no_carrier",
            ReasonCode::InUse => "in_use",
            ReasonCode::NoPermission => "no_permission",
            ReasonCode::NoResources => "no_resources",
            ReasonCode::DeviceUnsuitable => "device_unsuitable",
            ReasonCode::DeviceError => "device_error",
            ReasonCode::WorkerFull => "worker_full",
            ReasonCode::Quarantined => "quarantined",
            ReasonCode::Removed => "removed",
        }
    }
}

/// Why a port or uplink has its status. Displays as the text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reason {
    /// For programs.
    pub code: ReasonCode,
    /// For people; empty while nothing is known but the code.
    pub text: String,
}

impl Reason {
    /// A reason with this text.
    pub fn new(code: ReasonCode, text: impl Into<String>) -> Reason {
        Reason { code, text: text.into() }
    }

    /// The administrative state is down.
    pub fn admin_down() -> Reason {
        Reason::new(ReasonCode::AdminDown, "administratively down")
    }

    /// The first attempt to open the device has not ended.
    pub fn opening() -> Reason {
        Reason::new(ReasonCode::Opening, "being opened")
    }

    /// The parent of a subport is down for this reason.
    pub fn parent_down(parent: impl fmt::Display, why: &Reason) -> Reason {
        Reason::new(ReasonCode::ParentDown, format!("its parent, {parent}, is down: {why}"))
    }

    /// An ACTIVE port with these warnings.
    pub fn active(warnings: String) -> Reason {
        let code = if warnings.is_empty() { ReasonCode::Ok } else { ReasonCode::Warning };
        Reason::new(code, warnings)
    }

    /// Whether nothing is known yet: the device has not been tried.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&OpenError> for Reason {
    fn from(error: &OpenError) -> Reason {
        let code = match error {
            OpenError::NoNamespace { .. } => ReasonCode::NoNamespace,
            OpenError::Unbound { .. } => ReasonCode::NamespaceUnbound,
            OpenError::OtherNamespace { .. } => ReasonCode::NamespaceUnnamed,
            OpenError::NoDevice { .. } => ReasonCode::NoDevice,
            OpenError::Down { is_up: false, .. } => ReasonCode::LinkDown,
            OpenError::Down { is_up: true, .. } => ReasonCode::NoCarrier,
            OpenError::Busy { .. } | OpenError::Occupied { .. } => ReasonCode::InUse,
            OpenError::Refused { .. } => ReasonCode::DeviceUnsuitable,
            OpenError::Denied { .. } => ReasonCode::NoPermission,
            OpenError::Exhausted { .. } => ReasonCode::NoResources,
            OpenError::Io { source, .. } => of_io(source),
        };
        Reason::new(code, error.to_string())
    }
}

/// Code of a failed system call.
fn of_io(error: &io::Error) -> ReasonCode {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => ReasonCode::NoPermission,
        Some(
            libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC | libc::E2BIG | libc::EAGAIN,
        ) => ReasonCode::NoResources,
        Some(libc::EBUSY) => ReasonCode::InUse,
        _ => ReasonCode::DeviceError,
    }
}

impl From<Outdated> for Reason {
    fn from(outdated: Outdated) -> Reason {
        let code = match outdated.kind {
            OutdatedKind::Gone => ReasonCode::NoDevice,
            OutdatedKind::LinkDown => ReasonCode::LinkDown,
            OutdatedKind::Changed => ReasonCode::Reopening,
        };
        Reason::new(code, outdated.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceLocation;
    use crate::sys::netns::Netns;

    #[test]
    fn names_are_those_in_json() {
        for code in ReasonCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
            assert_eq!(ReasonCode::ALL.iter().filter(|other| other.name() == code.name()).count(), 1, "{code:?}");
        }
    }

    #[test]
    fn failures_of_opening_have_codes() {
        let at = || DeviceLocation { device: "eth1".into(), netns: Netns::Host };
        let io = |errno| OpenError::Io { at: at(), attempt: "trying", source: io::Error::from_raw_os_error(errno) };
        let reason = || "why".to_owned();
        for (error, code) in [
            (OpenError::NoNamespace { at: at() }, "no_namespace"),
            (OpenError::Unbound { at: at() }, "namespace_unbound"),
            (OpenError::OtherNamespace { at: at() }, "namespace_unnamed"),
            (OpenError::NoDevice { at: at() }, "no_device"),
            (OpenError::Down { at: at(), is_up: false, reason: reason() }, "link_down"),
            (OpenError::Down { at: at(), is_up: true, reason: reason() }, "no_carrier"),
            (OpenError::Busy { at: at() }, "in_use"),
            (OpenError::Occupied { at: at(), reason: reason() }, "in_use"),
            (OpenError::Refused { at: at(), reason: reason() }, "device_unsuitable"),
            (OpenError::Denied { at: at(), reason: reason() }, "no_permission"),
            (OpenError::Exhausted { at: at(), reason: reason() }, "no_resources"),
            (io(libc::EPERM), "no_permission"),
            (io(libc::EMFILE), "no_resources"),
            (io(libc::EBUSY), "in_use"),
            (io(libc::EIO), "device_error"),
        ] {
            let found = Reason::from(&error);
            assert_eq!((found.code.name(), &found.text), (code, &error.to_string()));
        }
    }
}
