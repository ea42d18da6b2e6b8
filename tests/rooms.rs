//! The rooms and floors of ARCHITECTURE.md, held over the source itself.

#[path = "support/source.rs"]
mod source;

use source::{Source, all, root};
use std::collections::BTreeMap;
use std::fs;

/// A module imports only from floors below its own.
const FLOORS: [&[&str]; 8] = [
    &["model", "codec", "planted"],
    &["fs", "ring"],
    &["wal", "chunk"],
    &["ingester", "store", "inspect"],
    &["distributor", "querier", "mend"],
    &["api"],
    &["server"],
    &["tools"],
];

/// What a room must not know although it is on a floor below, and crates that are not for it.
const NEVER: [(&str, &[&str]); 12] = [
    ("model", &["codec", "tokio"]),
    ("codec", &["fs", "tokio"]),
    ("fs", &["tokio"]),
    ("ring", &["fs", "tokio", "tonic", "hyper"]),
    ("wal", &["chunk", "tokio"]),
    ("chunk", &["wal", "fs"]),
    ("store", &["wal"]),
    ("inspect", &["tokio"]),
    ("mend", &["tokio"]),
    ("distributor", &["wal", "fs"]),
    ("querier", &["wal", "fs"]),
    ("api", &["wal", "fs"]),
];

/// What `inspect` must not take from `wal`: it reads only.
const WRITES: [&str; 9] =
    ["Wal", "WalOptions", "Append", "Applied", "Sink", "recover", "Recovered", "StreamLog", "spawn_critical"];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Does the code name `word::`, as a path's first part?
fn names_crate(code: &str, word: &str) -> bool {
    let path = format!("{word}::");
    code.match_indices(&path).any(|(at, _)| !code[..at].ends_with(|c: char| is_word(c) || c == ':'))
}

/// First parts of all paths that begin with `crate::`, braces included.
fn imported(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, marker) in code.match_indices("crate::") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let rest = &code[at + marker.len()..];
        match rest.strip_prefix('{') {
            Some(list) => rooms.extend(first_parts(list)),
            None => rooms.push(rest.chars().take_while(|c| is_word(*c)).collect()),
        }
    }
    rooms
}

/// The first part of each path in a list up to its closing brace.
fn first_parts(list: &str) -> Vec<String> {
    let (mut parts, mut part, mut depth) = (Vec::new(), String::new(), 0);
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => parts.push(std::mem::take(&mut part)),
            c if depth == 0 && !c.is_whitespace() => part.push(c),
            _ => {}
        }
    }
    parts.push(part);
    parts.iter().map(|p| p.chars().take_while(|c| is_word(*c)).collect()).filter(|p: &String| !p.is_empty()).collect()
}

/// `super::super::...` up to the crate's root would be an import that nobody sees.
fn leaves_by_super(source: &Source) -> bool {
    source.code.contains(&"super::".repeat(source.depth()))
}

fn problems(source: &Source) -> Vec<String> {
    let (room, name) = (source.room(), &source.name);
    let Some(own) = floor(room) else { return vec![format!("{name}: the room {room} has no floor")] };
    let mut problems = Vec::new();
    for other in imported(&source.code) {
        match floor(&other) {
            _ if other == room => {}
            Some(theirs) if theirs < own => {}
            Some(theirs) => problems.push(format!("{name} (floor {own}) imports {other} (floor {theirs})")),
            None => problems.push(format!("{name} imports crate::{other}, which is no room")),
        }
        if NEVER.iter().any(|(who, never)| *who == room && never.contains(&other.as_str())) {
            problems.push(format!("{name}: {room} never sees {other}"));
        }
    }
    let crates = NEVER.iter().filter(|(who, _)| *who == room).flat_map(|(_, never)| *never);
    problems.extend(crates.filter(|c| names_crate(&source.code, c)).map(|c| format!("{name}: {room} never sees {c}")));
    if leaves_by_super(source) {
        problems.push(format!("{name} reaches the crate's root with super::"));
    }
    problems
}

#[test]
fn a_room_imports_only_from_floors_below() {
    let sources: Vec<Source> =
        all().into_iter().filter(|s| s.name != "lib.rs" && !s.name.starts_with("bin/")).collect();
    assert!(sources.len() > 50, "only {} files were found", sources.len());
    let problems: Vec<String> = sources.iter().flat_map(problems).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn wal_inspect_only_reads() {
    let words = |code: &str| code.split(|c: char| !is_word(c)).map(str::to_string).collect::<Vec<_>>();
    for source in all().iter().filter(|s| s.room() == "inspect") {
        for (at, _) in source.code.match_indices("crate::wal::") {
            let end = source.code[at..].find([';', '(', ')']).map_or(source.code.len(), |e| at + e);
            let taken = words(&source.code[at..end]);
            let writer = taken.iter().find(|word| WRITES.contains(&word.as_str()));
            assert!(writer.is_none(), "{} takes {} from wal", source.name, writer.unwrap());
        }
    }
}

#[test]
fn unsafe_is_in_fs_only_and_has_its_reason() {
    for source in all() {
        let found = source.code.split(|c: char| !is_word(c)).any(|word| word == "unsafe");
        assert!(!found || source.room() == "fs", "{} has unsafe code", source.name);
    }
    let map = fs::read_to_string(root().join("src/fs/map.rs")).unwrap();
    assert_eq!(map.matches("unsafe {").count(), map.matches("// SAFETY:").count());
}

/// A panic on one of their threads would leave acknowledged lines behind: `spawn_critical` ends the process then.
/// Threads of a scope end with it, and hand their panics on.
#[test]
fn threads_of_the_log_and_the_ingester_are_critical() {
    let count = |source: &Source, what: &str| source.code.matches(what).count();
    let (mut bare, mut critical) = (Vec::new(), 0);
    for source in all().iter().filter(|s| ["wal", "ingester"].contains(&s.room())) {
        let made = count(source, "thread::spawn") + count(source, "thread::Builder") + count(source, "tokio::spawn");
        bare.extend(std::iter::repeat_n(source.name.clone(), made));
        critical += count(source, "spawn_critical(");
    }
    assert_eq!(bare, ["wal/writer.rs"], "only spawn_critical itself starts a thread");
    assert!(critical >= 5, "the log, preparing, applying and sealing have one each; {critical} were found");
}

#[test]
fn bincode_is_in_one_file_only() {
    let users: Vec<String> = all().into_iter().filter(|s| names_crate(&s.code, "bincode")).map(|s| s.name).collect();
    assert_eq!(users, ["wal/record.rs"], "docs/adr/0002-bincode.md counts on it");
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut section = "";
    let mut seen = BTreeMap::new();
    for line in manifest.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]") {
            let (name, rest) = line.split_once('=').unwrap_or_else(|| panic!("no dependency: {line}"));
            let reason = rest.rsplit_once('#').map_or("", |(_, reason)| reason.trim());
            assert!(reason.len() >= 5, "the dependency {name}of {section} has no reason behind a #");
            seen.insert((section, name.trim()), reason);
        }
    }
    assert!(seen.len() > 30, "only {} dependencies were found", seen.len());
}

#[test]
fn the_rules_find_what_breaks_them() {
    let source = |name: &str, code: &str| Source { name: name.into(), text: String::new(), code: code.into() };
    for (name, code) in [
        ("wal/writer.rs", "use crate::chunk::Head;"),
        ("wal/writer.rs", "fn f() { crate::ingester::start() }"),
        ("wal/writer.rs", "use tokio::sync::Notify;"),
        ("api/http.rs", "use crate::{model::Tenant, wal::{Wal, format}};"),
        ("querier/mod.rs", "use crate::fs::Fs;"),
        ("querier/mod.rs", "use crate::distributor::Pusher;"),
        ("model/entry.rs", "use crate::codec::crc32;"),
        ("wal/writer.rs", "use super::super::chunk::Head;"),
        ("attic/mod.rs", ""),
    ] {
        assert!(!problems(&source(name, code)).is_empty(), "{name}: {code}");
    }
    for (name, code) in [
        ("wal/writer.rs", "use crate::{codec::{align_up, crc32}, fs::Fs}; use super::format;"),
        ("wal/writer.rs", "use crate::wal::format;"),
        ("server/mod.rs", "use crate::api::Api;"),
    ] {
        assert_eq!(problems(&source(name, code)), Vec::<String>::new(), "{name}: {code}");
    }
}
