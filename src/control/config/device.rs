//! The keys of devices, by kind. A name must be one that the kernel takes as it is: a name that it
//! refuses, or makes another of, would show only when the first half of the devices is open already.

use super::meaning::Table;
use super::meant::{Device, Packet, Tap, Xdp};
use super::notes::quoted;
use super::problem::kind;
use super::written;
use crate::device::xdp::Mode;

/// `IFNAMSIZ` without its final zero.
const LONGEST_NAME: usize = 15;
/// The kernel's `MAX_TAP_QUEUES`; and more than a network card has.
const MOST_QUEUES: u16 = 256;

/// The keys that not all kinds have: which have them, and what it is about the others.
const OF_SOME: &[(&str, &[&str], &str)] = &[
    ("queues", &["tap", "xdp"], "one socket serves all queues of its netdev"),
    ("offloads", &["tap", "packet"], "no offload header passes it, and what needs one is completed in software"),
    ("isolate", &["packet"], "no frame of it reaches the host's own network stack"),
    ("persist", &["tap"], "others own its netdev, and it is theirs to delete"),
    ("mode", &["xdp"], "there is one way only that its frames can take"),
    ("takeover", &["xdp"], "it has no XDP program that another one could be in the way of"),
];

/// What `written` means for the port or uplink of this id.
pub(super) fn read(written: &written::Device, id: &str, at: &mut Table<'_, '_>) -> Device {
    let kind = match written.kind.as_deref() {
        Some(kind) if Device::KINDS.contains(&kind) => Some(kind),
        Some("vhost-user") => {
            let kinds = written::list(Device::KINDS.iter());
            at.note("kind", kind::NOT_YET, format!("not in this version yet; it has the kinds {kinds}"));
            None
        }
        Some(_) => {
            let kinds = written::list(Device::KINDS.iter());
            at.note("kind", kind::BAD_VALUE, format!("no such kind of device; this version has {kinds}"));
            None
        }
        None => {
            if at.misses("kind") {
                let kinds = written::list(Device::KINDS.iter());
                at.note("kind", kind::MISSING, format!("must be given; this version has {kinds}"));
            }
            None
        }
    };
    if let Some(kind) = kind {
        refuse_keys_of_others(written, kind, at);
    }
    let netns = netns(written, at);
    match kind {
        Some("xdp") => Device::Xdp(Xdp {
            name: given_name(written, at),
            netns,
            queues: written.queues.map(|queues| at.number("queues", Some(queues), 1..=MOST_QUEUES, 1)),
            mode: at.word("mode", written.mode.as_deref(), Mode::Auto),
            takeover: written.takeover.unwrap_or(false),
        }),
        Some("packet") => Device::Packet(Packet {
            name: given_name(written, at),
            netns,
            offloads: written.offloads.unwrap_or(true),
            isolate: written.isolate.unwrap_or(false),
        }),
        // What cannot be told apart is judged as the kind that most are of.
        _ => Device::Tap(Tap {
            name: name(written, id, at),
            netns,
            queues: at.number("queues", written.queues, 1..=MOST_QUEUES, 1),
            offloads: written.offloads.unwrap_or(true),
            persist: written.persist.unwrap_or(true),
        }),
    }
}

/// No silent no-ops: a key that this kind cannot honour is a mistake.
fn refuse_keys_of_others(written: &written::Device, this: &str, at: &mut Table<'_, '_>) {
    let is_written = |key| match key {
        "queues" => written.queues.is_some(),
        "offloads" => written.offloads.is_some(),
        "isolate" => written.isolate.is_some(),
        "persist" => written.persist.is_some(),
        "mode" => written.mode.is_some(),
        _ => written.takeover.is_some(),
    };
    for (key, kinds, why) in OF_SOME.iter().filter(|(key, kinds, _)| !kinds.contains(&this) && is_written(key)) {
        let kinds = written::list(kinds.iter());
        let message = format!("a device of kind {this:?} has no {key}, only kind {kinds}: {why}; leave it out");
        at.note(key, kind::CONTRADICTION, message);
    }
}

fn netns(written: &written::Device, at: &mut Table<'_, '_>) -> Option<String> {
    written.netns.clone().filter(|netns| {
        let wrong = wrong_netns(netns);
        if let Some(wrong) = wrong {
            let remedy = "right would be a name under /run/netns, or an absolute path";
            at.note("netns", kind::BAD_VALUE, format!("{wrong}; {remedy}"));
        }
        wrong.is_none()
    })
}

/// The name of the tap that a port or uplink gets if none is written: nova's, `tap` and the first 11
/// characters of the id.
pub(super) fn default_name(id: &str) -> String {
    "tap".chars().chain(id.chars().take(11)).collect()
}

/// The name of a netdev that others make.
fn given_name(written: &written::Device, at: &mut Table<'_, '_>) -> String {
    if written.name.is_none() {
        if at.misses("name") {
            at.note("name", kind::MISSING, "must be given: the name of the netdev, which others make");
        }
        return String::new();
    }
    name(written, "", at)
}

fn name(written: &written::Device, id: &str, at: &mut Table<'_, '_>) -> String {
    let is_written = written.name.is_some();
    // of a port without a right id, or with a name of a wrong type, enough has been said
    if !is_written && (id.is_empty() || !at.misses("name")) {
        return String::new();
    }
    let name = written.name.clone().unwrap_or_else(|| default_name(id));
    let Some(wrong) = wrong_name(&name) else { return name };
    let message = if is_written {
        wrong
    } else {
        format!("must be given, because the name made of the id, {}, will not do: {wrong}", quoted(&name))
    };
    at.note("name", kind::BAD_VALUE, message);
    String::new()
}

/// What the kernel, or a terminal, would not take about this name of a netdev.
fn wrong_name(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some(format!("empty; a name is 1 to {LONGEST_NAME} bytes"));
    }
    if name.len() > LONGEST_NAME {
        return Some(format!("{} bytes long, and the kernel takes {LONGEST_NAME}", name.len()));
    }
    if [".", "..", "all", "default", "lo"].contains(&name) {
        return Some("a name that the kernel keeps for itself; another one would be right".to_string());
    }
    // the kernel looks at bytes, and 0xa0 is a space to it; with % it would make up a name
    let is_wrong = |c: char| {
        let mut bytes = [0; 4];
        c.is_control() || c.is_whitespace() || "/:%".contains(c) || c.encode_utf8(&mut bytes).bytes().any(|b| b == 0xa0)
    };
    let wrong = name.chars().find(|c| is_wrong(*c))?;
    Some(format!("the kernel takes no {wrong:?} in a name; letters, digits, - _ and . are right"))
}

fn wrong_netns(netns: &str) -> Option<&'static str> {
    if netns.is_empty() {
        return Some("empty");
    }
    if netns.chars().any(char::is_control) {
        return Some("has control characters in it");
    }
    if netns.starts_with('/') {
        return (netns.len() > 4095).then_some("longer than a path can be, which is 4095 bytes");
    }
    match netns {
        "." | ".." => Some("not a name"),
        _ if netns.contains('/') => Some("neither a name nor an absolute path"),
        _ if netns.len() > 255 => Some("longer than a name can be, which is 255 bytes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_takes() {
        for name in ["t", "tap0c11a9e4-6f", "fifteen-bytes-x", "a.b_c-d", "ü"] {
            assert_eq!(wrong_name(name), None, "{name}");
        }
    }

    #[test]
    fn names_that_it_does_not() {
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
        for netns in ["fw-3", "/run/netns/fw-3", "/proc/17/ns/net"] {
            assert_eq!(wrong_netns(netns), None, "{netns}");
        }
        for netns in ["", "a/b", "..", "./x", "a\nb"] {
            assert!(wrong_netns(netns).is_some(), "{netns:?}");
        }
    }
}
