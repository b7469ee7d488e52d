//! Device kinds on real netdevs: taps, packet sockets, AF_XDP and its program. Needs root; makes its own namespaces;
//! skipped without it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // helpers of a test may panic

mod early_drop;
mod injected;
mod kinds;
mod link_events;
mod offloads;
mod packet;
mod segmentation;
mod tap;
mod vxlan;
mod xdp;
mod xdp_program;
mod xsk_queue;
