//! Workers that know each other, with their mailboxes.

use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::findings::findings;
use super::peer::{MOST_WORKERS, Peer, pair};
use super::{Bell, Findings, Notice, Post, Worker};
use crate::frame::Pool;
use crate::switch::Secret;
use crate::telemetry::WorkerCounters;
use crate::wire::ProbeKey;

/// Notices on their way to control, at most: two for each queue there can be.
const NOTICES: usize = 8192;

/// What all workers of a switch have in common.
#[derive(Debug, Clone, Copy)]
pub struct TeamSettings {
    /// How many there are.
    pub workers: u16,
    /// Where their frames live.
    pub pool: &'static Pool,
    /// How many stations each can learn.
    pub stations: u32,
    /// The key under which stations are filed.
    pub secret: Secret,
    /// The key under which loop probes are sent.
    pub probe_key: ProbeKey,
}

/// Workers that know each other, and control's ends of what leads to them.
#[derive(Debug)]
pub struct Team {
    /// The workers, each to be run by a thread of its own.
    pub workers: Vec<Worker>,
    /// Their mailboxes.
    pub posts: Vec<Post>,
    /// What they count of themselves.
    pub counters: Vec<Arc<WorkerCounters>>,
    /// What they tell unasked.
    pub notices: mpsc::Receiver<Notice>,
    /// What they have found out about guests.
    pub findings: Findings,
}

/// Makes a team.
pub fn team(settings: TeamSettings) -> io::Result<Team> {
    let count = usize::from(settings.workers);
    if count == 0 || count > MOST_WORKERS {
        return Err(io::Error::other(format!("a switch has 1 to {MOST_WORKERS} workers, not {count}")));
    }
    let bells = (0..count).map(|_| Bell::new()).collect::<io::Result<Vec<_>>>()?;
    // peers[a][b]: worker a's ends of the rings between a and b
    let mut peers: Vec<Vec<Option<Peer>>> = (0..count).map(|_| (0..count).map(|_| None).collect()).collect();
    for a in 0..count {
        for b in a + 1..count {
            let (of_a, of_b) = pair(&bells[a], &bells[b]);
            peers[a][b] = Some(of_a);
            peers[b][a] = Some(of_b);
        }
    }
    let (notify, notices) = mpsc::channel(NOTICES);
    let (finder, findings) = findings();
    let mut team = Team { workers: Vec::new(), posts: Vec::new(), counters: Vec::new(), notices, findings };
    for ((index, bell), peers) in (0..settings.workers).zip(bells).zip(peers) {
        let (post, mailbox) = Post::new(bell.clone());
        let counters = Arc::new(WorkerCounters::default());
        team.workers.push(Worker::new(
            index,
            &settings,
            mailbox,
            bell,
            peers,
            counters.clone(),
            notify.clone(),
            finder.clone(),
        )?);
        team.posts.push(post);
        team.counters.push(counters);
    }
    Ok(team)
}
