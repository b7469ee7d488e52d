//! The desired state as rows of the database.

use rusqlite::{Transaction, params};
use serde_json::{Value, json};

use super::DesiredState;

/// The version of the format that we write. 1: both configurations with all their defaults, the base as it was meant. 2:
/// the base as the file has it, the configuration without defaults, and with what was not understood.
pub const VERSION: i64 = 2;

/// Writes a complete desired state.
pub(super) fn put_desired(transaction: &Transaction<'_>, desired: &DesiredState) -> rusqlite::Result<()> {
    put_parts(transaction, &parts(desired, &version()))
}

/// The version of the format and of the switch that writes it.
pub(super) fn version() -> Value {
    json!({ "format": VERSION, "switch": env!("CARGO_PKG_VERSION") })
}

/// The parts of a desired state, by the names of their rows.
pub(super) fn parts<'v>(desired: &'v DesiredState, version: &'v Value) -> [(&'static str, &'v Value); 4] {
    let DesiredState { last_applied, config, orphans } = desired;
    [("base", last_applied), ("config", config), ("leftovers", orphans), ("version", version)]
}

/// Writes these parts.
pub(super) fn put_parts(transaction: &Transaction<'_>, parts: &[(&str, &Value)]) -> rusqlite::Result<()> {
    // What is the same is not written again: the base hardly ever changes.
    let mut put = transaction.prepare(
        "INSERT INTO desired VALUES (?1, ?2) ON CONFLICT (part) DO UPDATE SET json = excluded.json
         WHERE json IS NOT excluded.json",
    )?;
    parts.iter().try_for_each(|(part, value)| put.execute(params![part, text(value)]).map(drop))
}

/// As JSON. Neither values nor events have anything in them that is none.
pub(super) fn text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
