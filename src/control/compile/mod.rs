//! Compiles the configuration into the `ForwardingConfig` of the workers.
//!
//! ```text
//!   ids            slots of ports, networks and VMs in the tables of the switch
//!   settings       the device of a port or uplink; plan: what becomes of it, and of the slot, when the configuration changes
//!   endpoints      the slot and the device of each port and uplink
//!   uplink_groups  uplinks alone and in pairs; failover: which one of a pair is active
//!   policers       state of storm limits, which outlives a ForwardingConfig
//!   activation     which ports are active, and which pins have yielded
//!   forwarding     all of these together: the ForwardingConfig
//! ```

pub mod activation;
pub mod endpoints;
pub mod failover;
pub mod forwarding;
pub mod ids;
pub mod plan;
pub mod policers;
pub mod settings;
pub mod uplink_groups;
