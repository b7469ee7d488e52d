//! The right to bytes.
//!
//! A [`Frame`] is the right to the bytes of one Ethernet frame. It is moved, never cloned. Its
//! bytes stand either in slots of the [`Pool`], which it owns until it is dropped or recycled, or
//! in memory that is *lent* for the present burst: the receive buffers of a [`Batch`].
//!
//! ```text
//!   device.receive ──► Batch: up to 64 frames, and the receive buffers that a burst may use
//!                        │  taken, when one port gets it and it owns its slots
//!                        │  borrowed by its place in the batch, when it is lent or flooded
//!                        ▼
//!                      Lane: what one port sends in one go ──► device.transmit
//! ```
//!
//! Slots go home to the worker's [`Magazine`], and from there in chunks to the pool. Those that are left to
//! the kernel, to be received into or to be sent, go through an [`XskQueue`].

mod batch;
mod copy;
mod descriptor;
mod fill_target;
mod magazine;
mod pool;
mod prefetch;
mod tx_batch;
mod xsk_queue;

pub use batch::{BURST, BURST_BYTES, Batch, FrameRef, HEADROOM, TagError};
pub use copy::copy;
pub use descriptor::{Frame, Small, Tail};
pub use magazine::Magazine;
pub use pool::{Pool, SLOT};
pub use prefetch::prefetch;
pub use tx_batch::{FrameRefs, TxBatch, TxProgress, TxStats, TxStatus};
pub use xsk_queue::{CopyMode, Dropped, XskQueue};
