//! The unix sockets of the API: bound exclusively, removed at exit; or passed by the service manager, and left.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use axum::serve::Listener;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;
use tokio::net::unix::SocketAddr;

use super::passed::PassingStream;
use crate::sys::netns_files;

/// Who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Owner and group.
    Group,
    /// Everyone who can reach its path.
    All,
}

impl Callers {
    /// File mode.
    fn mode(self) -> Mode {
        Mode::from_raw_mode(match self {
            Callers::Group => 0o660,
            Callers::All => 0o666,
        })
    }
}

/// Listen backlog.
const BACKLOG: i32 = 128;

/// Timeout for another switch that is binding in the same directory, which takes less than a millisecond.
const STARTING: Duration = Duration::from_secs(5);

/// A listening unix socket. Its file is removed on drop.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that another switch's socket is not removed. `None`: the file stays, because the
    /// service manager keeps the socket open.
    file: Option<(u64, u64)>,
    /// Directory for network namespaces that clients pass as descriptors; `None`: none are accepted.
    namespaces: Option<PathBuf>,
}

impl Socket {
    /// Listens at `path` for owner and group.
    pub fn bind(path: &Path) -> io::Result<Socket> {
        Socket::bind_for(Callers::Group, path)
    }

    /// Listens at `path`. Creates a missing directory. Replaces the socket of a dead switch; a live one,
    /// or any other file, is an error. Of several switches that start simultaneously, one listens and the others fail.
    ///
    /// Must be called in a tokio runtime.
    pub fn bind_for(callers: Callers, path: &Path) -> io::Result<Socket> {
        let error = |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{what} {}: {e}", path.display()));
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|e| error("cannot create the directory of", e))?;
        }
        // A socket that is bound but not listening refuses connections, like that of a dead switch.
        let _locked = lock_directory(path).map_err(|e| error("cannot lock the directory of", e))?;
        remove_stale(path)?;
        let listener = listen(path, callers.mode()).map_err(|e| error("cannot listen at", e.into()))?;
        let file = Some(identity(path)?);
        Ok(Socket { listener: UnixListener::from_std(listener)?, path: path.to_owned(), file, namespaces: None })
    }

    /// Listens on a socket that the service manager has passed, bound to `path`. Its file stays at exit.
    ///
    /// Must be called in a tokio runtime.
    pub fn passed(path: &Path, socket: OwnedFd) -> io::Result<Socket> {
        let listener = StdListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Socket { listener: UnixListener::from_std(listener)?, path: path.to_owned(), file: None, namespaces: None })
    }

    /// Accepts network namespaces that clients pass as descriptors.
    pub fn accept_namespaces(&mut self) {
        self.namespaces = Some(netns_files::directory_beside(&self.path));
    }

    /// Leaves the file at exit: the service manager keeps the socket open.
    pub fn keep_file(&mut self) {
        self.file = None;
    }

    /// Whether the service manager keeps it open at exit, so that clients wait for the next process.
    pub fn is_kept(&self) -> bool {
        self.file.is_none()
    }

    /// Whether a socket is bound to this path.
    pub fn is_at(socket: &OwnedFd, path: &Path) -> bool {
        let bound = rustix::net::getsockname(socket).ok().and_then(|bound| SocketAddrUnix::try_from(bound).ok());
        let bound = bound.and_then(|bound| Some(PathBuf::from(OsStr::from_bytes(bound.path()?.to_bytes()))));
        bound.is_some_and(|bound| bound == path)
    }

    /// Device and inode of the file at a path, as text. It shows whether the path still leads to a socket that was bound to
    /// it.
    pub fn file_identity(path: &Path) -> Option<String> {
        identity(path).ok().map(|(device, inode)| format!("{device:x}-{inode:x}"))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path).ok() == self.file {
            // Errors are ignored: the next start replaces a left file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Listener for Socket {
    type Io = PassingStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (PassingStream, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (PassingStream::new(stream, self.namespaces.clone()), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Whether a process is listening at `path`. Error: why none ever could (no socket, invalid path).
pub fn is_listened_at(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
        _ => match probe_connect(path) {
            Ok(()) | Err(Errno::AGAIN) => Ok(true),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        },
    }
}

/// Locks the directory of `path` against other starting switches, until dropped.
fn lock_directory(path: &Path) -> io::Result<OwnedFd> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let (done, locked) = mpsc::channel();
    thread::Builder::new().name("lock".into()).spawn(move || {
        let result = flock(&directory, FlockOperation::LockExclusive);
        // The receiver is gone after the timeout.
        let _ = done.send(result.map(|()| directory));
    })?;
    locked
        .recv_timeout(STARTING)
        .map_err(|_| {
            let why = format!("another process has locked it for {} seconds", STARTING.as_secs());
            io::Error::new(io::ErrorKind::ResourceBusy, why)
        })?
        .map_err(io::Error::from)
}

/// Removes the socket of a dead switch at `path`, if any.
fn remove_stale(path: &Path) -> io::Result<()> {
    let refuse = |kind, why: String| Err(io::Error::new(kind, why));
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return refuse(e.kind(), format!("cannot examine {shown}: {e}")),
        Ok(file) if !file.file_type().is_socket() => {
            let why = format!("{shown} is not a socket, and is not removed; move it away, or use another path");
            return refuse(io::ErrorKind::AlreadyExists, why);
        }
        Ok(_) => {}
    }
    match probe_connect(path) {
        Err(Errno::CONNREFUSED) => {
            fs::remove_file(path).or_else(|e| refuse(e.kind(), format!("cannot remove the old socket {shown}: {e}")))
        }
        Err(Errno::NOENT) => Ok(()),
        // AGAIN: a listener with a full backlog.
        Ok(()) | Err(Errno::AGAIN) => {
            refuse(io::ErrorKind::AddrInUse, format!("another switch is listening at {shown}"))
        }
        Err(e) => {
            let e = io::Error::from(e);
            refuse(e.kind(), format!("cannot find out whether another switch is listening at {shown}: {e}"))
        }
    }
}

/// Tries to connect to `path` without blocking.
fn probe_connect(path: &Path) -> rustix::io::Result<()> {
    rustix::net::connect(stream()?, &SocketAddrUnix::new(path)?)
}

fn stream() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn listen(path: &Path, mode: Mode) -> rustix::io::Result<StdListener> {
    let socket = stream()?;
    // The file gets the socket's mode less the umask, so that at no moment more than these callers may connect. Then
    // restores the bits removed by the umask.
    rustix::fs::fchmod(socket.as_fd(), mode)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, mode)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(StdListener::from(socket))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}
