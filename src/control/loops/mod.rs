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
//! The glue to workers, rules, events and the store is `reconcile::mitigation`.

pub mod dampening;
pub mod describe;
pub mod detection;
pub mod escalation;
pub mod mac_limit_alarm;
pub mod schedule;
pub mod snapshot;
pub mod spoof_alarm;
pub mod spoof_reports;
pub mod status;
pub mod storms;
pub mod table;
pub mod topology;
