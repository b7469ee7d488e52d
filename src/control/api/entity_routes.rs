//! Routes that put, delete and read single entities. Each write is idempotent: an equal repeat changes nothing, and what is
//! gone is deleted.

use std::convert::Infallible;
use std::future::Future;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::AppState;
use super::body::{CONFIGURATION, REQUEST, RequestBody};
use super::conditions::{ChangeAnswer, ChangeQuery, Changed, Conditions, etag};
use super::error::{ApiError, ErrorBody};
use super::read_routes::Name;
use super::write_routes::BODY;
use crate::control::api::handle::ShuttingDown;
use crate::control::api::responses::{NetworkView, UplinkView, VmView};
use crate::control::config::{self, ConfigErrors, kind, raw};
use crate::control::desired::change::Change;
use crate::control::desired::diff::Entity;
use crate::control::problem::Subject;

/// A request to write the entity whose id is in its path.
pub struct Write {
    state: AppState,
    id: Name,
    query: ChangeQuery,
    headers: HeaderMap,
    body: Body,
}

impl FromRequest<AppState> for Write {
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &AppState) -> Result<Write, Infallible> {
        let (mut parts, body) = request.into_parts();
        let id = Path::from_request_parts(&mut parts, state).await;
        let query = Query::from_request_parts(&mut parts, state).await;
        Ok(Write { state: state.clone(), id, query, headers: parts.headers, body })
    }
}

impl Write {
    /// The id, which must be one of an entity of this kind.
    fn take_id(&mut self, of: Entity) -> Result<String, ApiError> {
        let id = std::mem::replace(&mut self.id, Ok(Path(String::new())));
        let wrong =
            |why: &str| ApiError::wrong(kind::BAD_VALUE, format!("the {}'s id in the path is {why}", of.noun()));
        let Ok(Path(id)) = id else { return Err(wrong("not UTF-8")) };
        config::wrong_id(&id).map_or(Ok(id), |why| Err(wrong(&why)))
    }

    /// Makes the entity as the body says, which `parse` reads.
    async fn put<T: Send + 'static>(
        mut self,
        of: Entity,
        limit: usize,
        parse: fn(&str, &str, &str) -> Result<T, ConfigErrors>,
        change: impl FnOnce(String, T) -> Change,
    ) -> Result<Changed, ApiError> {
        let id = self.take_id(of)?;
        let Write { state, query, headers, body, .. } = self;
        let conditions = Conditions::of(query, &headers)?;
        let text = RequestBody::receive(&headers, body, limit, &state.limits).await?;
        let parsed = id.clone();
        let made = async {
            let (entity, room) = text.read(move |text| Ok(parse(text, BODY, &parsed)?)).await?;
            conditions.make(&state, change(id.clone(), entity), room).await
        };
        Ok(made.await.map_err(|error| error.of(&subject(of, &id)))?.or_created(of, &id))
    }

    /// Deletes the entity.
    async fn delete(mut self, of: Entity, change: impl FnOnce(String) -> Change) -> Result<Changed, ApiError> {
        let id = self.take_id(of)?;
        let change = change(id.clone());
        let made = Conditions::of(self.query, &self.headers)?.make(&self.state, change, None).await;
        Ok(made.map_err(|error| error.of(&subject(of, &id)))?.or_gone())
    }
}

/// The entity with this id.
fn subject(of: Entity, id: &str) -> Subject {
    match of {
        Entity::Switch => Subject::default(),
        Entity::Network => Subject::network(id),
        Entity::Vm => Subject::vm(id),
        Entity::Port => Subject::port(id),
        Entity::Uplink => Subject::uplink(id),
    }
}

/// Makes a port as given, new or not
///
/// Keys that are absent have their defaults. `device_id` names its VM, which is created if it is new. The port keeps its place
/// among the VM's ports, or comes after the last one, unless it has a `position`.
#[utoipa::path(put, path = "/v1/ports/{id}", tag = "ports", request_body = raw::PortOfVm,
    params(("id" = String, Path, description = "the port"), ("dry_run" = Option<bool>, Query, description = "change nothing"),
        ("wait" = Option<u64>, Query, description = "seconds to wait until it is ACTIVE, 1 to 300")),
    responses((status = 200, body = ChangeAnswer), (status = 201, body = ChangeAnswer), (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn put_port(write: Write) -> Result<Changed, ApiError> {
    write.put(Entity::Port, REQUEST, config::parse_port_json, |_, (vm, port)| Change::PutPort { vm, port }).await
}

/// Detaches a port; its siblings keep their order
#[utoipa::path(delete, path = "/v1/ports/{id}", tag = "ports",
    params(("id" = String, Path, description = "the port"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 204, description = "there is none"),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn delete_port(write: Write) -> Result<Changed, ApiError> {
    write.delete(Entity::Port, |port| Change::Detach { port }).await
}

/// Makes a network as given, new or not
#[utoipa::path(put, path = "/v1/networks/{id}", tag = "networks", request_body = raw::Network,
    params(("id" = String, Path, description = "the network"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 201, body = ChangeAnswer), (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn put_network(write: Write) -> Result<Changed, ApiError> {
    write.put(Entity::Network, REQUEST, config::parse_network_json, |_, network| Change::PutNetwork(network)).await
}

/// Deletes a network that nothing uses
#[utoipa::path(delete, path = "/v1/networks/{id}", tag = "networks",
    params(("id" = String, Path, description = "the network"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 204, description = "there is none"),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn delete_network(write: Write) -> Result<Changed, ApiError> {
    write.delete(Entity::Network, Change::DeleteNetwork).await
}

/// Makes an uplink as given, new or not
#[utoipa::path(put, path = "/v1/uplinks/{id}", tag = "networks", request_body = raw::Uplink,
    params(("id" = String, Path, description = "the uplink"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 201, body = ChangeAnswer), (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn put_uplink(write: Write) -> Result<Changed, ApiError> {
    write.put(Entity::Uplink, REQUEST, config::parse_uplink_json, |_, uplink| Change::PutUplink(uplink)).await
}

/// Deletes an uplink
#[utoipa::path(delete, path = "/v1/uplinks/{id}", tag = "networks",
    params(("id" = String, Path, description = "the uplink"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 204, description = "there is none"),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn delete_uplink(write: Write) -> Result<Changed, ApiError> {
    write.delete(Entity::Uplink, Change::DeleteUplink).await
}

/// Gives a VM these settings, new or not; with `ports`, also these ports in their order
///
/// Without `ports` it keeps those that it has.
#[utoipa::path(put, path = "/v1/vms/{id}", tag = "ports", request_body = raw::Vm,
    params(("id" = String, Path, description = "the VM: Neutron's device_id"),
        ("dry_run" = Option<bool>, Query, description = "change nothing"),
        ("wait" = Option<u64>, Query, description = "seconds to wait until its ports are ACTIVE, 1 to 300")),
    responses((status = 200, body = ChangeAnswer), (status = 201, body = ChangeAnswer), (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn put_vm(write: Write) -> Result<Changed, ApiError> {
    write
        .put(Entity::Vm, CONFIGURATION, config::parse_vm_json, |vm, (settings, ports)| Change::PutVm {
            vm,
            settings,
            ports,
        })
        .await
}

/// Deletes a VM with its ports
#[utoipa::path(delete, path = "/v1/vms/{id}", tag = "ports",
    params(("id" = String, Path, description = "the VM"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 204, description = "there is none"),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn delete_vm(write: Write) -> Result<Changed, ApiError> {
    write.delete(Entity::Vm, Change::DeleteVm).await
}

/// One network
#[utoipa::path(get, path = "/v1/networks/{id}", tag = "state", params(("id" = String, Path, description = "the network")),
    responses((status = 200, body = NetworkView), (status = 404, body = ErrorBody)))]
pub async fn network(State(state): State<AppState>, id: Name) -> Result<Response, ApiError> {
    one(&state, (Entity::Network, "unknown_network"), id, state.handle.networks(), |network: &NetworkView| {
        &network.network_id
    })
    .await
}

/// One uplink
#[utoipa::path(get, path = "/v1/uplinks/{id}", tag = "state", params(("id" = String, Path, description = "the uplink")),
    responses((status = 200, body = UplinkView), (status = 404, body = ErrorBody)))]
pub async fn uplink(State(state): State<AppState>, id: Name) -> Result<Response, ApiError> {
    one(&state, (Entity::Uplink, "unknown_uplink"), id, state.handle.uplinks(), |uplink: &UplinkView| &uplink.uplink_id)
        .await
}

/// One VM
#[utoipa::path(get, path = "/v1/vms/{id}", tag = "state", params(("id" = String, Path, description = "the VM")),
    responses((status = 200, body = VmView), (status = 404, body = ErrorBody)))]
pub async fn vm(State(state): State<AppState>, id: Name) -> Result<Response, ApiError> {
    one(&state, (Entity::Vm, "unknown_vm"), id, state.handle.vms(), |vm: &VmView| &vm.device_id).await
}

/// The item with the id in the path, with the generation that it has at least. `unknown`: its kind, and that of the error.
async fn one<T: Serialize>(
    state: &AppState,
    (of, unknown): (Entity, &'static str),
    id: Name,
    items: impl Future<Output = Result<Vec<T>, ShuttingDown>>,
    id_of: fn(&T) -> &String,
) -> Result<Response, ApiError> {
    let noun = of.noun();
    let Ok(Path(id)) = id else {
        return Err(ApiError::unknown(
            unknown,
            format!("the {noun}'s id in the path is not UTF-8; escape it as UTF-8"),
        ));
    };
    let generation = state.handle.generation().await?;
    match items.await?.into_iter().find(|item| *id_of(item) == id) {
        Some(item) => Ok((etag(generation), Json(item)).into_response()),
        None => {
            let message = format!("no such {noun} {id:?}; `vifswitch show {}s` lists them", noun.to_lowercase());
            Err(ApiError::unknown(unknown, message).of(&subject(of, &id)))
        }
    }
}
