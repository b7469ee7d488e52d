//! Network namespaces: doing something inside one.
//!
//! A thread that has entered a namespace is of no use for anything else. So each visit has a
//! thread of its own, which ends with it; a pool of threads never sees a namespace. What is opened
//! inside (a socket, a tap) stays there and works from any thread.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps the namespaces that have a name.
const NAMED: &str = "/run/netns";

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Netns {
    /// The one this process lives in.
    #[default]
    Host,
    /// One with a name, as `ip netns` gives it.
    Named(String),
    /// One that is bound to a file, such as `/proc/1234/ns/net`.
    At(PathBuf),
}

impl Netns {
    /// From what a person writes: a path if there is a slash in it, otherwise a name.
    pub fn written(text: &str) -> Netns {
        if text.contains('/') { Netns::At(text.into()) } else { Netns::Named(text.into()) }
    }

    /// The file it is bound to; `None` for the host's own.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Netns::Host => None,
            Netns::Named(name) => Some(Path::new(NAMED).join(name)),
            Netns::At(path) => Some(path.clone()),
        }
    }

    /// Which namespace the name leads to now. `None`: to none, or it is the host's own, which stays.
    pub fn identity(&self) -> Option<Identity> {
        let file = fs::metadata(self.path()?).ok()?;
        Some(Identity { device: file.dev(), inode: file.ino() })
    }
}

/// What tells a namespace from every other one, as long as something holds on to it. What was
/// opened inside does: a tap keeps its namespace alive when everybody else has forgotten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Netns::Host => f.write_str("the host's namespace"),
            Netns::Named(name) => write!(f, "namespace {name}"),
            Netns::At(path) => write!(f, "namespace {}", path.display()),
        }
    }
}

/// The namespace of the calling thread, kept alive by this descriptor of it.
pub fn here() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Runs `work` inside `netns`, in a thread of its own, and waits for it. An error is one of getting
/// in, never one of `work`; [`io::ErrorKind::NotFound`] is that there is no such namespace yet.
pub fn within<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let door = netns.path().map(|path| open(netns, &path)).transpose()?;
    thread::scope(|scope| {
        let visit = thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            if let Some(door) = door {
                enter(netns, &door)?;
            }
            Ok(work())
        })?;
        visit.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn open(netns: &Netns, path: &Path) -> io::Result<File> {
    if matches!(netns, Netns::Named(name) if name.contains('/') || matches!(name.as_str(), "" | "." | "..")) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{netns}: no namespace can have this name")));
    }
    File::open(path)
}

fn enter(netns: &Netns, door: &File) -> io::Result<()> {
    move_into_link_name_space(door.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| match e {
        // `ip netns add` makes the file first and binds the namespace to it afterwards.
        rustix::io::Errno::INVAL => {
            io::Error::new(io::ErrorKind::NotFound, format!("{netns}: no network namespace is bound to this file"))
        }
        e => e.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_in_the_host_is_done_in_another_thread() {
        let here = thread::current().id();
        assert!(within(&Netns::Host, || thread::current().id()).unwrap() != here);
    }

    #[test]
    fn a_namespace_that_is_not_there_is_told_apart() {
        for netns in
            [Netns::written("vift-nowhere"), Netns::written("/proc/self/ns/nothing"), Netns::written("/proc/version")]
        {
            let e = within(&netns, || ()).unwrap_err();
            // Only root gets as far as finding that a file is not a namespace.
            assert!(matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied), "{netns}: {e}");
        }
        assert_eq!(within(&Netns::Named("..".into()), || ()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn one_namespace_has_one_identity() {
        let ours = Netns::written("/proc/self/ns/net").identity();
        assert!(ours.is_some());
        assert_eq!(ours, Netns::written("/proc/thread-self/ns/net").identity());
        assert_ne!(ours, Netns::written("/proc/self/ns/uts").identity());
        assert_eq!(Netns::written("vift-nowhere").identity(), None);
    }

    #[test]
    #[should_panic(expected = "a word")]
    fn a_panic_inside_comes_out() {
        let _ = within(&Netns::Host, || panic!("a word"));
    }
}
