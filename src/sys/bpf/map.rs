//! Creates BPF maps of any kind.

use std::ffi::c_long;
use std::io;
use std::os::fd::OwnedFd;

use super::{NAME, open};

/// Of `enum bpf_cmd`.
const MAP_CREATE: c_long = 0;

/// Bytes of a key: the number of an entry.
const KEY: u32 = 4;

/// The attributes of MAP_CREATE, as far as we have any.
#[repr(C)]
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; 16],
}
const _: () = assert!(size_of::<MapAttributes>() == 44);

/// A map of this kind (`enum bpf_map_type`) with entries of so many bytes, numbered from 0 on.
pub(super) fn create(kind: u32, value_size: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes =
        MapAttributes { kind, key_size: KEY, value_size, entries, flags, inner: 0, node: 0, name: NAME };
    // SAFETY: there are no addresses in these attributes.
    unsafe { open(MAP_CREATE, &mut attributes) }
}
