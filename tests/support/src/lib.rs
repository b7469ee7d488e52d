//! Shared by tests and benchmarks: hosts made of namespaces, a lab of workers stepped by hand, and a fake controller
//! behind the real API server.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)] // helpers of a test may panic

pub mod fake;
pub mod host;
pub mod lab;
