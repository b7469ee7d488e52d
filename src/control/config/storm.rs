//! Storm limits: what they mean, how they are read, and how they are written again.
//!
//! Networks say what is allowed to the ports on them, and to each VM on them by all its ports together; ports and VMs
//! say for themselves what is to be otherwise. Uplinks are asked for nothing, unless they say so.

use super::meant::{Config, Named, Network, Port, Uplink, Vm};
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

impl Config {
    fn storm_on(&self, network_id: &str) -> Storm {
        self.networks.iter().find(|network| network.id == network_id).map_or(Storm::DEFAULT, |network| network.storm)
    }

    /// What holds for a port: what it says itself, else what its network says.
    pub fn storm_of_port(&self, port: &Port) -> Storm {
        port.storm.over(self.storm_on(&port.network_id))
    }

    /// What holds for all ports of a VM on a network together: what the VM says itself, else what the network says.
    pub fn storm_of_vm(&self, vm: &Vm, network: &Network) -> Storm {
        vm.storm.over(network.storm)
    }

    /// What holds for an uplink on each network that it carries.
    pub fn storm_of_uplink(&self, uplink: &Uplink) -> Storm {
        uplink.storm.over(Storm::OFF)
    }
}
