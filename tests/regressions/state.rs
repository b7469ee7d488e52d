//! The configuration file and the stored state are merged, and neither loses anything.
