//! The daemon: starts the switch from a configuration or its stored state, serves the API and metrics, and shuts down
//! in order. Reads the configuration file, drops capabilities and starts threads; the device code opens netdevs.

#![forbid(unsafe_code)]

mod check;
mod fragments;
mod log;
mod passed;
mod probe_key;
mod reload;
mod signals;
mod status_line;
mod supervisor;
mod watchdog;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

pub use check::check;

use axum::Router;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::info;

use self::log::Log;
use self::passed::Passed;
use self::signals::Signals;
use self::supervisor::notify_all;
use crate::control::api::handle::{Handle, Request};
use crate::control::api::peer::PeerOf;
use crate::control::api::socket::Callers;
use crate::control::api::{SHUTDOWN_TIMEOUT, api_for, metrics_routes, pages, read_only_api, serve};
use crate::control::background;
use crate::control::config::{self, Config, ConfigFile, Poll, SwitchSettings};
use crate::control::handover::Handover;
use crate::control::health::Phase;
use crate::control::log_settings::{LogFormat, LogSettings};
use crate::control::reconcile::{Controller, FINISH_TIMEOUT, ProbeIdentity, Startup};
use crate::control::state::{self, Precedence, StateStore};
use crate::control::workers::WorkerHandles;
use crate::frame::Pool;
use crate::switch::HashKey;
use crate::sys::privileges::{self, Privilege};
use crate::sys::{cores, files};
use crate::wire::{HostKey, ProbeKey, ProbeKeys};
use crate::worker::{Pace, Worker, WorkerSetSettings, worker_set};

/// Maximum time to answer clients after the signal to stop, before changes are refused.
const ANSWERING: Duration = Duration::from_secs(1);

/// Maximum time to read the counters of the last run.
const HANDOVER: Duration = Duration::from_millis(200);

/// Prints an error; returns exit code `code`.
fn report_error(what: impl std::fmt::Display, code: u8) -> ExitCode {
    // Standard error may be closed.
    let _ = writeln!(io::stderr(), "{what}");
    ExitCode::from(code)
}

/// Runs the switch until SIGTERM or SIGINT.
///
/// Without a configuration file the switch resumes from the stored state at `state`, or at the default path. With one,
/// [`state`] describes how file and stored state are merged.
pub fn run(
    path: Option<PathBuf>,
    state: Option<PathBuf>,
    precedence: Precedence,
    log_format: Option<LogFormat>,
) -> ExitCode {
    // Before a file is opened.
    let passed = Passed::take();
    let file = match path.as_ref().map(config::load_file).transpose() {
        Ok(file) => file,
        Err(errors) => return report_error(errors, 2),
    };
    let (log, log_settings) = Log::install(log_format);
    let code = match run_logged(&log, log_settings, passed, file, path, state, precedence) {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError { why, code }) => {
            log.say(&why);
            ExitCode::from(code)
        }
    };
    // Bounded: a log that nobody reads does not delay the exit.
    log.finish();
    code
}

/// Reason and exit code of a failed start or an early end.
struct StartError {
    why: String,
    code: u8,
}

impl StartError {
    fn new(why: impl std::fmt::Display, code: u8) -> StartError {
        StartError { why: format!("vifswitch run: {why}"), code }
    }
}

fn run_logged(
    log: &Log,
    log_settings: LogSettings,
    mut passed: Passed,
    file: Option<ConfigFile>,
    path: Option<PathBuf>,
    state: Option<PathBuf>,
    precedence: Precedence,
) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|why| StartError::new(why, 1))?;

    let path_of_state = state.or_else(|| file.as_ref().and_then(|file| file.config.switch.state.clone()));
    // Without a file, the default path.
    let path_of_state = path_of_state.or_else(|| SwitchSettings::default().state.filter(|_| file.is_none()));
    let (settings, origin) = match &path {
        Some(path) => {
            (file.as_ref().map(|file| file.config.switch.clone()).unwrap_or_default(), path.display().to_string())
        }
        None => match state::stored(path_of_state.as_deref()) {
            Ok(config) => (config.switch, "stored state".to_owned()),
            Err(why) => return Err(StartError::new(why, 2)),
        },
    };
    let wrong = |why: String| StartError { why: format!("{origin}: {why}"), code: 2 };
    let shared_key = settings.probe_key.as_deref().map(probe_key::read).transpose().map_err(wrong)?;
    files::reserve_descriptors();
    // Before other threads exist: capabilities are per thread.
    privileges::keep_only(&needed(&settings))
        .map_err(|why| StartError::new(format_args!("cannot drop capabilities: {why}"), 1))?;
    let cores = choose_cores(&settings).map_err(wrong)?;
    // Threads started from here on inherit this affinity and stay off the workers' cores.
    cores::avoid(&cores);
    log.start();
    let signals =
        Signals::receive(log).map_err(|why| StartError::new(format_args!("cannot receive signals: {why}"), 1))?;
    let served = runtime.block_on(async {
        // First of all: a second switch with the same socket ends before it opens anything.
        let server = ApiServer::start(&settings, log_settings, &mut passed).await.map_err(|why| why.to_string())?;
        let begun = tokio::select! {
            begun = StateStore::open(file, path_of_state.as_deref(), precedence) => begun,
            () = signals.stop() => {
                info!("stopped before startup has finished");
                return Ok(());
            }
        };
        let (config, store) = begun.map_err(|why| why.to_string())?;
        serve_until_told(config, store, (cores, shared_key), (server, passed), signals, (path, path_of_state))
            .await
            .map_err(|why| why.to_string())
    });
    served.map_err(|why| StartError::new(why, 1))
}

/// Capabilities that a running switch needs, for present devices and those that may be added later.
fn needed(settings: &SwitchSettings) -> Vec<Privilege> {
    let mut addresses = [settings.metrics, settings.pages].into_iter().flatten();
    let low_port = addresses.any(|address| (1..1024).contains(&address.port()));
    let mut needed = vec![
        privileges::NET_ADMIN,
        privileges::NET_RAW,
        privileges::SYS_ADMIN,
        privileges::IPC_LOCK,
        privileges::SYS_PTRACE,
    ];
    if !privileges::SYS_ADMIN.is_held() {
        needed.extend([privileges::BPF, privileges::PERFMON]);
    }
    needed.extend(low_port.then_some(privileges::NET_BIND_SERVICE));
    needed
}

/// Cores of the workers: those configured, or else the last one allowed.
fn choose_cores(settings: &SwitchSettings) -> Result<Vec<usize>, String> {
    let allowed = cores::allowed();
    if settings.cores.is_empty() {
        return Ok(allowed.last().copied().into_iter().collect());
    }
    for &core in &settings.cores {
        // Determined by pinning: cores isolated at boot are usable but not in the affinity mask.
        let usable = thread::scope(|scope| scope.spawn(|| cores::pin(core)).join().unwrap_or(false));
        if !usable {
            return Err(format!("switch.cores = {core}: core not available to this process; available: {allowed:?}"));
        }
    }
    Ok(settings.cores.clone())
}

/// Name of the host, in loop probes that other hosts read.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().filter(|character| !character.is_control()).collect()
}

/// The API at all its listeners, which is served from the start on: health at once, other requests once the controller runs.
struct ApiServer {
    handle: Handle,
    requests: mpsc::Receiver<Request>,
    /// Stops all servers when dropped.
    stop: watch::Sender<()>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// The service manager keeps the sockets: clients wait for the next process.
    is_kept: bool,
}

/// How servers stop.
struct StopOfServers {
    /// Changed or closed when they are to stop.
    stopped: watch::Receiver<()>,
    /// The service manager keeps the sockets.
    is_kept: bool,
}

impl ApiServer {
    async fn start(settings: &SwitchSettings, log: LogSettings, passed: &mut Passed) -> io::Result<ApiServer> {
        let (handle, requests) = Handle::new();
        let handle = handle.with_log(log);
        let (stop, stopped) = watch::channel(());
        let at = &settings.api;
        // The socket for changes first: it is what a second switch fails at.
        let mut socket = passed.unix(Callers::Group, at)?;
        socket.accept_namespaces();
        let stop_of_servers = StopOfServers { stopped, is_kept: socket.is_kept() };
        let routes = api_for(settings.api_writers.clone(), handle.clone());
        let mut tasks = vec![spawn_server(socket, routes, &stop_of_servers)];
        if let Some(path) = &settings.api_read {
            let socket = passed.unix(Callers::All, path)?;
            tasks.push(spawn_server(socket, read_only_api(handle.clone(), at), &stop_of_servers));
        }
        if let Some(address) = settings.metrics {
            let listener = listen(passed, "metrics", address).await?;
            tasks.push(spawn_server(listener, metrics_routes(handle.clone()), &stop_of_servers));
        }
        if let Some(address) = settings.pages {
            let listener = listen(passed, "pages", address).await?;
            let routes = pages(handle.clone(), settings.pages_hosts.clone(), at);
            tasks.push(spawn_server(listener, routes, &stop_of_servers));
        }
        Ok(ApiServer { handle, requests, stop, tasks, is_kept: stop_of_servers.is_kept })
    }
}

/// Listens at the address of a key.
async fn listen(passed: &mut Passed, key: &str, address: SocketAddr) -> io::Result<TcpListener> {
    passed.tcp(address).await.map_err(|why| named(format!("{key} on {address}"), &why))
}

async fn serve_until_told(
    config: Config,
    store: StateStore,
    (cores, shared_key): (Vec<usize>, Option<[u8; 16]>),
    (server, passed): (ApiServer, Passed),
    signals: Signals,
    (path, state): (Option<PathBuf>, Option<PathBuf>),
) -> io::Result<()> {
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let hash_key = HashKey::new(random);
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let own = ProbeKey::new(random);
    let mut number = [0; 8];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
    let probe_keys = ProbeKeys { own, shared: shared_key.map(|key| HostKey::new(key, u64::from_ne_bytes(number))) };
    let pool = Pool::new(config.switch.frames)
        .map_err(|why| named(format!("{} frames of 4 KiB", config.switch.frames), &why))?;
    #[allow(clippy::cast_possible_truncation)] // cores are numbered below 1024
    let settings = WorkerSetSettings {
        workers: cores.len() as u16,
        pool,
        fdb_capacity: config.switch.stations,
        hash_key,
        probe_keys,
    };
    let worker_set = worker_set(settings)?;
    let pace = match config.switch.poll {
        Poll::Adaptive => Pace::Adaptive,
        Poll::Busy => Pace::Busy,
    };
    let handover_path = state.as_deref().filter(|_| store.store().is_some()).map(Handover::path);
    let mut handover = take_handover(handover_path.clone()).await;
    if let Some(first) = worker_set.counters.first() {
        handover.set_workers(&config, first);
    }
    let workers = worker_set.workers.into_iter().zip(&cores).enumerate();
    let threads =
        workers.map(|(index, (worker, &core))| start(index, worker, core, pace)).collect::<io::Result<Vec<_>>>()?;
    info!(?cores, ?pace, pages = ?pool.pages(), "workers started");

    let mailboxes = worker_set.mailboxes.clone();
    let worker_handles = WorkerHandles::new(worker_set.mailboxes, worker_set.counters);
    let (notices, results) = (worker_set.notices, worker_set.events);
    let ApiServer { handle, requests, stop, tasks, is_kept } = server;
    let health = handle.health().clone();
    let mut controller = Controller::new(Startup {
        cores,
        hash_key,
        workers: worker_handles,
        notices,
        events: results,
        probes: ProbeIdentity { keys: probe_keys, host: host_name() },
        state: store,
        pool,
        health: health.clone(),
        descriptors: passed.devices(),
        handover: (handover, handover_path),
    });
    let mut servers = tokio::spawn(async move {
        for server in tasks {
            let _ = server.await;
        }
    });
    let mut stop = Some(stop);

    let begun = tokio::select! {
        begun = controller.begin(config) => Some(begun.map_err(io::Error::other)?),
        () = signals.stop() => None,
    };
    if begun.is_some() {
        notify(NotifyState::Ready);
        info!("ready");
        watchdog::start(mailboxes, handle.clone());
        tokio::spawn(status_line::keep_current(health.clone()));
        let signalled = signals.stop();
        tokio::spawn(reload::whenever_told(signals.reload, path, handle));
        let stop_serving = async {
            signalled.await;
            if is_kept {
                // Clients that connect from now on wait for the next process; those before are answered by this one.
                stop = None;
                let _ = timeout(ANSWERING, &mut servers).await;
            }
        };
        controller.run(requests, stop_serving).await;
    } else {
        drop(requests);
    }

    // In order: stop accepting requests, close devices, stop workers.
    health.update(|status| status.phase = Phase::Stopping);
    notify(NotifyState::Stopping);
    drop(stop);
    if !servers.is_finished() {
        let _ = servers.await;
    }
    controller.close_all().await;
    for thread in threads {
        let _ = thread.join();
    }
    info!("stopped");
    Ok(())
}

/// The counters of the last run. A disk that does not answer delays the start briefly.
async fn take_handover(path: Option<PathBuf>) -> Handover {
    let Some(path) = path else { return Handover::default() };
    let taken = timeout(HANDOVER, background::run(move || Handover::take(&path))).await;
    taken.ok().and_then(Result::ok).unwrap_or_default()
}

/// Notifies the supervisor, if there is one.
fn notify(state: NotifyState<'_>) {
    notify_all(&[state]);
}

fn named(what: String, why: &io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{what}: {why}"))
}

fn start(index: usize, worker: Worker, core: usize, pace: Pace) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(format!("vifswitch-w{index}")).spawn(move || {
        // `choose_cores` has checked that this core is usable.
        cores::pin(core);
        worker.run(pace);
    })
}

fn spawn_server<L>(listener: L, routes: Router, stop: &StopOfServers) -> tokio::task::JoinHandle<()>
where
    L: axum::serve::Listener,
    L::Io: PeerOf,
    L::Addr: std::fmt::Debug,
{
    let mut stopped = stop.stopped.clone();
    // Servers of kept sockets stop before the change in progress is completed.
    let patience = if stop.is_kept { 2 * ANSWERING + FINISH_TIMEOUT } else { SHUTDOWN_TIMEOUT };
    tokio::spawn(async move {
        serve(listener, routes, patience, async move {
            // Changed or closed: both stop the server.
            let _ = stopped.changed().await;
        })
        .await;
    })
}
