//! Attaches XDP programs to netdevs by bpf_link.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::{Program, call, number, open};

// enum bpf_cmd
const LINK_CREATE: c_long = 28;
const LINK_UPDATE: c_long = 29;

/// BPF_XDP, of `enum bpf_attach_type`
const ATTACH_XDP: u32 = 37;
// linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attach {
    /// In the driver, before the kernel allocates an sk_buff.
    Native,
    /// In the network stack; works on any netdev, at a far higher cost per frame.
    Generic,
}

/// A program attached to a netdev for the life of this value.
///
/// While attached, no other program can replace it. If the netdev is deleted, the link remains without a netdev.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// Attributes of LINK_CREATE, as far as used.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    ifindex: u32,
    kind: u32,
    flags: u32,
}
const _: () = assert!(size_of::<LinkAttributes>() == 16);

/// Attributes of LINK_UPDATE.
#[repr(C)]
struct UpdateAttributes {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}
const _: () = assert!(size_of::<UpdateAttributes>() == 16);

impl Link {
    /// Attaches a program to the netdev with this index in the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// EBUSY: a program is attached in the same mode; EEXIST: in another mode. EOPNOTSUPP: the driver has no native
    /// mode. ERANGE: frames may be longer than the program supports; on a veth the peer's MTU counts. EINVAL: no netdev
    /// has this index, or it cannot have a program now. EPERM: CAP_NET_ADMIN is missing.
    pub fn attach(program: &Program, ifindex: u32, attach: Attach) -> io::Result<Link> {
        let flags = match attach {
            Attach::Native => XDP_FLAGS_DRV_MODE,
            Attach::Generic => XDP_FLAGS_SKB_MODE,
        };
        let mut attributes = LinkAttributes { program: number(&program.as_fd()), ifindex, kind: ATTACH_XDP, flags };
        // SAFETY: these attributes contain no addresses.
        unsafe { open(LINK_CREATE, &mut attributes) }.map(Link)
    }

    /// Replaces the attached program atomically. ENOLINK: the netdev is gone.
    pub fn update(&self, program: &Program) -> io::Result<()> {
        let (link, program) = (number(&self.0), number(&program.as_fd()));
        let mut attributes = UpdateAttributes { link, program, flags: 0, old_program: 0 };
        // SAFETY: these attributes contain no addresses.
        unsafe { call(LINK_UPDATE, &mut attributes) }.map(drop)
    }
}
