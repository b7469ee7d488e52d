//! Ports without addresses on real devices, as those have them who made the two specifications: a VM that
//! translates addresses which nobody has, frames of every kind, learning without ARP, groups, tags within tags.
//! Each on ports of every kind.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

#[path = "../host/mod.rs"]
mod host;

mod addresses;
mod blind;
mod groups;
mod learning;
mod matrix;
mod nat;
mod tags;
