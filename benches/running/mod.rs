//! Polls the workers of a lab as they poll themselves: each reads the clock once per `poll_once`. The clock of the lab
//! advances by the time that is measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use support::lab::Lab;

/// Time of all workers until no frame is left.
pub fn until_idle(lab: &mut Lab) -> Duration {
    let (begin, first) = (Instant::now(), lab.now);
    loop {
        let mut done = 0;
        for worker in &mut lab.workers {
            done += worker.poll_once(black_box(lab.now)).done;
            lab.now = first + begin.elapsed();
        }
        if done == 0 {
            return begin.elapsed();
        }
    }
}
