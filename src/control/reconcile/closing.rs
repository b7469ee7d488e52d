//! Closes devices and removes netdevs that the switch created, as jobs; each returns a [`DeviceEvent`].

use std::collections::HashMap;

use tracing::{info, warn};

use super::Controller;
use super::jobs::OVERDUE_AFTER;
use super::results::DeviceEvent;
use crate::control::config::Config;
use crate::control::desired::orphans::{self, OrphanNetdev, Orphans};
use crate::device::{self, Device, DeviceLocation, OpenError, Removal, Settings};
use crate::sys::netns::Netns;

/// A device to be closed.
#[derive(Default)]
pub(super) struct ClosingPort {
    /// The port, by its key.
    pub port: u64,
    /// Its queues, no longer polled.
    pub queues: Vec<Box<dyn Device>>,
    /// Settings of the netdev to remove, if the switch created it.
    pub remove: Option<Settings>,
    /// Namespaces in which the configuration has a netdev of this name for the same port. If one is the same namespace
    /// by another path, the netdev stays.
    pub wanted: Vec<Netns>,
}

impl Controller {
    /// Closes devices in the background, those of one namespace together.
    pub(super) fn close(&mut self, closings: Vec<ClosingPort>) {
        let mut by_netns: HashMap<Option<Netns>, Vec<ClosingPort>> = HashMap::new();
        for mut closing in closings {
            self.descriptors.release(closing.port);
            if let Some(&index) = self.port_index.get(&closing.port) {
                self.ports[index].closing += 1;
            }
            closing.wanted =
                closing.remove.as_ref().and_then(OrphanNetdev::of).map_or_else(Vec::new, |of| self.wanted(&of));
            let of = closing.remove.as_ref().map(|settings| settings.netns().clone());
            by_netns.entry(of).or_default().push(closing);
        }
        for (of, closings) in by_netns {
            let done = self.device_event_sender.clone();
            self.jobs.run(&of.clone().unwrap_or_default(), move || {
                let mut closings = closings;
                let mut unknown: HashMap<u64, OpenError> = HashMap::new();
                for closing in &mut closings {
                    let Some(of) = &closing.remove else { continue };
                    let stays = is_any_same(&closing.wanted, &of.at()).unwrap_or_else(|why| {
                        unknown.insert(closing.port, why);
                        true
                    });
                    closing.remove = closing.remove.take().filter(|_| !stays);
                }
                let remove: Vec<Settings> = closings.iter().filter_map(|closing| closing.remove.clone()).collect();
                let results = of.map(|of| device::remove(&of, &remove)).unwrap_or_default();
                let mut results = results.into_iter();
                for ClosingPort { port, queues, remove, .. } in closings {
                    drop(queues);
                    let failed = remove.as_ref().and_then(|_| results.next()?.err());
                    let failed = failed.or_else(|| unknown.remove(&port));
                    let removed = remove.as_ref().filter(|_| failed.is_none()).and_then(OrphanNetdev::of);
                    let warning =
                        failed.map(|why| format!("removing its netdev failed; retried at the next start: {why}"));
                    let _ = done.send(DeviceEvent::Closed { port, removed, warning });
                }
            });
        }
    }

    /// Closes queues that are no longer polled, in the background.
    pub(super) fn close_queues(&mut self, queues: Vec<(u64, Box<dyn Device>)>) {
        let mut by_port: HashMap<u64, ClosingPort> = HashMap::new();
        for (port, queue) in queues {
            by_port.entry(port).or_insert_with(|| ClosingPort { port, ..ClosingPort::default() }).queues.push(queue);
        }
        self.close(by_port.into_values().collect());
    }

    /// Removes an orphaned netdev in the background.
    pub(super) fn remove_orphan(&self, orphan: OrphanNetdev) {
        let (done, wanted) = (self.device_event_sender.clone(), self.wanted(&orphan));
        let inherited = self.descriptors.copies(&orphan.port_id);
        self.jobs.run(&orphan.at().netns, move || {
            let result = match is_any_same(&wanted, &orphan.at()) {
                Ok(true) => Ok(Removal::Gone),
                Ok(false) => device::remove_left(&orphan.at(), &orphan.port_id, inherited),
                Err(why) => Err(why),
            };
            let _ = done.send(DeviceEvent::OrphanRemoved { left: orphan, result });
        });
    }

    /// Other namespaces in which the configuration has a netdev of this name for the same port.
    fn wanted(&self, orphan: &OrphanNetdev) -> Vec<Netns> {
        let netdevs = orphans::of_port(&self.config, &orphan.port_id);
        netdevs.filter(|wanted| wanted.is_in_other_namespace(orphan)).map(|wanted| wanted.at().netns).collect()
    }

    /// Removes orphans whose names conflict with netdevs of `config`, and returns the others. Stops waiting after a
    /// timeout.
    pub(super) async fn remove_conflicting_orphans(&mut self, config: &Config) -> Orphans {
        let wanted = orphans::netdevs(config);
        let in_the_way = |orphan: &OrphanNetdev| wanted.iter().any(|wanted| wanted.conflicts_with(orphan));
        let (first, later): (Orphans, Orphans) = self.orphans.iter().cloned().partition(in_the_way);
        first.iter().cloned().for_each(|orphan| self.remove_orphan(orphan));
        let clear = async {
            for _ in first {
                if let Some(outcome) = self.device_events.recv().await {
                    self.receive(outcome).await;
                }
            }
        };
        if tokio::time::timeout(OVERDUE_AFTER, clear).await.is_err() {
            warn!("netdevs of an earlier run have not been removed within {} seconds", OVERDUE_AFTER.as_secs());
        }
        later
    }

    /// Removes the kept descriptors of ports that are not configured. Without its state the switch does not know them.
    pub(super) fn release_other_descriptors(&mut self) {
        let is_known = self.recovered.is_none() && self.state.check().is_ok();
        // Ports have taken theirs when their change has been answered.
        if is_known && self.applying.is_none() && self.pending.is_empty() {
            self.descriptors.release_others();
        }
    }

    pub(super) fn record_removal(&mut self, orphan: OrphanNetdev, result: Result<Removal, OpenError>) {
        let (at, port) = (orphan.at(), &orphan.port_id);
        match result {
            Ok(Removal::Gone) => {}
            Ok(Removal::Done) => info!("{at} has been removed: orphan of port {port:?}"),
            Ok(Removal::InUse) => {
                warn!("{at} was created for port {port:?}, which no longer exists; not removed, as it is in use");
            }
            Err(why) => {
                warn!("removing {at}, orphan of port {port:?}, failed; retried at the next start: {why}");
                return;
            }
        }
        self.orphans.remove(&orphan);
        self.orphans_changed = true;
    }
}

/// Whether one of the names in `wanted` leads to the namespace that the device is in.
fn is_any_same(wanted: &[Netns], at: &DeviceLocation) -> Result<bool, OpenError> {
    for netns in wanted {
        if netns.is_same(&at.netns).map_err(|why| OpenError::entering(at, why))? {
            return Ok(true);
        }
    }
    Ok(false)
}
