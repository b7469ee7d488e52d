//! A tcx program that drops a netdev's received frames before the network stack and after packet sockets.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Instruction, LICENSE, LoadAttributes, NAME, PROG_LOAD, address, number, open};

// enum bpf_cmd
const LINK_CREATE: c_long = 28;

/// BPF_PROG_TYPE_SCHED_CLS
const TYPE_SCHED_CLS: u32 = 3;
/// BPF_TCX_INGRESS, of `enum bpf_attach_type`
const ATTACH_TCX_INGRESS: u32 = 46;

/// `return TC_ACT_SHOT`
const PROGRAM: [Instruction; 2] = [Instruction::new(0xb7, 0, 0, 0, 2), Instruction::new(0x95, 0, 0, 0, 0)];

/// Attributes of LINK_CREATE for tcx. Trailing zeros mean: after all programs present, at any revision.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    ifindex: u32,
    kind: u32,
    flags: u32,
    relative: u32,
    _gap: u32,
    revision: u64,
}
const _: () = assert!(size_of::<LinkAttributes>() == 32);

/// While this exists, no frame that the netdev receives reaches the network stack: no protocol, bridge or VLAN
/// interface on it. Ends with the process, unless a copy of its descriptor is kept elsewhere. More than one may be attached.
#[derive(Debug)]
pub struct IngressDrop {
    link: OwnedFd,
}

impl IngressDrop {
    /// Attaches it to the netdev with this index in the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// EINVAL: the kernel has no tcx (before Linux 6.6). EPERM: CAP_BPF or CAP_NET_ADMIN is missing.
    pub fn attach(ifindex: u32) -> io::Result<IngressDrop> {
        let mut attributes = LoadAttributes {
            kind: TYPE_SCHED_CLS,
            count: 2,
            code: address(PROGRAM.as_ptr()),
            license: address(LICENSE.as_ptr()),
            name: NAME,
            ..LoadAttributes::default()
        };
        // SAFETY: the kernel reads two instructions and a zero-terminated string; both are constants.
        let program = unsafe { open(PROG_LOAD, &mut attributes) }?;
        let (program, kind) = (number(&program), ATTACH_TCX_INGRESS);
        let mut attributes = LinkAttributes { program, ifindex, kind, flags: 0, relative: 0, _gap: 0, revision: 0 };
        // SAFETY: these attributes contain no addresses.
        let link = unsafe { open(LINK_CREATE, &mut attributes) }?;
        Ok(IngressDrop { link })
    }
}

impl AsFd for IngressDrop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}
