//! What a driver says of its netdev, by ethtool's ioctl: its name and its queues. In the namespace
//! of the calling thread.

use std::ffi::{CStr, c_void};
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::tun;

/// SIOCETHTOOL, linux/sockios.h
const SIOCETHTOOL: Opcode = 0x8946;

// linux/ethtool.h
const GDRVINFO: u32 = 0x03;
const GCHANNELS: u32 = 0x3c;

/// `struct ethtool_channels`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct ChannelsReply {
    cmd: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_drvinfo`
#[repr(C)]
#[derive(Clone, Copy)]
struct DriverReply {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ifreq` as this ioctl reads it, and what it points to.
#[repr(C)]
struct Request<'a, T> {
    name: [u8; 16],
    reply: &'a mut T,
    rest: [u8; 16],
}

// SAFETY: the opcode reads an `ifreq`, and writes at most the reply that its pointer leads to, which is as
// long as the command in its first word says: the two are put together in this file only.
unsafe impl<T> Ioctl for Request<'_, T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SIOCETHTOOL
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

fn ask<T>(name: &str, reply: &mut T) -> io::Result<()> {
    if !tun::is_name(name) {
        return Err(Errno::NODEV.into());
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request is one that the opcode expects; see the implementation.
    Ok(unsafe { ioctl(&socket, Request { name: padded, reply, rest: [0; 16] }) }?)
}

/// How many receive queues a netdev has now. `None`: its driver does not tell.
pub fn receive_queues(name: &str) -> io::Result<Option<u32>> {
    let mut reply = ChannelsReply { cmd: GCHANNELS, ..ChannelsReply::default() };
    match ask(name, &mut reply) {
        Ok(()) => Ok(Some(reply.rx + reply.combined).filter(|&queues| queues > 0)),
        Err(e) if e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The name of a netdev's driver. `None`: it has none, or does not tell.
pub fn driver(name: &str) -> Option<String> {
    let mut reply = DriverReply { cmd: GDRVINFO, driver: [0; 32], rest: [0; 160] };
    ask(name, &mut reply).ok()?;
    let driver = CStr::from_bytes_until_nul(&reply.driver).ok()?.to_str().ok()?;
    (!driver.is_empty()).then(|| driver.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_an_error() {
        assert!(receive_queues("vift-nothing").is_err());
        assert!(receive_queues("a name that no device can have").is_err());
        assert_eq!(driver("vift-nothing"), None);
    }

    #[test]
    fn the_loopback_has_no_channels() {
        assert_eq!(receive_queues("lo").unwrap(), None);
    }
}
