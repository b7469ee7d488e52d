//! Netdev events from rtnetlink (RTNLGRP_LINK): one socket receives those of all netdevs of its network
//! namespace.
//!
//! Most notifications are irrelevant here. A table of known netdevs filters them: only names are reported
//! whose netdev is gone, was replaced, or changed its [`LinkState`] or offload features. After an overflow
//! of the socket buffer, all netdevs are read again and compared.

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

use super::link::{self, Link};
use crate::wire::Mac;

/// The group that is told of netdevs: RTNLGRP_LINK as a bit.
const GROUP: u32 = 1;

/// Bytes read in one go: the kernel fills that much with answers, and no message is longer.
const ROOM: usize = 64 << 10;

/// How it is with a netdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkState {
    /// Its index in its namespace: another one of the same name has another.
    pub index: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether somebody is at its other end. The kernel only tells while it is up.
    pub carrier: bool,
    /// Its MTU.
    pub mtu: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// The index of its master; 0 if it has none.
    pub master: u32,
    /// Bytes of a GSO packet that is sent through it, at most.
    pub gso_max_size: u32,
    /// The same for IPv4.
    pub gso_ipv4_max_size: u32,
    /// Segments of such a packet, at most.
    pub gso_max_segs: u32,
}

impl From<&Link> for LinkState {
    fn from(link: &Link) -> LinkState {
        let Link { index, up, carrier, mtu, mac, master, gso_max_size, gso_ipv4_max_size, gso_max_segs, .. } = *link;
        LinkState { index, up, carrier, mtu, mac, master, gso_max_size, gso_ipv4_max_size, gso_max_segs }
    }
}

/// The ear in a namespace.
#[derive(Debug)]
pub struct LinkEvents {
    socket: OwnedFd,
    /// By index: what there is, as far as it has been told.
    table: HashMap<u32, (String, LinkState)>,
    /// While all netdevs are asked for: those that have been told of since.
    pending: Option<HashSet<u32>>,
    /// Whether to ask again when that is over.
    again: bool,
    buffer: Vec<u8>,
}

impl LinkEvents {
    /// Begins to listen in the namespace of the calling thread, also for whoever reads elsewhere. All
    /// that there is, is the first news.
    pub fn open() -> io::Result<LinkEvents> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?; // NETLINK_ROUTE is 0
        bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        let mut events =
            LinkEvents { socket, table: HashMap::new(), pending: None, again: false, buffer: vec![0; ROOM] };
        events.ask_for_all()?;
        Ok(events)
    }

    /// Reads all that there is to read, without waiting. The names that lead to something else than
    /// before.
    ///
    /// # Errors
    ///
    /// Whatever it is, nothing more can be heard here.
    pub fn read(&mut self) -> io::Result<HashSet<String>> {
        let mut names = HashSet::new();
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC);
            let message = match read {
                // A message that did not fit whole is as good as one that was lost.
                Ok((_, len)) if len > buffer.len() => self.ask_for_all(),
                Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((len, _)) => {
                    let taken = self.take(&buffer[..len], &mut names);
                    let again = self.pending.is_none() && std::mem::take(&mut self.again);
                    if again { taken.and_then(|()| self.ask_for_all()) } else { taken }
                }
                Err(Errno::NOBUFS) => self.ask_for_all(),
                Err(Errno::INTR) => Ok(()),
                Err(Errno::AGAIN) => {
                    self.buffer = buffer;
                    return Ok(names);
                }
                Err(e) => Err(e.into()),
            };
            self.buffer = buffer;
            message?;
        }
    }

    /// Asks the kernel for all netdevs; what it tells comes like news. If it is being asked already,
    /// then once more afterwards: it may have gone past what was missed.
    fn ask_for_all(&mut self) -> io::Result<()> {
        if self.pending.is_some() {
            self.again = true;
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
        self.pending = Some(HashSet::new());
        Ok(())
    }

    /// Takes in what has been read.
    fn take(&mut self, mut bytes: &[u8], names: &mut HashSet<String>) -> io::Result<()> {
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
            // Something changed while it was being told.
            self.again |= message.header.flags & NLM_F_DUMP_INTR != 0;
            let len = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => self.note(&link, names),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                    self.forget(link.header.index, names);
                }
                NetlinkPayload::Done(_) => self.finish(names),
                NetlinkPayload::Error(refused) => return Err(refused.to_io()),
                _ => {}
            }
            let Some(rest) = bytes.get(len.max(16)..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            bytes = rest;
        }
        Ok(())
    }

    fn note(&mut self, message: &LinkMessage, names: &mut HashSet<String>) {
        let state = LinkState::from(&link::read(message));
        // Messages of bridges about their ports come here too, and have no name or no MTU of theirs.
        let Some(name) = link::name(message).filter(|_| state.mtu > 0) else { return };
        if let Some(seen) = &mut self.pending {
            seen.insert(state.index);
        }
        // Which features it has now does not stand in the message.
        let other_features = message.attributes.contains(&LinkAttribute::Event(LinkEvent::Features));
        match self.table.insert(state.index, (name.clone(), state)) {
            Some((was, before)) if was == name && before == state && !other_features => {}
            Some((was, _)) => names.extend([was, name]),
            None => drop(names.insert(name)),
        }
    }

    fn forget(&mut self, index: u32, names: &mut HashSet<String>) {
        names.extend(self.table.remove(&index).map(|(name, _)| name));
    }

    /// All netdevs have been told of: what was not is no more.
    fn finish(&mut self, names: &mut HashSet<String>) {
        let Some(seen) = self.pending.take() else { return };
        let gone = self.table.extract_if(|index, _| !seen.contains(index));
        names.extend(gone.map(|(_, (name, _))| name));
    }
}

/// The same, for whoever waits in a runtime.
#[derive(Debug)]
pub struct Listener(AsyncFd<LinkEvents>);

impl Listener {
    /// Has the runtime of the caller tell when there is something to hear.
    pub fn new(events: LinkEvents) -> io::Result<Listener> {
        // SAFETY: `LinkEvents` owns its socket from when it is opened to when it is dropped, and nothing
        // can replace it; nobody but this type gets to the one in here.
        let registered = unsafe { AsyncFd::register(events) };
        Ok(Listener(registered?))
    }

    /// Waits until names lead to something else than before, and says which. Nothing is lost if it is
    /// given up meanwhile.
    ///
    /// # Errors
    ///
    /// Whatever it is, nothing more can be heard here.
    pub async fn next(&mut self) -> io::Result<HashSet<String>> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            // It reads until there is nothing left.
            ready.clear_ready();
            let names = ready.get_inner_mut().read()?;
            if !names.is_empty() {
                return Ok(names);
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
    use rtnetlink::packet_core::Emitable;
    use rtnetlink::packet_route::link::LinkFlags;

    /// One that has not been told anything.
    fn missed_events() -> LinkEvents {
        let events = within(&Netns::Host, LinkEvents::open).unwrap().unwrap();
        LinkEvents { pending: None, ..events }
    }

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

    fn to_io_error(events: &mut LinkEvents, messages: Vec<RouteNetlinkMessage>) -> Vec<String> {
        let mut names = HashSet::new();
        events.take(&bytes(messages.into_iter().map(NetlinkPayload::from).collect()), &mut names).unwrap();
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_is_otherwise_is_told() {
        use RouteNetlinkMessage::{DelLink, NewLink};
        let mut events = missed_events();
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
        assert_eq!(to_io_error(&mut events, vec![DelLink(link(7, "c", false, 9000))]), ["c"]);
        assert_eq!(to_io_error(&mut events, vec![DelLink(link(7, "c", false, 9000))]), [""; 0]);
        let mut of_a_bridge = link(8, "b", false, 1500);
        of_a_bridge.attributes.remove(1);
        assert_eq!(to_io_error(&mut events, vec![NewLink(of_a_bridge)]), [""; 0]);
    }

    #[test]
    fn when_all_have_been_told_of_the_others_are_gone() {
        use RouteNetlinkMessage::NewLink;
        let mut events = missed_events();
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
        assert_eq!(events.table.len(), 2, "once");
    }

    #[test]
    fn the_loopback_is_told_of_at_once() {
        let mut events = within(&Netns::Host, LinkEvents::open).unwrap().unwrap();
        // The answer is there when the question has been asked.
        assert!(events.read().unwrap().contains("lo"));
        assert!(events.pending.is_none(), "all have been told of");
    }

    proptest! {
        #[test]
        fn no_bytes_upset_it(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = missed_events().take(&bytes, &mut HashSet::new());
        }
    }
}
