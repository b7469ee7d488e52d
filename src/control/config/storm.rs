//! Storm limits: what they mean, how they are read, and how they are written again.
//!
//! Networks say what is allowed to the ports on them, and to each VM on them by all its ports together; ports and VMs
//! say for themselves what is to be otherwise. Uplinks are asked for nothing, unless they say so.

use super::error::kind;
use super::lowering::Lowering;
use super::named::Named;
use super::raw;
use crate::switch::{COPIES_DEFAULT, ClassLimit, Rate, StormClass, StormLimits};

/// What is done beside dropping what is beyond a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StormAction {
    /// Nothing. It is counted, and shown.
    Drop,
    /// Events tell when it begins and when it has ended.
    #[default]
    DropEvent,
    /// The port is closed, for [`StormLimit::recovery_seconds`].
    Disable,
}

impl Named for StormAction {
    const NAMES: &'static [(&'static str, StormAction)] =
        &[("drop", StormAction::Drop), ("drop+event", StormAction::DropEvent), ("disable", StormAction::Disable)];
}

/// A limit in bits, with a burst in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitRate {
    /// Bits a second.
    pub per_second: u64,
    /// Bytes at once.
    pub burst_bytes: u64,
}

impl BitRate {
    /// The same in bytes.
    pub fn bytes(self) -> Rate {
        Rate::new(self.per_second / 8, self.burst_bytes)
    }
}

/// A limit on one class: on frames, on bits, or on both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StormLimit {
    /// On frames.
    pub frames: Option<Rate>,
    /// On bits.
    pub bits: Option<BitRate>,
    /// What is done beside dropping.
    pub action: StormAction,
    /// Seconds after which a port is opened again that was disabled; 0: not before it is released by hand.
    pub recovery_seconds: u32,
}

impl StormLimit {
    /// The time for which a port is disabled, unless something else is said.
    pub const RECOVERY: u32 = 300;

    const fn frames(rate: Rate) -> StormLimit {
        StormLimit { frames: Some(rate), bits: None, action: StormAction::DropEvent, recovery_seconds: Self::RECOVERY }
    }
}

/// What is said of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StormPolicy {
    /// Anything is allowed.
    Off,
    /// This much is.
    Limit(StormLimit),
}

/// What is said of the copies that a VM may cause on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopiesPolicy {
    /// Any number.
    Off,
    /// So many.
    Limit(Rate),
}

/// What is said of storms in one place; `None`: nothing, it is as it is elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Storm {
    /// By the place of the class.
    pub classes: [Option<StormPolicy>; 3],
    /// Of copies. Ports say nothing of them.
    pub copies: Option<CopiesPolicy>,
}

impl Storm {
    /// What networks say unless they say something else: the limits of VMs and their ports.
    pub const DEFAULT: Storm = {
        let limits = StormLimits::VM_DEFAULT;
        let mut classes = [Some(StormPolicy::Off); 3];
        let mut place = 0;
        while place < 3 {
            if let Some(ClassLimit { frames: Some(rate), .. }) = limits.0[place] {
                classes[place] = Some(StormPolicy::Limit(StormLimit::frames(rate)));
            }
            place += 1;
        }
        Storm { classes, copies: Some(CopiesPolicy::Limit(COPIES_DEFAULT)) }
    };

    /// Anything is allowed.
    pub const OFF: Storm = Storm { classes: [Some(StormPolicy::Off); 3], copies: Some(CopiesPolicy::Off) };

    /// What is said here, and of what nothing is said here, what is said there.
    pub fn over(self, there: Storm) -> Storm {
        let mut classes = self.classes;
        for (class, there) in classes.iter_mut().zip(there.classes) {
            *class = class.or(there);
        }
        Storm { classes, copies: self.copies.or(there.copies) }
    }

    /// Whether it is said here that anything is allowed of a class.
    pub fn disables(&self, class: StormClass) -> bool {
        self.classes[class as usize] == Some(StormPolicy::Off)
    }

    /// The limit of a class, if there is one.
    pub fn limit(&self, class: StormClass) -> Option<&StormLimit> {
        match &self.classes[class as usize] {
            Some(StormPolicy::Limit(limit)) => Some(limit),
            Some(StormPolicy::Off) | None => None,
        }
    }

    /// The limits of all classes, as the switch has them.
    pub fn limits(&self) -> StormLimits {
        StormClass::ALL.into_iter().fold(StormLimits::OFF, |limits, class| {
            let of = |limit: &StormLimit| ClassLimit { frames: limit.frames, bytes: limit.bits.map(BitRate::bytes) };
            limits.with(class, self.limit(class).map(of))
        })
    }

    /// The copies that may be made, if they are limited.
    pub fn copies(&self) -> Option<Rate> {
        match self.copies {
            Some(CopiesPolicy::Limit(rate)) => Some(rate),
            Some(CopiesPolicy::Off) | None => None,
        }
    }
}

/// Whose storm limits are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Network,
    Vm,
    Port,
    Uplink,
}

/// The longest frame there is, with two tags: no burst of bytes is smaller by itself.
const LONGEST_FRAME: u64 = 9216 + 14 + 8;
/// Frames or copies a second at most.
const MOST_FRAMES: u64 = 1_000_000_000;
/// Bits a second at most.
const MOST_BITS: u64 = 200_000_000_000;
/// Bits a second at least: with less, a frame takes minutes.
const LEAST_BITS: u64 = 1000;
/// A day.
const LONGEST_RECOVERY: u32 = 86_400;

impl Lowering<'_, '_> {
    /// What is said of storms.
    pub fn storm(&mut self, raw: Option<&raw::Storm>, of: Of) -> Storm {
        let mut at = Lowering { path: self.path.key("storm"), diagnostics: self.diagnostics };
        let table = match raw {
            None => return Storm::default(),
            Some(raw::Storm::Word(word)) => {
                at.off(word, "a table of classes as { broadcast = { pps = 500 } }");
                let copies = (of != Of::Port).then_some(CopiesPolicy::Off);
                return Storm { copies, ..Storm::OFF };
            }
            Some(raw::Storm::Table(table)) => table,
        };
        let raw::StormClasses { broadcast, multicast, unknown_unicast, copies } = table;
        let classes = [("broadcast", broadcast), ("multicast", multicast), ("unknown_unicast", unknown_unicast)];
        let classes = classes.map(|(key, raw)| raw.as_ref().map(|raw| at.class(key, raw)));
        if of == Of::Port && copies.is_some() {
            let message =
                "copies are counted for a VM on a network, and not for a port; say so there, or leave this out";
            at.report("copies", kind::CONTRADICTION, message);
        }
        Storm { classes, copies: copies.as_ref().map(|raw| at.copies(raw)) }
    }

    /// Notes it where a word is not the one that lifts a limit.
    fn off(&mut self, word: &str, changed: &str) {
        if word != "off" {
            let message = format!("not a word for this; right would be \"off\" for no limit, or {changed}");
            self.diagnostics.push(&self.path, kind::BAD_VALUE, message);
        }
    }

    fn class(&mut self, key: &str, raw: &raw::StormClass) -> StormPolicy {
        let mut at = Lowering { path: self.path.key(key), diagnostics: self.diagnostics };
        match raw {
            raw::StormClass::Word(word) => {
                at.off(word, "a table as { pps = 500, burst = 500 }");
                StormPolicy::Off
            }
            raw::StormClass::Table(table) => at.limit(table),
        }
    }

    fn limit(&mut self, raw: &raw::StormLimit) -> StormPolicy {
        // of a burst without a rate that is said below
        if ["pps", "bps", "burst", "burst_bytes"].iter().all(|key| self.is_missing(key)) {
            let message = "it limits nothing; give it pps, bps or both, or write \"off\" instead of the table";
            self.diagnostics.push(&self.path, kind::MISSING, message);
        }
        let frames = self.rate([raw.pps, raw.burst]);
        let bits = self.quantity("bps", raw.bps, LEAST_BITS, MOST_BITS);
        self.has_rate("burst_bytes", raw.burst_bytes, "bps", raw.bps);
        let bits = bits.map(|per_second| {
            let most = Rate::max_burst(per_second / 8);
            let burst = self.quantity("burst_bytes", raw.burst_bytes, 1, most);
            BitRate { per_second, burst_bytes: burst.unwrap_or((per_second / 8).max(LONGEST_FRAME)) }
        });
        let action = self.keyword("action", raw.action.as_deref(), StormAction::default());
        if action != StormAction::Disable && raw.recovery_seconds.is_some() {
            let message = "only action = \"disable\" closes a port that has to recover; leave it out, or set that";
            self.report("recovery_seconds", kind::CONTRADICTION, message);
        }
        let (given, default) = (raw.recovery_seconds, StormLimit::RECOVERY);
        let recovery_seconds = self.number("recovery_seconds", given, 0..=LONGEST_RECOVERY, default);
        StormPolicy::Limit(StormLimit { frames, bits, action, recovery_seconds })
    }

    fn copies(&mut self, raw: &raw::StormCopies) -> CopiesPolicy {
        let mut at = Lowering { path: self.path.key("copies"), diagnostics: self.diagnostics };
        match raw {
            raw::StormCopies::Word(word) => {
                at.off(word, "a table as { pps = 100000, burst = 10000 }");
                CopiesPolicy::Off
            }
            raw::StormCopies::Table(table) => {
                if at.is_missing("pps") && at.is_missing("burst") {
                    let message = "it limits nothing; give it pps, or write \"off\" instead of the table";
                    at.diagnostics.push(&at.path, kind::MISSING, message);
                }
                let rate = at.rate([table.pps, table.burst]);
                rate.map_or(CopiesPolicy::Off, CopiesPolicy::Limit)
            }
        }
    }

    /// So many a second, and how many of them may come at once: as many as in a second, unless it is said.
    fn rate(&mut self, [rate, burst]: [Option<i64>; 2]) -> Option<Rate> {
        self.has_rate("burst", burst, "pps", rate);
        let per_second = self.quantity("pps", rate, 1, MOST_FRAMES)?;
        let burst = self.quantity("burst", burst, 1, Rate::max_burst(per_second));
        Some(Rate::new(per_second, burst.unwrap_or(per_second)))
    }

    /// Notes a burst of a rate that is not there.
    fn has_rate(&mut self, burst_key: &str, burst: Option<i64>, key: &str, rate: Option<i64>) {
        if burst.is_some() && rate.is_none() && self.is_missing(key) {
            let message = format!(
                "it says how much of a rate may come at once, and there is none; give {key}, or leave \
                                   this out"
            );
            self.report(burst_key, kind::CONTRADICTION, message);
        }
    }

    /// A number of something, of which none is not a limit.
    fn quantity(&mut self, key: &str, raw: Option<i64>, least: u64, most: u64) -> Option<u64> {
        if raw == Some(0) {
            let message = format!(
                "nothing would pass, and 0 is no word for no limit: that is \"off\", instead of the \
                                   table; {least} to {most} is possible"
            );
            self.report(key, kind::BAD_VALUE, message);
            return Some(least);
        }
        raw.map(|_| self.number(key, raw, least..=most, least))
    }
}

impl Storm {
    /// `storm` that means this; `None` if nothing is said.
    pub fn to_raw(self) -> Option<raw::Storm> {
        if self == Storm::default() {
            return None;
        }
        let [broadcast, multicast, unknown_unicast] = self.classes.map(|class| class.map(StormPolicy::to_raw));
        let copies = self.copies.map(CopiesPolicy::to_raw);
        Some(raw::Storm::Table(raw::StormClasses { broadcast, multicast, unknown_unicast, copies }))
    }
}

/// A number as it is written. What was read from a text is no larger.
fn number(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

impl StormPolicy {
    fn to_raw(self) -> raw::StormClass {
        let StormPolicy::Limit(StormLimit { frames, bits, action, recovery_seconds }) = self else {
            return raw::StormClass::Word("off".into());
        };
        raw::StormClass::Table(raw::StormLimit {
            pps: frames.map(|rate| number(rate.per_second())),
            burst: frames.map(|rate| number(rate.burst())),
            bps: bits.map(|rate| number(rate.per_second)),
            burst_bytes: bits.map(|rate| number(rate.burst_bytes)),
            action: Some(action.name().to_string()),
            // it has none where nothing is to recover from
            recovery_seconds: (action == StormAction::Disable).then_some(recovery_seconds.into()),
        })
    }
}

impl CopiesPolicy {
    fn to_raw(self) -> raw::StormCopies {
        match self {
            CopiesPolicy::Off => raw::StormCopies::Word("off".into()),
            CopiesPolicy::Limit(rate) => raw::StormCopies::Table(raw::CopiesLimit {
                pps: Some(number(rate.per_second())),
                burst: Some(number(rate.burst())),
            }),
        }
    }
}
