//! The laws of forwarding, tried on whole workers over cables: random frames against properties and
//! against a model, and the rows of the requirements by name.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod activation;
mod blindness;
mod builders;
mod conservation;
mod delivery;
mod early_drop;
mod equivalence;
mod fairness;
mod fault;
mod fdb;
mod flaps;
mod flush;
mod generators;
mod mac_updates;
mod matrix;
mod mitigation;
mod model;
mod no_allocation;
mod probes;
mod queues;
mod storms;
mod sw_offload;
mod threads;
mod trunks;
mod uplinks;
