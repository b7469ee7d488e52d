//! Appends, reads and deletes stored events.
//!
//! **The history is bounded** in events and bytes: the commit that exceeds a bound deletes the oldest. Events are
//! numbered without gaps, so that finding the oldest costs one query.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use tracing::warn;

use super::{Database, History};
use crate::control::state::event_log::RESERVED;
use crate::control::state::event_page::{PAGE, PAGE_BYTES};
use crate::control::state::events::Event;
use crate::control::state::store::error::StoreError;
use crate::control::state::store::renamed;
use crate::control::state::store::rows::{self, put_parts};

/// Maximum number of stored events after the one with the greatest id. Ids are reserved before events are stored, so that
/// events can be stored out of order.
const MAX_OUT_OF_ORDER: i64 = 1000;

/// Stored events of a page.
#[derive(Debug, PartialEq, Eq)]
pub struct StoredPage {
    /// In order, without those of kinds that only a later version knows.
    pub events: Vec<Event>,
    /// Number of the last row read.
    pub row: i64,
    /// No more rows follow.
    pub is_last: bool,
}

impl Database {
    /// The newest `max` of the events at `since` or later, the oldest first.
    pub fn events(&self, since: Option<&str>, max: usize) -> Result<Vec<Event>, StoreError> {
        let since = since.map_or(Ok(i64::MIN), micros)?;
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut find =
                self.connection.prepare("SELECT json FROM events WHERE at >= ?1 ORDER BY number DESC LIMIT ?2")?;
            find.query_map([since, max], |row| row.get(0))?.collect()
        };
        let texts = read().map_err(self.to_store_error())?;
        let mut events = parse_events(&texts);
        events.reverse();
        Ok(events)
    }

    /// The next stored events behind a row, a bounded number; with `after` those with a greater id.
    pub fn events_page(&self, row: i64, after: Option<u64>) -> Result<StoredPage, StoreError> {
        let after = after.map(u64::cast_signed);
        let most = i64::try_from(PAGE).unwrap_or(i64::MAX);
        let read = || -> rusqlite::Result<(Vec<String>, i64, bool)> {
            let mut find = self.connection.prepare(
                "SELECT number, json FROM events WHERE number > ?1 AND
                 (?2 IS NULL OR CASE WHEN json_valid(json) THEN json_extract(json, '$.id') END > ?2)
                 ORDER BY number LIMIT ?3",
            )?;
            let mut rows = find.query(params![row, after, most])?;
            let (mut texts, mut last, mut bytes) = (Vec::new(), row, 0);
            while let Some(found) = rows.next()? {
                let text: String = found.get(1)?;
                (last, bytes) = (found.get(0)?, bytes + text.len());
                texts.push(text);
                if texts.len() >= PAGE || bytes >= PAGE_BYTES {
                    return Ok((texts, last, false));
                }
            }
            Ok((texts, last, true))
        };
        let (texts, row, is_last) = read().map_err(self.to_store_error())?;
        Ok(StoredPage { events: parse_events(&texts), row, is_last })
    }

    /// The greatest event id that may be in use; 0 if none is. Reserves those behind it durably, or those behind `first`.
    pub fn reserve_ids(&mut self, first: u64) -> Result<u64, StoreError> {
        let reserved = self.part(rows::EVENT_IDS)?.and_then(|id| id.as_u64()).unwrap_or_default();
        let last = self.last_event()?.max(reserved);
        self.settle_ids(if last == 0 { first } else { last } + RESERVED)?;
        Ok(last)
    }

    /// Event ids up to this one may be in use, and no greater ones.
    pub fn settle_ids(&mut self, last: u64) -> Result<(), StoreError> {
        self.put(&[(rows::EVENT_IDS, &last.into())], None, &[], false)
    }

    /// The greatest id of a stored event, including events of unknown kinds; 0 without events.
    pub fn last_event(&self) -> Result<u64, StoreError> {
        // A start waits for this: reads the newest events only.
        let find = "SELECT max(json_extract(json, '$.id')) FROM
            (SELECT json FROM events ORDER BY number DESC LIMIT ?1) WHERE json_valid(json)";
        let found: Option<i64> =
            self.connection.query_row(find, [MAX_OUT_OF_ORDER], |row| row.get(0)).map_err(self.to_store_error())?;
        Ok(found.unwrap_or_default().cast_unsigned())
    }
}

/// Stored events, without those of unknown kinds.
fn parse_events(texts: &[String]) -> Vec<Event> {
    let events: Vec<Event> = texts.iter().filter_map(|text| parse_event(text)).collect();
    if events.len() < texts.len() {
        // New kinds of events do not change the format.
        warn!("skipping {} events of kinds that only a later version of vifswitch knows", texts.len() - events.len());
    }
    events
}

/// A stored event; `None` for an unknown kind.
fn parse_event(text: &str) -> Option<Event> {
    let mut value = serde_json::from_str(text).ok()?;
    renamed::event(&mut value);
    serde_json::from_value(value).ok()
}

/// Appends events, with time and text.
pub(super) fn append(transaction: &Transaction<'_>, events: &[(i64, String)]) -> rusqlite::Result<()> {
    let last = transaction
        .query_row("SELECT number, ends FROM events ORDER BY number DESC LIMIT 1", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })
        .optional()?;
    let (mut number, mut ends) = last.unwrap_or_default();
    let mut put = transaction.prepare("INSERT INTO events VALUES (?1, ?2, ?3, ?4)")?;
    for (at, text) in events {
        number += 1;
        ends += i64::try_from(text.len()).unwrap_or(i64::MAX);
        put.execute(params![number, at, ends, text])?;
    }
    Ok(())
}

/// Reserves ids behind the last stored one, if half of the reserved ones are used.
pub(super) fn renew_ids(transaction: &Transaction<'_>, last: u64) -> rusqlite::Result<()> {
    let find = "SELECT json FROM desired WHERE part = ?1";
    let stored: Option<String> = transaction.query_row(find, [rows::EVENT_IDS], |row| row.get(0)).optional()?;
    let reserved: u64 = stored.and_then(|text| text.parse().ok()).unwrap_or_default();
    // Events of early versions have no ids.
    if last == 0 || reserved >= last + RESERVED / 2 {
        return Ok(());
    }
    put_parts(transaction, &[(rows::EVENT_IDS, &(last + RESERVED).into())])
}

/// Deletes events beyond the bounds.
pub(super) fn prune(transaction: &Transaction<'_>, history: History) -> rusqlite::Result<()> {
    let (last, ends): (i64, i64) =
        transaction.query_row("SELECT number, ends FROM events ORDER BY number DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    transaction.execute("DELETE FROM events WHERE number <= ?1", [last - history.events])?;
    // From the oldest on, those beyond the byte limit. Reads one event that is not deleted.
    let mut find = transaction.prepare("SELECT number, ends - octet_length(json) FROM events ORDER BY number")?;
    let mut rows = find.query([])?;
    let mut too_old = 0;
    while let Some(row) = rows.next()? {
        let (number, starts): (i64, i64) = (row.get(0)?, row.get(1)?);
        if number == last || ends - starts <= history.bytes {
            break;
        }
        too_old = number;
    }
    transaction.execute("DELETE FROM events WHERE number <= ?1", [too_old]).map(drop)
}

/// Parses a time to microseconds since 1970.
pub(super) fn micros(text: &str) -> Result<i64, StoreError> {
    let time: Result<Timestamp, _> = text.parse();
    time.map(Timestamp::as_microsecond).map_err(|_| StoreError::NotATime { text: text.to_owned() })
}
