//! From a call of the query API to the querier.

use crate::api::{ReadCall, Reader};
use crate::model::Tenant;
use crate::querier::{EncodingFlags, InstantParams, LabelParams, Querier, QueryError, RangeParams, SeriesParams};
use std::time::{SystemTime, UNIX_EPOCH};

/// Answers reads, once there is something to read from.
pub struct QueryReader {
    /// The querier.
    pub querier: Querier,
    /// Status and text if reads cannot be answered, now or here.
    pub unavailable: Box<dyn Fn() -> Option<(u16, String)> + Send + Sync>,
}

impl Reader for QueryReader {
    fn handle(
        &self,
        tenant: &Tenant,
        call: ReadCall,
        params: &[(String, String)],
        encoding_flags: Option<&str>,
    ) -> Result<Vec<u8>, (u16, String)> {
        if let Some(why) = (self.unavailable)() {
            return Err(why);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64;
        let flags = encoding_flags.map(EncodingFlags::parse).unwrap_or_default();
        self.answer(tenant, call, params, flags, now).map_err(|e| (e.status, e.message))
    }
}

impl QueryReader {
    fn answer(
        &self,
        tenant: &Tenant,
        call: ReadCall,
        params: &[(String, String)],
        flags: EncodingFlags,
        now: i64,
    ) -> Result<Vec<u8>, QueryError> {
        match call {
            ReadCall::QueryRange => self.querier.query_range(tenant, &RangeParams::decode(params, now)?, flags),
            ReadCall::Query => self.querier.query(tenant, &InstantParams::decode(params, now)?, flags),
            ReadCall::Labels => self.querier.labels(tenant, &LabelParams::decode(params, now)?),
            ReadCall::LabelValues(name) => self.querier.label_values(tenant, &name, &LabelParams::decode(params, now)?),
            ReadCall::Series => self.querier.series(tenant, &SeriesParams::decode(params, now)?),
        }
    }
}
