//! One thread on one core, walking the corridor: device → switch → outbox → device.
//!
//! A [`Worker`] owns everything it touches. It changes only by reading its [`mailbox`], and hears of
//! other workers only through the bounded rings of [`peer`]. One round through the corridor is a
//! [`Worker::poll_once`]; [`Worker::run`] breathes until it is told to stop, at the pace of `idle.rs`.

#![forbid(unsafe_code)]

mod commands;
mod drop_backoff;
mod early_drop;
mod events;
mod idle;
pub mod mailbox;
mod moderation;
mod notifier;
mod outbox;
mod own_frames;
pub mod peer;
mod poll_loop;
mod queues;
mod subports;
mod sw_offload;
mod trunk;
mod worker_set;

pub use events::{EventReceiver, WorkerEvent};
pub use idle::{Pace, SPIN};
pub use mailbox::{Announcements, Command, DeviceGone, FdbPage, Flush, Flushed, Mailbox, PortCounterTable, Probes};
pub use notifier::Notifier;
pub use poll_loop::{PollResult, Worker};
pub use queues::RxQueue;
pub use subports::SubportTable;
pub use worker_set::{WorkerSet, WorkerSetSettings, worker_set};
