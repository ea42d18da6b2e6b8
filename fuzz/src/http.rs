//! HTTP: requests to the routes, and the bytes of a connection, with everything behind them up to the ingester.

use super::allocation::bounded_beside;
use super::choices::Choices;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;
use timberline::api::decode::Budget;
use timberline::api::http::router;
use timberline::api::serve::{ListenerConfig, Protocol, serve_stream};
use timberline::api::{Api, ApiConfig, Backends, ReadCall, Reader, Status};
use timberline::distributor::{BoxFuture, Distributor, DistributorConfig, IngesterClient, Route};
use timberline::model::{LabelSet, Limits, LogEntry, Matcher, Overrides, Push, PushError, Tenant};
use timberline::querier::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

/// A connection's buffers, the tasks of a request, and what its answer takes.
const FIXED: usize = 1 << 20;
/// No connection lasts longer whose client has sent all and closed its side.
const PATIENCE: Duration = Duration::from_secs(5);

const PATHS: [&str; 16] = [
    "/loki/api/v1/push",
    "/api/prom/push",
    "/loki/api/v1/query_range",
    "/loki/api/v1/query",
    "/loki/api/v1/labels",
    "/loki/api/v1/label/app/values",
    "/loki/api/v1/series",
    "/loki/api/v1/status/buildinfo",
    "/ready",
    "/metrics",
    "/config",
    "/services",
    "/ring",
    "/log_level",
    "/otlp/v1/logs",
    "/",
];
const METHODS: [&str; 6] = ["POST", "GET", "PUT", "OPTIONS", "HEAD", "BREW"];
const CONTENT_TYPES: [&str; 4] =
    ["application/json", "application/x-protobuf", "application/x-www-form-urlencoded", "application/json; charset=é"];
const ENCODINGS: [&str; 4] = ["", "gzip", "deflate", "snappy"];

/// Takes what was validated, and looks whether it is what an ingester may rely on.
struct Checks;

impl IngesterClient for Checks {
    fn push(&self, _tenant: Tenant, push: Arc<Push>, streams: Vec<u32>) -> BoxFuture<'static, Result<(), PushError>> {
        Box::pin(async move {
            let mut seen = std::collections::HashSet::new();
            for number in streams {
                let stream = &push.streams[number as usize];
                assert!(seen.insert(stream.labels.text().to_string()), "a stream comes twice");
                assert!(!push.entries_of(stream).is_empty(), "a stream is empty");
                for entry in push.entries_of(stream) {
                    entry.line.of(&push.arena);
                    for pair in push.metadata_of(entry) {
                        let text = |span: timberline::model::Span| std::str::from_utf8(span.of(&push.arena)).is_ok();
                        assert!(text(pair.name) && text(pair.value), "metadata is UTF-8");
                    }
                }
            }
            Ok(())
        })
    }
}

/// One stream with two lines.
struct Two(Arc<LabelSet>);

impl Source for Two {
    fn streams(&self, _: &Tenant, matchers: &[Matcher], _: i64, _: i64) -> Vec<Arc<dyn StreamSource>> {
        let found = matchers.iter().all(|m| m.matches(&self.0));
        if found { vec![Arc::new(Two(self.0.clone()))] } else { vec![] }
    }

    fn label_names(&self, _: &Tenant, _: &[Matcher], _: i64, _: i64) -> Vec<String> {
        vec!["app".into()]
    }

    fn label_values(&self, _: &Tenant, name: &str, _: &[Matcher], _: i64, _: i64) -> Vec<String> {
        vec![name.into()]
    }

    fn series(&self, _: &Tenant, _: &[Matcher], _: i64, _: i64) -> Vec<Arc<LabelSet>> {
        vec![self.0.clone()]
    }
}

impl StreamSource for Two {
    fn labels(&self) -> &Arc<LabelSet> {
        &self.0
    }

    fn bounds(&self) -> (i64, i64) {
        (i64::MIN, i64::MAX)
    }

    fn select(
        &self,
        start: i64,
        end: i64,
        forward: bool,
        limit: usize,
        keep: &mut KeepEntry<'_>,
        _: &mut Vec<String>,
    ) -> Result<Vec<LogEntry>, QueryError> {
        let lines = [(0, &b"level=error \xff"[..]), (1 << 60, b"{\"a\":1}")];
        let mut out: Vec<LogEntry> = lines
            .into_iter()
            .filter(|(timestamp, line)| (start..end).contains(timestamp) && keep(line, &[(b"n", b"v")]))
            .map(|(timestamp, line)| LogEntry {
                timestamp,
                line: line.to_vec().into(),
                metadata: [("n".to_string(), "v".to_string())].into_iter().collect(),
            })
            .collect();
        if !forward {
            out.reverse();
        }
        out.truncate(limit);
        Ok(out)
    }
}

struct Queries(Querier);

impl Reader for Queries {
    fn handle(
        &self,
        tenant: &Tenant,
        call: ReadCall,
        params: &[(String, String)],
        flags: Option<&str>,
    ) -> Result<Vec<u8>, (u16, String)> {
        const NOW: i64 = 1_700_000_000_000_000_000;
        let flags = flags.map(EncodingFlags::parse).unwrap_or_default();
        let answer = match call {
            ReadCall::QueryRange => {
                RangeParams::decode(params, NOW).and_then(|p| self.0.query_range(tenant, &p, flags))
            }
            ReadCall::Query => InstantParams::decode(params, NOW).and_then(|p| self.0.query(tenant, &p, flags)),
            ReadCall::Labels => LabelParams::decode(params, NOW).and_then(|p| self.0.labels(tenant, &p)),
            ReadCall::LabelValues(name) => {
                LabelParams::decode(params, NOW).and_then(|p| self.0.label_values(tenant, &name, &p))
            }
            ReadCall::Series => SeriesParams::decode(params, NOW).and_then(|p| self.0.series(tenant, &p)),
        };
        if let Ok(body) = &answer {
            serde_json::from_slice::<serde_json::Value>(body).expect("an answer is JSON");
        }
        answer.map_err(|e| (e.status, e.message))
    }
}

struct Idle;

impl Status for Idle {
    fn overview_json(&self) -> String {
        "{}".into()
    }

    fn ready(&self) -> Result<String, String> {
        Ok("ready".into())
    }

    fn accepts_pushes(&self) -> Result<(), PushError> {
        Ok(())
    }

    fn config_yaml(&self) -> String {
        String::new()
    }

    fn services(&self) -> String {
        String::new()
    }

    fn ring_json(&self) -> String {
        "{}".into()
    }

    fn log_level(&self) -> String {
        "info".into()
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        Err(level.into())
    }
}

struct Server {
    api: Arc<Api>,
    budget: Arc<Budget>,
    router: Router,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    fn new() -> Self {
        let registry = prometheus::Registry::new();
        let limits = Limits {
            ingestion_rate: f64::MAX,
            ingestion_burst_size: f64::MAX,
            reject_old_samples: false,
            ..Limits::default()
        };
        let overrides = Arc::new(Overrides::new(limits, Default::default()));
        let settings = DistributorConfig { label_cache_entries: 64, label_cache_bytes: 1 << 20, ..Default::default() };
        let distributor = Distributor::new(settings, overrides.clone(), Route::Local(Arc::new(Checks)), &registry);
        let distributor = Arc::new(distributor.expect("an empty registry"));
        let source = Two(Arc::new(LabelSet::new([("app", "web")])));
        let backends = Backends {
            pusher: distributor.clone(),
            grpc_pusher: distributor,
            reader: Arc::new(Queries(Querier::new(Arc::new(source), overrides))),
            status: Arc::new(Idle),
        };
        let mut config = ApiConfig::new(Tenant::new("fake").expect("a legal name"));
        config.auth_enabled = false;
        config.decode.max_decompressed = 1 << 20;
        let budget = Budget::new(64 << 20);
        let api = Api::new(backends, budget.clone(), config, registry).expect("an empty registry");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        Self { router: router(api.clone()), api, budget, runtime }
    }
}

/// A request, or the bytes of a connection.
pub fn http(input: &[u8]) {
    thread_local! {
        static SERVER: OnceCell<Server> = const { OnceCell::new() };
    }
    SERVER.with(|server| {
        let server = server.get_or_init(Server::new);
        let mut choices = Choices::new(input);
        // A body may decompress to the limit.
        let size = input.len() + (1 << 20);
        if choices.flag() {
            let bytes = choices.rest().to_vec();
            bounded_beside(FIXED, size, || server.runtime.block_on(connection(server, bytes)));
        } else if let Some(request) = request(&mut choices) {
            bounded_beside(FIXED, size, || server.runtime.block_on(ask(server, request)));
        }
        assert_eq!(server.budget.used(), 0, "memory stays accounted for");
    });
}

fn request(choices: &mut Choices<'_>) -> Option<Request<Body>> {
    let (method, path) = (choices.of(&METHODS), choices.of(&PATHS));
    let query = String::from_utf8_lossy(choices.prefixed()).into_owned();
    let mut builder = Request::builder().method(method).uri(format!("{path}?{query}"));
    builder = builder.header("Content-Type", choices.of(&CONTENT_TYPES));
    let encoding = choices.of(&ENCODINGS);
    if !encoding.is_empty() {
        builder = builder.header("Content-Encoding", encoding);
    }
    if choices.flag() {
        builder = builder.header("X-Loki-Response-Encoding-Flags", "categorize-labels");
    }
    builder.body(Body::from(choices.rest().to_vec())).ok()
}

async fn ask(server: &Server, request: Request<Body>) {
    let Ok(response) = server.router.clone().oneshot(request).await;
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 16 << 20).await.expect("an answer has a body that ends");
    assert!(status < 500, "{status}: {}", String::from_utf8_lossy(&body));
}

/// A client that sends all, closes its side, and reads to the end.
async fn connection(server: &Server, bytes: Vec<u8>) {
    let (mut client, peer) = tokio::io::duplex(64 << 10);
    let serve = serve_stream(peer, server.router.clone(), ListenerConfig::new(Protocol::Http), server.api.metrics());
    let talk = async {
        // A server may close before all is sent.
        let _ = client.write_all(&bytes).await;
        let _ = client.shutdown().await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        answer
    };
    let both = async { tokio::join!(serve, talk).1 };
    let answer = tokio::time::timeout(PATIENCE, both).await.expect("a connection ends when its client has ended");
    assert!(!answer.starts_with(b"HTTP/1.1 500"), "{}", String::from_utf8_lossy(&answer));
}
