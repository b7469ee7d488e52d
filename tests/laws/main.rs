//! Forwarding guarantees and requirements, tested on whole workers over in-memory loopback devices: random frames
//! against properties and against a model, and hand-written cases. Needs neither root nor namespaces.
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
mod order;
mod probes;
mod queues;
mod storms;
mod sw_offload;
mod threads;
mod trunks;
mod uplinks;
