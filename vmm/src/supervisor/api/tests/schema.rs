//! JSON against the description of the API: as much of JSON Schema as is in that. A word
//! that is not known here fails, so nothing is passed over.

use serde_json::Value;

use super::super::openapi::description;
use super::super::route::ROWS;

/// Checks a JSON response.
pub(super) fn check(description: &Value, method: &str, path: &str, status: u16, body: &Value) {
    let paths = description["paths"].as_object().unwrap();
    let matches = |pattern: &str| {
        let (pattern, path): (Vec<_>, Vec<_>) =
            (pattern.split('/').collect(), path.split('/').collect());
        let mut parts = pattern.iter().zip(&path);
        pattern.len() == path.len() && parts.all(|(a, b)| *a == "{id}" || a == b)
    };
    let operation = paths
        .iter()
        .find(|(pattern, _)| matches(pattern))
        .and_then(|(_, operations)| operations.get(method.to_lowercase()));
    let operation = operation.unwrap_or_else(|| panic!("{method} {path} is not described"));
    let responses = &operation["responses"];
    let response = responses.get(status.to_string());
    let response = response.unwrap_or(&responses["default"]);
    match response.get("content") {
        None => assert_eq!(*body, Value::Null),
        Some(content) => {
            let schema = &content["application/json"]["schema"];
            validate(description, schema, body).unwrap_or_else(|why| panic!("{path}: {why}"));
        }
    }
}

/// Checks a value.
pub(super) fn validate(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let words = schema.as_object().ok_or("a schema is an object")?;
    if words.is_empty() {
        return Err("an empty schema says nothing".into());
    }
    for (word, says) in words {
        let fits = match word.as_str() {
            "$ref" => {
                let pointer = says.as_str().unwrap().strip_prefix('#').unwrap();
                let target = root.pointer(pointer).ok_or(format!("no {pointer}"))?;
                validate(root, target, value)?;
                true
            }
            "type" => match says {
                Value::Array(types) => types.iter().any(|one| is(one, value)),
                one => is(one, value),
            },
            "properties" => {
                let fields = value.as_object().ok_or("no object")?;
                for (name, schema) in says.as_object().unwrap() {
                    if let Some(field) = value.get(name) {
                        validate(root, schema, field).map_err(|why| format!("{name}: {why}"))?;
                    }
                }
                let known = |name: &String| says.get(name).is_some();
                // Another part of the schema may know the others, in a flattened one.
                words.contains_key("oneOf")
                    || words.contains_key("const")
                    || fields.keys().all(known)
            }
            "required" => {
                let mut names = says.as_array().unwrap().iter();
                names.all(|name| value.get(name.as_str().unwrap()).is_some())
            }
            "enum" => says.as_array().unwrap().contains(value),
            "const" => says == value,
            "oneOf" => {
                let each = says.as_array().unwrap().iter();
                each.filter(|one| matches(root, one, value)).count() == 1
            }
            "anyOf" => {
                let mut each = says.as_array().unwrap().iter();
                each.any(|one| matches(root, one, value))
            }
            "items" => {
                for item in value.as_array().unwrap() {
                    validate(root, says, item)?;
                }
                true
            }
            "minimum" => value.as_u64().is_none_or(|n| n >= says.as_u64().unwrap()),
            "maximum" => value.as_u64().is_none_or(|n| n <= says.as_u64().unwrap()),
            "additionalProperties" | "description" | "format" | "title" => true,
            other => return Err(format!("`{other}` is not known to this test")),
        };
        if !fits {
            return Err(format!("{word} {says} does not fit {value}"));
        }
    }
    Ok(())
}

/// Whether one of several shapes fits, of a flattened value: it may have other fields.
fn matches(root: &Value, schema: &Value, value: &Value) -> bool {
    let mut schema = schema.clone();
    if schema.get("properties").is_some() {
        let mut value = value.clone();
        let known = schema["properties"].as_object().unwrap().clone();
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|name, _| known.contains_key(name));
        }
        schema.as_object_mut().unwrap().remove("description");
        return validate(root, &schema, &value).is_ok();
    }
    validate(root, &schema, value).is_ok()
}

fn is(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    }
}

#[test]
fn every_route_is_described_and_every_schema_is_there() {
    let description = description();
    for row in ROWS {
        let operation = &description["paths"][row.path][row.method.to_lowercase()];
        assert_eq!(operation["summary"], row.summary, "{}", row.path);
    }
    let names = [
        "Vm",
        "VmState",
        "Device",
        "DeviceState",
        "Standby",
        "QueueCounters",
        "Refused",
        "Explanation",
        "Exactness",
        "Event",
        "Error",
        "NoFields",
        "SwapRequest",
        "Swapped",
        "Served",
        "GapTimes",
        "SwapStep",
        "ResizeRequest",
        "Resized",
        "LinkRequest",
    ];
    let schemas = description["components"]["schemas"].as_object().unwrap();
    for name in names {
        let schema = schemas.get(name).unwrap_or_else(|| panic!("no {name}"));
        let about = schema.get("description").and_then(Value::as_str);
        assert!(about.is_some_and(|about| !about.is_empty()), "{name}");
    }
    assert_eq!(schemas.len(), names.len(), "{:?}", schemas.keys());
    let text = description.to_string();
    for pointer in text.split("\"#").skip(1) {
        let pointer = pointer.split('"').next().unwrap();
        assert!(description.pointer(pointer).is_some(), "{pointer}");
    }
}

#[test]
fn what_does_not_fit_is_found() {
    let root = description();
    let schema = serde_json::json!({ "$ref": "#/components/schemas/Vm" });
    let right = serde_json::to_value(super::vm()).unwrap();
    assert_eq!(validate(&root, &schema, &right), Ok(()));
    for (field, wrong) in [
        ("state", serde_json::json!("asleep")),
        ("vcpus", serde_json::json!(256)),
        ("pid", serde_json::json!("1")),
        ("devices", serde_json::json!([{ "id": "disk0" }])),
        ("shoes", serde_json::json!(2)),
    ] {
        let mut value = right.clone();
        value[field] = wrong;
        assert!(validate(&root, &schema, &value).is_err(), "{field}");
    }
    let mut value = right;
    value.as_object_mut().unwrap().remove("memory");
    assert!(validate(&root, &schema, &value).is_err());
}
