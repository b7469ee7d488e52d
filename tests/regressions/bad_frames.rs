//! One frame that a device refuses costs no other frame.
