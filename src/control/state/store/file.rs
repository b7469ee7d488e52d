//! Path, creation and identification of the store's file.
//!
//! A new file gets its name when it is complete and contains the desired state. A kill thus never leaves an empty file
//! or half a schema: such a file is damaged.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::entities::Form;
use super::error::StoreError;
use super::{DesiredState, rows};

/// Mode of the directory: owner and group may enter.
const DIRECTORY_MODE: u32 = 0o750;

/// Mode of the file: the owner may write, the group may read.
const FILE_MODE: u32 = 0o640;

/// Application id of our files: "vifs".
const APPLICATION: i64 = 0x7669_6673;

/// Minimum format version that can read a file with the configuration as a whole. Raised only for changes that older
/// versions would misread; others raise [`VERSION`](rows::VERSION).
pub const FORMAT: i64 = 1;

/// The same with the configuration in rows.
pub const FORMAT_ROWS: i64 = 2;

/// Description of what is no regular file.
pub const NOT_A_FILE: &str = "a FIFO, directory or device";

/// Minimum length of a database: the library treats a shorter file as an empty one.
const SHORTEST: u64 = 512;

/// Schema. `part`: `base`, `config`, `orphans`, `loops`, `event_ids` (the greatest one that
/// is reserved), `version` (of the format, and of the switch that wrote last).
/// `at`: microseconds since 1970. `ends`: bytes of all events up to this one. Stations are saved alternately to two
/// sets of tables, so that one is always complete; `current` tells which, and since when, in milliseconds since 1970.
const SCHEMA: &str = "
    CREATE TABLE desired (part TEXT NOT NULL PRIMARY KEY, json TEXT NOT NULL) STRICT;
    CREATE TABLE events (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, ends INTEGER NOT NULL, json TEXT NOT NULL) STRICT;
    CREATE TABLE current (one INTEGER PRIMARY KEY CHECK (one = 1), stations INTEGER NOT NULL, saved_at INTEGER NOT NULL) STRICT;
    CREATE TABLE places_0 (place INTEGER PRIMARY KEY, network TEXT NOT NULL, port TEXT NOT NULL) STRICT;
    CREATE TABLE places_1 (place INTEGER PRIMARY KEY, network TEXT NOT NULL, port TEXT NOT NULL) STRICT;
    CREATE TABLE stations_0 (mac INTEGER NOT NULL, place INTEGER NOT NULL, age INTEGER NOT NULL) STRICT;
    CREATE TABLE stations_1 (mac INTEGER NOT NULL, place INTEGER NOT NULL, age INTEGER NOT NULL) STRICT;
    INSERT INTO current VALUES (1, 0, 0);
";

/// Returns the absolute path of the store's file. Creates a missing directory, and a missing file with the desired state
/// `first`.
pub fn provide(path: &Path, first: Option<&DesiredState>) -> Result<PathBuf, StoreError> {
    // The library interprets ":memory:" and "file:…", but not absolute paths.
    let path = std::path::absolute(path).map_err(|why| StoreError::File { path: path.to_owned(), why })?;
    match fs::metadata(&path) {
        Ok(file) if !file.is_file() => Err(StoreError::Foreign { path, what: NOT_A_FILE }),
        Ok(file) if file.len() < SHORTEST => {
            Err(StoreError::Corrupt { path, why: format!("truncated to {} bytes", file.len()) })
        }
        Ok(_) => Ok(path),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            create(&path, first)?;
            Ok(path)
        }
        Err(why) => Err(StoreError::File { path, why }),
    }
}

/// Checks application id and format. Returns the form of the configuration.
pub fn recognise(database: &Connection, path: &Path) -> Result<Form, StoreError> {
    let read = |pragma: &str| -> Result<i64, StoreError> {
        database.pragma_query_value(None, pragma, |row| row.get(0)).map_err(|why| StoreError::from_sqlite(path, why))
    };
    let path = path.to_owned();
    match (read("application_id")?, read("user_version")?) {
        (APPLICATION, FORMAT) => Ok(Form::Whole),
        (APPLICATION, FORMAT_ROWS) => Ok(Form::Rows),
        (APPLICATION, found) if found > FORMAT_ROWS => Err(StoreError::Newer { path, found, known: FORMAT_ROWS }),
        (APPLICATION, found) => Err(StoreError::Corrupt { path, why: format!("unknown format {found}") }),
        _ => Err(StoreError::Foreign { path, what: "a database of another program" }),
    }
}

/// Free bytes of the file system.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let system = rustix::fs::statvfs(path)?;
    Ok(system.f_bavail.saturating_mul(system.f_frsize))
}

/// Creates a store with the desired state `first` at the absolute `path`.
fn create(path: &Path, first: Option<&DesiredState>) -> Result<(), StoreError> {
    // The second is used only until a new file has a log.
    let journals = ["-wal", "-journal"].map(|suffix| beside(path, suffix));
    if let Some(journal) = journals.into_iter().find(|journal| journal.exists()) {
        return Err(StoreError::LeftBehind { path: path.to_owned(), journal });
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    create_directory(directory).map_err(|why| StoreError::Directory { path: directory.to_owned(), why })?;

    let file = |why: io::Error| match why.kind() {
        io::ErrorKind::StorageFull => StoreError::Full { path: path.to_owned() },
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            StoreError::ReadOnly { path: path.to_owned() }
        }
        _ => StoreError::File { path: path.to_owned(), why },
    };
    let new = tempfile::Builder::new().prefix(".state-").tempfile_in(directory).map_err(file)?;
    // Independent of the umask.
    new.as_file().set_permissions(Permissions::from_mode(FILE_MODE)).map_err(file)?;
    fill(new.path(), first).map_err(|why| StoreError::from_sqlite(path, why))?;
    // Does not replace a file created meanwhile.
    new.persist_noclobber(path).map_err(|e| file(e.error))?;
    sync(directory).map_err(file)
}

/// Writes schema and desired state to a file, and syncs it.
fn fill(path: &Path, first: Option<&DesiredState>) -> rusqlite::Result<()> {
    let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "synchronous", "EXTRA")?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    first.map_or(Ok(()), |first| rows::put_desired(&transaction, first))?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()?;
    connection.close().map_err(|(_, why)| why)
}

/// Creates a directory and its parents durably.
fn create_directory(directory: &Path) -> io::Result<()> {
    let missing = directory.ancestors().take_while(|directory| !directory.exists()).count();
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
    directory.ancestors().skip(1).take(missing).try_for_each(sync)
}

/// Syncs a directory.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The path with `suffix` appended.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
