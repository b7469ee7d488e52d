//! Creates BPF maps with 32-bit keys.

use std::ffi::c_long;
use std::io;
use std::os::fd::OwnedFd;

use super::{NAME, open};

/// BPF_MAP_CREATE, of `enum bpf_cmd`
const MAP_CREATE: c_long = 0;

/// Size of a key, the entry's index, in bytes.
const KEY: u32 = 4;

/// Attributes of MAP_CREATE, as far as used.
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

/// Creates a map of type `kind` (`enum bpf_map_type`) with `entries` entries of `value_size` bytes.
pub(super) fn create(kind: u32, value_size: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes =
        MapAttributes { kind, key_size: KEY, value_size, entries, flags, inner: 0, node: 0, name: NAME };
    // SAFETY: these attributes contain no addresses.
    unsafe { open(MAP_CREATE, &mut attributes) }
}
