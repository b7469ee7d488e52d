//! AF_XDP: the frames of a netdev that others own, taken before its network stack sees them.

pub mod assembler;
pub mod program;
