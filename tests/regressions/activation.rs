//! Ports that pin their addresses only when they are heard, and pins that yield.
