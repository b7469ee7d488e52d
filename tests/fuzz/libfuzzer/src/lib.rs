//! The targets, with what they use of `tests/fuzz`.
#![allow(dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../../frames.rs"]
pub mod frames;
#[path = "../../limits.rs"]
mod limits;
#[path = "../../oracle.rs"]
mod oracle;
#[path = "../../parts.rs"]
mod parts;
#[path = "../../rng.rs"]
pub mod rng;
#[path = "../../targets/mod.rs"]
pub mod targets;
#[path = "../../topology.rs"]
pub mod topology;
#[path = "../../world.rs"]
pub mod world;
