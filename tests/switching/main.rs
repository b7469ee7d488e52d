//! The running switch on real devices: which port receives which frame, and what a change does to frames that flow.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

mod data_path;
mod lifecycle;
mod live;
mod security;
mod trunks;
mod unaddressed;
mod uplinks;
