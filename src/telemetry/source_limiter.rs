//! Limits what each source reports, so that the last report is never lost: of log messages and events.
//!
//! The first reports of a source are admitted at once. Of further ones only the last is kept, until the window has ended,
//! with the number of those that it replaced.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::time::MonoTime;

/// Recent reports of one source.
#[derive(Debug)]
struct Source<T> {
    /// Start of the window.
    since: MonoTime,
    /// Number admitted in the window.
    admitted: u32,
    held: Held<T>,
}

/// The last report that was held back, if any, and the number of those before it.
#[derive(Debug)]
pub struct Held<T>(Option<(T, u64)>);

impl<T> Held<T> {
    /// Keeps a report, in place of the one before. Returns whether there was none.
    pub fn replace(&mut self, report: T) -> bool {
        let before = self.0.take().map(|(_, before)| before + 1);
        self.0 = Some((report, before.unwrap_or(0)));
        before.is_none()
    }
}

/// Sources with recent reports, by their keys.
#[derive(Debug)]
pub struct SourceLimiter<K, T> {
    /// Reports of one source that are admitted at once, per window.
    burst: u32,
    window: Duration,
    sources: HashMap<K, Source<T>>,
}

impl<K: Eq + Hash, T> SourceLimiter<K, T> {
    /// No sources. Each may report `burst` times at once, then once per window.
    pub fn new(burst: u32, window: Duration) -> SourceLimiter<K, T> {
        SourceLimiter { burst, window, sources: HashMap::new() }
    }

    /// `None` if a report of this source is admitted at `now`, else where to keep it.
    pub fn admit(&mut self, source: K, now: MonoTime) -> Option<&mut Held<T>> {
        let new = || Source { since: now, admitted: 0, held: Held(None) };
        let source = self.sources.entry(source).or_insert_with(new);
        if source.held.0.is_none() && now.since(source.since) >= self.window {
            (source.since, source.admitted) = (now, 0);
        }
        if source.held.0.is_none() && source.admitted < self.burst {
            source.admitted += 1;
            return None;
        }
        Some(&mut source.held)
    }

    /// When the first report that is held back is due.
    pub fn next_due(&self) -> Option<MonoTime> {
        self.sources.values().filter(|source| source.held.0.is_some()).map(|source| source.since + self.window).min()
    }

    /// The reports held back whose window has ended, in no order, each with the number of those before it. `all`: of all
    /// sources.
    pub fn due(&mut self, now: MonoTime, all: bool) -> Vec<(T, u64)> {
        let mut due = Vec::new();
        self.sources.retain(|_, source| {
            if !all && now.since(source.since) < self.window {
                return true;
            }
            let Some(held) = source.held.0.take() else { return false };
            // A source that continues is reported once per window.
            (source.since, source.admitted) = (now, self.burst);
            due.push(held);
            true
        });
        due
    }

    /// Whether this source has recent reports.
    pub fn contains(&self, source: &K) -> bool {
        self.sources.contains_key(source)
    }

    /// Number of sources.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether no source has recent reports.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Forgets the sources whose window has ended and of which no report is held back.
    pub fn forget_silent(&mut self, now: MonoTime) {
        self.sources.retain(|_, source| source.held.0.is_some() || now.since(source.since) < self.window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Duration = Duration::from_secs(1);

    /// Reports of one source.
    #[derive(Default)]
    struct Reports {
        made: u64,
        last_made: usize,
        /// Those that were admitted or due, and those that they count.
        accounted: u64,
        last: usize,
        times: Vec<MonoTime>,
    }

    impl Reports {
        fn pass(&mut self, number: usize, before: u64, now: MonoTime) {
            self.accounted += 1 + before;
            self.last = number;
            self.times.push(now);
        }
    }

    proptest! {
        /// Each report passes or is counted by a later one of its source, the last one passes, and in any window pass at most
        /// two bursts.
        #[test]
        fn no_report_is_lost_and_few_pass(
            steps in prop::collection::vec((0usize..3, 0u64..1500, any::<bool>()), 1..300), burst in 1u32..5,
        ) {
            let mut limiter: SourceLimiter<usize, (usize, usize)> = SourceLimiter::new(burst, WINDOW);
            let mut sources: [Reports; 3] = Default::default();
            let mut now = MonoTime::from_secs(1);
            for (number, (source, millis, is_asked)) in steps.into_iter().enumerate() {
                now = now + Duration::from_millis(if is_asked { millis } else { millis / 30 });
                if is_asked {
                    let is_due = limiter.next_due().is_some_and(|due| due <= now);
                    let due = limiter.due(now, false);
                    prop_assert_eq!(!due.is_empty(), is_due);
                    for ((source, number), before) in due {
                        sources[source].pass(number, before, now);
                    }
                }
                (sources[source].made, sources[source].last_made) = (sources[source].made + 1, number);
                match limiter.admit(source, now) {
                    None => sources[source].pass(number, 0, now),
                    Some(held) => {
                        held.replace((source, number));
                    }
                }
                prop_assert!(limiter.contains(&source));
            }
            for ((source, number), before) in limiter.due(now, true) {
                sources[source].pass(number, before, now + WINDOW);
            }
            prop_assert_eq!(limiter.next_due(), None);
            for Reports { made, last_made, accounted, last, times } in sources {
                prop_assert_eq!((accounted, last), (made, last_made));
                for (index, &begin) in times.iter().enumerate() {
                    let within = times[index..].iter().take_while(|time| time.since(begin) < WINDOW).count();
                    prop_assert!(within <= 2 * burst as usize, "{within} of {burst}");
                }
            }
        }
    }
}
