//! A storm limit that is met names the key that lifts it.
