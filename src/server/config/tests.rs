use super::units::Word;
use super::*;

fn parse(text: &str) -> Result<Loaded, ConfigError> {
    with_flags(text, &[])
}

fn with_flags(text: &str, flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let flags: Vec<FlagValue> = flags
        .iter()
        .map(|(name, value)| FlagValue { name: (*name).to_string(), value: (*value).to_string() })
        .collect();
    load(File { name: "t.yaml", text, expand_env: false }, &flags, |_| Err("not in this test".to_string()))
}

fn problems(text: &str) -> Vec<String> {
    parse(text).map(|l| format!("{l:?}")).unwrap_err().problems.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_file_has_lokis_defaults() {
    for text in ["", "# nothing\n", "server:\nlimits_config:\n", "server: {http_listen_port: }\noverrides:\n"] {
        let loaded = parse(text).unwrap();
        assert_eq!(loaded.config, Config::default(), "{text:?}");
        assert!(loaded.warnings.is_empty());
    }
    let config = Config::default();
    assert!(config.auth_enabled);
    assert_eq!(config.server.http_listen_port, 3100);
    assert_eq!(config.limits, Limits::default());
}

#[test]
fn every_key_is_read_from_the_file_and_from_its_flag() {
    for key in keys() {
        let sample = sample(key);
        let mut yaml = String::new();
        for (depth, part) in key.path.split('.').enumerate() {
            yaml.push_str(&format!("\n{}{part}:", "  ".repeat(depth)));
        }
        yaml.push_str(&format!(" {sample}\n"));
        let from_file = read_unchecked(key, &yaml);
        let flag = sample.trim_matches('"').to_string();
        let mut from_flag = Config::default();
        (key.set)(&mut from_flag, &yaml::Node::flag(&flag)).unwrap();
        assert_eq!((key.show)(&from_file), (key.show)(&from_flag), "{}", key.path);
        assert_ne!((key.show)(&from_file), key.default(), "{}", key.path);
    }
}

/// A value of each kind that differs from every default.
fn sample(key: &Key) -> &'static str {
    match (key.path, key.kind) {
        ("target", _) => "querier",
        ("common.ring.instances", _) => "\"a=h:1,b=h:2\"",
        ("server.log_level", _) => "error",
        ("server.log_format", _) => "json",
        ("ingester.chunk_encoding", _) | ("ingester.wal.compression", _) => "none",
        ("ingester.wal.sync", _) => "os",
        ("ingester.wal.on_damage", "choice") => "refuse",
        (_, "choice") => "RequireAndVerifyClientCert",
        (_, "number") => "3",
        (_, "fraction") => "0.5",
        (_, "size") => "96KB",
        (_, "megabytes") => "2.5",
        (_, "duration") => "7m",
        (_, "text" | "list") => "words",
        (_, "bool") if key.default() == "true" => "false",
        (_, "bool") => "true",
        (path, kind) => panic!("{path}: no sample for {kind}"),
    }
}

/// The key's value from a file, without what only a whole configuration can break.
fn read_unchecked(key: &Key, text: &str) -> Config {
    let mut node = yaml::parse(text).unwrap();
    for part in key.path.split('.') {
        let yaml::Value::Map(entries) = node.value else { panic!("{text}") };
        node = entries.into_iter().find(|e| e.key == part).unwrap().node;
    }
    let mut config = Config::default();
    (key.set)(&mut config, &node).unwrap();
    config
}

#[test]
fn flags_outrank_the_file_and_the_file_outranks_defaults() {
    let file = "server: {http_listen_port: 1, grpc_listen_port: 2}\n";
    let config = with_flags(file, &[("server.http-listen-port", "5")]).unwrap().config;
    assert_eq!((config.server.http_listen_port, config.server.grpc_listen_port), (5, 2));
    assert_eq!(config.server.log_level, LogLevel::Info);
}

#[test]
fn units_of_limits() {
    let text = "limits_config:\n  ingestion_rate_mb: 1.5\n  max_line_size: 256KB\n  per_stream_rate_limit: 3MB\n  \
                reject_old_samples_max_age: 1w\n  discover_service_name: []\n  log_level_fields: [a, b.c]\n";
    let limits = parse(text).unwrap().config.limits;
    assert_eq!(limits.ingestion_rate, 1_572_864.0);
    assert_eq!(limits.max_line_size, 262_144);
    assert_eq!(limits.per_stream_rate_limit, 3_145_728.0);
    assert_eq!(limits.reject_old_samples_max_age, Duration::from_secs(604_800));
    assert!(limits.discover_service_name.is_empty());
    assert_eq!(limits.log_level_fields, ["a", "b.c"]);
}

#[test]
fn a_key_that_comes_twice_is_named_with_its_line() {
    let [problem] = &problems("auth_enabled: false\nauth_enabled: true\n")[..] else { panic!("not one problem") };
    assert!(problem.starts_with("t.yaml:2: ") && problem.contains("duplicate mapping key: auth_enabled "), "{problem}");
    assert!(!problem.contains("Options"), "{problem}");
}

#[test]
fn overrides_are_the_defaults_with_what_differs() {
    let text =
        "overrides:\n  a: {max_line_size: 1KB}\n  b:\nlimits_config: {ingestion_rate_mb: 9, max_line_size: 2KB}\n";
    let flags = [("ingester.max-streams-per-user", "7")];
    let config = with_flags(text, &flags).unwrap().config;
    let overrides = config.overrides();
    let of = |tenant: &str| overrides.of(&Tenant::new(tenant).unwrap()).clone();
    assert_eq!((of("a").max_line_size, of("a").max_streams_per_user), (1024, 7));
    assert_eq!(of("a").ingestion_rate, 9.0 * 1_048_576.0);
    assert_eq!((of("b").max_line_size, of("c").max_line_size), (2048, 2048));
    assert_eq!(of("b"), of("c"));
}

#[test]
fn runtime_files_hold_overrides_too() {
    let main = "runtime_config: {file: 'x.yaml, y.yaml'}\noverrides: {a: {max_line_size: 1KB}}\n";
    let read = |name: &str| match name {
        "x.yaml" => Ok("overrides:\n  b: {max_line_size: 2KB}\nmulti_kv_config: {primary: x}\n".to_string()),
        "y.yaml" => Ok("# empty\n".to_string()),
        _ => Err("no such file".to_string()),
    };
    let loaded = load(File { name: "t.yaml", text: main, expand_env: false }, &[], read).unwrap();
    let sizes: Vec<_> = loaded.config.tenants.iter().map(|(t, l)| (t.as_str(), l.max_line_size)).collect();
    assert_eq!(sizes, [("a", 1024), ("b", 2048)]);
    assert_eq!(loaded.warnings, [format!("{IGNORED}multi_kv_config (in x.yaml)")]);

    let broken = |text: &'static str| {
        let file = File { name: "t.yaml", text: main, expand_env: false };
        load(file, &[], |_| Ok(text.to_string())).unwrap_err().problems.first().unwrap().to_string()
    };
    assert_eq!(broken("overrides: {a: }\n"), "x.yaml:1: overrides.a is given twice, in two files; keep one");
    assert_eq!(
        broken("limits_config: {}\n"),
        "x.yaml:1: limits_config is not a key of a runtime configuration; it has overrides"
    );
    assert_eq!(broken("- x\n"), "x.yaml: is no runtime configuration: expected overrides:");
}

const IGNORED: &str = "Loki settings without meaning in Timberline, ignored: ";

#[test]
fn lokis_keys_without_meaning_are_named_once() {
    let text = "schema_config:\n  configs:\n  - {from: 2020-10-24, store: tsdb}\nserver: {http_listen_conn_limit: 5}\n\
                querier: {max_concurrent: 4}\nstorage_config: {filesystem: {directory: /x}}\n\
                limits_config: {volume_enabled: true, retention_period: 0s, otlp_config: {resource_attributes: {}}}\n\
                common: {storage: {filesystem: {chunks_directory: /x}}, ring: {kvstore: {store: inmemory}}}\n\
                overrides: {a: {max_query_length: 1h}}\n";
    assert_eq!(
        parse(text).unwrap().warnings,
        [format!(
            "{IGNORED}common.ring.kvstore, common.storage, limits_config.otlp_config, limits_config.retention_period, \
             limits_config.volume_enabled, overrides.a.max_query_length, querier, schema_config, \
             server.http_listen_conn_limit, storage_config"
        )]
    );
}

#[test]
fn what_must_not_be_ignored_is_refused() {
    for (text, start) in [
        (
            "limits_config: {retention_period: 744h}\n",
            "t.yaml:1: limits_config.retention_period is an error until it is built: ",
        ),
        ("limits_config: {enforced_labels: [app]}\n", "t.yaml:1: limits_config.enforced_labels is an error until"),
        (
            "limits_config: {policy_enforced_labels: {x: [app]}}\n",
            "t.yaml:1: limits_config.policy_enforced_labels is an",
        ),
        (
            "limits_config: {block_ingestion_until: 2030-01-01T00:00:00Z}\n",
            "t.yaml:1: limits_config.block_ingestion_until",
        ),
        ("limits_config: {retention_stream: [{selector: '{a=\"b\"}'}]}\n", "t.yaml:1: limits_config.retention_stream"),
        ("overrides: {a: {retention_period: 24h}}\n", "t.yaml:1: overrides.a.retention_period is an error until"),
        ("server: {tls_min_version: VersionTLS13}\n", "t.yaml:1: server.tls_min_version is an error until"),
        ("server:\n  http_tls_config:\n    key: abc\n", "t.yaml:3: server.http_tls_config.key is an error until"),
        ("internal_server: {enable: true}\n", "t.yaml:1: internal_server.enable is an error until"),
        (
            "ingester_client: {grpc_client_config: {tls_enabled: true}}\n",
            "t.yaml:1: ingester_client.grpc_client_config.tls",
        ),
        ("ingester: {wal: {enabled: false}}\n", "t.yaml:1: ingester.wal.enabled: false is not possible"),
    ] {
        let problems = problems(text);
        assert!(problems.len() == 1 && problems.iter().all(|p| p.starts_with(start)), "{text}: {problems:?}");
    }
    let harmless = "limits_config:\n  retention_period: 0s\n  enforced_labels: []\n  block_ingestion_until: \"0\"\n  \
                    block_ingestion_policy_until: {}\nserver: {tls_min_version: \"\", http_tls_config: {key: null, cert: ''}}\n\
                    internal_server: {enable: false, http_tls_config: {key: null}}\n";
    assert_eq!(parse(harmless).unwrap().config, Config::default());
}

#[test]
fn unknown_keys_tell_their_line_and_the_nearest() {
    assert_eq!(
        problems(
            "servr:\n  x: 1\nserver:\n  http_listen_prot: 1\n  wal: {}\ningestion_rate_mb: 4\nqqqqqqq: 1\nschema_config: {confgis: []}\n"
        ),
        [
            "t.yaml:1: servr is not a key of Timberline or Loki; did you mean \"server\"?",
            "t.yaml:4: server.http_listen_prot is not a key of Timberline or Loki; did you mean \"http_listen_port\"?",
            "t.yaml:5: server.wal is not a key of Timberline or Loki",
            "t.yaml:6: ingestion_rate_mb is not a key of Timberline or Loki; did you mean \"limits_config.ingestion_rate_mb\"?",
            "t.yaml:7: qqqqqqq is not a key of Timberline or Loki",
            "t.yaml:8: schema_config.confgis is not a key of Timberline or Loki; did you mean \"configs\"?",
        ]
    );
}

#[test]
fn wrong_values_tell_what_was_expected() {
    for (text, expected) in [
        ("server: {http_listen_port: 70000}\n", "t.yaml:1: server.http_listen_port: 70000 is too large"),
        (
            "server: {http_listen_port: -1}\n",
            "t.yaml:1: server.http_listen_port: \"-1\" is not a whole number of 0 or more",
        ),
        ("server: {http_listen_port: {}}\n", "t.yaml:1: server.http_listen_port: is a map, expected a whole number"),
        ("server: 5\n", "t.yaml:1: server is a section and has keys below it, not a value"),
        ("querier: 5\n", "t.yaml:1: querier is a section and has keys below it, not a value"),
        ("auth_enabled: maybe\n", "t.yaml:1: auth_enabled: \"maybe\" is not true or false"),
        (
            "target: read\n",
            "t.yaml:1: target: \"read\" is not a target of Timberline; it has: all, distributor, ingester, querier",
        ),
        ("target: ''\n", "t.yaml:1: target: is empty; it needs one or more of: all, distributor, ingester, querier"),
        (
            "target: all,querier\n",
            "t.yaml:1: target: all stands alone; without it, name some of: all, distributor, ingester, querier",
        ),
        (
            "server: {log_level: trace}\n",
            "t.yaml:1: server.log_level: \"trace\" is not one of: debug, info, warn, error",
        ),
        (
            "server: {graceful_shutdown_timeout: 30}\n",
            "t.yaml:1: server.graceful_shutdown_timeout: \"30\" is not a duration; write numbers with units (w d h m s ms), such as 30s, 1h30m or 1w",
        ),
        (
            "limits_config: {max_line_size: 12XB}\n",
            "t.yaml:1: limits_config.max_line_size: \"12XB\" is not a size; write whole bytes or a unit of 1024, such as 262144, 256KB or 4GB",
        ),
        (
            "limits_config: {ingestion_rate_mb: -1}\n",
            "t.yaml:1: limits_config.ingestion_rate_mb: \"-1\" is not a number of 0 or more",
        ),
        ("overrides: {a/b: }\n", "t.yaml:1: overrides.a/b: tenant ID 'a/b' contains unsupported character '/'"),
        ("overrides: {a: 1}\n", "t.yaml:1: overrides.a is not a map of limits"),
        ("overrides: [a]\n", "t.yaml:1: overrides is not a map of tenants to limits"),
        (
            "overrides: {a: {ingestion_rate_mb: 0}}\n",
            "t.yaml:1: overrides.a.ingestion_rate_mb: a rate and a burst of 0 would reject every push; set both above 0",
        ),
        ("- a\n", "t.yaml:1: is no configuration: expected keys such as server:"),
        ("common: {ring: {instances: [a]}}\n", "t.yaml:1: common.ring.instances: has a member that is not {id, addr}"),
        ("no_auth_tenant: a b\n", "t.yaml:1: no_auth_tenant: tenant ID 'a b' contains unsupported character ' '"),
    ] {
        assert_eq!(problems(text), [expected], "{text}");
    }
}

#[test]
fn bounds_and_contradictions() {
    for (text, expected) in [
        (
            "ingester: {wal: {segment_size: 512KB}}\n",
            "t.yaml:1: ingester.wal.segment_size: 512KB is not between 1MB and 1GB",
        ),
        (
            "ingester: {wal: {segment_size: 2GB}}\n",
            "t.yaml:1: ingester.wal.segment_size: 2GB is not between 1MB and 1GB",
        ),
        (
            "ingester: {wal: {sync_interval: 0s}}\n",
            "t.yaml:1: ingester.wal.sync_interval: 0s is not between 1ms and 1m",
        ),
        ("ingester: {memory_budget: 1MB}\n", "t.yaml:1: ingester.memory_budget: 1MB is not between 64MB and 1PB"),
        (
            "ingester: {sync_min_utilization: 1.5}\n",
            "t.yaml:1: ingester.sync_min_utilization: 1.5 is not between 0 and 1",
        ),
        (
            "server: {grpc_listen_port: 3100}\n",
            "t.yaml:1: server.grpc_listen_port: 3100 is the HTTP listener's port too; choose another",
        ),
        (
            "server: {http_listen_address: 'h:80'}\n",
            "t.yaml:1: server.http_listen_address: \"h:80\" is not a host name or an address; the port is a key of its own",
        ),
        (
            "server: {http_server_read_timeout: 0s}\n",
            "t.yaml:1: server.http_server_read_timeout: 0s would let a slow client hold a connection for ever; set a time",
        ),
        (
            "common: {replication_factor: 3}\n",
            "t.yaml:1: common.replication_factor: 3 copies need 3 ingesters, and the ring has 1; see common.ring.instances",
        ),
        (
            "common: {replication_factor: 0}\n",
            "t.yaml:1: common.replication_factor: 0 would store nothing; it is 1 or more",
        ),
        (
            "common: {ring: {instances: [{id: a, addr: h:1}, {id: a, addr: h:2}]}}\n",
            "t.yaml:1: common.ring.instances: the id \"a\" is given twice",
        ),
        (
            "common: {ring: {instances: [{id: a, addr: h}]}}\n",
            "t.yaml:1: common.ring.instances: \"a\": the address \"h\" is not host:port",
        ),
        (
            "server: {http_tls_config: {cert_file: c}}\n",
            "server.http_tls_config.key_file: is empty, but cert_file is set; TLS needs both",
        ),
        (
            "server: {grpc_tls_config: {cert_file: c, key_file: k, client_ca_file: a}}\n",
            "server.grpc_tls_config.client_auth_type: asks for no certificates, but client_ca_file is set; set it or remove that",
        ),
        (
            "server: {http_tls_config: {client_auth_type: RequireAnyClientCert}}\n",
            "t.yaml:1: server.http_tls_config.client_auth_type: RequireAnyClientCert would accept certificates that nobody verified; use VerifyClientCertIfGiven or RequireAndVerifyClientCert",
        ),
    ] {
        assert_eq!(problems(text), [expected], "{text}");
    }
}

#[test]
fn all_problems_come_in_one_message() {
    let error = parse("bogus: 1\nserver:\n  http_listen_port: x\ningester: {wal: {enabled: false}}\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot use the configuration, 3 problems:\n  \
         t.yaml:1: bogus is not a key of Timberline or Loki\n  \
         t.yaml:3: server.http_listen_port: \"x\" is not a whole number of 0 or more\n  \
         t.yaml:4: ingester.wal.enabled: false is not possible: a push is answered when it is in the log; remove the key"
    );
    let many: String = (0..80).map(|n| format!("zzzzzzzz{n}: 1\n")).collect();
    let error = parse(&many).unwrap_err();
    assert_eq!((error.problems.len(), error.problems.last().unwrap().to_string().as_str()), (51, "and 30 more"));
}

#[test]
fn a_loki_configuration_starts_where_values_differ() {
    let loaded = parse("ingester: {chunk_encoding: gzip}\ndistributor: {max_decompressed_size: 5242880000}\n").unwrap();
    assert_eq!(loaded.config.ingester.chunk_encoding, ChunkEncoding::Snappy);
    assert_eq!(loaded.config.distributor.max_decompressed_size, MAX_DECOMPRESSED);
    assert_eq!(
        loaded.warnings,
        [
            "ingester.chunk_encoding: gzip comes with the store; snappy is used until then",
            "distributor.max_decompressed_size: 5242880000 is lowered to 256MB, the most for one push",
        ]
    );
}

#[test]
fn what_is_shown_reads_back() {
    let text = "target: ingester,querier\nno_auth_tenant: '123'\nlimits_config: {ingestion_rate_mb: 0.3, max_line_size: 1000}\n\
                common: {ring: {instances: [{id: a, addr: 'h:1'}, {id: 'b c', addr: '[::1]:2'}]}}\n\
                server: {http_listen_address: '::1', http_tls_config: {cert_file: c.pem, key_file: k.pem}}\n\
                overrides: {'007': {max_line_size: 5}, b: }\n";
    for text in [text, "", EMBEDDED] {
        let config = parse(text).unwrap().config;
        let shown = config.to_yaml();
        assert_eq!(parse(&shown).unwrap().config, config, "{shown}");
    }
}

#[test]
fn secrets_are_masked_by_name() {
    for (path, secret) in [
        ("x.password", true),
        ("x.acl_token", true),
        ("x.client_secret", true),
        ("x.password_file", false),
        ("common.ring.num_tokens", false),
        ("server.http_tls_config.key_file", false),
    ] {
        assert_eq!(is_secret(path), secret, "{path}");
    }
    let key = Key {
        path: "x.password",
        flag: "x",
        kind: "text",
        help: "",
        set: |_, _| Ok(()),
        show: |c| quote(&c.no_auth_tenant),
    };
    assert_eq!(mask(&key, &Config { no_auth_tenant: "hunter2".to_string(), ..Config::default() }), "\"<secret>\"");
    assert_eq!(mask(&key, &Config { no_auth_tenant: String::new(), ..Config::default() }), "\"\"");
}

#[test]
fn parts_and_directories() {
    let config = parse("target: ingester\ncommon: {path_prefix: /d}\n").unwrap().config;
    assert!(config.runs(Target::Ingester) && !config.runs(Target::Querier));
    assert_eq!((config.data_dir(), config.wal_dir()), ("/d".into(), "/d/wal".into()));
    let config = parse("ingester: {wal: {dir: /w}, memory_budget: 64MB}\n").unwrap().config;
    assert_eq!((config.wal_dir(), config.memory_budget()), ("/w".into(), 64 << 20));
    assert!(Target::ALL.iter().all(|part| config.runs(*part)));
    assert_eq!(config.default_tenant(), Tenant::new("fake").ok());
}

proptest::proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "[a-z_:\\- \\n\\[\\]{}&*<'\"0-9!|>#,]{0,60}", section in 0..8_usize) {
        let names = ["server", "common", "ingester", "limits_config", "overrides", "schema_config", "target", "x"];
        let _ = parse(&text);
        let _ = parse(&format!("{}: {text}\n", names[section]));
    }
}
