//! Network namespaces: runs a closure inside one.
//!
//! Each call starts a thread that enters the namespace and ends with the call, so that no other thread changes its
//! namespace. Only a thread made for such calls ([`visit_from_here`]) enters by itself and returns: threads that come and go
//! delay each other, and all others, by their changes of the address space. A socket or tap opened inside belongs to that
//! namespace and works from any thread.

use std::cell::RefCell;
use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{FileType, Mode, OFlags, fstat, fstatfs};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Directory of the namespaces that `ip netns` has named.
pub const NAMED: &str = "/run/netns";

/// NSFS_MAGIC: magic number of the file system of namespaces.
pub(super) const NSFS: i64 = 0x6e73_6673;

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Netns {
    /// The namespace of this process.
    #[default]
    Host,
    /// Named by `ip netns`.
    Named(String),
    /// Bound to a file, such as `/proc/1234/ns/net`.
    At(PathBuf),
}

impl Netns {
    /// Parses user input: a path if it contains a slash, else a name.
    pub fn written(text: &str) -> Netns {
        if text.contains('/') { Netns::At(text.into()) } else { Netns::Named(text.into()) }
    }

    /// File that the namespace is bound to; `None` for the host's.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Netns::Host => None,
            Netns::Named(name) => Some(Path::new(NAMED).join(name)),
            Netns::At(path) => Some(path.clone()),
        }
    }

    /// Opens the file that the namespace is bound to; `None` for the host's.
    pub(super) fn file(&self) -> io::Result<Option<File>> {
        self.path().map(|path| open(self, &path)).transpose()
    }

    /// Identity of the namespace that is bound now; `None` for the host's, which never changes, or if there is none.
    /// After an error, for example without a free file descriptor, it is unknown whether there is one. Blocks as long as
    /// the file system does.
    pub fn identity(&self) -> io::Result<Option<Identity>> {
        let Some(path) = self.path() else { return Ok(None) };
        let file = match find(&path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            found => found?,
        };
        let stat = fstat(&file)?;
        Ok(is_namespace(&file)?.then_some(Identity { device: stat.st_dev, inode: stat.st_ino }))
    }
}

impl Netns {
    /// Whether both refer to the same namespace now. Blocks as long as the file system does.
    pub fn is_same(&self, other: &Netns) -> io::Result<bool> {
        let identity = |of: &Netns| match of {
            Netns::Host => Netns::At(PathBuf::from("/proc/self/ns/net")).identity(),
            named => named.identity(),
        };
        let this = identity(self)?;
        Ok(this.is_some() && identity(other)? == this)
    }

    /// Whether the file exists and no namespace is bound to it, as far as this process can see. Blocks as long as the
    /// file system does.
    pub fn is_unbound(&self) -> bool {
        let Some(file) = self.path().and_then(|path| find(&path).ok()) else { return false };
        let kind = fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
        matches!(is_namespace(&file), Ok(false)) && kind == Ok(FileType::RegularFile)
    }
}

/// Identity of a namespace, unique while something keeps the namespace alive, such as a tap opened inside.
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

/// Descriptor of the calling thread's namespace, which keeps it alive.
pub fn here() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// A call that opens the namespace of a file's netdev or socket.
struct GetNetns<const CALL: Opcode>;

// SAFETY: the opcode takes no argument, and returns a new file descriptor, as the caller of `is_in_this_namespace` ensures.
unsafe impl<const CALL: Opcode> Ioctl for GetNetns<CALL> {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        CALL
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(returned: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the kernel has opened the descriptor for this call.
        Ok(unsafe { OwnedFd::from_raw_fd(returned) })
    }
}

/// Whether the netdev or socket behind `file` is in the calling thread's namespace.
///
/// # Safety
///
/// For this file, the ioctl `CALL` takes no argument, and fails or returns a new descriptor of the namespace.
pub(super) unsafe fn is_in_this_namespace<const CALL: Opcode>(file: impl AsFd) -> io::Result<bool> {
    // SAFETY: ensured by the caller.
    let there = unsafe { ioctl(file, GetNetns::<CALL>) }?;
    let (there, here) = (fstat(&there)?, fstat(here()?)?);
    Ok((there.st_dev, there.st_ino) == (here.st_dev, here.st_ino))
}

/// Runs `work` inside `netns`, in a separate thread, and waits for it. Errors are those of entering, never of `work`;
/// [`io::ErrorKind::NotFound`]: the namespace does not exist yet.
pub fn within<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    within_file(netns, netns.file()?.as_ref(), work)
}

/// The same with the open file of `netns`, which leads to one namespace, whatever becomes of its name.
pub(super) fn within_file<T: Send>(
    netns: &Netns,
    file: Option<&File>,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    if let Some(mut visit) = Visit::begin()? {
        if let Some(file) = file {
            visit.enter(netns, file)?;
        }
        return Ok(work());
    }
    let mut result = None;
    in_a_thread(Box::new(|| {
        let entered = file.map_or(Ok(()), |file| enter(netns, file));
        result = Some(entered.map(|()| work()));
    }))?;
    result.expect("the thread has ended")
}

/// Runs `work` in a thread of its own, and waits for it. Not generic, so that it is compiled once.
fn in_a_thread(work: Box<dyn FnOnce() + Send + '_>) -> io::Result<()> {
    thread::scope(|scope| {
        let visitor = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        visitor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(())
    })
}

/// Where a thread is that visits namespaces by itself.
enum Visitor {
    /// In the namespace of its own, which this file leads to.
    Home(File),
    /// On a visit.
    Away,
    /// On a visit that has ended: returning failed.
    Lost(File),
}

thread_local! {
    static VISITOR: RefCell<Option<Visitor>> = const { RefCell::new(None) };
}

/// From now on [`within`] uses the calling thread itself, which returns to its present namespace after each call. Calls
/// within a call have threads of their own.
///
/// # Errors
///
/// No file descriptor is free; `within` continues to use other threads.
pub fn visit_from_here() -> io::Result<()> {
    let home = here()?.into();
    VISITOR.set(Some(Visitor::Home(home)));
    Ok(())
}

/// A visit by the calling thread. Its end returns to the thread's own namespace.
struct Visit {
    /// Leads to the thread's own namespace.
    home: Option<File>,
    has_left: bool,
}

impl Visit {
    /// `None` if the thread makes no visits, or is on one.
    ///
    /// # Errors
    ///
    /// The thread has not returned from an earlier visit, and cannot.
    fn begin() -> io::Result<Option<Visit>> {
        let home = match VISITOR.take() {
            Some(Visitor::Home(home)) => home,
            Some(Visitor::Lost(home)) => {
                if let Err(why) = enter(&Netns::Host, &home) {
                    VISITOR.set(Some(Visitor::Lost(home)));
                    // Of no kind that says something about the namespace to be entered.
                    return Err(io::Error::other(format!("cannot return from another namespace: {why}")));
                }
                home
            }
            other => {
                VISITOR.set(other);
                return Ok(None);
            }
        };
        VISITOR.set(Some(Visitor::Away));
        Ok(Some(Visit { home: Some(home), has_left: false }))
    }

    fn enter(&mut self, netns: &Netns, file: &File) -> io::Result<()> {
        enter(netns, file)?;
        self.has_left = true;
        Ok(())
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let is_home = !self.has_left || enter(&Netns::Host, &home).is_ok();
        VISITOR.set(Some(if is_home { Visitor::Home(home) } else { Visitor::Lost(home) }));
    }
}

/// Opens a namespace file. Other files are not opened: opening a FIFO would block, and a device may react to it.
fn open(netns: &Netns, path: &Path) -> io::Result<File> {
    let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{netns}: {what}")));
    if matches!(netns, Netns::Named(name) if name.contains('/') || matches!(name.as_str(), "" | "." | "..")) {
        return wrong("not a valid namespace name");
    }
    let found = find(path)?;
    if is_namespace(&found)? {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = format!("/proc/thread-self/fd/{}", found.as_raw_fd());
        return Ok(rustix::fs::open(path, flags, Mode::empty())?.into());
    }
    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
        // `ip netns add` creates the file first and then binds the namespace to it.
        FileType::RegularFile => Err(unbound(netns)),
        FileType::Fifo => wrong("this is a FIFO, not a network namespace"),
        FileType::Directory => wrong("this is a directory, not a network namespace"),
        _ => wrong("not a network namespace"),
    }
}

/// Opens `path` with O_PATH.
fn find(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn is_namespace(file: &OwnedFd) -> io::Result<bool> {
    Ok(fstatfs(file)?.f_type == NSFS)
}

/// Whether entering a namespace failed because no namespace is bound to its file.
pub fn is_unbound(error: &io::Error) -> bool {
    // Errors of the operating system have no inner error.
    error.kind() == io::ErrorKind::NotFound && error.get_ref().is_some()
}

fn unbound(netns: &Netns) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{netns}: no network namespace is bound to this file"))
}

fn enter(netns: &Netns, netns_file: &File) -> io::Result<()> {
    move_into_link_name_space(netns_file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| match e {
        // EINVAL: a namespace of another kind.
        rustix::io::Errno::INVAL => unbound(netns),
        e => e.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_in_the_host_namespace_runs_on_another_thread() {
        let here = thread::current().id();
        assert!(within(&Netns::Host, || thread::current().id()).unwrap() != here);
    }

    #[test]
    fn a_visitor_uses_no_other_thread_but_within_a_visit() {
        let visitor = thread::spawn(|| {
            visit_from_here().unwrap();
            let here = thread::current().id();
            let there =
                within(&Netns::Host, || (thread::current().id(), within(&Netns::Host, || thread::current().id())));
            let (outer, inner) = there.unwrap();
            assert_eq!(outer, here);
            assert_ne!(inner.unwrap(), here);
            let panicked = std::panic::catch_unwind(|| within(&Netns::Host, || panic!("a word")));
            assert!(panicked.is_err());
            assert_eq!(within(&Netns::Host, || thread::current().id()).unwrap(), here);
        });
        visitor.join().unwrap();
    }

    #[test]
    fn a_visitor_returns_from_each_visit() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: needs root, to make a namespace");
        }
        let visitor = thread::spawn(|| {
            let home = here_is();
            visit_from_here().unwrap();
            let name = format!("vift-visit-{}", std::process::id());
            let ip = |command: &str| std::process::Command::new("ip").args(["netns", command, &name]).status().unwrap();
            assert!(ip("add").success());
            let netns = Netns::Named(name.clone());
            let there = within(&netns, here_is);
            let after = here_is();
            let panicked = std::panic::catch_unwind(|| within(&netns, || panic!("a word"))).is_err();
            assert!(ip("del").success());
            assert_ne!(there.unwrap(), home);
            assert_eq!((after, here_is(), panicked), (home.clone(), home, true));
        });
        visitor.join().unwrap();
    }

    /// The namespace of the calling thread.
    fn here_is() -> PathBuf {
        std::fs::read_link("/proc/thread-self/ns/net").unwrap()
    }

    #[test]
    fn a_missing_namespace_has_its_own_error() {
        for netns in
            [Netns::written("vift-nowhere"), Netns::written("/proc/self/ns/nothing"), Netns::written("/proc/version")]
        {
            let e = within(&netns, || ()).unwrap_err();
            // Without root, opening fails before the file is checked.
            assert!(matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied), "{netns}: {e}");
        }
        assert_eq!(within(&Netns::Named("..".into()), || ()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for (path, what) in
            [(fifo.as_path(), "a FIFO"), (dir.path(), "a directory"), (Path::new("/dev/null"), "not a network")]
        {
            let netns = Netns::At(path.to_owned());
            let e = within(&netns, || ()).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
            assert!(e.to_string().contains(what), "{e}");
            assert_eq!(netns.identity().unwrap(), None);
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(
            within(&Netns::At(file), || ()).unwrap_err().kind(),
            io::ErrorKind::NotFound,
            "the namespace may be created later"
        );
    }

    #[test]
    fn one_namespace_has_one_identity() {
        let ours = Netns::written("/proc/self/ns/net").identity().unwrap();
        assert!(ours.is_some());
        assert_eq!(ours, Netns::written("/proc/thread-self/ns/net").identity().unwrap());
        assert_ne!(ours, Netns::written("/proc/self/ns/uts").identity().unwrap());
        assert_eq!(Netns::written("vift-nowhere").identity().unwrap(), None);
    }

    #[test]
    #[should_panic(expected = "a word")]
    fn a_panic_is_propagated() {
        let _ = within(&Netns::Host, || panic!("a word"));
    }
}
