//! Thread pool for work that may block in the kernel or a file system: opening and closing devices, identifying
//! namespaces.
//!
//! Each namespace has a queue (*lane*) with a few threads, so that one that never answers delays no other. A thread
//! ends when its lane is empty; a blocked one is abandoned at exit.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sys::netns::{Netns, visit_from_here};
use crate::time::{self, MonoTime};

/// Maximum concurrent jobs in the host's namespace.
const HOST: usize = 8;

/// Maximum concurrent jobs in each other namespace.
const MAX_PER_NAMESPACE: usize = 4;

/// Maximum threads for other namespaces.
const THREADS: usize = 128;

/// Maximum threads that have been created and have not taken a job.
const STARTING: usize = 2;

/// Run time after which a job is overdue and not waited for.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(3);

type Work = Box<dyn FnOnce() + Send>;

/// All lanes. Clones share them.
#[derive(Clone, Default)]
pub struct Jobs(Arc<Mutex<JobQueues>>);

#[derive(Default)]
struct JobQueues {
    queues: HashMap<Netns, JobQueue>,
    /// Lanes with waiting jobs, in round-robin order.
    ready: VecDeque<Netns>,
    /// Running threads, except for the host's.
    threads: usize,
    /// Threads that have been created and have taken no job yet.
    starting: usize,
}

#[derive(Default)]
struct JobQueue {
    waiting: VecDeque<(Ticket, Work)>,
    running: Vec<Ticket>,
}

/// State of a submitted job.
#[derive(Debug, Clone, Default)]
pub struct Ticket(Arc<AtomicU64>);

impl Ticket {
    /// Start time; `None` while it waits.
    pub fn running_since(&self) -> Option<MonoTime> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&nanos| nanos > 0).map(MonoTime::from_nanos)
    }

    /// Whether it is overdue.
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
    /// Submits `work` to the lane of `netns`.
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

    /// Since when all threads of a lane run overdue jobs; `None` if they do not.
    pub fn stuck_since(&self, netns: &Netns, now: MonoTime) -> Option<MonoTime> {
        let job_queues = self.lock();
        let job_queue = job_queues.queues.get(netns)?;
        let is_stuck = !job_queue.running.is_empty() && job_queue.running.iter().all(|ticket| ticket.is_overdue(now));
        job_queue.running.iter().filter(|_| is_stuck).filter_map(Ticket::running_since).min()
    }

    fn lock(&self) -> MutexGuard<'_, JobQueues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a thread for waiting jobs, unless others that have been created will take them. Each thread creates the next
    /// one when it has taken its first job: as many as there are jobs would only be in each other's way.
    pub fn start_waiting(&self) {
        let mut job_queues = self.lock();
        let (now, ticks) = (time::now(), job_queues.ready.len());
        if job_queues.starting >= STARTING || !(0..ticks).any(|at| job_queues.may_run(&job_queues.ready[at], now)) {
            return;
        }
        job_queues.starting += 1;
        drop(job_queues);
        let jobs = self.clone();
        if thread::Builder::new().name("vifswitch-job".into()).spawn(move || jobs.work()).is_err() {
            // The job keeps waiting.
            self.lock().starting -= 1;
        }
    }

    /// Thread function: runs jobs in sequence.
    fn work(&self) {
        let mut job_queues = self.lock();
        job_queues.starting -= 1;
        let mut next = job_queues.next();
        drop(job_queues);
        self.start_waiting();
        // Without it each job has another thread beside this one.
        let _ = visit_from_here();
        while let Some((netns, ticket, work)) = next {
            work();
            let mut job_queues = self.lock();
            job_queues.finish(&netns, &ticket);
            next = job_queues.next();
        }
    }
}

impl JobQueues {
    /// The next job that may run, of the lane whose turn it is.
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
            // If one job of a namespace hangs, others would too.
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
        // A job ends somewhat after it has reported.
        while jobs.stuck_since(&named("other"), later + SOON).is_some() {
            assert!(time::now() < later + SOON, "a job that ended is not stuck");
            std::thread::yield_now();
        }
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
