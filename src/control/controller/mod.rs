//! The one thread that owns the desired state and makes it come true: it opens devices and hands
//! them to workers, takes them back when they are gone, opens them again, goes over to another
//! state when it is asked to, and answers questions.
//!
//! A port is *up* while a worker polls its device, and so is an uplink: in here `ports` are both. It is *down* for a reason that can be read: its
//! namespace or netdev is not there, somebody else holds it, opening failed. A port that is down is
//! tried again, for ever: whatever is missing may come.
//!
//! The order of steps makes every moment valid. Opening: rules that know the device go to all
//! workers, then the gate goes to its worker. Closing: rules without the device to all, then the
//! gate comes back, and the device is dropped here.
//!
//! What has to be kept is written down aside (`writing`): a disk that hangs stops changes only.
//!
//! A change is a `transition`: a switch that starts goes over from nothing to its configuration.

mod announcing;
mod containment;
mod devices;
mod links;
mod namespaces;
mod netdevs;
mod pins;
mod policy;
mod port;
mod subports;
#[cfg(test)]
mod tests;
mod transition;
mod writing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

pub use self::containment::Containment;
pub use self::port::{Port, State};

use self::announcing::Announcing;
use self::devices::Outcome;
use self::links::Links;
use self::namespaces::Namespaces;
use self::transition::{Pending, Transition, Unconfirmed};
use self::writing::{Recovered, Unwritten, Writing};
use super::activation::Activations;
use super::at_limit::AtLimit;
use super::backoff::Backoff;
use super::change::Refusal;
use super::config::Config;
use super::drift::Drift;
use super::events::{Event, EventKind};
use super::failover::Groups;
use super::handle::{Flush, Request};
use super::jobs::Jobs;
use super::journal::Journal;
use super::keeper::Keeper;
use super::leftovers::{self, Leftovers};
use super::loops::schedule::TURN;
use super::meters::Meters;
use super::places::Places;
use super::report::Report;
use super::seats::{self, Names, Seat, TooMany};
use super::staff::Staff;
use super::stations::Directory;
use crate::frame::Pool;
use crate::switch::{PortId, Rules, Secret};
use crate::sys::netns::Netns;
use crate::time::{self, Moment};
use crate::wire::ProbeKey;
use crate::worker::{self, Findings, Notice};

/// How often ports are looked after.
const RETRY: Duration = Duration::from_millis(250);

/// How long an answer waits for the disk.
const DISK: Duration = Duration::from_secs(1);

/// How often the learned stations are kept, for a switch that is killed.
const KEEP_STATIONS: Duration = Duration::from_secs(60);

/// How long a change that is under way may take when the switch is told to stop.
const FINISHING: Duration = Duration::from_secs(4);

/// How long it may take at the end to keep what is known.
const KEEPING: Duration = Duration::from_secs(4);

/// How long each may take then: the workers to end, the devices to close, and the store.
const ENDING: Duration = Duration::from_secs(1);

/// Events told of the past, at most.
const MOST_EVENTS: usize = 10_000;

/// What a controller is made of.
#[derive(Debug)]
pub struct Beginning {
    /// The cores of the workers.
    pub cores: Vec<usize>,
    /// The key under which the workers file stations.
    pub secret: Secret,
    /// The workers.
    pub staff: Staff,
    /// What they tell unasked.
    pub notices: mpsc::Receiver<Notice>,
    /// What they find out about guests.
    pub findings: Findings,
    /// The key under which loop probes are sent.
    pub probe_key: ProbeKey,
    /// Where changes are kept.
    pub keeper: Keeper,
    /// The slots of the workers.
    pub pool: &'static Pool,
}

/// The owner of the desired state.
pub struct Controller {
    config: Config,
    cores: Vec<usize>,
    secret: Secret,
    staff: Staff,
    keeper: Keeper,
    pool: &'static Pool,
    /// Netdevs that are being removed, or could not be.
    left: Leftovers,
    /// What is kept of them is more than there is.
    swept: bool,
    journal: Journal,
    /// Since when what happens cannot be written down, and when that is tried again.
    unwritten: Option<Unwritten>,
    ports: Vec<Port>,
    /// Where in `ports` each stands, by its key.
    standing: HashMap<u64, usize>,
    places: Places,
    /// Which uplinks carry the frames of their groups.
    groups: Groups,
    /// How much of the storm limits is used.
    meters: Meters,
    /// Loops and storms, and what is done about them.
    containment: Containment,
    /// Which ports are active, and which pins have yielded.
    activations: Activations,
    /// Announcements of local stations.
    announcing: Announcing,
    /// What is heard of links.
    links: Links,
    /// Which namespaces there are.
    namespaces: Namespaces,
    /// What is done elsewhere, as it may wait.
    jobs: Jobs,
    /// When a port that is down is tried again next.
    next_attempt: Option<Moment>,
    rules: Arc<Rules>,
    notices: mpsc::Receiver<Notice>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    done: mpsc::UnboundedSender<Outcome>,
    /// What is being written down.
    writing: Option<Writing>,
    /// The change that is under way.
    transition: Option<Transition>,
    /// Changes that are made but for ports that are being opened.
    pending: Vec<Pending>,
    /// Requests that wait for it to be over.
    waiting: VecDeque<Request>,
    /// The change that goes back unless it is confirmed.
    unconfirmed: Option<Unconfirmed>,
    /// It has begun with its configuration.
    is_begun: bool,
    /// The state can be used, which could not be at the start.
    recovered: Option<Recovered>,
    /// The state that could not be used at the start is being retried.
    retries_state: bool,
    /// The learned stations are being stored, or those that were stored before are being learned.
    keeping: Option<JoinHandle<()>>,
    /// The state is being verified.
    verification: Option<JoinHandle<()>>,
    next_key: u64,
    /// Since when it counts.
    since: SystemTime,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("ports", &self.ports.len()).finish_non_exhaustive()
    }
}

impl Controller {
    /// A controller of a switch without anything.
    pub fn new(beginning: Beginning) -> Controller {
        let Beginning { cores, secret, staff, notices, findings, probe_key, keeper, pool } = beginning;
        let (done, outcomes) = mpsc::unbounded_channel();
        Controller {
            config: Config::default(),
            cores,
            secret,
            meters: Meters::new(staff.len()),
            staff,
            left: keeper.left(),
            swept: false,
            keeper,
            pool,
            journal: Journal::default(),
            unwritten: None,
            recovered: None,
            retries_state: false,
            is_begun: false,
            ports: Vec::new(),
            standing: HashMap::new(),
            places: Places::default(),
            groups: Groups::default(),
            containment: Containment::new(probe_key, findings),
            activations: Activations::default(),
            announcing: Announcing::default(),
            links: Links::default(),
            namespaces: Namespaces::default(),
            jobs: Jobs::default(),
            next_attempt: None,
            rules: Arc::new(Rules::none(secret)),
            notices,
            outcomes,
            done,
            writing: None,
            transition: None,
            pending: Vec::new(),
            waiting: VecDeque::new(),
            unconfirmed: None,
            keeping: None,
            verification: None,
            next_key: 0,
            since: time::wall(),
        }
    }

    /// Makes a configuration come true. What cannot be opened is down, and will be tried again.
    pub async fn begin(&mut self, config: Config) -> Result<(), TooMany> {
        seats::fits(&config)?;
        self.tell_state_at_start();
        self.config.switch = config.switch.clone();
        let last = timeout(DISK, self.keeper.last_event()).await.unwrap_or_default();
        self.journal
            .begin(last, self.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_micros()).to_string());
        let left = self.clear_the_way(&config).await;
        let kept = self.keeper.take_loops().await;
        self.resume_activations(&kept["activations"]);
        self.containment.resume_later(kept);
        self.make(config, Transition::default()).await;
        // While devices are opened, before the first frame comes: nothing that was known is flooded. If there are very
        // many, ports do not wait for them all.
        let more = self.take_stations(0).await;
        let mut retry = tokio::time::interval(RETRY);
        while self.transition.is_some() || !self.pending.is_empty() {
            let next = self.next_attempt.map(|at| at.since(time::now()));
            tokio::select! {
                Some(outcome) = self.outcomes.recv() => self.receive(outcome).await,
                () = sleep(next.unwrap_or_default()), if next.is_some() => self.try_down_ports(),
                _ = retry.tick() => self.look_after_ports().await,
            }
        }
        // What is in nobody's way has time.
        left.into_iter().for_each(|left| self.sweep(left));
        self.look_through_state(more);
        self.is_begun = true;
        Ok(())
    }

    /// Learns some of the stations that were known before. Where it goes on, if there are more.
    async fn take_stations(&self, from: i64) -> Option<i64> {
        let (kept, more) = self.keeper.take_stations(from).await;
        self.staff.learn(&self.directory().learned(kept, time::now())).await;
        more
    }

    /// Learns the stored stations from a place on, and verifies the state then. Until all are learned none are stored in
    /// their place: those that are stored are complete.
    fn look_through_state(&mut self, mut more: Option<i64>) {
        let (keeper, staff, directory) = (self.keeper.clone(), self.staff.clone(), self.directory());
        let (done, learned) = oneshot::channel::<()>();
        self.keeping = Some(tokio::spawn(async move {
            while let Some(from) = more {
                let (kept, next) = keeper.take_stations(from).await;
                staff.learn(&directory.learned(kept, time::now())).await;
                more = next;
            }
            drop(done);
        }));
        let keeper = self.keeper.clone();
        self.verification = Some(tokio::spawn(async move {
            let _ = learned.await;
            keeper.verify().await;
        }));
    }

    /// Keeps things as they shall be and answers questions, until `stop` is ready.
    pub async fn run(&mut self, mut requests: mpsc::Receiver<Request>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut keep = tokio::time::interval(KEEP_STATIONS);
        keep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        keep.reset();
        let mut turn = tokio::time::interval(TURN);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leaving: Option<Moment> = None;
        loop {
            // The change in hand is finished and answered, unless it takes too long.
            if let Some(until) = leaving {
                if !self.has_change_in_hand() {
                    return;
                }
                if time::now() >= until {
                    return self.leave_changes();
                }
            }
            self.recover().await;
            while leaving.is_none()
                && !self.is_busy()
                && let Some(request) = self.waiting.pop_front()
            {
                self.answer(request).await;
            }
            self.write_events();
            // A change goes back only when it has been made, and not while it is being confirmed.
            let is_being_made = self.transition.is_some() || self.pending.iter().any(|of| of.to_be_confirmed);
            let may_go_back = !is_being_made && self.writing != Some(Writing::Change);
            let unconfirmed = self.unconfirmed.as_ref().filter(|_| may_go_back);
            let left = unconfirmed.map(|unconfirmed| unconfirmed.deadline.since(time::now()));
            let announced = self.announcing.due().map(|due| due.since(time::now()));
            let next = self.next_attempt.map(|at| at.since(time::now()));
            tokio::select! {
                () = &mut stop, if leaving.is_none() => {
                    leaving = Some(time::now() + FINISHING);
                    // Whoever waits hears that the switch leaves.
                    self.waiting.clear();
                }
                Some(request) = requests.recv() => {
                    if leaving.is_none() || !request.is_change() {
                        self.answer(request).await;
                    }
                }
                Some(outcome) = self.outcomes.recv() => self.receive(outcome).await,
                Some(notice) = self.notices.recv() => self.lose(notice).await,
                Some(finding) = self.containment.next() => self.heed_findings(finding).await,
                _ = turn.tick() => self.contain().await,
                Some(event) = self.links.next() => self.handle_link_event(event),
                Some(found) = self.announcing.next() => self.announce_learned(found),
                () = sleep(announced.unwrap_or_default()), if announced.is_some() => self.send_announcements().await,
                names = self.namespaces.next() => self.heed_names(names),
                () = sleep(next.unwrap_or_default()), if next.is_some() => self.try_down_ports(),
                () = sleep(left.unwrap_or_default()), if left.is_some() => self.go_back().await,
                _ = retry.tick() => {
                    self.look_after_ports().await;
                    self.watch_netdevs();
                    self.turn_over().await;
                    self.watch_limits();
                    self.write_what_is_swept();
                    self.try_state_again();
                }
                _ = keep.tick() => {
                    self.keep_stations();
                    self.keep_loops_soon();
                }
            }
        }
    }

    /// Looks after namespaces, links and attempts to open ports.
    async fn look_after_ports(&mut self) {
        self.tell_late(false);
        self.reopen_behind_returned().await;
        self.look_at_namespaces();
        self.listen_to_links();
        self.note_overdue();
        self.advance().await;
        self.try_down_ports();
        self.answer_pending();
    }

    /// Closes everything, and keeps what is known. Netdevs of ours that do not persist are gone
    /// when this returns.
    pub async fn close_all(mut self) {
        self.tell_late(true);
        // The next start verifies the state again.
        if let Some(verification) = self.verification.take() {
            verification.abort();
            let _ = verification.await;
        }
        // Of one that has not begun nothing is known that was not kept.
        let keep = async {
            // What is being stored does not have what was learned since.
            self.finish_keeping_stations().await;
            if self.is_begun {
                self.keep_stations();
                self.keep_loops_soon();
            }
            self.finish_keeping_loops().await;
            self.finish_keeping_stations().await;
            self.finish_writing().await;
        };
        if timeout(KEEPING, keep).await.is_err() {
            warn!("what is known has not been kept within {} s", KEEPING.as_secs());
        }
        // Without workers it would keep less than there was.
        if let Some(keeping) = self.keeping.take() {
            keeping.abort();
        }
        let gates = timeout(ENDING, self.staff.stop()).await;
        // Closing a tap waits for the kernel to take the netdev down. A driver that does not return is left to the end
        // of the process.
        let (done, closed) = oneshot::channel();
        self.jobs.run(&Netns::Host, move || {
            drop(gates);
            let _ = done.send(());
        });
        if timeout(ENDING, closed).await.is_err() {
            warn!("devices have not been closed within {} s", ENDING.as_secs());
        }
        let _ = timeout(ENDING, self.keeper.close()).await;
    }

    fn new_port(&mut self, seat: Seat) -> Port {
        self.next_key += 1;
        let state = match seat.parent() {
            Some(_) => State::Carried { told: None },
            None => State::Down { reason: String::new() },
        };
        Port {
            seat,
            state,
            counters: (0..self.staff.len()).map(|_| Arc::default()).collect(),
            key: self.next_key,
            told_down: false,
            made: None,
            namespace: None,
            netdev: None,
            egress: None,
            observed: None,
            refused_before: 0,
            has_refused: false,
            drift: Drift::default(),
            looked: 0,
            held: true,
            may_lose_tags: false,
            closing: 0,
            retry: Backoff::default(),
            attempt: None,
            is_overdue: false,
            busy: None,
            opened: Moment::default(),
            at_limit: AtLimit::default(),
        }
    }

    /// Something that happens now.
    fn event(&self, kind: EventKind, text: String) -> Event {
        Event { text, ..Event::new(kind, time::wall()) }
    }

    /// Something happens to a port or an uplink now.
    fn tell(&mut self, kind: EventKind, index: usize, text: &str) -> bool {
        let event = self.event_of(&self.ports[index].seat.names(&self.config), kind, text);
        self.journal.tell(event, time::now())
    }

    /// Reports an event, and logs it: as a warning, or for information.
    fn emit(&mut self, is_warning: bool, event: Event) {
        let logged = event.clone();
        if self.journal.tell(event, time::now()) {
            log_event(is_warning, &logged);
        }
    }

    /// Reports what sources that have caused too many events have caused last.
    fn tell_late(&mut self, all: bool) {
        for event in self.journal.tell_late(time::now(), all) {
            log_event(true, &event);
        }
    }

    /// Something that happens to one of this name now.
    fn event_of(&self, names: &Names<'_>, kind: EventKind, text: &str) -> Event {
        let (vm, network) = (names.vm.map(str::to_owned), names.network.map(str::to_owned));
        Event { vm, network, ports: vec![names.id.to_owned()], ..self.event(kind, text.to_owned()) }
    }

    /// All that is known of where stations can be.
    fn directory(&self) -> Directory {
        Directory::of(&self.config, &self.ports, &self.places, &self.groups)
    }

    /// What would be left behind if the process ended while it goes over to `next`, and came back as
    /// `kept`.
    fn left(&self, next: &Config, kept: &Config) -> Leftovers {
        let mut left = self.left.clone();
        left.append(&mut leftovers::netdevs(&self.config));
        left.append(&mut leftovers::netdevs(next));
        &left - &leftovers::netdevs(kept)
    }

    /// Begins to keep the learned stations, unless that is under way.
    fn keep_stations(&mut self) {
        let under_way = self.keeping.as_ref().is_some_and(|keeping| !keeping.is_finished());
        let (Some(store), false) = (self.keeper.store().cloned(), under_way) else { return };
        let (staff, directory) = (self.staff.clone(), self.directory());
        self.keeping = Some(tokio::spawn(async move {
            // Those of all workers, or none: what is kept takes the place of what was.
            let Some(stations) = staff.stations().await else { return };
            let kept = directory.kept(stations, time::now());
            if let Err(why) = store.save_stations(kept).await {
                warn!("the learned stations have not been kept: {why}");
            }
        }));
    }

    /// Waits until no stations are being stored or learned any more.
    async fn finish_keeping_stations(&mut self) {
        if let Some(keeping) = &mut self.keeping {
            let _ = keeping.await;
            self.keeping = None;
        }
    }

    async fn answer(&mut self, request: Request) {
        // Whoever asked and has gone meanwhile gets no answer, and what only they wanted is not done.
        if request.is_abandoned() {
            return;
        }
        match request {
            request if request.is_change() && self.is_busy() => self.waiting.push_back(request),
            request if request.is_change() && self.keeper.check().is_err() => {
                // The cause may be gone since the last retry.
                let mut changes = std::mem::take(&mut self.waiting);
                changes.push_front(request);
                self.retry_state(changes);
            }
            request if request.is_change() => self.apply_change(request).await,
            Request::Diff(change, reply) => drop(reply.send(self.outcome(&change).map(|(_, changed)| changed))),
            Request::Events(which, reply) => self.read_events(which, reply),
            Request::Release(port, reply) => {
                let released = self.release(&port).await;
                let _ = reply.send(released);
            }
            Request::Flush(flush, reply) => match self.which(&flush) {
                Err(refusal) => drop(reply.send(Err(refusal))),
                Ok(flush) => {
                    let staff = self.staff.clone();
                    tokio::spawn(async move {
                        let mut flushed = 0u64;
                        for flush in flush {
                            flushed += u64::from(staff.flush(flush).await);
                        }
                        let _ = reply.send(Ok(flushed));
                    });
                }
            },
            Request::Fdb(reply) => {
                // Very many stations take their time; others are answered meanwhile.
                let (staff, rules) = (self.staff.clone(), self.rules.clone());
                let directory = self.directory();
                tokio::spawn(async move {
                    // Who gets no answer is told to ask again.
                    let Some(learned) = staff.stations().await else { return };
                    // Naming and sorting a million is seconds of work.
                    let views = move || drop(reply.send(directory.views(&rules, learned, time::now())));
                    let _ = spawn_blocking(views).await;
                });
            }
            request => self.report(request).await,
        }
    }

    /// Applies a change. Nothing else is in its way.
    async fn apply_change(&mut self, request: Request) {
        match request {
            Request::Change(change, confirm, reply) => self.change(change, confirm, reply).await,
            Request::Confirm(reply) => self.confirm(reply),
            Request::Reload(file, reply) => self.reload(*file, reply),
            // The rest are no changes.
            _ => {}
        }
    }

    async fn report(&self, request: Request) {
        let report = Report {
            config: &self.config,
            ports: &self.ports,
            places: &self.places,
            groups: &self.groups,
            cores: &self.cores,
            staff: &self.staff,
            containment: &self.containment,
            activations: &self.activations,
            since: self.since,
        };
        match request {
            Request::Ports(reply) => drop(reply.send(report.ports())),
            Request::Uplinks(reply) => drop(reply.send(report.uplinks())),
            Request::Vms(reply) => drop(reply.send(report.vms())),
            Request::Networks(reply) => drop(reply.send(report.networks().await)),
            Request::Workers(reply) => drop(reply.send(report.workers())),
            Request::Drops(reply) => drop(reply.send(report.drops())),
            Request::Loops(reply) => drop(reply.send(self.containment.loops())),
            Request::Storms(reply) => drop(reply.send(self.storms())),
            Request::LoopCounts(reply) => drop(reply.send(self.containment.counts(&self.ports))),
            Request::Audit(reply) => drop(reply.send(report.audit().await)),
            Request::Config(reply) => drop(reply.send(report.config())),
            // These are answered above.
            Request::Fdb(_)
            | Request::Change(..)
            | Request::Confirm(_)
            | Request::Reload(..)
            | Request::Diff(..)
            | Request::Events(..)
            | Request::Release(..)
            | Request::Flush(..) => {}
        }
    }

    /// Which stations are meant, in the terms of the workers: behind an uplink they are behind several
    /// places.
    fn which(&self, flush: &Flush) -> Result<Vec<worker::Flush>, Refusal> {
        let network = flush
            .network
            .as_deref()
            .map(|id| self.places.network(id).ok_or_else(|| Refusal::unknown_network(&self.config, id)));
        let wanted = worker::Flush { network: network.transpose()?, place: None, mac: flush.mac, cursor: 0 };
        let Some(id) = flush.port.as_deref() else { return Ok(vec![wanted]) };
        let behind = |place: PortId| worker::Flush { place: Some(place.index()), ..wanted };
        if let Some(port) = self.places.port(id) {
            return Ok(vec![behind(port)]);
        }
        let uplink = self.config.uplinks.iter().find(|uplink| uplink.id == id);
        let uplink = uplink.ok_or_else(|| Refusal::unknown_port(&self.config, id))?;
        let carried = uplink.networks.iter().filter_map(|of| self.places.carried(&uplink.line(), &of.network_id));
        Ok(carried.map(behind).collect())
    }
}

fn log_event(is_warning: bool, event: &Event) {
    let Event { kind, vm, network, ports, text, .. } = event;
    let (kind, port) = (kind.name(), ports.first().filter(|_| ports.len() == 1));
    if is_warning {
        warn!(vm, network, port, "{kind}: {text}");
    } else {
        info!(vm, network, port, "{kind}: {text}");
    }
}
