//! The running switch on real devices: which port receives which frame, and the effect of changes on traffic. Needs
//! root; makes its own namespaces; skipped without it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // helpers of a test may panic

mod data_path;
mod lifecycle;
mod live;
mod security;
mod trunks;
mod unaddressed;
mod uplinks;
