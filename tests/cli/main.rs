//! The command-line program: commands, configuration file, `check` and `doctor`. Some tests need root and make their
//! own namespaces; they are skipped without it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // helpers of a test may panic

mod bugreport;
mod check;
mod cni;
mod commands;
mod config;
mod doctor;
mod history;
mod init;
mod libvirt_hook;
mod load;
#[path = "../../benches/netdev/mod.rs"]
mod netdev;
mod operator;
mod package;
mod scripts;
