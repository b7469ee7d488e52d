//! Limits of a listener: requests per second, pending changes, bytes of bodies, subscribers.
//!
//! Sequential clients are delayed to the rate and never rejected. Only excess concurrent requests are rejected (429).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::error::ApiError;
use crate::time;

/// Rate in requests per second: more than an orchestrator needs, less than control can answer.
const RATE: NonZeroU32 = NonZeroU32::new(1000).unwrap();

/// Burst in requests.
const BURST: NonZeroU32 = NonZeroU32::new(1000).unwrap();

/// Maximum waiting requests; at the rate none waits longer than 16 ms.
const WAITING: usize = 16;

/// Maximum changes in progress: those of 32 clients at once, and some more.
const CHANGES: usize = 48;

/// Audits per second, of which each takes all workers a pass over their counters.
const AUDIT_RATE: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// Burst of audits.
const AUDIT_BURST: NonZeroU32 = NonZeroU32::new(40).unwrap();

/// Maximum bytes of bodies in memory: four of the longest.
const BODIES: usize = 64 * 1024 * 1024;

/// Maximum concurrent responses of unlimited length; further ones wait.
const LONG_ANSWERS: usize = 2;

/// Maximum concurrent subscribers to events, each with a connection.
const MAX_SUBSCRIBERS: usize = 24;

/// The switch's clock, for the rate limiter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        time::now().nanos().into()
    }
}

/// Limits of one listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Limits {
    limiter: Arc<RateLimitQueue<Monotonic>>,
    audits: Arc<RateLimitQueue<Monotonic>>,
    changes: Arc<Semaphore>,
    subscribers: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    long_answers: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            limiter: Arc::new(RateLimitQueue::new(RATE, BURST, WAITING, Monotonic)),
            audits: Arc::new(RateLimitQueue::new(AUDIT_RATE, AUDIT_BURST, WAITING, Monotonic)),
            changes: Arc::new(Semaphore::new(CHANGES)),
            subscribers: Arc::new(Semaphore::new(MAX_SUBSCRIBERS)),
            bodies: Arc::new(Semaphore::new(BODIES)),
            long_answers: Arc::new(Semaphore::new(LONG_ANSWERS)),
        }
    }
}

impl Limits {
    /// Permit for a change.
    pub fn change(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = |_| ApiError::too_many(format!("{CHANGES} changes are in progress; try again in a second"));
        self.changes.clone().try_acquire_owned().map_err(full)
    }

    /// Waits until an audit may be made.
    pub async fn audit(&self) -> Result<(), ApiError> {
        self.audits.acquire().await
    }

    /// Permit for a subscriber.
    pub fn subscriber(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = |_| {
            ApiError::too_many(format!(
                "{MAX_SUBSCRIBERS} clients follow the events already; end one of them, or try again later"
            ))
        };
        self.subscribers.clone().try_acquire_owned().map_err(full)
    }

    /// Permit for a response of unlimited length. `None` if there is no limit any more.
    pub async fn long_answer(&self) -> Option<OwnedSemaphorePermit> {
        self.long_answers.clone().acquire_owned().await.ok()
    }

    /// Permit for bytes of a body.
    pub fn bytes(&self, bytes: u32) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = |_| ApiError::too_many("too many long requests at a time; try again in a second");
        self.bodies.clone().try_acquire_many_owned(bytes).map_err(full)
    }
}

/// Middleware: admits requests at the rate.
pub async fn admit(State(limits): State<Limits>, request: Request, next: Next) -> Result<Response, ApiError> {
    limits.limiter.acquire().await?;
    Ok(next.run(request).await)
}

/// A token bucket with a bounded FIFO queue of waiters.
struct RateLimitQueue<C: Clock> {
    bucket: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    places: Semaphore,
    first: Mutex<()>,
}

impl<C: Clock + Clone> RateLimitQueue<C> {
    fn new(rate: NonZeroU32, burst: NonZeroU32, waiting: usize, clock: C) -> RateLimitQueue<C> {
        let quota = Quota::per_second(rate).allow_burst(burst);
        let bucket = RateLimiter::direct_with_clock(quota, clock.clone());
        RateLimitQueue { bucket, clock, places: Semaphore::new(waiting), first: Mutex::new(()) }
    }

    async fn acquire(&self) -> Result<(), ApiError> {
        let full = |_| ApiError::too_many("too many requests at a time; try again in a second");
        let _place = self.places.try_acquire().map_err(full)?;
        let _first = self.first.lock().await;
        while let Some(wait) = self.try_acquire() {
            sleep(wait).await;
        }
        Ok(())
    }

    /// Takes a token, or returns the time until there is one.
    fn try_acquire(&self) -> Option<Duration> {
        self.bucket.check().err().map(|early| early.wait_time_from(self.clock.now()))
    }
}

impl<C: Clock> std::fmt::Debug for RateLimitQueue<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turnstile").field("places", &self.places.available_permits()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;

    fn limiter(clock: &FakeRelativeClock) -> RateLimitQueue<FakeRelativeClock> {
        RateLimitQueue::new(RATE, BURST, 2, clock.clone())
    }

    proptest! {
        #[test]
        fn burst_and_rate_are_never_exceeded(pauses in prop::collection::vec(0u64..4_000_000, 1..4000)) {
            let clock = FakeRelativeClock::default();
            let limiter = limiter(&clock);
            let (mut passed, mut nanos) = (0, 0);
            for pause in pauses {
                clock.advance(Duration::from_nanos(pause));
                nanos += pause;
                passed += u64::from(limiter.try_acquire().is_none());
                prop_assert!(passed <= u64::from(BURST.get()) + nanos * u64::from(RATE.get()) / 1_000_000_000 + 1);
            }
        }

        #[test]
        fn a_client_that_waits_as_told_is_served(steps in 1000usize..3000) {
            let clock = FakeRelativeClock::default();
            let limiter = limiter(&clock);
            for _ in 0..steps {
                if let Some(wait) = limiter.try_acquire() {
                    prop_assert!(wait <= Duration::from_millis(1), "{wait:?}");
                    clock.advance(wait);
                    prop_assert_eq!(limiter.try_acquire(), None);
                }
            }
        }
    }

    #[tokio::test]
    async fn the_number_of_waiting_requests_is_bounded() {
        let clock = FakeRelativeClock::default();
        let limiter = Arc::new(limiter(&clock));
        for _ in 0..BURST.get() {
            limiter.acquire().await.unwrap();
        }
        let wait = || {
            let limiter = limiter.clone();
            tokio::spawn(async move { limiter.acquire().await })
        };
        let waiting = [wait(), wait()];
        while limiter.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(limiter.acquire().await.unwrap_err().status, 429);
        clock.advance(Duration::from_secs(1));
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        limiter.acquire().await.unwrap();
    }
}
