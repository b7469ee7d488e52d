//! Watches named network namespaces with inotify on their directory.
//!
//! An event is only a hint: `ip netns add` creates the file first and then mounts the namespace on it, which inotify
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

/// Size of the event buffer in bytes.
const ROOM: usize = 4096;

/// Name whose namespace may have changed. `None`: any name may have.
pub type Name = Option<String>;

/// The watch on the directory.
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
    /// Starts to watch. While the directory does not exist, its parent is watched.
    ///
    /// Must be called within a tokio runtime.
    pub fn watch() -> io::Result<NetnsNames> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        watch(&inotify)?;
        // SAFETY: `Inotify` owns its descriptor for its whole life and nothing replaces it; only this type has access
        // to this one.
        let registered = unsafe { AsyncFd::register(Inotify(inotify)) };
        Ok(NetnsNames(registered?))
    }

    /// Waits for changes; returns names whose namespace may have changed.
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

/// Watches the directory, or its parent until it exists.
fn watch(inotify: impl AsFd) -> io::Result<()> {
    let directory = Path::new(NAMED);
    let changes = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
    let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
    match add_watch(inotify.as_fd(), directory, changes | itself) {
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => {
            let above = directory.parent().unwrap_or(Path::new("/"));
            add_watch(inotify.as_fd(), above, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
            // The directory may have been created in between.
            match add_watch(inotify.as_fd(), directory, changes | itself) {
                Ok(_) | Err(Errno::NOENT) => Ok(()),
                Err(why) => Err(why.into()),
            }
        }
        Err(why) => Err(why.into()),
    }
}

/// Reads all pending events.
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
                // The directory itself was created, deleted or replaced, or events were lost.
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
