//! MAC-move dampening never works against a port that may use the address.
