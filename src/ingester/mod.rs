//! (ingester)
