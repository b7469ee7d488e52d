//! Desired state: changes, merging, and differences. Pure functions.
//!
//! ```text
//!   change     a request and the current configuration ─► the new one, or a typed error
//!   merge      configuration file and stored state ─► one configuration
//!   diff       two configurations ─► texts
//!   orphans    netdevs of ports and uplinks that are no longer in the configuration
//!   lifetimes  network namespaces with which ports end
//! ```

pub mod change;
pub mod diff;
pub mod lifetimes;
pub mod merge;
pub mod orphans;
