//! Requests that disconnect, come in pieces, or ask for what can never work.
