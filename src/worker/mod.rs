//! Worker: one thread pinned to one core. Pipeline: receive → switch → outbox → transmit.
//!
//! A [`Worker`] owns all of its state. Control changes it only through its [`mailbox`]; other workers reach it only
//! through the bounded rings of [`peer`]. [`Worker::poll_once`] is one iteration of the pipeline; [`Worker::run`]
//! loops until stopped and sleeps by the policy of `idle.rs`.

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
mod port_counters;
mod queues;
mod rx_backoff;
mod rx_queue;
mod settings;
mod subports;
mod sw_offload;
mod trunk;
mod worker_set;
mod xdp_drops;

pub use events::{EventReceiver, WorkerEvent};
pub use idle::{Pace, SPIN};
pub use mailbox::{Announcements, Command, DeviceGone, FdbPage, Flush, Flushed, Mailbox, Probes};
pub use notifier::Notifier;
pub use poll_loop::{PollResult, Worker};
pub use port_counters::PortCounterTable;
pub use rx_queue::RxQueue;
pub use settings::WorkerSetSettings;
pub use subports::SubportTable;
pub use worker_set::{WorkerSet, worker_set};
