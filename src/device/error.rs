//! Errors of opening a device, each with its remedy.

use std::fmt;
use std::io;

use thiserror::Error;

use crate::sys::netns::{self, Netns};

/// Name and network namespace of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLocation {
    /// Name of the device.
    pub device: String,
    /// Network namespace; it need not exist.
    pub netns: Netns,
}

impl fmt::Display for DeviceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.device, self.netns)
    }
}

/// Errors of [`open`](super::open) and [`preflight`](super::preflight).
#[derive(Debug, Error)]
pub enum OpenError {
    /// The network namespace does not exist; retried when it appears.
    #[error("{at}: no such namespace yet; the device is opened when it appears")]
    NoNamespace {
        /// Device concerned.
        at: DeviceLocation,
    },
    /// The namespace's file exists, but this process sees no namespace mounted on it.
    #[error(
        "{at}: no namespace is bound to the file of its name; if it was created in another mount namespace, which the switch \
         does not see (unshare -m, or PrivateMounts=, PrivateTmp=, ProtectSystem= and the like in its unit), start the switch \
         in the host's mount namespace; if it is just being created, the device is opened when it is complete"
    )]
    Unbound {
        /// Device concerned.
        at: DeviceLocation,
    },
    /// The name leads to another namespace than the one with which the port ends.
    #[error(
        "{at}: the name leads to another network namespace than the one in which the port began; with lifetime = \"netns\" it \
         ends with that one; attach a port for the new one under another id, or when this one is gone"
    )]
    OtherNamespace {
        /// Device concerned.
        at: DeviceLocation,
    },
    /// The netdev does not exist and the switch does not create it; retried when it appears.
    #[error("{at}: no such device yet; it is opened when it appears")]
    NoDevice {
        /// Device concerned.
        at: DeviceLocation,
    },
    /// The netdev is administratively down or has no peer; retried when it is up.
    #[error("{at}: {reason}; the device is opened then")]
    Down {
        /// Device concerned.
        at: DeviceLocation,
        /// True if it is administratively up, and has no peer.
        is_up: bool,
        /// Which part is down.
        reason: String,
    },
    /// Another process or port uses the device; it may become free.
    #[error("{at} is in use by another process or port; end that one or choose another device")]
    Busy {
        /// Device concerned.
        at: DeviceLocation,
    },
    /// These settings cannot work; permanent.
    #[error("{at}: {reason}")]
    Refused {
        /// Device concerned.
        at: DeviceLocation,
        /// Cause and remedy.
        reason: String,
    },
    /// An XDP program of others is attached to the device; it may be detached.
    #[error("{at}: {reason}")]
    Occupied {
        /// Device concerned.
        at: DeviceLocation,
        /// Cause and remedy.
        reason: String,
    },
    /// The process lacks a capability.
    #[error("{at}: {reason}")]
    Denied {
        /// Device concerned.
        at: DeviceLocation,
        /// Cause and remedy.
        reason: String,
    },
    /// A resource of the host is exhausted, or limited for the process.
    #[error("{at}: {reason}")]
    Exhausted {
        /// Device concerned.
        at: DeviceLocation,
        /// Cause and remedy.
        reason: String,
    },
    /// A system call failed.
    #[error("{at}: {attempt} failed: {source}")]
    Io {
        /// Device concerned.
        at: DeviceLocation,
        /// Operation that failed.
        attempt: &'static str,
        /// Error of the system call.
        source: io::Error,
    },
}

impl OpenError {
    /// Error of entering the namespace of a device, or of asking which one it is.
    pub fn entering(at: &DeviceLocation, source: io::Error) -> OpenError {
        let at = at.clone();
        match source.kind() {
            _ if netns::is_unbound(&source) => OpenError::Unbound { at },
            io::ErrorKind::NotFound => OpenError::NoNamespace { at },
            _ => OpenError::Io { at, attempt: "entering the namespace", source },
        }
    }
}
