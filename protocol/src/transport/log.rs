//! Logs of the programs: lines for people, or JSON objects for machines.
//!
//! Every JSON line has the keys `at`, `level`, `target`, `message`, `tenant`, `job` and `round`; the
//! last three are null where they do not apply. What the spans around an event say counts for it too,
//! and the event's own words win.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    str::FromStr,
    sync::OnceLock,
};

use serde_json::{Map, Value};
use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use super::process;
use crate::id::TenantId;

/// The environment variable with the filter of what is logged, as `info` or `tributary_agent=debug`.
pub const FILTER_VARIABLE: &str = "TRIBUTARY_LOG";

/// The environment variable with the form of the lines.
pub const FORMAT_VARIABLE: &str = "TRIBUTARY_LOG_FORMAT";

/// The tenant of a process that has only one.
static TENANT: OnceLock<String> = OnceLock::new();

/// How lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Says that a form of lines is not known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the log format {text:?} is not known; it can be text or json")]
pub struct LogFormatError {
    /// What was asked for.
    text: String,
}

impl FromStr for LogFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogFormatError { text: other.to_owned() }),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl LogFormat {
    /// What [`FORMAT_VARIABLE`] asks for; text without it.
    ///
    /// # Errors
    /// [`LogFormatError`] naming what it holds.
    pub fn from_environment() -> Result<Self, LogFormatError> {
        match std::env::var(FORMAT_VARIABLE) {
            Ok(text) => text.parse(),
            Err(_) => Ok(Self::default()),
        }
    }
}

/// Writes the log of this process to standard error from now on, filtered by [`FILTER_VARIABLE`], or
/// `RUST_LOG`, or from `info` on.
///
/// # Panics
/// If the log was installed before.
pub fn install(format: LogFormat) {
    install_beside(None, format);
}

/// As [`install`], beside another layer that sees the same spans.
///
/// # Panics
/// If the log was installed before.
pub fn install_beside(layer: Option<Box<dyn Layer<Registry> + Send + Sync>>, format: LogFormat) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE)
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| "info".into());
    let registry = tracing_subscriber::registry().with(layer).with(filter);
    match format {
        LogFormat::Text => {
            let lines = tracing_subscriber::fmt::layer()
                .with_ansi(io::stderr().is_terminal())
                .with_writer(io::stderr);
            registry.with(lines).init();
        }
        LogFormat::Json => registry.with(JsonLines::new(io::stderr)).init(),
    }
}

/// Names the tenant of a process that has only one, for lines that name none.
pub fn name_tenant(tenant: &TenantId) {
    // Whoever enrols anew starts anew.
    let _ = TENANT.set(tenant.to_string());
}

/// Writes events as JSON.
struct JsonLines<M> {
    writer: M,
}

impl<W: Write, M: Fn() -> W> JsonLines<M> {
    const fn new(writer: M) -> Self {
        Self { writer }
    }

    fn write(&self, line: &Map<String, Value>) {
        let mut bytes = serde_json::to_vec(line).expect("plain data");
        bytes.push(b'\n');
        // In one call, so that lines of several threads do not mix; nobody hears of an error.
        let _ = (self.writer)().write_all(&bytes);
    }
}

/// What a span says, kept with it.
struct Said(Map<String, Value>);

impl<S, W, M> Layer<S> for JsonLines<M>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write,
    M: Fn() -> W + 'static,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let mut said = Said(Map::new());
        attributes.record(&mut said);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(said);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(said) = span.extensions_mut().get_mut::<Said>()
        {
            values.record(said);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let at = i128::from(process::now().0) * 1_000_000;
        let at = OffsetDateTime::from_unix_timestamp_nanos(at).ok();
        let at = at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default();
        let mut line = Map::new();
        line.insert("at".to_owned(), at.into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        line.insert("target".to_owned(), event.metadata().target().into());
        line.insert("message".to_owned(), Value::Null);
        let tenant = TENANT.get().map_or(Value::Null, |tenant| tenant.as_str().into());
        line.insert("tenant".to_owned(), tenant);
        for key in ["job", "round"] {
            line.insert(key.to_owned(), Value::Null);
        }
        let spans = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
        for span in spans {
            if let Some(Said(said)) = span.extensions().get() {
                line.extend(said.clone());
            }
        }
        let mut said = Said(line);
        event.record(&mut said);
        self.write(&said.0);
    }
}

impl Said {
    fn insert(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Said {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.insert(field, value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{info, info_span, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_names_tenant_job_and_round_or_says_null() {
        let page = Page::default();
        let writer = page.clone();
        let lines = JsonLines::new(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            info!("alone");
            let session = info_span!("session", tenant = "alpha", round = 1_u64).entered();
            info!(job = "census", round = 3_u64, bytes = 7, "update stored");
            drop(session);
            warn!(error = "line\nbreak \"quoted\"", "odd");
        });
        let text = String::from_utf8(page.0.lock().expect("not poisoned").clone()).expect("text");
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 3, "{text}");
        for line in &lines {
            for key in ["at", "level", "target", "message", "tenant", "job", "round"] {
                assert!(line.get(key).is_some(), "{key}: {line}");
            }
        }
        assert_eq!(lines[0]["tenant"], Value::Null);
        assert_eq!(lines[1]["tenant"], "alpha");
        assert_eq!((&lines[1]["job"], &lines[1]["round"]), (&"census".into(), &3.into()));
        assert_eq!(
            (&lines[1]["message"], &lines[1]["bytes"]),
            (&"update stored".into(), &7.into())
        );
        assert_eq!((&lines[2]["level"], &lines[2]["tenant"]), (&"WARN".into(), &Value::Null));
        assert_eq!(lines[2]["error"], "line\nbreak \"quoted\"");
    }

    #[test]
    fn unknown_formats_are_named() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        let error = "xml".parse::<LogFormat>().expect_err("unknown").to_string();
        assert!(error.contains("xml") && error.contains("json"), "{error}");
    }
}
