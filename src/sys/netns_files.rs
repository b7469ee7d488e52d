//! Paths of network namespaces that are given as open files: the file to which a namespace is bound already, or one in a
//! directory of the switch to which it is bound here.
//!
//! A file of the switch is shared by all that use the namespace, and removed once nothing uses it
//! ([`remove_unused`]). It keeps its namespace alive, also over a kill of the switch.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{fstat, fstatfs};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::netns::{NAMED, NSFS, Netns};

/// `NS_GET_NSTYPE` of linux/nsfs.h: type of a namespace.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Prefix of the names of files of the switch; the inode of the namespace follows.
const PREFIX: &str = "net-";

/// Held while files are made or removed.
static FILES: Mutex<()> = Mutex::new(());

/// Requests that use files of the switch which may not be in the configuration yet.
static USERS: AtomicUsize = AtomicUsize::new(0);

/// Number of such requests so far.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// A path of a network namespace.
#[derive(Debug)]
pub struct NamespacePath {
    /// The path.
    pub path: PathBuf,
    /// While this exists, the file is not removed; `None` for a file of others.
    pub user: Option<FileUser>,
}

/// Keeps files of the switch.
#[derive(Debug)]
pub struct FileUser(());

impl FileUser {
    fn new() -> FileUser {
        USERS.fetch_add(1, Ordering::SeqCst);
        REQUESTS.fetch_add(1, Ordering::SeqCst);
        FileUser(())
    }
}

impl Drop for FileUser {
    fn drop(&mut self) {
        USERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Directory of these files of a switch whose API listens at `socket`.
pub fn directory_beside(socket: &Path) -> PathBuf {
    socket.with_file_name("netns")
}

/// Number of requests that have used files of the switch so far, if none does now.
pub fn requests() -> Option<u64> {
    let requests = REQUESTS.load(Ordering::SeqCst);
    (USERS.load(Ordering::SeqCst) == 0).then_some(requests)
}

/// A path of the network namespace whose file is open as `file`. If none is visible to this process, binds it to a file in
/// `directory`. Blocks.
///
/// # Errors
/// It is not a network namespace, or cannot be bound.
pub fn path_of(file: &impl AsFd, directory: &Path) -> io::Result<NamespacePath> {
    let fd = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    if !is_network_namespace(file) {
        let shown = fs::read_link(&fd)?.to_string_lossy().into_owned();
        return Err(wrong(format!("{shown}, not a network namespace; pass one, as opened from /proc/PID/ns/net")));
    }
    let root = format!("net:[{}]", fstat(file)?.st_ino);
    if let Some(path) = bound_by_others(file, &root, directory)? {
        return Ok(NamespacePath { path, user: None });
    }
    let _files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let user = Some(FileUser::new());
    let path = directory.join(format!("{PREFIX}{}", fstat(file)?.st_ino));
    if is_at(file, &path)? {
        return Ok(NamespacePath { path, user });
    }
    fs::create_dir_all(directory)?;
    // Of a namespace that has ended: nothing is bound to it, or another one with the same inode was.
    remove(&path);
    File::create_new(&path)?;
    if let Err(why) = mount_bind(fd.as_str(), &path) {
        remove(&path);
        let why = io::Error::from(why);
        let text = format!(
            "the namespace has no name that the switch sees, and the switch cannot bind it to a file ({why}); give it a name, \
             as `ip netns attach NAME PID` does, and use that"
        );
        return Err(io::Error::new(why.kind(), text));
    }
    Ok(NamespacePath { path, user })
}

/// Whether a file is a network namespace.
fn is_network_namespace(file: &impl AsFd) -> bool {
    // SAFETY: the descriptor is open during the call, which takes no argument and reads or writes no memory of this
    // process. Other files refuse it, or give it another meaning: their file system is another one.
    let kind = || unsafe { libc::ioctl(file.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    fstatfs(file).is_ok_and(|system| system.f_type == NSFS) && kind() == libc::CLONE_NEWNET
}

/// The file outside `directory` to which the namespace is bound, as far as this process sees it.
fn bound_by_others(file: &impl AsFd, root: &str, directory: &Path) -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // 36 35 0:4 net:[4026531840] /run/netns/a rw shared:23 - nsfs nsfs rw
    let of_namespace = mounts.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields.get(3) == Some(&root)).then(|| unescaped(fields.get(4).copied().unwrap_or_default()))
    });
    let mut paths: Vec<PathBuf> = of_namespace.filter(|path| !path.starts_with(directory)).collect();
    // Named ones first, in a defined order.
    paths.sort_by_key(|path| (!path.starts_with(NAMED), path.clone()));
    for path in paths {
        // Something else may be mounted over it.
        if is_at(file, &path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Whether the path leads to the namespace whose file is open.
fn is_at(file: &impl AsFd, path: &Path) -> io::Result<bool> {
    let open = Netns::At(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into());
    open.is_same(&Netns::At(path.to_owned()))
}

/// A path in mountinfo, which has space, tab, newline and backslash as octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let mut path = text.to_owned();
    for (escaped, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(escaped, character);
    }
    path.into()
}

/// Removes files in `directory` that are not `used`, if no request has come since `requests` was read. Blocks.
pub fn remove_unused(directory: &Path, used: &HashSet<PathBuf>, requests: u64) {
    let _files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    if self::requests() != Some(requests) {
        return;
    }
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_ours && !used.contains(&entry.path()) {
            remove(&entry.path());
        }
    }
}

/// Unbinds and removes a file. What fails is tried again at the next start.
fn remove(path: &Path) {
    let _ = unmount(path, UnmountFlags::DETACH);
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for (path, what) in [("/dev/null", "/dev/null"), ("/proc/self/ns/uts", "uts:[")] {
            let file = File::open(path).unwrap();
            let why = path_of(&file, directory.path()).unwrap_err();
            assert!(why.to_string().contains(what) && why.kind() == io::ErrorKind::InvalidInput, "{why}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn paths_in_mountinfo_are_unescaped() {
        assert_eq!(unescaped("/run/a\\040b\\134c"), Path::new("/run/a b\\c"));
        assert_eq!(unescaped("/run/netns/a"), Path::new("/run/netns/a"));
    }

    #[test]
    fn only_unused_files_of_the_switch_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["net-1", "net-2", "other"] {
            fs::write(at(name), "").unwrap();
        }
        let left = || {
            let mut left: Vec<String> = fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            left.sort();
            left
        };
        let used = HashSet::from([at("net-2")]);
        let before = requests().unwrap();
        let user = FileUser::new();
        assert_eq!(requests(), None);
        remove_unused(directory.path(), &used, before);
        drop(user);
        remove_unused(directory.path(), &used, before);
        assert_eq!(left(), ["net-1", "net-2", "other"], "a request has come since");
        remove_unused(directory.path(), &used, requests().unwrap());
        assert_eq!(left(), ["net-2", "other"]);
    }
}
