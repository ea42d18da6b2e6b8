//! `timberline -check` as an init container and an operator run it: what it says, its exit code, and that it changes nothing.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::server::Mounted;
use support::{SMALL_WAL, TestServer, free_port, one_stream};

/// A directory with a configuration that the checks are about.
struct Place {
    dir: tempfile::TempDir,
    ports: (u16, u16),
    /// Beside `common` and `server`.
    yaml: String,
}

impl Place {
    fn new(yaml: &str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), ports: (free_port(), free_port()), yaml: yaml.to_string() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn run(&self, args: &[&str]) -> Output {
        let config = self.dir.path().join("check.yaml");
        let text = format!(
            "server: {{http_listen_address: 127.0.0.1, http_listen_port: {}, grpc_listen_address: 127.0.0.1, grpc_listen_port: {}}}\n\
             common: {{path_prefix: {}}}\n{}",
            self.ports.0,
            self.ports.1,
            self.data().display(),
            self.yaml
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_timberline"));
        command.args(["-check", &format!("-config.file={}", config.display())]).args(args);
        command.output().unwrap()
    }

    /// Exit code and what every check says.
    fn check(&self) -> (Option<i32>, Value) {
        let output = self.run(&["-check.format=json"]);
        let page = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        (output.status.code(), page)
    }

    /// A log in it, of a server that is gone.
    fn with_log(yaml: &str, end: impl FnOnce(support::Server)) -> Self {
        let place = Self::new(&format!("{SMALL_WAL}{yaml}"));
        let dir = tempfile::tempdir().unwrap();
        let TestServer { server, dir } = TestServer::again(dir, SMALL_WAL.trim_end());
        let server = TestServer { server, dir };
        for n in 0..3 {
            let headers = [("Content-Type", "application/json"), ("X-Scope-OrgID", "t")];
            let body = one_stream(json!({"app": "a"}), &[&format!("line {n} to be found")]);
            server.send("POST", support::PUSH, &headers, body.as_bytes()).assert_stored();
        }
        let TestServer { server, dir } = server;
        end(server);
        fs::rename(dir.path().join("data"), place.data()).unwrap();
        place
    }
}

fn finding<'a>(page: &'a Value, check: &str) -> &'a Value {
    let checks = page["checks"].as_array().unwrap();
    checks.iter().find(|c| c["check"] == check).unwrap_or_else(|| panic!("no {check}: {page:#}"))
}

/// Every file and directory: size, permissions, content.
fn content(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        let bytes = if metadata.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
        if metadata.is_dir() {
            out.extend(content(&path));
        }
        out.insert(path, (metadata.permissions().mode(), bytes));
    }
    out
}

/// The limits of this machine are not what these tests are about.
const SMALL_BUDGETS: &str =
    "ingester: {memory_budget: 256MB, blocks: {max_size: 16MB}, wal: {segment_size: 1MB, max_size: 16MB}}\n";

#[test]
fn a_place_for_a_new_server_is_fine_and_stays_as_it_is() {
    let place = Place::new(SMALL_BUDGETS);
    let (code, page) = place.check();
    assert_eq!(code, Some(0), "{page:#}");
    assert!(!place.data().exists());
    assert_eq!((&finding(&page, "log")["state"], &finding(&page, "log")["level"]), (&json!("new"), &json!("ok")));
    assert!(finding(&page, "directory")["text"].as_str().unwrap().contains("does not exist; a start makes it in"));
    assert_eq!(finding(&page, "sync latency")["level"], "skipped");
    for check in ["space", "memory", "lock", "one file system", "http port", "grpc port"] {
        assert_eq!(finding(&page, check)["level"], "ok", "{page:#}");
    }
    let output = place.run(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("\nok       lock             no server is running here\n"), "{text}");
    assert!(text.lines().last().unwrap().starts_with("verdict: "), "{text}");
}

#[test]
fn a_log_is_planned_and_not_changed() {
    let place = Place::with_log("", |server| assert_eq!(server.terminate(), Some(0)));
    let before = content(&place.data());
    let (code, page) = place.check();
    assert_eq!(code, Some(0), "{page:#}");
    assert_eq!(content(&place.data()), before, "something was changed");
    let log = finding(&page, "log");
    assert_eq!((&log["state"], &log["level"], &log["lost_lines"]), (&json!("sound"), &json!("ok"), &json!(0)));
    let sync = finding(&page, "sync latency");
    assert!(
        sync["p50_seconds"].as_f64().unwrap() > 0.0 && sync["p99_seconds"].as_f64() >= sync["p50_seconds"].as_f64()
    );

    // A flipped byte: with salvage a warning, with refuse an error; `-check.strict` tells warnings by the exit code.
    let segment = place.data().join("wal/00000000000000000001.wal");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(9).position(|w| w == b"to be fou").expect("the first line is not compressed away");
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let before = content(&place.data());
    let (code, page) = place.check();
    let log = finding(&page, "log");
    assert_eq!((code, &log["state"], &log["level"]), (Some(0), &json!("damaged"), &json!("warning")), "{page:#}");
    assert_eq!((&log["lost_lines"], &log["start_would_refuse"]), (&json!(1), &json!(false)), "{page:#}");
    assert!(log["next"].as_str().unwrap().contains("wal-inspect verify"), "{page:#}");
    assert_eq!(place.run(&["-check.strict"]).status.code(), Some(3));
    let refuse = place.run(&["-ingester.wal-on-damage=refuse"]);
    let text = String::from_utf8(refuse.stdout).unwrap();
    assert_eq!(refuse.status.code(), Some(1), "{text}");
    assert!(text.contains("error    log") && text.contains("a start refuses this"), "{text}");
    assert_eq!(content(&place.data()), before, "something was changed");
}

#[test]
fn a_running_server_is_named_and_its_ports_are_no_error() {
    let mut server = TestServer::with_all(&format!("auth_enabled: false\n{SMALL_BUDGETS}"));
    let port = |addr: &str| addr.rsplit_once(':').unwrap().1.parse().unwrap();
    let ports = (port(&server.server.addr), port(&server.server.grpc));
    let mut place = Place::new(SMALL_BUDGETS);
    place.ports = ports;
    let (code, page) = place.check();
    assert_eq!(code, Some(1), "{page:#}");
    for check in ["http port", "grpc port"] {
        let port = finding(&page, check);
        assert_eq!(port["level"], "error", "{page:#}");
        assert!(port["next"].as_str().unwrap().contains("listen-port"), "{page:#}");
    }
    std::os::unix::fs::symlink(server.dir.path().join("data"), place.data()).unwrap();
    let (code, page) = place.check();
    assert_eq!(code, Some(1), "{page:#}");
    let lock = finding(&page, "lock");
    assert_eq!((&lock["level"], &lock["holder"]), (&json!("error"), &json!(format!("pid {}", server.server.pid()))));
    for check in ["http port", "grpc port", "log"] {
        assert_eq!(finding(&page, check)["level"], "skipped", "{page:#}");
    }
    // It takes no notice.
    server.push(&one_stream(json!({"a": "b"}), &["l"])).assert_stored();
    server.server.kill_in_place();
    let (_, page) = place.check();
    assert_eq!(finding(&page, "lock")["level"], "ok", "{page:#}");
}

#[test]
fn what_keeps_a_start_from_succeeding_is_an_error_that_says_what_to_do() {
    let place = Place::new(SMALL_BUDGETS);
    fs::write(place.data(), b"a file").unwrap();
    let (code, page) = place.check();
    let directory = finding(&page, "directory");
    assert_eq!((code, &directory["level"]), (Some(1), &json!("error")), "{page:#}");
    assert!(directory["text"].as_str().unwrap().contains("is no directory"), "{page:#}");

    let place = Place::new("ingester: {require_data: true, wal: {segment_size: 1MB}}\n");
    let (code, page) = place.check();
    assert_eq!(code, Some(1), "{page:#}");
    assert!(finding(&page, "log")["text"].as_str().unwrap().contains("is the right volume mounted?"), "{page:#}");

    let place = Place::new("ingester: {memory_budget: 100TB, blocks: {max_size: 900TB}, wal: {segment_size: 1MB}}\n");
    let (code, page) = place.check();
    assert_eq!(code, Some(0), "{page:#}");
    for check in ["memory", "space"] {
        assert_eq!(finding(&page, check)["level"], "warning", "{page:#}");
    }

    let place = Place::new(SMALL_BUDGETS);
    let file = |name: &str| format!("{}/testdata/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let certificate = format!("-server.http-tls-cert-path={}", file("server.crt"));
    for (key, code) in [("server.key", 0), ("client.key", 1), ("absent.key", 1)] {
        let key = format!("-server.http-tls-key-path={}", file(key));
        let output = place.run(&["-check.format=json", &certificate, &key]);
        let page: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{key}: {page:#}");
        let told = page["checks"].as_array().unwrap().iter().find(|c| c["check"] == "TLS");
        assert_eq!(told.is_some(), code == 1, "{page:#}");
        if let Some(told) = told {
            let text = told["text"].as_str().unwrap();
            assert!(text.contains("server.http_tls_config: ") && told["next"].is_string(), "{page:#}");
        }
    }

    // Wrong usage is told apart from what was found.
    for args in [&["-check.format=xml"][..], &["-no-such-flag"], &["-check.strict=maybe"]] {
        assert_eq!(place.run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn file_systems_that_keep_nothing_are_told_and_two_for_the_logs_are_an_error() {
    let place = Place::new(SMALL_BUDGETS);
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=100m", "none"], &place.data()) else { return };
    let (code, page) = place.check();
    let mount = finding(&page, "file system");
    assert_eq!(
        (code, &mount["level"], &mount["file_system"]),
        (Some(0), &json!("warning"), &json!("tmpfs")),
        "{page:#}"
    );
    let apart = format!("-ingester.wal-dir={}", place.dir.path().join("wal").display());
    let output = place.run(&[&apart]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error    one file system"), "{text}");
}
