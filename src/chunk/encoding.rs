use super::ChunkError;
use crate::codec::snappy;
use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

/// Log lines rarely compress better.
const USUAL_RATIO: usize = 8;

/// How a chunk's blocks and symbols are compressed (`ingester.chunk_encoding`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Not at all.
    None,
    /// gzip, Loki's default: small, and ten times the processor time of snappy.
    Gzip,
    /// Snappy's framing format, as Go's `snappy.NewBufferedWriter` writes it.
    Snappy,
}

impl Encoding {
    /// Loki's number of the encoding in a chunk's header.
    pub fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 4,
        }
    }

    /// # Errors
    /// [`ChunkError::Encoding`] for a number that is none of ours.
    pub fn from_code(code: u8) -> Result<Self, ChunkError> {
        match code {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            4 => Ok(Self::Snappy),
            other => Err(ChunkError::Encoding(other)),
        }
    }

    /// Loki's name of the encoding in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
        }
    }

    /// Appends the compressed form of `bytes` to `out`.
    pub(super) fn compress(self, bytes: &[u8], out: &mut Vec<u8>) {
        let written = match self {
            Self::None => out.write_all(bytes),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                encoder.write_all(bytes).and_then(|()| encoder.finish().map(drop))
            }
            Self::Snappy => {
                snappy::compress_framed(bytes, out);
                Ok(())
            }
        };
        written.expect("writing to memory does not fail");
    }

    /// Decompresses all of `bytes`, but never more than `limit` bytes. `expected` sizes the first allocation.
    pub(super) fn decompress(
        self,
        what: &'static str,
        bytes: &[u8],
        expected: usize,
        limit: usize,
    ) -> Result<Vec<u8>, ChunkError> {
        // What is expected may be false: it costs no more than the bytes that are there can explain.
        let mut out = Vec::with_capacity(expected.min(bytes.len().saturating_mul(USUAL_RATIO)).min(limit));
        let bound = limit as u64 + 1;
        let read = match self {
            Self::None => bytes.take(bound).read_to_end(&mut out),
            Self::Gzip => flate2::read::MultiGzDecoder::new(bytes).take(bound).read_to_end(&mut out),
            Self::Snappy => snap::read::FrameDecoder::new(bytes).take(bound).read_to_end(&mut out),
        };
        read.map_err(|e| ChunkError::Compression { what, encoding: self.name(), reason: e.to_string() })?;
        if out.len() > limit { Err(ChunkError::TooLarge { what, limit }) } else { Ok(out) }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Encoding {
    type Err = ChunkError;

    fn from_str(name: &str) -> Result<Self, ChunkError> {
        match name {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "snappy" => Ok(Self::Snappy),
            other => Err(ChunkError::EncodingName(other.chars().take(64).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Encoding; 3] = [Encoding::None, Encoding::Gzip, Encoding::Snappy];

    #[test]
    fn names_and_numbers_are_lokis() {
        for e in ALL {
            assert_eq!(Encoding::from_code(e.code()), Ok(e));
            assert_eq!(e.name().parse(), Ok(e));
        }
        assert_eq!(Encoding::from_code(9), Err(ChunkError::Encoding(9)));
        assert!("zstd".parse::<Encoding>().is_err_and(|e| e.to_string().contains("use none, gzip or snappy")));
    }

    #[test]
    fn decompression_is_bounded() {
        let zeros = vec![0u8; 100_000];
        for e in ALL {
            let mut packed = Vec::new();
            e.compress(&zeros, &mut packed);
            assert_eq!(e.decompress("test", &packed, 100_000, 100_000).as_deref(), Ok(&zeros[..]));
            let cut = e.decompress("test", &packed, usize::MAX, 99_999);
            assert_eq!(cut, Err(ChunkError::TooLarge { what: "test", limit: 99_999 }));
        }
    }

    #[test]
    fn snappy_is_the_framing_format() {
        let mut packed = Vec::new();
        Encoding::Snappy.compress(b"line", &mut packed);
        assert!(packed.starts_with(b"\xff\x06\x00\x00sNaPpY"));
    }
}
