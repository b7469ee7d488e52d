//! Names that the plugin derives from those of the runtime: ids of ports and VMs, MAC addresses, positions. All are functions
//! of their arguments, so that a repeated call finds what the first one has made.

use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;

use crate::wire::Mac;

/// What [`is_name`] asks of a name, for messages.
pub const RULE: &str = "use letters, digits and _.-, the first of them a letter or digit";

/// Maximum bytes of the network's name in a port id.
const MAX_NETWORK: usize = 100;

/// Maximum bytes of the container's id in the ids of ports and VMs. Those of runtimes have 64.
const MAX_CONTAINER: usize = 80;

/// Separates the parts of a port id. No name contains it.
const SEPARATOR: char = ':';

/// Whether the specification permits this name of a network or container.
pub fn is_name(text: &str) -> bool {
    let is_first = |c: &u8| c.is_ascii_alphanumeric();
    let is_other = |c: u8| c.is_ascii_alphanumeric() || b"_.-".contains(&c);
    text.as_bytes().first().is_some_and(is_first) && text.bytes().all(is_other)
}

/// The id of a container's VM.
pub fn vm_id(container: &str) -> String {
    shortened(container, MAX_CONTAINER)
}

/// The id of a port. Network, container and interface identify an attachment.
pub fn port_id(network: &str, container: &str, interface: &str) -> String {
    format!("{}{}{SEPARATOR}{interface}", prefix(network), vm_id(container))
}

/// What the ids of all ports of a network begin with.
pub fn prefix(network: &str) -> String {
    format!("{}{SEPARATOR}", shortened(network, MAX_NETWORK))
}

/// A name of at most `max` bytes, for a longer one with a hash of it. `~` is in no name.
fn shortened(name: &str, max: usize) -> String {
    /// `~` and 32 hexadecimal digits.
    const HASH: usize = 33;
    match name.get(..max.saturating_sub(HASH)) {
        Some(begin) if name.len() > max => format!("{begin}~{:032x}", hash(name, 0)),
        _ => name.to_owned(),
    }
}

/// A MAC address for a port: locally administered, the same for each call. Another `attempt` gives another one.
pub fn mac(port: &str, attempt: u8) -> Mac {
    let [a, b, c, d, e, f, ..] = hash(port, attempt).to_be_bytes();
    Mac::new([a & !1 | 2, b, c, d, e, f])
}

fn hash(text: &str, salt: u8) -> u128 {
    let mut hasher = SipHasher24::new_with_key(b"vifswitch as CNI");
    hasher.write(text.as_bytes());
    hasher.write(&[0, salt]);
    hasher.finish128().as_u128()
}

/// Place among the ports of a container by the name of its interface: 2 for `eth2`. `None` for a name that does not consist
/// of letters and a number below 1000.
pub fn position(interface: &str) -> Option<u16> {
    let word = interface.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &interface[word.len()..];
    let is_plain = !word.is_empty() && !word.bytes().any(|c| c.is_ascii_digit()) && digits.len() <= 3;
    if is_plain { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::wrong_id;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_are_valid_and_distinct(
            a in ("[a-z0-9][a-z0-9_.-]{0,150}", "[a-f0-9]{1,200}", "[a-z]{1,14}"),
            b in ("[a-z0-9][a-z0-9_.-]{0,150}", "[a-f0-9]{1,200}", "[a-z]{1,14}"),
        ) {
            let id = |of: &(String, String, String)| port_id(&of.0, &of.1, &of.2);
            prop_assert!(wrong_id(&id(&a)).is_none() && id(&a).len() <= 200, "{}", id(&a));
            prop_assert!(wrong_id(&vm_id(&a.1)).is_none());
            prop_assert_eq!(id(&a) == id(&b), a == b);
            prop_assert_eq!(id(&a).starts_with(&prefix(&b.0)), a.0 == b.0);
            prop_assert_eq!(mac(&id(&a), 0) == mac(&id(&b), 0), a == b);
        }

        #[test]
        fn addresses_are_local_unicast(port: String, attempt: u8) {
            let mac = mac(&port, attempt);
            prop_assert!(mac.is_station() && mac.octets()[0] & 3 == 2, "{}", mac);
            prop_assert_eq!(mac, super::mac(&port, attempt));
            prop_assert_ne!(mac, super::mac(&port, attempt.wrapping_add(1)));
        }

        #[test]
        fn any_interface_has_a_position_or_none(interface in ".{0,20}") {
            let _ = position(&interface);
        }
    }

    #[test]
    fn the_number_of_an_interface_is_its_position() {
        for (interface, wanted) in [
            ("eth0", Some(0)),
            ("net12", Some(12)),
            ("eth-a7", Some(7)),
            ("eth", None),
            ("7", None),
            ("eth1000", None),
            ("pod37a8eec1ce1", None),
            ("ens3f1", None),
        ] {
            assert_eq!(position(interface), wanted, "{interface}");
        }
    }

    #[test]
    fn names_are_those_of_the_specification() {
        assert!(is_name("a") && is_name("Blue_1.x-2") && is_name("0"));
        for text in ["", "-a", ".", "a/b", "a:b", "a b", "ä"] {
            assert!(!is_name(text), "{text:?}");
        }
    }
}
