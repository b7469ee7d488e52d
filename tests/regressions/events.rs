//! Guests cannot flood the event log; events are complete and bounded.
