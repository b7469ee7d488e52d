//! Worker: sleeping and waking, rings between workers.

#[path = "../../../src/worker/notifier.rs"]
mod notifier;
#[path = "../../../src/worker/peer.rs"]
mod peer;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use crate::frame::Frame;
use crate::switch::{Flood, MacUpdate, PortId};
use notifier::Notifier;
use peer::{HandoffFrame, HandoffTarget, Peer};

/// Two threads write to the mailbox of a worker that sleeps whenever it is empty. A lost wake-up is a deadlock.
pub fn no_wake_up_is_lost() {
    let (notifier, mailbox) = (Notifier::new().unwrap(), Arc::new(AtomicUsize::new(0)));
    let writer = |notifier: Notifier, mailbox: Arc<AtomicUsize>| {
        thread::spawn(move || {
            mailbox.fetch_add(1, Ordering::Release);
            notifier.notify();
        })
    };
    let writers = [writer(notifier.clone(), mailbox.clone()), writer(notifier.clone(), mailbox.clone())];
    let mut read = 0;
    while read < 2 {
        let written = mailbox.load(Ordering::Acquire);
        if written > read {
            read = written;
        } else {
            sleep(&notifier, || mailbox.load(Ordering::Acquire) > read);
        }
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

/// A writer writes twice to a worker that sleeps in between: a notification of the first message must not hide the
/// second.
pub fn a_worker_that_sleeps_twice_is_woken_twice() {
    let (notifier, mailbox) = (Notifier::new().unwrap(), Arc::new(AtomicUsize::new(0)));
    let writer = {
        let (notifier, mailbox) = (notifier.clone(), mailbox.clone());
        thread::spawn(move || {
            for _ in 0..2 {
                mailbox.fetch_add(1, Ordering::Release);
                notifier.notify();
            }
        })
    };
    let mut read = 0;
    while read < 2 {
        if mailbox.load(Ordering::Acquire) > read {
            read += 1;
        } else {
            sleep(&notifier, || mailbox.load(Ordering::Acquire) > read);
        }
    }
    writer.join().unwrap();
}

fn sleep(notifier: &Notifier, has_news: impl FnOnce() -> bool) {
    notifier.sleep(has_news, || {
        notifier.clear();
        true
    });
}

/// Two workers send each other a frame and an update, and sleep until it has arrived. Each wakes the other.
pub fn peers_wake_each_other() {
    let (here, there) = (Notifier::new().unwrap(), Notifier::new().unwrap());
    let (mut to_there, mut to_here) = peer::pair(&here, &there);
    let other = thread::spawn(move || {
        assert!(to_here.send_update(MacUpdate));
        to_here.notify();
        await_news(&mut to_here, &there);
    });
    to_there.send_frame(frame(1, HandoffTarget::Port(PortId(1)))).unwrap();
    to_there.notify();
    await_news(&mut to_there, &here);
    other.join().unwrap();
}

fn await_news(peer: &mut Peer, own: &Notifier) {
    while peer.frames_in.pop().is_none() && peer.updates_in.pop().is_none() {
        sleep(own, || peer.has_work());
    }
}

/// A worker sends more than the ring holds: each frame is returned or arrives, in order, and floods leave half of the ring
/// to unicast.
pub fn a_full_ring_returns_frames_and_keeps_order() {
    let (here, there) = (Notifier::new().unwrap(), Notifier::new().unwrap());
    let (mut peer, mut far) = peer::pair(&here, &there);
    let (port, flood) = (HandoffTarget::Port(PortId(1)), HandoffTarget::Flood(Flood(PortId(1), PortId(2))));
    /// The last frame, which is sent until the ring has room.
    const LAST: u64 = 4;
    let receiver = thread::spawn(move || {
        let mut last = 0;
        while last < LAST {
            match far.frames_in.pop() {
                Some(frame) => {
                    assert!(frame.frame.0[0] > last, "in order");
                    last = frame.frame.0[0];
                }
                None => sleep(&there, || far.has_work()),
            }
        }
    });
    peer.send_frame(frame(1, flood)).unwrap();
    if let Err(refused) = peer.send_frame(frame(2, flood)) {
        assert_eq!(refused.frame.0[0], 2, "the refused frame is returned");
    }
    peer.send_frame(frame(3, port)).expect("floods leave room for unicast");
    peer.notify();
    let mut last = frame(LAST, port);
    while let Err(refused) = peer.send_frame(last) {
        last = refused;
        thread::yield_now();
    }
    peer.notify();
    receiver.join().unwrap();
}

fn frame(number: u64, target: HandoffTarget) -> HandoffFrame {
    HandoffFrame { frame: Frame([number; 4]), target, priority: None }
}
