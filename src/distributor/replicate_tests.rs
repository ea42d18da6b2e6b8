use super::super::{BoxFuture, IngesterClient, PoolConfig};
use super::*;
use crate::model::{Entry, LabelSet, PushStream};
use crate::ring::token_for;
use parking_lot::Mutex;
use prometheus::Registry;
use std::time::Instant;

#[derive(Clone, Debug)]
enum Does {
    Store,
    StoreAfter(Duration),
    Fail(u16),
    FailAfter(u16, Duration),
    Hang,
    Panic,
}

struct Fake {
    does: Does,
    /// Streams that were stored.
    stored: Arc<Mutex<Vec<u32>>>,
}

impl IngesterClient for Fake {
    fn push(&self, _: Tenant, _: Arc<Push>, streams: Vec<u32>) -> BoxFuture<'static, Result<(), PushError>> {
        let (does, stored) = (self.does.clone(), Arc::clone(&self.stored));
        Box::pin(async move {
            match does {
                Does::StoreAfter(delay) | Does::FailAfter(_, delay) => tokio::time::sleep(delay).await,
                Does::Hang => std::future::pending().await,
                Does::Panic => panic!("a planted panic"),
                Does::Store | Does::Fail(_) => {}
            }
            if let Does::Fail(status) | Does::FailAfter(status, _) = does {
                return Err(PushError::with_status(status, format!("planted {status}")));
            }
            stored.lock().extend(streams);
            Ok(())
        })
    }

    fn check(&self) -> BoxFuture<'static, Result<(), PushError>> {
        let does = self.does.clone();
        Box::pin(async move {
            match does {
                Does::Store => Ok(()),
                Does::Hang => std::future::pending().await,
                _ => Err(PushError::unavailable("planted")),
            }
        })
    }
}

struct Cluster {
    replicator: Replicator,
    stored: Vec<Arc<Mutex<Vec<u32>>>>,
    members: Vec<(String, String)>,
}

fn cluster_with(does: &[Does], replication_factor: usize, config: PoolConfig) -> Cluster {
    let members: Vec<(String, String)> = (0..does.len()).map(|i| (format!("ing-{i}"), format!("host-{i}:1"))).collect();
    let stored: Vec<Arc<Mutex<Vec<u32>>>> = does.iter().map(|_| Arc::default()).collect();
    let fakes: Vec<(String, Does, Arc<Mutex<Vec<u32>>>)> =
        members.iter().zip(does).zip(&stored).map(|((m, d), s)| (m.1.clone(), d.clone(), Arc::clone(s))).collect();
    let connect = move |addr: &str| -> Arc<dyn IngesterClient> {
        let (_, does, stored) = fakes.iter().find(|(a, _, _)| a == addr).expect("known");
        Arc::new(Fake { does: does.clone(), stored: Arc::clone(stored) })
    };
    let registry = Registry::new();
    let ring = Ring::of_static(members.iter().map(|(id, addr)| (id.as_str(), addr.as_str())), 128);
    let replicator = Replicator {
        ring: Arc::new(SharedRing::new(ring)),
        pool: Arc::new(ClientPool::new(Box::new(connect), config, &registry).expect("fresh registry")),
        replication_factor,
        remote_timeout: Duration::from_millis(300),
        metrics: Metrics::register(&registry).expect("fresh registry"),
    };
    Cluster { replicator, stored, members }
}

fn push_of(streams: usize) -> Arc<Push> {
    let mut push = Push { arena: b"line".to_vec(), ..Push::default() };
    for i in 0..streams {
        let labels = LabelSet::new([("job", i.to_string())]);
        let token = token_for("t", labels.text());
        push.entries.push(Entry::default());
        push.streams.push(PushStream { labels: Arc::new(labels), token, entries: i as u32..i as u32 + 1 });
    }
    Arc::new(push)
}

async fn run(cluster: &Cluster, push: Arc<Push>) -> Result<(), PushError> {
    cluster.replicator.push(Tenant::new("t").expect("tenant"), push, 0).await
}

async fn status(does: &[Does], rf: usize) -> u16 {
    let cluster = cluster_with(does, rf, PoolConfig::default());
    run(&cluster, push_of(1)).await.map_or_else(|e| e.status, |()| 204)
}

#[tokio::test]
async fn quorum_of_three() {
    use Does::{Fail, FailAfter, Hang, Store, StoreAfter};
    let late = Duration::from_millis(50);
    let cases: &[(&[Does], u16)] = &[
        (&[Store, Store, Store], 204),
        (&[Fail(503), Store, Store], 204),
        (&[Store, Hang, Store], 204),
        (&[Fail(503), Fail(503), Store], 503),
        (&[Hang, Fail(500), Store], 503),
        (&[Fail(503), Fail(503), Fail(503)], 503),
        // One that refuses is outvoted; two are not.
        (&[Fail(429), Store, Store], 204),
        (&[Fail(429), StoreAfter(late), StoreAfter(late)], 204),
        (&[Fail(400), Fail(400), Store], 400),
        (&[Fail(400), Fail(429), Store], 429),
        // A refusal is only told when enough hold the rest of the push, else the client must come again.
        (&[Fail(503), Fail(400), FailAfter(503, late)], 503),
        (&[Fail(400), Fail(503), StoreAfter(late)], 400),
    ];
    for (does, expected) in cases {
        assert_eq!(status(does, 3).await, *expected, "{does:?}");
    }
}

#[tokio::test]
async fn one_ingester_is_its_own_quorum() {
    for (does, expected) in [(Does::Store, 204), (Does::Fail(400), 400), (Does::Fail(500), 503), (Does::Panic, 503)] {
        assert_eq!(status(&[does], 1).await, expected);
    }
}

#[tokio::test]
async fn a_slow_replica_is_not_waited_for_and_still_gets_the_push() {
    let slow = Duration::from_millis(200);
    let cluster = cluster_with(&[Does::Store, Does::StoreAfter(slow), Does::Store], 3, PoolConfig::default());
    let begin = Instant::now();
    run(&cluster, push_of(5)).await.expect("quorum");
    assert!(begin.elapsed() < slow, "{:?}", begin.elapsed());
    assert!(cluster.stored[1].lock().is_empty());
    tokio::time::sleep(slow + Duration::from_millis(90)).await;
    assert_eq!(*cluster.stored[1].lock(), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_dropped_push_still_reaches_the_replicas() {
    let slow = Duration::from_millis(50);
    let cluster = cluster_with(&[Does::StoreAfter(slow)], 1, PoolConfig::default());
    let given_up = tokio::time::timeout(Duration::from_millis(5), run(&cluster, push_of(1))).await;
    assert!(given_up.is_err());
    tokio::time::sleep(slow * 3).await;
    assert_eq!(*cluster.stored[0].lock(), [0]);
}

#[tokio::test]
async fn each_stream_goes_to_its_replicas() {
    let cluster = cluster_with(&[Does::Store, Does::Store, Does::Store, Does::Store], 1, PoolConfig::default());
    run(&cluster, push_of(200)).await.expect("stored");
    let mut all: Vec<u32> = cluster.stored.iter().flat_map(|s| s.lock().clone()).collect();
    assert!(cluster.stored.iter().all(|s| !s.lock().is_empty()));
    all.sort_unstable();
    assert_eq!(all, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_call_has_a_timeout() {
    let cluster = cluster_with(&[Does::Hang], 1, PoolConfig::default());
    let error = run(&cluster, push_of(1)).await.expect_err("hangs");
    let expected = "at least 1 live replicas required, could only find 0 - unhealthy instances: host-0:1\n\
                    ingester ing-0 (host-0:1): it did not answer within 300ms";
    assert_eq!((error.status, error.message.as_str()), (503, expected));
    let metrics = &cluster.replicator.metrics;
    assert_eq!(metrics.append_timeouts.with_label_values(&["host-0:1"]).get(), 1);
    assert_eq!(metrics.appends.with_label_values(&["host-0:1"]).get(), 1);
}

#[tokio::test]
async fn bytes_on_their_way_are_bounded() {
    let config = PoolConfig { max_inflight_bytes: 1, ..PoolConfig::default() };
    let cluster = cluster_with(&[Does::StoreAfter(Duration::from_millis(50))], 1, config);
    let (first, second) = tokio::join!(run(&cluster, push_of(1)), run(&cluster, push_of(1)));
    assert!(first.is_ok(), "an empty queue admits any push");
    assert_eq!(second.expect_err("no room").status, 503);
    assert!(run(&cluster, push_of(1)).await.is_ok(), "room comes back");
}

#[tokio::test]
async fn ring_errors_are_503_before_anything_is_sent() {
    let cluster = cluster_with(&[Does::Store], 3, PoolConfig::default());
    let error = run(&cluster, push_of(1)).await.expect_err("one of three");
    assert_eq!(error.status, 503);
    assert!(error.message.starts_with("at least 2 live replicas required, could only find 1"), "{}", error.message);
    assert!(cluster.stored[0].lock().is_empty());
    let empty = cluster_with(&[], 1, PoolConfig::default());
    let error = run(&empty, push_of(1)).await.expect_err("empty");
    assert_eq!((error.status, error.message.as_str()), (503, "empty ring"));
}

#[tokio::test]
async fn a_lost_push_tells_which_ingesters_failed_and_why() {
    let cluster = cluster_with(&[Does::Fail(500), Does::Hang, Does::Fail(429)], 3, PoolConfig::default());
    let error = run(&cluster, push_of(2)).await.expect_err("no quorum");
    let expected = "at least 2 live replicas required, could only find 1 - unhealthy instances: host-0:1,host-1:1\n\
                    ingester ing-0 (host-0:1): planted 500\n\
                    ingester ing-1 (host-1:1): it did not answer within 300ms\n\
                    planted 429";
    assert_eq!((error.status, error.message.as_str()), (503, expected));
    assert!(error.retry_after.is_some());
}

#[tokio::test]
async fn checks_see_ingesters_that_no_push_has_gone_to() {
    let config = PoolConfig { check_timeout: Duration::from_millis(20), ..PoolConfig::default() };
    let cluster = cluster_with(&[Does::Store, Does::Fail(503), Does::Hang], 1, config);
    let (pool, ring) = (&cluster.replicator.pool, cluster.replicator.ring.load());
    assert_eq!(pool.problem("host-1:1"), None, "nobody has asked yet");
    assert!(!pool.check(&ring).await);
    assert_eq!(pool.problem("host-0:1"), None);
    assert_eq!(pool.problem("host-1:1"), Some("planted".to_string()));
    assert_eq!(pool.problem("host-2:1"), Some("no answer to a health check within 20ms".to_string()));
    // Who has left the ring is no member that fails.
    assert!(pool.check(&Ring::of_static([("ing-0", "host-0:1")], 1)).await);
    assert_eq!(pool.problem("host-1:1"), None);
}

#[tokio::test]
async fn checks_drop_clients_that_fail_or_left() {
    let config = PoolConfig { check_timeout: Duration::from_millis(20), ..PoolConfig::default() };
    let cluster = cluster_with(&[Does::Store, Does::Hang, Does::Fail(503), Does::Store], 1, config);
    let pool = &cluster.replicator.pool;
    let before: Vec<_> = cluster.members.iter().map(|(_, addr)| pool.get(addr)).collect();
    // The last one is not in the ring any more.
    let members = cluster.members.iter().take(3).map(|(id, addr)| (id.as_str(), addr.as_str()));
    pool.check(&Ring::of_static(members, 1)).await;
    let kept: Vec<bool> =
        cluster.members.iter().zip(&before).map(|((_, addr), old)| Arc::ptr_eq(&pool.get(addr), old)).collect();
    assert_eq!(kept, [true, false, false, false]);
}
