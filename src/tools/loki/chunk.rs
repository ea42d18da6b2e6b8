//! Chunks as a checkpoint holds them: blocks in Loki's chunk formats 1 to 4, and a head. The symbols of format 4 are not
//! compressed here, as they are in the object store; so [`crate::chunk`] does not read them.

use super::record::StoredEntry;
use crate::codec::{Cursor, DecodeError};
use std::io::{self, Read};

const MAGIC: u32 = 0x012E_E56A;
/// Most bytes of a block before compression.
const MAX_BLOCK: u64 = crate::chunk::MAX_PAYLOAD as u64;

/// Gets each entry.
pub type Each<'a, E> = dyn FnMut(StoredEntry<'_>) -> Result<(), E> + 'a;

/// Why a chunk or a block cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Its fields.
    #[error("{0}")]
    Fields(#[from] DecodeError),
    /// What it is.
    #[error("not a chunk of a format that is known")]
    Format,
    /// The head's format.
    #[error("a head of format {0}, which is not known")]
    HeadFormat(u8),
    /// The compression of its blocks.
    #[error("compressed with codec {0}, which is not supported here (none, gzip, lz4, snappy, flate and zstd are)")]
    Codec(u8),
    /// A checksum.
    #[error("the checksum does not match")]
    Checksum,
    /// The compressed bytes.
    #[error("it does not decompress: {0}")]
    Compression(String),
    /// A number of a symbol.
    #[error("a symbol that is not in the chunk")]
    Symbol,
}

/// A chunk whose metadata holds.
pub struct Chunk<'a> {
    bytes: &'a [u8],
    format: u8,
    codec: u8,
    symbols: Vec<&'a [u8]>,
    /// Its blocks.
    pub blocks: Vec<BlockMeta>,
}

/// A block of a chunk.
#[derive(Clone, Copy)]
pub struct BlockMeta {
    /// Number of entries.
    pub entries: u64,
    offset: u64,
    len: u64,
}

impl<'a> Chunk<'a> {
    /// Reads the symbols and where the blocks lie.
    ///
    /// # Errors
    /// They do not decode, or their checksums do not match.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, ChunkError> {
        let mut cursor = Cursor::new(bytes);
        let format = match (u32_be(&mut cursor)?, cursor.u8()?) {
            (MAGIC, format @ 1..=4) => format,
            _ => return Err(ChunkError::Format),
        };
        // Format 1 knew gzip only.
        let codec = if format == 1 { 1 } else { cursor.u8()? };
        let (symbols, metas) = if format == 4 {
            let [symbols_len, symbols_at, metas_len, metas_at] = footer(bytes)?;
            (symbols(section(bytes, symbols_at, symbols_len)?)?, section(bytes, metas_at, metas_len)?)
        } else {
            let [metas_at] = footer(bytes)?;
            let behind = (bytes.len() as u64).checked_sub(8 + 4).and_then(|end| end.checked_sub(metas_at));
            (Vec::new(), section(bytes, metas_at, behind.ok_or(DecodeError::Truncated)?)?)
        };
        let blocks = block_metas(metas, format)?;
        Ok(Self { bytes, format, codec, symbols, blocks })
    }

    /// Are its blocks compressed in a way that is not read here?
    pub fn is_unsupported(&self) -> bool {
        !matches!(self.codec, 0 | 1 | 3..=9)
    }

    /// Hands the entries of a block on.
    ///
    /// # Errors
    /// The block is damaged: the entries before the damage were handed on. Or `each` failed.
    pub fn block<E: From<ChunkError>>(&self, meta: BlockMeta, each: &mut Each<'_, E>) -> Result<(), E> {
        let stored = section(self.bytes, meta.offset, meta.len)?;
        let payload = decompress(self.codec, stored, MAX_BLOCK)?;
        let mut cursor = Cursor::new(&payload);
        for _ in 0..meta.entries {
            let (timestamp, line) = line(&mut cursor)?;
            if self.format == 4 {
                // The length of the metadata.
                cursor.uvarint().map_err(ChunkError::from)?;
            }
            let metadata = self.metadata(&mut cursor, self.format == 4)?;
            each(StoredEntry { timestamp, line, metadata })?;
        }
        Ok(())
    }

    /// Hands the entries of the head on.
    ///
    /// # Errors
    /// As [`Chunk::block`].
    pub fn head<E: From<ChunkError>>(&self, head: &[u8], each: &mut Each<'_, E>) -> Result<(), E> {
        let mut cursor = Cursor::new(head);
        let Ok(format) = cursor.u8() else { return Ok(()) };
        if !matches!(format, 4 | 5) {
            return Err(ChunkError::HeadFormat(format).into());
        }
        for _ in 0..cursor.uvarint().map_err(ChunkError::from)? {
            let (timestamp, line) = line(&mut cursor)?;
            let metadata = self.metadata(&mut cursor, format == 5)?;
            each(StoredEntry { timestamp, line, metadata })?;
        }
        Ok(())
    }

    fn metadata(&self, cursor: &mut Cursor<'_>, has_any: bool) -> Result<Vec<(&'a [u8], &'a [u8])>, ChunkError> {
        let mut pairs = Vec::new();
        let count = if has_any { cursor.uvarint()? } else { 0 };
        for _ in 0..count {
            pairs.push((self.symbol(cursor.uvarint()?)?, self.symbol(cursor.uvarint()?)?));
        }
        Ok(pairs)
    }

    fn symbol(&self, id: u64) -> Result<&'a [u8], ChunkError> {
        let id = usize::try_from(id).map_err(|_| ChunkError::Symbol)?;
        self.symbols.get(id).copied().ok_or(ChunkError::Symbol)
    }
}

fn u32_be(cursor: &mut Cursor<'_>) -> Result<u32, DecodeError> {
    cursor.u32().map(u32::swap_bytes)
}

fn prefixed<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], DecodeError> {
    let len = cursor.uvarint()?;
    cursor.bytes(usize::try_from(len).map_err(|_| DecodeError::Truncated)?)
}

fn line<'a>(cursor: &mut Cursor<'a>) -> Result<(i64, &'a [u8]), ChunkError> {
    Ok((cursor.varint()?, prefixed(cursor)?))
}

/// The numbers at the end of a chunk.
fn footer<const N: usize>(bytes: &[u8]) -> Result<[u64; N], ChunkError> {
    let start = bytes.len().checked_sub(8 * N).ok_or(DecodeError::Truncated)?;
    let mut cursor = Cursor::new(bytes.get(start..).unwrap_or_default());
    let mut out = [0; N];
    for number in &mut out {
        *number = cursor.u64()?.swap_bytes();
    }
    Ok(out)
}

/// Bytes of a chunk whose CRC-32C follows them.
fn section(bytes: &[u8], at: u64, len: u64) -> Result<&[u8], ChunkError> {
    let bytes = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).ok_or(DecodeError::Truncated)?;
    let mut cursor = Cursor::new(bytes);
    let part = cursor.bytes(usize::try_from(len).map_err(|_| DecodeError::Truncated)?)?;
    if u32_be(&mut cursor)? == crc32c::crc32c(part) { Ok(part) } else { Err(ChunkError::Checksum) }
}

fn symbols(part: &[u8]) -> Result<Vec<&[u8]>, ChunkError> {
    let mut cursor = Cursor::new(part);
    let mut out = Vec::new();
    for _ in 0..cursor.uvarint()? {
        out.push(prefixed(&mut cursor)?);
    }
    Ok(out)
}

fn block_metas(part: &[u8], format: u8) -> Result<Vec<BlockMeta>, ChunkError> {
    let mut cursor = Cursor::new(part);
    let mut out = Vec::new();
    for _ in 0..cursor.uvarint()? {
        let entries = cursor.uvarint()?;
        // The lowest and the highest timestamp.
        cursor.varint()?;
        cursor.varint()?;
        let offset = cursor.uvarint()?;
        if format >= 3 {
            // Bytes before compression.
            cursor.uvarint()?;
        }
        out.push(BlockMeta { entries, offset, len: cursor.uvarint()? });
    }
    Ok(out)
}

/// All of the bytes, but never more than `limit`.
pub(super) fn decompress(codec: u8, stored: &[u8], limit: u64) -> Result<Vec<u8>, ChunkError> {
    let failed = |e: io::Error| ChunkError::Compression(e.to_string());
    let mut out = Vec::new();
    let bound = limit + 1;
    match codec {
        0 => stored.take(bound).read_to_end(&mut out),
        1 => flate2::read::MultiGzDecoder::new(stored).take(bound).read_to_end(&mut out),
        // Loki's 64k, 256k, 1M and 4M: the frame says which.
        3 | 5..=7 => lz4_flex::frame::FrameDecoder::new(stored).take(bound).read_to_end(&mut out),
        4 => snap::read::FrameDecoder::new(stored).take(bound).read_to_end(&mut out),
        8 => flate2::read::DeflateDecoder::new(stored).take(bound).read_to_end(&mut out),
        9 => {
            let decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(failed)?;
            decoder.take(bound).read_to_end(&mut out)
        }
        other => return Err(ChunkError::Codec(other)),
    }
    .map_err(failed)?;
    if out.len() as u64 > limit {
        return Err(ChunkError::Compression(format!("more than {limit} bytes")));
    }
    Ok(out)
}
