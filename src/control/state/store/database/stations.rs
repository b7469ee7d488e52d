//! Saves and reads learned stations.
//!
//! **Stations are saved in steps**, each a transaction of its own, to the set of tables that is not current. The last
//! step makes it current, so that the current set is always complete. Some disk space is reserved for the desired
//! state: if the file cannot grow, the log cannot be checkpointed, and nothing can be stored.

use std::collections::HashMap;

use rusqlite::{Transaction, params};

use super::Database;
use crate::control::state::store::rows::text;
use crate::control::state::store::{StoreError, StoredStation, file};
use crate::time::Stamp;
use crate::wire::Mac;

/// Minimum free space for saving stations: the longest log, as much growth of the file, and as much again for changes.
const RESERVE: u64 = 16 << 20;

/// A save of stations in progress.
#[derive(Debug)]
pub(super) struct StationSave {
    /// Set of tables.
    set: i64,
    /// Ports so far: network, port, number.
    places: HashMap<String, HashMap<String, i64>>,
    next_place: i64,
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
        self.saving = Some(StationSave { set, places: HashMap::new(), next_place: 0 });
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
        let StationSave { set, places: ids, next_place } = saving;
        self.transact(|transaction| {
            let mut add_place = transaction.prepare(&format!("INSERT INTO places_{set} VALUES (?1, ?2, ?3)"))?;
            let mut add = transaction.prepare(&format!("INSERT INTO stations_{set} VALUES (?1, ?2, ?3)"))?;
            for StoredStation { network_id, mac_address, port_id, age_seconds } in stations {
                let known = ids.get(network_id).and_then(|ports| ports.get(port_id)).copied();
                let place = match known {
                    Some(place) => place,
                    None => {
                        add_place.execute(params![*next_place, network_id, port_id])?;
                        ids.entry(network_id.clone()).or_default().insert(port_id.clone(), *next_place);
                        *next_place += 1;
                        *next_place - 1
                    }
                };
                add.execute(params![mac_address.bits().cast_signed(), place, age_seconds])?;
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
        let read = || -> rusqlite::Result<Vec<(i64, StoredStation)>> {
            let mut find = self.connection.prepare(&format!(
                "SELECT network, mac, port, age, stations_{set}.rowid FROM stations_{set} JOIN places_{set} USING (place)
                 WHERE stations_{set}.rowid > ?1 ORDER BY stations_{set}.rowid LIMIT ?2"
            ))?;
            let station = |row: &rusqlite::Row<'_>| {
                let station = StoredStation {
                    network_id: row.get(0)?,
                    mac_address: Mac::from_bits(row.get::<_, i64>(1)?.cast_unsigned()),
                    port_id: row.get(2)?,
                    age_seconds: row.get::<_, u32>(3)?.saturating_add(passed),
                };
                Ok((row.get(4)?, station))
            };
            find.query_map(params![from, i64::try_from(max).unwrap_or(i64::MAX)], station)?.collect()
        };
        let found = read().map_err(self.to_store_error())?;
        let next = found.last().filter(|_| found.len() == max).map(|(row, _)| *row);
        Ok((found.into_iter().map(|(_, station)| station).collect(), next))
    }
}

/// Empties a set of tables.
fn clear(transaction: &Transaction<'_>, set: i64) -> rusqlite::Result<()> {
    transaction.execute_batch(&format!("DELETE FROM stations_{set}; DELETE FROM places_{set};"))
}
