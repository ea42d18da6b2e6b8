//! Timberline: a log ingester that speaks Grafana Loki's protocols and answers a push only when its lines are on disk.
//!
//! The modules are rooms on floors; a module imports only from floors below its own (ARCHITECTURE.md has the map, and
//! `tests/rooms.rs` holds it).

// Floor 0
pub mod codec;
pub mod model;
#[doc(hidden)]
pub mod planted;
// Floor 1
pub mod fs;
pub mod ring;
// Floor 2
pub mod chunk;
pub mod wal;
// Floor 3
pub mod ingester;
pub mod inspect;
pub mod store;
// Floor 4
pub mod distributor;
pub mod mend;
pub mod querier;
// Floor 5
pub mod api;
// Floor 6
pub mod server;
// Floor 7
pub mod tools;
