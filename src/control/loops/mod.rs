//! Detection and mitigation of loops and storms. Pure: time is an argument, no I/O.
//!
//! ```text
//!   schedule   ports to probe now ─────────────────────► workers
//!   detection  loops from returned probes ◄────────────── workers
//!      └─► table: active loops, each with its escalation ──► measures, events
//!   storms     storm episodes, from counters
//!   alarm      spoofing and MAC-limit alarms, from counters
//!   dampening  flapping stations
//!   snapshot   state kept over a restart
//! ```
//!
//! `reconcile::mitigation` connects this to workers, rules, events and the store.

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
