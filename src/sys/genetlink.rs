//! Generic netlink: resolves a family by name and sends one request at a time, in the calling thread's network
//! namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with, sockopt,
};

// linux/netlink.h
const REQUEST: u16 = 1;
const ERROR: u16 = 2;

/// Length of `struct nlmsghdr` and `struct genlmsghdr`.
pub(super) const HEADERS: usize = 20;

// linux/genetlink.h
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FAMILY_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;

/// Flag bits of an attribute type (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const NOT_A_TYPE: u16 = 0xc000;

/// Maximum length of a reply in bytes.
const ROOM: usize = 16 << 10;

/// A family; the kernel assigns its ids at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Family {
    /// Message type.
    pub(super) id: u16,
    /// Attributes of the CTRL_CMD_GETFAMILY reply.
    description: Vec<u8>,
}

impl Family {
    /// Id of a multicast group.
    pub(super) fn group(&self, name: &str) -> Option<u32> {
        let is_it = |group: &&[u8]| {
            attribute(group, GROUP_NAME).and_then(|name| name.strip_suffix(b"\0")) == Some(name.as_bytes())
        };
        let group = Attributes(attribute(&self.description, FAMILY_GROUPS)?).map(|(_, group)| group).find(is_it)?;
        attribute(group, GROUP_ID)?.try_into().ok().map(u32::from_ne_bytes)
    }
}

/// Opens a socket. A reply that takes more than a second is an error.
pub(super) fn open() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::GENERIC))?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(std::time::Duration::from_secs(1)))?;
    Ok(socket)
}

/// Resolves a family by name. `None`: the kernel does not have it.
pub(super) fn resolve(socket: impl AsFd, name: &str) -> io::Result<Option<Family>> {
    match send_request(socket, &request(CONTROLLER, GET_FAMILY, FAMILY_NAME, format!("{name}\0").as_bytes())) {
        Ok(description) => {
            let id = attribute(&description, FAMILY_ID).and_then(|id| id.try_into().ok()).map(u16::from_ne_bytes);
            Ok(id.map(|id| Family { id, description }))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Serialises a request with one attribute.
pub(super) fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let padding = value.len().next_multiple_of(4) - value.len();
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    bytes.extend(u32::from(length(HEADERS + 4 + value.len() + padding)).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence number and port id
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(length(4 + value.len()).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len() + padding, 0);
    bytes
}

/// Sends a request; returns the attributes of the reply.
pub(super) fn send_request(socket: impl AsFd, request: &[u8]) -> io::Result<Vec<u8>> {
    sendto(&socket, request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; ROOM];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(length);
    attributes(&answer).map(<[u8]>::to_vec)
}

/// Attributes of a reply, or the error that it reports.
fn attributes(answer: &[u8]) -> io::Result<&[u8]> {
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "truncated generic netlink reply");
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(torn)?;
    if kind == ERROR {
        let error = answer.get(16..20).and_then(|error| error.try_into().ok()).map(i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(error.map_or(Errno::PROTO.raw_os_error(), i32::wrapping_neg)));
    }
    answer.get(HEADERS..).ok_or_else(torn)
}

/// Value of the first attribute of type `wanted`.
pub(super) fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|&(kind, _)| kind == wanted).map(|(_, value)| value)
}

/// Iterator over attributes as (type, value); ends at the first truncated one.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let [a, b, c, d, ..] = *self.0 else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(4..length)?;
        // Padding may be missing after the last attribute.
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !NOT_A_TYPE, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_reply_is_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64), wanted in 0u16..8) {
            let _ = attributes(&bytes).map(|attributes| attribute(attributes, wanted).map(<[u8]>::len));
            let _ = attribute(&bytes, wanted);
        }

        #[test]
        fn written_attributes_are_found(value in proptest::collection::vec(any::<u8>(), 0..40), kind in 1u16..99) {
            let bytes = request(7, 1, kind, &value);
            prop_assert_eq!(bytes.len() % 4, 0);
            prop_assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
            prop_assert_eq!(attribute(attributes(&bytes).unwrap(), kind), Some(&value[..]));
            prop_assert_eq!(attribute(attributes(&bytes).unwrap(), kind + 1), None);
        }
    }

    #[test]
    fn a_family_has_groups_by_name() {
        let Ok(Some(family)) = open().and_then(|socket| resolve(&socket, "nlctrl")) else {
            panic!("every kernel has it")
        };
        assert_eq!(family.id, CONTROLLER);
        assert!(family.group("notify").is_some());
        assert_eq!(family.group("notif"), None);
        assert_eq!(resolve(open().unwrap(), "vift-nothing").unwrap(), None);
    }

    #[test]
    fn a_refusal_is_an_error() {
        let error = [&[36, 0, 0, 0][..], &ERROR.to_ne_bytes(), &[0; 10], &(-19i32).to_ne_bytes()].concat();
        assert_eq!(attributes(&error).unwrap_err().raw_os_error(), Some(19));
    }
}
