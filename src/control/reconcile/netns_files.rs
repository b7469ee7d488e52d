//! Removes files to which namespaces without a name were bound for clients, when no port or uplink uses them any more.

use std::collections::HashSet;
use std::path::PathBuf;

use super::Controller;
use crate::control::config::Device;
use crate::sys::netns::Netns;
use crate::sys::netns_files;

/// When unused files were last looked for.
#[derive(Debug, Default)]
pub(super) struct NetnsFiles {
    /// Number of requests that had used files by then; `None`: never looked.
    requests: Option<u64>,
    /// The configuration has changed since.
    is_changed: bool,
    /// Number of files in use then.
    used: usize,
}

impl NetnsFiles {
    /// The configuration has changed.
    pub fn changed(&mut self) {
        self.is_changed = true;
    }
}

impl Controller {
    /// Removes unused files in the background, after a change or a request that may have made one in vain.
    pub(super) fn remove_unused_files(&mut self) {
        if self.is_busy() || !self.waiting.is_empty() {
            return;
        }
        let Some(requests) = netns_files::requests() else { return };
        if self.netns_files.requests == Some(requests) && !self.netns_files.is_changed {
            return;
        }
        // Where no client passes namespaces, it is looked once, for files of an earlier run.
        let has_none = self.netns_files.requests == Some(requests) && self.netns_files.used == 0;
        if has_none {
            self.netns_files.is_changed = false;
            return;
        }
        let directory = netns_files::directory_beside(&self.config.switch.api);
        let previous = self.unconfirmed.as_ref().map(|unconfirmed| &unconfirmed.previous);
        let devices = std::iter::once(&self.config).chain(previous).flat_map(|config| config.devices());
        let paths = devices.filter_map(Device::netns).map(PathBuf::from);
        let used: HashSet<PathBuf> = paths.filter(|path| path.starts_with(&directory)).collect();
        self.netns_files = NetnsFiles { requests: Some(requests), is_changed: false, used: used.len() };
        self.jobs.run(&Netns::Host, move || netns_files::remove_unused(&directory, &used, requests));
    }
}
