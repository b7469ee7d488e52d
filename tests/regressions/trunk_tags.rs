//! A frame never reaches the network of another VLAN.
