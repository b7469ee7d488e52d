//! What the host's own network stack does with guest frames is prevented or told.
