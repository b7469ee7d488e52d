//! Work that may wait for the kernel or for a file system, away from the thread of control: opening and closing
//! devices, and looking into namespaces.
//!
//! Each namespace has a *lane* with few threads of its own, so that one that never answers holds up nobody else. A
//! thread ends when its lanes have no more work; one that hangs is left behind at the end of the process.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sys::netns::Netns;
use crate::time::{self, MonoTime};

/// Jobs that run at a time in the host's own namespace.
const HOST: usize = 8;

/// Jobs that run at a time in another namespace.
const MAX_PER_NAMESPACE: usize = 4;

/// Threads in namespaces other than the host's own.
const THREADS: usize = 128;

/// How long a job may run before others are not kept waiting for it.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(3);

type Work = Box<dyn FnOnce() + Send>;

/// The lanes. Clones share them.
#[derive(Clone, Default)]
pub struct Jobs(Arc<Mutex<JobQueues>>);

#[derive(Default)]
struct JobQueues {
    queues: HashMap<Netns, JobQueue>,
    /// Lanes that have jobs waiting, in turn.
    ready: VecDeque<Netns>,
    /// Threads that run, but for those of the host's lane.
    threads: usize,
}

#[derive(Default)]
struct JobQueue {
    waiting: VecDeque<(Ticket, Work)>,
    running: Vec<Ticket>,
}

/// What is known of a job that was asked for.
#[derive(Debug, Clone, Default)]
pub struct Ticket(Arc<AtomicU64>);

impl Ticket {
    /// Since when it runs; `None`: it still waits.
    pub fn running_since(&self) -> Option<MonoTime> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&nanos| nanos > 0).map(MonoTime::from_nanos)
    }

    /// Whether it has run for longer than others wait for it.
    pub fn is_overdue(&self, now: MonoTime) -> bool {
        self.running_since().is_some_and(|since| now.since(since) >= OVERDUE_AFTER)
    }
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("threads", &self.lock().threads).finish_non_exhaustive()
    }
}

impl Jobs {
    /// Runs `work` in the lane of `netns`, as soon as that has a thread for it.
    pub fn run(&self, netns: &Netns, work: impl FnOnce() + Send + 'static) -> Ticket {
        let ticket = Ticket::default();
        let mut job_queues = self.lock();
        let job_queue = job_queues.queues.entry(netns.clone()).or_default();
        job_queue.waiting.push_back((ticket.clone(), Box::new(work)));
        if job_queue.waiting.len() == 1 {
            job_queues.ready.push_back(netns.clone());
        }
        drop(job_queues);
        self.start_waiting();
        ticket
    }

    /// Since when a lane is stuck: all its threads run jobs that are overdue. `None`: it is not.
    pub fn stuck_since(&self, netns: &Netns, now: MonoTime) -> Option<MonoTime> {
        let job_queues = self.lock();
        let job_queue = job_queues.queues.get(netns)?;
        let is_stuck = !job_queue.running.is_empty() && job_queue.running.iter().all(|ticket| ticket.is_overdue(now));
        job_queue.running.iter().filter(|_| is_stuck).filter_map(Ticket::running_since).min()
    }

    fn lock(&self) -> MutexGuard<'_, JobQueues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries again what waits for a thread that could not be had.
    pub fn start_waiting(&self) {
        let job_queues = self.lock();
        let (now, ticks) = (time::now(), job_queues.ready.len());
        let may_run = (0..ticks).any(|at| job_queues.may_run(&job_queues.ready[at], now));
        drop(job_queues);
        if may_run {
            self.start_thread();
        }
    }

    fn start_thread(&self) {
        let jobs = self.clone();
        // Without a thread the job goes on waiting.
        let _ = thread::Builder::new().name("vifswitch-job".into()).spawn(move || jobs.work());
    }

    /// A thread: one job after the other.
    fn work(&self) {
        let mut next = self.lock().next();
        while let Some((netns, ticket, work)) = next {
            work();
            let mut job_queues = self.lock();
            job_queues.finish(&netns, &ticket);
            next = job_queues.next();
        }
    }
}

impl JobQueues {
    /// A job that may run now, of the lane whose turn it is.
    fn next(&mut self) -> Option<(Netns, Ticket, Work)> {
        let now = time::now();
        let at = self.ready.iter().position(|netns| self.may_run(netns, now))?;
        let netns = self.ready.remove(at)?;
        let job_queue = self.queues.get_mut(&netns)?;
        let (ticket, work) = job_queue.waiting.pop_front()?;
        ticket.0.store(now.nanos().max(1), Ordering::Relaxed);
        job_queue.running.push(ticket.clone());
        if !job_queue.waiting.is_empty() {
            self.ready.push_back(netns.clone());
        }
        self.threads += usize::from(netns != Netns::Host);
        Some((netns, ticket, work))
    }

    fn may_run(&self, netns: &Netns, now: MonoTime) -> bool {
        let Some(job_queue) = self.queues.get(netns) else { return false };
        match netns {
            Netns::Host => job_queue.running.len() < HOST,
            // Where one hangs, the next ones would hang as well.
            _ => {
                let hangs = job_queue.running.iter().any(|ticket| ticket.is_overdue(now));
                !hangs && job_queue.running.len() < MAX_PER_NAMESPACE && self.threads < THREADS
            }
        }
    }

    fn finish(&mut self, netns: &Netns, ticket: &Ticket) {
        self.threads -= usize::from(*netns != Netns::Host);
        let Some(job_queue) = self.queues.get_mut(netns) else { return };
        job_queue.running.retain(|running| !Arc::ptr_eq(&running.0, &ticket.0));
        if job_queue.running.is_empty() && job_queue.waiting.is_empty() {
            self.queues.remove(netns);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn named(name: &str) -> Netns {
        Netns::Named(name.into())
    }

    /// A job that reports its start, and ends when the other end of `until` is dropped.
    fn hanging(jobs: &Jobs, netns: &Netns, runs: &Sender<()>) -> (Ticket, Sender<()>) {
        let (go_on, until): (Sender<()>, Receiver<()>) = channel();
        let runs = runs.clone();
        let ticket = jobs.run(netns, move || {
            runs.send(()).unwrap();
            let _ = until.recv();
        });
        (ticket, go_on)
    }

    #[test]
    fn a_hung_namespace_delays_no_other() {
        let jobs = Jobs::default();
        let (runs, running) = channel();
        let hangs: Vec<_> = (0..3 * MAX_PER_NAMESPACE).map(|_| hanging(&jobs, &named("hung"), &runs)).collect();
        (0..MAX_PER_NAMESPACE).for_each(|_| running.recv_timeout(SOON).unwrap());
        let (done, finished) = channel();
        for netns in [Netns::Host, named("other"), Netns::At("/run/netns/hung".into())] {
            let done = done.clone();
            jobs.run(&netns, move || done.send(()).unwrap());
            finished.recv_timeout(SOON).unwrap();
        }
        let (now, later) = (time::now(), time::now() + OVERDUE_AFTER);
        assert_eq!(hangs.iter().filter(|(ticket, _)| ticket.running_since().is_some()).count(), MAX_PER_NAMESPACE);
        assert!(hangs.iter().all(|(ticket, _)| !ticket.is_overdue(MonoTime::from_nanos(1)) || now == later));
        assert!(jobs.stuck_since(&named("hung"), later + SOON).is_some());
        assert_eq!(jobs.stuck_since(&named("other"), later + SOON), None);
        // Once it returns, the others complete too.
        drop(hangs);
        (MAX_PER_NAMESPACE..3 * MAX_PER_NAMESPACE).for_each(|_| running.recv_timeout(SOON).unwrap());
    }

    #[test]
    fn hung_namespaces_are_bounded_and_leave_threads_to_the_host() {
        let jobs = Jobs::default();
        let (runs, running) = channel();
        let hangs: Vec<_> = (0..2 * THREADS).map(|n| hanging(&jobs, &named(&n.to_string()), &runs)).collect();
        (0..THREADS).for_each(|_| running.recv_timeout(SOON).unwrap());
        assert_eq!(jobs.lock().threads, THREADS);
        let (done, finished) = channel();
        jobs.run(&Netns::Host, move || done.send(()).unwrap());
        finished.recv_timeout(SOON).unwrap();
        assert_eq!(jobs.lock().threads, THREADS);
        drop(hangs);
        (0..THREADS).for_each(|_| running.recv_timeout(SOON).unwrap());
    }
}
