//! A device queue that a worker polls, with its polling state.

use std::fmt;

use super::early_drop::EarlyDrop;
use super::moderation::RxModeration;
use super::subports::TX_BATCH;
use crate::device::Device;
use crate::frame::TxBatch;
use crate::switch::PortId;
use crate::time::MonoTime;

/// One queue of a port's device, with its TX batch.
pub struct RxQueue {
    /// The port or trunk.
    pub port: PortId,
    /// Index of the device's queue.
    pub queue: u16,
    /// The device, polled by this worker only.
    pub device: Box<dyn Device>,
    /// The TX batch while the queue is closed; [`QueueTable`](super::queues::QueueTable) holds it while the queue is open.
    pub(super) tx: TxBatch,
    pub(super) offloads: bool,
    /// Whether the device may lead to a wire, which needs minimum-size frames.
    pub(super) needs_padding: bool,
    /// Maximum burst of the device, in frames.
    pub(super) max_burst: usize,
    /// Receive moderation.
    pub(super) moderation: RxModeration,
    /// Whether the queue is polled even when idle.
    pub(super) never_sleeps: bool,
    /// Whether the TX batch has frames that need software offload.
    pub(super) needs_sw_offload: bool,
    /// Empty receives in a row.
    pub(super) idle_streak: u8,
    /// Bursts received or sent since epoll watches the queue, up to the limit at which it is unwatched.
    pub(super) busy_streak: u8,
    pub(super) state: QueueState,
    /// Full bursts in a row that were dropped entirely.
    pub(super) dropped_bursts: u8,
    /// Receives in a row that have failed.
    pub(super) failed_receives: u8,
    /// When to receive again while the queue is [`QueueState::Failing`].
    pub(super) retry_at: MonoTime,
    /// Early drop in XDP, per group class.
    pub(super) early_drop: EarlyDrop,
}

/// Polling state of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueState {
    /// Polled in every `poll_once`.
    Polled,
    /// Idle: not polled; epoll watches it.
    Watched,
    /// Drop back-off: not polled for this many calls of `poll_once`.
    BackedOff(u8),
    /// Receives fail: neither polled nor watched until `retry_at`.
    Failing,
    /// The device is gone.
    Gone,
}

impl fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxQueue").field("port", &self.port).field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl RxQueue {
    /// Creates a queue that no worker polls yet.
    pub fn new(port: PortId, queue: u16, device: Box<dyn Device>) -> RxQueue {
        RxQueue {
            port,
            queue,
            offloads: device.caps().offloads,
            needs_padding: device.needs_padding(),
            max_burst: device.max_burst(),
            moderation: RxModeration::new(device.moderation_time()),
            never_sleeps: device.is_cheap_to_poll() || device.fd().is_none(),
            device,
            tx: TxBatch::with_capacity(TX_BATCH),
            needs_sw_offload: false,
            idle_streak: 0,
            busy_streak: 0,
            state: QueueState::Polled,
            dropped_bursts: 0,
            failed_receives: 0,
            retry_at: MonoTime::default(),
            early_drop: EarlyDrop::default(),
        }
    }
}
