//! The desired state as rows of the database.

use rusqlite::{Transaction, params};
use serde_json::{Value, json};

use super::DesiredState;

/// Format version. 1: both configurations with all defaults, the last applied one as validated. 2: the last applied one as
/// in the file, the configuration without defaults, and with unknown parts.
pub const VERSION: i64 = 2;

/// Row of the configuration file last applied, by its stored name.
pub(super) const LAST_APPLIED: &str = "base";

/// Row of the configuration as a whole.
pub(super) const CONFIG: &str = "config";

/// Row of the version of the format, and of the switch.
pub(super) const WRITTEN_BY: &str = "version";

/// Row of orphaned netdevs, by its stored name.
pub(super) const ORPHANS: &str = "leftovers";

/// Row of the namespaces with which ports end.
pub(super) const LIFETIMES: &str = "lifetimes";

/// Row of the generation.
pub(super) const GENERATION: &str = "generation";

/// Row of the greatest event id that is reserved.
pub(super) const EVENT_IDS: &str = "event_ids";

/// Writes a complete desired state to a new file.
pub(super) fn put_desired(transaction: &Transaction<'_>, desired: &DesiredState) -> rusqlite::Result<()> {
    let DesiredState { last_applied, config, orphans, lifetimes, generation } = desired;
    let (generation, version) = ((*generation).into(), version());
    let parts = [
        (LAST_APPLIED, last_applied),
        (CONFIG, config),
        (ORPHANS, orphans),
        (LIFETIMES, lifetimes),
        (GENERATION, &generation),
        (WRITTEN_BY, &version),
    ];
    put_parts(transaction, &parts)
}

/// Version of the format and of the switch that writes it.
pub(super) fn version() -> Value {
    json!({ "format": VERSION, "switch": env!("CARGO_PKG_VERSION") })
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
