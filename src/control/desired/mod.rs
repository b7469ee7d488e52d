//! Desired state: how it changes, and what follows from the difference between two configurations.
//!
//! ```text
//!   change   a request and the present configuration ─► the new one, or a typed error
//!   merge    configuration file and stored state ─► one configuration
//!   diff     two configurations ─► sentences for people
//!   orphans  netdevs of ports and uplinks that are no longer in the configuration
//! ```
//!
//! All of it is pure.

pub mod change;
pub mod diff;
pub mod merge;
pub mod orphans;
