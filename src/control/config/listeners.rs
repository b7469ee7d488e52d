//! Lowers the keys of `[switch]` that say where the switch listens beside the socket of the API, and for whom.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::diagnostics::Path;
use super::error::kind;
use super::lowering::Lowering;
use super::model::Writers;
use super::raw;

/// `sun_path` without its final zero.
pub(super) const LONGEST_SOCKET_PATH: usize = 107;

/// Maximum length of a host name in bytes (RFC 1035).
const LONGEST_HOST: usize = 253;

/// Maximum id of a user or group: the next one means none.
const LARGEST_ID: u32 = u32::MAX - 1;

impl Lowering<'_, '_> {
    /// `api_writers`.
    pub fn writers(&mut self, raw: Option<&raw::Writers>) -> Option<Writers> {
        let path = self.path.key("api_writers");
        let raw = raw?;
        let uids = self.ids(&path.key("uids"), raw.uids.as_deref());
        Some(Writers { uids, gids: self.ids(&path.key("gids"), raw.gids.as_deref()) })
    }

    fn ids(&mut self, path: &Path, raw: Option<&[i64]>) -> Vec<u32> {
        let mut ids = Vec::new();
        for (index, id) in raw.unwrap_or_default().iter().enumerate() {
            match u32::try_from(*id) {
                Ok(id) if id <= LARGEST_ID && !ids.contains(&id) => ids.push(id),
                Ok(id) if id <= LARGEST_ID => {
                    let message = "this id is listed already; list each once";
                    self.diagnostics.push(&path.item(index), kind::BAD_VALUE, message);
                }
                _ => {
                    let message = format!("not the number of a user or group; use 0 to {LARGEST_ID}");
                    self.diagnostics.push(&path.item(index), kind::BAD_VALUE, message);
                }
            }
        }
        ids
    }

    /// `api_read`, which needs a path of its own.
    pub fn read_socket(&mut self, raw: &raw::Switch) -> Option<PathBuf> {
        let path = raw.api_read.as_deref()?;
        if !self.is_path("api_read", path, LONGEST_SOCKET_PATH) {
            return None;
        }
        let api = raw.api.as_deref().map_or_else(|| super::SwitchSettings::default().api, PathBuf::from);
        if api.as_os_str() == path {
            let message = "the socket `api` has this path; use another one, such as /run/vifswitch/read.sock";
            self.report("api_read", kind::CONTRADICTION, message);
        }
        Some(PathBuf::from(path))
    }

    /// `pages`, which needs an address of its own.
    pub fn pages(&mut self, raw: &raw::Switch) -> Option<SocketAddr> {
        let pages = self.listener("pages", raw.pages.as_deref(), "127.0.0.1:9478")?;
        let metrics = raw.metrics.as_deref().and_then(|text| text.parse::<SocketAddr>().ok());
        // Port 0 is another one each time.
        if metrics == Some(pages) && pages.port() != 0 {
            let message = "`metrics` has this address; use another port, such as 9478";
            self.report("pages", kind::CONTRADICTION, message);
        }
        Some(pages)
    }

    /// `pages_hosts`.
    pub fn pages_hosts(&mut self, raw: &raw::Switch) -> Vec<String> {
        let Some(hosts) = raw.pages_hosts.as_deref() else { return Vec::new() };
        if raw.pages.is_none() && !hosts.is_empty() {
            self.report("pages_hosts", kind::CONTRADICTION, "used by `pages` only; set it, or remove this key");
        }
        for (index, host) in hosts.iter().enumerate() {
            let path = self.path.key("pages_hosts").item(index);
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            if host.is_empty() || host.len() > LONGEST_HOST || !host.bytes().all(is_name) {
                let message = "not a host name; use one without port, such as switch-1.example.net";
                self.diagnostics.push(&path, kind::BAD_VALUE, message);
            } else if hosts[..index].iter().any(|other| other.eq_ignore_ascii_case(host)) {
                self.diagnostics.push(&path, kind::BAD_VALUE, "this name is listed already; list each name once");
            }
        }
        hosts.to_vec()
    }

    /// Address and port of a TCP listener.
    pub fn listener(&mut self, key: &str, raw: Option<&str>, example: &str) -> Option<SocketAddr> {
        let address = raw?.parse().ok();
        if address.is_none() {
            let message = format!(
                "not an address and port; use one such as {example}, or remove the key to have no such listener"
            );
            self.report(key, kind::BAD_VALUE, message);
        }
        address
    }
}
