//! The switch inside the test process: its controller over real workers, called by its handle like the API.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use vifswitch::control::api::handle::{ChangeOptions, Handle};
use vifswitch::control::api::responses::{PortView, StationView, Status};
use vifswitch::control::api::selection::StationSelection;
use vifswitch::control::config::{Config, Port, parse_toml};
use vifswitch::control::descriptors::Descriptors;
use vifswitch::control::desired::change::{Change, ChangeError, ChangeResult};
use vifswitch::control::reconcile::{Controller, ProbeIdentity, Startup};
use vifswitch::control::state::event_page::Cursor;
use vifswitch::control::state::events::Event;
use vifswitch::control::state::{Precedence, StateStore};
use vifswitch::control::workers::WorkerHandles;
use vifswitch::frame::Pool;
use vifswitch::switch::HashKey;
use vifswitch::wire::ProbeKey;
use vifswitch::worker::{Pace, WorkerSetSettings, worker_set};

use super::await_that;
use super::daemon::{Vif, config};

/// A running switch, stopped in order when the test ends.
pub struct Inside {
    pub handle: Handle,
    runtime: Runtime,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build().unwrap()
}

/// The parsed configuration of a file with these ports.
pub fn expected(networks: &[(&str, u16)], vifs: &[Vif]) -> Config {
    parse_toml(&config(Path::new("/unused"), "", networks, vifs), "test").unwrap()
}

/// Ports as they are attached.
pub fn ports(vifs: &[Vif]) -> Vec<Port> {
    let networks: Vec<(&str, u16)> = vifs.iter().map(|vif| (vif.network.as_str(), 1500)).collect();
    let mut once = networks.clone();
    once.dedup();
    expected(&once, vifs).vms.into_iter().flat_map(|vm| vm.into_inner().ports).collect()
}

impl Inside {
    /// A switch without state, with these ports on net1.
    pub fn over(vifs: &[Vif]) -> Inside {
        Inside::new(1, Some(expected(&[("net1", 1500)], vifs)), None)
    }

    /// A switch with this many workers, over a file, a state, or both.
    pub fn new(workers: u16, file: Option<Config>, state: Option<&Path>) -> Inside {
        let (handle, requests) = Handle::new();
        let health = handle.health().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let state = state.map(Path::to_owned);
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let (config, store) =
                    StateStore::open(file.map(Into::into), state.as_deref(), Precedence::Merge).await.unwrap();
                let (pool, hash_key) = (Pool::new(4096).unwrap(), HashKey::new([5; 16]));
                let worker_set = worker_set(WorkerSetSettings {
                    workers,
                    pool,
                    fdb_capacity: 4096,
                    hash_key,
                    probe_keys: ProbeKey::new([5; 16]).into(),
                })
                .unwrap();
                let threads: Vec<_> = worker_set
                    .workers
                    .into_iter()
                    .map(|worker| thread::spawn(move || worker.run(Pace::Adaptive)))
                    .collect();
                let (worker_handles, cores) =
                    (WorkerHandles::new(worker_set.mailboxes, worker_set.counters), (0..workers.into()).collect());
                let (notices, events) = (worker_set.notices, worker_set.events);
                let beginning = Startup {
                    cores,
                    hash_key,
                    workers: worker_handles,
                    notices,
                    events,
                    probes: ProbeIdentity::from(ProbeKey::new([5; 16])),
                    state: store,
                    pool,
                    health,
                    descriptors: Descriptors::default(),
                    handover: Default::default(),
                };
                let mut controller = Controller::new(beginning);
                controller.begin(config).await.unwrap();
                ready.send(()).unwrap();
                controller.run(requests, async { drop(stopped.await) }).await;
                controller.close_all().await;
                threads.into_iter().for_each(|thread| thread.join().unwrap());
            });
        });
        let inside = Inside { handle, runtime: runtime(), stop: Some(stop), thread: Some(thread) };
        is_ready.recv().expect("the switch is ready");
        inside
    }

    /// Waits for a reply.
    pub fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(answer)
    }

    pub fn try_change(&self, change: Change) -> Result<ChangeResult, ChangeError> {
        self.wait(self.handle.change(change, ChangeOptions::default(), Box::new(()))).unwrap()
    }

    pub fn change(&self, change: Change) -> ChangeResult {
        self.try_change(change).unwrap()
    }

    /// Events behind a position, which moves behind them.
    pub fn events(&self, from: &mut Cursor) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let page = self.wait(self.handle.events(Arc::default(), *from)).unwrap();
            *from = page.next;
            events.extend(page.events.iter().map(|event| Event::clone(event)));
            if page.is_last {
                return events;
            }
        }
    }

    /// Attaches ports to the VM of the first one.
    pub fn attach(&self, vifs: &[Vif]) -> ChangeResult {
        self.change(Change::Attach { vm: vifs[0].vm.clone(), ports: ports(vifs) })
    }

    pub fn detach(&self, vif: &Vif) -> ChangeResult {
        self.change(Change::Detach { port: vif.port.clone() })
    }

    pub fn ports(&self) -> Vec<PortView> {
        self.wait(self.handle.ports()).unwrap()
    }

    /// Port ids, in order.
    pub fn listed(&self) -> Vec<String> {
        self.ports().into_iter().map(|port| port.port_id).collect()
    }

    pub fn port(&self, vif: &Vif) -> PortView {
        self.ports().into_iter().find(|port| port.port_id == vif.port).unwrap()
    }

    pub fn fdb(&self) -> Vec<StationView> {
        self.wait(self.handle.fdb(StationSelection::default(), Box::new(()))).unwrap()
    }

    pub fn await_active(&self, vif: &Vif) -> PortView {
        await_that("ACTIVE", || Some(self.port(vif)).filter(|port| port.status == Status::Active))
    }

    /// Stops it and waits for its end.
    pub fn stop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the switch has panicked");
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stop();
    }
}
