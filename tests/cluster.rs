//! A distributor before three ingesters, all real processes, every stream on each of the three.

mod support;

use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use support::{PUSH, Reply, SMALL_WAL, Server, free_port, now, one_stream, send};

struct Member {
    ports: (u16, u16),
    dir: std::path::PathBuf,
    /// `None`: dead.
    server: Option<Server>,
}

struct Cluster {
    distributor: Server,
    ingesters: Vec<Member>,
    limits: &'static str,
    dir: tempfile::TempDir,
}

fn start_ingester(dir: &Path, ports: (u16, u16), limits: &str) -> Server {
    let common = format!("common: {{path_prefix: {}, replication_factor: 1}}\n", dir.join("data").display());
    let yaml = format!("target: ingester\nauth_enabled: true\n{common}{SMALL_WAL}limits_config: {{{limits}}}\n");
    Server::spawn_with(dir, ports, &yaml, &[])
}

impl Cluster {
    /// `limits` are those of the ingesters.
    fn start(limits: &'static str) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let mut ingesters: Vec<Member> = (0..3)
            .map(|i| {
                let (dir, ports) = (dir.path().join(format!("ingester-{i}")), (free_port(), free_port()));
                Member { server: Some(start_ingester(&dir, ports, limits)), dir, ports }
            })
            .collect();
        let instance = |(i, m): (usize, &Member)| format!("{{id: ingester-{i}, addr: '127.0.0.1:{}'}}", m.ports.1);
        let instances: Vec<String> = ingesters.iter().enumerate().map(instance).collect();
        let yaml = format!(
            "target: distributor\nauth_enabled: true\ncommon: {{path_prefix: {}, replication_factor: 3, ring: {{instances: [{}]}}}}\n",
            dir.path().join("data").display(),
            instances.join(", ")
        );
        let mut distributor =
            Server::spawn_with(&dir.path().join("distributor"), (free_port(), free_port()), &yaml, &[]);
        distributor.wait_ready();
        ingesters.iter_mut().for_each(|m| m.server.as_mut().unwrap().wait_ready());
        Cluster { distributor, ingesters, limits, dir }
    }

    fn push(&self, body: &str) -> Reply {
        let headers = [("Content-Type", "application/json"), ("X-Scope-OrgID", "t1"), ("User-Agent", "shop/1.0")];
        send(&self.distributor.addr, "POST", PUSH, &headers, body.as_bytes())
    }

    fn kill(&mut self, i: usize) {
        self.ingesters[i].server.take().unwrap().kill();
    }

    fn revive(&mut self, i: usize) {
        let member = &mut self.ingesters[i];
        let mut server = start_ingester(&member.dir, member.ports, self.limits);
        server.wait_ready();
        member.server = Some(server);
    }

    /// How many of the living ingesters have the line.
    fn copies(&self, line: &str) -> usize {
        let target = format!("/loki/api/v1/query_range?limit=5000&query={}", support::encode(r#"{app=~".+"}"#));
        let has = |server: &&Server| {
            let found = send(&server.addr, "GET", &target, &[("X-Scope-OrgID", "t1")], b"");
            assert_eq!(found.status, 200, "{}", found.text());
            let results = found.json()["data"]["result"].as_array().unwrap().clone();
            results.iter().any(|r| r["values"].as_array().unwrap().iter().any(|v| v[1] == line))
        };
        self.ingesters.iter().filter_map(|m| m.server.as_ref()).filter(has).count()
    }
}

fn body(line: &str) -> String {
    one_stream(json!({"app": "shop"}), &[line])
}

#[test]
fn a_push_outlives_one_ingester_and_not_two() {
    let mut cluster = Cluster::start("");
    cluster.push(&body("all there")).assert_stored();
    assert!(cluster.copies("all there") >= 2);
    cluster.kill(0);
    for i in 0..5 {
        let line = format!("one dead {i}");
        cluster.push(&body(&line)).assert_stored();
        assert_eq!(cluster.copies(&line), 2, "success is two copies on disk");
    }
    cluster.kill(1);
    cluster.push(&body("two dead")).assert_error(503, "");
    // The same push again, when there are enough.
    cluster.revive(0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while cluster.push(&body("back")).status != 204 {
        assert!(Instant::now() < deadline, "the distributor does not find an ingester that came back");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(cluster.copies("back"), 2);
    assert!(cluster.copies("all there") >= 1, "read back after kill -9");
}

#[test]
fn a_slow_ingester_is_not_waited_for() {
    let cluster = Cluster::start("");
    cluster.push(&body("first")).assert_stored();
    let slow = cluster.ingesters[2].server.as_ref().unwrap();
    slow.signal("STOP");
    let start = Instant::now();
    for i in 0..10 {
        cluster.push(&body(&format!("line {i}"))).assert_stored();
    }
    let took = start.elapsed();
    slow.signal("CONT");
    assert!(took < Duration::from_secs(2), "10 pushes took {took:?}");
    // It gets its copies when it goes on: the calls were not dropped with the answer.
    let deadline = Instant::now() + Duration::from_secs(4);
    while cluster.copies("line 9") < 3 {
        assert!(Instant::now() < deadline, "the slow ingester lost a push that was on its way");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What an ingester refuses is told with its own status and words; what is wrong with the push never gets there.
#[test]
fn refusals_keep_their_status_through_the_distributor() {
    let cluster = Cluster::start("max_streams_per_user: 2");
    let at = now();
    let stream = |name: &str, line: &str| json!({"stream": {"app": name}, "values": [[at.to_string(), line]]});
    let push = |streams: serde_json::Value| cluster.push(&json!({"streams": streams}).to_string());
    push(json!([stream("1", "l1"), stream("2", "l2")])).assert_stored();
    push(json!([stream("3", "l3"), stream("1", "more")])).assert_error(
        429,
        "maximum active stream limit exceeded when trying to create stream {app=\"3\", service_name=\"3\"}",
    );
    assert!(cluster.copies("more") >= 2, "the good stream of a 429 is stored");
    assert_eq!(cluster.copies("l3"), 0);
    let long = "x".repeat(262_145);
    push(json!([stream("1", &long), stream("2", "kept")])).assert_error(400, "max entry size '262144' bytes exceeded");
    assert!(cluster.copies("kept") >= 2);
    // Whoever has refused it names the program that sent it, also behind the distributor.
    let refused = |server: &Server, reason: &str| {
        let page = send(&server.addr, "GET", "/api/v1/status", &[], b"").json();
        let found = page["tenants"]["by_rejection"].as_array().unwrap().iter().find(|r| r["reason"] == reason).cloned();
        found.unwrap_or_else(|| panic!("no {reason}: {page:#}"))
    };
    let ingester = cluster.ingesters[0].server.as_ref().unwrap();
    for (server, reason) in [(ingester, "stream_limit"), (&cluster.distributor, "line_too_long")] {
        let refused = refused(server, reason);
        assert_eq!(
            (&refused["tenant"], &refused["user_agents"]["last"]),
            (&json!("t1"), &json!("shop/1.0")),
            "{refused:#}"
        );
    }
    let ring = send(&cluster.distributor.addr, "GET", "/ring", &[], b"").json();
    let ids: Vec<&str> = ring["shards"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["ingester-0", "ingester-1", "ingester-2"]);
    assert!(cluster.dir.path().exists());
}
