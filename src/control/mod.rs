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
pub mod at_limit;
pub mod backoff;
pub mod blueprint;
pub mod change;
pub mod client;
pub mod config;
pub mod controller;
mod difference;
pub mod drift;
pub mod event_limit;
pub mod events;
pub mod failover;
pub mod handle;
pub mod jobs;
pub mod journal;
pub mod keeper;
pub mod leftovers;
pub mod lines;
pub mod loops;
pub mod merge;
pub mod meters;
pub mod places;
pub mod plan;
mod report;
pub mod seats;
pub mod server;
pub mod socket;
pub mod staff;
mod stations;
pub mod store;
pub mod view;
pub mod watchdog;
