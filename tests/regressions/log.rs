//! Nobody who reads the log, or fails to, can hold up or end the switch.
