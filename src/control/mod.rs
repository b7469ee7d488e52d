//! What the operator wants, and how it becomes true.
//!
//! Control owns the desired state: it reads the configuration, judges it as a whole, and only then
//! asks anything of the workers. `config` is the way from a text to a state that can be meant.

#![forbid(unsafe_code)]

pub mod config;
