//! Receives netdev events from rtnetlink (RTNLGRP_LINK): one socket for all netdevs of its network namespace.
//!
//! Most notifications are irrelevant here. A table of known netdevs filters them: a name is reported only if its netdev
//! is new, gone, or replaced, or if its [`LinkState`] or offload features have changed. After an overflow of the socket
//! buffer all netdevs are dumped again and compared.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkEvent, LinkMessage};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with};

use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use super::link::{self, Link, error_of};
use crate::wire::Mac;

/// Multicast group RTNLGRP_LINK as a bit.
const GROUP: u32 = 1;

/// Size of the receive buffer in bytes: the kernel's maximum for a dump, and more than any message.
const ROOM: usize = 64 << 10;

/// Maximum messages read per call, so that other tasks of the runtime run.
const BATCH: usize = 256;

/// State of a netdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkState {
    /// Interface index; a new netdev of the same name has another.
    pub index: u32,
    /// Administratively up.
    pub up: bool,
    /// Carrier present. The kernel reports it only while the netdev is up.
    pub carrier: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// MAC address.
    pub mac: Mac,
    /// Interface index of its master; 0 for none.
    pub master: u32,
    /// Maximum bytes of a transmitted GSO packet.
    pub gso_max_size: u32,
    /// Maximum bytes of a transmitted IPv4 GSO packet.
    pub gso_ipv4_max_size: u32,
    /// Maximum segments of a transmitted GSO packet.
    pub gso_max_segs: u32,
    /// Maximum bytes of a GSO packet that GRO builds of received frames.
    pub gro_max_size: u32,
    /// Maximum bytes of an IPv4 GSO packet that GRO builds.
    pub gro_ipv4_max_size: u32,
}

impl From<&Link> for LinkState {
    fn from(link: &Link) -> LinkState {
        let Link { index, up, carrier, mtu, mac, master, gso_max_size, gso_ipv4_max_size, gso_max_segs, .. } = *link;
        let Link { gro_max_size, gro_ipv4_max_size, .. } = *link;
        LinkState {
            index,
            up,
            carrier,
            mtu,
            mac,
            master,
            gso_max_size,
            gso_ipv4_max_size,
            gso_max_segs,
            gro_max_size,
            gro_ipv4_max_size,
        }
    }
}

/// Receiver of events in one namespace.
#[derive(Debug)]
pub struct LinkEvents {
    socket: OwnedFd,
    table: LinkTable,
    buffer: Vec<u8>,
}

/// Known netdevs, by which messages are compared.
#[derive(Debug, Clone, Default)]
pub struct LinkTable {
    /// By index.
    links: HashMap<u32, (String, LinkState)>,
    /// During a dump: indices reported since it began.
    pending: Option<HashSet<u32>>,
    /// Repeat the dump when it ends.
    again: bool,
}

impl LinkEvents {
    /// Subscribes in the calling thread's namespace; any thread may read. The first read reports all netdevs.
    pub fn open() -> io::Result<LinkEvents> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?; // NETLINK_ROUTE is 0
        bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        let mut events = LinkEvents { socket, table: LinkTable::default(), buffer: vec![0; ROOM] };
        events.ask_for_all()?;
        Ok(events)
    }

    /// Reads pending messages without blocking and adds the names whose netdev has changed. `true` if none is left;
    /// `false` also after [`BATCH`] messages or overflows.
    ///
    /// # Errors
    ///
    /// The socket failed; no further events arrive.
    fn read(&mut self, names: &mut HashSet<String>) -> io::Result<bool> {
        for _ in 0..BATCH {
            let read = recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC);
            match read {
                // A truncated message is treated as lost.
                Ok((_, len)) if len > self.buffer.len() => self.ask_for_all()?,
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((len, _)) => {
                    self.table.take(&self.buffer[..len], names)?;
                    if self.table.pending.is_none() && std::mem::take(&mut self.table.again) {
                        self.ask_for_all()?;
                    }
                }
                Err(Errno::NOBUFS) => self.ask_for_all()?,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(false)
    }

    /// Requests a dump of all netdevs; its messages are processed as events. If one is in progress, another one
    /// follows, because the current one may have passed what was lost.
    fn ask_for_all(&mut self) -> io::Result<()> {
        if self.table.pending.is_some() {
            self.table.again = true;
            return Ok(());
        }
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let payload = NetlinkPayload::from(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let mut request = NetlinkMessage::new(header, payload);
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        sendto(&self.socket, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        self.table.pending = Some(HashSet::new());
        Ok(())
    }
}

impl LinkTable {
    /// Processes received messages. Adds the names of changed netdevs to `names`.
    ///
    /// # Errors
    ///
    /// The kernel refuses the dump.
    pub fn take(&mut self, mut bytes: &[u8], names: &mut HashSet<String>) -> io::Result<()> {
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
            // Netdevs changed during the dump, which may be inconsistent.
            self.again |= message.header.flags & NLM_F_DUMP_INTR != 0;
            let len = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => self.note(&link, names),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                    self.forget(link.header.index, names);
                }
                NetlinkPayload::Done(_) => self.finish(names),
                NetlinkPayload::Error(refused) => return Err(error_of(&refused)),
                _ => {}
            }
            let Some(rest) = bytes.get(len.max(16)..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            bytes = rest;
        }
        Ok(())
    }

    fn note(&mut self, message: &LinkMessage, names: &mut HashSet<String>) {
        let state = LinkState::from(&link::read(message));
        // The group also carries messages of bridges about their ports, without name or MTU.
        let Some(name) = link::name(message).filter(|_| state.mtu > 0) else { return };
        if let Some(seen) = &mut self.pending {
            seen.insert(state.index);
        }
        // The message does not contain the features.
        let other_features = message.attributes.contains(&LinkAttribute::Event(LinkEvent::Features));
        match self.links.insert(state.index, (name.clone(), state)) {
            Some((was, before)) if was == name && before == state && !other_features => {}
            Some((was, _)) => names.extend([was, name]),
            None => drop(names.insert(name)),
        }
    }

    fn forget(&mut self, index: u32, names: &mut HashSet<String>) {
        names.extend(self.links.remove(&index).map(|(name, _)| name));
    }

    /// Ends a dump: netdevs not reported in it are gone.
    fn finish(&mut self, names: &mut HashSet<String>) {
        let Some(seen) = self.pending.take() else { return };
        let gone = self.links.extract_if(|index, _| !seen.contains(index));
        names.extend(gone.map(|(_, (name, _))| name));
    }
}

/// Async receiver.
#[derive(Debug)]
pub struct Listener(AsyncFd<LinkEvents>);

impl Listener {
    /// Registers the socket with the current tokio runtime.
    pub fn new(events: LinkEvents) -> io::Result<Listener> {
        // SAFETY: `LinkEvents` owns its socket for its whole life and nothing replaces it; only this type has access to
        // this one.
        let registered = unsafe { AsyncFd::register(events) };
        Ok(Listener(registered?))
    }

    /// Waits for events; returns the names whose netdev has changed. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The socket failed; no further events arrive.
    pub async fn next(&mut self) -> io::Result<HashSet<String>> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            let mut names = HashSet::new();
            let is_drained = ready.get_inner_mut().read(&mut names)?;
            if is_drained {
                ready.clear_ready();
            }
            if !names.is_empty() {
                return Ok(names);
            }
            if !is_drained {
                // A socket that stays readable does not yield by itself.
                yield_now().await;
            }
        }
    }
}

impl AsRawFd for LinkEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::{Netns, within};
    use proptest::prelude::*;
    use rtnetlink::packet_core::{DoneMessage, Emitable};
    use rtnetlink::packet_route::link::LinkFlags;

    fn link(index: u32, name: &str, up: bool, mtu: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = if up { LinkFlags::Up | LinkFlags::LowerUp } else { LinkFlags::empty() };
        message.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Mtu(mtu)];
        message
    }

    fn bytes(messages: Vec<NetlinkPayload<RouteNetlinkMessage>>) -> Vec<u8> {
        let mut all = Vec::new();
        for payload in messages {
            let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
            message.finalize();
            let start = all.len();
            all.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.emit(&mut all[start..]);
        }
        all
    }

    fn to_io_error(events: &mut LinkTable, messages: Vec<RouteNetlinkMessage>) -> Vec<String> {
        let mut names = HashSet::new();
        events.take(&bytes(messages.into_iter().map(NetlinkPayload::from).collect()), &mut names).unwrap();
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort();
        names
    }

    #[test]
    fn only_changes_are_reported() {
        use RouteNetlinkMessage::{DelLink, NewLink};
        let mut events = LinkTable::default();
        assert_eq!(
            to_io_error(&mut events, vec![NewLink(link(7, "a", true, 1500)), NewLink(link(8, "b", true, 1500))]),
            ["a", "b"]
        );
        assert_eq!(to_io_error(&mut events, vec![NewLink(link(7, "a", true, 1500))]), [""; 0]);
        assert_eq!(to_io_error(&mut events, vec![NewLink(link(7, "a", false, 1500))]), ["a"], "set down");
        assert_eq!(to_io_error(&mut events, vec![NewLink(link(7, "a", false, 9000))]), ["a"], "its MTU");
        assert_eq!(to_io_error(&mut events, vec![NewLink(link(7, "c", false, 9000))]), ["a", "c"], "renamed");
        let with = |attribute: LinkAttribute| {
            let mut message = link(7, "c", false, 9000);
            message.attributes.push(attribute);
            NewLink(message)
        };
        let features = || with(LinkAttribute::Event(LinkEvent::Features));
        assert_eq!(to_io_error(&mut events, vec![features()]), ["c"], "its features");
        assert_eq!(to_io_error(&mut events, vec![features()]), ["c"], "again");
        assert_eq!(
            to_io_error(&mut events, vec![with(LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]))]),
            ["c"],
            "its address"
        );
        assert_eq!(to_io_error(&mut events, vec![with(LinkAttribute::Controller(9))]), ["c"], "its master");
        let mut sizes = link(7, "c", false, 9000);
        to_io_error(&mut events, vec![NewLink(sizes.clone())]);
        for size in [LinkAttribute::GsoMaxSize, LinkAttribute::GroMaxSize, LinkAttribute::GroIpv4MaxSize] {
            sizes.attributes.push(size(185_000));
            assert_eq!(to_io_error(&mut events, vec![NewLink(sizes.clone())]), ["c"], "{sizes:?}");
        }
        assert_eq!(to_io_error(&mut events, vec![DelLink(link(7, "c", false, 9000))]), ["c"]);
        assert_eq!(to_io_error(&mut events, vec![DelLink(link(7, "c", false, 9000))]), [""; 0]);
        let mut of_a_bridge = link(8, "b", false, 1500);
        of_a_bridge.attributes.remove(1);
        assert_eq!(to_io_error(&mut events, vec![NewLink(of_a_bridge)]), [""; 0]);
    }

    #[test]
    fn netdevs_missing_from_a_dump_are_gone() {
        use RouteNetlinkMessage::NewLink;
        let mut events = LinkTable::default();
        to_io_error(&mut events, vec![NewLink(link(7, "a", true, 1500)), NewLink(link(8, "b", true, 1500))]);
        events.pending = Some(HashSet::new());
        assert_eq!(
            to_io_error(&mut events, vec![NewLink(link(8, "b", true, 1500)), NewLink(link(9, "c", true, 1500))]),
            ["c"]
        );
        let mut names = HashSet::new();
        events.finish(&mut names);
        assert_eq!(names, HashSet::from(["a".to_owned()]));
        events.finish(&mut names);
        assert_eq!(events.links.len(), 2, "once");
    }

    #[test]
    fn an_interrupted_dump_is_repeated() {
        use RouteNetlinkMessage::NewLink;
        for flags in [0, NLM_F_DUMP_INTR] {
            let mut events = LinkTable { pending: Some(HashSet::new()), ..LinkTable::default() };
            let mut dump = bytes(vec![NewLink(link(7, "a", true, 1500)).into()]);
            dump[6..8].copy_from_slice(&flags.to_ne_bytes());
            dump.extend(bytes(vec![NetlinkPayload::Done(DoneMessage::default())]));
            events.take(&dump, &mut HashSet::new()).unwrap();
            assert_eq!((events.pending.is_none(), events.again), (true, flags == NLM_F_DUMP_INTR));
        }
    }

    #[test]
    fn the_loopback_is_reported_at_once() {
        let mut events = within(&Netns::Host, LinkEvents::open).unwrap().unwrap();
        // The kernel answers the dump request synchronously.
        let mut names = HashSet::new();
        while !events.read(&mut names).unwrap() {}
        assert!(names.contains("lo"));
        assert!(events.table.pending.is_none(), "the dump is complete");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = LinkTable::default().take(&bytes, &mut HashSet::new());
        }
    }
}
