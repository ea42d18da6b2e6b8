//! The properties of the fuzz targets in every `cargo test`: over the data of the tests, over what the fuzzer has found, and
//! over a few changes of both.

#[path = "../fuzz/src/lib.rs"]
#[allow(unsafe_code, reason = "the allocator that counts what decoders hold; no code of the program")]
mod properties;

use properties::{MAX_LEN, TARGETS, property, seeds};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn fuzz(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// What was found once. Each file is an input that broke the property.
fn regressions(target: &str) -> Vec<(String, Vec<u8>)> {
    properties::files(&fuzz("regressions").join(target))
}

/// A change of some bytes.
#[derive(Clone, Debug)]
enum Change {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => index().prop_map(Change::Cut),
        2 => (index(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (index(), index()).prop_map(|(from, to)| Change::Repeat(from, to)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match change {
            Change::Set(at, byte) => bytes[at.index(len)] = *byte,
            Change::Cut(at) => bytes.truncate(at.index(len)),
            Change::Insert(at, more) => drop(bytes.splice(at.index(len)..at.index(len), more.iter().copied())),
            Change::Repeat(from, to) => {
                let (from, to) = (from.index(len), to.index(len));
                let piece = bytes[from..(from + 64).min(len)].to_vec();
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

/// Seeds with changes, and bytes without sense.
fn inputs(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let all = seeds(target);
    let of_seed = (0..all.len(), prop::collection::vec(change(), 0..6));
    let of_seed = of_seed.prop_map(move |(seed, changes)| changed(all[seed].clone(), &changes));
    let any = prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![3 => of_seed, 1 => any].prop_map(move |mut bytes| {
        bytes.truncate(MAX_LEN);
        bytes
    })
}

fn holds_for_what_is_known(name: &str) {
    let (property, seeds) = (property(name), seeds(name));
    assert!(!seeds.is_empty(), "{name} begins with nothing");
    seeds.iter().for_each(|input| property(input));
    for (file, input) in regressions(name) {
        println!("fuzz/regressions/{name}/{file}");
        property(&input);
    }
}

fn holds_for_what_is_like_it(name: &str, cases: u32) {
    let property = property(name);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(input in inputs(name))| property(&input));
}

/// A module for each target, with the number of cases that take about half a second.
macro_rules! targets {
    ($($name:ident $cases:literal)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(mod $name {
            #[test]
            fn holds_for_what_is_known() {
                super::holds_for_what_is_known(stringify!($name));
            }

            #[test]
            fn holds_for_what_is_like_it() {
                super::holds_for_what_is_like_it(stringify!($name), $cases);
            }
        })*
    };
}

targets! {
    protobuf_push 500
    json_push 500
    push_body 300
    labels 500
    selectors 300
    wal_segment 300
    recovery 60
    block 300
    config 100
    http 200
}

#[test]
fn every_target_is_fuzzed_and_tested() {
    assert_eq!(TARGETS.map(|t| t.name), NAMES);
    let manifest = std::fs::read_to_string(fuzz("Cargo.toml")).unwrap();
    let mut files: Vec<String> = properties::files(&fuzz("fuzz_targets")).into_iter().map(|(name, _)| name).collect();
    for name in NAMES {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in fuzz/Cargo.toml");
        files.retain(|file| *file != format!("{name}.rs"));
    }
    assert_eq!(files, [""; 0], "files that are no target");
}

#[test]
fn what_is_held_is_counted() {
    let ((), held) = properties::allocation::peak(|| {
        let mut vec: Vec<u8> = Vec::with_capacity(1000);
        vec.reserve_exact(3000);
        drop(vec);
        drop(vec![0_u64; 100]);
    });
    assert_eq!(held, 3000);
    let over = || properties::allocation::bounded(1, || Vec::<u8>::with_capacity((64 << 10) + 9));
    assert!(std::panic::catch_unwind(over).is_err(), "9 bytes for each byte of the input are too many");
}

/// `TIMBERLINE_FUZZ_CORPUS=<directory>`: writes what the fuzzer begins with, a directory for each target. It makes inputs longer by
/// itself; to begin with long ones makes it slow.
#[test]
fn write_corpus() {
    const LONG: usize = 4 << 10;
    let Some(dir) = std::env::var_os("TIMBERLINE_FUZZ_CORPUS").map(PathBuf::from) else { return };
    for name in NAMES {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let seeds = seeds(name).into_iter().enumerate().map(|(n, seed)| (format!("seed-{n:03}"), seed));
        for (file, input) in seeds.chain(regressions(name)).filter(|(_, input)| input.len() <= LONG) {
            std::fs::write(dir.join(file), input).unwrap();
        }
    }
}
