use bytes::Bytes;

/// Structured metadata of one entry: names and values in the order in which they were pushed.
pub type Metadata = Vec<(String, String)>;

/// One stored log entry, as a read returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Nanoseconds since the Unix epoch.
    pub timestamp: i64,
    /// The line's bytes, exactly as pushed. Not necessarily UTF-8.
    pub line: Bytes,
    /// Structured metadata, `detected_level` included.
    pub metadata: Metadata,
}
