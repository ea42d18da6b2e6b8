//! From a decoded push to the ingesters: validation, limits, rate limits, hash ring, replication.

use crate::model::{Push, PushError, PushRequest, Tenant};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Something that takes a decoded push: the distributor, or an ingester that validates what it gets.
pub trait Pusher: Send + Sync + 'static {
    /// Stores the push. Returns when every line that it stored is on disk, also with an error that concerns only a
    /// part of the push.
    ///
    /// `format` names the decoder (`loki`, `otlp`) for metrics.
    fn push(&self, tenant: Tenant, request: PushRequest, format: &'static str) -> BoxFuture<'_, Result<(), PushError>>;
}

/// One ingester as the distributor sees it: in this process without encoding, elsewhere over gRPC.
pub trait IngesterClient: Send + Sync + 'static {
    /// Stores the streams with these indices in `push.streams`. Returns when what was stored is on disk.
    fn push(&self, tenant: Tenant, push: Arc<Push>, streams: Vec<u32>) -> BoxFuture<'static, Result<(), PushError>>;
}
