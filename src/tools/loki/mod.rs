//! What a Loki ingester leaves on its disk: segments in the format of Prometheus' log, checkpoints, chunks. Read past
//! damage, and never changed. Nothing that is read is trusted.

pub mod chunk;
pub mod record;
pub mod wlog;

#[cfg(test)]
mod tests;
