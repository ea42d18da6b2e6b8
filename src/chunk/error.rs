/// Why bytes are not a chunk, a block or a chunk object.
///
/// `what` names the part that was read: `"block"`, `"symbols"`, `"block metas"`, `"footer"`, `"chunk"`, `"object"`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The bytes do not begin with the magic number `0x012EE56A`.
    #[error("not a chunk: begins with {0:#010x} instead of 0x012ee56a")]
    Magic(u32),
    /// A format other than 4.
    #[error("chunk format {0} is not supported; only format 4 is (schema v13 and later)")]
    Format(u8),
    /// A codec number that is none of ours.
    #[error("chunk encoding {0} is not supported; only 0 (none), 1 (gzip) and 4 (snappy) are")]
    Encoding(u8),
    /// A codec name that is none of ours.
    #[error("chunk encoding {0:?} is not supported; use none, gzip or snappy")]
    EncodingName(String),
    /// The bytes end too early.
    #[error("{what} is cut short")]
    Truncated {
        /// The part that was read.
        what: &'static str,
    },
    /// The stored CRC-32C is not that of the bytes.
    #[error("{what} is damaged: its CRC-32C is {computed:#010x}, stored is {stored:#010x}")]
    Checksum {
        /// The part that was read.
        what: &'static str,
        /// The checksum beside the bytes.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// A part is larger than its limit once decompressed.
    #[error("{what} decompresses to more than the limit of {limit} bytes")]
    TooLarge {
        /// The part that was read.
        what: &'static str,
        /// Most bytes that are allowed.
        limit: usize,
    },
    /// The compressed bytes are not what the encoding's format allows.
    #[error("{what} does not decompress as {encoding}: {reason}")]
    Compression {
        /// The part that was read.
        what: &'static str,
        /// Name of the encoding.
        encoding: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// The bytes could not be read.
    #[error("{what} cannot be read: {reason}")]
    Unreadable {
        /// The part that was read.
        what: &'static str,
        /// What the disk or its reader said.
        reason: String,
    },
    /// The checksum, if there is one, is right, but the content contradicts itself.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// The part that was read.
        what: &'static str,
        /// What does not fit.
        reason: &'static str,
    },
}

impl ChunkError {
    pub(super) fn malformed(what: &'static str, reason: &'static str) -> Self {
        Self::Malformed { what, reason }
    }
}

/// Compares the CRC-32C of `bytes` with the one that was stored beside them.
pub(super) fn verify(what: &'static str, bytes: &[u8], stored: u32) -> Result<(), ChunkError> {
    let computed = crc32c::crc32c(bytes);
    if computed == stored { Ok(()) } else { Err(ChunkError::Checksum { what, stored, computed }) }
}
