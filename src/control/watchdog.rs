//! Liveness: the controller and all workers answer.
//!
//! An idle worker sleeps, and a command wakes it. Each is pinged by its mailbox; one that has not answered is not
//! pinged again. While anyone hangs, no liveness is reported, and the supervisor restarts the switch.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use crate::control::api::handle::{Handle, ShuttingDown};
use crate::worker::{Command, Mailbox};

/// Workers and controller to ping.
#[derive(Debug)]
pub struct Watchdog {
    mailboxes: Vec<Mailbox>,
    handle: Handle,
}

impl Watchdog {
    /// Watches workers and controller.
    pub fn new(mailboxes: Vec<Mailbox>, handle: Handle) -> Watchdog {
        Watchdog { mailboxes, handle }
    }

    /// Completes when all have answered; never if one hangs. Error: one has ended.
    pub async fn round(&self) -> Result<(), ShuttingDown> {
        let mut answers = Vec::new();
        for post in &self.mailboxes {
            let (reply, answer) = oneshot::channel();
            if !post.send(Command::Ping(reply)) {
                return Err(ShuttingDown);
            }
            answers.push(answer);
        }
        for (post, mut answer) in self.mailboxes.iter().zip(answers) {
            post.answered(&mut answer).await.map_err(|_| ShuttingDown)?;
        }
        self.handle.workers().await.map(drop)
    }

    /// Pings all with interval `every`, and calls `alive` when they have answered; until one has ended.
    pub async fn run(self, every: Duration, mut alive: impl FnMut()) {
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.round().await.is_err() {
                return;
            }
            alive();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::control::api::handle::Request;
    use crate::frame::Pool;
    use crate::switch::HashKey;
    use crate::time::MonoTime;
    use crate::wire::ProbeKey;
    use crate::worker::{WorkerSetSettings, worker_set};

    #[test]
    fn every_worker_must_reply_each_time() {
        let pool = Pool::new(64).unwrap();
        let settings = WorkerSetSettings {
            workers: 2,
            pool,
            fdb_capacity: 64,
            hash_key: HashKey::new([7; 16]),
            probe_keys: ProbeKey::new([5; 16]).into(),
        };
        let mut worker_set = worker_set(settings).unwrap();
        let (handle, mut requests) = Handle::new();
        let watchdog = Watchdog::new(worker_set.mailboxes.clone(), handle);
        let mut context = Context::from_waker(Waker::noop());
        for first in [0, 1] {
            let mut round = pin!(watchdog.round());
            let mut request = || round.as_mut().poll(&mut context);
            for worker in [first, 1 - first] {
                assert!(request().is_pending(), "worker {worker} hangs");
                worker_set.workers[worker].poll_once(MonoTime::from_secs(1));
            }
            assert!(request().is_pending(), "control hangs");
            let Ok(Request::Workers(reply)) = requests.try_recv() else { panic!("control is asked") };
            reply.send(Vec::new()).unwrap();
            assert_eq!(request(), Poll::Ready(Ok(())));
        }
        worker_set.workers.clear();
        assert_eq!(pin!(watchdog.round()).poll(&mut context), Poll::Ready(Err(ShuttingDown)));
    }
}
