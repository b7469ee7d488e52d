//! Credentials of the process at the other end of a connection.
//!
//! The kernel records them when the client connects: a process that inherits a connection acts with the credentials of
//! the one that opened it. The listener adds them to each request, as extensions of type `Option<Peer>` and `PeerGroups`.

use std::sync::Arc;

use tokio::net::{TcpStream, UnixStream};

use super::passed::Passed;
use crate::sys::peer_groups::peer_groups;

/// The process that opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its id; `None` outside this switch's PID namespace.
    pub pid: Option<u32>,
}

/// Supplementary groups of the process that opened a connection; none if the kernel does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerGroups(pub Arc<[u32]>);

/// A connection that may know its peer.
pub trait PeerOf {
    /// The peer; `None` over a network, and if the kernel does not tell.
    fn peer(&self) -> Option<Peer>;

    /// Supplementary groups of the peer.
    fn groups(&self) -> PeerGroups;

    /// Descriptors that the peer passes; `None` where none are accepted.
    fn passed(&self) -> Option<Passed> {
        None
    }
}

impl PeerOf for UnixStream {
    fn peer(&self) -> Option<Peer> {
        // Not by rustix, whose `Pid` cannot be the 0 that the kernel reports for a process of another PID namespace.
        let peer = self.peer_cred().ok()?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        Some(Peer { uid: peer.uid(), gid: peer.gid(), pid })
    }

    fn groups(&self) -> PeerGroups {
        PeerGroups(peer_groups(self).unwrap_or_default().into())
    }
}

impl PeerOf for TcpStream {
    fn peer(&self) -> Option<Peer> {
        None
    }

    fn groups(&self) -> PeerGroups {
        PeerGroups::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_unix_socket_knows_its_peer_and_a_network_does_not() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        assert_eq!(ours.peer(), Some(Peer { uid, gid, pid: Some(std::process::id()) }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert_eq!((stream.peer(), stream.groups()), (None, PeerGroups::default()));
    }
}
