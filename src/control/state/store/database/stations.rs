//! Saves and reads learned stations.
//!
//! **Stations are saved in steps**, each a transaction of its own, to the set of tables that is not current. The last
//! step makes it current, so that the current set is always complete. Some disk space is reserved for the desired
//! state: if the file cannot grow, the log cannot be checkpointed, and nothing can be stored.
//!
//! **Stations are in blocks**, a row per block, because a start waits for them: reading a row takes longer than decoding
//! a station. Earlier versions have a row per station, read only these, and do not empty the blocks: a set with rows of
//! stations is one of theirs.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Transaction, params};

use super::Database;
use crate::control::state::store::rows::text;
use crate::control::state::store::{StoreError, StoredPlace, StoredStation, file};
use crate::time::Stamp;
use crate::wire::Mac;

/// Minimum free space for saving stations: the longest log, as much growth of the file, and as much again for changes.
const RESERVE: u64 = 16 << 20;

/// Bytes of a station in a block: MAC address (8), number of the place (4) and age in seconds (4), each little-endian.
const RECORD: usize = 16;

/// A save of stations in progress.
#[derive(Debug)]
pub(super) struct StationSave {
    /// Set of tables.
    set: i64,
    /// Ports so far, with their numbers.
    places: HashMap<Arc<StoredPlace>, u32>,
    /// Stations so far.
    count: i64,
}

impl Database {
    /// Starts a save of stations. Abandons an unfinished one.
    pub fn begin_stations(&mut self) -> Result<(), StoreError> {
        self.check_space()?;
        let current: i64 = self
            .connection
            .query_row("SELECT stations FROM current", [], |row| row.get(0))
            .map_err(self.to_store_error())?;
        let set = 1 - current;
        self.saving = None;
        self.transact(|transaction| clear(transaction, set))?;
        self.saving = Some(StationSave { set, places: HashMap::new(), count: 0 });
        Ok(())
    }

    /// Adds stations to the save. Abandons it on failure.
    pub fn add_stations(&mut self, stations: &[StoredStation]) -> Result<(), StoreError> {
        let Some(mut saving) = self.saving.take() else { return Err(StoreError::Closed) };
        match self.try_add_stations(stations, &mut saving) {
            Ok(()) => self.saving = Some(saving),
            Err(why) => {
                // Frees its space, which a commit may need next. If this fails too, the next save does it.
                let _ = self.transact(|transaction| clear(transaction, saving.set));
                return Err(why);
            }
        }
        Ok(())
    }

    fn check_space(&self) -> Result<(), StoreError> {
        let free = file::free_space(&self.path).map_err(|why| StoreError::File { path: self.path.clone(), why })?;
        if free >= RESERVE {
            return Ok(());
        }
        Err(StoreError::Scarce { path: self.path.clone(), reserve: RESERVE })
    }

    fn try_add_stations(&mut self, stations: &[StoredStation], saving: &mut StationSave) -> Result<(), StoreError> {
        self.check_space()?;
        let StationSave { set, places, count } = saving;
        self.transact(|transaction| {
            let mut add_place = transaction.prepare(&format!("INSERT INTO places_{set} VALUES (?1, ?2, ?3)"))?;
            let mut add = transaction.prepare(&format!("INSERT INTO station_blocks_{set} VALUES (?1, ?2)"))?;
            let mut block = Vec::with_capacity(stations.len() * RECORD);
            for StoredStation { place, mac_address, age_seconds } in stations {
                let number = match places.get(place) {
                    Some(number) => *number,
                    None => {
                        // There are fewer: each is a port.
                        let number = u32::try_from(places.len()).unwrap_or(u32::MAX);
                        add_place.execute(params![number, place.network_id, place.port_id])?;
                        places.insert(place.clone(), number);
                        number
                    }
                };
                block.extend_from_slice(&mac_address.bits().to_le_bytes());
                block.extend_from_slice(&number.to_le_bytes());
                block.extend_from_slice(&age_seconds.to_le_bytes());
            }
            if !block.is_empty() {
                add.execute(params![*count, block])?;
                *count += i64::try_from(stations.len()).unwrap_or(i64::MAX);
            }
            Ok(())
        })
    }

    /// Makes the added stations current, as of `now`, and deletes the earlier ones.
    pub fn finish_stations(&mut self, now: &Stamp) -> Result<(), StoreError> {
        let Some(StationSave { set, .. }) = self.saving.take() else { return Err(StoreError::Closed) };
        self.transact(|transaction| {
            transaction.execute("UPDATE current SET stations = ?1, saved_at = ?2", [set, now.wall_millis])?;
            transaction.execute(
                "INSERT INTO desired VALUES ('stations', ?1) ON CONFLICT (part) DO UPDATE SET json = excluded.json",
                [text(now)],
            )?;
            clear(transaction, 1 - set)
        })
    }

    /// At most `max` of the stations saved last from a cursor on, aged by the time from then to `now`, and the next
    /// cursor, if there are more.
    pub fn stations(
        &self,
        now: &Stamp,
        from: i64,
        max: usize,
    ) -> Result<(Vec<StoredStation>, Option<i64>), StoreError> {
        let (set, saved_at) = self
            .connection
            .query_row("SELECT stations, saved_at FROM current", [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
            .map_err(self.to_store_error())?;
        // Earlier versions stored the wall clock only, and may have saved since.
        let stamp = self.part("stations")?.and_then(|stamp| serde_json::from_value::<Stamp>(stamp).ok());
        let stamp = stamp.filter(|stamp| stamp.wall_millis == saved_at).unwrap_or(Stamp::of_wall(saved_at));
        let passed = u32::try_from(stamp.age(now).as_secs()).unwrap_or(u32::MAX);
        let places = self.places(set).map_err(self.to_store_error())?;
        let mut page = Page { places, passed, max, found: Vec::new() };
        let next = if self.has_rows_of_stations(set).map_err(self.to_store_error())? {
            self.read_rows(set, from, &mut page).map_err(self.to_store_error())?
        } else {
            self.read_blocks(set, from, &mut page)?
        };
        Ok((page.found, next))
    }

    /// The ports of a set of tables, by number.
    fn places(&self, set: i64) -> rusqlite::Result<Vec<Arc<StoredPlace>>> {
        let mut find =
            self.connection.prepare(&format!("SELECT place, network, port FROM places_{set} ORDER BY place"))?;
        let (mut rows, mut places) = (find.query([])?, Vec::new());
        while let Some(row) = rows.next()? {
            // They are numbered without gaps.
            if usize::try_from(row.get::<_, i64>(0)?) == Ok(places.len()) {
                places.push(StoredPlace { network_id: row.get(1)?, port_id: row.get(2)? }.into());
            }
        }
        Ok(places)
    }

    /// Whether an earlier version has saved this set: it has a row per station.
    fn has_rows_of_stations(&self, set: i64) -> rusqlite::Result<bool> {
        self.connection.query_row(&format!("SELECT EXISTS (SELECT 1 FROM stations_{set})"), [], |row| row.get(0))
    }

    fn read_rows(&self, set: i64, from: i64, page: &mut Page) -> rusqlite::Result<Option<i64>> {
        let mut find = self
            .connection
            .prepare(&format!("SELECT rowid, mac, place, age FROM stations_{set} WHERE rowid > ?1 ORDER BY rowid"))?;
        let mut rows = find.query([from])?;
        while let Some(row) = rows.next()? {
            page.push(row.get::<_, i64>(1)?.cast_unsigned(), row.get::<_, i64>(2)?, row.get(3)?);
            if page.is_full() {
                return row.get(0).map(Some);
            }
        }
        Ok(None)
    }

    /// `from`: stations that are skipped.
    fn read_blocks(&self, set: i64, from: i64, page: &mut Page) -> Result<Option<i64>, StoreError> {
        let (table, failed) = (format!("station_blocks_{set}"), self.to_store_error());
        if !self.connection.table_exists(None, table.as_str()).map_err(&failed)? {
            return Ok(None);
        }
        let mut find = self
            .connection
            .prepare(&format!(
                "SELECT first, stations FROM {table}
                 WHERE first >= (SELECT max(first) FROM {table} WHERE first <= ?1) ORDER BY first"
            ))
            .map_err(&failed)?;
        let mut rows = find.query([from]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            let (first, bytes): (i64, _) = (row.get(0).map_err(&failed)?, row.get_ref(1).map_err(&failed)?);
            let (records, rest) = bytes.as_blob().unwrap_or_default().as_chunks::<RECORD>();
            if !rest.is_empty() {
                return Err(self.corrupt(format!("{table}: the block at {first} has a part of a station")));
            }
            let skipped = usize::try_from(from.saturating_sub(first)).unwrap_or_default();
            for (at, record) in records.iter().enumerate().skip(skipped) {
                let [m0, m1, m2, m3, m4, m5, m6, m7, p0, p1, p2, p3, a0, a1, a2, a3] = *record;
                let mac = u64::from_le_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
                page.push(mac, u32::from_le_bytes([p0, p1, p2, p3]).into(), u32::from_le_bytes([a0, a1, a2, a3]));
                if page.is_full() {
                    return Ok(i64::try_from(at + 1).ok().and_then(|count| first.checked_add(count)));
                }
            }
        }
        Ok(None)
    }
}

/// Stations that are being read.
struct Page {
    places: Vec<Arc<StoredPlace>>,
    /// Seconds since they were saved.
    passed: u32,
    max: usize,
    found: Vec<StoredStation>,
}

impl Page {
    fn push(&mut self, mac: u64, place: i64, age: u32) {
        let Some(place) = usize::try_from(place).ok().and_then(|place| self.places.get(place)) else { return };
        let (place, age_seconds) = (place.clone(), age.saturating_add(self.passed));
        self.found.push(StoredStation { place, mac_address: Mac::from_bits(mac), age_seconds });
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.max
    }
}

/// Empties a set of tables.
fn clear(transaction: &Transaction<'_>, set: i64) -> rusqlite::Result<()> {
    transaction.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS station_blocks_{set} (first INTEGER PRIMARY KEY, stations BLOB NOT NULL) STRICT;
         DELETE FROM station_blocks_{set}; DELETE FROM stations_{set}; DELETE FROM places_{set};"
    ))
}
