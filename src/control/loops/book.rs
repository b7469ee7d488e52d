//! The loops that there are: each is found from links, stands on its ladder, and has measures that
//! follow from both. Those that are over are remembered for a while.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::ladder::{Ladder, Level, MEMORY, PATIENCE, Turn};
use super::layout::{End, Layout};
use super::verdicts::{Found, Key, Links, Pair};
use crate::time::Moment;

/// Loops that are over and still shown, at most.
const MOST_OVER: usize = 100;

/// For how long they are.
const SHOWN: Duration = Duration::from_secs(3600);

/// As long as a loop was seen so lately, its VMs are probed more often.
const IN_QUESTION: Duration = Duration::from_secs(10);

/// A loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    /// What it is known by.
    pub key: Key,
    /// What is done about it.
    pub ladder: Ladder,
    /// Its links, with when each was last seen.
    pub links: BTreeMap<Pair, Moment>,
    /// Of a link between networks: the end at which the first probe came back.
    pub receiver: Option<End>,
    /// Of a link between networks: the other links by which they are joined.
    pub others: Vec<Pair>,
    /// How many frames storm limits have refused from its ports since it is there, and in the storm as
    /// which it began.
    pub suppressed: u64,
}

/// Why a loop is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was not there any more at the end of its time.
    Gone,
    /// Its measures were lifted by hand.
    Released,
    /// Its ports are not there any more.
    Detached,
}

/// A loop that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// How it was in the end.
    pub was: Loop,
    /// When it was over.
    pub at: Moment,
    /// Why.
    pub why: Why,
}

/// What is remembered of a loop that is over, for the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// How many times it will have come back then.
    pub repeats: u32,
    /// When it was over.
    pub at: Moment,
}

/// Networks that somebody joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// By these ends.
    pub ends: Pair,
    /// Since when.
    pub since: Moment,
    /// When that was last seen.
    pub seen: Moment,
    /// Whether they still do.
    pub is_there: bool,
}

/// What storm limits have refused from a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused {
    /// Frames since the last look.
    pub more: u64,
    /// Frames in the present storm, those included.
    pub in_all: u64,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A loop has been found.
    Started(Key),
    /// More is done about it.
    Raised(Key, Level),
    /// It is still there at the end of its time, and has so much more.
    Prolonged(Key, Duration),
    /// Its probes do not return any more.
    Quiet(Key),
    /// It is over.
    Stopped(Box<Over>),
    /// Networks are joined: no loop by itself.
    Bridges(Pair),
}

/// What is to be done about all loops together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Measures {
    /// VM and network: what one of these ports floods does not reach the others.
    pub splits: BTreeSet<(String, String)>,
    /// The ports that are held, and for which loop.
    pub held: BTreeMap<End, Key>,
}

/// Who joins which networks: what a notice is told of once.
type Bridging = [(Option<String>, String); 2];

/// All loops.
#[derive(Debug, Clone, Default)]
pub struct Book {
    pub(super) links: Links,
    pub(super) loops: BTreeMap<Key, Loop>,
    pub(super) past: BTreeMap<Key, Past>,
    over: VecDeque<Over>,
    notices: BTreeMap<Bridging, Notice>,
}

impl Loop {
    /// Its ends.
    pub fn ends(&self) -> BTreeSet<&End> {
        self.links.keys().flat_map(|(a, b)| [a, b]).collect()
    }

    /// Whether a port of this VM is in it.
    pub fn has_vm(&self, vm: &str) -> bool {
        self.ends().iter().any(|end| end.vm.as_deref() == Some(vm))
    }

    /// Its networks.
    pub fn networks(&self) -> BTreeSet<&str> {
        self.ends().into_iter().map(|end| end.network.as_str()).collect()
    }

    /// How often it is probed, at least.
    pub fn interval(&self, layout: &Layout) -> Duration {
        self.networks().into_iter().map(|network| layout.interval(network)).max().unwrap_or(Duration::from_secs(1))
    }

    /// The ends that it holds. Uplinks are never held.
    pub fn held(&self, layout: &Layout) -> BTreeSet<&End> {
        let mut ends: Vec<&End> = self.ends().into_iter().filter(|end| end.vm.is_some()).collect();
        ends.sort_by_key(|end| layout.order(end));
        match (self.ladder.level, &self.key) {
            (Level::Split, _) => BTreeSet::new(),
            (Level::All, _) => ends.into_iter().collect(),
            (Level::Most, Key::Siblings { .. }) => ends.into_iter().skip(1).collect(),
            // The VM that came later is the one that stands later.
            (Level::Most, Key::Around { .. }) => {
                let first = |vm: &Option<String>| ends.iter().position(|end| end.vm == *vm);
                let younger = ends.iter().map(|end| &end.vm).max_by_key(|vm| first(vm)).cloned().flatten();
                ends.into_iter().filter(|end| end.vm == younger).collect()
            }
            (Level::Most, Key::Bridged { .. }) => {
                let receiver = self.receiver.as_ref().filter(|receiver| receiver.vm.is_some());
                receiver.or(ends.first().copied()).into_iter().collect()
            }
        }
    }
}

impl Book {
    /// A probe that left by `from` has come back at `at`. Whether nothing was known of that.
    pub fn hear(&mut self, from: End, at: End, now: Moment) -> bool {
        self.links.hear(from, at, now)
    }

    /// Adds the loops of an earlier book that this one does not have.
    pub fn add(&mut self, earlier: Book) {
        for (key, of) in earlier.loops {
            self.loops.entry(key).or_insert(of);
        }
        for (key, past) in earlier.past {
            self.past.entry(key).or_insert(past);
        }
    }

    /// The loops that there are.
    pub fn loops(&self) -> impl Iterator<Item = &Loop> {
        self.loops.values()
    }

    /// The loop of this name.
    pub fn find(&self, key: &Key) -> Option<&Loop> {
        self.loops.get(key)
    }

    /// Those that are over, the latest first.
    pub fn over(&self) -> impl Iterator<Item = &Over> {
        self.over.iter().rev()
    }

    /// Who joins networks, or did lately: at `now`.
    pub fn notices(&self, now: Moment) -> impl Iterator<Item = &Notice> {
        self.notices.values().filter(move |notice| notice.is_there || now.since(notice.seen) < SHOWN)
    }

    /// What is to be done about all of them.
    pub fn measures(&self, layout: &Layout) -> Measures {
        let mut measures = Measures::default();
        for (key, of) in &self.loops {
            if let Key::Siblings { vm, network } = key {
                measures.splits.insert((vm.clone(), network.clone()));
            }
            measures.held.extend(of.held(layout).into_iter().map(|end| (end.clone(), key.clone())));
        }
        measures
    }

    /// Whether there is a loop in question of this VM, and its probes are waited for.
    pub fn is_in_question(&self, vm: &str, now: Moment) -> bool {
        self.loops.values().any(|of| {
            // Also before it may be let loose.
            let soon = of.ladder.until.since(now) < IN_QUESTION;
            (soon || now.since(of.ladder.seen) < IN_QUESTION) && of.has_vm(vm)
        })
    }

    /// Whether this port takes part in a loop: its VM is suspected of what is wrong there.
    pub fn is_suspect(&self, vm: &str, network: &str) -> bool {
        self.loops
            .values()
            .any(|of| of.ends().iter().any(|end| end.vm.as_deref() == Some(vm) && end.network == network))
    }

    /// Looks at what has been heard. `refused`: what storm limits have refused of those ports of which they
    /// refuse something.
    pub fn look(&mut self, layout: &Layout, refused: &HashMap<End, Refused>, now: Moment) -> Vec<News> {
        let mut news = Vec::new();
        self.leave(layout, now, &mut news);
        self.links.forget(layout, now);
        self.note_bridgings(&mut news);
        let held = self.measures(layout).held;
        let closing = self.loops.keys().filter_map(|key| match key {
            Key::Bridged { ends } => Some(ends.clone()),
            _ => None,
        });
        for found in self.links.loops(&closing.collect()) {
            self.find_again(found, &held, layout, refused, now, &mut news);
        }
        let mut over = Vec::new();
        for (key, of) in &mut self.loops {
            let more: u64 = of.ends().into_iter().filter_map(|end| refused.get(end)).map(|refused| refused.more).sum();
            let interval = of.interval(layout);
            if more > 0 {
                of.suppressed = of.suppressed.saturating_add(more);
                of.ladder.limit(interval, now);
            }
            match of.ladder.look(interval, now) {
                Some(Turn::Raised(level)) => news.push(News::Raised(key.clone(), level)),
                Some(Turn::Prolonged(time)) => {
                    // Whoever has left it meanwhile is held no longer.
                    of.links.retain(|_, seen| now.since(*seen) <= interval * PATIENCE);
                    news.push(News::Prolonged(key.clone(), time));
                }
                Some(Turn::Quiet) => news.push(News::Quiet(key.clone())),
                Some(Turn::Ended) => over.push(key.clone()),
                None => {}
            }
        }
        for key in over {
            self.end(&key, Why::Gone, now, &mut news);
        }
        self.past.retain(|_, past| now.since(past.at) < MEMORY);
        self.over.retain(|over| now.since(over.at) < SHOWN);
        news
    }

    /// Lifts the measures of all loops that a port is in, and forgets how often they came back.
    pub fn release(&mut self, port: &str, now: Moment) -> Vec<News> {
        let is_meant = |end: &&End| end.port == port;
        let keys: Vec<Key> =
            self.loops.values().filter(|of| of.ends().iter().any(is_meant)).map(|of| of.key.clone()).collect();
        let mut news = Vec::new();
        for key in keys {
            self.end(&key, Why::Released, now, &mut news);
            self.past.remove(&key);
        }
        news
    }

    /// Those who are not there any more leave their loops.
    fn leave(&mut self, layout: &Layout, now: Moment, news: &mut Vec<News>) {
        let mut over = Vec::new();
        for (key, of) in &mut self.loops {
            let is_there = |pair: &Pair| layout.has(&pair.0) && layout.has(&pair.1);
            if of.links.keys().all(is_there) {
                continue;
            }
            let before = of.clone();
            of.links.retain(|pair, _| is_there(pair));
            if of.links.is_empty() {
                of.clone_from(&before);
                over.push(key.clone());
            }
        }
        for key in over {
            self.end(&key, Why::Detached, now, news);
        }
        self.notices.retain(|_, notice| layout.has(&notice.ends.0) && layout.has(&notice.ends.1));
    }

    fn end(&mut self, key: &Key, why: Why, now: Moment, news: &mut Vec<News>) {
        let Some(was) = self.loops.remove(key) else { return };
        // What was heard of it is of the past: if it is still there, it is heard again.
        self.links.drop_all(was.links.keys());
        self.past.insert(key.clone(), Past { repeats: was.ladder.repeats.saturating_add(1), at: now });
        let over = Over { was, at: now, why };
        if self.over.len() == MOST_OVER {
            self.over.pop_front();
        }
        self.over.push_back(over.clone());
        news.push(News::Stopped(over.into()));
    }

    /// Who joins networks is told of once, however often that comes and goes.
    fn note_bridgings(&mut self, news: &mut Vec<News>) {
        self.notices.values_mut().for_each(|notice| notice.is_there = false);
        for (pair, link) in self.links.bridgings() {
            let side = |end: &End| (end.vm.clone(), end.network.clone());
            let mut key = [side(&pair.0), side(&pair.1)];
            key.sort();
            let notice = self.notices.entry(key).or_insert_with(|| {
                news.push(News::Bridges(pair.clone()));
                Notice { ends: pair.clone(), since: link.first, seen: link.last, is_there: true }
            });
            notice.seen = notice.seen.max(link.last);
            if !std::mem::replace(&mut notice.is_there, true) {
                (notice.ends, notice.since) = (pair.clone(), notice.since.min(link.first));
            }
        }
    }

    fn find_again(
        &mut self,
        found: Found,
        held: &BTreeMap<End, Key>,
        layout: &Layout,
        refused: &HashMap<End, Refused>,
        now: Moment,
        news: &mut Vec<News>,
    ) {
        let Found { key, links, receiver, others } = found;
        let Some(of) = self.loops.get_mut(&key) else {
            let level = if matches!(key, Key::Siblings { .. }) { Level::Split } else { Level::Most };
            let repeats = self.past.get(&key).map_or(0, |past| past.repeats);
            let ladder = Ladder::begin(level, repeats, now);
            let mut of = Loop { key: key.clone(), ladder, links, receiver, others, suppressed: 0 };
            let before = |end| refused.get(end).map_or(0, |refused: &Refused| refused.in_all - refused.more);
            of.suppressed = of.ends().into_iter().map(before).sum();
            self.loops.insert(key.clone(), of);
            news.push(News::Started(key));
            return;
        };
        if !others.is_empty() {
            of.others = others;
        }
        for (pair, seen) in links {
            if of.links.get(&pair).is_none_or(|before| *before < seen) {
                let open = !held.contains_key(&pair.0) && !held.contains_key(&pair.1);
                of.ladder.see(open, of.interval(layout), seen);
                of.links.insert(pair, seen);
            }
        }
    }
}

#[cfg(test)]
mod tests;
