//! Fuzz targets: functions that panic on a wrong result, for any bytes. `libfuzzer` calls them with bytes that it makes
//! guided by coverage; `cargo test` with the corpus that it has kept, and some mutations of it.

mod change;
mod config;
mod netlink;
mod segments;
mod sender;
mod state;
mod worker;

/// Name of a target, which is the folder of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const ALL: [Target; 7] = [
    ("change", change::run),
    ("config", config::run),
    ("netlink", netlink::run),
    ("segments", segments::run),
    ("sender", sender::run),
    ("state", state::run),
    ("worker", worker::run),
];

/// Reads numbers and byte strings off an input; zeros and nothing behind its end.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}
