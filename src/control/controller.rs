//! The one thread that owns the desired state and makes it come true: it opens devices and hands
//! them to workers, takes them back when they are gone, opens them again, and answers questions.
//!
//! A port is *up* while a worker polls its device. It is *down* for a reason that can be read: its
//! namespace or netdev is not there, somebody else holds it, opening failed. A port that is down is
//! tried again, for ever: whatever is missing may come.
//!
//! The order of steps makes every moment valid. Opening: rules that know the device go to all
//! workers, then the gate goes to its worker. Closing: rules without the device to all, then the
//! gate comes back, and the device is dropped here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::blueprint::{self, Plan, TooMany};
use super::config::Config;
use super::handle::Request;
use super::report::Report;
use super::staff::Staff;
use crate::device::{self, Device, OpenError, Opened, Settings};
use crate::switch::{PortId, Rules, Secret};
use crate::sys::netns::{Identity, Netns};
use crate::telemetry::PortCounters;
use crate::time;
use crate::worker::{Gate, Notice};

/// How often ports that are down are tried again, and those that are up looked after.
const RETRY: Duration = Duration::from_millis(250);

/// A port, as it is.
#[derive(Debug)]
pub struct Port {
    /// What it shall be.
    pub plan: Plan,
    /// What it is.
    pub state: State,
    /// Its counters, one for each worker.
    pub counters: Vec<Arc<PortCounters>>,
    /// Whether we made its netdev, once that is known.
    made: Option<bool>,
    /// The namespace its device was opened in.
    namespace: Option<Identity>,
}

/// Whether a port has a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has, and its first queue is polled by this worker, the others by the next ones in turn.
    Up {
        /// The worker.
        worker: u16,
        /// How many queues there are.
        queues: u16,
        /// Remarks on how it was opened.
        notes: String,
    },
    /// It is being opened.
    Opening {
        /// Why it was down before; empty at first.
        reason: String,
    },
    /// It has not.
    Down {
        /// Why not.
        reason: String,
    },
}

/// What came of trying to open a device.
struct Attempt {
    port: usize,
    namespace: Option<Identity>,
    result: Result<Opened, OpenError>,
}

/// The owner of the desired state.
pub struct Controller {
    config: Config,
    cores: Vec<usize>,
    secret: Secret,
    staff: Staff,
    ports: Vec<Port>,
    rules: Arc<Rules>,
    notices: mpsc::Receiver<Notice>,
    attempts: mpsc::UnboundedReceiver<Attempt>,
    attempted: mpsc::UnboundedSender<Attempt>,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("ports", &self.ports.len()).finish_non_exhaustive()
    }
}

impl Controller {
    /// A controller for a configuration of which nothing is open yet. `cores`: those of the workers.
    pub fn new(
        config: Config,
        cores: Vec<usize>,
        secret: Secret,
        staff: Staff,
        notices: mpsc::Receiver<Notice>,
    ) -> Result<Controller, TooMany> {
        let counters = || (0..staff.len()).map(|_| Arc::default()).collect();
        let down = || State::Down { reason: String::new() };
        let ports = blueprint::plans(&config)?
            .into_iter()
            .map(|plan| Port { plan, state: down(), counters: counters(), made: None, namespace: None })
            .collect();
        let (attempted, attempts) = mpsc::unbounded_channel();
        let rules = Arc::new(Rules::none(secret));
        Ok(Controller { config, cores, secret, staff, ports, rules, notices, attempts, attempted })
    }

    /// Opens what can be opened. What cannot is down, and will be tried again.
    pub async fn open_all(&mut self) {
        let mut attempts = Vec::new();
        self.try_down_ports();
        while attempts.len() < self.ports.len() {
            match self.attempts.recv().await {
                Some(attempt) => attempts.push(attempt),
                None => break,
            }
        }
        self.settle(attempts).await;
    }

    /// Keeps things as they shall be and answers questions, until `stop` is ready.
    pub async fn run(&mut self, mut requests: mpsc::Receiver<Request>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut stop => return,
                Some(request) = requests.recv() => self.answer(request).await,
                Some(attempt) = self.attempts.recv() => self.settle(vec![attempt]).await,
                Some(notice) = self.notices.recv() => self.lose(notice).await,
                _ = retry.tick() => {
                    self.leave_lost_namespaces().await;
                    self.try_down_ports();
                }
            }
        }
    }

    /// Closes everything. Netdevs of ours that do not persist are gone when this returns.
    pub async fn close_all(self) {
        let gates = self.staff.stop().await;
        // Closing a tap waits for the kernel to take the netdev down.
        let _ = spawn_blocking(move || drop(gates)).await;
    }

    /// Starts an attempt to open each port that is down and for which there is hope.
    fn try_down_ports(&mut self) {
        for (index, port) in self.ports.iter_mut().enumerate() {
            let State::Down { reason } = &mut port.state else { continue };
            if !reason.is_empty() && !may_be_there(&port.plan.device) {
                continue;
            }
            port.state = State::Opening { reason: std::mem::take(reason) };
            let (settings, attempted) = (port.plan.device.clone(), self.attempted.clone());
            // What others made, others make again.
            let may_create = port.made.unwrap_or(true);
            spawn_blocking(move || {
                // First: if it is replaced right now, we shall find that out and come again.
                let namespace = netns(&settings).identity();
                let result = device::open(&settings, may_create);
                // Nobody listens any more when the switch is being closed; the device is dropped.
                let _ = attempted.send(Attempt { port: index, namespace, result });
            });
        }
    }

    /// Puts into force what came of some attempts.
    async fn settle(&mut self, attempts: Vec<Attempt>) {
        let mut gates = Vec::new();
        for Attempt { port: index, namespace, result } in attempts {
            let workers = self.staff.len();
            let port = &mut self.ports[index];
            match result {
                Ok(Opened { queues, made, notes }) => {
                    (port.made, port.namespace) = (Some(made), namespace);
                    #[allow(clippy::cast_possible_truncation)] // there are at most 4096 ports, 256 queues
                    let (worker, count) = ((index % usize::from(workers)) as u16, queues.len() as u16);
                    port.state = State::Up { worker, queues: count, notes: notes.join("; ") };
                    let id = port.plan.id;
                    gates.extend(
                        (0..count).zip(queues).map(|(queue, device)| {
                            (index, self.staff.home(worker, queue), Gate::new(id, queue, device))
                        }),
                    );
                }
                Err(error) => self.fail(index, error.to_string()),
            }
        }
        if gates.is_empty() {
            return;
        }
        self.set_rules().await;
        for (index, worker, gate) in gates {
            let queue = gate.queue;
            if let Err(gate) = self.staff.open(worker, gate).await {
                close(gate.device).await;
                self.fail(index, format!("worker {worker} has too many queues to poll; give the switch more cores"));
            } else if queue == 0 {
                self.tell_up(index);
            }
        }
    }

    fn fail(&mut self, index: usize, why: String) {
        let port = &mut self.ports[index];
        let news = !matches!(&port.state, State::Opening { reason } if *reason == why);
        port.state = State::Down { reason: why.clone() };
        if news {
            let (vm, network, id) = self.names(index);
            warn!(vm, network, port = id, "port_down: {why}");
        }
    }

    fn tell_up(&self, index: usize) {
        let (vm, network, id) = self.names(index);
        if let State::Up { worker, queues, notes } = &self.ports[index].state {
            info!(vm, network, port = id, worker, queues, "port_up{}{notes}", if notes.is_empty() { "" } else { ": " });
        }
    }

    /// The VM, network and id of a port.
    fn names(&self, index: usize) -> (&str, &str, &str) {
        let vm = &self.config.vms[self.ports[index].plan.vm];
        let port = &vm.ports[self.ports[index].plan.position];
        (&vm.id, &port.network_id, &port.port_id)
    }

    /// Takes back the device of a port that is gone.
    async fn lose(&mut self, notice: Notice) {
        let Notice::DeviceGone { port: id, .. } = notice;
        let Some(index) = self.ports.iter().position(|port| port.plan.id == id) else { return };
        self.take_back(index, "its netdev is gone; it is opened again as soon as it can be".into()).await;
    }

    /// Takes back the devices whose namespace has been deleted or replaced. They would never tell:
    /// what is open inside keeps a namespace alive, unseen, and with it its netdevs.
    async fn leave_lost_namespaces(&mut self) {
        for index in 0..self.ports.len() {
            let port = &self.ports[index];
            let netns = netns(&port.plan.device);
            if matches!(port.state, State::Up { .. }) && netns.identity() != port.namespace {
                let why = format!("{netns} has been deleted; its device is opened again as soon as it is back");
                self.take_back(index, why).await;
            }
        }
    }

    /// Takes back the device of a port that is up, which is down from now on.
    async fn take_back(&mut self, index: usize, why: String) {
        // Each of its queues may tell that it is gone; the first one is enough.
        let State::Up { worker, queues, .. } = self.ports[index].state else { return };
        self.fail(index, why);
        self.set_rules().await;
        let id = self.ports[index].plan.id;
        for queue in 0..queues {
            if let Some(gate) = self.staff.close(self.staff.home(worker, queue), id, queue).await {
                close(gate.device).await;
            }
        }
    }

    async fn set_rules(&mut self) {
        let plans: Vec<Plan> = self.ports.iter().map(|port| port.plan.clone()).collect();
        let worker = |index: usize| match self.ports[index].state {
            State::Up { worker, .. } => Some(worker),
            _ => None,
        };
        self.rules = Arc::new(blueprint::rules(&self.config, &plans, self.secret, worker));
        let books = self.ports.iter().map(|port| (port.plan.id, &*port.counters));
        self.staff.set_rules(&self.rules, books).await;
    }

    async fn answer(&self, request: Request) {
        let report = Report { config: &self.config, ports: &self.ports, cores: &self.cores, staff: &self.staff };
        // Whoever asked and has gone meanwhile gets no answer.
        match request {
            Request::Ports(reply) => drop(reply.send(report.ports())),
            Request::Vms(reply) => drop(reply.send(report.vms())),
            Request::Networks(reply) => drop(reply.send(report.networks().await)),
            Request::Fdb(reply) => drop(reply.send(report.fdb(&self.rules, time::now()).await)),
            Request::Workers(reply) => drop(reply.send(report.workers())),
            Request::Drops(reply) => drop(reply.send(report.drops())),
            Request::Audit(reply) => drop(reply.send(report.audit().await)),
            Request::Config(reply) => drop(reply.send(report.config())),
            // placeholders on this branch until the controller can
            Request::Change(_, _, reply)
            | Request::Diff(_, reply)
            | Request::Confirm(reply)
            | Request::Release(_, reply) => drop(reply.send(Err(later()))),
            Request::Flush(_, reply) => drop(reply.send(Err(later()))),
            Request::Events(_, reply) => drop(reply.send(Err(later()))),
        }
    }
}

fn later() -> super::change::Refusal {
    super::change::Refusal { blame: super::change::Blame::Switch, kind: "later", message: "not yet".into() }
}

/// Whether it is worth while to try to open a device: a look that costs next to nothing.
fn may_be_there(settings: &Settings) -> bool {
    netns(settings).path().is_none_or(|path| path.exists())
}

/// The namespace of a device.
fn netns(settings: &Settings) -> &Netns {
    let Settings::Tap(tap) = settings;
    &tap.netns
}

/// Closes a device, which may wait for the kernel.
async fn close(device: Box<dyn Device>) {
    let _ = spawn_blocking(move || drop(device)).await;
}

impl Port {
    /// Whether this is the port with this id of the switch.
    pub fn is(&self, id: PortId) -> bool {
        self.plan.id == id
    }

    /// The sum over workers of one of its counters.
    pub fn sum(&self, counter: impl Fn(&PortCounters) -> u64) -> u64 {
        self.counters.iter().map(|counters| counter(counters)).sum()
    }
}
