//! Frames between stations that are known: the short way through the tables, which most go.
//!
//! What becomes of a frame is said by [`Judge::answer`]. Here, the same is found out for frames of which one table
//! says all, and to which nothing has to be written: that of learned stations, among which the pinned ones lie as well.

use super::fdb::FOR_GOOD;
use super::judge::Judge;
use super::question::Question;
use super::{MOST_PORTS, Verdict};
use crate::frame::BURST;

/// A whole burst, as a set of bits.
const ALL: u64 = u64::MAX;
const _: () = assert!(BURST == u64::BITS as usize);

impl Judge<'_> {
    /// Answers the questions of a burst, as if one after the other.
    #[inline(always)]
    pub(super) fn answer_all(&mut self, questions: &[Question], verdicts: &mut [Verdict]) {
        let mut left = self.pass(questions, verdicts);
        while left != 0 {
            let (next, at) = (left.trailing_zeros() + 1, left.trailing_zeros() as usize);
            left &= left - 1;
            let told = self.news.len();
            self.answer_one(&questions[at], at, &mut verdicts[at]);
            if self.news.len() > told {
                // A station has come or moved, maybe in the place of another: what was found ahead may hold no more.
                left = ALL.checked_shl(next).unwrap_or(0) & ALL >> (BURST - questions.len());
            }
        }
    }

    #[inline(never)] // it would crowd the registers of the way that most frames go
    fn answer_one(&mut self, question: &Question, index: usize, verdict: &mut Verdict) {
        if !question.is_none() {
            *verdict = self.answer(question, index);
        }
    }

    /// Answers the questions about frames of which a glance at the table tells that their source is where it is
    /// known to be, with nothing to be noted of it, and their destination behind another port. Which are left, as a
    /// set of bits; what the table may still say of these is being fetched.
    #[inline(never)] // with registers of its own
    fn pass(&self, questions: &[Question], verdicts: &mut [Verdict]) -> u64 {
        let (id, oldest, lines, open) = (self.port.rules.id, self.oldest, self.fdb.lines(), self.rules.open());
        // Where each source is examined, the table says nothing but what is pinned to the port.
        let since = if self.port.is_examined { FOR_GOOD } else { self.now };
        let mut left = 0;
        for (index, (q, verdict)) in questions.iter().zip(verdicts).enumerate() {
            // What is no question has a source that nobody knows. No group is in the table, nor what cannot be a source.
            let is_known = lines.glance(q.source, q.source_hash).is_some_and(|source| source.is_current(id, since));
            if is_known
                && let Some(learned) = lines.glance(q.destination, q.destination_hash)
                && let Some(to) = learned.port_since(oldest)
                && to != id
                && open[to.index() % MOST_PORTS] == to
            {
                *verdict = Verdict::To(to);
            } else {
                left |= 1 << index;
                self.fetch_behind(q);
            }
        }
        left
    }

    /// Starts to fetch where the stations of a question may lie that do not lie in their own lines.
    #[cold]
    #[inline(never)]
    fn fetch_behind(&self, q: &Question) {
        for (station, hash) in [(q.source, q.source_hash), (q.destination, q.destination_hash)] {
            if !station.mac().is_group() && self.fdb.lines().glance(station, hash).is_none() {
                self.fdb.prefetch_behind(hash);
            }
        }
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

    /// Ports 0 to 3, of which 2 and 3 have one owner, and stations that are frozen at some of them.
    fn rules(picky: bool, ports: u16, frozen: &[(u64, u16)]) -> Arc<Rules> {
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
        let mut rules = Rules::compile(Secret::new([5; 16]), vec![network], (0..ports).map(port).collect(), Vec::new());
        let frozen =
            frozen.iter().map(|&(number, port)| (Station::new(NetworkId::new(0), mac(number)), PortId::new(port, 0)));
        rules.freeze(frozen);
        Arc::new(rules)
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
        let Switch { rules, fdb, news, moves, pin_reports: reports, questions, .. } = switch;
        let port = rules.compiled(PortId::new(0, 0)).unwrap();
        let mut verdicts = [Verdict::Drop(DropReason::PortClosed); BURST];
        let questions = &mut questions[..batch.len()];
        let moment = Moment::from_secs(now.into());
        ask(rules, port, batch, moment, &mut verdicts, questions);
        let mut judge =
            Judge { rules, port, batch, fdb, news, moves, reports, moment, now, oldest: now - 300, unlearned: false };
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
            frozen in vec((0u64..14, 0u16..3), 0..4),
        ) {
            let mut results = [Vec::new(), Vec::new()];
            for (is_short, results) in [true, false].into_iter().zip(&mut results) {
                let mut cache = Cache::new(*POOL);
                let mut switch = Switch::new(16, Secret::new([5; 16]), ProbeKey::new([6; 16]));
                switch.replace_rules(rules(picky, 4, &[]), Moment::from_secs(1));
                for &(number, port, seen) in &learned {
                    let station = Station::new(NetworkId::new(0), mac(number));
                    switch.remember(Learned { station, port: PortId::new(port, 0), seen });
                }
                // What was learned behind the last one leads nowhere any more.
                switch.replace_rules(rules(picky, 3, &frozen), Moment::from_secs(1));
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
