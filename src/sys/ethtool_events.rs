//! Receives ethtool notifications: a change of a netdev's queues, rings or features (genetlink family "ethtool",
//! multicast group "monitor"). One socket receives those of all netdevs of its namespace.
//!
//! Drivers that change their queues themselves send none; callers poll as well.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use rtnetlink::sys::{Socket, protocols::NETLINK_GENERIC};
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use super::genetlink::{Attributes, HEADERS, attribute, open, resolve};

/// First attribute of every message of the family (ETHTOOL_A_*_HEADER).
const HEADER: u16 = 1;
/// ETHTOOL_A_HEADER_DEV_NAME
const DEV_NAME: u16 = 2;

/// MSG_DONTWAIT
const DONT_WAIT: i32 = 0x40;

/// Maximum messages read per call, so that other tasks of the runtime run.
const BATCH: usize = 256;

/// Notifications of one namespace.
#[derive(Debug)]
pub struct EthtoolEvents {
    socket: Socket,
    family: u16,
}

impl EthtoolEvents {
    /// Subscribes in the calling thread's namespace; any thread may read. `None`: the kernel sends no such
    /// notifications (before Linux 5.6).
    pub fn open() -> io::Result<Option<EthtoolEvents>> {
        let Some(family) = resolve(open()?, "ethtool")? else { return Ok(None) };
        let Some(group) = family.group("monitor") else { return Ok(None) };
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.add_membership(group)?;
        Ok(Some(EthtoolEvents { socket, family: family.id }))
    }

    /// Reads pending messages without blocking and adds the names of changed netdevs. `true` if none is left; `false`
    /// also after [`BATCH`] messages or lost ones.
    fn read(&mut self, names: &mut HashSet<String>) -> io::Result<bool> {
        for _ in 0..BATCH {
            let mut message = Vec::with_capacity(4096);
            match self.socket.recv(&mut message, DONT_WAIT) {
                Ok(_) => names.extend(name_in(&message, self.family)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Lost notifications are compensated by polling.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }
}

/// Name of the netdev in a notification of the family with this id.
pub fn name_in(message: &[u8], family: u16) -> Option<String> {
    let kind = message.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes)?;
    let header = attribute(message.get(HEADERS..).filter(|_| kind == family)?, HEADER)?;
    let name = Attributes(header).find(|&(kind, _)| kind == DEV_NAME)?.1;
    std::str::from_utf8(name.strip_suffix(b"\0")?).ok().map(str::to_owned)
}

impl AsRawFd for EthtoolEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Async receiver.
#[derive(Debug)]
pub struct EthtoolListener(AsyncFd<EthtoolEvents>);

impl EthtoolListener {
    /// Registers the socket with the current tokio runtime.
    pub fn new(events: EthtoolEvents) -> io::Result<EthtoolListener> {
        // SAFETY: `EthtoolEvents` owns its socket for its whole life and nothing replaces it; only this type has access
        // to this one.
        let registered = unsafe { AsyncFd::register(events) };
        Ok(EthtoolListener(registered?))
    }

    /// Waits for notifications; returns the names of the netdevs. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The socket failed; no further notifications arrive.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A notification as the kernel sends it: a nested header with index and name.
    fn notification(family: u16, name: &[u8]) -> Vec<u8> {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = Vec::new();
            bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let header = [attribute(1, &7u32.to_ne_bytes()), attribute(DEV_NAME, name)].concat();
        let header = attribute(HEADER | 0x8000, &header);
        let mut message = u32::try_from(HEADERS + header.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(family.to_ne_bytes());
        message.extend([0; 10]);
        message.extend([18, 1, 0, 0]);
        message.extend(header);
        message
    }

    #[test]
    fn a_notification_names_its_netdev() {
        assert_eq!(name_in(&notification(21, b"eth0\0"), 21).as_deref(), Some("eth0"));
        assert_eq!(name_in(&notification(21, b"eth0\0"), 22), None, "a message of another family");
        assert_eq!(name_in(&notification(21, b"eth0"), 21), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let family = bytes.get(4..6).map_or(0, |kind| u16::from_ne_bytes([kind[0], kind[1]]));
            let _ = name_in(&bytes, family);
        }
    }
}
