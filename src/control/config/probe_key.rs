//! `probe_key`: where the key is that authenticates loop probes to other hosts. The configuration names a file and never has
//! the key itself, because everyone who can read the API can read the configuration.

use std::path::PathBuf;

use super::error::kind;
use super::lowering::Lowering;

/// What precedes the path.
pub(super) const KEY_FILE: &str = "file:";

/// Maximum length of the path in bytes.
const LONGEST_PATH: usize = 4090;

impl Lowering<'_, '_> {
    /// `probe_key`.
    pub fn probe_key(&mut self, raw: Option<&str>) -> Option<PathBuf> {
        let text = raw?;
        let path = text.strip_prefix(KEY_FILE).filter(|path| path.starts_with('/'));
        let Some(path) = path else {
            self.report(
                "probe_key",
                kind::BAD_VALUE,
                "not a file; use \"file:\" and its absolute path, as in \"file:/etc/vifswitch/probe.key\": a key in the \
                 configuration could be read by everyone who can read that",
            );
            return None;
        };
        self.is_path("probe_key", path, LONGEST_PATH).then(|| PathBuf::from(path))
    }
}
