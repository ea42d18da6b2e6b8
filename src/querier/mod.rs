//! (querier)
