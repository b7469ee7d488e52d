//! Signals: SIGTERM and SIGINT end the switch in order, a second one ends it at once, and SIGHUP reloads its
//! configuration file.
//!
//! They are received by a thread of its own, so that a switch that hangs can be ended, and one that does not end in time
//! is.

use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::Log;

/// How long the switch may take to end. Less than `TimeoutStopSec=` in the unit.
const LONGEST_END: Duration = Duration::from_secs(13);

/// What the process has been told.
#[derive(Debug)]
pub(super) struct Signals {
    stop: watch::Receiver<bool>,
    /// The configuration file is to be reloaded.
    pub reload: mpsc::Receiver<()>,
}

impl Signals {
    /// Receives signals from now on.
    pub fn receive(log: &Log) -> io::Result<Signals> {
        let (stopping, stop) = watch::channel(false);
        // Several in a row are one: the file is read after the last of them.
        let (reloading, reload) = mpsc::channel(1);
        let (registered, is_registered) = std_mpsc::channel();
        let log = log.clone();
        let receive = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(why) => return drop(registered.send(Err(why))),
            };
            runtime.block_on(async {
                match Received::register() {
                    Ok(received) => {
                        let _ = registered.send(Ok(()));
                        received.forward(&stopping, &reloading).await;
                        log.say("vifswitch run: the switch has not ended in order, and ends at once");
                        log.finish();
                        std::process::exit(1);
                    }
                    Err(why) => drop(registered.send(Err(why))),
                }
            });
        };
        thread::Builder::new().name("vifswitch-sig".into()).spawn(receive)?;
        is_registered.recv().map_err(io::Error::other)??;
        Ok(Signals { stop, reload })
    }

    /// Waits until the switch is told to stop.
    pub fn stop(&self) -> impl Future<Output = ()> + use<> {
        let mut stop = self.stop.clone();
        async move {
            // The thread that would tell is there as long as the process.
            if stop.wait_for(|&message| message).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

struct Received {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Received {
    fn register() -> io::Result<Received> {
        Ok(Received {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Passes signals on. Ready when the process has to end at once.
    async fn forward(mut self, stopping: &watch::Sender<bool>, reloading: &mpsc::Sender<()>) {
        loop {
            tokio::select! {
                name = stop(&mut self.terminate, &mut self.interrupt) => {
                    info!("told to stop by {name}");
                    stopping.send_replace(true);
                    break;
                }
                _ = self.hang_up.recv() => {
                    info!("told to reload the configuration file by SIGHUP");
                    // One that is under way has yet to read the file, or there is another one behind it.
                    let _ = reloading.try_send(());
                }
            }
        }
        tokio::select! {
            name = stop(&mut self.terminate, &mut self.interrupt) => info!("told to stop once more by {name}"),
            () = tokio::time::sleep(LONGEST_END) => {}
        }
    }
}

async fn stop(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
