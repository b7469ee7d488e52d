//! Control plane: validates the configuration, compiles it and reconciles devices and workers with it.
//!
//! ```text
//!   file ─► config (raw ─► model, validation) ─┐
//!           desired: change or merge ──────────┴─► the new configuration
//!                                                        │
//!   cli ─► api (client ─► socket, listener ─► handle) ─► reconcile ─► devices
//!                                                        │  ├─► compile: plan, ids, endpoints, ForwardingConfig ─► workers
//!                                                        │  ├─► loops: probes, escalation, storms, MAC-move dampening
//!                                                        │  └─► status ─► api: responses
//!                                                        └─► state: store, events
//! ```
//!
//! The watchdog checks that the controller and the workers respond.

#![forbid(unsafe_code)]

pub mod api;
pub mod author;
pub mod background;
pub mod compile;
pub mod config;
pub mod descriptors;
pub mod desired;
pub mod handover;
pub mod health;
pub mod log_settings;
pub mod loops;
pub mod measures;
pub mod problem;
pub mod reason;
pub mod reconcile;
pub mod state;
mod status;
pub mod watchdog;
pub mod workers;
