//! Ports of every kind next to each other, on netdevs that others own: what passes between them, and what
//! happens when netdevs or the switch go. Whom which frame reaches on them is tested in `corridor`, what
//! changes while it runs in `operator`.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

#[path = "../host/mod.rs"]
mod host;

mod gone;
mod killed;
mod offloads;
mod pairs;
