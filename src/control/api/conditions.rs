//! Conditions and answers of writes: `If-Match`, `dry_run`, `wait`, and the generation in `ETag`.

use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::AppState;
use super::body::BodyPermit;
use super::error::ApiError;
use crate::control::api::handle::ChangeOptions;
use crate::control::api::responses::{PortView, Status};
use crate::control::desired::change::{Change, ChangeResult};
use crate::control::desired::diff::{Difference, Entity};
use crate::control::reason::ReasonCode;

/// Maximum time to confirm a change, in seconds: a day.
const LONGEST_CONFIRM: u64 = 86_400;

/// Maximum time to wait for ports, in seconds.
const LONGEST_WAIT: u64 = 300;

/// Query of a write.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteQuery {
    #[serde(default)]
    dry_run: bool,
    wait: Option<String>,
}

/// Query of a write, as axum extracts it.
pub type ChangeQuery = Result<Query<WriteQuery>, QueryRejection>;

/// Query of a write of the whole configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigQuery {
    #[serde(default)]
    dry_run: bool,
    wait: Option<String>,
    confirm: Option<String>,
    /// Label of what is replaced.
    pub owner: Option<String>,
}

/// How a write is made.
#[derive(Debug, Default)]
pub struct Conditions {
    is_dry_run: bool,
    wait: Option<Duration>,
    options: ChangeOptions,
}

/// The query, or why it is invalid.
pub fn query_of<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    match query {
        Ok(Query(query)) => Ok(query),
        Err(e) => Err(ApiError::query(&e)),
    }
}

fn seconds(key: &str, text: Option<&str>, most: u64) -> Result<Option<Duration>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(seconds) if (1..=most).contains(&seconds) => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(ApiError::query_value(key, text, &format!("a whole number of seconds, 1 to {most}"))),
    }
}

/// Generations of `If-Match`; `None` without the header, and for `*`.
fn generations(headers: &HeaderMap) -> Result<Option<Vec<u64>>, ApiError> {
    let mut all = Vec::new();
    for value in headers.get_all(header::IF_MATCH) {
        let text = value.to_str().unwrap_or_default();
        for tag in text.split(',').map(str::trim) {
            if tag == "*" {
                return Ok(None);
            }
            let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).and_then(|tag| tag.parse().ok());
            all.push(number.ok_or_else(|| {
                let message =
                    format!("If-Match: {text:?}: expected a generation in quotes, as in the ETag of an answer");
                ApiError::wrong("bad_header", message)
            })?);
        }
    }
    Ok((!all.is_empty()).then_some(all))
}

impl Conditions {
    /// Those of a write of an entity.
    pub fn of(query: ChangeQuery, headers: &HeaderMap) -> Result<Conditions, ApiError> {
        let WriteQuery { dry_run, wait } = query_of(query)?;
        let options = ChangeOptions { generations: generations(headers)?, ..ChangeOptions::default() };
        Ok(Conditions { is_dry_run: dry_run, wait: seconds("wait", wait.as_deref(), LONGEST_WAIT)?, options })
    }

    /// Those of a write of the whole configuration, and the owner that it is limited to.
    pub fn of_config(
        query: Result<Query<ConfigQuery>, QueryRejection>,
        headers: &HeaderMap,
    ) -> Result<(Conditions, Option<String>), ApiError> {
        let ConfigQuery { dry_run, wait, confirm, owner } = query_of(query)?;
        let confirm = seconds("confirm", confirm.as_deref(), LONGEST_CONFIRM)?;
        let options = ChangeOptions { confirm, generations: generations(headers)? };
        let wait = seconds("wait", wait.as_deref(), LONGEST_WAIT)?;
        Ok((Conditions { is_dry_run: dry_run, wait, options }, owner))
    }

    /// Only if the desired configuration has this generation, unless the client has named others.
    pub fn at(mut self, generation: u64) -> Conditions {
        self.options.generations.get_or_insert_with(|| vec![generation]);
        self
    }

    /// Whether nothing is to be changed.
    pub fn is_dry_run(&self) -> bool {
        self.is_dry_run
    }

    /// Makes a change. Its permits are held until it is done or given up, even if the client disconnects.
    pub async fn make(self, state: &AppState, change: Change, room: BodyPermit) -> Result<Changed, ApiError> {
        let hold = Box::new((state.limits.change()?, room));
        if self.is_dry_run {
            let changed = Changed::new(state.handle.diff(change, self.options, hold).await??);
            return Ok(Changed { is_dry_run: true, ..changed });
        }
        let named: Vec<String> = change.ports().map(str::to_owned).collect();
        let result = state.handle.change(change, self.options, hold).await??;
        let Some(wait) = self.wait else { return Ok(Changed::new(result)) };
        let differences = result.differences.iter().filter(|of| of.kind == Entity::Port && !of.after.is_null());
        let ids = differences.map(|of| of.id.clone()).chain(named).collect();
        let not_active = Some(await_active(state, ids, wait).await?);
        let answer = ChangeAnswer { result, not_active };
        Ok(Changed { answer, status: StatusCode::OK, is_dry_run: false })
    }
}

/// Waits until these ports are ACTIVE, administratively down, or removed. Returns those that are not ACTIVE.
async fn await_active(state: &AppState, ids: HashSet<String>, wait: Duration) -> Result<Vec<NotActive>, ApiError> {
    let mut events = state.handle.subscribe().await?;
    let mut left = Vec::new();
    let active = async {
        loop {
            let there = state.handle.ports_of(ids.clone()).await?;
            let mut removed = ids.clone();
            for port in &there {
                removed.remove(&port.port_id);
            }
            let inactive: Vec<PortView> = there.into_iter().filter(|port| port.status != Status::Active).collect();
            let is_settled = inactive.iter().all(|port| !port.admin_state_up);
            left = inactive.into_iter().map(NotActive::of).chain(removed.into_iter().map(NotActive::removed)).collect();
            if is_settled {
                return Ok(());
            }
            // A port that comes up, or is removed, has an event.
            if events.changed().await.is_err() {
                return Ok(());
            }
        }
    };
    if let Ok(Err(error)) = timeout(wait, active).await {
        return Err(error);
    }
    Ok(left)
}

/// A port that was waited for in vain.
#[derive(Debug, Serialize, ToSchema)]
pub struct NotActive {
    /// Its id.
    port_id: String,
    /// Its status.
    status: Status,
    /// Why, for programs.
    #[schema(value_type = ReasonCode)]
    status_code: String,
    /// Why.
    status_reason: String,
}

impl NotActive {
    fn of(port: PortView) -> NotActive {
        let PortView { port_id, status, status_code, status_reason, .. } = port;
        NotActive { port_id, status, status_code, status_reason }
    }

    /// A port that others have removed since the change.
    fn removed(port_id: String) -> NotActive {
        NotActive {
            port_id,
            status: Status::Down,
            status_code: ReasonCode::Removed.name().to_owned(),
            status_reason:
                "removed since this change, by a later one or because its namespace ended; `vifswitch history` \
                            and the events of the port name who did it"
                    .to_owned(),
        }
    }
}

/// The answer to a change.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangeAnswer {
    #[serde(flatten)]
    result: ChangeResult,
    /// With `wait`: the ports concerned that are not ACTIVE, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_active: Option<Vec<NotActive>>,
}

/// The answer to a change, with its status and generation.
#[derive(Debug)]
pub struct Changed {
    answer: ChangeAnswer,
    status: StatusCode,
    is_dry_run: bool,
}

impl Changed {
    fn new(result: ChangeResult) -> Changed {
        let answer = ChangeAnswer { result, not_active: None };
        Changed { answer, status: StatusCode::OK, is_dry_run: false }
    }

    /// The result.
    pub fn into_result(self) -> ChangeResult {
        self.answer.result
    }

    /// 201 if it has made this entity.
    pub fn or_created(mut self, kind: Entity, id: &str) -> Changed {
        let is_new = |of: &Difference| of.kind == kind && of.id == id && of.key.is_none() && !of.after.is_null();
        if !self.is_dry_run && self.answer.result.differences.iter().any(is_new) {
            self.status = StatusCode::CREATED;
        }
        self
    }

    /// 204 if nothing was there to delete.
    pub fn or_gone(mut self) -> Changed {
        if self.answer.result.changes.is_empty() {
            self.status = StatusCode::NO_CONTENT;
        }
        self
    }
}

/// `ETag` of a generation.
pub fn etag(generation: u64) -> [(HeaderName, HeaderValue); 1] {
    // Digits and quotes are valid in a header.
    let value = HeaderValue::from_str(&format!("\"{generation}\"")).unwrap_or(HeaderValue::from_static("\"\""));
    [(header::ETAG, value)]
}

impl IntoResponse for Changed {
    fn into_response(self) -> Response {
        let tag = etag(self.answer.result.generation);
        match self.status {
            StatusCode::NO_CONTENT => (self.status, tag).into_response(),
            status => (status, tag, Json(self.answer)).into_response(),
        }
    }
}
