//! The OpenAPI 3.1 document: the routes come from the table of rules, the schemas from
//! `schemas.json`, so a route cannot be missing from it.

use axum::Json;
use serde_json::{Map, Value, json};

use super::rules::{Access, Answer, Body, Rule, rules};
use crate::access::Role;

/// The schemas of all documents, as JSON Schema.
const SCHEMAS: &str = include_str!("schemas.json");

pub(super) async fn serve() -> Json<Value> {
    Json(document())
}

/// The whole document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for rule in rules() {
        let item = paths.entry(rule.path).or_insert_with(|| json!({}));
        item[rule.method.as_str().to_lowercase()] = operation(&rule);
    }
    let schemas: Value = serde_json::from_str(SCHEMAS).expect("a test parses it");
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tributary coordinator",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(rule: &Rule) -> Value {
    let mut operation = json!({
        "operationId": operation_id(rule),
        "summary": rule.summary,
        "responses": {
            "200": { "description": "Done.", "content": content(rule.answer) },
            "default": { "description": "Refused.", "content": json_content(&reference("Error")) },
        },
    });
    let parameters: Vec<Value> = rule
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
        })
        .chain((rule.path == "/v1/audit").then(page_parameters).into_iter().flatten())
        .chain(matches!(rule.body, Body::Toml).then(start_parameter))
        .chain((rule.path == "/v1/jobs/{job}/resume").then(version_parameter))
        .collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    match rule.body {
        Body::None => {}
        Body::Json(schema) => {
            operation["requestBody"] =
                json!({ "required": true, "content": json_content(&reference(schema)) });
        }
        Body::Toml => {
            let content = json!({ "application/toml": { "schema": { "type": "string" } } });
            operation["requestBody"] = json!({ "required": true, "content": content });
        }
    }
    if let Access::Roles(roles) = rule.access {
        let names = roles.iter().chain([&Role::Administrator]).map(|role| role.name());
        operation["security"] = json!([{ "token": names.collect::<Vec<_>>() }]);
    }
    operation
}

fn page_parameters() -> [Value; 2] {
    let parameter = |name: &str, description: &str, schema: Value| {
        json!({
            "name": name, "in": "query", "required": false,
            "description": description, "schema": schema,
        })
    };
    let last = json!({ "type": "integer", "minimum": 0, "maximum": 10_000, "default": 100 });
    let before = json!({ "type": "integer", "minimum": 1 });
    [
        parameter("last", "How many entries at most.", last),
        parameter("before", "Only entries with a smaller number: the page before.", before),
    ]
}

fn version_parameter() -> Value {
    json!({
        "name": "from_version", "in": "query", "required": false,
        "description": "The version of the job's model to go on from; the newest if not given.",
        "schema": { "type": "integer", "minimum": 0 },
    })
}

fn start_parameter() -> Value {
    json!({
        "name": "start_from", "in": "query", "required": false,
        "description": "Digest of a registered model of the same shape to start from.",
        "schema": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
    })
}

/// `get-v1-jobs-job-rounds`: stable, and unique because method and path are.
fn operation_id(rule: &Rule) -> String {
    let path = rule.path.replace(['/', '{', '}', '.'], "-");
    let words = path.split('-').filter(|word| !word.is_empty());
    let method = rule.method.as_str().to_lowercase();
    std::iter::once(method.as_str()).chain(words).collect::<Vec<_>>().join("-")
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn json_content(schema: &Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

fn content(answer: Answer) -> Value {
    match answer {
        Answer::Json(schema) => json_content(&reference(schema)),
        Answer::List(schema) => {
            json_content(&json!({ "type": "array", "items": reference(schema) }))
        }
        Answer::Page => json!({ "text/html": {} }),
        Answer::Events => json!({ "text/event-stream": { "schema": { "type": "string" } } }),
        Answer::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
        Answer::Bytes => json!({ "application/octet-stream": {} }),
    }
}
