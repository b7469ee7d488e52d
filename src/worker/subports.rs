//! TX batches of subports. Each subport of a trunk has its own, although many share a queue: each counts its own
//! frames, and a flood to several subports puts at most one frame into each TX batch.

use crate::frame::{BURST, TxBatch};
use crate::switch::PortId;

/// Capacity of a TX batch in frames: a worker flushes after one or two bursts.
pub(super) const TX_BATCH: usize = 3 * BURST;

/// TX batch of one subport.
#[derive(Debug)]
pub(super) struct SubportTx {
    /// The subport.
    pub(super) port: PortId,
    /// Number of the egress queue.
    pub(super) queue: usize,
    /// Whether the TX batch has frames that need software offload.
    pub(super) needs_sw_offload: bool,
    pub(super) tx: TxBatch,
}

/// TX batches of a worker's subports. Control allocates them, because a polling worker does not allocate.
#[derive(Debug, Default)]
pub struct SubportTable(Vec<SubportTx>);

impl SubportTable {
    /// Allocates TX batches for `count` subports.
    pub fn with_capacity(count: usize) -> SubportTable {
        let subport = || SubportTx {
            port: PortId::default(),
            queue: 0,
            needs_sw_offload: false,
            tx: TxBatch::with_capacity(TX_BATCH),
        };
        SubportTable(std::iter::repeat_with(subport).take(count).collect())
    }

    /// Capacity in subports.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the capacity is zero.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, subport: usize) -> Option<&mut SubportTx> {
        self.0.get_mut(subport)
    }

    /// Number of a subport's egress queue.
    #[inline]
    pub(super) fn queue_of(&self, subport: usize) -> Option<usize> {
        self.0.get(subport).map(|subport| subport.queue)
    }

    /// Assigns a subport to its egress queue. `false` if the table is too small.
    pub(super) fn assign(&mut self, subport: usize, port: PortId, queue: usize) -> bool {
        let Some(subport) = self.0.get_mut(subport) else { return false };
        (subport.port, subport.queue) = (port, queue);
        true
    }

    /// TX batch of an assigned subport.
    #[inline]
    pub(super) fn tx(&mut self, subport: usize) -> &mut TxBatch {
        &mut self.0[subport].tx
    }
}
