//! Answers requests. While changes are stored and applied, others queue, and are then made as a group.

use super::Controller;
use crate::control::api::handle::{Flush, Reply, Request, Restored};
use crate::control::background;
use crate::control::config::Config;
use crate::control::desired::change::{ChangeError, ChangeResult};
use crate::control::status::StatusBuilder;
use crate::switch::PortId;
use crate::time;
use crate::worker;

impl Controller {
    /// Answers a request, or queues it.
    pub(super) async fn answer(&mut self, request: Request) {
        // The client has disconnected: drops its request.
        if request.is_abandoned() {
            return;
        }
        match request {
            request if request.is_change() && self.is_busy() => self.waiting.push_back(request),
            request if request.is_change() && self.state.check().is_err() => {
                // The cause of the failure may have gone since the last retry.
                let mut changes = std::mem::take(&mut self.waiting);
                changes.push_front(request);
                self.retry_state(changes);
            }
            request if request.is_change() => self.apply_change(request),
            Request::Diff(change, options, reply) => {
                let generation = self.state.generation();
                let outcome = options.check(generation).and_then(|()| self.outcome(&change));
                let outcome = outcome.map(|(_, changed)| ChangeResult { generation, ..changed });
                let _ = reply.send(outcome);
            }
            Request::History(reply) => drop(reply.send(self.state.history().views())),
            Request::Restored(generation, reply) => self.restored(generation, reply),
            Request::Unconfirmed(reply) => drop(reply.send(self.unconfirmed_view())),
            Request::Events(which, from, reply) => self.read_events(which, from, reply),
            Request::Release(port, reply) => {
                let released = self.release(&port).await;
                let _ = reply.send(released);
            }
            Request::Flush(flush, reply) => match self.resolve_flush(&flush) {
                Err(error) => drop(reply.send(Err(error))),
                Ok(flush) => {
                    let workers = self.workers.clone();
                    tokio::spawn(async move {
                        let mut flushed = 0u64;
                        for flush in flush {
                            flushed += u64::from(workers.flush(flush).await);
                        }
                        let _ = reply.send(Ok(flushed));
                    });
                }
            },
            Request::Fdb(which, reply) => {
                // Runs in a task, because a large FDB would delay other requests.
                let (workers, config) = (self.workers.clone(), self.forwarding.clone());
                let index = self.fdb_index();
                tokio::spawn(async move {
                    // A dropped reply channel tells the client to retry.
                    let Some(learned) = workers.stations_where(index.candidates(&which)).await else { return };
                    // Naming and sorting a million entries takes seconds.
                    let views = move || drop(reply.send(index.select(&config, learned, time::now(), &which)));
                    let _ = background::run(views).await;
                });
            }
            request => self.read(request).await,
        }
    }

    /// Starts a change. The caller ensures that no other change is in progress.
    pub(super) fn apply_change(&mut self, request: Request) {
        match request {
            Request::Change(change, options, reply) => self.change(change, options, reply),
            Request::Confirm(reply) => self.confirm(reply),
            Request::Cancel(reply) => self.cancel(reply),
            Request::Reload(file, reply) => self.reload(*file, reply),
            // Not changes.
            _ => {}
        }
    }

    /// Restores the configuration of a generation, by default the one before the newest, in the background: a long way
    /// back takes long.
    fn restored(&self, generation: Option<u64>, reply: Reply<Result<Restored, ChangeError>>) {
        let history = self.state.history().clone();
        let (newest, before) = history.newest();
        let Some(generation) = generation.or(before) else {
            let message = "there is no earlier generation yet; `GET /v1/history` lists those that are recorded";
            return drop(reply.send(Err(ChangeError::conflict("not_restorable", message))));
        };
        let current = self.config.clone();
        tokio::spawn(async move {
            let restored = move || {
                let config =
                    history.restore(&current, generation).map(|config| Config { switch: current.switch, ..config });
                let newest = newest.unwrap_or_default();
                // The client may have disconnected.
                let _ = reply.send(config.map(|config| Restored { generation, newest, config }));
            };
            let _ = background::run(restored).await;
        });
    }

    /// Answers a request that reads status.
    async fn read(&self, request: Request) {
        let report = StatusBuilder {
            config: &self.config,
            ports: &self.ports,
            ids: &self.ids,
            groups: &self.groups,
            cores: &self.cores,
            workers: &self.workers,
            quarantined: self.mitigation.quarantined(),
            activations: &self.activations,
            lifetimes: &self.lifetimes,
            since: self.since,
            pool: self.pool,
        };
        match request {
            Request::Ports(reply) => drop(reply.send(report.ports())),
            Request::PortsOf(ids, reply) => drop(reply.send(report.ports_of(&ids))),
            Request::SelectPorts(which, reply) => drop(reply.send(report.select_ports(&which))),
            Request::Uplinks(reply) => drop(reply.send(report.uplinks())),
            Request::Vms(reply) => drop(reply.send(report.vms())),
            Request::Networks(reply) => drop(reply.send(report.networks().await)),
            Request::Workers(reply) => drop(reply.send(report.workers())),
            Request::Drops(reply) => drop(reply.send(report.drops())),
            Request::Loops(reply) => drop(reply.send(self.mitigation.loops())),
            Request::Storms(reply) => drop(reply.send(self.storms())),
            Request::LoopCounts(reply) => drop(reply.send(self.mitigation.counts(&self.ports))),
            Request::Audit(reply) => drop(reply.send(report.audit().await)),
            Request::Config(form, reply) => drop(reply.send((report.config(form), self.state.generation()))),
            Request::Generation(reply) => drop(reply.send(self.state.generation())),
            Request::Subscribe(reply) => drop(reply.send(self.event_log.newest())),
            // Handled by `answer`.
            Request::Fdb(..)
            | Request::Change(..)
            | Request::Confirm(_)
            | Request::Cancel(_)
            | Request::Unconfirmed(_)
            | Request::Reload(..)
            | Request::History(_)
            | Request::Restored(..)
            | Request::Diff(..)
            | Request::Events(..)
            | Request::Release(..)
            | Request::Flush(..) => {}
        }
    }

    /// Resolves names to worker flushes: one for a port, one per network for an uplink.
    ///
    /// # Errors
    /// The network or port is unknown.
    fn resolve_flush(&self, flush: &Flush) -> Result<Vec<worker::Flush>, ChangeError> {
        let network = flush
            .network
            .as_deref()
            .map(|id| self.ids.network(id).ok_or_else(|| ChangeError::unknown_network(&self.config, id)));
        let wanted = worker::Flush { network: network.transpose()?, port_index: None, mac: flush.mac, cursor: 0 };
        let Some(id) = flush.port.as_deref() else { return Ok(vec![wanted]) };
        let after = |place: PortId| worker::Flush { port_index: Some(place.index()), ..wanted };
        if let Some(port) = self.ids.port(id) {
            return Ok(vec![after(port)]);
        }
        let uplink = self.config.uplinks.iter().find(|uplink| uplink.id == id);
        let uplink = uplink.ok_or_else(|| ChangeError::unknown_port(&self.config, id))?;
        let tagged = uplink.networks.iter().filter_map(|of| self.ids.uplink_vlan(&uplink.group_name(), &of.network_id));
        Ok(tagged.map(after).collect())
    }
}
