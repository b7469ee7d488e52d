//! Ports without addresses on real devices, as those have them who made the two specifications: a VM that
//! translates addresses which nobody has, frames of every kind, learning without ARP, groups, tags within tags.
//! Each on ports of every kind.

mod addresses;
mod blind;
mod groups;
mod learning;
mod matrix;
mod nat;
mod tags;
