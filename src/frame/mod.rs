//! Frame memory: the pool of slots, frames, received batches and TX batches, and the slot exchange with AF_XDP.
//!
//! A [`Frame`] is the exclusive right to the bytes of one Ethernet frame. It is moved, never cloned. Its bytes are
//! either in slots of the [`Pool`], which the frame owns until it is dropped or recycled, or in memory *lent* for
//! the current burst: the receive buffers of a [`Batch`].
//!
//! ```text
//!   device.receive ──► Batch: up to 64 frames, and the receive buffers that a burst may use
//!                        │  moved, if it owns its slots and has one egress port
//!                        │  borrowed by its index in the batch, if it is lent or flooded
//!                        ▼
//!                      TxBatch: frames pending for one port ──► device.transmit
//! ```
//!
//! Freed slots return to the worker's [`Magazine`], and from there in chunks to the pool. Slots left to the kernel for
//! receive or transmit go through an [`XskQueue`].

mod batch;
mod copy;
mod descriptor;
mod fill_target;
mod frame_ref;
mod magazine;
mod pool;
mod prefetch;
mod tx_batch;
mod xsk_queue;

pub use batch::{BURST, BURST_BYTES, Batch, HEADROOM, TagError};
pub use copy::copy;
pub use descriptor::{Frame, Tail};
pub use frame_ref::FrameRef;
pub use magazine::Magazine;
pub use pool::{Pool, SLOT};
pub use prefetch::prefetch;
pub use tx_batch::{FrameRefs, TxBatch, TxProgress, TxStats, TxStatus};
pub use xsk_queue::{CopyMode, Dropped, XskQueue};
