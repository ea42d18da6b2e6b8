//! What the fuzzer begins with: the data of the tests, in the form that each target takes.

use std::fs;
use std::path::{Path, PathBuf};

/// This file is part of the fuzz crate and of a test of the program.
pub fn testdata() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    [manifest.join("testdata"), manifest.join("../testdata")]
        .into_iter()
        .find(|d| d.is_dir())
        .expect("testdata/ is there")
}

/// Name and bytes of the files in a directory, by name; none if there is none.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut out: Vec<(String, Vec<u8>)> = names
        .filter(|e| e.path().is_file())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).expect("a readable file")))
        .collect();
    out.sort();
    out
}

fn of(dir: &str, suffix: &str) -> Vec<Vec<u8>> {
    let all = files(&testdata().join(dir)).into_iter().filter(|(name, _)| name.ends_with(suffix));
    all.map(|(_, bytes)| bytes).collect()
}

/// The inputs of a target that come from `testdata/`.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let behind = |head: &[u8], all: Vec<Vec<u8>>| all.iter().map(|b| [head, b].concat()).collect();
    let bodies = || of("push", ".body");
    let texts = |all: &[&str]| all.iter().map(|t| t.as_bytes().to_vec()).collect();
    match target {
        "protobuf_push" => {
            let unpack = |body: &Vec<u8>| snap::raw::Decoder::new().decompress_vec(body).ok();
            bodies().iter().filter_map(unpack).collect()
        }
        "json_push" => {
            let is_json = |body: &Vec<u8>| body.starts_with(b"{");
            let all: Vec<Vec<u8>> = bodies().into_iter().filter(is_json).collect();
            [behind(&[0], all.clone()), behind(&[1], all), texts(&LEGACY)].concat()
        }
        "push_body" => [behind(&[0, 0, 0, 0], bodies()), behind(&[1, 2, 0, 0], bodies())].concat(),
        "labels" => texts(&LABELS),
        "selectors" => texts(&SELECTORS),
        "wal_segment" => {
            let used =
                |file: &Vec<u8>| file.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1).min(super::MAX_LEN - 1);
            let cut = |file: Vec<u8>| file[..used(&file)].to_vec();
            behind(&[1], of("golden/v1/wal", ".wal").into_iter().map(cut).collect())
        }
        // A change of each kind, to each of the directories.
        "recovery" => {
            (0..40_u8).map(|n| [n, n % 10].into_iter().chain((3..9).map(|f| n.wrapping_mul(f * f))).collect()).collect()
        }
        "block" => {
            behind(&[0], of("loki/chunks", "stream-a").into_iter().chain(of("loki/chunks", "stream-b")).collect())
        }
        "config" => [of("config", ".yaml"), texts(&COMMAND_LINES)].concat(),
        "http" => [behind(&[0, 0, 0, 0, 0, 0, 0], bodies()), texts(&CONNECTIONS)].concat(),
        other => panic!("there is no target {other}"),
    }
}

const LEGACY: [&str; 1] =
    [r#"1{"streams":[{"labels":"{a=\"b\"}","entries":[{"ts":"2026-01-02T03:04:05.6Z","line":"l"}]}]}"#];
const LABELS: [&str; 5] = [
    r#"{job="app", env='dev', zone=`eu\1`}"#,
    r#"up{a="\x41\101\u00e9\U0001F600\n\"",}"#,
    r#"{foo="bar",foo="baz"}"#,
    "{ \t\n}",
    r#"{a="",b="é"}"#,
];
const SELECTORS: [&str; 5] = [
    r#"{app="web", env=~"prod|test", zone!~"x.*", a!=""} |= "error" != `debug` |~ "(?i)time" or "out" !~ "^$""#,
    r#"{app=~".+"} # all"#,
    "{}",
    r#"sum by (app) (rate({app="web"}[5m]))"#,
    r#"{app="\x41\u00e9\\"} | json"#,
];
const COMMAND_LINES: [&str; 2] = [
    "\u{1}-verify-config\0-server.http-listen-port=3200\0-target\0distributor",
    "a: 1\n\0server.http-listen-port=3200\0auth.enabled",
];
const CONNECTIONS: [&str; 2] = [
    "1GET /loki/api/v1/query_range?query=%7Bapp%3D%22web%22%7D&limit=1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "1POST /loki/api/v1/push HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
     1d\r\n{\"streams\":[{\"stream\":{},\"val\r\n11\r\nues\":[[\"1\",\"l\"]]}]}\r\n0\r\n\r\n",
];
