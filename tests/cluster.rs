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

/// The lines of a server's own log that have this text.
fn logged(server: &Server, text: &str) -> Vec<String> {
    let log = std::fs::read_to_string(server.dir.join("server.log")).unwrap();
    log.lines().filter(|line| line.contains(text)).map(str::to_string).collect()
}

#[track_caller]
fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
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
    let refused = cluster.push(&body("two dead"));
    refused.assert_error(503, "at least 2 live replicas required, could only find 1 - unhealthy instances: ");
    for i in [0, 1] {
        let why = format!("\ningester ingester-{i} (127.0.0.1:{}): Unavailable: ", cluster.ingesters[i].ports.1);
        let text = refused.text();
        assert!(text.contains(&why) && text.contains("Connection refused"), "{text}");
    }
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

/// Nothing was pushed: the checks alone tell an ingester that is not there, and that it has come.
#[test]
fn an_ingester_that_is_away_is_told_once_and_shown_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let ports: Vec<(u16, u16)> = (0..2).map(|_| (free_port(), free_port())).collect();
    let _there = start_ingester(&dir.path().join("there"), ports[0], "");
    let yaml = format!(
        "target: distributor\nauth_enabled: false\ncommon: {{path_prefix: {}, replication_factor: 2, ring: {{instances: \
         [{{id: there, addr: '127.0.0.1:{}'}}, {{id: away, addr: '127.0.0.1:{}'}}]}}}}\n",
        dir.path().join("data").display(),
        ports[0].1,
        ports[1].1
    );
    let distributor_dir = dir.path().join("distributor");
    let mut distributor = Server::spawn_with(&distributor_dir, (free_port(), free_port()), &yaml, &[]);
    distributor.wait_ready();
    let states = || {
        let ring = send(&distributor.addr, "GET", "/ring", &[], b"").json();
        let state = |id: &str| {
            let shards = ring["shards"].as_array().unwrap();
            shards.iter().find(|s| s["id"] == id).unwrap()["state"].as_str().unwrap().to_string()
        };
        (state("there"), state("away"))
    };
    let are = |there: &str, away: &str| states() == (there.to_string(), away.to_string());
    wait_for("who is away is UNHEALTHY", || are("ACTIVE", "UNHEALTHY"));
    let _away = start_ingester(&dir.path().join("away"), ports[1], "");
    wait_for("who is back is ACTIVE", || are("ACTIVE", "ACTIVE"));
    let told = logged(&distributor, "ingester=away");
    assert_eq!(told.len(), 2, "one warning, and one line when it is back: {told:#?}");
    assert!(told[0].contains("level=warn") && told[0].contains("Connection refused"), "{}", told[0]);
    assert!(told[1].contains("level=info") && told[1].contains("passes its health checks again"), "{}", told[1]);
    assert_eq!(logged(&distributor, "msg=\"ready: pushes are handed on to the ingesters").len(), 1);
}

#[test]
fn a_distributor_says_that_it_has_nothing_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "target: distributor\nauth_enabled: false\ncommon: {{path_prefix: {}, ring: {{instances: [{{id: a, addr: 'localhost:1'}}]}}}}\n",
        dir.path().join("data").display()
    );
    let mut server = Server::spawn_with(dir.path(), (free_port(), free_port()), &yaml, &[]);
    server.wait_ready();
    for target in ["query_range?query=%7Ba%3D%22b%22%7D", "query", "labels", "label/a/values", "series"] {
        let reply = send(&server.addr, "GET", &format!("/loki/api/v1/{target}"), &[], b"");
        reply.assert_error(404, "this process is a distributor (-target=distributor)");
    }
}
