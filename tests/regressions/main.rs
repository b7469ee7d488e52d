//! One named case for each fault that a running switch has had, through the program, its configuration file and its
//! API only. Needs root; makes its own namespaces. `VIFSWITCH=path cargo test --test regressions` runs them against
//! another build.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)] // tests

mod activation;
mod af_xdp;
mod announcements;
mod api;
mod bad_frames;
mod client;
mod dampening;
mod events;
mod fdb;
mod host_stack;
mod hung_worker;
mod log;
mod netdevs;
mod offloads;
mod opening;
mod port_security;
mod priority_tags;
mod privileges;
mod receive_errors;
mod signals;
mod starting;
mod state;
mod storm_limits;
mod trunk_tags;
mod wires;
mod writes;
