//! The operational pages.

use super::{Api, answer, http};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use axum::response::Response;
use axum::routing::get;
use prometheus::TextEncoder;
use serde_json::json;
use std::sync::Arc;

const JSON: &str = "application/json";

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/", get(root))
        // `?for=write` asks for the write path alone, which is the same here.
        .route("/ready", get(ready))
        .route("/livez", get(async || answer::text(StatusCode::OK, "alive")))
        .route("/metrics", get(metrics))
        .route("/config", get(config))
        .route("/services", get(services))
        .route("/ring", get(ring))
        .route("/api/v1/status", get(overview))
        .route("/log_level", get(log_level).post(set_log_level))
        .route("/loki/api/v1/status/buildinfo", get(build_info))
}

async fn root(State(api): State<Arc<Api>>) -> Response {
    let version = &api.config.build.version;
    answer::text(StatusCode::OK, &format!("Timberline {version}: push to /loki/api/v1/push; see /ready and /metrics"))
}

async fn ready(State(api): State<Arc<Api>>) -> Response {
    match api.backends.status.ready() {
        Ok(body) => answer::text(StatusCode::OK, &body),
        Err(reason) => answer::text(StatusCode::SERVICE_UNAVAILABLE, &reason),
    }
}

async fn metrics(State(api): State<Arc<Api>>) -> Response {
    match TextEncoder::new().encode_to_string(&api.registry.gather()) {
        Ok(body) => {
            let mut response = answer::text(StatusCode::OK, &body);
            let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, version);
            response
        }
        Err(e) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("the metrics cannot be written: {e}")),
    }
}

async fn config(State(api): State<Arc<Api>>) -> Response {
    answer::text(StatusCode::OK, &api.backends.status.config_yaml())
}

async fn services(State(api): State<Arc<Api>>) -> Response {
    answer::text(StatusCode::OK, &api.backends.status.services())
}

async fn ring(State(api): State<Arc<Api>>) -> Response {
    answer::json(StatusCode::OK, JSON, api.backends.status.ring_json().into_bytes())
}

async fn overview(State(api): State<Arc<Api>>) -> Response {
    let permit = Arc::clone(&api.overview).acquire_owned().await;
    let status = Arc::clone(&api.backends.status);
    let page = tokio::task::spawn_blocking(move || {
        // Held by the thread: a page whose client went away is still made.
        let _permit = permit;
        Ok(status.overview_json())
    });
    match http::joined(page.await) {
        Ok(page) => answer::json(StatusCode::OK, JSON, format!("{page}\n").into_bytes()),
        Err(error) => answer::error(&error),
    }
}

async fn log_level(State(api): State<Arc<Api>>) -> Response {
    let message = format!("Current log level is {}", api.backends.status.log_level());
    json_answer(StatusCode::OK, &json!({ "message": message }))
}

async fn set_log_level(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (head, mut body) = request.into_parts();
    let params = match http::parameters(&api, &head, &mut body).await {
        Ok(params) => params,
        Err(error) => return answer::error(&error),
    };
    let level = params.iter().find(|(name, _)| name == "log_level").map_or("", |(_, value)| value);
    match api.backends.status.set_log_level(level) {
        Ok(()) => {
            let message = format!("Log level set to {level}");
            json_answer(StatusCode::OK, &json!({ "status": "success", "message": message }))
        }
        Err(message) => json_answer(StatusCode::BAD_REQUEST, &json!({ "status": "failed", "message": message })),
    }
}

async fn build_info(State(api): State<Arc<Api>>) -> Response {
    let build = &api.config.build;
    json_answer(
        StatusCode::OK,
        &json!({
            "version": build.version,
            "revision": build.revision,
            "branch": build.branch,
            "buildUser": "",
            "buildDate": build.build_date,
            "goVersion": "",
        }),
    )
}

fn json_answer(status: StatusCode, value: &serde_json::Value) -> Response {
    answer::json(status, JSON, format!("{value}\n").into_bytes())
}
