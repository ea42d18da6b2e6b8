//! What must hold for any bytes from outside, once: the fuzz targets call these functions, and so does `tests/fuzz.rs` in
//! every `cargo test`, which includes this file by its path.
//!
//! A property is a function of some bytes that panics when it does not hold.

pub mod allocation;
mod choices;
mod chunks;
mod config;
#[path = "../../recovery-tests/support/sim/content.rs"]
#[allow(dead_code, reason = "the recovery tests use more of it")]
mod content;
#[path = "../../recovery-tests/support/sim/disk.rs"]
#[allow(dead_code, reason = "the recovery tests use more of it")]
mod disk;
mod http;
mod labels;
mod push;
mod recovery;
mod seeds;
mod segment;
mod selectors;

pub use chunks::block;
pub use config::config;
pub use http::http;
pub use labels::labels;
pub use push::{body as push_body, json as json_push, protobuf as protobuf_push};
pub use recovery::recovery;
pub use seeds::{files, seeds};
pub use segment::segment as wal_segment;
pub use selectors::selectors;

/// A target of the fuzzer: its name, and what must hold.
pub struct Target {
    pub name: &'static str,
    pub property: fn(&[u8]),
}

/// Inputs are at most this long.
pub const MAX_LEN: usize = 16 << 10;

const fn target(name: &'static str, property: fn(&[u8])) -> Target {
    Target { name, property }
}

/// All of them. Each has a file in `fuzz_targets/`, which calls its function itself: so the linker leaves out what the others need,
/// and the fuzzer has no counters to look through but those of the target.
pub const TARGETS: [Target; 10] = [
    target("protobuf_push", protobuf_push),
    target("json_push", json_push),
    target("push_body", push_body),
    target("labels", labels),
    target("selectors", selectors),
    target("wal_segment", wal_segment),
    target("recovery", recovery),
    target("block", block),
    target("config", config),
    target("http", http),
];

/// The property of this name.
///
/// # Panics
/// There is none.
pub fn property(name: &str) -> fn(&[u8]) {
    TARGETS.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("there is no target {name}")).property
}
