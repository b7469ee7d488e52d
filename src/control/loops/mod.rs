//! Loops and storms as control sees them. All of it is pure: time is an argument, nothing is sent and
//! nothing is read here.
//!
//! ```text
//!   schedule   which ports are probed now ──────────────► workers
//!   detection  what probes that came back mean ◄───────── workers
//!      └─► table: the loops there are, each with its escalation ──► measures, events
//!   storms     from counters: who is being limited, since when, how much
//!   alarm      from counters: who sends the addresses of others, who is at the MAC limit
//!   dampening  stations that move to and fro, kept where they belong
//!   snapshot   what of it survives a restart
//! ```
//!
//! The glue to workers, rules, events and the store is `reconcile::mitigation`.

pub mod alarm;
pub mod dampening;
pub mod describe;
pub mod detection;
pub mod escalation;
pub mod schedule;
pub mod snapshot;
pub mod spoof_reports;
pub mod status;
pub mod storms;
pub mod table;
pub mod topology;
