//! Exchange with peers: frames for ports that they poll, and FDB updates.

use super::Worker;
use crate::frame::BURST;
use crate::time::MonoTime;
use crate::worker::peer::Peer;

/// FDB updates applied per peer and `poll_once`.
const MAX_UPDATES: usize = 256;

impl Worker {
    /// Receives from peers: per peer, the frames in its ring at the start (bounded by the ring) and up to
    /// `MAX_UPDATES` FDB updates. Not limited to a burst per peer, because a peer sends for many ports: a burst per
    /// peer would be less than a burst per port.
    pub(super) fn drain_peers(&mut self, now: MonoTime) -> usize {
        let mut received = 0;
        for worker in 0..self.peers.len() {
            let Some(peer) = &mut self.peers[worker] else { continue };
            let (updates, mut frames) = (peer.updates_in.slots().min(MAX_UPDATES), peer.frames_in.slots());
            if let Ok(chunk) = peer.updates_in.read_chunk(updates) {
                chunk.into_iter().for_each(|update| self.switch.apply(update, now));
            }
            received += updates + frames;
            while frames > 0 {
                frames -= self.enqueue_handoffs(worker, frames).min(frames);
                if frames > 0 {
                    // A device takes one burst at a time, as from a queue.
                    self.flush_tx();
                }
            }
        }
        // This worker may know an applied MAC better and answer.
        self.send_updates();
        if self.switch.has_events() {
            self.send_events();
        }
        received
    }

    /// Dispatches up to `most` frames, at most a burst, from a peer's ring. Returns how many.
    fn enqueue_handoffs(&mut self, worker: usize, most: usize) -> usize {
        let mut addresses = [None; BURST];
        let Some(peer) = &mut self.peers[worker] else { return most };
        for target in addresses.iter_mut().take(most) {
            if self.batch.is_full() {
                break;
            }
            let Ok(frame) = peer.frames_in.pop() else { break };
            *target = Some(frame.target);
            self.batch.push(frame.frame);
            self.batch.set_priority(self.batch.len() - 1, frame.priority);
        }
        let frames = self.batch.len();
        if frames == 0 {
            return most;
        }
        let outcome = self.outbox(|outbox, _| {
            for (index, target) in addresses.into_iter().flatten().enumerate() {
                outbox.enqueue(index, target);
            }
        });
        self.end_burst(&outcome);
        frames
    }

    /// Sends the FDB updates of the last burst to all peers.
    #[inline]
    pub(super) fn send_updates(&mut self) {
        for update in self.switch.updates() {
            for peer in self.peers.iter_mut().flatten() {
                if !peer.send_update(update) {
                    self.counters.updates_lost.add(1);
                }
            }
        }
    }

    /// Wakes the peers that this `poll_once` has sent to.
    #[inline]
    pub(super) fn notify_peers(&mut self) {
        self.peers.iter_mut().flatten().for_each(Peer::notify);
    }
}
