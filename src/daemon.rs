//! The daemon: starts the switch from a configuration and shuts it down in order.

#![forbid(unsafe_code)]

mod check;
mod log;
mod reload;
mod signals;
mod supervisor;
mod watchdog;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

pub use check::check;

use axum::Router;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use self::log::Log;
use self::signals::Signals;
use self::supervisor::notify_all;
use crate::control::config::{self, Config, ConfigFile, Poll, SwitchSettings};
use crate::control::controller::{Controller, Startup};
use crate::control::handle::Handle;
use crate::control::server::{api, read_routes, serve};
use crate::control::socket::Socket;
use crate::control::state::{self, Precedence, StateStore};
use crate::control::workers::WorkerHandles;
use crate::frame::Pool;
use crate::switch::HashKey;
use crate::sys::cores;
use crate::sys::privileges::{self, Privilege};
use crate::wire::ProbeKey;
use crate::worker::{Pace, Worker, WorkerSetSettings, worker_set};

/// Says `what` is wrong, and ends with `code`.
fn report_error(what: impl std::fmt::Display, code: u8) -> ExitCode {
    // If standard error is closed there is nobody to read it.
    let _ = writeln!(io::stderr(), "{what}");
    ExitCode::from(code)
}

/// How long what hangs elsewhere is waited for at the end.
const LEFT_ALONE: Duration = Duration::from_millis(500);

/// Runs the switch until it is told to stop by SIGTERM or SIGINT.
///
/// Without a configuration it goes on with the state that is kept at `state`, by default where a
/// switch keeps it. With one, [`state`] says what becomes of the two.
pub fn run(path: Option<PathBuf>, state: Option<PathBuf>, precedence: Precedence) -> ExitCode {
    let file = match path.as_ref().map(config::load_file).transpose() {
        Ok(file) => file,
        Err(errors) => return report_error(errors, 2),
    };
    let log = Log::install();
    let code = match run_logged(&log, file, path, state, precedence) {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError { why, code }) => {
            log.say(&why);
            ExitCode::from(code)
        }
    };
    // Nobody has to read it for the process to end.
    log.finish();
    code
}

/// Why a switch did not start or ended early, and its exit code.
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
    file: Option<ConfigFile>,
    path: Option<PathBuf>,
    state: Option<PathBuf>,
    precedence: Precedence,
) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build();
    let runtime = runtime.map_err(|why| StartError::new(why, 1))?;

    let path_of_state = state.or_else(|| file.as_ref().and_then(|file| file.config.switch.state.clone()));
    let (settings, origin) = match &path {
        Some(path) => {
            (file.as_ref().map(|file| file.config.switch.clone()).unwrap_or_default(), path.display().to_string())
        }
        None => match state::stored(path_of_state.as_deref()) {
            Ok(config) => (config.switch, "the state that is kept".to_owned()),
            Err(why) => return Err(StartError::new(why, 2)),
        },
    };
    // Before there is another thread, which would keep what it has.
    privileges::keep_only(&needed(&settings))
        .map_err(|why| StartError::new(format_args!("cannot give up capabilities: {why}"), 1))?;
    let cores = choose_cores(&settings).map_err(|why| StartError { why: format!("{origin}: {why}"), code: 2 })?;
    // What is started from here on stays away from the workers.
    cores::avoid(&cores);
    log.start();
    let signals =
        Signals::receive(log).map_err(|why| StartError::new(format_args!("cannot receive signals: {why}"), 1))?;
    let served = runtime.block_on(async {
        // Who shall be able to talk to us, first: a second switch on the same socket opens nothing.
        let socket = Socket::bind(&settings.api).map_err(|why| why.to_string())?;
        let begun = tokio::select! {
            begun = StateStore::open(file, path_of_state.as_deref(), precedence) => begun,
            () = signals.stop() => {
                info!("stopped before it has begun");
                return Ok(());
            }
        };
        let (config, store) = begun.map_err(|why| why.to_string())?;
        serve_until_told(config, store, cores, socket, signals, path).await.map_err(|why| why.to_string())
    });
    // What hangs elsewhere is not waited for.
    runtime.shutdown_timeout(LEFT_ALONE);
    served.map_err(|why| StartError::new(why, 1))
}

/// The capabilities that a running switch needs: to open what there is, and what may come.
fn needed(settings: &SwitchSettings) -> Vec<Privilege> {
    let low_port = settings.metrics.is_some_and(|address| (1..1024).contains(&address.port()));
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

/// The cores of the workers: those asked for, or the last one that we may use.
fn choose_cores(settings: &SwitchSettings) -> Result<Vec<usize>, String> {
    let allowed = cores::allowed();
    if settings.cores.is_empty() {
        return Ok(allowed.last().copied().into_iter().collect());
    }
    for &core in &settings.cores {
        // Only trying tells: cores that were set apart at boot are not among the allowed ones.
        let usable = thread::scope(|scope| scope.spawn(|| cores::pin(core)).join().unwrap_or(false));
        if !usable {
            return Err(format!(
                "switch.cores = {core}: there is no such core for this process; it may use {allowed:?}"
            ));
        }
    }
    Ok(settings.cores.clone())
}

async fn serve_until_told(
    config: Config,
    store: StateStore,
    cores: Vec<usize>,
    socket: Socket,
    signals: Signals,
    path: Option<PathBuf>,
) -> io::Result<()> {
    let metrics = match config.switch.metrics {
        Some(address) => {
            Some(TcpListener::bind(address).await.map_err(|why| named(format!("metrics on {address}"), &why))?)
        }
        None => None,
    };

    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let hash_key = HashKey::new(random);
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let probe_key = ProbeKey::new(random);
    let pool = Pool::new(config.switch.frames)
        .map_err(|why| named(format!("{} frames of 4 KiB", config.switch.frames), &why))?;
    #[allow(clippy::cast_possible_truncation)] // cores are numbered below 1024
    let settings = WorkerSetSettings {
        workers: cores.len() as u16,
        pool,
        fdb_capacity: config.switch.stations,
        hash_key,
        probe_key,
    };
    let worker_set = worker_set(settings)?;
    let pace = match config.switch.poll {
        Poll::Adaptive => Pace::Adaptive,
        Poll::Busy => Pace::Busy,
    };
    let workers = worker_set.workers.into_iter().zip(&cores).enumerate();
    let threads =
        workers.map(|(index, (worker, &core))| start(index, worker, core, pace)).collect::<io::Result<Vec<_>>>()?;
    info!(?cores, ?pace, pages = ?pool.pages(), "workers started");

    let mailboxes = worker_set.mailboxes.clone();
    let worker_handles = WorkerHandles::new(worker_set.mailboxes, worker_set.counters);
    let (notices, results) = (worker_set.notices, worker_set.events);
    let beginning =
        Startup { cores, hash_key, workers: worker_handles, notices, events: results, probe_key, state: store, pool };
    let mut controller = Controller::new(beginning);
    let (handle, requests) = Handle::new();
    let (stop, stopped) = watch::channel(());
    let servers = [
        Some(spawn_server(socket, api(handle.clone()), &stopped)),
        metrics.map(|listener| spawn_server(listener, read_routes(handle.clone()), &stopped)),
    ];

    let begun = tokio::select! {
        begun = controller.begin(config) => Some(begun.map_err(io::Error::other)?),
        () = signals.stop() => None,
    };
    if begun.is_some() {
        notify(NotifyState::Ready);
        info!("ready");
        watchdog::start(mailboxes, handle.clone());
        let stop = signals.stop();
        tokio::spawn(reload::whenever_told(signals.reload, path, handle));
        controller.run(requests, stop).await;
    } else {
        drop(requests);
    }

    // In order: nobody new comes in, devices come home, workers end.
    notify(NotifyState::Stopping);
    drop(stop);
    for server in servers.into_iter().flatten() {
        let _ = server.await;
    }
    controller.close_all().await;
    for thread in threads {
        let _ = thread.join();
    }
    info!("stopped");
    Ok(())
}

/// Tells the supervisor. One that has gone meanwhile is no reason not to go on.
fn notify(state: NotifyState<'_>) {
    notify_all(&[state]);
}

fn named(what: String, why: &io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{what}: {why}"))
}

fn start(index: usize, worker: Worker, core: usize, pace: Pace) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(format!("vifswitch-w{index}")).spawn(move || {
        // It has been tried before.
        cores::pin(core);
        worker.run(pace);
    })
}

fn spawn_server<L>(listener: L, pages: Router, stopped: &watch::Receiver<()>) -> tokio::task::JoinHandle<()>
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let mut stopped = stopped.clone();
    tokio::spawn(async move {
        serve(listener, pages, async move {
            // The other end is dropped when it is time.
            let _ = stopped.changed().await;
        })
        .await;
    })
}
