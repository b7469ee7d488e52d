//! Device kinds on real netdevs: taps, packet sockets, AF_XDP and its program. As root, in namespaces of their own.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

mod early_drop;
mod kinds;
mod link_events;
mod offloads;
mod packet;
mod tap;
mod xdp;
mod xdp_program;
mod xsk_queue;
