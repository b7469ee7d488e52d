//! Common to `packet` and `xdp` devices, whose netdev the switch does not own: enters its namespace and checks it.
//! Changes nothing.

use std::io;

use rustix::io::Errno;

use super::{DeviceLocation, OpenError};
use crate::sys::link::{self, Link};
use crate::sys::netns::within;
use crate::sys::tun;

/// Runs `work` in the namespace of the device.
pub(super) fn in_namespace<T: Send>(
    location: &DeviceLocation,
    work: impl FnOnce() -> Result<T, OpenError> + Send,
) -> Result<T, OpenError> {
    if !tun::is_name(&location.device) {
        let reason = "invalid device name; use 1 to 15 bytes without spaces, '/', ':' and '%'";
        return Err(refused(location, reason));
    }
    within(&location.netns, work).map_err(|source| OpenError::entering(location, source))?
}

/// Finds the netdev, which must be up with carrier; returns it with warnings. `mtu`: the network's.
pub(super) fn find(location: &DeviceLocation, mtu: u16) -> Result<(Link, Vec<String>), OpenError> {
    let found = link::find(&location.device).map_err(failed(location, "finding the netdev"))?;
    let Some(link) = found else { return Err(OpenError::NoDevice { at: location.clone() }) };
    if !link.ethernet {
        return Err(refused(location, "not an Ethernet device; choose another one"));
    }
    if !link.up {
        let reason = format!("link is down; set it up with `ip link set dev {} up` there", location.device);
        return Err(OpenError::Down { at: location.clone(), is_up: false, reason });
    }
    if !link.carrier {
        let reason = "no carrier: its peer is down or not connected".to_owned();
        return Err(OpenError::Down { at: location.clone(), is_up: true, reason });
    }
    let mut warnings = Vec::new();
    // The MTU of a VXLAN netdev depends on its underlay, which may change: see `properties`.
    if link.mtu < mtu.into() && link.vxlan.is_none() {
        warnings.push(format!(
            "{location} has MTU {}, its network has {mtu}: longer frames are dropped; set it with `ip link set dev {} mtu \
             {mtu}`",
            link.mtu, location.device
        ));
    }
    Ok((link, warnings))
}

/// A permanent error.
pub(super) fn refused(location: &DeviceLocation, reason: impl Into<String>) -> OpenError {
    OpenError::Refused { at: location.clone(), reason: reason.into() }
}

/// Error of a system call. ENODEV means that the netdev is gone.
pub(super) fn failed(location: &DeviceLocation, attempt: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let location = location.clone();
    move |source| match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NODEV) => OpenError::NoDevice { at: location },
        _ => OpenError::Io { at: location, attempt, source },
    }
}
