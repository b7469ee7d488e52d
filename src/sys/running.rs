//! Reads whether a netdev is running (ioctl SIOCGIFFLAGS). Does not block: the kernel takes no lock for it.

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

// linux/sockios.h
const SIOCGIFNAME: Opcode = 0x8910;
const SIOCGIFFLAGS: Opcode = 0x8913;

/// IFF_RUNNING, linux/if.h
const RUNNING: u16 = 1 << 6;

/// Handle to query one netdev by interface index, after renames and from any namespace.
#[derive(Debug)]
pub struct Running {
    socket: OwnedFd,
    index: u32,
}

/// `struct ifreq` with the union as bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct IfReq {
    name: [u8; 16],
    data: [u8; 24],
}

/// One of the two requests. The output is the structure as written by the kernel.
struct Request {
    opcode: Opcode,
    request: IfReq,
}

// SAFETY: both opcodes read and write one whole `struct ifreq`, which has 40 bytes on all 64-bit platforms.
unsafe impl Ioctl for Request {
    type Output = IfReq;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.request).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, filled: *mut c_void) -> rustix::io::Result<IfReq> {
        // SAFETY: `filled` is the pointer from `as_ptr`, to a structure without invalid values.
        Ok(unsafe { filled.cast::<IfReq>().read() })
    }
}

impl Running {
    /// Creates a handle for the netdev with this index in the calling thread's namespace.
    pub fn new(index: u32) -> io::Result<Running> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Running { socket, index })
    }

    /// IFF_RUNNING: administratively up and operational. Also true if the netdev is gone or cannot be read; other code
    /// detects that.
    pub fn is_running(&self) -> bool {
        let mut request = IfReq { name: [0; 16], data: [0; 24] };
        request.data[..4].copy_from_slice(&self.index.to_ne_bytes());
        let Ok(named) = self.query(SIOCGIFNAME, request) else { return true };
        let Ok(message) = self.query(SIOCGIFFLAGS, IfReq { data: [0; 24], ..named }) else { return true };
        u16::from_ne_bytes([message.data[0], message.data[1]]) & RUNNING != 0
    }

    fn query(&self, opcode: Opcode, request: IfReq) -> io::Result<IfReq> {
        // SAFETY: `Request` is built with an opcode that its implementation is valid for.
        Ok(unsafe { ioctl(&self.socket, Request { opcode, request }) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::link;
    use crate::sys::netns::{Netns, within};

    #[test]
    fn a_netdev_is_running_while_it_and_its_peer_are_up() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: needs root, to make a namespace");
        }
        let ns = format!("vift-running-{}", std::process::id());
        let ip = |arguments: &str| {
            let done = std::process::Command::new("ip").args(arguments.split(' ')).output().unwrap();
            assert!(done.status.success(), "{arguments}: {done:?}");
        };
        ip(&format!("netns add {ns}"));
        ip(&format!("-n {ns} link add v0 type veth peer name v1"));
        let netns = Netns::Named(ns.clone());
        let running = within(&netns, || Running::new(link::find("v0").unwrap().unwrap().index).unwrap()).unwrap();
        let mut seen = vec![running.is_running()];
        for command in ["set dev v0 up", "set dev v1 up", "set dev v1 down", "set dev v1 up", "set dev v0 down"] {
            ip(&format!("-n {ns} link {command}"));
            // The kernel propagates a carrier change asynchronously.
            let expected = matches!(command, "set dev v1 up");
            let start = crate::time::now();
            while running.is_running() != expected {
                assert!(crate::time::now().since(start).as_secs() < 20, "{command}");
                std::thread::yield_now();
            }
            seen.push(running.is_running());
        }
        ip(&format!("-n {ns} link del v0"));
        let is_known = running.is_running();
        ip(&format!("netns del {ns}"));
        assert_eq!(seen, [false, false, true, false, true, false]);
        assert!(is_known, "a deleted netdev reports running");
    }
}
