//! Finds VXLAN netdevs on a bridge, and the remotes in the FDB of a VXLAN netdev, in the calling thread's namespace.
//! Changes nothing.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};

use super::{Link, connected, connected_strictly, name, read, to_io_error};

/// Maximum FDB entries read. EVPN and learning add one for each station behind each remote.
const MAX_ENTRIES: usize = 4096;

/// Maximum remotes returned.
const MAX_REMOTES: usize = 64;

/// VXLAN netdevs that are ports of the bridge with this index, with their names.
pub fn on_bridge(index: u32) -> io::Result<Vec<(String, Link)>> {
    connected(async |handle| {
        let mut request = handle.link().get();
        // The kernel dumps only the ports of this bridge.
        request.message_mut().attributes.push(LinkAttribute::Controller(index));
        let ports = request.execute().try_collect::<Vec<_>>().await.map_err(to_io_error)?;
        let ports = ports.iter().filter_map(|message| Some((name(message)?, read(message))));
        Ok(ports.filter(|(_, link)| link.vxlan.is_some() && link.master == index).collect())
    })
}

/// Unicast remotes in the FDB of the VXLAN netdev with this index.
pub fn remotes(index: u32) -> io::Result<BTreeSet<IpAddr>> {
    // Only with strict checking the kernel dumps the entries of one netdev instead of those of all.
    connected_strictly(async |handle| {
        let mut request = handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        request.message_mut().header.ifindex = index;
        let mut entries = request.execute();
        let mut remotes = BTreeSet::new();
        for _ in 0..MAX_ENTRIES {
            let Some(entry) = entries.try_next().await.map_err(to_io_error)? else { break };
            let is_own = entry.header.ifindex == index;
            remotes.extend(remote(&entry).filter(|remote| is_own && !remote.is_multicast()));
            if remotes.len() == MAX_REMOTES {
                break;
            }
        }
        Ok(remotes)
    })
}

/// Remote of an FDB entry; `None` if it has none.
fn remote(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        // The family of an FDB entry is that of bridges.
        NeighbourAttribute::Destination(NeighbourAddress::Other(octets)) => match octets.len() {
            4 => <[u8; 4]>::try_from(&octets[..]).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(&octets[..]).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remote_of_an_entry_has_the_length_of_its_address() {
        let entry = |octets: &[u8]| {
            let mut entry = NeighbourMessage::default();
            let destination = NeighbourAddress::Other(octets.to_vec());
            entry.attributes.extend([NeighbourAttribute::Port(4789), NeighbourAttribute::Destination(destination)]);
            remote(&entry)
        };
        assert_eq!(entry(&[10, 0, 0, 2]), Some([10, 0, 0, 2].into()));
        let octets = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        assert_eq!(entry(&octets), Some(octets.into()));
        assert_eq!(entry(&[10, 0, 0]), None);
        assert_eq!(remote(&NeighbourMessage::default()), None);
    }
}
