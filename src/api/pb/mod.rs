//! Messages and stubs of Loki's gRPC protocol, generated from `proto/` and checked in; `tests/proto.rs` compares.

#![allow(missing_docs, clippy::all)]

/// Package `logproto`: pushes.
#[rustfmt::skip]
pub mod logproto;

/// Package `httpgrpc`: HTTP statuses in gRPC errors.
#[rustfmt::skip]
pub mod httpgrpc;
