//! What a worker does when control asks for it.

use super::breath::Worker;
use super::gate::{Gate, GateState};
use super::mail::{Command, Flushed, Notice, StationsPage};
use crate::switch::PortId;
use crate::time::Moment;

/// Stations looked at for one command to forget some.
const FLUSH: usize = 1024;

impl Worker {
    /// Reads at most one command.
    pub(super) fn read_mail(&mut self, now: Moment) -> usize {
        let Ok(command) = self.mailbox.try_recv() else { return 0 };
        // An answer that nobody waits for any more is dropped with what it carries.
        match command {
            Command::Rules(rules, books, reply) => {
                // Other limits may hold from the next frame on.
                self.lift_sheds();
                self.counters.parted.settle(&self.books, &books);
                let old = (self.switch.replace_rules(rules, now), std::mem::replace(&mut self.books, books));
                self.gates.find_doors(self.switch.rules());
                let _ = reply.send(old);
            }
            Command::Room(room, reply) => {
                let _ = reply.send(self.gates.take_room(room, self.switch.rules()));
            }
            Command::Open(gate, reply) => {
                let _ = reply.send(self.open(gate));
            }
            Command::Close(port, queue, reply) => {
                let _ = reply.send(self.close(port, queue));
            }
            Command::Stations(StationsPage { mut stations, cursor }, reply) => {
                let cursor = cursor.and_then(|at| self.switch.fdb().page(at, &mut stations));
                let _ = reply.send(StationsPage { stations, cursor });
            }
            Command::Census(mut counts, reply) => {
                self.switch.fdb().census(&mut counts);
                let _ = reply.send(counts);
            }
            Command::Audit(mut reading, reply) => {
                // The lanes are empty: what they hold within a breath is in no counter.
                self.count_sheds();
                reading.take(&self.books, &self.counters);
                let _ = reply.send(reading);
            }
            Command::Ping(reply) => drop(reply.send(())),
            Command::Flush(flush, reply) => {
                let (stations, cursor) = self.switch.forget(flush.cursor, FLUSH, |learned| flush.means(learned));
                let _ = reply.send(Flushed { stations, cursor });
            }
            Command::Learn(stations, reply) => {
                stations.iter().for_each(|&learned| self.switch.remember(learned));
                let _ = reply.send(stations);
            }
            Command::Probes(probes, reply) => {
                self.send_probes(&probes);
                let _ = reply.send(probes);
            }
            Command::Announce(announcements, reply) => {
                self.send_announcements(&announcements);
                let _ = reply.send(announcements);
            }
            Command::Stop(reply) => {
                let gates = (0..self.gates.len()).filter_map(|number| self.take_gate(number)).collect();
                let _ = reply.send(gates);
                self.stop = true;
            }
        }
        1
    }

    #[allow(clippy::result_large_err)] // it is the gate that comes back
    fn open(&mut self, gate: Gate) -> Result<(), Gate> {
        let number = self.gates.insert(gate, self.switch.rules())?;
        match self.gates.get_mut(number).map(|gate| self.pacer.watch(number, gate)) {
            Some(Ok(())) => Ok(()),
            _ => self.gates.remove(number, self.switch.rules()).map_or(Ok(()), Err),
        }
    }

    fn close(&mut self, port: PortId, queue: u16) -> Option<Gate> {
        self.take_gate(self.gates.number_of(port, queue)?)
    }

    fn take_gate(&mut self, number: usize) -> Option<Gate> {
        let gate = self.gates.get_mut(number)?;
        gate.lift_sheds(&self.books);
        gate.device.prepare_close(&mut self.cache);
        // Nobody asks it any more.
        self.count_missed(number);
        let gate = self.gates.get_mut(number)?;
        if gate.state != GateState::Gone {
            self.pacer.forget(gate);
        }
        self.gates.remove(number, self.switch.rules())
    }

    /// Stops polling a gate whose device is gone, and tells control.
    #[cold]
    pub(super) fn lose(&mut self, number: usize) {
        let Some(gate) = self.gates.get_mut(number) else { return };
        gate.device.prepare_close(&mut self.cache);
        self.count_missed(number);
        let Some(gate) = self.gates.get_mut(number) else { return };
        self.pacer.forget(gate);
        let notice = Notice::DeviceGone { port: gate.port, queue: gate.queue };
        self.gates.lose(number, self.switch.rules());
        // There is room for more notices than there can be gates; each is lost at most once.
        let _ = self.notices.try_send(notice);
    }
}
