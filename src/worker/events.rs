//! What workers find out about guests, on its way to control: a queue that was made once, so that telling takes
//! neither a lock nor memory. It may be full; the notices of devices that are gone have a channel of their own.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use crossbeam::queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use tokio::sync::mpsc::error::TryRecvError;

use crate::switch::{FlapEvent, PinReport, ReturnedProbe, SiblingSource, SpoofEvent, SpoofedIp};
use crate::time::MonoTime;

/// Findings on their way to control, at most. Behind these they are counted and lost.
const EVENTS: usize = 4096;

/// What a worker has found out about guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerEvent {
    /// A loop probe has come back.
    ReturnedProbe(ReturnedProbe),
    /// A station has moved too often.
    Flap(FlapEvent),
    /// A port has sent what belongs to another VM.
    Spoof(SpoofEvent),
    /// A port was refused a frame that names a sender which it may not be.
    SpoofedIp(SpoofedIp),
    /// A report about a pinned station, and when it was made.
    Pin(PinReport, MonoTime),
    /// A port has sent from the address of a sibling, and may not.
    SiblingSource(SiblingSource),
}

#[derive(Debug)]
struct Queue {
    events: ArrayQueue<WorkerEvent>,
    control: AtomicWaker,
}

/// A worker's end.
#[derive(Debug, Clone)]
pub(super) struct EventSender(Arc<Queue>);

/// Control's end.
#[derive(Debug)]
pub struct EventReceiver(Arc<Queue>);

/// The two ends.
pub(super) fn event_channel() -> (EventSender, EventReceiver) {
    let queue = Arc::new(Queue { events: ArrayQueue::new(EVENTS), control: AtomicWaker::new() });
    (EventSender(queue.clone()), EventReceiver(queue))
}

impl EventSender {
    /// Tells control. `false` if there is no room.
    pub(super) fn send(&self, event: WorkerEvent) -> bool {
        let message = self.0.events.push(event).is_ok();
        self.0.control.wake();
        message
    }
}

impl EventReceiver {
    /// The next one, as soon as there is one. There is no end to them.
    pub async fn recv(&mut self) -> Option<WorkerEvent> {
        poll_fn(|context| {
            self.0.control.register(context.waker());
            // What was told before the waker was there is there now.
            self.0.events.pop().map_or(Poll::Pending, |event| Poll::Ready(Some(event)))
        })
        .await
    }

    /// The next one, if there is one.
    pub fn try_recv(&mut self) -> Result<WorkerEvent, TryRecvError> {
        self.0.events.pop().ok_or(TryRecvError::Empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::{NetworkId, PortId, Station};
    use crate::wire::Mac;
    use std::thread;

    fn event(number: u16) -> WorkerEvent {
        let station = Station::new(NetworkId::new(0), Mac::from_bits(number.into()));
        WorkerEvent::Flap(FlapEvent {
            station,
            from: PortId::new(1, 0),
            to: PortId::new(2, 0),
            origin: PortId::new(1, 0),
        })
    }

    #[test]
    fn whoever_waits_is_woken_and_gets_all_of_them() {
        let (event_sender, mut events) = event_channel();
        let stream = thread::spawn(move || {
            for number in 0..10_000 {
                while !event_sender.send(event(number)) {
                    thread::yield_now();
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for number in 0..10_000 {
                assert_eq!(events.recv().await, Some(event(number)));
            }
        });
        stream.join().unwrap();
        assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn behind_the_last_place_there_is_none() {
        let (event_sender, mut events) = event_channel();
        let message = (0..5000).filter(|&number| event_sender.send(event(number))).count();
        assert_eq!(message, EVENTS);
        assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count(), EVENTS);
        assert!(event_sender.send(event(0)));
    }
}
