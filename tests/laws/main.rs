//! The laws of forwarding, tried on whole workers over cables: random frames against properties and
//! against a model, and the rows of the requirements by name.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../common/mod.rs"]
mod common;

mod activation;
mod blindness;
mod by_hand;
mod conservation;
mod delivery;
mod dressing;
mod equivalence;
mod fairness;
mod fault;
mod forgetting;
mod gates;
mod matrix;
mod measures;
mod model;
mod moves;
mod probes;
mod scenery;
mod shedding;
mod stations;
mod storms;
mod trunks;
mod updates;
mod uplinks;
