//! Spans for an OpenTelemetry collector: OTLP over HTTP, as JSON (cargo feature `otel`).
//!
//! The standard variables say where to: `OTEL_EXPORTER_OTLP_ENDPOINT` as `http://127.0.0.1:4318`,
//! `OTEL_EXPORTER_OTLP_HEADERS` as `name=value,…`, `OTEL_SERVICE_NAME`. A collector that is away or
//! slow costs spans, never a request.

use std::{
    collections::BTreeMap,
    fmt,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};
use tributary_protocol::transport::process;

/// Spans that wait for the collector; further ones are dropped.
const QUEUE: usize = 4096;

/// Spans in a request, at most.
const BATCH: usize = 512;

/// How long a span waits for company.
const PAUSE: Duration = Duration::from_secs(2);

const TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans go.
#[derive(Debug, Clone)]
pub struct Collector {
    /// The address of traces, with its path.
    address: String,
    headers: Vec<(String, String)>,
    service: String,
}

impl Collector {
    /// As the environment says; `None` if it names no collector.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let headers = variable("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default();
        let service = variable("OTEL_SERVICE_NAME");
        Some(Self::new(
            &variable("OTEL_EXPORTER_OTLP_ENDPOINT")?,
            &headers,
            service.unwrap_or_else(|| env!("CARGO_PKG_NAME").to_owned()),
        ))
    }

    fn new(endpoint: &str, headers: &str, service: String) -> Self {
        let header = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            Some((name.trim().to_owned(), value.trim().to_owned()))
        };
        let address = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        Self { address, headers: headers.split(',').filter_map(header).collect(), service }
    }

    /// A layer that sends the spans of this process; a thread of its own talks to the collector.
    #[must_use]
    pub fn layer(self) -> Traces {
        let (spans, queue) = sync_channel(QUEUE);
        std::thread::spawn(move || self.export(&queue));
        Traces { spans }
    }

    /// Sends what comes, until nobody sends spans any more.
    fn export(&self, queue: &Receiver<Value>) {
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT));
        let agent: ureq::Agent = config.build().into();
        while let Ok(first) = queue.recv() {
            let mut spans = vec![first];
            let until = Instant::now() + PAUSE;
            while spans.len() < BATCH {
                match queue.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(span) => spans.push(span),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
            let mut request = agent.post(&self.address);
            for (name, value) in &self.headers {
                request = request.header(name, value);
            }
            // Logging this would make lines about lines; the collector's own health shows it.
            let _ = request.send_json(self.document(spans));
        }
    }

    fn document(&self, spans: Vec<Value>) -> Value {
        let attribute = |key: &str, value: &str| json!({ "key": key, "value": text(value) });
        json!({ "resourceSpans": [{
            "resource": { "attributes": [
                attribute("service.name", &self.service),
                attribute("service.version", env!("CARGO_PKG_VERSION")),
            ] },
            "scopeSpans": [{ "scope": { "name": "tributary" }, "spans": spans }],
        }] })
    }
}

/// Sends every span that ends.
#[derive(Debug)]
pub struct Traces {
    spans: SyncSender<Value>,
}

/// A span that has not ended.
struct Open {
    trace: [u8; 16],
    id: [u8; 8],
    parent: Option<[u8; 8]>,
    began_ms: u64,
    clock: Instant,
    attributes: BTreeMap<&'static str, Value>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Traces {
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let Some(span) = context.span(id) else { return };
        let mut random = [0; 24];
        // Without entropy nothing is traced.
        if getrandom::fill(&mut random).is_err() {
            return;
        }
        let (mut trace, mut own) = ([0; 16], [0; 8]);
        trace.copy_from_slice(&random[..16]);
        own.copy_from_slice(&random[16..]);
        let around = span.parent();
        let around = around.as_ref().map(|parent| parent.extensions());
        let around = around.as_ref().and_then(|said| said.get::<Open>());
        let parent = around.map(|open| open.id);
        let trace = around.map_or(trace, |open| open.trace);
        let mut open = Open {
            trace,
            id: own,
            parent,
            began_ms: process::now().0,
            clock: Instant::now(),
            attributes: BTreeMap::new(),
        };
        attributes.record(&mut open);
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            values.record(open);
        }
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(open) = span.extensions_mut().remove::<Open>() else { return };
        // A full queue drops the span: tracing delays nothing.
        let _ = self.spans.try_send(open.ended(span.name()));
    }
}

impl Open {
    /// The span as OTLP writes it; 64-bit numbers are text there.
    fn ended(self, name: &str) -> Value {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let began_ns = u128::from(self.began_ms) * 1_000_000;
        let ended_ns = began_ns + self.clock.elapsed().as_nanos();
        let attributes: Vec<Value> = self
            .attributes
            .into_iter()
            .map(|(key, value)| json!({ "key": key, "value": value }))
            .collect();
        json!({
            "traceId": hex(&self.trace),
            "spanId": hex(&self.id),
            "parentSpanId": self.parent.map(|parent| hex(&parent)).unwrap_or_default(),
            "name": name,
            "kind": 1,
            "startTimeUnixNano": began_ns.to_string(),
            "endTimeUnixNano": ended_ns.to_string(),
            "attributes": attributes,
        })
    }

    fn insert(&mut self, field: &Field, value: Value) {
        self.attributes.insert(field.name(), value);
    }
}

fn text(value: &str) -> Value {
    json!({ "stringValue": value })
}

impl Visit for Open {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, json!({ "doubleValue": value }));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, json!({ "intValue": value.to_string() }));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, json!({ "intValue": value.to_string() }));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, json!({ "boolValue": value }));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, text(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, text(&format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, extract::State, http::HeaderMap, routing::post};
    use tokio::sync::mpsc;
    use tracing::info_span;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_gets_the_spans_with_their_parents_and_fields() {
        let (told, mut heard) = mpsc::channel::<(HeaderMap, Value)>(16);
        let collect = |State(told): State<mpsc::Sender<_>>, headers, Json(document)| async move {
            told.send((headers, document)).await.expect("the test listens");
        };
        let router = Router::new().route("/v1/traces", post(collect)).with_state(told);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}/", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let collector = Collector::new(&endpoint, "x-key=secret, x-odd", "test".to_owned());
        let subscriber = tracing_subscriber::registry().with(collector.layer());
        tracing::subscriber::with_default(subscriber, || {
            let session = info_span!("session", tenant = "alpha").entered();
            let transfer = info_span!("transfer", round = 3_u64, job = tracing::field::Empty);
            transfer.record("job", "census");
            drop(transfer);
            drop(session);
        });
        let (headers, document) = heard.recv().await.expect("spans");
        assert_eq!(headers["x-key"], "secret");
        let resource = &document["resourceSpans"][0];
        assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "test");
        let spans = resource["scopeSpans"][0]["spans"].as_array().expect("a list");
        let named = |name: &str| spans.iter().find(|span| span["name"] == name).expect("a span");
        let (session, transfer) = (named("session"), named("transfer"));
        assert_eq!(transfer["traceId"], session["traceId"]);
        assert_eq!(transfer["parentSpanId"], session["spanId"]);
        assert_eq!(session["parentSpanId"], "");
        assert_eq!(session["spanId"].as_str().expect("text").len(), 16);
        let time = |span: &Value, key: &str| -> u128 {
            span[key].as_str().expect("text").parse().expect("a number")
        };
        assert!(time(session, "endTimeUnixNano") >= time(transfer, "startTimeUnixNano"));
        assert_eq!(
            transfer["attributes"],
            json!([
                { "key": "job", "value": { "stringValue": "census" } },
                { "key": "round", "value": { "intValue": "3" } },
            ])
        );
    }
}
