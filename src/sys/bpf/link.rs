//! Attaches a BPF program to a netdev.

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

/// Where in the way of a frame a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attach {
    /// In the driver, before there is anything but bytes.
    Native,
    /// In the network stack, which any netdev has. Each frame costs more by far.
    Generic,
}

/// A program on a netdev, for as long as this is held.
///
/// Nobody can put another in its place meanwhile. When the netdev is deleted the link stays, and is
/// attached to nothing.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// The attributes of LINK_CREATE, as far as we have any.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    ifindex: u32,
    kind: u32,
    flags: u32,
}
const _: () = assert!(size_of::<LinkAttributes>() == 16);

/// The attributes of LINK_UPDATE.
#[repr(C)]
struct UpdateAttributes {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}
const _: () = assert!(size_of::<UpdateAttributes>() == 16);

impl Link {
    /// Attaches a program to the netdev with this index in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// EBUSY: a program is there already, in the same mode; EEXIST: in the other one. EOPNOTSUPP: the
    /// driver has no native mode. ERANGE: frames may be longer than the program is ready for; on a
    /// veth it is the MTU of the peer that counts. EINVAL: no netdev has this index, or it is one of
    /// those that cannot have a program now. EPERM: CAP_NET_ADMIN is missing.
    pub fn attach(program: &Program, ifindex: u32, attach: Attach) -> io::Result<Link> {
        let flags = match attach {
            Attach::Native => XDP_FLAGS_DRV_MODE,
            Attach::Generic => XDP_FLAGS_SKB_MODE,
        };
        let mut attributes = LinkAttributes { program: number(&program.as_fd()), ifindex, kind: ATTACH_XDP, flags };
        // SAFETY: there are no addresses in these attributes.
        unsafe { open(LINK_CREATE, &mut attributes) }.map(Link)
    }

    /// Puts another program in the place of the one that is attached. Each frame meets one or the
    /// other. ENOLINK: the netdev is gone.
    pub fn update(&self, program: &Program) -> io::Result<()> {
        let (link, program) = (number(&self.0), number(&program.as_fd()));
        let mut attributes = UpdateAttributes { link, program, flags: 0, old_program: 0 };
        // SAFETY: there are no addresses in these attributes.
        unsafe { call(LINK_UPDATE, &mut attributes) }.map(drop)
    }
}
