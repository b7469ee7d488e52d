//! What can be changed. An answer comes when the change is true on every worker.

use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::Desk;
use super::body::{CONFIGURATION, REQUEST, Room, Text};
use super::pages::{Name, port_id};
use super::problem::{Failure, Problem};
use crate::control::change::{Change, Changed};
use crate::control::config::{self, Config, SwitchSettings, kind, written};
use crate::control::handle::Flush;
use crate::control::view::{Attached, Flushed};

/// What problems call the body of a request.
const BODY: &str = "body";

/// The longest time that a change may wait to be confirmed, in seconds: a day.
const LONGEST_WAIT: u64 = 86_400;

type Done = Result<Json<Changed>, Problem>;

/// The query of `PUT /v1/config`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirming {
    confirm: Option<String>,
}

/// The query of what takes none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plain {}

/// Makes this configuration the one in force, in one step or not at all
///
/// Without `switch` the settings of the process stay; with it they must be what they are, since they
/// are fixed at start. With `confirm` the change is taken back unless `POST /v1/confirm` comes in time.
#[utoipa::path(put, path = "/v1/config", tag = "configuration", request_body = written::Config,
    params(("confirm" = Option<u64>, Query, description = "seconds, 1 to 86400")),
    responses((status = 200, body = Changed), (status = "4XX", body = Failure), (status = 503, body = Failure)))]
pub async fn apply(
    State(desk): State<Desk>,
    query: Result<Query<Confirming>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Done {
    let confirm = query_of(query)?.confirm.map(|text| match text.parse() {
        Ok(seconds @ 1..=LONGEST_WAIT) => Ok(Duration::from_secs(seconds)),
        _ => Err(Problem::wrong(
            "bad_query",
            format!("confirm = {text:?}: a whole number of seconds belongs here, 1 to {LONGEST_WAIT}"),
        )),
    });
    let confirm = confirm.transpose()?;
    let (change, room) = wanted(&desk, &headers, body).await?;
    make(&desk, change, confirm, room).await
}

/// What would change if this configuration were put in force; nothing is done
#[utoipa::path(post, path = "/v1/config/diff", tag = "configuration", request_body = written::Config,
    responses((status = 200, body = Changed), (status = "4XX", body = Failure), (status = 503, body = Failure)))]
pub async fn diff(
    State(desk): State<Desk>,
    query: Result<Query<Plain>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Done {
    query_of(query)?;
    let (change, room) = wanted(&desk, &headers, body).await?;
    let hold = Box::new((desk.bounds.change()?, room));
    Ok(Json(desk.handle.diff_holding(change, hold).await??))
}

/// Keeps the change that waits to be confirmed
#[utoipa::path(post, path = "/v1/confirm", tag = "configuration",
    responses((status = 200, body = Changed), (status = 409, body = Failure), (status = 503, body = Failure)))]
pub async fn confirm(State(desk): State<Desk>) -> Done {
    let hold = Box::new(desk.bounds.change()?);
    Ok(Json(desk.handle.confirm_holding(hold).await??))
}

/// One port, or several in their order.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
// Only its shape is used: what has it is read by the configuration's reader.
#[allow(dead_code, clippy::large_enum_variant)]
pub enum PortOrPorts {
    /// One port.
    One(written::Port),
    /// Several, in their order.
    Several(Vec<written::Port>),
}

/// Attaches ports to a VM, behind those that it has; an unknown VM is a new one
///
/// All of them or none. A port may name its VM with `device_id`, which must be the one in the path.
#[utoipa::path(post, path = "/v1/vms/{id}/ports", tag = "ports", request_body = PortOrPorts,
    params(("id" = String, Path, description = "the VM: Neutron's device_id")),
    responses((status = 201, body = Attached), (status = "4XX", body = Failure), (status = 503, body = Failure)))]
pub async fn attach(
    State(desk): State<Desk>,
    vm: Name,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Attached>), Problem> {
    let vm = match vm {
        Ok(Path(vm)) => vm,
        Err(_) => return Err(Problem::wrong(kind::BAD_VALUE, "the VM's id in the path is not UTF-8")),
    };
    if let Some(wrong) = config::wrong_id(&vm) {
        return Err(Problem::wrong(kind::BAD_VALUE, format!("the VM's id in the path is {wrong}")));
    }
    let text = Text::receive(&headers, body, REQUEST, &desk.bounds).await?;
    let owner = vm.clone();
    let (ports, room) = text.read(move |text| Ok(config::parse_ports_json(text, BODY, &owner)?)).await?;
    let ids: HashSet<String> = ports.iter().map(|port| port.port_id.clone()).collect();
    let Json(Changed { differences, remarks }) = make(&desk, Change::Attach { vm, ports }, None, room).await?;
    // It is done; that the switch is leaving since then does not undo it.
    let mut ports = desk.handle.ports().await.unwrap_or_default();
    ports.retain(|port| ids.contains(&port.port_id));
    Ok((StatusCode::CREATED, Json(Attached { differences, remarks, ports })))
}

/// Changes some keys of a port; those that are not given stay as they are
///
/// A key that is `null` becomes what it is in a file that does not have it: its default.
#[utoipa::path(patch, path = "/v1/ports/{id}", tag = "ports", request_body = written::PortPatch,
    params(("id" = String, Path, description = "the port")),
    responses((status = 200, body = Changed), (status = "4XX", body = Failure), (status = 503, body = Failure)))]
pub async fn set(State(desk): State<Desk>, id: Name, headers: HeaderMap, body: Body) -> Done {
    let port = port_id(id)?;
    let text = Text::receive(&headers, body, REQUEST, &desk.bounds).await?;
    let (keys, room) = text.read(|text| Ok(config::parse_port_keys_json(text, BODY)?)).await?;
    make(&desk, Change::Set { port, keys }, None, room).await
}

/// Detaches a port; its siblings keep their order
#[utoipa::path(delete, path = "/v1/ports/{id}", tag = "ports",
    params(("id" = String, Path, description = "the port")),
    responses((status = 200, body = Changed), (status = "4XX", body = Failure), (status = 503, body = Failure)))]
pub async fn detach(State(desk): State<Desk>, id: Name) -> Done {
    let port = port_id(id)?;
    make(&desk, Change::Detach { port }, None, None).await
}

/// Lifts whatever measure holds a port
#[utoipa::path(post, path = "/v1/ports/{id}/release", tag = "ports",
    params(("id" = String, Path, description = "the port")),
    responses((status = 200, body = Changed), (status = "4XX", body = Failure), (status = 503, body = Failure)))]
pub async fn release(State(desk): State<Desk>, id: Name) -> Done {
    let port = port_id(id)?;
    let hold = Box::new(desk.bounds.change()?);
    Ok(Json(desk.handle.release_holding(port, hold).await??))
}

/// Which stations to forget.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlushRequest {
    /// Those of this network.
    network_id: Option<String>,
    /// Those behind this port or uplink.
    port_id: Option<String>,
    /// This one.
    mac_address: Option<String>,
}

/// Forgets learned stations: those to which all that is given applies, and all of them without a body
#[utoipa::path(post, path = "/v1/fdb/flush", tag = "state", request_body = Option<FlushRequest>,
    responses((status = 200, body = Flushed), (status = "4XX", body = Failure), (status = 503, body = Failure)))]
pub async fn flush(State(desk): State<Desk>, headers: HeaderMap, body: Body) -> Result<Json<Flushed>, Problem> {
    let text = Text::receive(&headers, body, REQUEST, &desk.bounds).await?;
    let (flush, room) = text.read(flush_of).await?;
    let hold = Box::new((desk.bounds.change()?, room));
    let flushed = desk.handle.flush_holding(flush, hold).await??;
    Ok(Json(Flushed { flushed }))
}

fn flush_of(text: &str) -> Result<Flush, Problem> {
    let wanted = match text {
        "" => FlushRequest::default(),
        text => serde_json::from_str(text).map_err(|e| {
            let kind = if e.is_data() { kind::BAD_VALUE } else { kind::SYNTAX };
            Problem::wrong(kind, format!("{BODY}: {e}"))
        })?,
    };
    let FlushRequest { network_id: network, port_id: port, mac_address } = wanted;
    let mac = mac_address.map(|text| {
        text.parse().map_err(|e| Problem::wrong(kind::BAD_VALUE, format!("{BODY}: mac_address = {text:?}: {e}")))
    });
    Ok(Flush { network, port, mac: mac.transpose()? })
}

fn query_of<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    match query {
        Ok(Query(query)) => Ok(query),
        Err(e) => Err(Problem::wrong("bad_query", e.body_text())),
    }
}

/// The change to the configuration in the body.
async fn wanted(desk: &Desk, headers: &HeaderMap, body: Body) -> Result<(Change, Room), Problem> {
    let text = Text::receive(headers, body, CONFIGURATION, &desk.bounds).await?;
    let switch = running(desk).await?;
    let (config, room) = text.read(move |text| Ok(config::parse_json_over(text, BODY, switch)?)).await?;
    Ok((Change::Apply(config), room))
}

/// The settings of the process, which a configuration need not repeat.
async fn running(desk: &Desk) -> Result<SwitchSettings, Problem> {
    let mut config = desk.handle.config().await?;
    let switch = serde_json::json!({ "switch": config["switch"].take() }).to_string();
    let Config { switch, .. } = config::parse_json(&switch, "the configuration in force").map_err(|e| {
        // The switch could not read back what it says itself.
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string())
    })?;
    Ok(switch)
}

/// Makes a change. Its place among the changes, and the room of its body, are free when it is made or given up, and not
/// already when its client goes.
async fn make(desk: &Desk, change: Change, confirm: Option<Duration>, room: Room) -> Done {
    let hold = Box::new((desk.bounds.change()?, room));
    Ok(Json(desk.handle.change_holding(change, confirm, hold).await??))
}
