//! OpenAPI description of the API, generated from handlers and types. What all operations have in common is added by
//! `complete`: operation ids, errors, headers, examples.

use std::sync::LazyLock;

use axum::Json;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::error::PROBLEM_JSON;
use super::{entity_routes, event_stream, health_routes, history_routes, log_routes, read_routes, write_routes};

#[derive(OpenApi)]
#[openapi(
    info(title = "vifswitch", description = "The API of a vifswitch, at its unix socket."),
    servers((url = "http://vifswitch")),
    tags(
        (name = "state", description = "What is"),
        (name = "configuration", description = "The desired state as a whole"),
        (name = "ports", description = "The desired state, port by port and VM by VM"),
        (name = "networks", description = "The desired state: networks and uplinks"),
        (name = "events", description = "What happened")
    ),
    paths(
        read_routes::ports,
        read_routes::port,
        read_routes::uplinks,
        read_routes::vms,
        read_routes::networks,
        read_routes::fdb,
        read_routes::workers,
        read_routes::drops,
        read_routes::loops,
        read_routes::storms,
        read_routes::audit,
        read_routes::configuration,
        read_routes::metrics,
        write_routes::apply,
        write_routes::diff,
        write_routes::unconfirmed,
        write_routes::confirm,
        write_routes::cancel,
        write_routes::attach,
        write_routes::set,
        entity_routes::put_port,
        entity_routes::delete_port,
        entity_routes::network,
        entity_routes::put_network,
        entity_routes::delete_network,
        entity_routes::uplink,
        entity_routes::put_uplink,
        entity_routes::delete_uplink,
        entity_routes::vm,
        entity_routes::put_vm,
        entity_routes::delete_vm,
        health_routes::status,
        health_routes::live,
        health_routes::ready,
        log_routes::log,
        log_routes::set_log,
        history_routes::history,
        history_routes::generation,
        history_routes::rollback,
        write_routes::release,
        write_routes::flush,
        event_stream::events,
        page,
    )
)]
struct Document;

/// Examples by operation id: `request`, and `response` of its success.
const EXAMPLES: &str = include_str!("examples.json");

/// Path of the schema of an error.
const ERROR: &str = "#/components/schemas/ErrorBody";

/// The description, which is the same for the whole life of the process.
static DESCRIPTION: LazyLock<Value> = LazyLock::new(|| {
    // Serialising fails only for maps with keys that are no strings.
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    let examples: Map<String, Value> = serde_json::from_str(EXAMPLES).unwrap_or_default();
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let id = operation_id(method, path);
            complete(operation, method != "get", examples.get(&id).unwrap_or(&Value::Null));
            operation["operationId"] = id.into();
        }
    }
    document
});

/// The description of all requests and responses.
pub fn description() -> &'static Value {
    &DESCRIPTION
}

/// Id of an operation: its method, and the nouns of its path, in the singular where an id follows. `put_port`,
/// `get_ports`, `post_vm_ports`, `post_port_release`.
fn operation_id(method: &str, path: &str) -> String {
    let path = path.trim_start_matches("/v1").trim_start_matches('/').replace(".json", "");
    let segments: Vec<&str> = path.split('/').collect();
    let noun = |(index, segment): (usize, &&str)| {
        let is_followed_by_id = segments.get(index + 1).is_some_and(|next| next.starts_with('{'));
        let noun = match *segment {
            "history" if is_followed_by_id => "generation",
            segment if is_followed_by_id => segment.trim_end_matches('s'),
            segment => segment,
        };
        (!segment.starts_with('{')).then(|| noun.to_owned())
    };
    let nouns = segments.iter().enumerate().filter_map(noun);
    std::iter::once(method.to_owned()).chain(nouns).collect::<Vec<_>>().join("_")
}

/// Adds to an operation what it has in common with others, and its examples.
fn complete(operation: &mut Value, is_write: bool, examples: &Value) {
    let has_parameter = |operation: &Value, name: &str| {
        operation["parameters"].as_array().is_some_and(|all| all.iter().any(|parameter| parameter["name"] == name))
    };
    // Writes of the desired configuration.
    if is_write && has_parameter(operation, "dry_run") {
        let condition = json!({
            "name": "If-Match", "in": "header", "required": false, "schema": { "type": "string" },
            "description": "refuse the change (412) unless the desired configuration has this generation, in quotes",
        });
        operation["parameters"].as_array_mut().into_iter().for_each(|all| all.push(condition.clone()));
    }
    let is_paged = has_parameter(operation, "limit") && has_parameter(operation, "after");
    if let Some(content) = operation.pointer_mut("/requestBody/content/application~1json") {
        add_example(content, &examples["request"]);
    }
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if let Some(content) = response["content"].as_object_mut() {
            let is_error = content.get("application/json").is_some_and(|of| of["schema"]["$ref"] == ERROR);
            if is_error && let Some(body) = content.remove("application/json") {
                content.insert(PROBLEM_JSON.to_owned(), body);
            }
            if status.starts_with('2') {
                content.values_mut().for_each(|content| add_example(content, &examples["response"]));
            }
        }
        if is_paged && status == "200" {
            response["headers"]["Link"] = json!({
                "schema": { "type": "string" },
                "description": "the next page, if there is one: `<URL>; rel=\"next\"`",
            });
        }
        if response["description"].as_str().unwrap_or_default().is_empty() {
            response["description"] = if status.starts_with('2') { "done" } else { "refused" }.into();
        }
    }
    operation["responses"]["default"] = json!({
        "description": "refused, for example as there are too many requests (429)",
        "content": { PROBLEM_JSON: { "schema": { "$ref": ERROR } } },
    });
}

fn add_example(content: &mut Value, example: &Value) {
    if !example.is_null() {
        content["example"] = example.clone();
    }
}

/// This description
#[utoipa::path(get, path = "/v1/openapi.json", tag = "state", responses((status = 200, body = Object)))]
pub async fn page() -> Json<&'static Value> {
    Json(description())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_their_own_ids() {
        for (method, path, id) in [
            ("get", "/v1/ports", "get_ports"),
            ("get", "/v1/ports/{id}", "get_port"),
            ("post", "/v1/vms/{id}/ports", "post_vm_ports"),
            ("post", "/v1/ports/{id}/release", "post_port_release"),
            ("get", "/v1/openapi.json", "get_openapi"),
            ("get", "/v1/history/{id}", "get_generation"),
            ("get", "/metrics", "get_metrics"),
        ] {
            assert_eq!(operation_id(method, path), id);
        }
    }

    #[test]
    fn each_example_is_of_an_operation() {
        let examples: Map<String, Value> = serde_json::from_str(EXAMPLES).unwrap();
        let operations =
            description()["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap());
        let ids: Vec<&Value> = operations.map(|(_, operation)| &operation["operationId"]).collect();
        for id in examples.keys() {
            assert!(ids.iter().any(|known| *known == id), "{id}");
        }
        assert!(ids.len() > 30);
        assert!(ids.iter().enumerate().all(|(at, id)| !ids[..at].contains(id)), "{ids:?}");
    }
}
