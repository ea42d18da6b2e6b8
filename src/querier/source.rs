use super::QueryError;
use crate::model::{LabelSet, LogEntry, Matcher, Tenant};
use std::sync::Arc;

/// Is an entry part of the result? Gets the line and the structured metadata; called on the reader's thread.
pub type KeepEntry<'a> = dyn FnMut(&[u8], &[(&[u8], &[u8])]) -> bool + 'a;

/// What the querier reads from: the streams of one or more ingesters, later of the store too.
///
/// Times are nanoseconds since the Unix epoch, `end` is exclusive. A stream belongs to an answer when all matchers
/// hold and its bounds overlap the range; no matchers select every stream. Only what is durable and applied is seen.
pub trait Source: Send + Sync {
    /// The streams that a query has to read. Streams with equal labels (a stream that was removed and created again,
    /// replicas) come oldest first; the querier merges them into one.
    fn streams(&self, tenant: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<Arc<dyn StreamSource>>;

    /// Label names; the order does not matter and repetitions are allowed.
    fn label_names(&self, tenant: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<String>;

    /// Values of the label `name`; the order does not matter and repetitions are allowed.
    fn label_values(&self, tenant: &Tenant, name: &str, matchers: &[Matcher], start: i64, end: i64) -> Vec<String>;

    /// Label sets; the order does not matter and repetitions are allowed.
    fn series(&self, tenant: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<Arc<LabelSet>>;
}

/// One stream of a [`Source`].
pub trait StreamSource: Send + Sync {
    /// The stream's labels.
    fn labels(&self) -> &Arc<LabelSet>;

    /// The lowest and the highest timestamp that the stream may hold, both inclusive. May be wider than the truth.
    fn bounds(&self) -> (i64, i64);

    /// The first `limit` entries of `[start, end)` that `keep` accepts: in timestamp order and arrival order within a
    /// timestamp if `forward`, else in exactly the reverse order. Equal (timestamp, line, metadata) come once.
    ///
    /// `keep` is called at least once for every entry that could be part of the result, in any order.
    ///
    /// What cannot be read goes to `warnings`, a sentence each; the other entries are the answer.
    ///
    /// # Errors
    /// Nothing of the stream can be read.
    fn select(
        &self,
        start: i64,
        end: i64,
        forward: bool,
        limit: usize,
        keep: &mut KeepEntry<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<LogEntry>, QueryError>;
}
