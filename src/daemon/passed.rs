//! Descriptors that the service manager passes at the start: listening sockets, of socket units or kept from the last
//! run, and devices kept from the last run. What is kept is stored again only if it is new.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{SocketType, sockopt};
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::supervisor::{Supervisor, keeps_descriptors};
use crate::control::api::socket::{Callers, Socket};
use crate::control::descriptors::{DescriptorStore, Descriptors, VERSION, is_of_a_device};
use crate::sys::inherited;

/// Prefix of the names of TCP sockets; the address follows.
const TCP: &str = "v1tcp-";

/// Prefix of the names of unix sockets; device and inode of the socket's file follow.
fn prefix(callers: Callers) -> &'static str {
    match callers {
        Callers::Group => "v1api-",
        Callers::All => "v1read-",
    }
}

const _: () = assert!(VERSION.len() == 2, "names begin with the version");

/// Descriptors that nobody has taken yet.
pub(super) struct Passed {
    /// Whether the service manager keeps descriptors.
    is_store: bool,
    sockets: Vec<(String, OwnedFd)>,
    devices: HashMap<String, Vec<OwnedFd>>,
    /// Why none could be taken.
    error: Option<String>,
}

impl Passed {
    /// Takes them. Call it before the process opens any file. The environment may describe descriptors that do not exist:
    /// nothing is used then.
    pub fn take() -> Passed {
        let (passed, error) = match inherited::take() {
            Ok(passed) => (passed, None),
            Err(why) => (Vec::new(), Some(why.to_string())),
        };
        let is_store = keeps_descriptors() || passed.iter().any(|(name, _)| is_kept(name));
        let (mut sockets, mut devices) = (Vec::new(), HashMap::<_, Vec<_>>::new());
        for (name, descriptor) in passed {
            if is_of_a_device(&name) {
                devices.entry(name).or_default().push(descriptor);
            } else {
                sockets.push((name, descriptor));
            }
        }
        Passed { is_store, sockets, devices, error }
    }

    /// Listens at a path, on the socket that was passed if it leads there.
    pub fn unix(&mut self, callers: Callers, path: &Path) -> io::Result<Socket> {
        if let Some(why) = self.error.take() {
            warn!("the descriptors that the service manager has passed (LISTEN_FDS) are not used: {why}");
        }
        let matches = |name: &str, descriptor: &OwnedFd| {
            let leads_there = || match name.strip_prefix(prefix(callers)) {
                Some(identity) => Socket::file_identity(path).is_some_and(|file| file == identity),
                None => !is_kept(name),
            };
            is_listening(descriptor) && Socket::is_at(descriptor, path) && leads_there()
        };
        if let Some((name, descriptor)) = self.take_socket(matches) {
            info!("listening at {} on the socket that the service manager has passed as {name:?}", path.display());
            return Socket::passed(path, descriptor);
        }
        let mut socket = Socket::bind_for(callers, path)?;
        if self.is_store
            && let Some(identity) = Socket::file_identity(path)
            && Supervisor.store(&format!("{}{identity}", prefix(callers)), vec![socket.as_fd().try_clone_to_owned()?])
        {
            socket.keep_file();
        }
        Ok(socket)
    }

    /// Listens at an address, on the socket that was passed if it is bound to it.
    pub async fn tcp(&mut self, address: SocketAddr) -> io::Result<TcpListener> {
        let matches = |_: &str, descriptor: &OwnedFd| {
            let bound = rustix::net::getsockname(descriptor).ok().and_then(|bound| SocketAddr::try_from(bound).ok());
            is_listening(descriptor) && bound == Some(address)
        };
        if let Some((name, descriptor)) = self.take_socket(matches) {
            info!("listening at {address} on the socket that the service manager has passed as {name:?}");
            let listener = std::net::TcpListener::from(descriptor);
            listener.set_nonblocking(true)?;
            return TcpListener::from_std(listener);
        }
        let listener = TcpListener::bind(address).await?;
        if self.is_store {
            let name = format!("{TCP}{address}").replace(':', "_");
            Supervisor.store(&name, vec![listener.as_fd().try_clone_to_owned()?]);
        }
        Ok(listener)
    }

    /// The kept devices. Closes the sockets that were not taken.
    pub fn devices(mut self) -> Descriptors {
        self.close_others();
        if self.is_store { Descriptors::new(Box::new(Supervisor), self.devices) } else { Descriptors::default() }
    }

    fn take_socket(&mut self, matches: impl Fn(&str, &OwnedFd) -> bool) -> Option<(String, OwnedFd)> {
        let at = self.sockets.iter().position(|(name, descriptor)| matches(name, descriptor))?;
        Some(self.sockets.swap_remove(at))
    }

    fn close_others(&mut self) {
        for (name, descriptor) in std::mem::take(&mut self.sockets) {
            let is_ours = [prefix(Callers::Group), prefix(Callers::All), TCP].iter().any(|of| name.starts_with(of));
            match is_ours {
                true => info!("the socket {name:?} of the last run is closed: it is configured elsewhere now"),
                false => warn!(
                    "not used: the service manager has passed {name:?} ({}); a socket unit must listen at `api`, `api_read`, \
                     `metrics` or `pages` of [switch], and descriptors of another version of vifswitch are not used",
                    described(&descriptor)
                ),
            }
            if is_kept(&name) {
                Supervisor.remove(&name);
            }
        }
    }
}

/// Whether the name is that of a stored descriptor, in any version.
fn is_kept(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// Whether this is a listening stream socket.
fn is_listening(descriptor: &OwnedFd) -> bool {
    sockopt::socket_type(descriptor).is_ok_and(|kind| kind == SocketType::STREAM)
        && sockopt::socket_acceptconn(descriptor).unwrap_or(false)
}

/// Description of a descriptor for a message.
fn described(descriptor: &OwnedFd) -> String {
    let shown = |address: &dyn Display| format!("bound to {address}");
    match rustix::net::getsockname(descriptor) {
        Ok(address) => match SocketAddr::try_from(address.clone()) {
            Ok(address) => shown(&address),
            Err(_) => format!("a socket, {address:?}"),
        },
        Err(_) => "no socket".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::net::{AddressFamily, SocketAddrUnix};

    use super::*;

    #[test]
    fn names_of_the_store_are_told_from_those_of_units() {
        for kept in ["v1api-1-2", "v1tcp-127.0.0.1_9100", "v2x", "v1p0123456789abcdef"] {
            assert!(is_kept(kept), "{kept}");
        }
        for unit in ["vifswitch.socket", "api", "", "unknown"] {
            assert!(!is_kept(unit), "{unit}");
        }
    }

    fn passed(socket: OwnedFd) -> Passed {
        Passed { is_store: false, sockets: vec![("api".to_owned(), socket)], devices: HashMap::new(), error: None }
    }

    /// A unix socket bound to a path, listening or not.
    fn bound(path: &Path, kind: SocketType, listens: bool) -> OwnedFd {
        let socket = rustix::net::socket(AddressFamily::UNIX, kind, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        if listens {
            rustix::net::listen(&socket, 1).unwrap();
        }
        socket
    }

    #[tokio::test]
    async fn only_a_listening_socket_at_the_path_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let [path, elsewhere] = ["api.sock", "other.sock"].map(|name| directory.path().join(name));
        for (at, kind, listens, is_used) in [
            (&path, SocketType::STREAM, true, true),
            (&path, SocketType::STREAM, false, false),
            (&elsewhere, SocketType::STREAM, true, false),
        ] {
            let mut all = passed(bound(at, kind, listens));
            let socket = all.unix(Callers::Group, &path).unwrap();
            assert_eq!(all.sockets.is_empty(), is_used, "{at:?}, {kind:?}, listens: {listens}");
            UnixStream::connect(&path).expect("a socket listens in any case");
            drop(socket);
            // A socket that was passed leaves its file.
            let _ = std::fs::remove_file(&path);
        }
        // Nothing tells whether its owner has ended.
        let mut all = passed(bound(&path, SocketType::DGRAM, false));
        let refused = all.unix(Callers::Group, &path).unwrap_err();
        assert!(refused.to_string().contains("api.sock"), "{refused}");
    }
}
