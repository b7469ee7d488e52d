//! BPF programs, maps and links: the bpf(2) calls, which `rustix` does not provide.
//!
//! A [`Program`] is loaded from instructions, finds its sockets in an [`XskMap`], shares words with this process in a
//! [`SharedArray`], and runs where a [`Link`] attaches it. Each is a file descriptor. A program and a map live as long
//! as something uses them, a link as long as its descriptor. A process that dies in any way leaves nothing attached.
//!
//! Errors carry the kernel's errno (`raw_os_error`). Its meaning depends on the netdev; callers interpret it.

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

/// Name of programs and maps, as listed by `bpftool`.
const NAME: [u8; 16] = *b"vifswitch\0\0\0\0\0\0\0";

/// BPF_PROG_LOAD, of `enum bpf_cmd`
const PROG_LOAD: c_long = 5;

/// The project's licence, in a form that the kernel accepts for all helpers.
const LICENSE: &CStr = c"Dual MIT/GPL";

/// Attributes of PROG_LOAD, as far as used.
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

/// A descriptor as an attribute.
fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// An address as an attribute.
fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// Calls bpf(2). The result is never negative.
///
/// # Safety
///
/// `A` is a prefix of the command's `union bpf_attr`, without padding. Every address in it points to as much memory as
/// the command reads or writes there.
unsafe fn call<A>(command: c_long, attributes: &mut A) -> io::Result<c_int> {
    // SAFETY: bpf(2) reads and writes `size_of::<A>()` bytes of `attributes`; the caller guarantees the rest.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { c_int::try_from(answer).map_err(io::Error::other) }
}

/// Calls bpf(2) with a command that returns a new descriptor; the kernel sets close-on-exec.
///
/// # Safety
///
/// As for [`call`]; and the command returns a new descriptor.
unsafe fn open<A>(command: c_long, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: guaranteed by the caller.
    let fd = unsafe { call(command, attributes) }?;
    // SAFETY: the descriptor is new and owned by no one else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
