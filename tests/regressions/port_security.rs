//! Port security reads what hosts read, and names what it refuses.
