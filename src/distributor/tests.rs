use super::*;
use crate::model::{Entry, RawStream};
use parking_lot::Mutex;
use std::collections::HashMap;

/// Keeps what it gets and answers as it is told.
#[derive(Default)]
struct Ingester {
    pushes: Mutex<Vec<(Tenant, Arc<Push>, Vec<u32>)>>,
    answer: Mutex<Option<PushError>>,
}

struct Client(Arc<Ingester>);

impl IngesterClient for Client {
    fn push(&self, tenant: Tenant, push: Arc<Push>, streams: Vec<u32>) -> BoxFuture<'static, Result<(), PushError>> {
        let ingester = Arc::clone(&self.0);
        Box::pin(async move {
            ingester.pushes.lock().push((tenant, push, streams));
            ingester.answer.lock().clone().map_or(Ok(()), Err)
        })
    }
}

impl Ingester {
    /// `labels: line,line` of all streams, in the order of arrival.
    fn stored(&self) -> Vec<String> {
        let pushes = self.pushes.lock();
        let streams = pushes.iter().flat_map(|(_, push, _)| push.streams.iter().map(move |s| (push, s)));
        let lines = |push: &Push, stream| -> Vec<String> {
            push.entries_of(stream)
                .iter()
                .map(|e| String::from_utf8_lossy(e.line.of(&push.arena)).into_owned())
                .collect()
        };
        streams.map(|(push, s)| format!("{}: {}", s.labels, lines(push, s).join(","))).collect()
    }
}

struct Rig {
    distributor: Distributor,
    ingester: Arc<Ingester>,
    registry: Registry,
}

fn rig_of(config: DistributorConfig, overrides: Overrides) -> Rig {
    let (ingester, registry) = (Arc::new(Ingester::default()), Registry::new());
    let route = Route::Local(Arc::new(Client(Arc::clone(&ingester))));
    let distributor = Distributor::new(config, Arc::new(overrides), route, &registry).expect("fresh registry");
    Rig { distributor, ingester, registry }
}

fn rig(limits: Limits) -> Rig {
    rig_of(DistributorConfig::default(), Overrides::new(limits, HashMap::new()))
}

fn plain() -> Limits {
    Limits { discover_service_name: vec![], discover_log_levels: false, ..Limits::default() }
}

fn request(streams: &[(&str, &[&str])]) -> PushRequest {
    let mut request = PushRequest::default();
    for (labels, lines) in streams {
        let labels = request.intern(labels.as_bytes());
        let first = request.entries.len() as u32;
        for line in *lines {
            let line = request.intern(line.as_bytes());
            request.entries.push(Entry { timestamp: WallClock::default().now(), line, metadata: 0..0 });
        }
        request.streams.push(RawStream { labels, entries: first..request.entries.len() as u32 });
    }
    request
}

fn tenant(name: &str) -> Tenant {
    Tenant::new(name).expect("tenant")
}

impl Rig {
    async fn push(&self, streams: &[(&str, &[&str])]) -> (u16, String) {
        answer(self.distributor.push(tenant("t"), request(streams), "loki").await)
    }

    /// Samples of a metric family as `labels values = value`.
    fn metric(&self, name: &str) -> Vec<String> {
        let families = self.registry.gather();
        let family = families.iter().filter(|f| f.name() == name).flat_map(|f| f.get_metric());
        let text = |m: &prometheus::proto::Metric| {
            let labels: Vec<_> = m.get_label().iter().map(|l| format!("{}={}", l.name(), l.value())).collect();
            let value = m.get_counter().get_value() + m.get_gauge().get_value();
            format!("{} {value}", labels.join(","))
        };
        family.map(text).collect()
    }
}

fn answer(result: Result<(), PushError>) -> (u16, String) {
    result.map_or_else(|e| (e.status, e.message), |()| (204, String::new()))
}

#[tokio::test]
async fn good_pushes_reach_the_ingester_as_one_call() {
    let rig = rig(plain());
    assert_eq!(rig.push(&[(r#"{b="2",a="1"}"#, &["x", "y"]), (r#"{c="3"}"#, &["z"])]).await, (204, String::new()));
    assert_eq!(rig.ingester.stored(), [r#"{a="1", b="2"}: x,y"#, r#"{c="3"}: z"#]);
    let (tenant, push, streams) = rig.ingester.pushes.lock().remove(0);
    assert_eq!((tenant.as_str(), streams), ("t", vec![0, 1]));
    assert_eq!(push.streams[0].token, crate::ring::token_for("t", r#"{a="1", b="2"}"#));
    let labels = "format=loki,is_internal_stream=false,policy=";
    assert_eq!(rig.metric("loki_distributor_lines_received_total"), [format!("{labels},tenant=t 3")]);
    assert_eq!(rig.metric("loki_distributor_bytes_received_total"), [format!("{labels},retention_hours=,tenant=t 3")]);
    assert_eq!(rig.metric("loki_distributor_ingester_appends_total"), ["ingester=local 1"]);
    assert_eq!(rig.metric("loki_distributor_replication_factor"), [" 1"]);
}

#[tokio::test]
async fn no_stream_is_422_and_no_entry_is_204() {
    let rig = rig(plain());
    let text = "error at least one valid stream is required for ingestion".to_string();
    assert_eq!(rig.push(&[]).await, (422, text));
    assert_eq!(rig.push(&[(r#"{a="1"}"#, &[])]).await, (204, String::new()));
    assert!(rig.ingester.pushes.lock().is_empty());
    assert_eq!(
        rig.metric("loki_distributor_push_zero_streams_count"),
        ["stage=post-validation,tenant=t 1", "stage=pre-validation,tenant=t 1"]
    );
}

#[tokio::test]
async fn bad_syntax_refuses_the_request_over_http_and_the_stream_over_grpc() {
    let rig = rig(plain());
    let streams: &[(&str, &[&str])] = &[(r#"{a="1"}"#, &["x"]), ("{a=b}", &["y", "z"])];
    let reason = r#"1:4: parse error: unexpected identifier "b" in label set, expected string"#;
    assert_eq!(rig.push(streams).await, (400, format!("couldn't parse labels: {reason}")));
    assert!(rig.ingester.pushes.lock().is_empty(), "nothing of it is stored");
    let got = answer(rig.distributor.push_grpc(tenant("t"), request(streams)).await);
    assert_eq!(got, (400, format!("error parsing labels '{{a=b}}' with error: {reason}")));
    assert_eq!(rig.ingester.stored(), [r#"{a="1"}: x"#]);
    let empty: &[(&str, &[&str])] = &[("{a=b}", &[])];
    assert_eq!(answer(rig.distributor.push_grpc(tenant("t"), request(empty)).await).0, 204);
    assert_eq!(rig.push(empty).await.0, 400);
    assert_eq!(
        rig.metric("loki_discarded_samples_total"),
        [
            "format=,policy=,reason=invalid_labels,retention_hours=,tenant=t 2",
            "format=loki,policy=,reason=invalid_labels,retention_hours=,tenant=t 3"
        ]
    );
}

#[tokio::test]
async fn good_lines_are_stored_although_others_are_refused() {
    let rig = rig(Limits { max_line_size: 3, max_label_names_per_series: 1, ..plain() });
    let got = rig.push(&[(r#"{a="1"}"#, &["ok", "long"]), (r#"{a="1",b="2"}"#, &["x"])]).await;
    let expected = "1 errors like: max entry size '3' bytes exceeded for stream '{a=\"1\"}' while adding an entry with \
                    length '4' bytes; 1 errors like: entry for stream '{a=\"1\", b=\"2\"}' has 2 label names; limit 1";
    assert_eq!(got, (400, expected.to_string()));
    assert_eq!(rig.ingester.stored(), [r#"{a="1"}: ok"#]);
    assert_eq!(rig.push(&[(r#"{a="1"}"#, &["long"])]).await.0, 400);
    assert_eq!(rig.ingester.stored().len(), 1, "nothing was left to send");
}

#[tokio::test]
async fn the_severest_answer_leads_and_all_are_told() {
    let rig = rig(Limits { max_line_size: 3, ..plain() });
    let streams: &[(&str, &[&str])] = &[(r#"{a="1"}"#, &["ok", "long"])];
    for (error, expected) in [
        (PushError::unavailable("disk full"), 503),
        (PushError::rate_limited("stream limit"), 429),
        (PushError::bad_request("too far behind"), 400),
    ] {
        *rig.ingester.answer.lock() = Some(error.clone());
        let got = rig.distributor.push(tenant("t"), request(streams), "loki").await.expect_err("mixed");
        assert_eq!((got.status, got.retry_after), (expected, error.retry_after));
        assert!(got.message.starts_with(&format!("{}\nmax entry size", error.message)), "{}", got.message);
    }
}

#[tokio::test]
async fn nothing_is_refused_for_good_by_a_clock_in_doubt() {
    let rig = rig(Limits { creation_grace_period: Duration::from_secs(600), max_line_size: 10, ..plain() });
    let clock = Arc::new(WallClock::default());
    let hour = 3_600_000_000_000;
    let late = || {
        let mut request = request(&[(r#"{a="1"}"#, &["now", "later"])]);
        request.entries[1].timestamp += hour;
        request
    };
    let distributor = rig.distributor.with_clock(clock.clone());
    let got = distributor.push(tenant("t"), late(), "loki").await.expect_err("an hour ahead");
    assert_eq!((got.status, got.retry_after), (400, None));
    clock.log_has_seen(clock.now() + hour);
    let got = distributor.push(tenant("t"), late(), "loki").await.expect_err("an hour ahead");
    assert_eq!((got.status, got.retry_after), (503, Some(1)));
    assert!(got.message.contains("behind the newest lines") && got.message.contains("timestamp too new"), "{got}");
    assert_eq!(rig.ingester.stored(), [r#"{a="1"}: now"#; 2], "the good line is stored all the same");
    // What is wrong for another reason stays wrong.
    let got = distributor.push(tenant("t"), request(&[(r#"{a="1"}"#, &["much too long"])]), "loki").await;
    assert_eq!(got.expect_err("too long").status, 400);
}

/// What was compared with a wrong time stays in doubt, though the clock is right again when the answer is made.
#[tokio::test]
async fn nothing_is_refused_for_good_by_a_clock_that_is_put_right_meanwhile() {
    struct UntilRight(Arc<WallClock>);
    impl IngesterClient for UntilRight {
        fn push(&self, _: Tenant, _: Arc<Push>, _: Vec<u32>) -> BoxFuture<'static, Result<(), PushError>> {
            let clock = self.0.clone();
            Box::pin(async move {
                while clock.doubt().is_some() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            })
        }
    }
    let clock = Arc::new(WallClock::default());
    let route = Route::Local(Arc::new(UntilRight(clock.clone())));
    let overrides = Arc::new(Overrides::new(plain(), HashMap::new()));
    let distributor = Distributor::new(DistributorConfig::default(), overrides, route, &Registry::new());
    let distributor = distributor.expect("fresh registry").with_clock(clock.clone());
    let mut late = request(&[(r#"{a="1"}"#, &["now", "later"])]);
    late.entries[1].timestamp += 3_600_000_000_000;
    // Ten minutes behind the log are no doubt: in a second it has caught up.
    clock.log_has_seen(clock.now() + 601_000_000_000);
    let got = distributor.push(tenant("t"), late, "loki").await.expect_err("an hour ahead");
    assert_eq!(clock.doubt(), None);
    assert_eq!((got.status, got.retry_after), (503, Some(1)), "{got}");
    assert!(got.message.contains("behind the newest lines") && got.message.contains("timestamp too new"), "{got}");
}

#[tokio::test]
async fn the_rate_limit_takes_a_request_whole_or_not() {
    let limits = Limits { ingestion_rate: 1000.0, ingestion_burst_size: 10.0, max_line_size: 20, ..plain() };
    let rig = rig(limits);
    let eleven: &[(&str, &[&str])] = &[(r#"{a="1"}"#, &["12345", "123456"])];
    let text = "ingestion rate limit exceeded for user t (limit: 1000 bytes/sec) while attempting to ingest '2' lines \
                totaling '11' bytes, reduce log volume or contact your Loki administrator to see if the limit can be \
                increased";
    assert_eq!(rig.push(eleven).await, (429, text.to_string()));
    assert!(rig.ingester.pushes.lock().is_empty());
    assert_eq!(rig.push(&[(r#"{a="1"}"#, &["12345", "12345", "refused lines weigh nothing"])]).await.0, 400);
    assert_eq!(rig.ingester.stored(), [r#"{a="1"}: 12345,12345"#]);
    let discarded = rig.metric("loki_discarded_bytes_total");
    assert!(discarded.contains(&"format=loki,policy=,reason=rate_limited,retention_hours=,tenant=t 11".to_string()));
}

#[tokio::test]
async fn a_global_rate_is_shared_by_distributors() {
    let limits = Limits { ingestion_rate: 9.0, ingestion_burst_size: 1.0, ..plain() };
    for (strategy, expected) in [(RateStrategy::Global, "limit: 3 bytes"), (RateStrategy::Local, "limit: 9 bytes")] {
        let config =
            DistributorConfig { ingestion_rate_strategy: strategy, healthy_distributors: 3, ..Default::default() };
        let rig = rig_of(config, Overrides::new(limits.clone(), HashMap::new()));
        assert!(rig.push(&[(r#"{a="1"}"#, &["xx"])]).await.1.contains(expected));
    }
}

#[tokio::test]
async fn tenants_have_their_own_limits_and_buckets() {
    let strict = Limits { max_label_value_length: 3, ingestion_burst_size: 2.0, ingestion_rate: 0.001, ..plain() };
    let overrides = |strict: Limits| Overrides::new(plain(), HashMap::from([("strict".to_string(), strict)]));
    let rig = rig_of(DistributorConfig::default(), overrides(strict.clone()));
    let push = |name: &'static str, labels: &'static str| {
        let streams: &[(&str, &[&str])] = &[(labels, &["x"])];
        let pushed = rig.distributor.push(tenant(name), request(streams), "loki");
        async move { answer(pushed.await).0 }
    };
    // The label text is in the cache from the first tenant.
    assert_eq!(push("free", r#"{a="long"}"#).await, 204);
    assert_eq!(push("strict", r#"{a="long"}"#).await, 400);
    assert_eq!(push("strict", r#"{a="lng"}"#).await, 204);
    assert_eq!(push("strict", r#"{a="lng"}"#).await, 204);
    assert_eq!(push("strict", r#"{a="lng"}"#).await, 429);
    assert_eq!(push("free", r#"{a="long"}"#).await, 204);
    rig.distributor.set_overrides(Arc::new(overrides(Limits { max_label_value_length: 4, ..plain() })));
    assert_eq!(push("strict", r#"{a="long"}"#).await, 204, "new limits hold at once");
}

#[tokio::test]
async fn absurd_labels_are_refused() {
    let rig = rig(plain());
    let huge = format!("{{a=\"{}\"}}", "x".repeat(1 << 24));
    let (status, text) = rig.push(&[(&huge, &["x"])]).await;
    assert_eq!(status, 413);
    assert!(text.starts_with("request body too large: stream labels size 16777222 exceeds limit of"), "{text}");
    let mut bad = request(&[(r#"{a="1"}"#, &["x"])]);
    bad.arena[0] = 0xff;
    let (status, text) = answer(rig.distributor.push(tenant("t"), bad, "loki").await);
    assert_eq!(status, 400);
    assert!(text.contains("not UTF-8"), "{text}");
}

#[tokio::test]
async fn real_metrics_are_registered_once() {
    let rig = rig(plain());
    let route = Route::Local(Arc::new(Client(Arc::clone(&rig.ingester))));
    let again = Distributor::new(DistributorConfig::default(), Arc::default(), route, &rig.registry);
    assert!(again.is_err());
}
