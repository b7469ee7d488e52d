//! Keys of devices, by kind. Names must be valid for the kernel: an unchecked error would appear only when half of the
//! devices are open.

use super::error::{kind, quoted};
use super::lowering::Lowering;
use super::model::{Device, Packet, Tap, Xdp};
use super::raw;
use crate::device::xdp::Mode;

/// `IFNAMSIZ` without its final zero.
const LONGEST_NAME: usize = 15;
/// The kernel's `MAX_TAP_QUEUES`, more than NICs have.
const MOST_QUEUES: u16 = 256;

/// Keys of some kinds: the key, its kinds, and why not others.
const OF_SOME: &[(&str, &[&str], &str)] = &[
    ("queues", &["tap", "xdp"], "one socket receives from all queues of the netdev"),
    ("offloads", &["tap", "packet"], "AF_XDP has no virtio_net_hdr; offloads are completed in software"),
    ("isolate", &["packet"], "its frames never reach the host's network stack"),
    ("persist", &["tap"], "others own its netdev and delete it"),
    ("mode", &["xdp"], "it has a single mode"),
    ("replace_xdp_program", &["xdp"], "it attaches no XDP program"),
];

impl Lowering<'_, '_> {
    /// Device of the port or uplink with this id.
    pub fn device(&mut self, raw: Option<&raw::Device>, id: &str) -> Device {
        let empty = raw::Device::default();
        if raw.is_none() && self.is_missing("device") {
            self.report("device", kind::MISSING, r#"required; for a tap: device = { kind = "tap" }"#);
        }
        let mut at = Lowering { path: self.path.key("device"), diagnostics: self.diagnostics };
        read(raw.unwrap_or(&empty), id, &mut at)
    }
}

fn read(raw: &raw::Device, id: &str, at: &mut Lowering<'_, '_>) -> Device {
    let kind = match raw.kind.as_deref() {
        Some(kind) if Device::KINDS.contains(&kind) => Some(kind),
        Some("vhost-user") => {
            let kinds = raw::list(Device::KINDS.iter());
            at.report("kind", kind::NOT_YET, format!("not supported yet; this version supports {kinds}"));
            None
        }
        Some(_) => {
            let kinds = raw::list(Device::KINDS.iter());
            at.report("kind", kind::BAD_VALUE, format!("no such kind of device; this version supports {kinds}"));
            None
        }
        None => {
            if at.is_missing("kind") {
                let kinds = raw::list(Device::KINDS.iter());
                at.report("kind", kind::MISSING, format!("required; this version supports {kinds}"));
            }
            None
        }
    };
    if let Some(kind) = kind {
        refuse_keys_of_others(raw, kind, at);
    }
    let netns = netns(raw, at);
    match kind {
        Some("xdp") => Device::Xdp(Xdp {
            name: given_name(raw, at),
            netns,
            queues: raw.queues.map(|queues| at.number("queues", Some(queues), 1..=MOST_QUEUES, 1)),
            mode: at.keyword("mode", raw.mode.as_deref(), Mode::Auto),
            replace_xdp_program: raw.replace_xdp_program.unwrap_or(false),
        }),
        Some("packet") => Device::Packet(Packet {
            name: given_name(raw, at),
            netns,
            offloads: raw.offloads.unwrap_or(true),
            isolate: raw.isolate.unwrap_or(false),
        }),
        // An unknown kind is validated as the most frequent one.
        _ => Device::Tap(Tap {
            name: name(raw, id, at),
            netns,
            queues: at.number("queues", raw.queues, 1..=MOST_QUEUES, 1),
            offloads: raw.offloads.unwrap_or(true),
            persist: raw.persist.unwrap_or(true),
        }),
    }
}

/// Reports keys that this kind does not support.
fn refuse_keys_of_others(raw: &raw::Device, this: &str, at: &mut Lowering<'_, '_>) {
    let is_written = |key| match key {
        "queues" => raw.queues.is_some(),
        "offloads" => raw.offloads.is_some(),
        "isolate" => raw.isolate.is_some(),
        "persist" => raw.persist.is_some(),
        "mode" => raw.mode.is_some(),
        _ => raw.replace_xdp_program.is_some(),
    };
    for (key, kinds, why) in OF_SOME.iter().filter(|(key, kinds, _)| !kinds.contains(&this) && is_written(key)) {
        let kinds = raw::list(kinds.iter());
        let message = format!("a device of kind {this:?} has no {key}, only kind {kinds}: {why}; remove the key");
        at.report(key, kind::CONTRADICTION, message);
    }
}

fn netns(raw: &raw::Device, at: &mut Lowering<'_, '_>) -> Option<String> {
    raw.netns.clone().filter(|netns| {
        let wrong = wrong_netns(netns);
        if let Some(wrong) = wrong {
            let remedy = "use a name under /run/netns, or an absolute path";
            at.report("netns", kind::BAD_VALUE, format!("{wrong}; {remedy}"));
        }
        wrong.is_none()
    })
}

/// Default name of a tap: nova's, `tap` and the first 11 characters of the id.
pub(super) fn default_name(id: &str) -> String {
    "tap".chars().chain(id.chars().take(11)).collect()
}

/// Name of a netdev of others.
fn given_name(raw: &raw::Device, at: &mut Lowering<'_, '_>) -> String {
    if raw.name.is_none() {
        if at.is_missing("name") {
            at.report("name", kind::MISSING, "required: the name of the existing netdev");
        }
        return String::new();
    }
    name(raw, "", at)
}

fn name(raw: &raw::Device, id: &str, at: &mut Lowering<'_, '_>) -> String {
    let is_written = raw.name.is_some();
    // an invalid id or a name of a wrong type is already reported
    if !is_written && (id.is_empty() || !at.is_missing("name")) {
        return String::new();
    }
    let name = raw.name.clone().unwrap_or_else(|| default_name(id));
    let Some(wrong) = wrong_name(&name) else { return name };
    let message = if is_written {
        wrong
    } else {
        format!("required, because the default name {}, derived from the id, is invalid: {wrong}", quoted(&name))
    };
    at.report("name", kind::BAD_VALUE, message);
    String::new()
}

/// Why the kernel, or a terminal, would not accept this name of a netdev.
fn wrong_name(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some(format!("empty; use 1 to {LONGEST_NAME} bytes"));
    }
    if name.len() > LONGEST_NAME {
        return Some(format!("{} bytes long; use at most {LONGEST_NAME}", name.len()));
    }
    if [".", "..", "all", "default", "lo"].contains(&name) {
        return Some("reserved by the kernel; use another name".to_string());
    }
    // the kernel checks bytes, where 0xa0 is a space; it expands %
    let is_wrong = |c: char| {
        let mut bytes = [0; 4];
        c.is_control() || c.is_whitespace() || "/:%".contains(c) || c.encode_utf8(&mut bytes).bytes().any(|b| b == 0xa0)
    };
    let wrong = name.chars().find(|c| is_wrong(*c))?;
    Some(format!("invalid character {wrong:?}; use letters, digits, - _ and ."))
}

fn wrong_netns(netns: &str) -> Option<&'static str> {
    if netns.is_empty() {
        return Some("empty");
    }
    if netns.strip_prefix("fd:").is_some_and(|number| number.chars().all(|digit| digit.is_ascii_digit())) {
        return Some("a descriptor is passed only with a request over the unix socket of the API, which has it");
    }
    if netns.chars().any(char::is_control) {
        return Some("contains control characters");
    }
    if netns.starts_with('/') {
        return (netns.len() > 4095).then_some("longer than the maximum of a path, 4095 bytes");
    }
    match netns {
        "." | ".." => Some("not a name"),
        _ if netns.contains('/') => Some("neither a name nor an absolute path"),
        _ if netns.len() > 255 => Some("longer than the maximum of a name, 255 bytes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_netdev_names_are_accepted() {
        for name in ["t", "tap0c11a9e4-6f", "fifteen-bytes-x", "a.b_c-d", "ü"] {
            assert_eq!(wrong_name(name), None, "{name}");
        }
    }

    #[test]
    fn invalid_netdev_names_are_refused() {
        for name in ["", ".", "..", "a/b", "a b", "a\tb", "a:b", "tap%d", "a\0b", "à", "default", "\u{2003}"] {
            assert!(wrong_name(name).is_some(), "{name:?}");
        }
        let message = wrong_name("sixteen-bytes-xy").unwrap();
        assert!(message.contains("16 bytes") && message.contains("15"), "{message}");
        // bytes, not characters
        assert!(wrong_name("üüüüüüüü").is_some());
    }

    #[test]
    fn the_default_is_novas_name() {
        assert_eq!(default_name("0c11a9e4-6f1b-4b0e-9a51-7f5f9c1f0001"), "tap0c11a9e4-6f");
        assert_eq!(default_name("p1"), "tapp1");
    }

    #[test]
    fn namespaces() {
        for netns in ["fw-3", "/run/netns/fw-3", "/proc/17/ns/net", "fd:a", "fd"] {
            assert_eq!(wrong_netns(netns), None, "{netns}");
        }
        for netns in ["", "a/b", "..", "./x", "a\nb", "fd:0", "fd:"] {
            assert!(wrong_netns(netns).is_some(), "{netns:?}");
        }
    }
}
