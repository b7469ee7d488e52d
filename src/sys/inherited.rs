//! File descriptors that the service manager passes to the process (sd_listen_fds): sockets of socket units, and
//! descriptors kept in its store.

use std::env;
use std::io;
use std::iter;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether they have been taken.
static ARE_TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the passed descriptors with their names, in the order of the service manager. Call it before the process opens
/// any file; the second call returns none. A descriptor without a name has an empty one.
///
/// # Errors
/// The environment describes descriptors that do not exist.
pub fn take() -> io::Result<Vec<(String, OwnedFd)>> {
    if ARE_TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(iter::repeat_with(String::new));
    Ok(sd_notify::listen_fds()?
        .zip(names)
        .map(|(fd, name)| {
            // SAFETY: the service manager has opened the descriptor for this process, and `ARE_TAKEN` ensures that
            // nobody else owns it.
            (name, unsafe { OwnedFd::from_raw_fd(fd) })
        })
        .collect())
}
