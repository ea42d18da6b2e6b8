//! The ingester of this process, as the distributor and the querier see it.

use crate::chunk::{Selection, select_readable};
use crate::distributor::{BoxFuture, IngesterClient};
use crate::ingester::{Ingester, Live, Stream};
use crate::model::{LabelSet, LogEntry, Matcher, Push, PushError, Tenant};
use crate::querier::{KeepEntry, QueryError, Source, StreamSource};
use std::sync::{Arc, OnceLock};

/// The ingester, once it is there: listeners open before replay, and until it ends pushes get 503.
#[derive(Default)]
pub struct LocalIngester(OnceLock<Arc<Ingester<Live>>>);

impl LocalIngester {
    /// Replay has ended.
    pub fn set(&self, ingester: Arc<Ingester<Live>>) {
        // Set once, by the one that started it.
        let _ = self.0.set(ingester);
    }

    /// The ingester, if replay has ended.
    pub fn get(&self) -> Option<&Arc<Ingester<Live>>> {
        self.0.get()
    }
}

fn starting() -> PushError {
    PushError::unavailable("the ingester is replaying its write-ahead log: try again, /ready tells how far it is")
}

/// Hands pushes to the ingester of this process: a direct call, without encoding.
pub struct LocalClient(pub Arc<LocalIngester>);

impl IngesterClient for LocalClient {
    fn push(&self, tenant: Tenant, push: Arc<Push>, streams: Vec<u32>) -> BoxFuture<'static, Result<(), PushError>> {
        let ingester = self.0.get().cloned();
        Box::pin(async move {
            let ingester = ingester.ok_or_else(starting)?;
            ingester.push(&tenant, push, &streams).await
        })
    }
}

/// Reads from the ingester of this process.
pub struct LocalSource(pub Arc<LocalIngester>);

struct LocalStream(Arc<Stream>);

impl StreamSource for LocalStream {
    fn labels(&self) -> &Arc<LabelSet> {
        self.0.labels()
    }

    fn bounds(&self) -> (i64, i64) {
        self.0.bounds()
    }

    fn select(
        &self,
        start: i64,
        end: i64,
        forward: bool,
        limit: usize,
        keep: &mut KeepEntry<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<LogEntry>, QueryError> {
        let parts = self.0.parts(start, end);
        let mut unreadable = Vec::new();
        let found = select_readable(&parts, &Selection { start, end, forward, limit }, keep, &mut unreadable);
        let labels = self.0.labels();
        let lines = |e| format!("lines of stream {labels} are missing from this answer: {e}; run wal-inspect verify");
        warnings.extend(unreadable.into_iter().map(lines));
        Ok(found)
    }
}

impl Source for LocalSource {
    fn streams(&self, tenant: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<Arc<dyn StreamSource>> {
        let Some(ingester) = self.0.get() else { return Vec::new() };
        let mut streams = ingester.streams(tenant, matchers, start, end);
        // Streams with equal labels are read oldest first.
        streams.sort_unstable_by_key(|s| s.id());
        streams.into_iter().map(|s| Arc::new(LocalStream(s)) as Arc<dyn StreamSource>).collect()
    }

    fn label_names(&self, tenant: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<String> {
        self.0.get().map(|i| i.label_names(tenant, matchers, start, end)).unwrap_or_default()
    }

    fn label_values(&self, tenant: &Tenant, name: &str, matchers: &[Matcher], start: i64, end: i64) -> Vec<String> {
        self.0.get().map(|i| i.label_values(tenant, name, matchers, start, end)).unwrap_or_default()
    }

    fn series(&self, tenant: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<Arc<LabelSet>> {
        self.0.get().map(|i| i.series(tenant, matchers, start, end)).unwrap_or_default()
    }
}
