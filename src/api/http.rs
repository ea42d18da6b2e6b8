//! The HTTP routes of pushes and reads.

use super::body::{self, BodyLimits};
use super::decode::{self, Expected, Lease, PushHeaders};
use super::tenancy::{agent_of, tenant_of};
use super::{Api, ReadCall, answer, pages};
use crate::model::{PushError, PushRequest, Tenant};
use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderName};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, Version};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, get, post};
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::task::JoinError;
use tokio::time::Instant;

const PUSH: &str = "/loki/api/v1/push";
const LEGACY_PUSH: &str = "/api/prom/push";
/// Pushes expected to decode to more than this are decoded on a blocking thread, so that other requests go on.
const INLINE_DECODE: usize = 1 << 20;
/// Largest form of a read, in bytes.
const MAX_FORM: usize = 1 << 20;
const ENCODING_FLAGS: HeaderName = HeaderName::from_static("x-loki-response-encoding-flags");
const JSON: &str = "application/json; charset=UTF-8";

/// All routes of the HTTP listener.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route(PUSH, post(push))
        .route(LEGACY_PUSH, post(push))
        .route("/otlp/v1/logs", any(no_otlp))
        .route("/loki/api/v1/query_range", read_route(ReadCall::QueryRange))
        .route("/loki/api/v1/query", read_route(ReadCall::Query))
        .route("/loki/api/v1/labels", read_route(ReadCall::Labels))
        .route("/loki/api/v1/label", read_route(ReadCall::Labels))
        .route("/loki/api/v1/label/{name}/values", get(label_values).post(label_values))
        .route("/loki/api/v1/series", read_route(ReadCall::Series))
        .merge(pages::routes())
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::clone(&api), observe))
        .with_state(api)
}

/// Around every route: duration, requests in flight, and an answer when the handler panics.
async fn observe(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let method = method_label(request.method());
    let route = route_label(request.extensions().get::<MatchedPath>().map(MatchedPath::as_str));
    let observation = api.metrics.start(method, &route);
    let response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(payload) => {
            let panic = api.metrics.panicked(&route, &*payload);
            answer::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("error while processing request: {panic}"))
        }
    };
    observation.finish(response.status().as_str());
    response
}

/// Methods are tokens that a client makes up; the label has few values.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Loki's name of a route: the path pattern with underscores.
fn route_label(pattern: Option<&str>) -> String {
    match pattern {
        None => "other".into(),
        Some("/") => "root".into(),
        Some(pattern) => {
            let parts = pattern.split(|c: char| !c.is_ascii_alphanumeric()).filter(|p| !p.is_empty());
            parts.collect::<Vec<_>>().join("_")
        }
    }
}

async fn not_found(request: Request) -> Response {
    refuse(request, answer::text(StatusCode::NOT_FOUND, "404 page not found"))
}

async fn no_otlp(request: Request) -> Response {
    let sentence = "OTLP is not supported yet; push to /loki/api/v1/push instead, for instance with the Loki exporter \
                    of an OpenTelemetry collector";
    refuse(request, answer::text(StatusCode::NOT_FOUND, sentence))
}

fn refuse(request: Request, response: Response) -> Response {
    let (head, body) = request.into_parts();
    forget(&head, body);
    response
}

/// Lets the client of HTTP/1 finish a body that is not wanted. HTTP/2 can refuse the rest of one, and a client that asked
/// with `Expect` has not sent it.
fn forget(head: &Parts, body: Body) {
    if head.version < Version::HTTP_2 && !head.headers.contains_key(EXPECT) {
        body::linger(body);
    }
}

/// A push whose body is in memory.
struct Received {
    tenant: Tenant,
    head: Parts,
    body: Vec<u8>,
    /// Of the body.
    lease: Lease,
}

async fn push(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (head, mut body) = request.into_parts();
    let (tenant, bytes, lease) = match receive(&api, &head, &mut body).await {
        Ok(received) => received,
        Err(error) => {
            forget(&head, body);
            return answer::error(&error);
        }
    };
    // A task of its own: what was handed on is stored to its end, also when the client goes away.
    let task = tokio::spawn(store(api, Received { tenant, head, body: bytes, lease }));
    match joined(task.await) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => answer::error(&error),
    }
}

async fn receive(api: &Api, head: &Parts, body: &mut Body) -> Result<(Tenant, Vec<u8>, Lease), PushError> {
    api.backends.status.accepts_pushes()?;
    let tenant = tenant_of(&head.headers, &api.config)?;
    let limits = api.body_limits(api.config.decode.max_compressed);
    let mut lease = api.budget.lease();
    let body = body::read(body, content_length(head), limits, &mut lease).await?;
    Ok((tenant, body, lease))
}

async fn store(api: Arc<Api>, received: Received) -> Result<(), PushError> {
    let Received { tenant, head, body, lease } = received;
    let expected = decode::expected(&push_headers(&head), &body);
    let limits = api.config.decode;
    let agent = agent_of(&head.headers);
    let decode = move |lease: &mut Lease| decode::decode(&push_headers(&head), body, &limits, lease);
    // The lease lives until the push is answered: so long the decoded push is in memory.
    let (mut request, _lease) = api.decode(lease, expected, decode).await?;
    request.agent = agent;
    api.backends.pusher.push(tenant, request, "loki").await
}

impl Api {
    /// Waits a bounded time for the memory that decoding is expected to need, then decodes: on a blocking thread and in
    /// its turn if it can be much.
    pub(super) async fn decode(
        &self,
        mut lease: Lease,
        expected: Expected,
        decode: impl FnOnce(&mut Lease) -> Result<PushRequest, PushError> + Send + 'static,
    ) -> Result<(PushRequest, Lease), PushError> {
        let deadline = Instant::now() + self.config.budget_wait;
        body::patiently(self.config.budget_wait, || lease.expect(expected.bytes)).await?;
        let work = move || decode(&mut lease).map(|request| (request, lease));
        if expected.most <= INLINE_DECODE {
            return work();
        }
        let turn = tokio::time::timeout_at(deadline, Arc::clone(&self.decodes).acquire_owned());
        let permit = turn.await.map_err(|_| self.too_many_decodes())?;
        let blocking = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        joined(blocking.await)
    }

    fn too_many_decodes(&self) -> PushError {
        PushError::unavailable(format!(
            "other large pushes are being decoded and none ended within {:?}; try again later, or send smaller batches",
            self.config.budget_wait
        ))
    }

    pub(super) fn body_limits(&self, max: usize) -> BodyLimits {
        BodyLimits { max, read_timeout: self.config.read_timeout, budget_wait: self.config.budget_wait }
    }
}

/// The result of a task. Its panic goes on in the caller, where it is counted and answered.
pub(super) fn joined<T>(result: Result<Result<T, PushError>, JoinError>) -> Result<T, PushError> {
    match result.map_err(JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_cancelled)) => Err(PushError::unavailable("the server is shutting down; try again")),
    }
}

fn content_length(head: &Parts) -> Option<u64> {
    head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn push_headers(head: &Parts) -> PushHeaders<'_> {
    // A value that is no text is passed on as one that nobody knows, not as none.
    let text = |name| head.headers.get(name).map(|v: &HeaderValue| v.to_str().unwrap_or("\u{fffd}"));
    PushHeaders {
        content_type: text(CONTENT_TYPE),
        content_encoding: text(CONTENT_ENCODING),
        path_is_v1: head.uri.path() == PUSH,
    }
}

fn header(head: &Parts, name: &HeaderName) -> Option<String> {
    head.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
}

fn read_route(call: ReadCall) -> MethodRouter<Arc<Api>> {
    let handler = move |State(api): State<Arc<Api>>, request: Request| read(api, call, request);
    get(handler.clone()).post(handler)
}

async fn label_values(State(api): State<Arc<Api>>, Path(name): Path<String>, request: Request) -> Response {
    read(api, ReadCall::LabelValues(name), request).await
}

async fn read(api: Arc<Api>, call: ReadCall, request: Request) -> Response {
    let (head, mut body) = request.into_parts();
    let asked = match ask(&api, &head, &mut body).await {
        Ok(asked) => asked,
        Err(error) => {
            forget(&head, body);
            return answer::error(&error);
        }
    };
    match answer_read(api, call, asked, header(&head, &ENCODING_FLAGS)).await {
        Ok(body) => answer::json(StatusCode::OK, JSON, body),
        Err(error) => answer::error(&error),
    }
}

type Params = Vec<(String, String)>;

async fn ask(api: &Api, head: &Parts, body: &mut Body) -> Result<(Tenant, Params), PushError> {
    Ok((tenant_of(&head.headers, &api.config)?, parameters(api, head, body).await?))
}

async fn answer_read(
    api: Arc<Api>,
    call: ReadCall,
    (tenant, params): (Tenant, Params),
    flags: Option<String>,
) -> Result<Vec<u8>, PushError> {
    let turn = tokio::time::timeout(api.config.read_queue_wait, Arc::clone(&api.reads).acquire_owned());
    let permit = turn.await.map_err(|_| too_many_reads(&api))?;
    let reader = Arc::clone(&api.backends.reader);
    let work = tokio::task::spawn_blocking(move || {
        // Held by the thread: a read whose client went away still runs.
        let _permit = permit;
        reader.handle(&tenant, call, &params, flags.as_deref()).map_err(|(s, m)| PushError::with_status(s, m))
    });
    joined(work.await)
}

fn too_many_reads(api: &Api) -> PushError {
    PushError::unavailable(format!(
        "{} queries are running and none ended within {:?}; try again later",
        api.config.max_concurrent_reads, api.config.read_queue_wait
    ))
}

/// Parameters of the form, then those of the query string: the order in which Go looks for them.
pub(super) async fn parameters(api: &Api, head: &Parts, body: &mut Body) -> Result<Params, PushError> {
    let mut params = Vec::new();
    if head.method == Method::POST && has_form(head) {
        let mut lease = api.budget.lease();
        let form = body::read(body, content_length(head), api.body_limits(MAX_FORM), &mut lease).await?;
        params.extend(form_urlencoded::parse(&form).into_owned());
    }
    params.extend(form_urlencoded::parse(head.uri.query().unwrap_or("").as_bytes()).into_owned());
    Ok(params)
}

fn has_form(head: &Parts) -> bool {
    let media_type = header(head, &CONTENT_TYPE).unwrap_or_default();
    media_type.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

#[cfg(test)]
mod tests;
