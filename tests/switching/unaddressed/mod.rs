//! Unaddressed ports on real devices of every kind: NAT in a VM whose addresses nobody owns, frames of every kind,
//! learning without ARP, groups, VLAN tags of guests. Needs root; makes its own namespaces.

mod addresses;
mod blind;
mod groups;
mod learning;
mod matrix;
mod nat;
mod tags;
