//! What outlives the process: the state store, a kill at any moment, restarts and the service manager.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

mod killed;
mod restart;
mod service;
mod store;
