//! The recorded generations in the database: a table of its own, which versions that know no history do not read.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde_json::Value;

/// A recorded generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// Its number.
    pub generation: u64,
    /// The entry as JSON.
    pub text: Arc<str>,
}

impl HistoryRow {
    fn is(&self, other: &HistoryRow) -> bool {
        self.generation == other.generation && Arc::ptr_eq(&self.text, &other.text)
    }
}

/// Makes the table have `wanted`. `written`: what it has; `None` if unknown.
pub fn write(
    transaction: &Transaction<'_>,
    wanted: &[HistoryRow],
    written: Option<&[HistoryRow]>,
) -> rusqlite::Result<()> {
    if written.is_none() {
        transaction.execute_batch(
            "CREATE TABLE IF NOT EXISTS history (generation INTEGER PRIMARY KEY, json TEXT NOT NULL) STRICT;
             DELETE FROM history;",
        )?;
    }
    let written = written.unwrap_or_default();
    let is_in = |row: &HistoryRow, rows: &[HistoryRow]| rows.iter().any(|known| known.is(row));
    for row in written.iter().filter(|row| !is_in(row, wanted)) {
        transaction.execute("DELETE FROM history WHERE generation = ?1", [row.generation.cast_signed()])?;
    }
    for row in wanted.iter().filter(|row| !is_in(row, written)) {
        let row = params![row.generation.cast_signed(), &*row.text];
        transaction.execute("INSERT OR REPLACE INTO history VALUES (?1, ?2)", row)?;
    }
    Ok(())
}

/// All rows, ascending; none in a file of a version that knows no history.
pub fn read(database: &Connection) -> rusqlite::Result<Vec<HistoryRow>> {
    if !has_table(database)? {
        return Ok(Vec::new());
    }
    let mut find = database.prepare("SELECT generation, json FROM history ORDER BY generation")?;
    let row = |row: &rusqlite::Row<'_>| {
        Ok(HistoryRow { generation: row.get::<_, i64>(0)?.cast_unsigned(), text: row.get::<_, String>(1)?.into() })
    };
    find.query_map([], row)?.collect()
}

/// Whether this version of the program recorded this generation: then no other one has written since.
pub fn is_recorded(database: &Connection, generation: u64, version: &Value) -> rusqlite::Result<bool> {
    if !has_table(database)? {
        return Ok(false);
    }
    let find = "SELECT json FROM history WHERE generation = ?1";
    let text: Option<String> = database.query_row(find, [generation.cast_signed()], |row| row.get(0)).optional()?;
    let entry: Value = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Ok(!version.is_null() && entry["version"] == version["switch"])
}

fn has_table(database: &Connection) -> rusqlite::Result<bool> {
    database.table_exists(None, "history")
}
