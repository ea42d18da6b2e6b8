//! The configuration as an operator meets it: the files that we ship, the files of Loki's users, the messages.
//!
//! `config/timberline.yaml` and the table in `docs/configuration.md` are made from the table of keys; with
//! `TIMBERLINE_BLESS=1` these tests write them, otherwise they compare.

use std::fs;
use std::path::Path;
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
    let Ok(Command::Verify(loaded)) =
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
