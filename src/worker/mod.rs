//! One thread on one core, walking the corridor: device → switch → outbox → device.
//!
//! A [`Worker`] owns everything it touches. It changes only by reading its [`mail`], and hears of
//! other workers only through the bounded rings of [`peer`]. One round through the corridor is a
//! [`Worker::breathe`]; [`Worker::run`] breathes until it is told to stop, at the pace of `pace.rs`.

#![forbid(unsafe_code)]

mod bell;
mod branch;
mod breath;
mod carrying;
mod commands;
mod dressing;
mod findings;
mod futility;
mod gate;
mod gathering;
pub mod mail;
mod outbox;
mod pace;
pub mod peer;
mod probing;
mod shedding;
mod team;

pub use bell::Bell;
pub use branch::Room;
pub use breath::{Work, Worker};
pub use findings::{Finding, Findings};
pub use gate::Gate;
pub use mail::{Announcements, Books, Command, Flush, Flushed, Notice, Post, Probes, StationsPage};
pub use pace::{Pace, SPIN};
pub use team::{Team, TeamSettings, team};
