//! Measures how long answers take.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;
use tracing::{Instrument, field::Empty, info_span};

use crate::driver::telemetry;

/// The path of every request that no route takes.
const NO_ROUTE: &str = "other";

pub(super) async fn measure(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let path = path.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
    let span = info_span!("request", %method, route = path, status = Empty);
    let response = next.run(request).instrument(span.clone()).await;
    span.record("status", response.status().as_u16());
    let method = match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE") => known,
        // Anybody may send anything: that makes no series of its own.
        _ => "other",
    };
    telemetry::observe_request(method, path, response.status().as_u16(), started.elapsed());
    response
}
