//! Desired state: what is asked for, how it is checked, and how it comes true.

#![forbid(unsafe_code)]

pub mod client;
pub mod config;
pub mod handle;
pub mod server;
pub mod socket;
pub mod view;
