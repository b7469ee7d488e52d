//! What all ports on netdevs of others begin with: the netdev is found, and nothing about it is changed.

use std::io;

use rustix::io::Errno;

use super::{OpenError, Whereabouts, vxlan};
use crate::sys::link::{self, Link};
use crate::sys::netns::{self, within};
use crate::sys::tun;

/// Does `work` in the namespace of the device.
pub(super) fn visit<T: Send>(
    at: &Whereabouts,
    work: impl FnOnce() -> Result<T, OpenError> + Send,
) -> Result<T, OpenError> {
    if !tun::is_name(&at.device) {
        let reason = "this cannot be the name of a device; use 1 to 15 bytes without spaces, '/', ':' and '%'";
        return Err(refused(at, reason));
    }
    within(&at.netns, work).map_err(|source| match source.kind() {
        _ if netns::is_unbound(&source) => OpenError::Unbound { at: at.clone() },
        io::ErrorKind::NotFound => OpenError::NoNamespace { at: at.clone() },
        _ => OpenError::Io { at: at.clone(), attempt: "entering the namespace", source },
    })?
}

/// The netdev, if frames can flow through it now, and remarks on it. `mtu` is that of its network.
pub(super) fn find(at: &Whereabouts, mtu: u16) -> Result<(Link, Vec<String>), OpenError> {
    let found = link::find(&at.device).map_err(failed(at, "looking for it"))?;
    let Some(link) = found else { return Err(OpenError::NoDevice { at: at.clone() }) };
    if !link.ethernet {
        return Err(refused(at, "it is no Ethernet device, and has no frames; choose another one"));
    }
    if !link.up {
        let reason = format!("its link is down; `ip link set dev {} up` there sets it up", at.device);
        return Err(OpenError::Down { at: at.clone(), reason });
    }
    if !link.carrier {
        let reason = "its link has no carrier, until somebody is at its other end".to_owned();
        return Err(OpenError::Down { at: at.clone(), reason });
    }
    let mut notes = Vec::new();
    if let Some(remark) = vxlan::remark(at, &link, mtu) {
        notes.extend(remark);
    } else if link.mtu < mtu.into() {
        notes.push(format!(
            "{at} has an MTU of {}, and its network one of {mtu}: longer frames do not pass; \
             `ip link set dev {} mtu {mtu}` changes that",
            link.mtu, at.device
        ));
    }
    Ok((link, notes))
}

/// An error that will not go by itself.
pub(super) fn refused(at: &Whereabouts, reason: impl Into<String>) -> OpenError {
    OpenError::Refused { at: at.clone(), reason: reason.into() }
}

/// An error of the system. That the netdev has gone meanwhile is told apart.
pub(super) fn failed(at: &Whereabouts, attempt: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let at = at.clone();
    move |source| match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NODEV) => OpenError::NoDevice { at },
        _ => OpenError::Io { at, attempt, source },
    }
}
