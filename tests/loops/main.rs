//! Guests that make loops and storms, on real devices: AT-11 to AT-14, and AT-19 without its latency. What they
//! do to others, what the switch says of it, and that it says nothing of what is no loop.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

mod bonds;
mod foreign;
mod isolation;
mod mitigation;
mod moves;
mod own;
mod routed;
mod scene;
mod storms;
mod stp;
