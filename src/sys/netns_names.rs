//! Watches named network namespaces: inotify on their directory.
//!
//! An event is a hint: `ip netns add` creates the file first and mounts the namespace on it afterwards, which inotify
//! does not report.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::netns::NAMED;

/// Bytes of events read at once.
const ROOM: usize = 4096;

/// A name that may lead to another namespace now. `None`: any name may.
pub type Name = Option<String>;

/// The watch on the directory of named namespaces.
#[derive(Debug)]
pub struct NetnsNames(AsyncFd<Inotify>);

#[derive(Debug)]
struct Inotify(OwnedFd);

impl AsRawFd for Inotify {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl NetnsNames {
    /// Begins to watch. While there is no such directory, the one above it is watched.
    ///
    /// To be called within a tokio runtime.
    pub fn watch() -> io::Result<NetnsNames> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        watch(&inotify)?;
        // SAFETY: `Inotify` owns its descriptor from when it is made to when it is dropped, and nothing can replace
        // it; nobody but this type gets to the one in here.
        let registered = unsafe { AsyncFd::register(Inotify(inotify)) };
        Ok(NetnsNames(registered?))
    }

    /// Waits for names that may lead to another namespace.
    pub async fn next(&mut self) -> io::Result<Vec<Name>> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|inotify| read(&inotify.get_ref().0)) {
                Ok(names) => return names,
                Err(_would_block) => {}
            }
        }
    }
}

/// Watches the directory, or the one above it until it is there.
fn watch(inotify: impl AsFd) -> io::Result<()> {
    let directory = Path::new(NAMED);
    let changes = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
    let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
    match add_watch(inotify.as_fd(), directory, changes | itself) {
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => {
            let above = directory.parent().unwrap_or(Path::new("/"));
            add_watch(inotify.as_fd(), above, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
            // It may have come in between.
            match add_watch(inotify.as_fd(), directory, changes | itself) {
                Ok(_) | Err(Errno::NOENT) => Ok(()),
                Err(why) => Err(why.into()),
            }
        }
        Err(why) => Err(why.into()),
    }
}

/// Reads what is there.
fn read(inotify: &OwnedFd) -> io::Result<Vec<Name>> {
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut events = Reader::new(inotify, &mut room);
    let mut names = Vec::new();
    let mut again = false;
    loop {
        match events.next() {
            Ok(event) => {
                let lost =
                    ReadFlags::QUEUE_OVERFLOW | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED;
                let name = event.file_name().map(|name| name.to_bytes());
                // The directory itself has come, gone or been replaced, or events were lost.
                let is_directory = name.is_some() && name == Path::new(NAMED).file_name().map(OsStr::as_bytes);
                again |= event.events().intersects(lost) || is_directory;
                names.push(name.and_then(|name| String::from_utf8(name.to_vec()).ok()));
            }
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
    if again {
        names.push(None);
        watch(inotify)?;
    }
    if names.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(names) }
}
