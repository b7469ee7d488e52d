//! What XDP can do on a netdev, as the kernel tells it by generic netlink (family "netdev", linux/netdev.h).
//! In the namespace of the calling thread; nothing is touched.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with, sockopt,
};

// linux/netlink.h
const REQUEST: u16 = 1;
const ERROR: u16 = 2;

/// `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 20;

// linux/genetlink.h
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

// linux/netdev.h
const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
const DEV_XDP_RX_METADATA_FEATURES: u16 = 5;
/// NETDEV_XDP_RX_METADATA_VLAN_TAG
const VLAN_TAG: u64 = 4;

/// The bits of an attribute's type that are not its number (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const NOT_A_TYPE: u16 = 0xc000;

/// Bytes of an answer, at most.
const ROOM: usize = 16 << 10;

/// What a driver does with XDP programs: `enum netdev_xdp_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Whether the driver runs programs itself.
    pub const fn native(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether a program of the driver can hand frames over to somebody else: to our sockets.
    pub const fn redirect(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether the driver can work in the memory of an AF_XDP socket.
    pub const fn zero_copy(self) -> bool {
        self.0 & 8 != 0
    }

    /// Whether a frame may come in more than one piece, as one longer than a page does.
    pub const fn pieces(self) -> bool {
        self.0 & 32 != 0
    }
}

/// What the driver of a netdev does with XDP programs. `None`: the kernel does not tell.
pub fn xdp_features(index: u32) -> io::Result<Option<XdpFeatures>> {
    Ok(bits(index, DEV_XDP_FEATURES)?.map(XdpFeatures))
}

/// Whether an XDP program can ask the driver of a netdev for the VLAN tag that it keeps beside a frame.
pub fn tells_vlan_tags(index: u32) -> io::Result<bool> {
    Ok(bits(index, DEV_XDP_RX_METADATA_FEATURES)?.is_some_and(|bits| bits & VLAN_TAG != 0))
}

/// An attribute of 64 bits of a netdev. `None`: the kernel does not have it.
fn bits(index: u32, wanted: u16) -> io::Result<Option<u64>> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::GENERIC))?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(std::time::Duration::from_secs(1)))?;
    let family = match ask(&socket, &request(CONTROLLER, GET_FAMILY, FAMILY_NAME, b"netdev\0")) {
        Ok(answer) => attribute(&answer, FAMILY_ID).and_then(|id| id.try_into().ok()).map(u16::from_ne_bytes),
        // Older kernels have no such family.
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let Some(family) = family else { return Ok(None) };
    let answer = ask(&socket, &request(family, DEV_GET, DEV_IFINDEX, &index.to_ne_bytes()))?;
    Ok(attribute(&answer, wanted).and_then(|bits| bits.try_into().ok()).map(u64::from_ne_bytes))
}

/// A request with one attribute.
fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let padding = value.len().next_multiple_of(4) - value.len();
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    bytes.extend(u32::from(length(HEADERS + 4 + value.len() + padding)).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // number and sender
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(length(4 + value.len()).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len() + padding, 0);
    bytes
}

fn ask(socket: impl AsFd, request: &[u8]) -> io::Result<Vec<u8>> {
    sendto(&socket, request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; ROOM];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(length);
    attributes(&answer).map(<[u8]>::to_vec)
}

/// The attributes of an answer, or the error that it is.
fn attributes(answer: &[u8]) -> io::Result<&[u8]> {
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "an answer of generic netlink is torn");
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(torn)?;
    if kind == ERROR {
        let error = answer.get(16..20).and_then(|error| error.try_into().ok()).map(i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(error.map_or(Errno::PROTO.raw_os_error(), i32::wrapping_neg)));
    }
    answer.get(HEADERS..).ok_or_else(torn)
}

/// The value of the first attribute of this kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & !NOT_A_TYPE == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..64), wanted in 0u16..8) {
            let _ = attributes(&bytes).map(|attributes| attribute(attributes, wanted).map(<[u8]>::len));
            let _ = attribute(&bytes, wanted);
        }

        #[test]
        fn what_is_put_in_is_found(value in proptest::collection::vec(any::<u8>(), 0..40), kind in 1u16..99) {
            let bytes = request(7, 1, kind, &value);
            prop_assert_eq!(bytes.len() % 4, 0);
            prop_assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
            prop_assert_eq!(attribute(attributes(&bytes).unwrap(), kind), Some(&value[..]));
            prop_assert_eq!(attribute(attributes(&bytes).unwrap(), kind + 1), None);
        }
    }

    #[test]
    fn a_refusal_is_an_error() {
        let refusal = [&[36, 0, 0, 0][..], &ERROR.to_ne_bytes(), &[0; 10], &(-19i32).to_ne_bytes()].concat();
        assert_eq!(attributes(&refusal).unwrap_err().raw_os_error(), Some(19));
    }

    #[test]
    fn what_is_not_there_is_no_answer() {
        assert!(!matches!(xdp_features(u32::MAX >> 1), Ok(Some(_))));
        assert!(!matches!(tells_vlan_tags(u32::MAX >> 1), Ok(true)));
    }
}
