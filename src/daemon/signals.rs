//! Signals: SIGTERM and SIGINT shut down in order, a second one exits at once, and SIGHUP reloads the configuration
//! file.
//!
//! A separate thread receives them, so that a switch that hangs can be stopped. It exits the process if the shutdown
//! takes longer than [`LONGEST_END`].

use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::Log;

/// Maximum time of an orderly shutdown. Less than `TimeoutStopSec=` in the unit.
const LONGEST_END: Duration = Duration::from_secs(13);

/// Received signals.
#[derive(Debug)]
pub(super) struct Signals {
    stop: watch::Receiver<bool>,
    /// One message per requested reload of the configuration file.
    pub reload: mpsc::Receiver<()>,
}

impl Signals {
    /// Starts to receive signals.
    pub fn receive(log: &Log) -> io::Result<Signals> {
        let (stopping, stop) = watch::channel(false);
        // Capacity 1 merges signals in a row: the file is read after the last of them.
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
                        log.say("vifswitch run: shutdown took too long or was interrupted; exiting at once");
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

    /// Waits for the signal to stop.
    pub fn stop(&self) -> impl Future<Output = ()> + use<> {
        let mut stop = self.stop.clone();
        async move {
            // Closed only if the signal thread has ended.
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

    /// Forwards signals. Returns when the process has to exit at once.
    async fn forward(mut self, stopping: &watch::Sender<bool>, reloading: &mpsc::Sender<()>) {
        loop {
            tokio::select! {
                name = stop(&mut self.terminate, &mut self.interrupt) => {
                    info!("received {name}; stopping");
                    stopping.send_replace(true);
                    break;
                }
                _ = self.hang_up.recv() => {
                    info!("received SIGHUP; reloading the configuration file");
                    // Full: a reload that has yet to read the file is already queued.
                    let _ = reloading.try_send(());
                }
            }
        }
        tokio::select! {
            name = stop(&mut self.terminate, &mut self.interrupt) => info!("received {name} while stopping"),
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
