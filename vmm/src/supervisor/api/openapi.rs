//! The OpenAPI description, made of the table of routes and of the types.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::metrics;
use super::model::{
    Device, Error, Event, Explanation, LinkRequest, NoFields, ResizeRequest, Resized, SwapRequest,
    Swapped, Vm,
};
use super::route::{ROWS, Route, Row};
use super::stream;

/// The description.
pub(super) fn description() -> Value {
    let mut schemas = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .for_serialize()
        .into_generator();
    let mut paths = Map::new();
    for row in ROWS {
        let operation = operation(row, &mut schemas);
        let path = paths.entry(row.path).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(row.method.to_lowercase(), operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Outboard's control API",
            "version": outboard_version::VERSION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

fn operation(row: &Row, schemas: &mut SchemaGenerator) -> Value {
    let (status, response) = response(row.route, schemas);
    let error = content("application/json", &schemas.subschema_for::<Error>());
    let mut operation = Map::new();
    let mut say = |word: &str, value| operation.insert(word.to_owned(), value);
    say(
        "operationId",
        format!("{:?}", row.route).to_lowercase().into(),
    );
    say("summary", row.summary.into());
    say(
        "responses",
        json!({
            status: response,
            "default": { "description": "It was not done", "content": error },
        }),
    );
    if row.path.contains("{id}") {
        let id = json!({
            "name": "id",
            "in": "path",
            "required": true,
            "description": "The id of a device",
            "schema": { "type": "string" },
        });
        say("parameters", json!([id]));
    }
    if row.method == "PUT" {
        let schema = match row.route {
            Route::Swap => schemas.subschema_for::<SwapRequest>(),
            Route::Resize => schemas.subschema_for::<ResizeRequest>(),
            Route::Link => schemas.subschema_for::<LinkRequest>(),
            _ => schemas.subschema_for::<NoFields>(),
        };
        let body = content("application/json", &schema);
        say("requestBody", json!({ "required": false, "content": body }));
    }
    operation.into()
}

/// The status of what went well, and what is answered.
fn response(route: Route, schemas: &mut SchemaGenerator) -> (&'static str, Value) {
    let (kind, schema) = match route {
        Route::Pause
        | Route::Resume
        | Route::Shutdown
        | Route::Restart
        | Route::Link
        | Route::PauseDevice
        | Route::ResumeDevice => {
            let done = json!({ "description": "It is done, or has begun" });
            return ("204", done);
        }
        Route::Vm => (JSON, schemas.subschema_for::<Vm>()),
        Route::Devices => (JSON, schemas.subschema_for::<Vec<Device>>()),
        Route::Device => (JSON, schemas.subschema_for::<Device>()),
        Route::Swap => (JSON, schemas.subschema_for::<Swapped>()),
        Route::Resize => (JSON, schemas.subschema_for::<Resized>()),
        Route::Explain => (JSON, schemas.subschema_for::<Explanation>()),
        // Of each line.
        Route::Events => (stream::CONTENT, schemas.subschema_for::<Event>()),
        Route::Metrics => (metrics::CONTENT, schemas.subschema_for::<String>()),
        Route::OpenApi => (JSON, schemas.subschema_for::<Map<String, Value>>()),
    };
    let content = content(kind, &schema);
    (
        "200",
        json!({ "description": "What was asked for", "content": content }),
    )
}

const JSON: &str = "application/json";

fn content(kind: &str, schema: &schemars::Schema) -> Value {
    json!({ kind: { "schema": schema } })
}
