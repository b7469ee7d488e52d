//! What is recorded of each attachment, in a file of its own: the addresses of its IPAM plugin, so that a repeated ADD answers
//! the same, and that it is to be detached, if the switch did not answer. The next call of the plugin carries that out.
//!
//! A file is written whole or not at all. A lock file beside it is held during a command: commands for one attachment run
//! one after the other, and those for others at the same time.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::result::AddResult;
use crate::time;

/// Ends the name of a record.
const RECORD: &str = ".json";

/// Ends the name of a lock.
const LOCK: &str = ".lock";

/// Maximum bytes of a record.
const MAX_LEN: u64 = 4 << 20;

/// Maximum records that are read of the directory.
const MAX_RECORDS: usize = 16_384;

/// What is recorded of an attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its port.
    pub port_id: String,
    /// Socket of the switch that has the port.
    pub socket: PathBuf,
    /// Owner label of the port.
    pub owner: String,
    /// The port is to be deleted.
    pub is_detached: bool,
    /// MAC address of the port.
    #[serde(default)]
    pub mac: Option<String>,
    /// Result of the IPAM plugin; `None` until it has answered.
    #[serde(default)]
    pub addressing: Option<AddResult>,
}

/// The records of a directory.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

/// The record of one attachment, locked.
#[derive(Debug)]
pub struct Locked {
    path: PathBuf,
    lock: PathBuf,
    _file: File,
}

/// A directory or file in an error.
fn named(path: &Path, doing: &str, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: cannot {doing}: {e}", path.display()))
}

impl Records {
    /// Those of this directory, which is created when the first record is.
    pub fn of(directory: &Path) -> Records {
        Records { directory: directory.to_owned() }
    }

    /// Locks the record of an attachment, which may not exist, within `patience`.
    pub fn lock(&self, port: &str, patience: Duration) -> io::Result<Locked> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|e| named(&self.directory, "create the directory", &e))?;
        let until = time::now() + patience;
        // The holder before may have removed the file, and a third one have created another: then once more.
        loop {
            if let Some(locked) = self.lock_once(port, until.since(time::now()))? {
                return Ok(locked);
            }
            if until <= time::now() {
                let message = format!("another call for port {port:?} has not ended within {} s", patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
        }
    }

    /// The same at once. `None`: a call for the attachment is running.
    pub fn try_lock(&self, port: &str) -> io::Result<Option<Locked>> {
        self.lock_once(port, Duration::ZERO)
    }

    /// Locks the record of an attachment that is to be detached, unless a call for it is running. Leaves no lock behind if the
    /// record has been removed since it was listed.
    pub fn lock_detached(&self, port: &str) -> Option<(Locked, Record)> {
        let locked = self.try_lock(port).ok()??;
        match locked.read(port) {
            Some(record) => record.is_detached.then_some((locked, record)),
            None => {
                if !locked.path.exists() {
                    let _ = locked.remove();
                }
                None
            }
        }
    }

    fn lock_once(&self, port: &str, patience: Duration) -> io::Result<Option<Locked>> {
        let lock = self.directory.join(format!("{port}{LOCK}"));
        let path = self.directory.join(format!("{port}{RECORD}"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::open(&lock, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(opened.map_err(|e| named(&lock, "open the lock", &e.into()))?);
        if !acquire(&file, patience).map_err(|e| named(&lock, "lock it", &e))? {
            return Ok(None);
        }
        let ours = file.metadata()?;
        let is_same = fs::metadata(&lock).is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino()));
        Ok(is_same.then_some(Locked { path, lock, _file: file }))
    }

    /// Ports of all records. Files of others are left alone.
    pub fn ports(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let names = entries.take(2 * MAX_RECORDS).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(RECORD).map(str::to_owned)).collect()
    }

    /// The record of an attachment, as it is now. `None`: there is none, or it cannot be read.
    pub fn peek(&self, port: &str) -> Option<Record> {
        read(&self.directory.join(format!("{port}{RECORD}")), port)
    }
}

/// Locks a file; false after `patience`.
fn acquire(file: &File, patience: Duration) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) if !patience.is_zero() => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        done => return Ok(done.map(|()| true)?),
    }
    // The lock belongs to the open file, which both descriptors share. A thread that is too late closes its own, and with it the
    // lock.
    let file = file.try_clone()?;
    let (done, locked) = mpsc::channel();
    thread::Builder::new().name("lock".into()).spawn(move || {
        let _ = done.send(flock(&file, FlockOperation::LockExclusive));
    })?;
    match locked.recv_timeout(patience) {
        Ok(done) => Ok(done.map(|()| true)?),
        Err(_) => Ok(false),
    }
}

fn read(path: &Path, port: &str) -> Option<Record> {
    if fs::metadata(path).ok()?.len() > MAX_LEN {
        return None;
    }
    let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (record.port_id == port).then_some(record)
}

impl Locked {
    /// The record.
    pub fn read(&self, port: &str) -> Option<Record> {
        read(&self.path, port)
    }

    /// Writes the record, whole or not at all.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let written = || {
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(&serde_json::to_vec(record).map_err(io::Error::other)?)?;
            file.persist(&self.path)?;
            Ok(())
        };
        written().map_err(|e: io::Error| named(&self.path, "write the record", &e))
    }

    /// Removes the record and the lock.
    pub fn remove(self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(named(&self.path, "remove the record", &e)),
            _ => {}
        }
        // Held until here; a lock that stays is empty and harmless.
        let _ = fs::remove_file(&self.lock);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const NOW: Duration = Duration::ZERO;
    const LONG: Duration = Duration::from_secs(20);

    fn record(port: &str) -> Record {
        let addressing = AddResult::parse(&serde_json::json!({ "ips": [{ "address": "10.0.0.5/24" }] })).ok();
        Record {
            port_id: port.into(),
            socket: "/s".into(),
            owner: "cni".into(),
            is_detached: false,
            mac: Some("02:00:00:00:00:01".into()),
            addressing,
        }
    }

    #[test]
    fn a_record_is_read_back_and_removed_with_its_lock() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::of(&directory.path().join("new"));
        assert!(records.ports().is_empty());
        let locked = records.lock("a:b:c", NOW).unwrap();
        assert_eq!(locked.read("a:b:c"), None);
        locked.write(&record("a:b:c")).unwrap();
        assert_eq!((locked.read("a:b:c"), records.ports()), (Some(record("a:b:c")), vec!["a:b:c".to_owned()]));
        locked.remove().unwrap();
        assert_eq!(fs::read_dir(directory.path().join("new")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_record_of_the_port_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::of(directory.path());
        for text in ["", "{", "[]", &serde_json::to_string(&record("other")).unwrap()] {
            fs::write(directory.path().join("a.json"), text).unwrap();
            assert_eq!(records.peek("a"), None, "{text}");
        }
        // A call continues with what is there.
        let locked = records.lock("a", NOW).unwrap();
        locked.write(&record("a")).unwrap();
        assert_eq!(records.peek("a"), Some(record("a")));
    }

    /// A call that carries out what others have left lists the records first; one may be removed before it is locked.
    #[test]
    fn a_record_that_is_gone_leaves_no_lock_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::of(directory.path());
        let files = || fs::read_dir(directory.path()).unwrap().count();
        assert!(records.lock_detached("a").is_none());
        assert_eq!(files(), 0);
        records.lock("a", NOW).unwrap().write(&record("a")).unwrap();
        assert!(records.lock_detached("a").is_none(), "it is attached");
        assert_eq!(records.peek("a"), Some(record("a")));
        let detached = Record { is_detached: true, ..record("a") };
        let held = records.lock("a", NOW).unwrap();
        held.write(&detached).unwrap();
        assert!(records.lock_detached("a").is_none(), "a call for it is running");
        drop(held);
        let (locked, found) = records.lock_detached("a").unwrap();
        assert_eq!(found, detached);
        locked.remove().unwrap();
        fs::write(directory.path().join("a.json"), "{").unwrap();
        assert!(records.lock_detached("a").is_none(), "nobody knows what it is");
        assert!(directory.path().join("a.json").exists());
    }

    #[test]
    fn a_call_for_the_same_attachment_waits_and_others_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::of(directory.path());
        let held = records.lock("a", NOW).unwrap();
        assert_eq!(records.lock("a", NOW).unwrap_err().kind(), io::ErrorKind::TimedOut);
        records.lock("b", NOW).unwrap();
        drop(held);
        records.lock("a", NOW).unwrap();
    }

    /// Locks are removed while others wait for them.
    #[test]
    fn one_at_a_time_holds_a_lock_though_its_file_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let (holders, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let records = Records::of(directory.path());
                    for _ in 0..50 {
                        let locked = records.lock("a", LONG).unwrap();
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        locked.write(&record("a")).unwrap();
                        thread::yield_now();
                        assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1);
                        locked.remove().unwrap();
                        rounds.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((rounds.into_inner(), fs::read_dir(directory.path()).unwrap().count()), (200, 0));
    }
}
