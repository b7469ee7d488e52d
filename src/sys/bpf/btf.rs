//! BTF, the kernel's description of its types and functions: finds the id by which a program calls a kernel function.
//!
//! See `Documentation/bpf/btf.rst` of the kernel.

use std::sync::LazyLock;

/// BTF of the running kernel. Absent without CONFIG_DEBUG_INFO_BTF.
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;

/// BTF_KIND_FUNC
const FUNCTION: u32 = 12;

/// A kernel function callable by programs (kfunc).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelFunction(i32);

impl KernelFunction {
    /// `bpf_xdp_metadata_rx_vlan_tag`, which reads a frame's VLAN tag from the driver's receive metadata (Linux 6.8).
    /// `None`: the kernel has no such function or no BTF. Looked up once.
    pub fn rx_vlan_tag() -> Option<KernelFunction> {
        static FOUND: LazyLock<Option<KernelFunction>> = LazyLock::new(|| {
            let described = std::fs::read(KERNEL).ok()?;
            function_id(&described, b"bpf_xdp_metadata_rx_vlan_tag").map(KernelFunction)
        });
        *FOUND
    }

    /// By BTF id, for tests of generated programs.
    #[cfg(test)]
    pub const fn with_btf_id(id: i32) -> KernelFunction {
        KernelFunction(id)
    }

    /// BTF id of the function.
    pub const fn btf_id(self) -> i32 {
        self.0
    }
}

/// BTF id of a function by name. `None` if not found or malformed.
fn function_id(btf: &[u8], name: &[u8]) -> Option<i32> {
    let word = |at: usize| btf.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    if btf.get(..2)?.try_into().ok().map(u16::from_ne_bytes)? != MAGIC {
        return None;
    }
    let header = word(4)?;
    let section = |offset: usize, len: usize| {
        let start = header.checked_add(word(offset)?)? as usize;
        btf.get(start..start.checked_add(word(len)? as usize)?)
    };
    let (mut types, names) = (section(8, 12)?, section(16, 20)?);
    let mut id = 0;
    while !types.is_empty() {
        id += 1;
        let field = |at: usize| types.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let (name_at, info) = (field(0)? as usize, field(4)?);
        let kind = info >> 24 & 0x1f;
        if kind == FUNCTION {
            let rest = names.get(name_at..)?;
            if rest.starts_with(name) && rest.get(name.len()) == Some(&0) {
                return Some(id);
            }
        }
        types = types.get(12 + more_bytes(kind, (info & 0xffff) as usize)?..)?;
    }
    None
}

/// Bytes after the 12-byte `struct btf_type` of this kind, with `members` members.
fn more_bytes(kind: u32, members: usize) -> Option<usize> {
    match kind {
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7..=12 | 16 | 18 => Some(0),
        // integer, variable, declaration tag
        1 | 14 | 17 => Some(4),
        // array
        3 => Some(12),
        // enumeration, prototype
        6 | 13 => Some(8 * members),
        // structure, union, data section, enumeration of 64 bits
        4 | 5 | 15 | 19 => Some(12 * members),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// BTF with these types: name, kind, number of members, following bytes.
    fn described(types: &[(&str, u32, u32, usize)]) -> Vec<u8> {
        let (mut records, mut names) = (Vec::new(), vec![0]);
        for &(name, kind, members, more) in types {
            records.extend((names.len() as u32).to_ne_bytes());
            records.extend((kind << 24 | members).to_ne_bytes());
            records.extend(vec![0; 4 + more]);
            names.extend(name.bytes().chain([0]));
        }
        let sizes = [24, 0, records.len() as u32, records.len() as u32, names.len() as u32];
        let sizes = sizes.into_iter().flat_map(u32::to_ne_bytes);
        MAGIC.to_ne_bytes().into_iter().chain([1, 0]).chain(sizes).chain(records).chain(names).collect()
    }

    #[test]
    fn a_function_is_found_after_types_of_every_kind() {
        let kinds = [(1, 0, 4), (2, 0, 0), (3, 0, 12), (4, 3, 36), (6, 2, 16), (13, 5, 40), (14, 0, 4), (19, 1, 12)];
        let mut types: Vec<_> =
            kinds.into_iter().map(|(kind, members, more)| ("wanted", kind, members, more)).collect();
        types.extend([("wanted_not", FUNCTION, 0, 0), ("wante", FUNCTION, 0, 0), ("wanted", FUNCTION, 0, 0)]);
        assert_eq!(function_id(&described(&types), b"wanted"), Some(11));
        assert_eq!(function_id(&described(&types), b"other"), None);
        types.insert(0, ("", 31, 0, 0));
        assert_eq!(function_id(&described(&types), b"wanted"), None, "types after an unknown kind are not found");
    }

    proptest! {
        #[test]
        fn any_btf_is_parsed_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..200, at in 0usize..200, with: u8
        ) {
            let mut torn = described(&[("a", 4, 1, 12), ("wanted", FUNCTION, 0, 0)]);
            torn.truncate(cut);
            if let Some(byte) = torn.get_mut(at) {
                *byte = with;
            }
            let _ = function_id(&torn, b"wanted");
            let _ = function_id(&bytes, b"wanted");
        }
    }
}
