//! Common first step of `packet` and `xdp` ports: finds the netdev, without changing it.

use std::io;

use rustix::io::Errno;

use super::{DeviceLocation, OpenError, vxlan};
use crate::sys::link::{self, Link};
use crate::sys::netns::{self, within};
use crate::sys::tun;

/// Does `work` in the namespace of the device.
pub(super) fn in_namespace<T: Send>(
    location: &DeviceLocation,
    work: impl FnOnce() -> Result<T, OpenError> + Send,
) -> Result<T, OpenError> {
    if !tun::is_name(&location.device) {
        let reason = "this cannot be the name of a device; use 1 to 15 bytes without spaces, '/', ':' and '%'";
        return Err(refused(location, reason));
    }
    within(&location.netns, work).map_err(|source| match source.kind() {
        _ if netns::is_unbound(&source) => OpenError::Unbound { at: location.clone() },
        io::ErrorKind::NotFound => OpenError::NoNamespace { at: location.clone() },
        _ => OpenError::Io { at: location.clone(), attempt: "entering the namespace", source },
    })?
}

/// The netdev, if frames can flow through it now, and remarks on it. `mtu` is that of its network.
pub(super) fn find(location: &DeviceLocation, mtu: u16) -> Result<(Link, Vec<String>), OpenError> {
    let found = link::find(&location.device).map_err(failed(location, "looking for it"))?;
    let Some(link) = found else { return Err(OpenError::NoDevice { at: location.clone() }) };
    if !link.ethernet {
        return Err(refused(location, "it is no Ethernet device, and has no frames; choose another one"));
    }
    if !link.up {
        let reason = format!("its link is down; `ip link set dev {} up` there sets it up", location.device);
        return Err(OpenError::Down { at: location.clone(), reason });
    }
    if !link.carrier {
        let reason = "its link has no carrier, until somebody is at its other end".to_owned();
        return Err(OpenError::Down { at: location.clone(), reason });
    }
    let mut notes = Vec::new();
    if let Some(warning) = vxlan::warning(location, &link, mtu) {
        notes.extend(warning);
    } else if link.mtu < mtu.into() {
        notes.push(format!(
            "{location} has an MTU of {}, and its network one of {mtu}: longer frames do not pass; \
             `ip link set dev {} mtu {mtu}` changes that",
            link.mtu, location.device
        ));
    }
    Ok((link, notes))
}

/// An error that will not go by itself.
pub(super) fn refused(location: &DeviceLocation, reason: impl Into<String>) -> OpenError {
    OpenError::Refused { at: location.clone(), reason: reason.into() }
}

/// An error of the system. That the netdev has gone meanwhile is told apart.
pub(super) fn failed(location: &DeviceLocation, attempt: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let location = location.clone();
    move |source| match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NODEV) => OpenError::NoDevice { at: location },
        _ => OpenError::Io { at: location, attempt, source },
    }
}
