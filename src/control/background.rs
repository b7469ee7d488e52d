//! Runs work that blocks or takes long on a thread of its own, beside the runtime of control.
//!
//! `spawn_blocking` of tokio panics if no thread can be created, which ends the switch.

use std::io;
use std::thread;

use tokio::sync::{Semaphore, oneshot};

/// Maximum concurrent threads; further work waits for one of them.
const THREADS: usize = 8;

/// Threads that may be created.
static FREE: Semaphore = Semaphore::const_new(THREADS);

/// Runs `work` and returns its result. If this is dropped, started work continues.
///
/// # Errors
///
/// No thread can be created; `work` does not run.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let permit = FREE.acquire().await.map_err(io::Error::other)?;
    let (done, result) = oneshot::channel();
    // Boxed, so that starting a thread is compiled once.
    let work: Box<dyn FnOnce() + Send> = Box::new(move || {
        let _ = done.send(work());
        drop(permit);
    });
    thread::Builder::new().name("vifswitch-bg".into()).spawn(work)?;
    result.await.map_err(io::Error::other)
}
