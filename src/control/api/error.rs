//! Errors of the API: problem details (RFC 9457), with each problem's entity, key, value and remedy.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::api::handle::ShuttingDown;
use crate::control::config::ConfigErrors;
use crate::control::desired::change::{ChangeError, ErrorKind};
use crate::control::problem::{Problem, Subject};

/// Media type of an error.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Kind of an error of the query.
pub const BAD_QUERY: &str = "bad_query";

/// Begin of the URI of a type of errors.
const TYPE: &str = "urn:vifswitch:error:";

/// Why a request was refused. It changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Kind, for programs.
    pub kind: &'static str,
    /// Message, for people.
    pub message: String,
    /// Each error. If there are none, there is one error, of the whole request.
    pub problems: Vec<Problem>,
}

/// The body of an error: problem details as in RFC 9457.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// URI of the kind: `urn:vifswitch:error:` and `kind`.
    r#type: String,
    /// The kind, in words.
    title: String,
    /// HTTP status.
    status: u16,
    /// Message, for people, with the remedy. One line per problem.
    detail: String,
    /// Kind, for programs: `duplicate_port`, `unknown_port`, `port_in_use` …
    #[schema(value_type = String)]
    kind: &'static str,
    /// Each problem.
    problems: Vec<ProblemDetail>,
    /// Kind and message once more.
    error: ErrorDetail,
}

/// Kind and message of an error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// Kind, for programs.
    #[schema(value_type = String)]
    kind: &'static str,
    /// Message, for people, with the remedy. One line per problem.
    message: String,
    /// Each problem.
    problems: Vec<ProblemDetail>,
}

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProblemDetail {
    /// Kind, for programs: `bad_value`, `missing`, `unknown_key` …
    #[schema(value_type = String)]
    kind: &'static str,
    /// The port concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    port_id: Option<String>,
    /// The VM concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<String>,
    /// The network concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    network_id: Option<String>,
    /// The uplink concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    uplink_id: Option<String>,
    /// Path, such as `vms[1].ports[0].mac_address`; empty for the whole request.
    key: String,
    /// The value, shortened if long.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// Message, with the remedy.
    message: String,
    /// What would be right.
    remedy: String,
}

impl From<Problem> for ProblemDetail {
    fn from(problem: Problem) -> ProblemDetail {
        let remedy = problem.remedy().to_owned();
        let Problem { kind, subject: Subject { port, vm, network, uplink }, key, value, message } = problem;
        ProblemDetail {
            kind,
            port_id: port,
            device_id: vm,
            network_id: network,
            uplink_id: uplink,
            key,
            value,
            message,
            remedy,
        }
    }
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, message: message.into(), problems: Vec::new() }
    }

    /// An invalid request.
    pub fn wrong(kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, kind, message)
    }

    /// An unknown object.
    pub fn unknown(kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, kind, message)
    }

    /// A method that the path does not support.
    pub fn method(method: &Method, path: &str) -> ApiError {
        let message = format!("{path} does not take {method}; use a method of the header Allow");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// A query that cannot be read.
    pub fn query(rejection: &QueryRejection) -> ApiError {
        let text = rejection.body_text();
        let text = text.rsplit("query string: ").next().unwrap_or_default();
        // As axum and serde say it: `KEY: unknown field …` or `KEY: WRONG`.
        let (key, wrong) = text.split_once(": ").unwrap_or(("", text));
        let message = match wrong.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
            Some((_, expected)) => {
                let known = expected.trim_start_matches(", expected ").trim_start_matches("one of ");
                format!("the query has no key {key:?}; keys are {known}")
            }
            None if key.is_empty() => format!("the query is wrong: {wrong}"),
            None => format!("{key}: {wrong}"),
        };
        let problem = Problem::new(BAD_QUERY, message).at(key, None);
        ApiError::wrong(BAD_QUERY, problem.message.clone()).with(problem)
    }

    /// A wrong value in the query.
    pub fn query_value(key: &str, value: &str, expected: &str) -> ApiError {
        let message = format!("{key} = {value:?}: expected {expected}");
        let problem = Problem::new(BAD_QUERY, message.clone()).at(key, Some(format!("{value:?}")));
        ApiError::wrong(BAD_QUERY, message).with(problem)
    }

    /// The same, with this problem.
    pub fn with(mut self, problem: Problem) -> ApiError {
        self.problems.push(problem);
        self
    }

    /// The same, of the entity that the request names: problems that name none are of it.
    pub fn of(mut self, subject: &Subject) -> ApiError {
        if self.problems.is_empty() {
            self.problems.push(Problem::new(self.kind, self.message.clone()));
        }
        for problem in self.problems.iter_mut().filter(|problem| problem.subject.is_empty()) {
            problem.subject = subject.clone();
        }
        self
    }

    /// Too many requests; retry later.
    pub fn too_many(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message)
    }
}

impl From<ShuttingDown> for ApiError {
    fn from(closing: ShuttingDown) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", closing.to_string())
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> ApiError {
        let status = match error.category {
            ErrorKind::Request => StatusCode::BAD_REQUEST,
            ErrorKind::Unknown => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Outdated => StatusCode::PRECONDITION_FAILED,
            ErrorKind::Switch => StatusCode::SERVICE_UNAVAILABLE,
        };
        ApiError { problems: error.problems, ..ApiError::new(status, error.kind, error.message) }
    }
}

impl From<ConfigErrors> for ApiError {
    fn from(errors: ConfigErrors) -> ApiError {
        let problems = errors.errors().iter().map(|error| error.problem("")).collect();
        ApiError { problems, ..ApiError::wrong(errors.kind(), errors.to_string()) }
    }
}

impl From<ApiError> for ErrorBody {
    fn from(error: ApiError) -> ErrorBody {
        let ApiError { status, kind, message, mut problems } = error;
        if problems.is_empty() {
            problems.push(Problem::new(kind, message.clone()));
        }
        let problems: Vec<ProblemDetail> = problems.into_iter().map(ProblemDetail::from).collect();
        ErrorBody {
            r#type: format!("{TYPE}{kind}"),
            title: kind.replace('_', " "),
            status: status.as_u16(),
            detail: message.clone(),
            kind,
            problems: problems.clone(),
            error: ErrorDetail { kind, message, problems },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(ErrorBody::from(self))).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
