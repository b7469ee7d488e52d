//! What the hook remembers of a domain from one call to the next: that it comes from another host, that it is starting, and
//! that its ports are to be deleted. One file per domain, in a directory that the host empties when it starts.
//!
//! One lock is held for all of a call that changes something, so that what one call deletes late, another one does not attach at
//! the same time. The kernel releases it when the hook ends.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::domain::Domain;
use super::error::HookError;
use crate::wire::Mac;

/// Ends the name of a record.
const ENDING: &str = ".json";

/// Maximum bytes of a record.
const MAX_LEN: u64 = 256 << 10;

/// Maximum records that are read.
const MAX_RECORDS: usize = 16_384;

/// What is remembered of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The VM: name of the domain.
    pub vm: String,
    /// The domain comes from another host.
    pub incoming: bool,
    /// The domain is being started, and its ports are attached at once when all of its taps are there.
    pub starting: bool,
    /// The domain has stopped; its ports are to be deleted.
    pub gone: bool,
    /// MAC addresses of its ports.
    pub macs: Vec<String>,
}

impl Record {
    /// The record of a domain, of which nothing is remembered.
    pub fn of(domain: &Domain) -> Record {
        let macs = domain.ports.iter().map(|port| port.mac.to_string()).collect();
        Record { vm: domain.name.clone(), macs, ..Record::default() }
    }

    /// Whether a tap with this MAC address is one of a port that is attached when the domain starts.
    pub fn awaits_tap(&self, tap: Mac) -> bool {
        let is_same = |mac: Mac| mac.octets()[1..] == tap.octets()[1..];
        self.starting && self.macs.iter().filter_map(|mac| mac.parse().ok()).any(is_same)
    }
}

/// The directory of records.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

/// The same, locked.
#[derive(Debug)]
pub struct Locked {
    directory: PathBuf,
    _lock: File,
}

impl Records {
    /// Those in this directory, which need not exist.
    pub fn of(directory: &Path) -> Records {
        Records { directory: directory.to_owned() }
    }

    /// Whether something is remembered of a domain.
    pub fn has(&self, uuid: &str) -> bool {
        fs::symlink_metadata(path(&self.directory, uuid)).is_ok()
    }

    /// Locks the directory. Waits for another call; the deadline of the hook limits that.
    pub fn lock(&self) -> Result<Locked, HookError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(HookError::file("create", &self.directory))?;
        let path = self.directory.join("lock");
        let opened = File::options().create(true).write(true).truncate(false).mode(0o600).open(&path);
        let lock = opened.map_err(HookError::file("open", &path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| HookError::file("lock", &path)(e.into()))?;
        Ok(Locked { directory: self.directory.clone(), _lock: lock })
    }
}

impl Locked {
    /// The record of a domain; `None` if there is none that can be read.
    pub fn read(&self, uuid: &str) -> Option<Record> {
        read(&path(&self.directory, uuid)).ok()
    }

    /// Writes the record of a domain, whole or not at all.
    pub fn write(&self, uuid: &str, record: &Record) -> Result<(), HookError> {
        let path = path(&self.directory, uuid);
        let text = serde_json::to_string(record).unwrap_or_default();
        let made = tempfile::NamedTempFile::new_in(&self.directory).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            Ok(file.persist(&path)?)
        });
        made.map(drop).map_err(HookError::file("write", &path))
    }

    /// Forgets a domain.
    pub fn remove(&self, uuid: &str) -> Result<(), HookError> {
        let path = path(&self.directory, uuid);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(HookError::file("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// All records with the UUIDs of their domains. One that cannot be read is none.
    pub fn all(&self) -> Vec<(String, Record)> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let record = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let uuid = name.strip_suffix(ENDING)?.to_owned();
            Some((uuid, read(&entry.path()).ok()?))
        };
        entries.take(MAX_RECORDS).filter_map(record).collect()
    }
}

/// UUIDs are hexadecimal digits and dashes, see [`Domain`].
fn path(directory: &Path, uuid: &str) -> PathBuf {
    directory.join(format!("{uuid}{ENDING}"))
}

fn read(path: &Path) -> io::Result<Record> {
    let mut text = String::new();
    File::open(path)?.take(MAX_LEN).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record { vm: "fw-3".into(), starting: true, macs: vec!["52:54:00:00:01:0a".into()], ..Record::default() }
    }

    #[test]
    fn records_are_kept_until_they_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::of(&directory.path().join("new"));
        assert!(!records.has("a0"));
        let locked = records.lock().unwrap();
        assert_eq!((locked.read("a0"), locked.all()), (None, vec![]));
        locked.write("a0", &record()).unwrap();
        assert!(records.has("a0"));
        assert_eq!((locked.read("a0"), locked.all()), (Some(record()), vec![("a0".into(), record())]));
        // what cannot be read is none, and is replaced
        fs::write(directory.path().join("new/b1.json"), "{").unwrap();
        assert_eq!((locked.read("b1"), locked.all().len()), (None, 1));
        fs::write(directory.path().join("new/b1.json"), r#"{"vm":"web","gone":true,"of-later":7}"#).unwrap();
        assert_eq!(locked.read("b1"), Some(Record { vm: "web".into(), gone: true, ..Record::default() }));
        locked.write("b1", &record()).unwrap();
        locked.remove("a0").unwrap();
        locked.remove("a0").unwrap();
        assert_eq!(locked.all().len(), 1);
    }

    #[test]
    fn one_call_at_a_time_holds_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::of(directory.path());
        let locked = records.lock().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let other = records.clone();
        let waits = std::thread::spawn(move || {
            let _locked = other.lock().unwrap();
            send.send(()).unwrap();
        });
        assert!(receive.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        drop(locked);
        receive.recv().unwrap();
        waits.join().unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Records::of(&file.path().join("below")).lock().unwrap_err().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_domain_that_starts_awaits_its_taps() {
        for (starting, tap, awaits) in
            [(true, "fe:54:00:00:01:0a", true), (true, "fe:54:00:00:01:0b", false), (false, "fe:54:00:00:01:0a", false)]
        {
            assert_eq!(Record { starting, ..record() }.awaits_tap(tap.parse().unwrap()), awaits, "{starting} {tap}");
        }
    }
}
