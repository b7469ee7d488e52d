//! Control plane: validates the configuration, compiles it and reconciles devices and workers with it.
//!
//! ```text
//!   file ─► config (raw ─► model, validation) ─┐
//!           change: request ─► new config ─────┴─► plan ─► ids, endpoints (devices), compile (ForwardingConfig)
//!           diff: the same change in prose                   │
//!                                                            │
//!   cli ─► client ─► socket, server ─► handle ─► controller ─┴─► workers (command channel)
//!                                        ├─► status, fdb_index ─► responses
//!                                        ├─► loops: probes, escalation, storms, MAC-move dampening
//!                                        ├─► activation of pins, announcements of local stations
//!                                        └─► event_log, state (merge: file and state) ─► store
//! ```
//!
//! The watchdog checks that the controller and the workers respond.

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
