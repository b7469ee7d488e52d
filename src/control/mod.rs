//! Desired state: what is asked for, how it is checked, and how it comes true.

#![forbid(unsafe_code)]

pub mod config;
pub mod handle;
pub mod view;
