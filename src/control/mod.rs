//! Desired state: what is asked for, how it is checked, and how it comes true.
//!
//! ```text
//!   file ─► config (as written ─► as meant, admission) ─► blueprint (places, rules, devices)
//!                                                              │
//!   cli ─► client ─► socket, server ─► handle ─► controller ───┴─► staff ─► mail to the workers
//!                                                    └─► report ─► view
//! ```

#![forbid(unsafe_code)]

pub mod blueprint;
pub mod change;
pub mod client;
pub mod config;
pub mod controller;
pub mod events;
pub mod handle;
mod report;
pub mod server;
pub mod socket;
pub mod staff;
pub mod store;
pub mod view;
pub mod watchdog;
