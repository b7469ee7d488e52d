//! Atomics of the code that several threads run: notifier, pool, policers. `tests/loom` compiles these files with
//! loom's atomics under this name, and explores every interleaving.

pub(crate) use std::sync::atomic;
