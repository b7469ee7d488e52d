//! Reads the kernel's information about a loaded BPF program.

use std::ffi::c_long;
use std::io;

use super::program::InfoAttributes;
use super::{NAME, address, call, number, open};

// enum bpf_cmd
const PROG_GET_FD_BY_ID: c_long = 13;
const OBJ_GET_INFO_BY_FD: c_long = 15;

/// Attributes of PROG_GET_FD_BY_ID.
#[repr(C)]
struct IdAttributes {
    id: u32,
    next: u32,
    flags: u32,
}
const _: () = assert!(size_of::<IdAttributes>() == 12);

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    code: [u64; 2],
    load_time: u64,
    user: u32,
    maps: u32,
    map_ids: u64,
    name: [u8; 16],
}
const INFO: u32 = 80;
const _: () = assert!(size_of::<Info>() == INFO as usize);

/// Whether the program with this id belongs to a vifswitch, by its name. Needs CAP_SYS_ADMIN.
pub fn is_ours(program: u32) -> io::Result<bool> {
    let mut attributes = IdAttributes { id: program, next: 0, flags: 0 };
    // SAFETY: these attributes contain no addresses.
    let program = unsafe { open(PROG_GET_FD_BY_ID, &mut attributes) }?;
    let mut info = Info {
        kind: 0,
        id: 0,
        tag: [0; 8],
        lengths: [0; 2],
        code: [0; 2],
        load_time: 0,
        user: 0,
        maps: 0,
        map_ids: 0,
        name: [0; 16],
    };
    let mut attributes = InfoAttributes { fd: number(&program), size: INFO, info: address(&raw mut info) };
    // SAFETY: the kernel reads and writes `size` bytes of `info`, which outlives the call. The lengths in it are zero,
    // so that it writes no instructions or map ids.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info.name == NAME)
}
