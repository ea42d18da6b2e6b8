use super::router;
use crate::api::fakes::{Answer, Fake, Pushed, fake};
use crate::model::PushError;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tower::ServiceExt;

const LINE: &str = r#"{"streams":[{"stream":{"a":"b"},"values":[["7","x"]]}]}"#;
const PUSH: &str = "/loki/api/v1/push";

struct Answered {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Fake {
    async fn ask(&self, request: Request<Body>) -> Answered {
        let response = router(self.api.clone()).oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        Answered {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn get(&self, uri: &str) -> Answered {
        self.ask(request("GET", uri, "")).await
    }

    async fn push(&self, body: impl Into<Body>) -> Answered {
        self.ask(request("POST", PUSH, body)).await
    }

    /// Lines of `/metrics` that begin with a text.
    async fn metric(&self, prefix: &str) -> String {
        let all = self.get("/metrics").await.body;
        all.lines().filter(|l| l.starts_with(prefix)).collect::<Vec<_>>().join("\n")
    }
}

fn request(method: &str, uri: &str, body: impl Into<Body>) -> Request<Body> {
    let builder = Request::builder().method(method).uri(uri).header("X-Scope-OrgID", "t1");
    builder.header("Content-Type", "application/json").body(body.into()).unwrap()
}

fn body_of(parts: impl IntoIterator<Item = &'static str>) -> Body {
    let parts: Vec<_> = parts.into_iter().map(|p| Ok::<_, Infallible>(Bytes::from(p))).collect();
    Body::from_stream(stream::iter(parts))
}

/// Bytes, then silence.
fn stalled(part: &'static str) -> Body {
    Body::from_stream(stream::iter([Ok::<_, Infallible>(Bytes::from(part))]).chain(stream::pending()))
}

#[tokio::test]
async fn a_stored_push_is_204_without_a_body() {
    let fake = fake(|_| ());
    for uri in [PUSH, "/api/prom/push"] {
        let answer = fake.ask(request("POST", uri, LINE)).await;
        assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{uri}");
    }
    let entry = (r#"{a="b"}"#.to_string(), 7, "x".to_string(), vec![]);
    assert_eq!(fake.pusher.pushed.lock()[0], Pushed { tenant: "t1".into(), entries: vec![entry] });
    assert_eq!(fake.budget.used(), 0);
}

#[tokio::test]
async fn errors_are_plain_text_with_a_newline() {
    let fake = fake(|_| ());
    for (error, retry_after) in [
        (PushError::bad_request("line too long"), None),
        (PushError::with_status(422, "nothing"), None),
        (PushError::rate_limited("slower"), Some("1")),
        (PushError { status: 503, message: "disk full".into(), retry_after: Some(5) }, Some("5")),
        (PushError { status: 503, message: "full".into(), retry_after: None }, Some("1")),
    ] {
        *fake.pusher.answer.lock() = Answer::Result(Err(error.clone()));
        let answer = fake.push(LINE).await;
        assert_eq!((answer.status, answer.body), (error.status, format!("{}\n", error.message)));
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(answer.headers.get("retry-after").map(|v| v.to_str().unwrap()), retry_after);
    }
}

#[tokio::test]
async fn tenants_follow_lokis_rules() {
    let fake = fake(|_| ());
    let long = "x".repeat(151);
    for (name, status, text) in [
        (None, 401, "no org id\n"),
        (Some(""), 401, "no org id\n"),
        (Some("a/b"), 400, "tenant ID 'a/b' contains unsupported character '/'\n"),
        (Some("a|b"), 400, "multiple org IDs present\n"),
        (Some("../x"), 400, "tenant ID '../x' contains unsupported character '/'\n"),
        (Some(long.as_str()), 400, "tenant ID is too long: max 150 characters\n"),
    ] {
        for uri in [PUSH, "/loki/api/v1/query_range"] {
            let mut builder = Request::post(uri).header("Content-Type", "application/json");
            if let Some(name) = name {
                builder = builder.header("x-scope-orgid", name);
            }
            let answer = fake.ask(builder.body(LINE.into()).unwrap()).await;
            assert_eq!((answer.status, answer.body.as_str()), (status, text), "{uri} {name:?}");
        }
    }
    assert!(fake.pusher.pushed.lock().is_empty());
}

#[tokio::test]
async fn without_authentication_the_header_is_ignored() {
    let fake = fake(|c| c.auth_enabled = false);
    assert_eq!(fake.push(LINE).await.status, 204);
    let mut bad = request("POST", PUSH, LINE);
    bad.headers_mut().insert("x-scope-orgid", "a|b".parse().unwrap());
    assert_eq!(fake.ask(bad).await.status, 204);
    assert!(fake.pusher.pushed.lock().iter().all(|p| p.tenant == "fake"));
}

#[tokio::test]
async fn other_methods_are_405_and_other_paths_404() {
    let fake = fake(|_| ());
    for (method, uri, status) in [
        ("GET", PUSH, 405),
        ("PUT", PUSH, 405),
        ("OPTIONS", PUSH, 405),
        ("GET", "/api/prom/push", 405),
        ("DELETE", "/loki/api/v1/series", 405),
        ("POST", "/ready", 405),
        ("PUT", "/log_level", 405),
        ("POST", "/loki/api/v1/push/", 404),
        ("GET", "/nothing", 404),
        ("POST", "/otlp/v1/logs", 404),
    ] {
        let answer = fake.ask(request(method, uri, "")).await;
        assert_eq!(answer.status, status, "{method} {uri}");
        assert_eq!(answer.body.is_empty(), status == 405, "{method} {uri}");
    }
    assert!(fake.ask(request("POST", "/otlp/v1/logs", "")).await.body.contains("/loki/api/v1/push"));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_by_its_length_and_while_it_comes() {
    let fake = fake(|c| c.decode.max_compressed = 100);
    let mut announced = request("POST", PUSH, stalled("never read"));
    announced.headers_mut().insert("content-length", "1000000000".parse().unwrap());
    let answer = tokio::time::timeout(Duration::from_secs(5), fake.ask(announced)).await.unwrap();
    let text = "request body too large: message size too large than max (1000000000 vs 100)\n";
    assert_eq!((answer.status, answer.body.as_str()), (413, text));
    let chunked = fake.push(body_of([LINE, LINE])).await;
    assert_eq!(chunked.status, 413);
    let exact = format!("{LINE}{}", " ".repeat(100 - LINE.len()));
    assert_eq!(fake.push(exact.clone()).await.status, 204);
    assert_eq!(fake.push(exact + " ").await.status, 413);
    assert_eq!(fake.budget.used(), 0);
}

#[tokio::test]
async fn a_starting_server_refuses_before_it_reads_the_body() {
    let fake = fake(|_| ());
    *fake.status.accepts.lock() = Err(PushError::unavailable("replaying the log, 40 %"));
    let answer = tokio::time::timeout(Duration::from_secs(5), fake.push(stalled("{"))).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (503, "replaying the log, 40 %\n"));
    assert_eq!(answer.headers["retry-after"], "1");
}

#[tokio::test(start_paused = true)]
async fn a_body_without_progress_ends_after_the_read_timeout() {
    let fake = fake(|_| ());
    let start = tokio::time::Instant::now();
    let answer = fake.push(stalled("{")).await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("too slowly"), "{}", answer.body);
    assert_eq!(start.elapsed().as_secs(), 30);
    assert_eq!(fake.budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_does_not_live_long() {
    let fake = fake(|_| ());
    let start = tokio::time::Instant::now();
    let drips = stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Some((Ok::<_, Infallible>(Bytes::from(" ")), ()))
    });
    assert_eq!(fake.push(Body::from_stream(drips)).await.status, 503);
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_400() {
    let fake = fake(|_| ());
    let parts = [Ok(Bytes::from("{")), Err(std::io::Error::other("reset"))];
    assert_eq!(fake.push(Body::from_stream(stream::iter(parts))).await.status, 400);
}

#[tokio::test(start_paused = true)]
async fn a_push_waits_for_memory_and_then_gives_up() {
    let fake = fake(|_| ());
    let mut held = fake.budget.lease();
    held.take(64 << 20).unwrap();
    let start = tokio::time::Instant::now();
    let answer = fake.push(LINE).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(start.elapsed().as_secs(), 2);
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(held);
    };
    assert_eq!(tokio::join!(fake.push(LINE), release).0.status, 204);
}

#[tokio::test]
async fn memory_is_held_until_the_push_is_answered() {
    let fake = fake(|_| ());
    let gate = fake.pusher.gate.acquire_many(1000).await.unwrap();
    let look = async {
        while fake.pusher.waiting.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let used = fake.budget.used();
        drop(gate);
        used
    };
    let (answer, used) = tokio::join!(fake.push(LINE), look);
    assert_eq!(answer.status, 204);
    assert!(used >= LINE.len(), "{used}");
    assert_eq!(fake.budget.used(), 0);
}

#[tokio::test]
async fn a_large_push_is_decoded_on_a_blocking_thread() {
    let fake = fake(|_| ());
    assert_eq!(fake.push(large()).await.status, 204);
    assert_eq!(fake.pusher.pushed.lock()[0].entries[0].2.len(), 3 << 20);
    assert_eq!(fake.budget.used(), 0);
}

/// A JSON push whose line makes it one that is decoded on a blocking thread.
fn large() -> String {
    format!(r#"{{"streams":[{{"stream":{{"a":"b"}},"values":[["7","{}"]]}}]}}"#, "y".repeat(3 << 20))
}

#[tokio::test(start_paused = true)]
async fn a_large_push_waits_for_its_turn_and_then_gives_up() {
    let fake = fake(|_| ());
    let turns = fake.api.decodes.available_permits();
    let held = fake.api.decodes.clone().acquire_many_owned(turns as u32).await.unwrap();
    let start = tokio::time::Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(10), fake.push(large())).await.expect("the wait has a bound");
    assert_eq!((answer.status, answer.headers["retry-after"].as_bytes()), (503, &b"1"[..]));
    assert!(
        answer.body.starts_with("other large pushes are being decoded and none ended within 2s"),
        "{}",
        answer.body
    );
    assert_eq!(start.elapsed().as_secs(), 2);
    assert_eq!(fake.budget.used(), 0, "who gives up holds nothing");
    assert_eq!(fake.push(LINE).await.status, 204, "small pushes need no turn");
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(held);
    };
    assert_eq!(tokio::join!(fake.push(large()), release).0.status, 204);
    assert_eq!((fake.budget.used(), fake.api.decodes.available_permits()), (0, turns));
}

#[tokio::test]
async fn a_panic_is_500_and_counted_and_the_next_push_works() {
    let fake = fake(|_| ());
    *fake.pusher.answer.lock() = Answer::Panic("bug 17");
    let answer = fake.push(LINE).await;
    assert_eq!((answer.status, answer.body.as_str()), (500, "error while processing request: bug 17\n"));
    let answer = fake.get("/loki/api/v1/query?query=panic").await;
    assert_eq!((answer.status, answer.body.as_str()), (500, "error while processing request: a reader panics\n"));
    assert_eq!(fake.metric("loki_panic_total").await, "loki_panic_total 2");
    *fake.pusher.answer.lock() = Answer::Result(Ok(()));
    assert_eq!(fake.push(LINE).await.status, 204);
    assert_eq!(fake.budget.used(), 0);
}

#[tokio::test]
async fn a_push_whose_client_goes_away_is_stored_to_its_end() {
    let fake = fake(|_| ());
    let gate = fake.pusher.gate.acquire_many(1000).await.unwrap();
    let call = tokio::spawn(router(fake.api.clone()).oneshot(request("POST", PUSH, LINE)));
    while fake.pusher.waiting.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    drop(gate);
    let stored = async {
        while fake.pusher.pushed.lock().is_empty() || fake.budget.used() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), stored).await.expect("the push goes on");
    let inflight = r#"loki_inflight_requests{method="POST",route="loki_api_v1_push"}"#;
    assert_eq!(fake.metric(inflight).await, format!("{inflight} 0"));
}

#[tokio::test]
async fn reads_get_form_and_query_parameters() {
    let fake = fake(|_| ());
    let answer = fake.get("/loki/api/v1/query_range?query=%7Ba%3D%22b%22%7D&limit=10&a+b=").await;
    let expected = r#"t1 QueryRange [("query", "{a=\"b\"}"), ("limit", "10"), ("a b", "")] None"#;
    assert_eq!((answer.status, answer.body.as_str()), (200, expected));
    assert_eq!(answer.headers["content-type"], "application/json; charset=UTF-8");

    let mut form = request("POST", "/loki/api/v1/series?end=2", "match%5B%5D=%7B%7D&start=1");
    form.headers_mut().insert("content-type", "application/x-www-form-urlencoded; charset=utf-8".parse().unwrap());
    form.headers_mut().insert("x-loki-response-encoding-flags", "categorize-labels".parse().unwrap());
    let expected = r#"t1 Series [("match[]", "{}"), ("start", "1"), ("end", "2")] Some("categorize-labels")"#;
    assert_eq!(fake.ask(form).await.body, expected);

    for (uri, call) in [
        ("/loki/api/v1/query", "Query"),
        ("/loki/api/v1/labels", "Labels"),
        ("/loki/api/v1/label", "Labels"),
        ("/loki/api/v1/label/a%2Fb/values", r#"LabelValues("a/b")"#),
    ] {
        for method in ["GET", "POST"] {
            assert_eq!(fake.ask(request(method, uri, "")).await.body, format!("t1 {call} [] None"), "{method} {uri}");
        }
    }
}

#[tokio::test]
async fn errors_of_reads_are_plain_text() {
    let fake = fake(|_| ());
    let answer = fake.get("/loki/api/v1/query?query=bad").await;
    assert_eq!((answer.status, answer.body.as_str()), (400, "parse error at line 1\n"));
    let mut form = request("POST", "/loki/api/v1/query", " ".repeat((1 << 20) + 1));
    form.headers_mut().insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
    assert_eq!(fake.ask(form).await.status, 413);
}

#[tokio::test]
async fn reads_beyond_the_limit_wait_and_then_give_up() {
    let fake = fake(|c| {
        c.max_concurrent_reads = 1;
        c.read_queue_wait = Duration::from_millis(50);
    });
    let slow = "/loki/api/v1/query?query=slow";
    let (a, b) = tokio::join!(fake.get(slow), fake.get(slow));
    assert_eq!((a.status.min(b.status), a.status.max(b.status)), (200, 503));
    assert_eq!(fake.get("/loki/api/v1/query").await.status, 200);
}

#[tokio::test]
async fn pages_for_operators() {
    let fake = fake(|_| ());
    for (uri, body) in [
        ("/ready", "ready\n"),
        ("/ready?for=write", "ready\n"),
        ("/livez", "alive\n"),
        ("/config", "target: all\n"),
        ("/services", "ingester => Running\n"),
        ("/ring", r#"{"shards":[]}"#),
        ("/log_level", "{\"message\":\"Current log level is info\"}\n"),
    ] {
        // No tenant is needed.
        let answer = fake.ask(Request::get(uri).body(Body::empty()).unwrap()).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body), "{uri}");
    }
    assert!(fake.get("/").await.body.starts_with("Timberline "));
    let build: serde_json::Value = serde_json::from_str(&fake.get("/loki/api/v1/status/buildinfo").await.body).unwrap();
    for key in ["version", "revision", "branch", "buildUser", "buildDate", "goVersion"] {
        assert!(build[key].is_string(), "{key}");
    }
    *fake.status.ready.lock() = Err("replaying the log, 40 %".into());
    let answer = fake.get("/ready").await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "replaying the log, 40 %\n"));
    assert_eq!(fake.get("/livez").await.status, 200);
}

#[tokio::test]
async fn the_log_level_changes_by_query_or_form() {
    let fake = fake(|_| ());
    let answer = fake.ask(request("POST", "/log_level?log_level=bogus", "")).await;
    let failed = "{\"message\":\"unrecognized log level \\\"bogus\\\"\",\"status\":\"failed\"}\n";
    assert_eq!((answer.status, answer.body.as_str()), (400, failed));
    let mut form = request("POST", "/log_level", "log_level=debug");
    form.headers_mut().insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
    let answer = fake.ask(form).await;
    let success = "{\"message\":\"Log level set to debug\",\"status\":\"success\"}\n";
    assert_eq!((answer.status, answer.body.as_str()), (200, success));
    assert_eq!(*fake.status.level.lock(), "debug");
}

#[tokio::test]
async fn requests_are_measured_by_route() {
    let fake = fake(|_| ());
    fake.push(LINE).await;
    fake.push("garbage").await;
    fake.get("/loki/api/v1/label/x/values").await;
    fake.get("/made/up/1").await;
    fake.ask(request("BREW", "/made/up/2", "")).await;
    fake.get("/").await;
    let count = "loki_request_duration_seconds_count";
    let counts = fake.metric(count).await;
    for (labels, n) in [
        (r#"method="POST",route="loki_api_v1_push",status_code="204",ws="false""#, 1),
        (r#"method="POST",route="loki_api_v1_push",status_code="400",ws="false""#, 1),
        (r#"method="GET",route="loki_api_v1_label_name_values",status_code="200",ws="false""#, 1),
        (r#"method="GET",route="other",status_code="404",ws="false""#, 1),
        (r#"method="other",route="other",status_code="404",ws="false""#, 1),
        (r#"method="GET",route="root",status_code="200",ws="false""#, 1),
    ] {
        assert!(counts.contains(&format!("{count}{{{labels}}} {n}")), "{labels} in\n{counts}");
    }
    let inflight = fake.metric("loki_inflight_requests").await;
    assert!(inflight.contains(r#"{method="GET",route="metrics"} 1"#), "{inflight}");
    assert!(fake.metric("loki_build_info").await.ends_with(" 1"));
    let answer = fake.get("/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(answer.status, StatusCode::OK);
}
