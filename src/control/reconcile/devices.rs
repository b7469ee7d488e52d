//! Opens devices and hands their queues to workers; `closing` closes them. Calls that may block run as jobs, and return a
//! [`DeviceEvent`].
//!
//! A device whose netdev is gone: `handle_device_gone` closes it on a worker's notice, `close_devices` takes its
//! queues back, and `try_down_ports` opens it again.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use futures_util::future::join_all;
use tracing::warn;

use super::closing::ClosingPort;
use super::lifetimes::bound;
use super::results::{DeviceEvent, OpenResult};
use super::watcher;
use super::{Controller, Port, State};
use crate::control::compile::forwarding::{self, ControlState};
use crate::control::compile::plan::{DeviceChange, device_step_of_open};
use crate::control::reason::{Reason, ReasonCode};
use crate::control::reconcile::backoff::Backoff;
use crate::device::properties;
use crate::device::{self, OpenError, Opened, Settings};
use crate::time::{self, MonoTime};
use crate::worker::{DeviceGone, RxQueue};

/// Maximum interval between attempts to open a device of which no change is reported.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Grace time before a device in use by others is reported. The kernel closes the files of a killed process, and frees
/// queues, with some delay.
const IN_USE_GRACE: Duration = Duration::from_secs(1);

/// While other devices are being opened, the next ones are taken over after so many times the duration of the last taking
/// over: each needs a forwarding configuration of all ports on every worker.
const PAUSE: u32 = 3;

/// Maximum of it.
pub(super) const MAX_PAUSE: Duration = Duration::from_millis(100);

/// Maximum device events handled together.
const AT_ONCE: usize = 256;

impl Controller {
    /// Starts an attempt to open each port that is down and due.
    pub(super) fn try_down_ports(&mut self) {
        let now = time::now();
        self.next_attempt = None;
        for port in &mut self.ports {
            let reason = match &mut port.state {
                State::Down { reason } => reason,
                // In use by others until now.
                State::Opening { reason } if port.attempt.is_none() => reason,
                _ => continue,
            };
            let Some(settings) = port.endpoint.device().cloned() else { continue };
            // The first attempt determines the reason.
            let is_hopeless = !reason.is_empty() && self.namespaces.is_missing(settings.netns());
            if port.open_deferred || port.closing > 0 || is_hopeless {
                continue;
            }
            if !port.retry.is_due(now) {
                let next = port.retry.next();
                self.next_attempt = Some(self.next_attempt.map_or(next, |earlier: MonoTime| earlier.min(next)));
                continue;
            }
            if !reason.is_empty() {
                self.health.measures().open_retries.add_one();
            }
            port.state = State::Opening { reason: std::mem::take(reason) };
            port.retry.tried(now, RETRY_INTERVAL, now.nanos() ^ port.key);
            let (key, done, pool) = (port.key, self.device_event_sender.clone(), self.pool);
            // A netdev that others created is not recreated.
            let may_create = port.made.unwrap_or(true);
            let is_uplink = port.endpoint.is_uplink();
            let kept = self.descriptors.take(key, port.endpoint.key());
            let bound = bound(&self.config, self.state.lifetimes(), &port.endpoint);
            port.attempt = Some(self.jobs.run(&settings.netns().clone(), move || {
                // First, so that a namespace replaced meanwhile is detected later.
                let identity = settings.netns().identity();
                let of_others = settings.is_foreign();
                let read = |is_due: bool| if is_due { properties::read(&settings).ok().flatten() } else { None };
                let before = read(of_others);
                let (namespace, (recognised, result)) = match identity {
                    Ok(namespace) => {
                        let open = || device::open_kept(&settings, may_create, pool, kept);
                        (namespace, bound.open(&settings, namespace, open))
                    }
                    Err(why) => (None, (None, Err(OpenError::entering(&settings.at(), why)))),
                };
                // A netdev that we create exists only now, and opening may change features.
                let after = read(is_uplink || of_others && result.is_ok());
                let netdev = properties::when_opened(&settings, before, after);
                // The receiver is gone if the switch is stopping; the device is dropped.
                let _ = done.send(DeviceEvent::Opened(Box::new(OpenResult {
                    port: key,
                    settings,
                    namespace,
                    netdev,
                    recognised,
                    result,
                })));
            }));
        }
    }

    /// Reports overdue attempts; changes no longer wait for them.
    pub(super) fn note_overdue(&mut self) {
        let now = time::now();
        self.jobs.start_waiting();
        for index in 0..self.ports.len() {
            let port = &mut self.ports[index];
            let (State::Opening { .. }, Some(attempt), false) = (&port.state, &port.attempt, port.is_overdue) else {
                continue;
            };
            let netns = port.endpoint.device().map(|device| device.netns().clone()).unwrap_or_default();
            let waits = attempt.running_since().is_none() && self.jobs.stuck_since(&netns, now).is_some();
            if !attempt.is_overdue(now) && !waits {
                continue;
            }
            port.is_overdue = true;
            let Some(why) = port.overdue(now) else { continue };
            port.state = State::Opening { reason: why.clone() };
            if self.is_wanted_up(index) {
                self.emit_down(index, &why);
            } else {
                self.emit_subports(index);
            }
        }
    }

    /// Adjusts the netdev of a port that is up, in the background.
    pub(super) fn adjust(&self, port: u64, settings: Settings) {
        let done = self.device_event_sender.clone();
        self.jobs.run(&settings.netns().clone(), move || {
            let result = device::adjust(&settings);
            let _ = done.send(DeviceEvent::Adjusted { port, result });
        });
    }

    /// Handles a device event and others that are pending, so that many opened devices need one configuration.
    pub(super) async fn receive(&mut self, outcome: DeviceEvent) {
        let mut outcomes = VecDeque::from([outcome]);
        outcomes.extend(std::iter::from_fn(|| self.device_events.try_recv().ok()).take(AT_ONCE));
        for outcome in outcomes {
            match outcome {
                DeviceEvent::Opened(attempt) => self.opened.push(*attempt),
                DeviceEvent::OrphanRemoved { left: orphans, result } => self.record_removal(orphans, result),
                DeviceEvent::Committed(done) => self.handle_commit_done(done).await,
                DeviceEvent::StateReopened(begun, changes) => self.receive_retry(*begun, changes),
                DeviceEvent::NetdevsRead(readings) => self.handle_readings(readings).await,
                DeviceEvent::Restored(restored) => self.receive_restored(restored),
                DeviceEvent::NamespaceIdentified(identified) => self.receive_identity(identified).await,
                DeviceEvent::Closed { port, removed, warning } => {
                    if let Some(removed) = removed {
                        self.orphans.remove(&removed);
                        self.orphans_changed = true;
                    }
                    if let Some(warning) = &warning {
                        warn!("a port that was closed: {warning}");
                    }
                    if let Some(&index) = self.port_index.get(&port) {
                        let port = &mut self.ports[index];
                        port.closing = port.closing.saturating_sub(1);
                        port.retry.kick(time::now());
                        self.identify_soon(index);
                    }
                    self.op_finished(port, warning);
                }
                DeviceEvent::Adjusted { port, result } => {
                    let warning = result.err().map(|why| why.to_string());
                    if let Some(warning) = &warning {
                        warn!("adjusting a netdev failed: {warning}");
                    }
                    self.op_finished(port, warning);
                    self.read_netdev_of(port);
                }
            }
        }
        self.receive_opened().await;
    }

    /// Applies the results of attempts that are due, and continues what waited for them.
    pub(super) async fn receive_opened(&mut self) {
        if self.opened_due() == Some(Duration::ZERO) {
            let results = std::mem::take(&mut self.opened);
            let attempts = results.into_iter().filter_map(|attempt| self.receive_attempt(attempt)).collect();
            let begun = time::now();
            self.apply_results(attempts).await;
            let ended = time::now();
            self.next_opened = ended + (ended.since(begun) * PAUSE).min(MAX_PAUSE);
        }
        self.push_due_config().await;
        self.advance().await;
        self.try_down_ports();
        self.answer_pending();
    }

    /// Time until the results of attempts are applied; `None` if there are none. At once if no other attempt is in progress.
    pub(super) fn opened_due(&self) -> Option<Duration> {
        if self.opened.is_empty() {
            return None;
        }
        let in_progress = self.ports.iter().filter(|port| port.attempt.is_some()).count();
        let left = if in_progress > self.opened.len() { self.next_opened.since(time::now()) } else { Duration::ZERO };
        Some(left)
    }

    /// Checks a returned attempt against the current configuration. Closes the device if its port is gone or has other
    /// settings.
    fn receive_attempt(&mut self, attempt: OpenResult) -> Option<OpenResult> {
        let Some(port) = self.port_index.get(&attempt.port).map(|&index| &mut self.ports[index]) else {
            // The port has been detached meanwhile.
            let queues = attempt.result.map(|opened| opened.queues).unwrap_or_default();
            self.close(vec![ClosingPort {
                port: attempt.port,
                queues,
                remove: Some(attempt.settings),
                ..ClosingPort::default()
            }]);
            return None;
        };
        // Subports have no device.
        let may_lose_tags = attempt.result.as_ref().is_ok_and(|opened| opened.may_lose_tags);
        let step = port
            .endpoint
            .device()
            .map_or(DeviceChange::Keep, |device| device_step_of_open(&attempt.settings, device, may_lose_tags));
        if step != DeviceChange::Keep {
            // Its settings have changed meanwhile.
            (port.attempt, port.is_overdue) = (None, false);
            port.state = State::Down { reason: Reason::default() };
            port.open_deferred = true;
            port.retry = Backoff::default();
            let queues = attempt.result.map(|opened| opened.queues).unwrap_or_default();
            let remove = (step == DeviceChange::Reopen { recreate: true }).then_some(attempt.settings);
            self.close(vec![ClosingPort { port: attempt.port, queues, remove, ..ClosingPort::default() }]);
            return None;
        }
        Some(attempt)
    }

    /// Applies the results of attempts: marks ports up or down, hands queues to workers.
    async fn apply_results(&mut self, attempts: Vec<OpenResult>) {
        let now = time::now();
        let (mut rx_queues, mut watched) = (Vec::new(), Vec::new());
        let last_look = self.watchers.last_read();
        for OpenResult { port: key, namespace, netdev, recognised, result, .. } in attempts {
            let workers = usize::from(self.workers.len());
            let Some(&index) = self.port_index.get(&key) else { continue };
            self.record_namespace(index, recognised);
            let port = &mut self.ports[index];
            (port.attempt, port.is_overdue) = (None, false);
            if result.is_err() {
                // Its descriptors did not fit, and are in its way.
                self.descriptors.release(key);
            }
            match result {
                Ok(Opened { queues, made, warnings, mode, egress, may_lose_tags, observed, keep }) => {
                    self.descriptors.record_opened(key, port.endpoint.key(), keep);
                    port.may_lose_tags = may_lose_tags;
                    (port.made, port.namespace) = (Some(made), namespace);
                    (port.netdev, port.min_read) = (netdev, last_look);
                    port.drift.record_found();
                    port.egress = egress;
                    (port.observed, port.refused_before, port.has_refused) = (observed, port.refusals(), false);
                    if let Some(warnings) = port.netdev_warnings() {
                        port.drift.update(warnings, Vec::new());
                    }
                    (port.retry, port.in_use_since, port.opened) = (Backoff::default(), None, now);
                    watched.extend(watcher::watched(port));
                    let id = port.endpoint.id;
                    #[allow(clippy::cast_possible_truncation)] // there are at most 64 workers, 256 queues
                    let (worker, count) = ((id.index() % workers) as u16, queues.len() as u16);
                    port.state = State::Up { worker, queues: count, warnings: warnings.join("; "), mode };
                    rx_queues.extend((0..count).zip(queues).map(|(queue, device)| {
                        (index, self.workers.worker_for(worker, queue), RxQueue::new(id, queue, device))
                    }));
                }
                Err(OpenError::Busy { .. }) if is_in_grace(port, now) => {}
                Err(error) => {
                    if !matches!(error, OpenError::Busy { .. }) {
                        port.in_use_since = None;
                    }
                    self.mark_down(index, Reason::from(&error));
                }
            }
        }
        if rx_queues.is_empty() {
            return;
        }
        self.push_config().await;
        let (mut without, mut refused) = (HashSet::new(), Vec::new());
        let workers = &self.workers;
        let opening = rx_queues.into_iter().map(async |(index, worker, rx_queue)| {
            let queue = rx_queue.queue;
            (index, worker, queue, workers.open(worker, rx_queue).await)
        });
        for (index, worker, queue, result) in join_all(opening).await {
            if let Err(rx_queue) = result {
                refused.push((self.ports[index].key, rx_queue.device));
                without.insert((index, worker));
            } else if queue == 0 {
                self.mark_up(index);
            }
        }
        self.close_queues(refused);
        for (index, worker) in without {
            let why = format!("worker {worker} has too many queues to poll; give the switch more cores");
            self.close_devices(vec![(index, Reason::new(ReasonCode::WorkerFull, why))]).await;
        }
        // Link events that arrived while the devices were being opened were not assigned to them.
        self.read_netdevs_of(watched);
    }

    /// Closes devices whose netdev is gone.
    pub(super) async fn handle_device_gone(&mut self, notice: DeviceGone) {
        // A deleted namespace produces many notices at once.
        let notices: Vec<DeviceGone> =
            std::iter::once(notice).chain(std::iter::from_fn(|| self.notices.try_recv().ok())).collect();
        let lost: HashSet<_> = notices.into_iter().map(|DeviceGone::DeviceGone { port, .. }| port).collect();
        let ports = self.ports.iter().enumerate().filter(|(_, port)| lost.contains(&port.endpoint.id));
        let gone = ports.map(|(index, port)| {
            // A netdev of others fails in the same way when it is set down; the netdev watcher tells which.
            let what =
                if port.endpoint.device().is_some_and(Settings::is_foreign) { "is gone or down" } else { "is gone" };
            let why = format!("its netdev {what}; it is reopened when it is back");
            (index, Reason::new(ReasonCode::NoDevice, why))
        });
        let gone = gone.collect();
        self.close_devices(gone).await;
    }

    /// Reopens devices of workers that had hung and answer again: they may have missed commands.
    pub(super) async fn reopen_behind_returned(&mut self) {
        let back = self.workers.take_returned();
        if back.is_empty() {
            return;
        }
        let is_polled = |port: &Port| match port.state {
            State::Up { worker, queues, .. } => {
                (0..queues).any(|queue| back.contains(&self.workers.worker_for(worker, queue)))
            }
            _ => false,
        };
        let ports = self.ports.iter().enumerate().filter(|(_, port)| is_polled(port));
        let why = Reason::new(ReasonCode::Reopening, "its worker hung and answers again; reopening device");
        let ports = ports.map(|(index, _)| (index, why.clone())).collect();
        self.close_devices(ports).await;
    }

    /// Closes the devices of ports that are up, and marks the ports as down.
    pub(super) async fn close_devices(&mut self, ports: Vec<(usize, Reason)>) {
        let mut rx_queues = Vec::new();
        for (index, why) in ports {
            // Each queue may have sent a notice; the first one suffices.
            let State::Up { worker, queues, .. } = self.ports[index].state else { continue };
            let port = &mut self.ports[index];
            port.retry = Backoff::default();
            let (key, id) = (port.key, port.endpoint.id);
            rx_queues.extend((0..queues).map(|queue| (key, id, queue, self.workers.worker_for(worker, queue))));
            self.mark_down(index, why);
        }
        if rx_queues.is_empty() {
            return;
        }
        self.push_config().await;
        let workers = &self.workers;
        let closing = rx_queues.into_iter().map(async |(key, id, queue, worker)| {
            workers.close(worker, id, queue).await.map(|rx_queue| (key, rx_queue.device))
        });
        let devices = join_all(closing).await.into_iter().flatten().collect();
        // The port is reopened once they are closed.
        self.close_queues(devices);
    }

    /// Compiles the forwarding configuration and sends it to all workers.
    pub(super) async fn push_config(&mut self) {
        self.config_due = None;
        self.choose_uplinks();
        let ports = self.ports.iter().map(|port| match port.state {
            State::Up { worker, .. } => (&port.endpoint, Some(worker)),
            _ => (&port.endpoint, None),
        });
        let mitigation = self.mitigation.active_measures();
        let decided = ControlState { groups: &self.groups, mitigation, activations: &self.activations };
        #[cfg(test)]
        COMPILED.set(COMPILED.get() + 1);
        self.forwarding =
            forwarding::compile(&self.config, &self.ids, self.hash_key, ports, &self.policers, decided).into();
        let port_counters = self.ports.iter().map(|port| (port.endpoint.id, &*port.counters));
        self.workers.set_config(&self.forwarding, port_counters).await;
        self.update_announcements();
    }
}

#[cfg(test)]
thread_local! {
    /// Number of forwarding configurations that were compiled.
    pub(super) static COMPILED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Whether a device in use by others is within its grace time.
fn is_in_grace(port: &mut Port, now: MonoTime) -> bool {
    now.since(*port.in_use_since.get_or_insert(now)) < IN_USE_GRACE
}
