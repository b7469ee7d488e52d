//! What workers find out about guests, on its way to control: a queue that was made once, so that telling takes
//! neither a lock nor memory. It may be full; the notices of devices that are gone have a channel of their own.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use crossbeam::queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use tokio::sync::mpsc::error::TryRecvError;

use crate::switch::{Foreign, Moving, PinReport, Returned, SiblingSource, SpoofedIp};
use crate::time::Moment;

/// Findings on their way to control, at most. Behind these they are counted and lost.
const FINDINGS: usize = 4096;

/// What a worker has found out about guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// A loop probe has come back.
    Returned(Returned),
    /// A station has moved too often.
    Moving(Moving),
    /// A port has sent what belongs to another VM.
    Foreign(Foreign),
    /// A port was refused a frame that names a sender which it may not be.
    SpoofedIp(SpoofedIp),
    /// A report about a pinned station, and when it was made.
    Pin(PinReport, Moment),
    /// A port has sent from the address of a sibling, and may not.
    SiblingSource(SiblingSource),
}

#[derive(Debug)]
struct Queue {
    findings: ArrayQueue<Finding>,
    control: AtomicWaker,
}

/// A worker's end.
#[derive(Debug, Clone)]
pub(super) struct Finder(Arc<Queue>);

/// Control's end.
#[derive(Debug)]
pub struct Findings(Arc<Queue>);

/// The two ends.
pub(super) fn findings() -> (Finder, Findings) {
    let queue = Arc::new(Queue { findings: ArrayQueue::new(FINDINGS), control: AtomicWaker::new() });
    (Finder(queue.clone()), Findings(queue))
}

impl Finder {
    /// Tells control. `false` if there is no room.
    pub(super) fn tell(&self, finding: Finding) -> bool {
        let told = self.0.findings.push(finding).is_ok();
        self.0.control.wake();
        told
    }
}

impl Findings {
    /// The next one, as soon as there is one. There is no end to them.
    pub async fn recv(&mut self) -> Option<Finding> {
        poll_fn(|context| {
            self.0.control.register(context.waker());
            // What was told before the waker was there is there now.
            self.0.findings.pop().map_or(Poll::Pending, |finding| Poll::Ready(Some(finding)))
        })
        .await
    }

    /// The next one, if there is one.
    pub fn try_recv(&mut self) -> Result<Finding, TryRecvError> {
        self.0.findings.pop().ok_or(TryRecvError::Empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::{NetworkId, PortId, Station};
    use crate::wire::Mac;
    use std::thread;

    fn finding(number: u16) -> Finding {
        let station = Station::new(NetworkId::new(0), Mac::from_bits(number.into()));
        Finding::Moving(Moving { station, from: PortId::new(1, 0), to: PortId::new(2, 0), home: PortId::new(1, 0) })
    }

    #[test]
    fn whoever_waits_is_woken_and_gets_all_of_them() {
        let (finder, mut findings) = findings();
        let telling = thread::spawn(move || {
            for number in 0..10_000 {
                while !finder.tell(finding(number)) {
                    thread::yield_now();
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for number in 0..10_000 {
                assert_eq!(findings.recv().await, Some(finding(number)));
            }
        });
        telling.join().unwrap();
        assert_eq!(findings.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn behind_the_last_place_there_is_none() {
        let (finder, mut findings) = findings();
        let told = (0..5000).filter(|&number| finder.tell(finding(number))).count();
        assert_eq!(told, FINDINGS);
        assert_eq!(std::iter::from_fn(|| findings.try_recv().ok()).count(), FINDINGS);
        assert!(finder.tell(finding(0)));
    }
}
