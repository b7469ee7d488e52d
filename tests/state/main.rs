//! Persistence: state store, kills at any moment, restarts, service manager. Most tests need root and make their own
//! namespaces; they are skipped without it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // helpers of a test may panic

mod access;
mod fragments;
mod kept;
mod killed;
mod lifetime;
mod passed_namespaces;
mod power_loss;
mod restart;
mod service;
mod store;
