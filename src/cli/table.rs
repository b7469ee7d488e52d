//! Formats tables for the terminal: no borders, text left-aligned, numbers right-aligned and shortened.

use std::fmt::Write;

use comfy_table::{CellAlignment, presets};

/// A column with its title.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    /// Aligned to the left.
    Text(&'static str),
    /// Aligned to the right.
    Number(&'static str),
}

/// Formats `rows` below the titles of `columns`; `none` if there are no rows.
pub fn draw<const N: usize>(columns: [Column; N], rows: impl IntoIterator<Item = [String; N]>, none: &str) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.map(|column| match column {
        Column::Text(title) | Column::Number(title) => title,
    }));
    table.add_rows(rows.into_iter().map(|row| row.map(printable)));
    if table.is_empty() {
        return format!("{none}\n");
    }
    for (drawn, column) in table.column_iter_mut().zip(columns) {
        drawn.set_padding((0, 2));
        drawn.set_cell_alignment(match column {
            Column::Text(_) => CellAlignment::Left,
            Column::Number(_) => CellAlignment::Right,
        });
    }
    table.lines().fold(String::new(), |mut text, line| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", line.trim_end());
        text
    })
}

/// Text of an empty cell.
pub fn empty_cell() -> String {
    "-".into()
}

/// Replaces control characters, which could move the cursor or split the line, by U+FFFD. Names come from users.
pub fn printable(text: String) -> String {
    if text.contains(char::is_control) { text.replace(char::is_control, "\u{fffd}") } else { text }
}

/// A count with SI prefix: `999`, `12.3k`.
pub fn count(n: u64) -> String {
    scaled(n, ["", "k", "M", "G", "T", "P", "E"])
}

/// Bytes: `999 B`, `12.3 kB`.
pub fn bytes(n: u64) -> String {
    scaled(n, [" B", " kB", " MB", " GB", " TB", " PB", " EB"])
}

/// `n` with one decimal place and its unit; truncated, not rounded.
fn scaled(n: u64, units: [&str; 7]) -> String {
    let mut size = 1;
    for unit in units {
        if n / size < 1000 {
            return match size {
                1 => format!("{n}{unit}"),
                _ => format!("{}.{}{unit}", n / size, n / (size / 10) % 10),
            };
        }
        size *= 1000;
    }
    unreachable!("a u64 is less than 1000 E")
}

/// A duration in its two largest units: `45s`, `5m 3s`, `2h 10m`, `3d 4h`.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if days > 0 => format!("{days}d {}h", hours % 24),
        () if hours > 0 => format!("{hours}h {}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m {}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["fw-3".into(), "7".into()], ["a".into(), "1234".into()]];
        let text = draw([Column::Text("VM"), Column::Number("DROPS")], rows, "no VMs");
        assert_eq!(text, "VM    DROPS\nfw-3      7\na      1234\n");
    }

    #[test]
    fn an_empty_table_is_printed_as_such() {
        assert_eq!(draw([Column::Text("VM")], [], "no VMs"), "no VMs\n");
    }

    #[test]
    fn a_name_cannot_break_the_table() {
        let text = draw([Column::Text("VM")], [["a\nb\x1b[2J".into()]], "no VMs");
        assert_eq!(text, "VM\na\u{fffd}b\u{fffd}[2J\n");
    }

    #[test]
    fn numbers_are_short() {
        for (n, short) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (12_345, "12.3 kB"),
            (999_999, "999.9 kB"),
            (1_000_000, "1.0 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(n), short);
        }
        assert_eq!(count(1_234_567), "1.2M");
        assert_eq!([0, 59, 303, 7800, 273_600].map(duration), ["0s", "59s", "5m 3s", "2h 10m", "3d 4h"]);
    }
}
