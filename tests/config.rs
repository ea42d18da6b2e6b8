//! The configuration as an operator meets it: the files that we ship, the files of Loki's users, the messages.
//!
//! `config/timberline.yaml` and the table in `docs/configuration.md` are made from the table of keys; with
//! `TIMBERLINE_BLESS=1` these tests write them, otherwise they compare.

#[path = "../build.rs"]
#[allow(dead_code)]
mod build;

use std::fs;
use std::path::Path;
use std::process::Output;
use timberline::server::config::{Config, EMBEDDED, File, Key, Loaded, SECTIONS, keys, load};
use timberline::server::flags::{Command, parse};

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn loaded(text: &str) -> Loaded {
    load(File { name: "t.yaml", text, expand_env: false }, &[], |_| Err("not read".to_string())).unwrap()
}

/// The generated text is in the file; with `TIMBERLINE_BLESS` it is put there.
fn check(name: &str, expected: &str) {
    if std::env::var_os("TIMBERLINE_BLESS").is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), expected).unwrap();
    }
    let actual = read(name);
    let at = actual.lines().zip(expected.lines()).position(|(a, b)| a != b);
    assert!(
        actual == expected,
        "{name} is stale at line {:?}; run TIMBERLINE_BLESS=1 cargo test --test config",
        at.map(|n| n + 1)
    );
}

/// A prose line starts with `# `, a key that is left at its default with `#` alone.
fn sample_file(embedded: &Config) -> String {
    let mut text = String::from(
        "# Timberline's embedded configuration: what holds without -config.file. It is made to be tried on a laptop: loopback\n\
         # addresses, no tenants, data in ./data, and limits above Loki's. Every key is shown. A key behind a # has its default;\n\
         # the others differ from it, and their defaults are told. In a file of your own, keys left out have their defaults.\n",
    );
    let (mut title, mut open): (Option<&str>, Vec<&str>) = (None, Vec::new());
    for key in keys() {
        let parts: Vec<&str> = key.path.split('.').collect();
        let (name, sections) = parts.split_last().unwrap();
        let section = sections.first().copied().unwrap_or("");
        if title != Some(section) {
            let heading = SECTIONS.iter().find(|(s, _)| *s == section).map(|(_, h)| h).unwrap();
            text.push_str(&format!("\n# --- {heading} ---\n"));
            title = Some(section);
        }
        let same = sections.iter().zip(&open).take_while(|(a, b)| a == b).count();
        for (depth, section) in sections.iter().enumerate().skip(same) {
            text.push_str(&format!("{}{section}:\n", "  ".repeat(depth)));
        }
        open = sections.to_vec();
        text.push_str(&item(key, name, &"  ".repeat(sections.len()), embedded));
    }
    text.push_str(
        "\n# Limits of single tenants: what differs from limits_config.\n#overrides:\n#  tenant-a:\n#    max_line_size: 1MB\n",
    );
    text
}

fn item(key: &Key, name: &str, indent: &str, embedded: &Config) -> String {
    let (value, default) = ((key.show)(embedded), key.default());
    if value == default {
        format!("{indent}# {} ({})\n{indent}#{name}: {value}\n", key.help, key.kind)
    } else {
        format!("{indent}# {} ({}, default {default})\n{indent}{name}: {value}\n", key.help, key.kind)
    }
}

#[test]
fn the_embedded_file_shows_every_key_with_its_default() {
    let embedded = loaded(EMBEDDED);
    assert_eq!(embedded.warnings, [""; 0]);
    check("config/timberline.yaml", &sample_file(&embedded.config));
}

#[test]
fn keys_behind_a_hash_in_the_embedded_file_are_defaults() {
    let with_all: String = EMBEDDED
        .lines()
        .map(|line| match line.trim_start().strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => line.replacen('#', "", 1) + "\n",
            _ => format!("{line}\n"),
        })
        .collect();
    let set = with_all.lines().filter(|l| !l.trim_start().starts_with('#') && l.contains(": ")).count();
    assert_eq!(set, keys().len());
    assert_eq!(loaded(&with_all).config, loaded(EMBEDDED).config);
}

#[test]
fn the_embedded_file_is_safe_to_try() {
    let config = loaded(EMBEDDED).config;
    assert_eq!(config.server.http_listen_address, "127.0.0.1");
    assert_eq!(config.server.grpc_listen_address, "127.0.0.1");
    assert!(!config.auth_enabled);
    assert_eq!(config.common.path_prefix, "./data");
}

#[test]
fn the_reference_in_the_documentation_is_complete() {
    let (start, end) = ("--test config` -->\n", "<!-- end of keys -->");
    let doc = read("docs/configuration.md");
    let (before, rest) = doc.split_once(start).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let mut table = String::new();
    for (section, title) in SECTIONS {
        table.push_str(&format!(
            "\n### {title}\n\n| key | flag | values | default | meaning |\n|---|---|---|---|---|\n"
        ));
        for key in keys().iter().filter(|k| k.path.split_once('.').map_or("", |(head, _)| head) == *section) {
            let default = key.default();
            table.push_str(&format!(
                "| `{}` | `-{}` | {} | `{default}` | {} |\n",
                key.path, key.flag, key.kind, key.help
            ));
        }
    }
    check("docs/configuration.md", &format!("{before}{start}{table}\n{end}{after}"));
}

#[test]
fn the_bench_file_lifts_the_limits() {
    let loaded = loaded(&read("config/bench.yaml"));
    assert_eq!(loaded.warnings, [""; 0]);
    let limits = &loaded.config.limits;
    assert!(limits.ingestion_rate > 1e12 && limits.per_stream_rate_limit > 1e12);
    assert!(!limits.reject_old_samples && limits.max_global_streams_per_user == 0);
    assert_eq!(loaded.config.server.http_listen_address, "127.0.0.1");
}

fn command(args: &[&str]) -> Result<Command, String> {
    parse(args.iter().map(|a| (*a).to_string())).map_err(|e| e.to_string())
}

#[test]
fn a_loki_file_starts_and_what_is_ignored_is_named_once() {
    let Ok(Command::Verify { loaded, .. }) =
        command(&["-verify-config", "-config.file=/no/such.yaml,testdata/config/loki-single.yaml"])
    else {
        panic!("a configuration of Loki's users must be accepted")
    };
    assert_eq!(loaded.config.server.grpc_listen_port, 9096);
    assert_eq!(
        loaded.warnings,
        [
            "Loki settings without meaning in Timberline, ignored: analytics, common.ring.kvstore, common.storage, frontend, \
          limits_config.metric_aggregation_enabled, pattern_ingester, query_range, ruler, schema_config, \
          server.grpc_server_max_concurrent_streams"
        ]
    );
}

#[test]
fn every_problem_of_a_bad_file_is_told() {
    let message = command(&["-config.file", "testdata/config/bad.yaml"]).unwrap_err();
    assert_eq!(message, read("testdata/config/bad.txt").trim_end());
}

#[test]
fn environment_variables_are_expanded_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env.yaml");
    fs::write(&file, "no_auth_tenant: ${CARGO_PKG_NAME}\nserver:\n  http_listen_port: ${NO_SUCH_VARIABLE:3105}\n")
        .unwrap();
    let flag = format!("-config.file={}", file.display());
    let Ok(Command::Serve { loaded, .. }) = command(&[&flag, "-config.expand-env=true"]) else { panic!("serves") };
    assert_eq!((loaded.config.no_auth_tenant.as_str(), loaded.config.server.http_listen_port), ("timberline", 3105));
    assert!(command(&[&flag]).unwrap_err().contains("no_auth_tenant: tenant ID '${CARGO_PKG_NAME}' contains"));
}

#[test]
fn files_that_are_no_configuration_are_told_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content, expected) in [
        ("binary", &b"a: \xff\xfe"[..], "is not UTF-8 text (at byte 3)"),
        ("broken", &b"a: [1\nb: 2\n"[..], "not YAML: "),
        ("list", &b"- a\n"[..], "is no configuration: expected keys such as server:"),
    ] {
        let file = dir.path().join(name);
        fs::write(&file, content).unwrap();
        let message = command(&["-config.file", file.to_str().unwrap()]).unwrap_err();
        assert!(message.contains(name) && message.contains(expected), "{message}");
    }
    let message = command(&["-config.file", dir.path().to_str().unwrap()]).unwrap_err();
    assert!(message.contains("cannot be read"), "{message}");
}

fn run(args: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_timberline")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `-verify-config` refuses is what a start refuses, in the same words, and neither makes anything.
#[test]
fn verify_config_refuses_what_a_start_would_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls");
    let file = |name: &str| tls.join(name).display().to_string();
    let of = |listener: &str, cert: &str, key: &str| {
        vec![
            format!("-server.{listener}-tls-cert-path={}", file(cert)),
            format!("-server.{listener}-tls-key-path={}", file(key)),
        ]
    };
    let ca = format!("-server.http-tls-ca-path={}", file("server.key"));
    let client_ca = vec![ca, "-server.http-tls-client-auth=RequireAndVerifyClientCert".to_string()];
    let flags = |text: &str| vec![text.to_string()];
    for (args, expected) in [
        (of("http", "absent.crt", "server.key"), "server.http_tls_config: cert_file: "),
        (of("http", "server.crt", "absent.key"), "server.http_tls_config: key_file: "),
        (of("grpc", "absent.crt", "server.key"), "server.grpc_tls_config: cert_file: "),
        (of("grpc", "README.md", "server.key"), "no certificate in PEM format is in it"),
        (of("grpc", "server.crt", "client.key"), "cert_file and key_file cannot be used together"),
        ([of("http", "server.crt", "server.key"), client_ca].concat(), "client_ca_file: "),
        (flags("-target=querier"), "target: querier needs an object store, which is not built yet; use all"),
        (flags("-target=distributor"), "target: distributor needs the ingesters: set common.ring.instances"),
    ] {
        let data = dir.path().join("data");
        let place = [
            format!("-common.path-prefix={}", data.display()),
            "-server.http-listen-port=0".to_string(),
            "-server.grpc-listen-port=0".to_string(),
        ];
        let args: Vec<&str> = args.iter().chain(&place).map(String::as_str).collect();
        let verified = run(&[&args[..], &["-verify-config"]].concat());
        assert_eq!(verified.status.code(), Some(1), "{args:?}");
        assert!(stderr(&verified).contains(expected), "{args:?}: {}", stderr(&verified));
        let started = run(&args);
        assert_eq!(started.status.code(), Some(1), "{args:?}");
        assert!(stderr(&started).contains(expected), "{args:?}: {}", stderr(&started));
        assert!(!data.exists(), "{args:?}");
    }
    let both = [of("http", "absent.crt", "server.key"), of("grpc", "server.crt", "absent.key")].concat();
    let both: Vec<&str> = both.iter().map(String::as_str).chain(["-verify-config"]).collect();
    let told = stderr(&run(&both));
    assert!(told.contains("2 problems") && told.contains("absent.crt") && told.contains("absent.key"), "{told}");
    let good = [of("http", "server.crt", "server.key"), of("grpc", "server.crt", "server.key")].concat();
    let good: Vec<&str> = good.iter().map(String::as_str).chain(["-verify-config"]).collect();
    let verified = run(&good);
    assert_eq!((verified.status.code(), stderr(&verified).as_str()), (Some(0), ""));
}

#[test]
fn print_config_stderr_shows_the_configuration_and_goes_on() {
    let args = ["-server.http-listen-port=3107", "-log.level=warn", "-print-config-stderr"];
    let verified = run(&[&args[..], &["-verify-config"]].concat());
    assert_eq!((verified.status.code(), verified.stdout.as_slice()), (Some(0), &b""[..]));
    let shown = loaded(&stderr(&verified)).config;
    assert_eq!(shown.server.http_listen_port, 3107);
    // What is shown is the whole: read again it is what is in force.
    let Ok(Command::Serve { loaded: in_force, print_config: true }) = command(&args) else { panic!("serves") };
    assert_eq!(shown, in_force.config);
    // It is told before a problem with the files that it names, too.
    let bad = run(
        &[&args[..], &["-verify-config", "-server.http-tls-cert-path=/x", "-server.http-tls-key-path=/x"]].concat()
    );
    assert_eq!(bad.status.code(), Some(1));
    assert!(stderr(&bad).contains("http_listen_port: 3107") && stderr(&bad).contains("cert_file: /x: "));
    // Alone it is shown by a start, which then goes on: here to a port that nobody has.
    let wrong = run(&["-server.http-listen-address=192.0.2.1", "-print-config-stderr"]);
    let (shown, after) = (stderr(&wrong), "cannot listen on 192.0.2.1:3100");
    let (yaml, log) = shown.split_once("ts=").unwrap();
    assert_eq!(loaded(yaml).config.server.http_listen_address, "192.0.2.1");
    assert!(log.contains(after), "{log}");
}

#[test]
fn the_version_tells_the_commit() {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        output.ok().filter(|o| o.status.success()).map(|o| String::from_utf8(o.stdout).unwrap().trim().to_string())
    };
    let version = String::from_utf8(run(&["-version"]).stdout).unwrap();
    let start = format!("timberline, version {} (branch: ", env!("CARGO_PKG_VERSION"));
    let (branch, rest) = version.strip_prefix(&start).unwrap().split_once(", revision: ").unwrap();
    let revision = rest.strip_suffix(")\n").unwrap();
    // Without git, or where it does not trust the directory, only the form is known.
    let Some(commits) = git(&["log", "-n", "20", "--format=%H"]) else { return assert!(!revision.is_empty()) };
    // Somebody may commit while this is built.
    let known = commits.lines().any(|commit| commit.get(..10) == Some(revision));
    assert!(known, "{version}: not one of {commits}");
    assert_eq!(Some(branch), git(&["rev-parse", "--abbrev-ref", "HEAD"]).as_deref());
}

/// Every way in which git keeps what is checked out, and none.
#[test]
fn the_commit_is_found_however_git_keeps_it() {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    let found = |name: &str| {
        let head = build::Head::of(&dir.path().join(name));
        assert!(head.files.iter().all(|f| f.is_file()), "Cargo would build again each time");
        (head.revision, head.branch, head.files.len())
    };
    let expected = |revision: &str, branch: &str, files| (revision.to_string(), branch.to_string(), files);
    assert_eq!(found("archive"), expected("unknown", "unknown", 0));
    write("loose/.git/HEAD", "ref: refs/heads/a/b\n");
    assert_eq!(found("loose"), expected("unknown", "a/b", 1), "no commit yet");
    write("loose/.git/refs/heads/a/b", &format!("{COMMIT}\n"));
    assert_eq!(found("loose"), expected("0123456789", "a/b", 2));
    write("packed/.git/HEAD", "ref: refs/heads/main\n");
    let other = COMMIT.replace('0', "f");
    write(
        "packed/.git/packed-refs",
        &format!("# pack-refs with: peeled\n{other} refs/heads/other\n{COMMIT} refs/heads/main\n"),
    );
    write("packed/.git/logs/HEAD", "");
    assert_eq!(found("packed"), expected("0123456789", "main", 3));
    write("detached/.git/HEAD", &format!("{COMMIT}\n"));
    assert_eq!(found("detached").1, "HEAD");
    assert_eq!(found("detached").0, "0123456789");
    write("worktree/.git", &format!("gitdir: {}\n", dir.path().join("packed/.git/worktrees/w").display()));
    write("packed/.git/worktrees/w/HEAD", "ref: refs/heads/other\n");
    write("packed/.git/worktrees/w/commondir", "../..\n");
    assert_eq!(found("worktree"), expected("f123456789", "other", 2));
}
