//! Fake switch: the real API server over a controller that answers from fixed views.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use vifswitch::control::api::handle::{ChangeOptions, Flush, Handle, Request, Restored};
use vifswitch::control::api::responses::{
    AuditDropView, AuditPortView, AuditView, AuditWorkerView, BetweenView, CountsView, DeviceView, Direction, DropView,
    NetworkView, PortView, StationKind, StationView, Status, UplinkNetworkView, UplinkView, VmView, WorkerView,
};
use vifswitch::control::api::selection::{self, StationKey};
use vifswitch::control::api::socket::Socket;
use vifswitch::control::api::{SHUTDOWN_TIMEOUT, api, serve};
use vifswitch::control::author::Author;
use vifswitch::control::config::Config;
use vifswitch::control::desired::change::{Change, ChangeError, ChangeResult, ErrorKind};
use vifswitch::control::loops::status::{LoopCounts, LoopKind, LoopStatus, StormStatus};
use vifswitch::control::state::event_filter::EventFilter;
use vifswitch::control::state::event_log::EventLog;
use vifswitch::control::state::event_page::{Cursor, Page};
use vifswitch::control::state::events::{Event, EventKind};
use vifswitch::control::state::history::GenerationView;

/// A valid id that needs escaping everywhere.
pub const ODD: &str = "a\"b\\c";

/// Generation of the fake configuration.
pub const GENERATION: u64 = 7;

/// Views of the fake switch.
#[derive(Debug, Clone, Default)]
pub struct Views {
    pub ports: Vec<PortView>,
    pub uplinks: Vec<UplinkView>,
    pub vms: Vec<VmView>,
    pub networks: Vec<NetworkView>,
    pub fdb: Vec<StationView>,
    pub workers: Vec<WorkerView>,
    pub drops: Vec<DropView>,
    pub audit: AuditView,
    pub loops: Vec<LoopStatus>,
    pub storms: Vec<StormStatus>,
    pub loop_counts: LoopCounts,
    pub events: Vec<Event>,
    /// The configuration; a made-up one if it is null.
    pub config: serde_json::Value,
}

/// Requests that the fake switch has received, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    Change(Change, ChangeOptions),
    Diff(Change),
    Confirm,
    Cancel,
    Flush(Flush),
    Release(String),
    /// A page of events behind this id.
    Events(EventFilter, Option<u64>),
}

/// How the fake switch answers changes.
#[derive(Debug, Clone)]
pub struct FakeBehaviour {
    /// Response to every change.
    pub answer: Result<ChangeResult, ChangeError>,
    /// Receives each request.
    pub requests: mpsc::UnboundedSender<Received>,
    /// Its events.
    pub happening: Happening,
    /// Authors of changes, in order.
    pub authors: Arc<Mutex<Vec<Option<Author>>>>,
    /// Response to the first change, if another one.
    pub first_answer: Arc<Mutex<Option<ChangeError>>>,
    /// Number of requests for the views of all ports.
    pub all_ports: Arc<AtomicUsize>,
}

/// The events of the fake switch, in memory. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Happening(Arc<Mutex<EventLog>>);

impl Happening {
    /// Emits an event, which gets the next id; the first one has 1.
    pub fn emit(&self, event: Event) {
        self.0.lock().unwrap().report(event);
    }

    /// Number of followers.
    pub fn followers(&self) -> usize {
        self.0.lock().unwrap().readers()
    }

    fn page(&self, filter: &EventFilter, from: Cursor) -> Page {
        let log = self.0.lock().unwrap();
        log.page(filter, from).unwrap_or_else(|| {
            let mut page = Page::at(from);
            page.end_stored(log.forgotten(), None);
            page
        })
    }
}

impl FakeBehaviour {
    /// A behaviour that accepts every change, and its received requests.
    pub fn willing() -> (FakeBehaviour, mpsc::UnboundedReceiver<Received>) {
        let (requests, received) = mpsc::unbounded_channel();
        let answer = Ok(ChangeResult {
            changes: vec!["port p9 is new".into()],
            warnings: vec!["no namespace".into()],
            ..ChangeResult::default()
        });
        let (authors, first_answer, all_ports) = (Arc::default(), Arc::default(), Arc::default());
        let happening = Happening::default();
        (FakeBehaviour { answer, requests, happening, authors, first_answer, all_ports }, received)
    }

    /// A behaviour that refuses every change.
    pub fn refusing(category: ErrorKind, kind: &'static str, message: &str) -> FakeBehaviour {
        FakeBehaviour { answer: Err(ChangeError::new(category, kind, message)), ..FakeBehaviour::willing().0 }
    }

    fn note(&self, by: Option<&Author>) {
        self.authors.lock().unwrap().push(by.cloned());
    }

    fn record(&self, requests: Received) {
        // The test may not read them.
        let _ = self.requests.send(requests);
    }
}

/// An event.
pub fn event(time: &str, text: &str) -> Event {
    Event {
        id: 0,
        start: String::new(),
        time: time.into(),
        kind: EventKind::PortUp,
        vm: Some("fw-3".into()),
        ports: vec!["p1".into(), ODD.into()],
        network: Some("net1".into()),
        mac: None,
        ip: None,
        gap: None,
        by: None,
        text: text.into(),
    }
}

/// The events of the fake switch as it numbers them.
pub fn numbered(events: &[Event]) -> Vec<Event> {
    events.iter().zip(1..).map(|(event, id)| Event { id, ..event.clone() }).collect()
}

impl Views {
    /// Two ports of two VMs on one network, one of them with a name that needs escaping.
    pub fn made_up() -> Views {
        let code = |status, reason: &str| match status {
            Status::Active if reason.is_empty() => "ok",
            Status::Active => "backup",
            Status::Down => "no_device",
            Status::Quarantined => "quarantined",
        };
        let port = |port_id: &str, device_id: &str, status, status_reason: &str| PortView {
            owner: None,
            port_id: port_id.into(),
            device_id: device_id.into(),
            network_id: "net1".into(),
            mac_address: "02:00:00:00:01:0a".into(),
            position: 0,
            status,
            status_code: code(status, status_reason).into(),
            status_reason: status_reason.into(),
            admin_state_up: true,
            port_security: "mac".into(),
            unknown_unicast: "deliver".into(),
            promiscuous: true,
            mac_learning: true,
            activation: "immediate".into(),
            lifetime: "config".into(),
            pinned: true,
            mac_limit: Some(16),
            mac_limit_policy: Some("drop".into()),
            parent: None,
            vlan: None,
            device: DeviceView {
                kind: "tap".into(),
                name: "tap0".into(),
                netns: Some(device_id.into()),
                queues: Some(1),
                offloads: Some(true),
                isolate: None,
                persist: Some(true),
                mode: None,
            },
            worker: (status == Status::Active).then_some(0),
            counts: CountsView {
                rx_frames: 12,
                rx_bytes: 1_234_567,
                tx_frames: 7,
                tx_bytes: 980,
                forwarded: 8,
                flooded: 2,
                copies: 6,
                probes: 3,
                announcements: 2,
                segmented: 3,
                checksummed: 4,
                rx_missed: 5,
                tx_lost: 6,
                not_learned: 9,
                not_flooded: 10,
                mirror_copies: 11,
                reserved_groups: BTreeMap::from([("pause".into(), 13)]),
                drops: BTreeMap::from([("spoofed_source".into(), 2)]),
            },
        };
        let vm = |device_id: &str, port: &str| VmView {
            owner: None,
            device_id: device_id.into(),
            ports: vec![port.into()],
            networks: vec!["net1".into()],
            active: 1,
            rx_frames: 12,
            rx_bytes: 1_234_567,
            tx_frames: 7,
            tx_bytes: 980,
            drops: 2,
        };
        let uplink = |uplink_id: &str, active, status_reason: &str| UplinkView {
            owner: None,
            uplink_id: uplink_id.into(),
            group: Some("wire".into()),
            active,
            status: Status::Active,
            status_code: code(Status::Active, status_reason).into(),
            status_reason: status_reason.into(),
            admin_state_up: true,
            networks: vec![
                UplinkNetworkView { network_id: "net1".into(), vlan: Some(120) },
                UplinkNetworkView { network_id: "net2".into(), vlan: None },
            ],
            device: DeviceView {
                kind: "xdp".into(),
                name: "eth1".into(),
                queues: Some(2),
                mode: Some("native copy".into()),
                ..DeviceView::default()
            },
            worker: Some(0),
            counts: CountsView {
                rx_frames: 21,
                rx_bytes: 2_345_678,
                tx_frames: 8,
                tx_bytes: 990,
                forwarded: 20,
                flooded: 1,
                copies: 2,
                probes: 3,
                announcements: 2,
                reserved_groups: BTreeMap::from([("bpdu".into(), 6)]),
                drops: BTreeMap::from([("device_full".into(), 3)]),
                ..CountsView::default()
            },
        };
        let station = |port_id: &str, kind, age_seconds| StationView {
            network_id: "net1".into(),
            mac_address: "02:00:00:00:01:0a".into(),
            port_id: port_id.into(),
            uplink_id: None,
            kind,
            age_seconds,
        };
        Views {
            config: serde_json::Value::Null,
            ports: vec![port("p1", "fw-3", Status::Active, ""), port(ODD, "web", Status::Down, "no such namespace")],
            vms: vec![vm("fw-3", "p1"), vm("web", ODD)],
            networks: vec![NetworkView {
                owner: None,
                network_id: "net1".into(),
                mtu: 1500,
                ports: 2,
                active: 1,
                stations: 3,
                reserved_groups: "vm-default".into(),
                fdb_limit: 65536,
                ageing_seconds: 300,
            }],
            uplinks: vec![uplink("up0", true, ""), uplink("up1", false, "backup")],
            fdb: vec![
                station("p1", StationKind::Pinned, 0),
                station(ODD, StationKind::Learned, 65),
                StationView { uplink_id: Some("up0".into()), ..station("up0", StationKind::Learned, 7) },
            ],
            workers: vec![WorkerView {
                worker: 0,
                core: 1,
                poll: "adaptive".into(),
                queues: 2,
                stations: 3,
                stations_limit: 131_072,
                stations_refused: 0,
                polls: 1_000_000,
                busy_polls: 10,
                busy_seconds: 0.25,
                sleeps: 4,
                polls_skipped: 0,
                updates_lost: 0,
                peer_tx_frames: 5,
                peer_rx_frames: 6,
                peer_tx_floods: 7,
                peer_rx_floods: 8,
                closed_port_drops: 9,
                since: "2026-01-31T12:00:00.000Z".into(),
            }],
            drops: vec![
                DropView {
                    port_id: ODD.into(),
                    uplink_id: None,
                    device_id: "web".into(),
                    network_id: "net1".into(),
                    direction: Direction::In,
                    reason: "spoofed_source".into(),
                    description: "port security does not allow the source at this port".into(),
                    frames: 2,
                },
                DropView {
                    port_id: "up0".into(),
                    uplink_id: Some("up0".into()),
                    device_id: String::new(),
                    network_id: String::new(),
                    direction: Direction::Out,
                    reason: "device_full".into(),
                    description: "the device had no room".into(),
                    frames: 3,
                },
            ],
            audit: audit(),
            loops: vec![a_loop(true), a_loop(false)],
            storms: vec![a_storm(Some(ODD)), a_storm(None)],
            loop_counts: LoopCounts {
                loops: 2,
                storms: 3,
                dampenings: 4,
                dampened: 1,
                probes_sent: 500,
                probes_returned: 20,
                probes_forged: 6,
                probes_stale: 7,
            },
            events: vec![
                event("2025-11-03T09:00:00.000Z", "it is up"),
                Event { vm: None, ports: vec![], network: None, ..event("2025-11-03T09:00:01.000Z", "it is so") },
            ],
        }
    }

    /// Answers requests as the controller does, until all senders are gone.
    pub async fn control(self, requests: mpsc::Receiver<Request>) {
        self.mind(FakeBehaviour::willing().0, requests).await;
    }

    /// The same, with this behaviour.
    pub async fn mind(self, mind: FakeBehaviour, mut requests: mpsc::Receiver<Request>) {
        self.events.iter().for_each(|event| mind.happening.emit(event.clone()));
        while let Some(request) = requests.recv().await {
            // The client may have disconnected.
            match request {
                Request::Ports(reply) => {
                    mind.all_ports.fetch_add(1, Ordering::Relaxed);
                    drop(reply.send(self.ports.clone()));
                }
                Request::Uplinks(reply) => drop(reply.send(self.uplinks.clone())),
                Request::Vms(reply) => drop(reply.send(self.vms.clone())),
                Request::Networks(reply) => drop(reply.send(self.networks.clone())),
                Request::Fdb(which, reply) => {
                    let is_wanted = |station: &StationView| {
                        which.network.as_ref().is_none_or(|network| *network == station.network_id)
                            && which.port.as_ref().is_none_or(|port| *port == station.port_id)
                            && which.mac.is_none_or(|mac| mac.to_string() == station.mac_address)
                            && which.kind.is_none_or(|kind| kind == station.kind)
                    };
                    let stations = self.fdb.iter().filter(|station| is_wanted(station)).cloned().collect();
                    let key = |station: &StationView| StationKey::of(station).unwrap();
                    drop(reply.send(selection::paged(stations, which.page.as_ref(), key)));
                }
                Request::Workers(reply) => drop(reply.send(self.workers.clone())),
                Request::Drops(reply) => drop(reply.send(self.drops.clone())),
                Request::Loops(reply) => drop(reply.send(self.loops.clone())),
                Request::Storms(reply) => drop(reply.send(self.storms.clone())),
                Request::LoopCounts(reply) => drop(reply.send(self.loop_counts)),
                Request::Audit(reply) => drop(reply.send(self.audit.clone())),
                Request::SelectPorts(which, reply) => drop(reply.send(which.of(self.ports.clone()))),
                Request::PortsOf(ids, reply) => {
                    let ports = self.ports.iter().filter(|port| ids.contains(&port.port_id));
                    drop(reply.send(ports.cloned().collect()));
                }
                Request::Config(_, reply) => {
                    let made_up = json!({ "switch": { "cores": [1] } });
                    let config = if self.config.is_null() { made_up } else { self.config.clone() };
                    drop(reply.send((config, GENERATION)));
                }
                Request::Generation(reply) => drop(reply.send(GENERATION)),
                Request::History(reply) => drop(reply.send(vec![made_up_generation()])),
                Request::Restored(generation, reply) => {
                    let restored = |_| Restored {
                        generation: generation.unwrap_or(4),
                        newest: GENERATION,
                        config: Config::default(),
                    };
                    drop(reply.send(mind.answer.clone().map(restored)));
                }
                Request::Subscribe(reply) => drop(reply.send(mind.happening.0.lock().unwrap().newest())),
                Request::Change(change, options, reply) => {
                    mind.record(Received::Change(change, options));
                    mind.note(reply.by());
                    let first = mind.first_answer.lock().unwrap().take();
                    drop(reply.send(first.map_or_else(|| mind.answer.clone(), Err)));
                }
                Request::Diff(change, _, reply) => {
                    mind.record(Received::Diff(change));
                    drop(reply.send(mind.answer.clone()));
                }
                Request::Cancel(reply) => {
                    mind.record(Received::Cancel);
                    mind.note(reply.by());
                    drop(reply.send(mind.answer.clone()));
                }
                Request::Unconfirmed(reply) => drop(reply.send(None)),
                Request::Confirm(reply) => {
                    mind.record(Received::Confirm);
                    mind.note(reply.by());
                    drop(reply.send(mind.answer.clone()));
                }
                // Not part of the API.
                Request::Reload(_, reply) => drop(reply.send(mind.answer.clone())),
                Request::Flush(flush, reply) => {
                    mind.record(Received::Flush(flush));
                    drop(reply.send(mind.answer.clone().map(|_| 7)));
                }
                Request::Release(port, reply) => {
                    mind.record(Received::Release(port));
                    mind.note(reply.by());
                    drop(reply.send(mind.answer.clone()));
                }
                Request::Events(which, from, reply) => {
                    mind.record(Received::Events(EventFilter::clone(&which), from.id));
                    drop(reply.send(mind.happening.page(&which, from)));
                }
            }
        }
    }
}

/// A generation with all that one can have.
fn made_up_generation() -> GenerationView {
    serde_json::from_value(json!({
        "generation": GENERATION, "time": "2026-01-31T12:00:00.000Z", "source": "api",
        "by": {"uid": 0, "pid": 7, "request_id": "r"}, "changes": ["port \"p\" is gone from VM \"v\""],
        "differences": [{"kind": "port", "id": "p", "before": {"device_id": "v"}, "after": null}],
        "omitted": 1, "restorable": true
    }))
    .unwrap()
}

/// A loop, active or ended.
pub fn a_loop(active: bool) -> LoopStatus {
    let time = || "2026-01-31T12:00:00.000Z".to_owned();
    LoopStatus {
        kind: LoopKind::IntraVm,
        device_id: "web".into(),
        device_ids: vec!["web".into()],
        network_id: "net1".into(),
        network_ids: vec!["net1".into()],
        ports: vec!["p7".into(), ODD.into()],
        hosts: Vec::new(),
        active,
        level: 2,
        measures: "one is quarantined".into(),
        quarantined: vec![ODD.into()],
        since: time(),
        seen: time(),
        until: active.then(time),
        ended: (!active).then(time),
        repeats: 1,
        dropped_frames: 12_345,
        text: "it loops its ports".into(),
    }
}

/// A storm of a port, or of all ports of a VM.
pub fn a_storm(port: Option<&str>) -> StormStatus {
    StormStatus {
        device_id: "web".into(),
        network_id: "net1".into(),
        port_id: port.map(str::to_owned),
        class: if port.is_some() { "broadcast".into() } else { "vm".into() },
        active: true,
        since: "2026-01-31T12:00:00.000Z".into(),
        ended: None,
        dropped_frames: 777,
        highest_rate: 88,
        action: "drop+event".into(),
        quarantined: false,
        until: None,
        text: "it storms".into(),
    }
}

/// A balanced audit.
pub fn audit() -> AuditView {
    AuditView {
        balanced: true,
        idle: true,
        ports: vec![AuditPortView {
            port_id: ODD.into(),
            device_id: "web".into(),
            network_id: "net1".into(),
            rx_frames: 12,
            forwarded: 8,
            flooded: 2,
            drops_in: 2,
            delta: 0,
        }],
        workers: vec![AuditWorkerView {
            worker: 0,
            forwarded: 8,
            copies: 6,
            probes: 0,
            announcements: 0,
            peer_rx_frames: 0,
            tx_frames: 13,
            drops_out: 1,
            peer_tx_frames: 0,
            delta: 0,
        }],
        frames_between: BetweenView { min: 0, max: 0 },
        floods_between: BetweenView { min: 0, max: 0 },
        drops: vec![AuditDropView {
            direction: Direction::In,
            reason: "spoofed_source".into(),
            description: "port security does not allow the source at this port".into(),
            frames: 2,
        }],
        slots: 65536,
        slots_free: 65400,
    }
}

/// A fake switch on its own thread, until dropped.
#[derive(Debug)]
pub struct Fake {
    directory: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// A switch with these views.
    pub fn with_views(views: Views) -> Fake {
        Fake::start(async move |requests| views.control(requests).await)
    }

    /// A switch with these views and this behaviour.
    pub fn with_behaviour(views: Views, mind: FakeBehaviour) -> Fake {
        Fake::start(async move |requests| views.mind(mind, requests).await)
    }

    /// A switch whose controller has ended.
    pub fn closing() -> Fake {
        Fake::start(async |requests| drop(requests))
    }

    /// A switch whose controller takes requests and never answers. Each one is reported to `requests`.
    pub fn hanging(asked: mpsc::UnboundedSender<()>) -> Fake {
        Fake::start(async move |mut requests| {
            let mut host = Vec::new();
            while let Some(request) = requests.recv().await {
                host.push(request);
                asked.send(()).unwrap();
            }
        })
    }

    fn start<F>(controller: F) -> Fake
    where
        F: AsyncFnOnce(mpsc::Receiver<Request>) + Send + 'static,
    {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let (ready, wait) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let socket = Socket::bind(&path).unwrap();
                let (handle, requests) = Handle::new();
                ready.send(()).unwrap();
                let served = serve(socket, api(handle), SHUTDOWN_TIMEOUT, async { drop(stopped.await) });
                tokio::join!(served, controller(requests));
            });
        });
        wait.recv().unwrap();
        Fake { directory, stop: Some(stop), thread: Some(thread) }
    }

    /// Path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    /// Stops it and waits for its end.
    pub fn stop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A runtime like the switch's.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Whether `path` exists.
pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
