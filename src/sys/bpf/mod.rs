//! XDP programs, and what they are attached to netdevs with: bpf(2), of which `rustix` has nothing.
//!
//! A [`Program`] is loaded from instructions, finds its sockets in an [`XskMap`], has words in common with us
//! in a [`SharedArray`], and runs wherever a [`Link`] attaches it. Each of these is a file descriptor: a program and a map live as long as
//! something uses them, a link as long as its descriptor. So a process that dies, however it dies,
//! leaves nothing attached.
//!
//! Errors carry the errno of the kernel (`raw_os_error`): what it means depends on the netdev, and is
//! for those to say who know it.

use std::ffi::{CStr, c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

mod array;
mod btf;
mod info;
mod ingress;
mod link;
mod map;
mod program;
mod xskmap;

pub use array::SharedArray;
pub use btf::KernelFunction;
pub use info::is_ours;
pub use ingress::IngressDrop;
pub use link::{Attach, Link};
pub use program::{Arrival, Instruction, LoadError, Program, Ran, XDP_DROP, XDP_PASS, XDP_REDIRECT};
pub use xskmap::XskMap;

/// What programs and maps are called where people list them, as `bpftool` does.
const NAME: [u8; 16] = *b"vifswitch\0\0\0\0\0\0\0";

/// BPF_PROG_LOAD, of `enum bpf_cmd`
const PROG_LOAD: c_long = 5;

/// The project's own licence in the words of the kernel, for which it is one of those that may call
/// every helper.
const LICENSE: &CStr = c"Dual MIT/GPL";

/// The attributes of PROG_LOAD, as far as we have any.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}
const _: () = assert!(size_of::<LoadAttributes>() == 72);

/// The number of a descriptor, as attributes say it.
fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Where something is, as attributes say it.
fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// Has the kernel carry out a command. Its answer is never negative.
///
/// # Safety
///
/// `A` is the beginning of what `union bpf_attr` is for the command, without gaps. Every address in it
/// leads to as much memory as the command reads or writes there.
unsafe fn call<A>(command: c_long, attributes: &mut A) -> io::Result<c_int> {
    // SAFETY: bpf(2) reads and writes so many bytes of `attributes`; the rest is the caller's promise.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { c_int::try_from(answer).map_err(io::Error::other) }
}

/// Carries out a command that opens a descriptor. Like all that bpf(2) opens, it is closed on exec.
///
/// # Safety
///
/// As for [`call`]; and the command is one that answers with a new descriptor.
unsafe fn open<A>(command: c_long, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises.
    let fd = unsafe { call(command, attributes) }?;
    // SAFETY: the kernel has just opened it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
