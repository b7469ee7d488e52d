//! No device, namespace or file system holds up control, other ports or READY.
