//! Sends announcements: derives which stations are at which uplinks, looks up learned stations after a takeover, and has
//! workers send what is due.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;
use tracing::info;

use super::{Controller, State};
use crate::control::compile::endpoints::ConfigRef;
use crate::control::compile::forwarding::uplink_vlans;
use crate::control::reconcile::announcements::{ActiveUplink, AnnouncementLayout, Announcer, Failover};
use crate::switch::{FdbEntry, PortId, Station};
use crate::time::{self, MonoTime};
use crate::wire::Announcement;

/// Maximum learned stations announced after a takeover: the most recently seen.
const MAX_LEARNED: usize = 4096;

/// Stations learned when uplinks took over.
#[derive(Debug)]
pub(super) struct LearnedStations {
    takeovers: Vec<Failover>,
    stations: Vec<FdbEntry>,
}

/// The announcer, and lookups of learned stations.
#[derive(Debug)]
pub(super) struct AnnounceState {
    announcer: Announcer,
    found: mpsc::UnboundedReceiver<LearnedStations>,
    sender: mpsc::UnboundedSender<LearnedStations>,
}

impl Default for AnnounceState {
    fn default() -> AnnounceState {
        let (sender, found) = mpsc::unbounded_channel();
        AnnounceState { announcer: Announcer::default(), found, sender }
    }
}

impl AnnounceState {
    /// When the next announcements are due.
    pub(super) fn due(&self) -> Option<MonoTime> {
        self.announcer.due()
    }

    /// The result of the next lookup.
    pub(super) async fn next(&mut self) -> Option<LearnedStations> {
        self.found.recv().await
    }
}

impl Controller {
    /// Announces new stations at uplinks, and stops announcing removed ones.
    pub(super) fn update_announcements(&mut self) {
        let topology = self.announced_layout();
        let failovers = self.announcements.announcer.follow(topology, time::now());
        if failovers.is_empty() {
            return;
        }
        let (workers, sender) = (self.workers.clone(), self.announcements.sender.clone());
        tokio::spawn(async move {
            let Some(stations) = workers.stations().await else { return };
            // The receiver is gone if the switch is stopping.
            let _ = sender.send(LearnedStations { takeovers: failovers, stations });
        });
    }

    fn announced_layout(&self) -> AnnouncementLayout {
        let uplinks = uplink_vlans(&self.config, &self.ids).into_iter().filter_map(|outside| {
            let active = outside.group.active(&self.groups);
            let uplink = self.ids.trunk(&self.config.uplinks[active].id)?;
            let is_up = self.why_unfit(active).is_none();
            is_up.then_some((outside.id, ActiveUplink { network: outside.network_id, uplink }))
        });
        let uplinks: BTreeMap<PortId, ActiveUplink> = uplinks.collect();
        if uplinks.is_empty() {
            return AnnouncementLayout::default();
        }
        let mut topology = AnnouncementLayout { uplinks, ..AnnouncementLayout::default() };
        for port in &self.ports {
            let ConfigRef::Port { vm, position, network_id, .. } = port.endpoint.config_ref else { continue };
            let wanted = &self.config.vms[vm].ports[position];
            let device_port = port.endpoint.parent().and_then(|parent| self.ports.get(parent)).unwrap_or(port);
            let is_up = matches!(device_port.state, State::Up { .. }) && device_port.dead_link().is_none();
            if is_up
                && port.endpoint.labels(&self.config).admin_up
                && !self.mitigation.is_quarantined(port.endpoint.id)
                && self.activations.pins(wanted)
            {
                topology.ports.insert(port.endpoint.id);
                topology.stations.insert((port.endpoint.id, Station::new(network_id, wanted.mac)));
            }
        }
        let pinned = self.forwarding.pinned().map(|(station, port)| (port, station));
        let pinned: BTreeSet<_> = pinned.filter(|(port, _)| topology.ports.contains(port)).collect();
        topology.stations.extend(pinned);
        topology
    }

    /// Schedules announcements of stations learned at local ports when uplinks took over.
    pub(super) fn announce_learned(&mut self, learned: LearnedStations) {
        let LearnedStations { takeovers: failovers, stations } = learned;
        let now = time::now();
        let is_local = |learned: &FdbEntry| {
            let port = self.forwarding.port(learned.port).filter(|port| !port.is_uplink());
            port.and_then(|port| self.forwarding.network(port.network))
                .is_some_and(|network| now.secs().saturating_sub(learned.last_seen) < network.ageing)
        };
        for failover in failovers {
            let network = failover.active.network;
            let mut here: Vec<&FdbEntry> =
                stations.iter().filter(|learned| learned.station.network() == network && is_local(learned)).collect();
            here.sort_by_key(|learned| std::cmp::Reverse(learned.last_seen));
            if here.len() > MAX_LEARNED {
                let (all, uplink) = (here.len(), self.named_uplink(failover.vlan));
                info!(
                    "{uplink} takes over: of {all} learned stations, the {MAX_LEARNED} that were seen last are announced"
                );
            }
            for learned in here.into_iter().take(MAX_LEARNED) {
                self.announcements.announcer.add_learned(failover, learned.port, learned.station, now);
            }
        }
    }

    /// Has workers send the announcements that are due.
    pub(super) async fn send_announcements(&mut self) {
        let due = self.announcements.announcer.take(time::now());
        let key = self.hash_key.announcements();
        let frames = due.into_iter().map(|(vlan, mac)| (vlan, Announcement::write(mac, key)));
        self.workers.announce(&self.forwarding, frames).await;
    }
}
