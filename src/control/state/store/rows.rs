//! The desired state as rows of the database.

use rusqlite::{Transaction, params};
use serde_json::{Value, json};

use super::DesiredState;

/// Format version. 1: both configurations with all defaults, the last applied one as validated. 2: the last applied one as
/// in the file, the configuration without defaults, and with unknown parts.
pub const VERSION: i64 = 2;

/// Row of orphaned netdevs, by its stored name.
pub(super) const ORPHANS: &str = "leftovers";

/// Row of the generation.
pub(super) const GENERATION: &str = "generation";

/// Row of the greatest event id that is reserved.
pub(super) const EVENT_IDS: &str = "event_ids";

/// Writes a complete desired state.
pub(super) fn put_desired(transaction: &Transaction<'_>, desired: &DesiredState) -> rusqlite::Result<()> {
    put_parts(transaction, &parts(desired, &desired.generation.into(), &version()))
}

/// Version of the format and of the switch that writes it.
pub(super) fn version() -> Value {
    json!({ "format": VERSION, "switch": env!("CARGO_PKG_VERSION") })
}

/// Parts of a desired state, by row name.
pub(super) fn parts<'v>(
    desired: &'v DesiredState,
    generation: &'v Value,
    version: &'v Value,
) -> [(&'static str, &'v Value); 5] {
    let DesiredState { last_applied, config, orphans, generation: _ } = desired;
    [("base", last_applied), ("config", config), (ORPHANS, orphans), (GENERATION, generation), ("version", version)]
}

/// Writes these parts.
pub(super) fn put_parts(transaction: &Transaction<'_>, parts: &[(&str, &Value)]) -> rusqlite::Result<()> {
    // Skips unchanged parts: the last applied configuration rarely changes.
    let mut put = transaction.prepare(
        "INSERT INTO desired VALUES (?1, ?2) ON CONFLICT (part) DO UPDATE SET json = excluded.json
         WHERE json IS NOT excluded.json",
    )?;
    parts.iter().try_for_each(|(part, value)| put.execute(params![part, text(value)]).map(drop))
}

/// As JSON. Serialising values and events cannot fail.
pub(super) fn text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
