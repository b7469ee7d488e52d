//! Guests that cause loops and storms, on real devices: effect on other guests, events, mitigation, and legitimate
//! patterns that raise nothing. Needs root; makes its own namespaces; skipped without it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // helpers of a test may panic

mod bonds;
mod foreign;
mod hosts;
mod isolation;
mod mitigation;
mod moves;
mod own;
mod routed;
mod scene;
mod storms;
mod stp;
