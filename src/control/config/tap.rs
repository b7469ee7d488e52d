//! The keys of a tap. Its name must be one that the kernel takes as it is: a name that it refuses,
//! or makes another of, would show only when the first half of the devices is open already.

use super::meaning::Table;
use super::meant::Tap;
use super::notes::quoted;
use super::problem::kind;
use super::written;

/// `IFNAMSIZ` without its final zero.
const LONGEST_NAME: usize = 15;
/// The kernel's `MAX_TAP_QUEUES`.
const MOST_QUEUES: u16 = 256;

/// What `written` means for the port of this id.
pub(super) fn read(written: &written::Device, port_id: &str, at: &mut Table<'_, '_>) -> Tap {
    Tap {
        name: name(written, port_id, at),
        netns: written.netns.clone().filter(|netns| {
            let wrong = wrong_netns(netns);
            if let Some(wrong) = wrong {
                let remedy = "right would be a name under /run/netns, or an absolute path";
                at.note("netns", kind::BAD_VALUE, format!("{wrong}; {remedy}"));
            }
            wrong.is_none()
        }),
        queues: at.number("queues", written.queues, 1..=MOST_QUEUES, 1),
        offloads: written.offloads.unwrap_or(true),
        persist: written.persist.unwrap_or(true),
    }
}

/// The name of the tap that a port gets if none is written: nova's, `tap` and the first 11
/// characters of the port's id.
pub(super) fn default_name(port_id: &str) -> String {
    "tap".chars().chain(port_id.chars().take(11)).collect()
}

fn name(written: &written::Device, port_id: &str, at: &mut Table<'_, '_>) -> String {
    let is_written = written.name.is_some();
    // of a port without a right id, or with a name of a wrong type, enough has been said
    if !is_written && (port_id.is_empty() || !at.misses("name")) {
        return String::new();
    }
    let name = written.name.clone().unwrap_or_else(|| default_name(port_id));
    let Some(wrong) = wrong_name(&name) else { return name };
    let message = if is_written {
        wrong
    } else {
        format!("must be given, because the name made of the port's id, {}, will not do: {wrong}", quoted(&name))
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
        return (netns.len() > 4095).then_some("longer than a path can be");
    }
    match netns {
        "." | ".." => Some("not a name"),
        _ if netns.contains('/') => Some("neither a name nor an absolute path"),
        _ if netns.len() > 255 => Some("longer than a name can be"),
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
