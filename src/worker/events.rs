//! Event queue from workers to control. Fixed capacity, allocated once: sending takes no lock and no memory. May be
//! full; notices of lost devices have a channel of their own.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use crossbeam::queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use tokio::sync::mpsc::error::TryRecvError;

use crate::switch::{FlapEvent, PinReport, ReceivedHostProbe, ReturnedProbe, SiblingSource, SpoofEvent, SpoofedIp};
use crate::time::MonoTime;

/// Capacity in events; an event that finds the queue full is counted and lost.
const EVENTS: usize = 4096;

/// Capacity in probes of other hosts, which are larger than other events.
const HOST_PROBES: usize = 128;

/// An event that a worker detects in guest traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerEvent {
    /// A loop probe has returned.
    ReturnedProbe(ReturnedProbe),
    /// A loop probe of another host has been received; [`EventReceiver::host_probe`] has it.
    HostProbe,
    /// A MAC flaps: it has moved too often.
    Flap(FlapEvent),
    /// A MAC flaps between an uplink and a new port; its moves are allowed.
    AllowedFlap(FlapEvent),
    /// A port has sent from an address that belongs to another VM.
    Spoof(SpoofEvent),
    /// Anti-spoofing has dropped a frame for its sender's IP address.
    SpoofedIp(SpoofedIp),
    /// A report about a pinned MAC, and its time.
    Pin(PinReport, MonoTime),
    /// A port has sent from a sibling's address without permission.
    SiblingSource(SiblingSource),
}

#[derive(Debug)]
struct Queue {
    events: ArrayQueue<WorkerEvent>,
    host_probes: ArrayQueue<ReceivedHostProbe>,
    control: AtomicWaker,
}

/// Worker's end.
#[derive(Debug, Clone)]
pub(super) struct EventSender(Arc<Queue>);

/// Control's end.
#[derive(Debug)]
pub struct EventReceiver(Arc<Queue>);

/// Creates the queue.
pub(super) fn event_channel() -> (EventSender, EventReceiver) {
    let queue = Queue {
        events: ArrayQueue::new(EVENTS),
        host_probes: ArrayQueue::new(HOST_PROBES),
        control: AtomicWaker::new(),
    };
    let queue = Arc::new(queue);
    (EventSender(queue.clone()), EventReceiver(queue))
}

impl EventSender {
    /// Enqueues an event and wakes control. `false` if the queue is full.
    pub(super) fn send(&self, event: WorkerEvent) -> bool {
        let message = self.0.events.push(event).is_ok();
        self.0.control.wake();
        message
    }

    /// Enqueues a probe of another host, and its event. `false` if a queue is full.
    pub(super) fn send_host_probe(&self, probe: ReceivedHostProbe) -> bool {
        self.0.host_probes.push(probe).is_ok() && self.send(WorkerEvent::HostProbe)
    }
}

impl EventReceiver {
    /// Waits for the next event. Never returns `None`.
    pub async fn recv(&mut self) -> Option<WorkerEvent> {
        poll_fn(|context| {
            self.0.control.register(context.waker());
            // Events pushed before the waker was registered are in the queue now.
            self.0.events.pop().map_or(Poll::Pending, |event| Poll::Ready(Some(event)))
        })
        .await
    }

    /// Returns the next probe of another host.
    pub fn host_probe(&mut self) -> Option<ReceivedHostProbe> {
        self.0.host_probes.pop()
    }

    /// Returns the next event without waiting.
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
    fn a_waiting_receiver_is_woken_and_gets_every_event() {
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
    fn events_beyond_the_capacity_are_lost_and_counted() {
        let (event_sender, mut events) = event_channel();
        let message = (0..5000).filter(|&number| event_sender.send(event(number))).count();
        assert_eq!(message, EVENTS);
        assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count(), EVENTS);
        assert!(event_sender.send(event(0)));
    }
}
