//! Devices: opened, handed to workers, taken back, closed. What may wait for the kernel is done off
//! the thread of control, and comes back as an [`Outcome`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tracing::{info, warn};

use super::links::{self, Looked};
use super::namespaces::Identified;
use super::netdevs::Restored;
use super::writing::{Recovered, Written};
use super::{Controller, Port, State};
use crate::control::backoff::Backoff;
use crate::control::blueprint::{self, Decided};
use crate::control::config::Config;
use crate::control::events::EventKind;
use crate::control::handle::Request;
use crate::control::jobs::PATIENCE;
use crate::control::leftovers::{self, Leftover, Leftovers};
use crate::control::plan::{DeviceStep, device_step_of_open};
use crate::control::seats::Names;
use crate::device::properties::{self, Properties};
use crate::device::{self, Device, OpenError, Opened, Removal, Settings};
use crate::sys::netns::{Identity, Netns};
use crate::time::{self, Moment};
use crate::worker::{Gate, Notice};

/// Between two attempts to open a device for which nothing new has been reported, at most.
const RARELY: Duration = Duration::from_secs(5);

/// For how long a device that others hold is tried before it is reported. A process that was killed lets go of its
/// files a little later, and the kernel frees a queue a little later than its socket.
const HELD: Duration = Duration::from_secs(1);

/// What came from elsewhere that is dealt with at once.
const AT_ONCE: usize = 256;

/// What came of something that was done elsewhere. Ports are named by their key.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A device was opened, or not.
    Opened(Box<Attempt>),
    /// A device is closed for good. There may be a remark on how that went.
    Closed { port: u64, removed: Option<Leftover>, remark: Option<String> },
    /// What an earlier life has left behind is gone, or could not be removed.
    Swept { left: Leftover, result: Result<Removal, OpenError> },
    /// Something was written down, or not.
    Written(Written),
    /// The state can be used again, or still not; and the changes that wait for that.
    Again(Box<Result<Recovered, String>>, VecDeque<Request>),
    /// Netdevs were looked at.
    Looked(Looked),
    /// The name of a namespace was looked at.
    Identified(Identified),
    /// A netdev was changed, or not.
    Adjusted { port: u64, result: Result<(), OpenError> },
    /// A netdev that somebody has changed was put right, or not.
    Restored(Restored),
}

/// What is to be closed for good.
#[derive(Default)]
pub(super) struct Closing {
    /// The port, by its key.
    pub port: u64,
    /// Its queues, which nobody polls any more.
    pub queues: Vec<Box<dyn Device>>,
    /// Its netdev is removed if we made it as these say.
    pub remove: Option<Settings>,
    /// Where a netdev of this name is wanted for the same port: it stays if that is the same namespace by another name.
    pub wanted: Vec<Netns>,
}

/// What came of trying to open a device.
#[derive(Debug)]
pub(super) struct Attempt {
    pub port: u64,
    /// How it was to be.
    settings: Settings,
    namespace: Option<Identity>,
    /// The properties of its netdev.
    netdev: Option<Properties>,
    result: Result<Opened, OpenError>,
}

impl Controller {
    /// Starts an attempt to open each port that is down and for which it is time.
    pub(super) fn try_down_ports(&mut self) {
        let now = time::now();
        self.next_attempt = None;
        for port in &mut self.ports {
            let reason = match &mut port.state {
                State::Down { reason } => reason,
                // Held by others up to now.
                State::Opening { reason } if port.attempt.is_none() => reason,
                _ => continue,
            };
            let Some(settings) = port.seat.device().cloned() else { continue };
            // The first attempt says what is missing.
            let is_hopeless = !reason.is_empty() && self.namespaces.is_missing(settings.netns());
            if port.held || port.closing > 0 || is_hopeless {
                continue;
            }
            if !port.retry.is_due(now) {
                let next = port.retry.next();
                self.next_attempt = Some(self.next_attempt.map_or(next, |earlier: Moment| earlier.min(next)));
                continue;
            }
            port.state = State::Opening { reason: std::mem::take(reason) };
            port.retry.tried(now, RARELY, now.nanos() ^ port.key);
            let (key, done, pool) = (port.key, self.done.clone(), self.pool);
            // What others made, others make again.
            let may_create = port.made.unwrap_or(true);
            let is_uplink = port.seat.is_uplink();
            port.attempt = Some(self.jobs.run(&settings.netns().clone(), move || {
                // First: if it is replaced right now, we shall find that out and come again.
                let namespace = settings.netns().identity();
                let of_others = settings.is_of_others();
                let read = |is_due: bool| if is_due { properties::read(&settings).ok().flatten() } else { None };
                let before = read(of_others);
                let result = device::open(&settings, may_create, pool);
                // What we make is there only now, and opening may change features.
                let after = read(is_uplink || of_others && result.is_ok());
                let netdev = properties::when_opened(&settings, before, after);
                // Nobody listens any more when the switch is being closed; the device is dropped.
                let _ =
                    done.send(Outcome::Opened(Box::new(Attempt { port: key, settings, namespace, netdev, result })));
            }));
        }
    }

    /// Reports the attempts that have not returned in time: nobody waits for them any longer.
    pub(super) fn note_overdue(&mut self) {
        let now = time::now();
        self.jobs.look_after();
        for index in 0..self.ports.len() {
            let port = &mut self.ports[index];
            let (State::Opening { .. }, Some(attempt), false) = (&port.state, &port.attempt, port.is_overdue) else {
                continue;
            };
            let netns = port.seat.device().map(|device| device.netns().clone()).unwrap_or_default();
            let waits = attempt.running_since().is_none() && self.jobs.stuck_since(&netns, now).is_some();
            if !attempt.is_overdue(now) && !waits {
                continue;
            }
            port.is_overdue = true;
            let Some(why) = port.overdue(now) else { continue };
            port.state = State::Opening { reason: why.clone() };
            if self.is_wanted_up(index)
                && !std::mem::replace(&mut self.ports[index].told_down, true)
                && self.tell(EventKind::PortDown, index, &why)
            {
                let Names { vm, network, .. } = self.names(index);
                let (port, uplink) = self.label(index);
                warn!(vm, network, port, uplink, "port_down: {why}");
            }
            self.tell_subports(index);
        }
    }

    /// Closes devices for good, elsewhere: those that are in one namespace together.
    pub(super) fn close(&mut self, closings: Vec<Closing>) {
        let mut by_netns: HashMap<Option<Netns>, Vec<Closing>> = HashMap::new();
        for mut closing in closings {
            if let Some(&index) = self.standing.get(&closing.port) {
                self.ports[index].closing += 1;
            }
            closing.wanted =
                closing.remove.as_ref().and_then(Leftover::of).map_or_else(Vec::new, |of| self.wanted(&of));
            let of = closing.remove.as_ref().map(|settings| settings.netns().clone());
            by_netns.entry(of).or_default().push(closing);
        }
        for (of, closings) in by_netns {
            let done = self.done.clone();
            self.jobs.run(&of.clone().unwrap_or_default(), move || {
                let mut closings = closings;
                for closing in &mut closings {
                    let stays = |of: &Settings| closing.wanted.iter().any(|wanted| wanted.is_same(of.netns()));
                    closing.remove = closing.remove.take().filter(|of| !stays(of));
                }
                let remove: Vec<Settings> = closings.iter().filter_map(|closing| closing.remove.clone()).collect();
                let results = of.map(|of| device::remove(&of, &remove)).unwrap_or_default();
                let mut results = results.into_iter();
                for Closing { port, queues, remove, .. } in closings {
                    drop(queues);
                    let failed = remove.as_ref().and_then(|_| results.next()?.err());
                    let removed = remove.as_ref().filter(|_| failed.is_none()).and_then(Leftover::of);
                    let remark =
                        failed.map(|why| format!("its netdev is left over, and is removed at the next start: {why}"));
                    let _ = done.send(Outcome::Closed { port, removed, remark });
                }
            });
        }
    }

    /// Closes queues that are polled no longer, elsewhere.
    fn close_queues(&mut self, queues: Vec<(u64, Box<dyn Device>)>) {
        let mut by_port: HashMap<u64, Closing> = HashMap::new();
        for (port, queue) in queues {
            by_port.entry(port).or_insert_with(|| Closing { port, ..Closing::default() }).queues.push(queue);
        }
        self.close(by_port.into_values().collect());
    }

    /// Removes what an earlier life has left behind, elsewhere.
    pub(super) fn sweep(&self, left: Leftover) {
        let (done, wanted) = (self.done.clone(), self.wanted(&left));
        self.jobs.run(&left.at().netns, move || {
            let stays = wanted.iter().any(|wanted| wanted.is_same(&left.at().netns));
            let result = if stays { Ok(Removal::Gone) } else { device::remove_left(&left.at(), &left.port_id) };
            let _ = done.send(Outcome::Swept { left, result });
        });
    }

    /// Where a netdev is wanted that has the name of this one, and is for the same port, in a namespace of another name.
    fn wanted(&self, left: &Leftover) -> Vec<Netns> {
        let netdevs = leftovers::netdevs(&self.config).into_iter();
        netdevs.filter(|wanted| wanted.is_elsewhere(left)).map(|wanted| wanted.at().netns).collect()
    }

    /// Removes those leftovers under whose names `config` wants netdevs of other ports. The others are
    /// the answer. One that cannot be removed in time is left in the way.
    pub(super) async fn clear_the_way(&mut self, config: &Config) -> Leftovers {
        let wanted = leftovers::netdevs(config);
        let in_the_way = |left: &Leftover| wanted.iter().any(|wanted| wanted.is_in_the_way_of(left));
        let (first, later): (Leftovers, Leftovers) = self.left.iter().cloned().partition(in_the_way);
        first.iter().cloned().for_each(|left| self.sweep(left));
        let clear = async {
            for _ in first {
                if let Some(outcome) = self.outcomes.recv().await {
                    self.receive(outcome).await;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, clear).await.is_err() {
            warn!("netdevs of an earlier life have not been removed in {} seconds", PATIENCE.as_secs());
        }
        later
    }

    /// Changes the netdev of a port that is up, elsewhere.
    pub(super) fn adjust(&self, port: u64, settings: Settings) {
        let done = self.done.clone();
        self.jobs.run(&settings.netns().clone(), move || {
            let result = device::adjust(&settings);
            let _ = done.send(Outcome::Adjusted { port, result });
        });
    }

    /// Does what follows from something that was done elsewhere, and from what else has been since: many devices that
    /// have been opened are put into force together.
    pub(super) async fn receive(&mut self, outcome: Outcome) {
        let mut outcomes = VecDeque::from([outcome]);
        outcomes.extend(std::iter::from_fn(|| self.outcomes.try_recv().ok()).take(AT_ONCE));
        let mut attempts = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Opened(attempt) => attempts.extend(self.receive_attempt(*attempt)),
                Outcome::Swept { left, result } => self.note_sweep(left, result),
                Outcome::Written(written) => self.receive_written(written).await,
                Outcome::Again(begun, changes) => self.receive_retry(*begun, changes).await,
                Outcome::Looked(looked) => self.receive_look(looked).await,
                Outcome::Restored(restored) => self.receive_restored(restored),
                Outcome::Identified(identified) => self.receive_identity(identified).await,
                Outcome::Closed { port, removed, remark } => {
                    if let Some(removed) = removed {
                        self.left.remove(&removed);
                        self.swept = true;
                    }
                    if let Some(remark) = &remark {
                        warn!("a port that was closed: {remark}");
                    }
                    if let Some(&index) = self.standing.get(&port) {
                        let port = &mut self.ports[index];
                        port.closing = port.closing.saturating_sub(1);
                        port.retry.kick(time::now());
                    }
                    self.has_come(port, remark);
                }
                Outcome::Adjusted { port, result } => {
                    let remark = result.err().map(|why| why.to_string());
                    if let Some(remark) = &remark {
                        warn!("a netdev is not as it shall be: {remark}");
                    }
                    self.has_come(port, remark);
                    self.look_at_port(port);
                }
            }
        }
        self.settle(attempts).await;
        self.advance().await;
        self.try_down_ports();
        self.answer_pending();
    }

    fn note_sweep(&mut self, left: Leftover, result: Result<Removal, OpenError>) {
        let (at, port) = (left.at(), &left.port_id);
        match result {
            Ok(Removal::Gone) => {}
            Ok(Removal::Done) => info!("{at} has been removed: it was left over from port {port:?}"),
            Ok(Removal::InUse) => {
                warn!("{at} was made for port {port:?}, which is no more, and is left to whoever uses it now");
            }
            Err(why) => {
                warn!("{at} is left over from port {port:?}, and is removed at the next start: {why}");
                return;
            }
        }
        self.left.remove(&left);
        self.swept = true;
    }

    /// What came of an attempt, if the port is still to be so. Otherwise the device is closed.
    fn receive_attempt(&mut self, attempt: Attempt) -> Option<Attempt> {
        let Some(port) = self.standing.get(&attempt.port).map(|&index| &mut self.ports[index]) else {
            // It has been detached meanwhile.
            let queues = attempt.result.map(|opened| opened.queues).unwrap_or_default();
            self.close(vec![Closing {
                port: attempt.port,
                queues,
                remove: Some(attempt.settings),
                ..Closing::default()
            }]);
            return None;
        };
        // A subport never asks for a device.
        let may_lose_tags = attempt.result.as_ref().is_ok_and(|opened| opened.may_lose_tags);
        let step = port
            .seat
            .device()
            .map_or(DeviceStep::Keep, |device| device_step_of_open(&attempt.settings, device, may_lose_tags));
        if step != DeviceStep::Keep {
            // It shall be otherwise meanwhile.
            (port.attempt, port.is_overdue) = (None, false);
            port.state = State::Down { reason: String::new() };
            port.held = true;
            port.retry = Backoff::default();
            let queues = attempt.result.map(|opened| opened.queues).unwrap_or_default();
            let remove = (step == DeviceStep::Reopen { anew: true }).then_some(attempt.settings);
            self.close(vec![Closing { port: attempt.port, queues, remove, ..Closing::default() }]);
            return None;
        }
        Some(attempt)
    }

    /// Puts into force what came of some attempts.
    async fn settle(&mut self, attempts: Vec<Attempt>) {
        let now = time::now();
        let (mut gates, mut watched) = (Vec::new(), Vec::new());
        let last_look = self.links.last_look();
        for Attempt { port: key, namespace, netdev, result, .. } in attempts {
            let workers = usize::from(self.staff.len());
            let Some(&index) = self.standing.get(&key) else { continue };
            let port = &mut self.ports[index];
            (port.attempt, port.is_overdue) = (None, false);
            match result {
                Ok(Opened { queues, made, notes, mode, egress, may_lose_tags, observed }) => {
                    port.may_lose_tags = may_lose_tags;
                    (port.made, port.namespace) = (Some(made), namespace);
                    (port.netdev, port.looked) = (netdev, last_look);
                    port.drift.find();
                    port.egress = egress;
                    (port.observed, port.refused_before, port.has_refused) = (observed, port.refusals(), false);
                    if let Some(remarks) = port.netdev_remarks() {
                        port.drift.note(remarks, Vec::new());
                    }
                    (port.retry, port.busy, port.opened) = (Backoff::default(), None, now);
                    watched.extend(links::watched(port));
                    let id = port.seat.id;
                    #[allow(clippy::cast_possible_truncation)] // there are at most 64 workers, 256 queues
                    let (worker, count) = ((id.index() % workers) as u16, queues.len() as u16);
                    port.state = State::Up { worker, queues: count, notes: notes.join("; "), mode };
                    gates.extend(
                        (0..count).zip(queues).map(|(queue, device)| {
                            (index, self.staff.home(worker, queue), Gate::new(id, queue, device))
                        }),
                    );
                }
                Err(OpenError::Busy { .. }) if may_be_let_go(port, now) => {}
                Err(error) => {
                    if !matches!(error, OpenError::Busy { .. }) {
                        port.busy = None;
                    }
                    self.fail(index, error.to_string());
                }
            }
        }
        if gates.is_empty() {
            return;
        }
        self.set_rules().await;
        let (mut without, mut refused) = (HashSet::new(), Vec::new());
        for (index, worker, gate) in gates {
            let queue = gate.queue;
            if let Err(gate) = self.staff.open(worker, gate).await {
                refused.push((self.ports[index].key, gate.device));
                without.insert((index, worker));
            } else if queue == 0 {
                self.tell_up(index);
            }
        }
        self.close_queues(refused);
        for (index, worker) in without {
            let why = format!("worker {worker} has too many queues to poll; give the switch more cores");
            self.take_back(vec![(index, why)]).await;
        }
        // What has happened to their links while they were being opened was not for them yet.
        self.look_at_all(watched);
    }

    /// Notes why a port is down. That it is down is told once; another reason is for the log.
    pub(super) fn fail(&mut self, index: usize, why: String) {
        let port = &mut self.ports[index];
        let news = !matches!(&port.state, State::Opening { reason } if *reason == why);
        port.state = State::Down { reason: why.clone() };
        if !self.is_wanted_up(index) {
            return;
        }
        let told = std::mem::replace(&mut self.ports[index].told_down, true);
        let is_reported = !told && self.tell(EventKind::PortDown, index, &why);
        self.tell_subports(index);
        let Names { vm, network, .. } = self.names(index);
        let (port, uplink) = self.label(index);
        if is_reported {
            warn!(vm, network, port, uplink, "port_down: {why}");
        } else if told && news {
            info!(vm, network, port, uplink, "still down: {why}");
        }
    }

    /// Notes that frames can flow through a port.
    pub(super) fn tell_up(&mut self, index: usize) {
        let State::Up { worker, queues, .. } = self.ports[index].state else { return };
        let notes = self.ports[index].remarks();
        if !self.is_wanted_up(index) {
            return;
        }
        if let Some(why) = self.ports[index].dead_link() {
            return self.tell_dead(index, &why);
        }
        let text = if notes.is_empty() { String::from("frames can flow both ways") } else { notes.clone() };
        self.ports[index].told_down = false;
        if self.tell(EventKind::PortUp, index, &text) {
            let Names { vm, network, .. } = self.names(index);
            let (port, uplink) = self.label(index);
            let colon = if notes.is_empty() { "" } else { ": " };
            info!(vm, network, port, uplink, worker, queues, "port_up{colon}{notes}");
        }
        self.tell_subports(index);
    }

    pub(super) fn is_wanted_up(&self, index: usize) -> bool {
        self.names(index).admin_up
    }

    /// Takes back the devices of ports that are gone.
    pub(super) async fn lose(&mut self, notice: Notice) {
        // Whole namespaces go at once.
        let notices: Vec<Notice> =
            std::iter::once(notice).chain(std::iter::from_fn(|| self.notices.try_recv().ok())).collect();
        let lost: HashSet<_> = notices.into_iter().map(|Notice::DeviceGone { port, .. }| port).collect();
        let ports = self.ports.iter().enumerate().filter(|(_, port)| lost.contains(&port.seat.id));
        let gone = ports.map(|(index, port)| {
            // A device of others fails in the same way when it is set down. Which it was takes another look.
            let what =
                if port.seat.device().is_some_and(Settings::is_of_others) { "is gone or down" } else { "is gone" };
            (index, format!("its netdev {what}; it is opened again as soon as it can be"))
        });
        let gone = gone.collect();
        self.take_back(gone).await;
    }

    /// Opens again what is polled by workers without whose answers control went on.
    pub(super) async fn reopen_behind_returned(&mut self) {
        let back = self.staff.take_returned();
        if back.is_empty() {
            return;
        }
        let is_polled = |port: &Port| match port.state {
            State::Up { worker, queues, .. } => (0..queues).any(|queue| back.contains(&self.staff.home(worker, queue))),
            _ => false,
        };
        let ports = self.ports.iter().enumerate().filter(|(_, port)| is_polled(port));
        let why = "its worker hung, and answers again; its netdev is opened again";
        let ports = ports.map(|(index, _)| (index, why.to_owned())).collect();
        self.take_back(ports).await;
    }

    /// Takes back the devices of ports that are up, which are down from now on.
    pub(super) async fn take_back(&mut self, ports: Vec<(usize, String)>) {
        let mut gates = Vec::new();
        for (index, why) in ports {
            // Each of its queues may tell that it is gone; the first one is enough.
            let State::Up { worker, queues, .. } = self.ports[index].state else { continue };
            let port = &mut self.ports[index];
            port.retry = Backoff::default();
            let (key, id) = (port.key, port.seat.id);
            gates.extend((0..queues).map(|queue| (key, id, queue, self.staff.home(worker, queue))));
            self.fail(index, why);
        }
        if gates.is_empty() {
            return;
        }
        self.set_rules().await;
        let mut devices = Vec::new();
        for (key, id, queue, worker) in gates {
            devices.extend(self.staff.close(worker, id, queue).await.map(|gate| (key, gate.device)));
        }
        // It is opened again when they are closed.
        self.close_queues(devices);
    }

    /// Puts into force what follows from the configuration and the devices that there are.
    pub(super) async fn set_rules(&mut self) {
        self.choose_uplinks();
        self.meters.follow(&self.config);
        let ports = self.ports.iter().map(|port| match port.state {
            State::Up { worker, .. } => (&port.seat, Some(worker)),
            _ => (&port.seat, None),
        });
        let measures = self.containment.measures();
        let decided = Decided { groups: &self.groups, measures, activations: &self.activations };
        self.rules = blueprint::rules(&self.config, &self.places, self.secret, ports, &self.meters, decided).into();
        let books = self.ports.iter().map(|port| (port.seat.id, &*port.counters));
        self.staff.set_rules(&self.rules, books).await;
        self.follow_announcements();
    }

    /// What a port or an uplink is called.
    pub(super) fn names(&self, index: usize) -> Names<'_> {
        self.ports[index].seat.names(&self.config)
    }

    /// Its id as the log has it: the one of a port, or of an uplink.
    pub(super) fn label(&self, index: usize) -> (Option<&str>, Option<&str>) {
        let seat = &self.ports[index].seat;
        let id = Some(seat.name.as_str());
        if seat.is_uplink() { (None, id) } else { (id, None) }
    }
}

/// Whether a device that others hold is tried on for a while, before that is reported.
fn may_be_let_go(port: &mut Port, now: Moment) -> bool {
    now.since(*port.busy.get_or_insert(now)) < HELD
}
