//! What the tests and benchmarks share: hosts made of namespaces, a lab of workers that are stepped by hand, and a fake
//! controller behind the real API server.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

pub mod fake;
pub mod host;
pub mod lab;
