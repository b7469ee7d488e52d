//! 802.1Q priority tags keep their priority, and untagged frames their minimum length.
