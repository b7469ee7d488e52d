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
//! Slots go home to the worker's [`Cache`], and from there in chunks to the pool. Those that are left to
//! the kernel, to be received into or to be sent, go through an [`Exchange`].

mod batch;
mod cache;
mod copy;
mod descriptor;
mod exchange;
mod filling;
mod lane;
mod pool;
mod prefetch;

pub use batch::{BURST, BURST_BYTES, Batch, HEADROOM, Untaggable, View};
pub use cache::Cache;
pub use copy::copy;
pub use descriptor::{Frame, Small, Tail};
pub use exchange::{Copying, Dropped, Exchange};
pub use lane::{Fate, Lane, Progress, Sent, Views};
pub use pool::{Pool, SLOT};
pub use prefetch::prefetch;
