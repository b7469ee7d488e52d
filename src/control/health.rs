//! Health of the switch, which can be read while the controller is busy: at the start, and when a change takes long.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::measures::Measures;

/// Phase of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The initial configuration is being applied.
    #[default]
    Starting,
    /// Requests are answered.
    Running,
    /// The process ends.
    Stopping,
}

/// Whether changes can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreHealth {
    /// They can.
    #[default]
    Ok,
    /// No state is configured: changes end with the process.
    None,
    /// They cannot, and are refused.
    StoreFailed,
}

/// Status of the switch as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct SwitchStatus {
    /// Phase of the process.
    pub phase: Phase,
    /// Requests are answered: the initial configuration is applied, and the process does not end.
    pub ready: bool,
    /// The initial configuration is being applied.
    pub starting: bool,
    /// Number of the desired configuration: each accepted change has a greater one.
    pub desired_generation: u64,
    /// Number of the configuration that all workers and devices have.
    pub applied_generation: u64,
    /// Whether changes can be stored.
    pub state: StoreHealth,
    /// Why they cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// Identifies this start of the switch, as in events.
    pub start: String,
    /// Version of the program.
    pub version: String,
}

/// The status of the switch, and measures of its control. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<SwitchStatus>>, Arc<Measures>);

impl Health {
    /// The status now.
    pub fn status(&self) -> SwitchStatus {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        SwitchStatus {
            ready: status.phase == Phase::Running,
            starting: status.phase == Phase::Starting,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..status
        }
    }

    /// Measures of the control loop.
    pub fn measures(&self) -> &Measures {
        &self.1
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut SwitchStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_tells_whether_the_switch_is_ready() {
        let health = Health::default();
        let is = || (health.status().starting, health.status().ready);
        assert_eq!(is(), (true, false));
        health.update(|status| status.phase = Phase::Running);
        assert_eq!(is(), (false, true));
        health.update(|status| status.phase = Phase::Stopping);
        assert_eq!(is(), (false, false));
    }
}
