//! Errors of changes: category, kind and message.

use crate::control::config::{Config, ConfigErrors, kind, nearest};
use crate::control::problem::{Problem, Subject};

/// Category of a change error: who has to act. Each is one status code of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is invalid in every state of the switch (400).
    Request,
    /// The request names an object that does not exist (404).
    Unknown,
    /// The request conflicts with the current state (409).
    Conflict,
    /// The desired configuration is not the one that the request was made for (412).
    Outdated,
    /// The switch cannot do it: the store fails, a limit is reached, or it is stopping (503).
    Switch,
}

/// Why a change was refused. It has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ChangeError {
    /// Its category.
    pub category: ErrorKind,
    /// Code for programs: `duplicate_port`, `unknown_port`, `port_in_use` …
    pub kind: &'static str,
    /// Text for people: error and remedy. One line for each error.
    pub message: String,
    /// Each error: entity, key, value. If there are none, there is one error, of the whole request.
    pub problems: Vec<Problem>,
}

impl ChangeError {
    /// An error of this category.
    pub fn new(category: ErrorKind, kind: &'static str, message: impl Into<String>) -> ChangeError {
        ChangeError { category, kind, message: message.into(), problems: Vec::new() }
    }

    /// The same, of this entity.
    pub fn of(mut self, subject: Subject) -> ChangeError {
        self.problems = vec![Problem::new(self.kind, self.message.clone()).of(subject)];
        self
    }

    /// The same, with these problems.
    pub fn with(self, problems: Vec<Problem>) -> ChangeError {
        ChangeError { problems, ..self }
    }

    /// The same, with the problems of a configuration; those of a request have their keys below `prefix`.
    pub fn with_errors(self, errors: &ConfigErrors, prefix: &str) -> ChangeError {
        self.with(errors.errors().iter().map(|error| error.problem(prefix)).collect())
    }

    /// An error of category [`ErrorKind::Request`].
    pub fn request(kind: &'static str, message: impl Into<String>) -> ChangeError {
        ChangeError::new(ErrorKind::Request, kind, message)
    }

    /// An error of category [`ErrorKind::Unknown`].
    pub fn unknown(kind: &'static str, message: impl Into<String>) -> ChangeError {
        ChangeError::new(ErrorKind::Unknown, kind, message)
    }

    /// An error of category [`ErrorKind::Conflict`].
    pub fn conflict(kind: &'static str, message: impl Into<String>) -> ChangeError {
        ChangeError::new(ErrorKind::Conflict, kind, message)
    }

    /// An error of category [`ErrorKind::Switch`].
    pub fn switch(kind: &'static str, message: impl Into<String>) -> ChangeError {
        ChangeError::new(ErrorKind::Switch, kind, message)
    }

    /// The request is for other generations of the desired configuration than this one.
    pub fn outdated(wanted: &[u64], generation: u64) -> ChangeError {
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let message = format!(
            "the desired configuration has generation {generation}, and the change is for {}; read it again, and decide again",
            wanted.join(", ")
        );
        ChangeError::new(ErrorKind::Outdated, "generation_moved", message)
    }

    /// `config` has no such port. Suggests a similar id.
    pub fn unknown_port(config: &Config, port: &str) -> ChangeError {
        let ids = config.vms.iter().flat_map(|vm| &vm.ports).map(|port| port.port_id.as_str());
        ChangeError::unknown("unknown_port", unknown("port", port, ids)).of(Subject::port(port))
    }

    /// `config` has no such network. Suggests a similar id.
    pub fn unknown_network(config: &Config, network: &str) -> ChangeError {
        let ids = config.networks.iter().map(|network| network.id.as_str());
        ChangeError::unknown(kind::UNKNOWN_NETWORK, unknown("network", network, ids)).of(Subject::network(network))
    }
}

fn unknown<'a>(what: &str, id: &str, ids: impl Iterator<Item = &'a str>) -> String {
    match nearest(id, ids) {
        Some(expected) => format!("no such {what} {id:?}; did you mean {expected:?}?"),
        None => format!("no such {what} {id:?}; `vifswitch show {what}s` lists them"),
    }
}
