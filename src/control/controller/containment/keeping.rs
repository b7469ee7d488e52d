//! What of loops and storms is kept over a restart: written down when it changes, and beside the
//! stations now and then.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::watching::Disabled;
use super::{Containment, Controller};
use crate::control::loops::kept::{self, Clocks};
use crate::control::loops::layout::{End, Layout};
use crate::time::{self, Stamp};

/// The longest that a port can be held for a storm, but for those that are to be released by hand: a day.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Where that is.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// What was kept before, until it is known who is there.
    resumed: Option<Value>,
    /// Something is otherwise than it was written down.
    pub(super) is_due: bool,
    writing: Option<JoinHandle<()>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptDisabled {
    end: End,
    class: String,
    since: i64,
    until: Option<i64>,
}

fn keep_disabled(disabled: &BTreeMap<End, Disabled>, clocks: Clocks) -> Vec<KeptDisabled> {
    let kept = |(end, of): (&End, &Disabled)| KeptDisabled {
        end: end.clone(),
        class: of.class.clone(),
        since: clocks.millis(of.since),
        until: of.until.map(|until| clocks.millis(until)),
    };
    disabled.iter().map(kept).collect()
}

fn resume_disabled(kept: &Value, layout: &Layout, clocks: Clocks) -> BTreeMap<End, Disabled> {
    let all = kept.as_array().map(Vec::as_slice).unwrap_or_default();
    let all = all.iter().filter_map(|of| KeptDisabled::deserialize(of).ok());
    let known = all.filter(|of| layout.has(&of.end) && of.end.vm.is_some());
    let resumed = known.map(|of| {
        let until = of.until.map(|until| clocks.moment(until).min(clocks.now + LONGEST));
        let since = clocks.moment(of.since).min(clocks.now);
        (of.end, Disabled { since, until, class: of.class, spell: None })
    });
    resumed.collect()
}

impl Containment {
    /// What was kept before, for when it is known who is there.
    pub(in crate::control::controller) fn resume_later(&mut self, kept: Value) {
        self.keeping.resumed = (!kept.is_null()).then_some(kept);
    }

    /// Takes over what was kept before, if that has not been done.
    pub(super) fn resume(&mut self) {
        let Some(mut kept) = self.keeping.resumed.take() else { return };
        let clocks = match Stamp::deserialize(&kept["stamp"]) {
            Ok(stamp) => Clocks::since(&stamp, &Stamp::now(), time::now()),
            // A switch before this one kept the wall clock alone.
            Err(_) => clocks(),
        };
        // What has been found since the start is more recent.
        for (end, disabled) in resume_disabled(&kept["disabled"], &self.layout, clocks) {
            self.disabled.entry(end).or_insert(disabled);
        }
        self.book.add(kept::resume(kept["loops"].take(), &self.layout, clocks));
        let (loops, disabled) = (self.book.loops().count(), self.disabled.len());
        if loops + disabled > 0 {
            info!(loops, disabled, "measures against loops and storms go on that were in force before");
        }
    }
}

/// This moment by both clocks.
pub(super) fn clocks() -> Clocks {
    Clocks { now: time::now(), wall: time::wall() }
}

impl Controller {
    /// Notes that what is known is to be written down, changed or not: how much was suppressed, and when loops were seen
    /// last.
    pub(in crate::control::controller) fn keep_loops_soon(&mut self) {
        let Containment { book, disabled, keeping, .. } = &mut self.containment;
        keeping.is_due |= book.loops().next().is_some() || !disabled.is_empty();
    }

    /// Writes the state of pins as soon as possible.
    pub(in crate::control::controller) fn keep_activations(&mut self) {
        self.containment.keeping.is_due = true;
        self.keep_loops();
    }

    /// Begins to write down what is known, if that is due and not under way.
    pub(in crate::control::controller) fn keep_loops(&mut self) {
        let Containment { book, disabled, keeping, .. } = &mut self.containment;
        let under_way = keeping.writing.as_ref().is_some_and(|writing| !writing.is_finished());
        if under_way || !std::mem::take(&mut keeping.is_due) {
            return;
        }
        let Some(store) = self.keeper.store().cloned() else { return };
        let clocks = clocks();
        let kept = json!({
            "stamp": Stamp::now(),
            "loops": kept::keep(book, clocks),
            "disabled": keep_disabled(disabled, clocks),
            "activations": self.activations.to_value(),
        });
        keeping.writing = Some(tokio::spawn(async move {
            if let Err(why) = store.keep_loops(kept).await {
                warn!("what is done about loops has not been kept: {why}");
            }
        }));
    }

    /// Waits until what is known has been written down.
    pub(in crate::control::controller) async fn finish_keeping_loops(&mut self) {
        for _ in 0..2 {
            if let Some(writing) = self.containment.keeping.writing.take() {
                let _ = writing.await;
            }
            self.keep_loops();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Moment;
    use std::time::UNIX_EPOCH;

    #[test]
    fn ports_that_are_held_for_storms_stay_so_and_nonsense_is_ignored() {
        let end = |port: &str| End { vm: Some("v".into()), network: "n".into(), port: port.into() };
        let clocks = |boot, wall| Clocks { now: Moment::from_secs(boot), wall: UNIX_EPOCH + Duration::from_secs(wall) };
        let held = |since, until: Option<u64>| Disabled {
            since: Moment::from_secs(since),
            until: until.map(Moment::from_secs),
            class: "broadcast".into(),
            spell: None,
        };
        let disabled = BTreeMap::from([
            (end("a"), held(900, Some(1200))),
            (end("b"), held(950, None)),
            (end("gone"), held(1, None)),
        ]);
        let mut kept = serde_json::to_value(keep_disabled(&disabled, clocks(1000, 5000))).unwrap();
        kept.as_array_mut().unwrap().extend([json!(7), json!({"end": null}), Value::Null]);
        let layout = Layout::new([], [(end("a"), 0), (end("b"), 1)]);
        // A hundred seconds later, on a host that was booted in between.
        let back = resume_disabled(&kept, &layout, clocks(3000, 5100));
        assert_eq!(back, BTreeMap::from([(end("a"), held(2800, Some(3100))), (end("b"), held(2850, None))]));
        assert_eq!(resume_disabled(&Value::Null, &layout, clocks(1, 1)), BTreeMap::new());
    }
}
