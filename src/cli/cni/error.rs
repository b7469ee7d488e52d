//! Errors as the CNI specification has them: a code for runtimes, a sentence and details for people.

use std::fmt;

use serde_json::{Value, json};

use super::version::SpecVersion;
use crate::control::api::client;

/// Codes of the specification, and of this plugin from 100 on.
pub mod code {
    /// The plugin does not implement this version of the specification.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A variable of the environment is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading, writing or executing has failed.
    pub const IO: u32 = 5;
    /// A text is not the JSON that was expected.
    pub const DECODE: u32 = 6;
    /// The network configuration is invalid.
    pub const INVALID_CONFIG: u32 = 7;
    /// The same may succeed later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: no container can be attached now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The switch has refused.
    pub const REFUSED: u32 = 100;
    /// CHECK has found a difference.
    pub const DIFFERS: u32 = 101;
    /// The interface, an address or a route could not be configured.
    pub const INTERFACE: u32 = 102;
}

/// Why a command of the plugin failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// One of [`code`], or that of an IPAM plugin.
    pub code: u32,
    /// What is wrong, and what would be right.
    pub message: String,
    /// More for people; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, message: impl Into<String>) -> CniError {
        CniError { code, message: message.into(), details: String::new() }
    }

    /// The same, with details.
    pub fn with(mut self, details: impl Into<String>) -> CniError {
        self.details = details.into();
        self
    }

    /// The error of a request to the switch.
    pub fn of_switch(error: &client::Error) -> CniError {
        match error {
            client::Error::NoSwitch { .. } => {
                let details = "start it with `vifswitch run`, or name its socket by the key socket";
                CniError::new(code::TRY_AGAIN, error.to_string()).with(details)
            }
            client::Error::Broken { .. } => CniError::new(code::TRY_AGAIN, error.to_string()),
            client::Error::Refused { status, kind, message } => {
                let code = match status {
                    400 => code::INVALID_CONFIG,
                    409 | 412 | 429 | 500..=599 => code::TRY_AGAIN,
                    _ => code::REFUSED,
                };
                CniError::new(code, format!("the switch refuses: {message}")).with(format!("{status} {kind}"))
            }
        }
    }

    /// As the plugin prints it.
    pub fn to_json(&self, version: SpecVersion) -> Value {
        let mut error = json!({ "cniVersion": version.name(), "code": self.code, "msg": self.message });
        if !self.details.is_empty() {
            error["details"] = self.details.clone().into();
        }
        error
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_succeed_later_is_distinguished_from_what_never_will() {
        let refused = |status| client::Error::Refused { status, kind: "kind".into(), message: "why".into() };
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        for (error, code) in [
            (client::Error::NoSwitch { socket: "/s".into(), cause: missing }, code::TRY_AGAIN),
            (client::Error::Broken { socket: "/s".into(), why: "closed".into() }, code::TRY_AGAIN),
            (refused(400), code::INVALID_CONFIG),
            (refused(403), code::REFUSED),
            (refused(404), code::REFUSED),
            (refused(409), code::TRY_AGAIN),
            (refused(503), code::TRY_AGAIN),
        ] {
            assert_eq!(CniError::of_switch(&error).code, code, "{error}");
        }
    }

    #[test]
    fn an_error_is_printed_as_the_specification_has_it() {
        let error = CniError::new(code::INVALID_CONFIG, "why").with("more");
        let printed = error.to_json(SpecVersion::V1_0_0);
        assert_eq!(printed, json!({ "cniVersion": "1.0.0", "code": 7, "msg": "why", "details": "more" }));
        assert_eq!(error.to_string(), "why; more");
    }
}
