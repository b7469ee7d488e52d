//! Forwarding decisions. Pure: no I/O, no clock, no threads, no unsafe; configuration ([`ForwardingConfig`]) and
//! time are arguments. The whole behaviour of the switch can be tested in memory with a simulated clock.
//!
//! [`Switch::decide_burst`] decides a [`Verdict`] for each frame of a burst; the worker executes it. A frame from a
//! trunk ([`TrunkConfig`]) loses its outer VLAN tag and is decided as a frame of the port that the tag identifies.
//!
//! Settings are in the [`ForwardingConfig`], which is immutable and only replaced; state is in the [`Switch`],
//! above all the [`Fdb`], one per worker.

#![forbid(unsafe_code)]

mod activation;
mod decide;
mod fast_path;
mod fdb;
mod flaps;
mod flood_list;
mod forwarding;
mod ids;
mod lookup_key;
mod pinned;
mod policer;
mod port;
mod probe_receiver;
mod reserved;
mod security;
mod settings;
mod sibling_sources;
mod spoofing;
mod state;
mod storm;
mod trunk;
mod trunk_burst;
mod update_times;
mod verdict;

pub use activation::PinReport;
pub use decide::BurstDecision;
pub use fdb::{Fdb, FdbEntry, LearnResult};
pub use flaps::{FlapEvent, SpoofEvent};
pub use forwarding::ForwardingConfig;
pub use ids::{HashKey, MAX_NETWORKS, MAX_PORTS, NetworkId, PortId, Station};
pub use policer::{Policer, Rate};
pub use probe_receiver::{MAX_AGE, MAX_HOST_AGE, ReceivedHostProbe, ReturnedProbe};
pub use reserved::{ReservedGroup, ReservedMask};
pub use security::{AtLimit, Binding, MacLimit, Security};
pub use settings::{Attachment, Limits, NetworkConfig, PortConfig, Role, VmId};
pub use sibling_sources::SiblingSource;
pub use spoofing::{RefusedSender, SpoofedIp};
pub use state::{MacUpdate, Switch};
pub use storm::{BPDU_RATE, COPIES_DEFAULT, ClassLimit, PolicerState, PortPolicer, StormClass, StormLimits, VmPolicer};
pub use trunk::{IngressPort, IngressPorts, TrunkConfig};
pub use verdict::{DropReason, Flood, FloodScope, Verdict, Verdicts};
