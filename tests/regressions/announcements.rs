//! Local addresses are announced when they become reachable by another wire.
