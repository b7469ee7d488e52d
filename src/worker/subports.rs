//! Branches: what waits to leave for the subports of trunks. Each has a lane of its own, though many leave by
//! one gate, so that each counts what becomes of its frames, and a flood to several of them puts one frame at
//! most into each lane.

use crate::frame::TxBatch;
use crate::switch::PortId;

use super::queues::TX_BATCH;

/// The lane of one subport.
#[derive(Debug)]
pub(super) struct SubportTx {
    /// The subport.
    pub(super) port: PortId,
    /// The number of the gate by which it leaves.
    pub(super) queue: usize,
    /// Whether its lane has frames that have to be finished before they can leave.
    pub(super) needs_sw_offload: bool,
    pub(super) tx: TxBatch,
}

/// Room for the branches of a worker: control makes it, as a worker that breathes does not allocate.
#[derive(Debug, Default)]
pub struct SubportTable(Vec<SubportTx>);

impl SubportTable {
    /// Room for the subports of rules that have so many.
    pub fn with_capacity(count: usize) -> SubportTable {
        let subport = || SubportTx {
            port: PortId::default(),
            queue: 0,
            needs_sw_offload: false,
            tx: TxBatch::with_capacity(TX_BATCH),
        };
        SubportTable(std::iter::repeat_with(subport).take(count).collect())
    }

    /// For how many there is room.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, subport: usize) -> Option<&mut SubportTx> {
        self.0.get_mut(subport)
    }

    /// The number of the gate by which a branch leaves.
    #[inline]
    pub(super) fn queue_of(&self, subport: usize) -> Option<usize> {
        self.0.get(subport).map(|subport| subport.queue)
    }

    /// Notes by which gate a subport leaves. `false` if there is no room for it.
    pub(super) fn assign(&mut self, subport: usize, port: PortId, queue: usize) -> bool {
        let Some(subport) = self.0.get_mut(subport) else { return false };
        (subport.port, subport.queue) = (port, queue);
        true
    }

    /// The lane of a branch that has been assigned.
    #[inline]
    pub(super) fn tx(&mut self, subport: usize) -> &mut TxBatch {
        &mut self.0[subport].tx
    }
}
