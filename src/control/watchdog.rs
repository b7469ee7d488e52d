//! Is the switch alive? It is while control answers, and every worker does.
//!
//! A worker that has nothing to do sleeps, and is alive: mail wakes it. So it is asked by mail, and
//! who has not answered is not asked again. Whoever hangs, nothing is said any more, and the
//! supervisor draws its conclusions.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::handle::{Closing, Handle};
use crate::worker::{Command, Post};

/// Those who have to answer.
#[derive(Debug)]
pub struct Watchdog {
    posts: Vec<Post>,
    handle: Handle,
}

impl Watchdog {
    /// Over all workers, by their mailboxes, and over the controller.
    pub fn new(posts: Vec<Post>, handle: Handle) -> Watchdog {
        Watchdog { posts, handle }
    }

    /// Ready when all have answered, which a hanging one never does. An error: one has ended.
    pub async fn round(&self) -> Result<(), Closing> {
        let mut answers = Vec::new();
        for post in &self.posts {
            let (reply, answer) = oneshot::channel();
            if !post.send(Command::Ping(reply)) {
                return Err(Closing);
            }
            answers.push(answer);
        }
        for (post, mut answer) in self.posts.iter().zip(answers) {
            post.answered(&mut answer).await.map_err(|_| Closing)?;
        }
        self.handle.workers().await.map(drop)
    }

    /// Asks all of them `every` so often, and calls `alive` when they have answered; until one of
    /// them has ended.
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
    use crate::control::handle::Request;
    use crate::frame::Pool;
    use crate::switch::Secret;
    use crate::time::Moment;
    use crate::wire::ProbeKey;
    use crate::worker::{TeamSettings, team};

    #[test]
    fn all_must_answer_every_time() {
        let pool = Pool::new(64).unwrap();
        let settings = TeamSettings {
            workers: 2,
            pool,
            stations: 64,
            secret: Secret::new([7; 16]),
            probe_key: ProbeKey::new([5; 16]),
        };
        let mut team = team(settings).unwrap();
        let (handle, mut requests) = Handle::new();
        let watchdog = Watchdog::new(team.posts.clone(), handle);
        let mut context = Context::from_waker(Waker::noop());
        for first in [0, 1] {
            let mut round = pin!(watchdog.round());
            let mut ask = || round.as_mut().poll(&mut context);
            for worker in [first, 1 - first] {
                assert!(ask().is_pending(), "worker {worker} hangs");
                team.workers[worker].breathe(Moment::from_secs(1));
            }
            assert!(ask().is_pending(), "control hangs");
            let Ok(Request::Workers(reply)) = requests.try_recv() else { panic!("control is asked") };
            reply.send(Vec::new()).unwrap();
            assert_eq!(ask(), Poll::Ready(Ok(())));
        }
        team.workers.clear();
        assert_eq!(pin!(watchdog.round()).poll(&mut context), Poll::Ready(Err(Closing)));
    }
}
