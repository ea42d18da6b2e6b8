//! The enumerating simulator: real log code on a simulated disk, every crash point, every failing call, every bit.
//!
//! `workload.rs` runs the log, `disk.rs` notes what it does, `crash.rs` makes what a crash leaves, `ledger.rs` says
//! what must be there, `explore.rs` puts them together, `damage.rs` changes bytes, `report.rs` counts, `hunt.rs` stops at
//! the first failure. `node.rs` runs a whole ingester, with both logs.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod content;
pub mod crash;
pub mod damage;
pub mod disk;
pub mod explore;
pub mod hunt;
pub mod ledger;
pub mod node;
pub mod node_book;
pub mod node_damage;
pub mod node_explore;
pub mod report;
pub mod workload;

/// Three groups of a block, the headers, and the last block for a watermark: small, so that a state is cheap.
pub const SEGMENT: u64 = 24 << 10;
