//! Frames between stations that are known: the short way through the tables, which most go.
//!
//! What becomes of a frame is said by [`Judge::answer`]. Here, the same is found out for frames of which the
//! tables say all, and to which nothing has to be written. In two loops that ask one question each, as all
//! that a loop needs then stays in the processor's registers.

use super::judge::Judge;
use super::question::Question;
use super::{MOST_PORTS, Verdict};

impl Judge<'_> {
    /// Answers the questions of a burst, in order.
    #[inline(always)]
    pub(super) fn answer_all(&mut self, questions: &[Question], verdicts: &mut [Verdict]) {
        let mut at = 0;
        while at < questions.len() {
            let known = at + self.known(&questions[at..]);
            // Nothing is learned from these, so that all the same it is as if they came one after the other.
            while at < known {
                at += self.pass(&questions[at..known], &mut verdicts[at..known]);
                if at < known {
                    self.answer_one(&questions[at], at, &mut verdicts[at]);
                    at += 1;
                }
            }
            if at < questions.len() {
                self.answer_one(&questions[at], at, &mut verdicts[at]);
                at += 1;
            }
        }
    }

    #[inline(never)] // it would crowd the registers of the way that most frames go
    fn answer_one(&mut self, question: &Question, index: usize, verdict: &mut Verdict) {
        if !question.is_none() {
            *verdict = self.answer(question, index);
        }
    }

    /// How many of the questions, from the first on, are about sources that may be here and of which nothing is
    /// to be noted, as far as one glance at the table tells.
    #[inline(never)] // with registers of its own
    fn known(&self, questions: &[Question]) -> usize {
        let (port, now) = (self.port, self.now);
        let (id, pinned, is_picky) = (port.rules.id, port.pinned, port.is_picky);
        let (sieve, lines) = (self.rules.pins().sieve(), self.fdb.lines());
        let is_current =
            |q: &Question| lines.glance(q.source, q.source_hash).is_some_and(|learned| learned.is_current(id, now));
        let is_known = |q: &Question| {
            q.source == pinned || !is_picky && !sieve.may_hold(q.source_hash) && is_current(q) || q.is_none()
        };
        questions.iter().position(|question| !is_known(question)).unwrap_or(questions.len())
    }

    /// Answers the questions about frames for one station of which one glance at the table tells that it is behind
    /// another port, as many as there are from the first on. How many these are.
    #[inline(never)] // with registers of its own
    fn pass(&self, questions: &[Question], verdicts: &mut [Verdict]) -> usize {
        let (rules, id, oldest) = (self.rules, self.port.rules.id, self.oldest);
        let (pins, sieve, lines, open) = (rules.pins(), rules.pins().sieve(), self.fdb.lines(), rules.open());
        for (index, (q, verdict)) in questions.iter().zip(verdicts).enumerate() {
            let (station, hash) = (q.destination, q.destination_hash);
            // What is no question looks like a group as well.
            if station.mac().is_group() {
                return index;
            }
            let pinned = if sieve.may_hold(hash) { pins.find(station, hash).map(|pin| pin.port) } else { None };
            let to = match pinned.or_else(|| {
                let port = lines.glance(station, hash)?.port_since(oldest)?;
                (open[port.index() % MOST_PORTS] == port).then_some(port)
            }) {
                Some(to) => to,
                None => return index,
            };
            if to == id {
                return index;
            }
            *verdict = Verdict::To(to);
        }
        questions.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{BURST, Batch, Cache, Pool};
    use crate::switch::question::ask;
    use crate::switch::{
        DropReason, Learned, Limits, NetworkId, NetworkRules, Owner, PortId, PortRules, ReservedMask, Rules, Secret,
        Security, Station, Switch,
    };
    use crate::time::Moment;
    use crate::wire::{Mac, Offload, ProbeKey};

    static POOL: LazyLock<&Pool> = LazyLock::new(|| Pool::new(512).unwrap());

    /// Ports 0 to 3, of which 2 and 3 have one owner.
    fn rules(picky: bool, ports: u16) -> Arc<Rules> {
        let network = NetworkRules {
            id: NetworkId::new(0),
            mtu: 1500,
            ageing: 300,
            limits: Limits { network: 12, port: 5 },
            guard: true,
            reserved: ReservedMask::VM_DEFAULT,
        };
        let port = |index: u16| PortRules {
            security: if picky { Security::Mac([mac(2)].into()) } else { Security::Off },
            worker: Some(0),
            ..PortRules::vif(
                PortId::new(index, 0),
                NetworkId::new(0),
                Owner(u32::from(index.min(2))),
                mac(100 + u64::from(index)),
            )
        };
        Arc::new(Rules::compile(Secret::new([5; 16]), vec![network], (0..ports).map(port).collect(), Vec::new()))
    }

    fn mac(number: u64) -> Mac {
        Mac::from_bits(0x0200_0000_0000 | number)
    }

    /// Stations that are learned or not, those that are pinned, and addresses that are none.
    fn address() -> impl Strategy<Value = Mac> {
        prop_oneof![
            8 => (0u64..14).prop_map(mac),
            4 => (100u64..104).prop_map(mac),
            1 => Just(Mac::BROADCAST),
            1 => Just(Mac::from_bits(0x0180_c200_0001)),
            1 => Just(Mac::ZERO),
        ]
    }

    /// What becomes of a burst from port 0.
    fn judge(switch: &mut Switch, batch: &Batch, now: u32, is_short: bool) -> Vec<Verdict> {
        let Switch { rules, fdb, news, moves, questions, .. } = switch;
        let port = rules.compiled(PortId::new(0, 0)).unwrap();
        let mut verdicts = [Verdict::Drop(DropReason::PortClosed); BURST];
        let questions = &mut questions[..batch.len()];
        let moment = Moment::from_secs(now.into());
        ask(rules, port, batch, moment, &mut verdicts, questions);
        let mut judge =
            Judge { rules, port, batch, fdb, news, moves, moment, now, oldest: now - 300, unlearned: false };
        if is_short {
            judge.answer_all(questions, &mut verdicts);
        } else {
            for (index, (question, verdict)) in questions.iter().zip(&mut verdicts).enumerate() {
                judge.answer_one(question, index, verdict);
            }
        }
        verdicts[..questions.len()].to_vec()
    }

    proptest! {
        /// The short way, and the long one for each frame.
        #[test]
        fn the_short_way_leads_where_the_long_one_does(
            learned in vec((0u64..14, 0u16..4, 600u32..1002), 0..14),
            bursts in vec(vec((address(), address(), 10usize..70), 0..BURST), 1..4),
            picky: bool,
        ) {
            let mut results = [Vec::new(), Vec::new()];
            for (is_short, results) in [true, false].into_iter().zip(&mut results) {
                let mut cache = Cache::new(*POOL);
                let mut switch = Switch::new(16, Secret::new([5; 16]), ProbeKey::new([6; 16]));
                switch.replace_rules(rules(picky, 4), Moment::from_secs(1));
                for &(number, port, seen) in &learned {
                    let station = Station::new(NetworkId::new(0), mac(number));
                    switch.remember(Learned { station, port: PortId::new(port, 0), seen });
                }
                // What was learned behind the last one leads nowhere any more.
                switch.replace_rules(rules(picky, 3), Moment::from_secs(1));
                for (now, frames) in (1000..).zip(&bursts) {
                    let mut batch = Batch::new();
                    for (to, from, len) in frames {
                        let bytes = [&to.octets()[..], &from.octets(), &[0x88, 0xb5], &[0; 60]].concat();
                        batch.push(cache.frame(&bytes[..*len], Offload::NONE).unwrap());
                    }
                    let verdicts = judge(&mut switch, &batch, now, is_short);
                    let mut page = Vec::with_capacity(20);
                    switch.fdb().page(0, &mut page);
                    results.push((verdicts, page, switch.news().collect::<Vec<_>>()));
                    batch.clear(&mut cache);
                }
            }
            prop_assert_eq!(&results[0], &results[1]);
        }
    }
}
