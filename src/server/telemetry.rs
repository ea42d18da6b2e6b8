//! Our own log: logfmt or JSON lines on stderr, and a level that can change at runtime.
//!
//! A line is `ts=2026-01-02T03:04:05.678Z level=info caller=wal::writer msg="..." key=value`, as Loki's. Writing it never
//! fails for the caller: a closed stderr costs the line, nothing else.

use super::config::units::Word;
use super::config::{LogFormat, LogLevel};
use std::fmt::{self, Write as _};
use std::io::Write;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::{Registry, reload};

/// A running log; keeps what is needed to change its level.
#[derive(Clone)]
pub struct Telemetry {
    filter: reload::Handle<Targets, Registry>,
    level: std::sync::Arc<parking_lot::Mutex<LogLevel>>,
}

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Some other subscriber is this process' default already.
    #[error("another log is set up in this process already")]
    Taken,
    /// The subscriber is gone; cannot happen while the process runs.
    #[error("the log's level cannot be changed: {0}")]
    Level(#[from] reload::Error),
}

impl Telemetry {
    /// Sends this process' events to stderr.
    ///
    /// # Errors
    /// This process has a log already.
    pub fn install(level: LogLevel, format: LogFormat) -> Result<Self, TelemetryError> {
        let (subscriber, telemetry) = build(level, format, std::io::stderr);
        tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Taken)?;
        Ok(telemetry)
    }

    /// The least severe level that is shown.
    pub fn level(&self) -> LogLevel {
        *self.level.lock()
    }

    /// Changes it from now on (`POST /log_level`).
    ///
    /// # Errors
    /// The subscriber is gone.
    pub fn set_level(&self, level: LogLevel) -> Result<(), TelemetryError> {
        let mut current = self.level.lock();
        self.filter.reload(targets(level))?;
        *current = level;
        Ok(())
    }
}

fn build<W: Write>(
    level: LogLevel,
    format: LogFormat,
    out: impl Fn() -> W + Send + Sync + 'static,
) -> (impl Subscriber + Send + Sync, Telemetry) {
    let (filter, handle) = reload::Layer::new(targets(level));
    let subscriber = Registry::default().with(Lines { format, out }.with_filter(filter));
    let telemetry = Telemetry { filter: handle, level: std::sync::Arc::new(parking_lot::Mutex::new(level)) };
    (subscriber, telemetry)
}

/// Our modules at the level; libraries at warn or above, because their debug lines are about every byte that moves.
fn targets(level: LogLevel) -> Targets {
    let (ours, libraries) = match level {
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::WARN),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
    };
    Targets::new().with_target(OURS, ours).with_default(libraries)
}

const OURS: &str = "timberline";

/// Writes each event as one line.
struct Lines<F> {
    format: LogFormat,
    out: F,
}

impl<S: Subscriber, W: Write, F: Fn() -> W + 'static> Layer<S> for Lines<F> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = line(event, self.format);
        // One write for a line, so that lines of two threads do not mix. Nobody is left to tell about a closed stderr.
        let _ = (self.out)().write_all(line.as_bytes());
    }
}

fn line(event: &Event<'_>, format: LogFormat) -> String {
    let meta = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);
    let ts = jiff::Timestamp::now().to_string();
    let caller = meta.target().strip_prefix("timberline::").unwrap_or(meta.target());
    let head = [("ts", ts.as_str()), ("level", level_name(*meta.level())), ("caller", caller)];
    let message = fields.message.as_deref().map(|text| ("msg", text));
    let texts = head.into_iter().chain(message).map(|(key, value)| (key, value, Kind::Text));
    let rest = fields.rest.iter().map(|(key, value, kind)| (*key, value.as_str(), *kind));
    let pairs = texts.chain(rest);
    match format {
        LogFormat::Logfmt => logfmt(pairs),
        LogFormat::Json => json(pairs),
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => LogLevel::Error.as_str(),
        Level::WARN => LogLevel::Warn.as_str(),
        Level::INFO => LogLevel::Info.as_str(),
        Level::DEBUG | Level::TRACE => LogLevel::Debug.as_str(),
    }
}

/// How JSON shows a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// A number or a truth value, without quotes: so that a query can compare it.
    Bare,
}

fn logfmt<'a>(pairs: impl Iterator<Item = (&'a str, &'a str, Kind)>) -> String {
    let mut line = String::with_capacity(256);
    for (key, value, _) in pairs {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(key);
        line.push('=');
        let bare = |c: char| !c.is_control() && !c.is_whitespace() && !"=\"\\".contains(c);
        if !value.is_empty() && value.chars().all(bare) {
            line.push_str(value);
        } else {
            quote(value, &mut line);
        }
    }
    line.push('\n');
    line
}

fn json<'a>(pairs: impl Iterator<Item = (&'a str, &'a str, Kind)>) -> String {
    let mut line = String::with_capacity(256);
    for (key, value, kind) in pairs {
        line.push(if line.is_empty() { '{' } else { ',' });
        quote(key, &mut line);
        line.push(':');
        match kind {
            Kind::Text => quote(value, &mut line),
            Kind::Bare => line.push_str(value),
        }
    }
    line.push_str("}\n");
    line
}

/// A double-quoted text with JSON's escapes: what comes from outside never makes a second line, or colours a terminal.
fn quote(text: &str, line: &mut String) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            // Controls are below U+00A0: four digits hold them. Writing to a String cannot fail.
            c if c.is_control() => drop(write!(line, "\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line.push('"');
}

/// No value of a field is shown longer than this, in bytes.
const MAX_VALUE: usize = 8 << 10;

#[derive(Default)]
struct Fields {
    message: Option<String>,
    rest: Vec<(&'static str, String, Kind)>,
}

impl Fields {
    fn put(&mut self, field: &Field, mut value: String) {
        if value.len() > MAX_VALUE {
            let end = (0..=MAX_VALUE).rev().find(|at| value.is_char_boundary(*at));
            value.truncate(end.unwrap_or(0));
            value.push('…');
        }
        match field.name() {
            "message" => self.message = Some(value),
            name => self.rest.push((name, value, Kind::Text)),
        }
    }

    fn put_bare(&mut self, field: &Field, value: impl fmt::Display) {
        self.rest.push((field.name(), value.to_string(), Kind::Bare));
    }
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put_bare(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put_bare(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put_bare(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.put_bare(field, value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.put_bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no number for the others.
        if value.is_finite() { self.put_bare(field, value) } else { self.put(field, value.to_string()) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        self.put(field, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::io;
    use std::sync::Arc;
    use tracing::{debug, info, warn};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: LogLevel, format: LogFormat, events: impl Fn(&Telemetry)) -> String {
        let sink = Sink::default();
        let out = sink.clone();
        let (subscriber, telemetry) = build(level, format, move || out.clone());
        tracing::subscriber::with_default(subscriber, || events(&telemetry));
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// Everything behind the time of a line.
    fn behind_time(line: &str) -> &str {
        let (time, rest) = line.split_once(' ').unwrap();
        let stamp: jiff::Timestamp = time.strip_prefix("ts=").unwrap().parse().unwrap();
        assert!(jiff::Timestamp::now().duration_since(stamp).as_secs() < 60);
        rest
    }

    #[test]
    fn logfmt_lines() {
        let text = logged(LogLevel::Info, LogFormat::Logfmt, |_| {
            info!(segment = 7, path = "a b", ok = true, empty = "", "it \"runs\"");
            warn!("tenant=x\nlevel=error\u{1b}[31m");
        });
        let lines: Vec<&str> = text.lines().map(behind_time).collect();
        assert_eq!(
            lines,
            [
                r#"level=info caller=server::telemetry::tests msg="it \"runs\"" segment=7 path="a b" ok=true empty="""#,
                r#"level=warn caller=server::telemetry::tests msg="tenant=x\nlevel=error\u001b[31m""#,
            ]
        );
    }

    #[test]
    fn json_lines() {
        let text = logged(LogLevel::Info, LogFormat::Json, |_| {
            info!(n = 1, less = -2_i32, seconds = 0.25, never = f64::NAN, ok = true, id = "7", who = "a\u{7}", "up");
        });
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value.as_object_mut().unwrap().remove("ts").unwrap();
        let expected = serde_json::json!({
            "level": "info", "caller": "server::telemetry::tests", "msg": "up", "n": 1, "less": -2, "seconds": 0.25,
            "never": "NaN", "ok": true, "id": "7", "who": "a\u{7}",
        });
        assert_eq!(value, expected);
        assert!(text.ends_with("}\n") && text.lines().count() == 1);
    }

    #[test]
    fn errors_show_their_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] io::Error);
        let text = logged(LogLevel::Info, LogFormat::Logfmt, |_| {
            let error = Outer(io::Error::other("inner"));
            warn!(err = &error as &dyn std::error::Error, "failed");
        });
        assert!(text.ends_with("msg=failed err=\"outer: inner\"\n"), "{text}");
    }

    #[test]
    fn the_level_changes_at_runtime() {
        let text = logged(LogLevel::Warn, LogFormat::Logfmt, |telemetry| {
            info!("hidden");
            telemetry.set_level(LogLevel::Debug).unwrap();
            assert_eq!(telemetry.level(), LogLevel::Debug);
            debug!("shown");
            debug!(target: "hyper::proto", "a library's");
            telemetry.set_level(LogLevel::Error).unwrap();
            warn!("hidden");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("level=debug") && text.contains("msg=shown"), "{text}");
    }

    #[test]
    fn long_values_are_cut() {
        let text = logged(LogLevel::Info, LogFormat::Logfmt, |_| info!(x = "é".repeat(MAX_VALUE), "m"));
        assert!(text.len() < MAX_VALUE + 200 && text.ends_with("…\n"));
    }

    #[test]
    fn a_closed_output_is_no_panic() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (subscriber, _telemetry) = build(LogLevel::Info, LogFormat::Logfmt, || Closed);
        tracing::subscriber::with_default(subscriber, || warn!("nobody hears"));
    }
}
