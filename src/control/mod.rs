//! Desired state: what is asked for, how it is checked, and how it comes true.
//!
//! ```text
//!   file ─► config (as written ─► as meant, admission) ─┐
//!           change: to another configuration, or not ───┴─► plan ─► places, seats (devices), blueprint (rules)
//!           difference: the same for people to read                      │
//!                                                                        │
//!   cli ─► client ─► socket, server ─► handle ─► controller ─────────────┴─► staff ─► mail to the workers
//!                                                    ├─► report, stations ─► view
//!                                                    ├─► loops: probes, the ladder, storms, freezes
//!                                                    ├─► activation of pins, announcements of local stations
//!                                                    └─► journal (events), keeper (merge: file and state) ─► store
//! ```
//!
//! Beside it the watchdog asks both the controller and the workers whether they are alive.

#![forbid(unsafe_code)]

pub mod activation;
pub mod announcements;
pub mod backoff;
pub mod change;
pub mod client;
pub mod compile;
pub mod config;
pub mod controller;
mod diff;
pub mod drift;
pub mod endpoints;
pub mod event_limit;
pub mod event_log;
pub mod events;
pub mod failover;
mod fdb_index;
pub mod handle;
pub mod ids;
pub mod jobs;
pub mod loops;
pub mod mac_limit_alarm;
pub mod merge;
pub mod orphans;
pub mod plan;
pub mod policers;
pub mod responses;
pub mod server;
pub mod socket;
pub mod state;
mod status;
pub mod store;
pub mod uplink_groups;
pub mod watchdog;
pub mod workers;
