//! Checksums and segmentation that guests leave to others are completed correctly or passed on.
