//! Loops and storms as control sees them. All of it is pure: time is an argument, nothing is sent and
//! nothing is read here.
//!
//! ```text
//!   schedule   which ports are probed now ──────────────► workers
//!   verdicts   what probes that came back mean ◄───────── workers
//!      └─► book: the loops there are, each on its ladder ──► measures, news
//!   storms     from counters: who is being limited, since when, how much
//!   guard      from counters: who sends the addresses of others
//!   freezes    stations that move to and fro, kept where they belong
//!   kept       what of it survives a restart
//! ```
//!
//! The glue to workers, rules, events and the store is `controller/containment`.

pub mod book;
pub mod freezes;
pub mod guard;
pub mod kept;
pub mod ladder;
pub mod layout;
pub mod refusals;
pub mod schedule;
pub mod storms;
pub mod told;
pub mod verdicts;
pub mod view;
