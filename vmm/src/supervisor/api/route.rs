//! What can be asked for, in one table: the requests are found by it, and the OpenAPI
//! description is made of it.

use super::http::{Request, Response};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Vm,
    Pause,
    Resume,
    Shutdown,
    Devices,
    Device,
    Restart,
    PauseDevice,
    ResumeDevice,
    Swap,
    Resize,
    Link,
    Explain,
    Events,
    Metrics,
    OpenApi,
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) method: &'static str,
    /// `{id}` stands for the id of a device.
    pub(super) path: &'static str,
    pub(super) route: Route,
    /// What it does, in a line.
    pub(super) summary: &'static str,
}

/// Where the description is.
const OPENAPI: &str = "/api/v1/openapi.json";

/// All that can be asked for.
pub(super) const ROWS: &[Row] = &[
    row("GET", "/api/v1/vm", Route::Vm, "The VM and all its devices"),
    row(
        "PUT",
        "/api/v1/vm/pause",
        Route::Pause,
        "Stop the guest and its disks; answered when no image changes any more",
    ),
    row(
        "PUT",
        "/api/v1/vm/resume",
        Route::Resume,
        "Let a guest that was stopped go on, with its disks",
    ),
    row(
        "PUT",
        "/api/v1/vm/shutdown",
        Route::Shutdown,
        "End the VM in order, as SIGTERM does; answered when the end has begun",
    ),
    row("GET", "/api/v1/devices", Route::Devices, "All devices"),
    row("GET", "/api/v1/devices/{id}", Route::Device, "One device"),
    row(
        "PUT",
        "/api/v1/devices/{id}/restart",
        Route::Restart,
        "Replace the back-end of a device; answered when that has begun",
    ),
    row(
        "PUT",
        "/api/v1/devices/{id}/swap",
        Route::Swap,
        "Put another back-end in the place of one that works; answered when it serves, or the \
         former does again",
    ),
    row(
        "PUT",
        "/api/v1/devices/{id}/resize",
        Route::Resize,
        "Give a disk another size, of which the guest is told",
    ),
    row(
        "PUT",
        "/api/v1/devices/{id}/link",
        Route::Link,
        "Hold the link of a network card down, or let it be what is behind the card",
    ),
    row(
        "PUT",
        "/api/v1/devices/{id}/pause",
        Route::PauseDevice,
        "Stop the back-end of a device from taking anything; answered when it rests",
    ),
    row(
        "PUT",
        "/api/v1/devices/{id}/resume",
        Route::ResumeDevice,
        "Let the back-end of a device go on",
    ),
    row(
        "GET",
        "/api/v1/devices/{id}/explain",
        Route::Explain,
        "Whether a device can be recovered and swapped exactly, and why or why not",
    ),
    row(
        "GET",
        "/api/v1/events",
        Route::Events,
        "A line of JSON for each change of state, without end; where the VM and each device are \
         comes first",
    ),
    row(
        "GET",
        "/metrics",
        Route::Metrics,
        "The same figures as text for Prometheus (OpenMetrics 1.0)",
    ),
    row("GET", OPENAPI, Route::OpenApi, "This description"),
];

const fn row(method: &'static str, path: &'static str, route: Route, summary: &'static str) -> Row {
    Row {
        method,
        path,
        route,
        summary,
    }
}

/// Finds what a request asks for, and of which device.
///
/// # Errors
/// The response to a request for what there is not.
pub(super) fn find(request: &Request) -> Result<(Route, &str), Response> {
    let Request { method, path, .. } = request;
    let mut there = Vec::new();
    for row in ROWS {
        if let Some(id) = matches(row.path, path) {
            if row.method == method {
                return Ok((row.route, id));
            }
            there.push(row.method);
        }
    }
    if there.is_empty() {
        let text = format!("there is no {path}; GET {OPENAPI} tells what there is");
        return Err(Response::error(404, text));
    }
    let allow = there.join(", ");
    let text = format!("{path} takes {allow}, not {method}");
    Err(Response::wrong_method(text, allow))
}

/// Whether `path` is one of `pattern`: the id in it, empty if there is none.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let (mut parts, mut id) = (path.split('/'), "");
    for expected in pattern.split('/') {
        let part = parts.next()?;
        match expected {
            "{id}" if !part.is_empty() => id = part,
            _ if expected == part => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some(id)
}
