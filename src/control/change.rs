//! A change to the desired state, and why it may be refused.
//!
//! [`Change::to`] is pure: from a configuration to the one that is wanted instead. Everything that
//! can be known without touching the host is checked here, against the same admission as a file.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::config::{Config, Port, written};

/// What someone wants changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Everything: this configuration instead of the present one. `[switch]` is fixed at start.
    Apply(Config),
    /// These ports, behind those that the VM has already, in this order. An unknown VM is a new one.
    Attach {
        /// The VM.
        vm: String,
        /// Its new ports.
        ports: Vec<Port>,
    },
    /// This port shall be gone. Its siblings keep their order.
    Detach {
        /// The port.
        port: String,
    },
    /// Some keys of a port shall be otherwise; those that are not written stay as they are.
    Set {
        /// The port.
        port: String,
        /// The keys.
        keys: written::Port,
    },
}

/// Whose doing it is that a change cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The request can never be right (400).
    Request,
    /// It names something that is not there (404).
    Unknown,
    /// Something is in the way now (409).
    Conflict,
    /// The switch cannot keep its promise: the store fails, a limit is reached, it is stopping (503).
    Switch,
}

/// Why a change has not been made. Nothing has been changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whose doing it is.
    pub blame: Blame,
    /// For programs: `duplicate_port`, `unknown_port`, `port_in_use` …
    pub kind: &'static str,
    /// For people: what is wrong, and what would be right. A line for each thing.
    pub message: String,
}

/// What came of a change that was made. It is true on every worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// What is otherwise now, a sentence for each thing; empty if it was so already.
    pub differences: Vec<String>,
    /// Remarks: ports that are wanted but have no device yet, and why.
    pub remarks: Vec<String>,
}
