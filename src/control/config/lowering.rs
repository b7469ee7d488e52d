//! Lowers single values from raw to model.
//!
//! An invalid value is reported and replaced by a placeholder, so that further values are validated too. With errors,
//! the result is discarded. Placeholders for ids, MAC addresses and names (empty, zero, empty) equal no valid value.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::diagnostics::{Diagnostics, Path};
use super::error::kind;
use super::named::Named;
use super::raw;
use crate::wire::Mac;

/// Maximum length of an id in bytes.
pub(super) const LONGEST_ID: usize = 255;

/// Maximum length of a port's or uplink's id in bytes: its netdev's alias is `vifswitch:` and the id, and the kernel
/// limits an alias to 255 bytes with the final zero (`IFALIASZ`; tested).
const LONGEST_PORT_ID: usize = LONGEST_ID - 1 - "vifswitch:".len();

/// Why a text is an invalid id; `None` if it is valid.
pub fn wrong_id(text: &str) -> Option<String> {
    wrong_id_within(LONGEST_ID, text)
}

fn wrong_id_within(max_len: usize, text: &str) -> Option<String> {
    let wrong = match text.len() {
        0 => "empty".to_owned(),
        length if length > max_len => format!("{length} bytes long"),
        _ if text.chars().any(char::is_control) => "contains control characters".to_owned(),
        _ => return None,
    };
    Some(format!("{wrong}; use 1 to {max_len} bytes without control characters"))
}

/// Path of a table, and the collected errors.
pub(super) struct Lowering<'a, 'd> {
    pub path: Path,
    pub diagnostics: &'a mut Diagnostics<'d>,
}

/// Lowers each table of a list.
pub(super) fn lower_each<W, M>(
    path: &Path,
    tables: Option<&[W]>,
    diagnostics: &mut Diagnostics<'_>,
    mean: impl Fn(Lowering<'_, '_>, &W) -> M,
) -> Vec<M> {
    let tables = tables.unwrap_or_default().iter().enumerate();
    tables
        .map(|(index, table)| mean(Lowering { path: path.item(index), diagnostics: &mut *diagnostics }, table))
        .collect()
}

impl Lowering<'_, '_> {
    /// An id.
    pub fn id(&mut self, key: &str, raw: Option<&str>) -> String {
        self.id_within(LONGEST_ID, key, raw)
    }

    /// An optional id.
    pub fn label(&mut self, key: &str, raw: Option<&str>) -> Option<String> {
        raw.map(|label| self.id(key, Some(label)))
    }

    /// An id of a port or uplink.
    pub fn port_id(&mut self, key: &str, raw: Option<&str>) -> String {
        self.id_within(LONGEST_PORT_ID, key, raw)
    }

    fn id_within(&mut self, max_len: usize, key: &str, raw: Option<&str>) -> String {
        let Some(text) = raw else {
            if self.is_missing(key) {
                self.report(key, kind::MISSING, format!("required: a text of 1 to {max_len} bytes"));
            }
            return String::new();
        };
        let Some(wrong) = wrong_id_within(max_len, text) else { return text.to_string() };
        self.report(key, kind::BAD_VALUE, wrong);
        String::new()
    }

    /// A unicast MAC address.
    pub fn station(&mut self, key: &str, raw: Option<&str>) -> Mac {
        let message = match raw.map(str::parse::<Mac>) {
            Some(Ok(mac)) if mac.is_station() => return mac,
            Some(Ok(mac)) if mac.is_group() => {
                "a group address, which no station has; use an even first octet, as in 02:00:00:00:01:0a".to_string()
            }
            Some(Ok(_)) => "no station has the address zero; use an address such as 02:00:00:00:01:0a".to_string(),
            Some(Err(error)) => error.to_string(),
            None if self.is_missing(key) => {
                self.report(key, kind::MISSING, "required: an address such as 02:00:00:00:01:0a");
                return Mac::ZERO;
            }
            None => return Mac::ZERO,
        };
        self.report(key, kind::BAD_VALUE, message);
        Mac::ZERO
    }

    /// Whether a text is a valid path.
    pub fn is_path(&mut self, key: &str, text: &str, max_len: usize) -> bool {
        let wrong = match text.len() {
            0 => "empty".to_string(),
            length if length > max_len => format!("{length} bytes long"),
            _ if text.chars().any(char::is_control) => "contains control characters".to_string(),
            _ => return true,
        };
        self.report(key, kind::BAD_VALUE, format!("{wrong}; use 1 to {max_len} bytes without control characters"));
        false
    }

    /// A keyword of `T`.
    pub fn keyword<T: Named>(&mut self, key: &str, raw: Option<&str>, default: T) -> T {
        let Some(text) = raw else { return default };
        if let Some((_, value)) = T::NAMES.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let words = raw::list(T::NAMES.iter().map(|(name, _)| name));
        self.report(key, kind::BAD_VALUE, format!("invalid; use one of {words}"));
        default
    }

    /// A number within limits.
    pub fn number<T>(&mut self, key: &str, raw: Option<i64>, limits: RangeInclusive<T>, default: T) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let Some(number) = raw else { return default };
        match T::try_from(number) {
            Ok(number) if limits.contains(&number) => number,
            _ => {
                let message = format!("out of bounds; use {} to {}", limits.start(), limits.end());
                self.report(key, kind::BAD_VALUE, message);
                default
            }
        }
    }

    /// Reports an error of `key` of this table.
    pub fn report(&mut self, key: &str, kind: &'static str, message: impl Into<String>) {
        self.diagnostics.push(&self.path.key(key), kind, message);
    }

    /// Whether this table exists and lacks `key`.
    pub fn is_missing(&self, key: &str) -> bool {
        self.diagnostics.is_missing(&self.path.key(key))
    }
}
