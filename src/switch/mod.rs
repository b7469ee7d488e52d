//! What to do with a frame. Pure: no I/O, no clock, no threads, no unsafe; what control wants is an
//! argument ([`Rules`]), and so is the time. The whole behaviour of the switch can be tested in
//! memory with a made-up clock.
//!
//! [`Switch::judge_burst`] gives each frame of a burst its [`Verdict`]; the worker carries it out.
//! A frame from a carrier ([`CarrierRules`]) loses its outer tag at that, and is judged as one of the port
//! for which the tag stands.
//!
//! Settings live in [`Rules`], which never change, only get replaced; state lives in the
//! [`Switch`]: the [`Fdb`], one per worker. The two never mix.

#![forbid(unsafe_code)]

mod activation;
mod bucket;
mod carrier;
mod fdb;
mod judge;
mod known;
mod members;
mod moves;
mod names;
mod pins;
mod probes;
mod question;
mod reserved;
mod rules;
mod security;
mod settings;
mod siblings;
mod spoofing;
mod state;
mod storm;
mod times;
mod verdict;

pub use activation::PinReport;
pub use bucket::{Bucket, Rate};
pub use carrier::{CarrierRules, Origin, Origins};
pub use fdb::{Fdb, Learned, Limits, Seen};
pub use judge::Judged;
pub use moves::{Foreign, Moving};
pub use names::{MOST_NETWORKS, MOST_PORTS, NetworkId, PortId, Secret, Station};
pub use probes::{FRESH, Returned};
pub use reserved::{ReservedGroup, ReservedMask};
pub use rules::Rules;
pub use security::{AtLimit, Binding, MacLimit, Security};
pub use settings::{NetworkRules, Owner, PortRules, Reach, Role};
pub use siblings::SiblingSource;
pub use spoofing::{Refused, SpoofedIp};
pub use state::{Sighting, Switch};
pub use storm::{BPDU_RATE, COPIES_DEFAULT, ClassLimit, Meter, Pack, PortStorm, StormClass, StormLimits};
pub use verdict::{Audience, DropReason, Flood, Verdict, Verdicts};
