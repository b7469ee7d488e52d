//! Storm limits: meaning, parsing, serialising.
//!
//! Networks set limits for their ports, and for each VM by all its ports together; ports and VMs may override them.
//! Uplinks have no limits unless set.

use super::error::kind;
use super::lowering::Lowering;
use super::named::Named;
use super::raw;
use crate::switch::{COPIES_DEFAULT, ClassLimit, Rate, StormClass, StormLimits};

/// Action beside dropping excess frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StormAction {
    /// None; drops are counted.
    Drop,
    /// Events at start and end.
    #[default]
    DropEvent,
    /// The port is quarantined for [`StormLimit::recovery_seconds`].
    Disable,
}

impl Named for StormAction {
    const NAMES: &'static [(&'static str, StormAction)] =
        &[("drop", StormAction::Drop), ("drop+event", StormAction::DropEvent), ("disable", StormAction::Disable)];
}

/// A limit in bits, with a burst in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitRate {
    /// Bits per second.
    pub per_second: u64,
    /// Burst in bytes.
    pub burst_bytes: u64,
}

impl BitRate {
    /// As a rate in bytes.
    pub fn bytes(self) -> Rate {
        Rate::new(self.per_second / 8, self.burst_bytes)
    }
}

/// Limit of one class: frames, bits, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StormLimit {
    /// In frames.
    pub frames: Option<Rate>,
    /// In bits.
    pub bits: Option<BitRate>,
    /// Action beside dropping.
    pub action: StormAction,
    /// Quarantine of a disabled port in seconds; 0: until released by hand.
    pub recovery_seconds: u32,
}

impl StormLimit {
    /// Default quarantine in seconds.
    pub const RECOVERY: u32 = 300;

    const fn frames(rate: Rate) -> StormLimit {
        StormLimit { frames: Some(rate), bits: None, action: StormAction::DropEvent, recovery_seconds: Self::RECOVERY }
    }
}

/// Policy of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StormPolicy {
    /// Unlimited.
    Off,
    /// Limited.
    Limit(StormLimit),
}

/// Policy of flooded copies of a VM on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopiesPolicy {
    /// Unlimited.
    Off,
    /// Limited.
    Limit(Rate),
}

/// Storm policies of one object; `None`: inherited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Storm {
    /// By index of the class.
    pub classes: [Option<StormPolicy>; 3],
    /// Of copies; not set for ports.
    pub copies: Option<CopiesPolicy>,
}

impl Storm {
    /// Defaults of networks: limits of VMs and their ports.
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

    /// Unlimited.
    pub const OFF: Storm = Storm { classes: [Some(StormPolicy::Off); 3], copies: Some(CopiesPolicy::Off) };

    /// These policies, completed from `there`.
    pub fn over(self, there: Storm) -> Storm {
        let mut classes = self.classes;
        for (class, there) in classes.iter_mut().zip(there.classes) {
            *class = class.or(there);
        }
        Storm { classes, copies: self.copies.or(there.copies) }
    }

    /// Whether a class is set to unlimited here.
    pub fn disables(&self, class: StormClass) -> bool {
        self.classes[class as usize] == Some(StormPolicy::Off)
    }

    /// Limit of a class, if any.
    pub fn limit(&self, class: StormClass) -> Option<&StormLimit> {
        match &self.classes[class as usize] {
            Some(StormPolicy::Limit(limit)) => Some(limit),
            Some(StormPolicy::Off) | None => None,
        }
    }

    /// Limits of all classes for the switch.
    pub fn limits(&self) -> StormLimits {
        StormClass::ALL.into_iter().fold(StormLimits::OFF, |limits, class| {
            let of = |limit: &StormLimit| ClassLimit { frames: limit.frames, bytes: limit.bits.map(BitRate::bytes) };
            limits.with(class, self.limit(class).map(of))
        })
    }

    /// Limit of copies, if any.
    pub fn copies(&self) -> Option<Rate> {
        match self.copies {
            Some(CopiesPolicy::Limit(rate)) => Some(rate),
            Some(CopiesPolicy::Off) | None => None,
        }
    }
}

/// Owner of the limits to parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Network,
    Vm,
    Port,
    Uplink,
}

/// Longest frame in bytes, with two tags; minimum burst.
const LONGEST_FRAME: u64 = 9216 + 14 + 8;
/// Maximum frames or copies per second.
const MOST_FRAMES: u64 = 1_000_000_000;
/// Maximum bits per second.
const MOST_BITS: u64 = 200_000_000_000;
/// Minimum bits per second: with less, one frame takes minutes.
const LEAST_BITS: u64 = 1000;
/// Maximum quarantine in seconds: a day.
const LONGEST_RECOVERY: u32 = 86_400;

impl Lowering<'_, '_> {
    /// Lowers a storm table.
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
            let message = "copies are limited for a VM on a network, not for a port; move the key to the VM or network, \
                           or remove it";
            at.report("copies", kind::CONTRADICTION, message);
        }
        Storm { classes, copies: copies.as_ref().map(|raw| at.copies(raw)) }
    }

    /// Reports a word other than `off`.
    fn off(&mut self, word: &str, changed: &str) {
        if word != "off" {
            let message = format!("invalid; use \"off\" for no limit, or {changed}");
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
        // a burst without a rate is reported below
        if ["pps", "bps", "burst", "burst_bytes"].iter().all(|key| self.is_missing(key)) {
            let message = "limits nothing; set pps, bps or both, or replace the table by \"off\"";
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
            let message = "only action = \"disable\" blocks a port that then recovers; remove the key, or set \
                           that action";
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
                    let message = "limits nothing; set pps, or replace the table by \"off\"";
                    at.diagnostics.push(&at.path, kind::MISSING, message);
                }
                let rate = at.rate([table.pps, table.burst]);
                rate.map_or(CopiesPolicy::Off, CopiesPolicy::Limit)
            }
        }
    }

    /// A rate and its burst; the default burst is one second's worth.
    fn rate(&mut self, [rate, burst]: [Option<i64>; 2]) -> Option<Rate> {
        self.has_rate("burst", burst, "pps", rate);
        let per_second = self.quantity("pps", rate, 1, MOST_FRAMES)?;
        let burst = self.quantity("burst", burst, 1, Rate::max_burst(per_second));
        Some(Rate::new(per_second, burst.unwrap_or(per_second)))
    }

    /// Reports a burst without its rate.
    fn has_rate(&mut self, burst_key: &str, burst: Option<i64>, key: &str, rate: Option<i64>) {
        if burst.is_some() && rate.is_none() && self.is_missing(key) {
            let message = format!("has no effect without a rate; set {key}, or remove this key");
            self.report(burst_key, kind::CONTRADICTION, message);
        }
    }

    /// A quantity; 0 is not a limit.
    fn quantity(&mut self, key: &str, raw: Option<i64>, least: u64, most: u64) -> Option<u64> {
        if raw == Some(0) {
            let message =
                format!("0 would pass nothing; use {least} to {most}, or replace the table by \"off\" for no limit");
            self.report(key, kind::BAD_VALUE, message);
            return Some(least);
        }
        raw.map(|_| self.number(key, raw, least..=most, least))
    }
}

impl Storm {
    /// Serialises to a `storm` table; `None` if all is inherited.
    pub fn to_raw(self) -> Option<raw::Storm> {
        if self == Storm::default() {
            return None;
        }
        let [broadcast, multicast, unknown_unicast] = self.classes.map(|class| class.map(StormPolicy::to_raw));
        let copies = self.copies.map(CopiesPolicy::to_raw);
        Some(raw::Storm::Table(raw::StormClasses { broadcast, multicast, unknown_unicast, copies }))
    }
}

/// A number in the file's type; parsed values fit.
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
            // set only for `disable`
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
