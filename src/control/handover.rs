//! Counters and the state of policers, handed over to the next process at an orderly stop in a file beside the state.
//!
//! They are written when the workers have stopped, so that no frame is missing, and not synced: after a power loss
//! counters begin at zero and policers with a full burst, as after a kill. The next start reads the file once and deletes
//! it. A file of another version, and one that is damaged, is not used.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::control::compile::endpoints::Kind;
use crate::control::compile::policers::Deficits;
use crate::control::config::Config;
use crate::telemetry::values::Values;
use crate::telemetry::{PortCounters, WorkerCounters};
use crate::time::Stamp;

/// Version of the format.
const VERSION: u32 = 1;

/// Maximum length of the file in bytes.
const LONGEST: u64 = 64 << 20;

/// What a process hands over.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    version: u32,
    /// Counters of ports by id, summed over workers.
    ports: BTreeMap<String, Values>,
    /// The same of uplinks.
    uplinks: BTreeMap<String, Values>,
    /// Counters of workers, summed.
    workers: Values,
    /// State of the policers, and when it was so.
    #[serde(default)]
    policers: Option<(Deficits, Stamp)>,
}

impl Handover {
    /// Counters of endpoints and workers.
    pub fn new<'a>(
        endpoints: impl Iterator<Item = ((Kind, &'a str), &'a [Arc<PortCounters>])>,
        workers: &[Arc<WorkerCounters>],
    ) -> Handover {
        let mut handover = Handover { version: VERSION, ..Handover::default() };
        for ((kind, id), counters) in endpoints {
            let values = handover.of(kind).entry(id.to_owned()).or_default();
            counters.iter().for_each(|counters| counters.add_to(values));
        }
        workers.iter().for_each(|counters| counters.add_to(&mut handover.workers));
        handover
    }

    /// The same with the state of policers.
    pub fn with_policers(mut self, deficits: Deficits) -> Handover {
        self.policers = Some((deficits, Stamp::now()));
        self
    }

    /// Takes the state of policers, and how long ago it was so.
    pub fn take_policers(&mut self) -> Option<(Deficits, Duration)> {
        let (deficits, at) = self.policers.take()?;
        Some((deficits, at.passed(&Stamp::now())))
    }

    fn of(&mut self, kind: Kind) -> &mut BTreeMap<String, Values> {
        if kind == Kind::Uplink { &mut self.uplinks } else { &mut self.ports }
    }

    /// Path of the file beside a state.
    pub fn path(state: &Path) -> PathBuf {
        let mut path = state.as_os_str().to_owned();
        path.push(".counters");
        path.into()
    }

    /// Reads the file, if there is one, and deletes it. Blocks.
    pub fn take(path: &Path) -> Handover {
        match read(path) {
            Ok(found) => found,
            Err(why) => {
                warn!("{}: {why}; counters begin at zero", path.display());
                None
            }
        }
        .unwrap_or_default()
    }

    /// Writes the file. Blocks.
    ///
    /// # Errors
    /// It cannot be written; what was there before is gone.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let _ = fs::remove_file(path);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path)?;
        file.write_all(&serde_json::to_vec(self)?)
    }

    /// Sets the counters of the first worker, before it runs. Ports that are not configured any more count as removed.
    pub fn set_workers(&mut self, config: &Config, first: &WorkerCounters) {
        first.set_values(&self.workers);
        let is_gone = |kind: Kind, id: &str| match kind {
            Kind::Uplink => config.uplinks.iter().all(|uplink| uplink.id != id),
            Kind::Port | Kind::Subport => config.ports().all(|(_, port)| port.id() != id),
        };
        for kind in [Kind::Port, Kind::Uplink] {
            self.of(kind).retain(|id, values| {
                let is_kept = !is_gone(kind, id);
                if let Some(counters) = PortCounters::of(values).filter(|_| !is_kept) {
                    first.add_removed(&counters);
                }
                is_kept
            });
        }
    }

    /// Takes the counters of an endpoint; zeros if there are none.
    pub fn take_port(&mut self, (kind, id): (Kind, &str)) -> Arc<PortCounters> {
        let values = self.of(kind).remove(id);
        values.and_then(|values| PortCounters::of(&values)).unwrap_or_default().into()
    }
}

fn read(path: &Path) -> Result<Option<Handover>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(why.to_string()),
    };
    // First: what cannot be used is not read again.
    fs::remove_file(path).map_err(|why| format!("cannot be deleted: {why}"))?;
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).map_err(|why| why.to_string())?;
    let found: Handover =
        serde_json::from_slice(&text).map_err(|why| format!("damaged, or of another version: {why}"))?;
    if found.version != VERSION {
        return Err(format!("format {} of another version of vifswitch; this one reads {VERSION}", found.version));
    }
    let all = found.ports.values().chain(found.uplinks.values());
    if all.clone().any(|values| PortCounters::of(values).is_none()) {
        return Err("has counters that only another version of vifswitch knows".to_owned());
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse_json;

    fn counters(frames: u64) -> Arc<PortCounters> {
        let counters = PortCounters::default();
        counters.tx_frames.set(frames);
        counters.into()
    }

    #[test]
    fn counters_are_read_once_and_summed() {
        let dir = tempfile::tempdir().unwrap();
        let path = Handover::path(&dir.path().join("state.db"));
        assert_eq!(Handover::take(&path), Handover::default());
        let (two, one) = ([counters(3), counters(4)], [counters(5)]);
        let ports = [
            ((Kind::Port, "a"), &two[..]),
            ((Kind::Subport, "s"), &two[..]),
            ((Kind::Uplink, "up"), &one[..]),
            ((Kind::Subport, "gone"), &one[..]),
        ];
        let worker = Arc::new(WorkerCounters::default());
        worker.peer_tx_frames.set(3);
        worker.peer_rx_frames.set(3);
        Handover::new(ports.into_iter(), &[worker.clone(), worker]).save(&path).unwrap();
        let mut found = Handover::take(&path);
        assert!(!path.exists());
        let config = parse_json(
            r#"{"networks": [{"id": "n"}], "uplinks": [{"id": "up", "device": {"kind": "xdp", "name": "x"},
                "networks": [{"network_id": "n"}]}], "vms": [{"id": "v", "ports": [{"port_id": "a", "network_id": "n",
                "mac_address": "02:00:00:00:00:01", "device": {"kind": "tap", "name": "t"}}, {"port_id": "s",
                "network_id": "n", "mac_address": "02:00:00:00:00:02", "parent": "a", "vlan": 7}]}]}"#,
            "x",
        );
        let first = WorkerCounters::default();
        found.set_workers(&config.unwrap(), &first);
        let mut sums = Values::new();
        first.add_to(&mut sums);
        let expected = [("peer_rx_frames", 6), ("peer_tx_frames", 6), ("removed.tx_frames", 5)];
        assert_eq!(sums, expected.map(|(name, value)| (name.to_owned(), value)).into());
        assert_eq!(found.take_port((Kind::Port, "a")).tx_frames.get(), 7);
        assert_eq!(found.take_port((Kind::Port, "a")).tx_frames.get(), 0, "once");
        assert_eq!(found.take_port((Kind::Subport, "s")).tx_frames.get(), 7);
        assert_eq!(found.take_port((Kind::Uplink, "up")).tx_frames.get(), 5);
    }

    /// Buckets refill in the time between two processes: by the wall clock, if the host was booted in between.
    #[test]
    fn the_time_since_the_last_run_is_known_to_policers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counters");
        let at = Stamp::of_wall(Stamp::now().wall_millis - 5000);
        let policers = Some((Deficits::default(), at));
        Handover { version: VERSION, policers, ..Handover::default() }.save(&path).unwrap();
        let mut found = Handover::take(&path);
        let (_, passed) = found.take_policers().unwrap();
        assert!((Duration::from_secs(5)..Duration::from_secs(60)).contains(&passed), "{passed:?}");
        assert!(found.take_policers().is_none(), "once");
    }

    #[test]
    fn what_another_version_has_written_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counters");
        let good = r#"{"version": 1, "ports": {"a": {"rx_frames": 1}}, "uplinks": {}, "workers": {}}"#;
        fs::write(&path, good).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().take_port((Kind::Port, "a")).rx_frames.get(), 1);
        for (from, to) in [("1,", "2,"), ("rx_frames", "rx_parcels"), ("}}", ""), ("{\"version", "\0")] {
            fs::write(&path, good.replacen(from, to, 1)).unwrap();
            assert!(read(&path).is_err(), "{from}");
            assert!(!path.exists(), "{from}");
        }
    }
}
