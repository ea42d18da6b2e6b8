//! Reads: LogQL selectors and line filters, the time-ordered merge over streams, and Loki's JSON.
//!
//! HTTP handlers decode a request into name and value pairs, call [`Querier`], and send the bytes that it returns.
//! The calls work on the caller's thread and read blocks: run them where blocking is allowed.

mod error;
mod filter;
mod literal;
mod logql;
mod params;
mod response;
mod select;
mod source;

pub use error::QueryError;
pub use filter::LineFilter;
pub use logql::{LogQuery, MAX_FILTERS, MAX_MATCHERS, MAX_QUERY_BYTES, ParseError, parse, parse_selector};
pub use params::{DEFAULT_LIMIT, Direction, InstantParams, LabelParams, MAX_LIMIT, RangeParams, SeriesParams};
pub use response::EncodingFlags;
pub use select::MAX_RESULT_BYTES;
pub use source::{KeepEntry, Source, StreamSource};

use crate::model::{LabelSet, Overrides, Tenant};
use select::Selection;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Answers the read endpoints from a [`Source`].
pub struct Querier {
    source: Arc<dyn Source>,
    overrides: Arc<Overrides>,
}

impl Querier {
    /// `overrides` gives each tenant's `max_entries_limit_per_query`.
    pub fn new(source: Arc<dyn Source>, overrides: Arc<Overrides>) -> Self {
        Self { source, overrides }
    }

    /// `GET/POST /loki/api/v1/query_range`: the entries of a log query in `[start, end)`, as Loki's JSON.
    ///
    /// # Errors
    /// 400 with Loki's text for a query that does not parse or is not supported, for a limit above the tenant's, and
    /// for a result above [`MAX_RESULT_BYTES`]; whatever the source answers when it cannot read.
    pub fn query_range(
        &self,
        tenant: &Tenant,
        params: &RangeParams,
        flags: EncodingFlags,
    ) -> Result<Vec<u8>, QueryError> {
        self.check_limit(tenant, params.limit)?;
        let query = parse(&params.query)?;
        let began = Instant::now();
        let selection = Selection {
            query: &query,
            start: params.start,
            end: params.end,
            direction: params.direction,
            limit: params.limit,
        };
        let streams = self.source.streams(tenant, &query.matchers, params.start, params.end);
        let selected = selection.run(streams)?;
        Ok(response::streams(&selected, flags, began.elapsed()))
    }

    /// `GET/POST /loki/api/v1/query`.
    ///
    /// An expression of literals, such as the `vector(1)+vector(1)` with which Grafana tests a data source, is
    /// computed.
    /// A log query reads the last `since` (one hour if unset) up to and including `time`. This departs from Loki 3,
    /// which refuses log queries here; clients that follow Loki never send them.
    ///
    /// # Errors
    /// As [`Querier::query_range`].
    pub fn query(&self, tenant: &Tenant, params: &InstantParams, flags: EncodingFlags) -> Result<Vec<u8>, QueryError> {
        if let Some(value) = literal::evaluate(&params.query) {
            return Ok(response::literal(value, params.time, flags));
        }
        self.query_range(tenant, &params.as_range(), flags)
    }

    /// `GET/POST /loki/api/v1/labels`: the sorted label names of the streams with entries in the range.
    ///
    /// # Errors
    /// 400 for a selector that does not parse.
    pub fn labels(&self, tenant: &Tenant, params: &LabelParams) -> Result<Vec<u8>, QueryError> {
        let matchers = params.matchers()?;
        let names = self.source.label_names(tenant, &matchers, params.start, params.end);
        Ok(response::strings(names))
    }

    /// `GET/POST /loki/api/v1/label/<name>/values`: the sorted values of one label.
    ///
    /// # Errors
    /// As [`Querier::labels`].
    pub fn label_values(&self, tenant: &Tenant, name: &str, params: &LabelParams) -> Result<Vec<u8>, QueryError> {
        let matchers = params.matchers()?;
        let values = self.source.label_values(tenant, name, &matchers, params.start, params.end);
        Ok(response::strings(values))
    }

    /// `GET/POST /loki/api/v1/series`: the label sets that any of the selectors finds, each once.
    ///
    /// # Errors
    /// As [`Querier::labels`].
    pub fn series(&self, tenant: &Tenant, params: &SeriesParams) -> Result<Vec<u8>, QueryError> {
        let mut found: BTreeMap<String, Arc<LabelSet>> = BTreeMap::new();
        for matchers in params.groups()? {
            for labels in self.source.series(tenant, &matchers, params.start, params.end) {
                found.insert(labels.text().to_string(), labels);
            }
        }
        Ok(response::series(found.values()))
    }

    fn check_limit(&self, tenant: &Tenant, limit: usize) -> Result<(), QueryError> {
        let max = self.overrides.of(tenant).max_entries_limit_per_query;
        if max != 0 && limit > max {
            return Err(QueryError::bad_request(format!(
                "max entries limit per query exceeded, limit > max_entries_limit_per_query ({limit} > {max})"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
