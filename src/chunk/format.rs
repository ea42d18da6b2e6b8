//! Loki's chunk format 4 and the object that Loki stores it in.
//!
//! ```text
//! u32 0x012EE56A | u8 format | u8 encoding
//! symbols: uvarint count, compressed { uvarint length, bytes }* | u32 CRC-32C
//! blocks:  compressed entries | u32 CRC-32C
//! metas:   uvarint count, { uvarint entries, varint min, varint max, uvarint offset, uvarint size, uvarint length }* | u32 CRC-32C
//! footer:  u64 symbols length, u64 symbols offset, u64 metas length, u64 metas offset
//! ```
//! All fixed-width numbers are big-endian. The parts follow each other without a gap, and decoding holds them to it:
//! so also bytes without a checksum of their own cannot change unnoticed.

use super::error::verify;
use super::varint::{Reader, put_uvarint, put_varint};
use super::{Block, BlockMeta, ChunkError, Encoding, MAX_PAYLOAD, Symbols};
use bytes::Bytes;

const MAGIC: u32 = 0x012E_E56A;
const FORMAT: u8 = 4;
const HEADER_LEN: usize = 6;
const CRC_LEN: usize = 4;
const FOOTER_LEN: usize = 32;
/// Most bytes of the decompressed metadata of a chunk object: far above any legal set of labels.
const MAX_OBJECT_METADATA: usize = 1 << 20;

/// A table of symbols and the blocks that use it, in the order in which they were sealed.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    /// Names and values of structured metadata.
    pub symbols: Symbols,
    /// Sealed blocks.
    pub blocks: Vec<Block>,
}

impl Chunk {
    /// The complete chunk in Loki's format 4. Blocks of this encoding are copied as they are, others are recoded;
    /// blocks without entries are left out.
    ///
    /// # Errors
    /// A block's bytes are damaged: nothing is encoded from what cannot be read.
    pub fn encode(&self, encoding: Encoding) -> Result<Vec<u8>, ChunkError> {
        let data_len: usize = self.blocks.iter().map(|b| b.data().len() + 64).sum();
        let mut out = Vec::with_capacity(data_len + self.symbols.size() + 128);
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&[FORMAT, encoding.code()]);
        let symbols = put_section(&mut out, |out| put_symbols(out, &self.symbols, encoding));
        let mut metas = Vec::with_capacity(self.blocks.len());
        for block in self.blocks.iter().filter(|b| b.meta().entries > 0) {
            metas.push((out.len(), put_block(&mut out, block, encoding)?));
        }
        let metas = put_section(&mut out, |out| put_metas(out, &metas));
        for (len, offset) in [symbols, metas] {
            out.extend_from_slice(&(len as u64).to_be_bytes());
            out.extend_from_slice(&(offset as u64).to_be_bytes());
        }
        Ok(out)
    }

    /// Reads a chunk of format 4. Checksums of all parts are verified; the entries of a block are decompressed and
    /// checked when they are read.
    ///
    /// # Errors
    /// The bytes are not a whole chunk that Loki could have written, or use another format or encoding.
    pub fn decode(bytes: &[u8]) -> Result<Chunk, ChunkError> {
        let mut header = Reader::new(bytes, "chunk");
        let magic = header.u32_be()?;
        if magic != MAGIC {
            return Err(ChunkError::Magic(magic));
        }
        let format = header.u8()?;
        if format != FORMAT {
            return Err(ChunkError::Format(format));
        }
        let encoding = Encoding::from_code(header.u8()?)?;
        let footer = Footer::read(bytes)?;
        let symbols = read_symbols(section(bytes, HEADER_LEN, footer.symbols_len, "symbols")?, encoding)?;
        let metas = read_metas(section(bytes, footer.metas_offset, footer.metas_len, "block metas")?, encoding)?;
        let blocks = read_blocks(bytes, &footer, metas)?;
        Ok(Chunk { symbols, blocks })
    }
}

/// A chunk as Loki's object store holds it.
#[derive(Clone, Debug)]
pub struct ChunkObject {
    /// JSON: fingerprint, tenant, time range and labels.
    pub metadata: Vec<u8>,
    /// The chunk.
    pub chunk: Chunk,
}

/// Reads a chunk object: the length of the metadata (with itself), the metadata as framed snappy, the length of the
/// chunk, the chunk.
///
/// # Errors
/// As [`Chunk::decode`], or the wrapper around the chunk is malformed.
pub fn decode_object(bytes: &[u8]) -> Result<ChunkObject, ChunkError> {
    const WHAT: &str = "object";
    let mut reader = Reader::new(bytes, WHAT);
    let len = reader.u32_be()?.checked_sub(4);
    let len = len.ok_or(ChunkError::malformed(WHAT, "the length of its metadata does not include itself"))?;
    let packed = reader.bytes(len as usize)?;
    let metadata = Encoding::Snappy.decompress(WHAT, packed, MAX_OBJECT_METADATA, MAX_OBJECT_METADATA)?;
    let len = reader.u32_be()?;
    let chunk = Chunk::decode(reader.bytes(len as usize)?)?;
    if !reader.is_empty() {
        return Err(ChunkError::malformed(WHAT, "bytes follow its chunk"));
    }
    Ok(ChunkObject { metadata, chunk })
}

/// Writes a part and its checksum; its length without the checksum, and its offset.
fn put_section(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> (usize, usize) {
    let offset = out.len();
    write(out);
    let crc = crc32c::crc32c(out.get(offset..).unwrap_or_default());
    let len = out.len() - offset;
    out.extend_from_slice(&crc.to_be_bytes());
    (len, offset)
}

fn put_symbols(out: &mut Vec<u8>, symbols: &Symbols, encoding: Encoding) {
    put_uvarint(out, symbols.len() as u64);
    let mut list = Vec::with_capacity(symbols.size() + 2 * symbols.len());
    for symbol in symbols.iter() {
        put_uvarint(&mut list, symbol.len() as u64);
        list.extend_from_slice(symbol);
    }
    encoding.compress(&list, out);
}

/// Writes a block and its checksum, which is verified on the way; the metadata of what was written.
fn put_block(out: &mut Vec<u8>, block: &Block, encoding: Encoding) -> Result<BlockMeta, ChunkError> {
    if block.meta().encoding != encoding {
        return put_block(out, &block.recode(encoding)?, encoding);
    }
    verify("block", block.data(), block.meta().crc)?;
    out.extend_from_slice(block.data());
    out.extend_from_slice(&block.meta().crc.to_be_bytes());
    Ok(*block.meta())
}

fn put_metas(out: &mut Vec<u8>, metas: &[(usize, BlockMeta)]) {
    put_uvarint(out, metas.len() as u64);
    for (offset, meta) in metas {
        put_uvarint(out, u64::from(meta.entries));
        put_varint(out, meta.min_timestamp);
        put_varint(out, meta.max_timestamp);
        put_uvarint(out, *offset as u64);
        put_uvarint(out, meta.uncompressed_size);
        put_uvarint(out, u64::from(meta.compressed_len));
    }
}

/// Where the parts of a chunk lie; checked to follow each other as far as it tells.
struct Footer {
    symbols_len: usize,
    metas_len: usize,
    metas_offset: usize,
}

impl Footer {
    fn read(bytes: &[u8]) -> Result<Footer, ChunkError> {
        const WHAT: &str = "footer";
        let start = bytes.len().checked_sub(FOOTER_LEN).ok_or(ChunkError::Truncated { what: WHAT })?;
        let mut reader = Reader::new(bytes.get(start..).unwrap_or_default(), WHAT);
        let mut number = || {
            let value = usize::try_from(reader.u64_be()?).ok().filter(|v| *v <= bytes.len());
            value.ok_or(ChunkError::malformed(WHAT, "an offset or a length is beyond the chunk's end"))
        };
        let (symbols_len, symbols_offset) = (number()?, number()?);
        let (metas_len, metas_offset) = (number()?, number()?);
        if symbols_offset != HEADER_LEN {
            return Err(ChunkError::malformed(WHAT, "the symbols do not follow the header"));
        }
        if metas_offset + metas_len + CRC_LEN != start {
            return Err(ChunkError::malformed(WHAT, "the block metas do not end at the footer"));
        }
        Ok(Footer { symbols_len, metas_len, metas_offset })
    }
}

/// A part of a chunk without its checksum, which is verified.
fn section<'a>(bytes: &'a [u8], offset: usize, len: usize, what: &'static str) -> Result<&'a [u8], ChunkError> {
    let mut reader = Reader::new(bytes.get(offset..).unwrap_or_default(), what);
    let part = reader.bytes(len)?;
    verify(what, part, reader.u32_be()?)?;
    Ok(part)
}

fn read_symbols(part: &[u8], encoding: Encoding) -> Result<Symbols, ChunkError> {
    const WHAT: &str = "symbols";
    let mut reader = Reader::new(part, WHAT);
    let count = reader.uvarint()?;
    let list = encoding.decompress(WHAT, reader.rest(), part.len().saturating_mul(4), MAX_PAYLOAD)?;
    let mut reader = Reader::new(&list, WHAT);
    let mut symbols = Symbols::new();
    while !reader.is_empty() {
        symbols.push(reader.prefixed()?);
    }
    if symbols.len() as u64 != count {
        return Err(ChunkError::malformed(WHAT, "their number is not the stored one"));
    }
    Ok(symbols)
}

/// A block's metadata without its checksum, which lies behind the block, and its offset.
type StoredMeta = (BlockMeta, u64);

fn read_metas(part: &[u8], encoding: Encoding) -> Result<Vec<StoredMeta>, ChunkError> {
    const WHAT: &str = "block metas";
    let mut reader = Reader::new(part, WHAT);
    let count = reader.uvarint()?;
    let mut metas = Vec::new();
    while !reader.is_empty() {
        let (entries, min_timestamp, max_timestamp) = (reader.uvarint32()?, reader.varint()?, reader.varint()?);
        let offset = reader.uvarint()?;
        let (uncompressed_size, compressed_len) = (reader.uvarint()?, reader.uvarint32()?);
        let meta =
            BlockMeta { encoding, entries, min_timestamp, max_timestamp, uncompressed_size, compressed_len, crc: 0 };
        metas.push((meta, offset));
    }
    if metas.len() as u64 != count {
        return Err(ChunkError::malformed(WHAT, "their number is not the stored one"));
    }
    Ok(metas)
}

/// The blocks between the symbols and the metas.
fn read_blocks(bytes: &[u8], footer: &Footer, metas: Vec<StoredMeta>) -> Result<Vec<Block>, ChunkError> {
    const WHAT: &str = "block";
    let start = HEADER_LEN + footer.symbols_len + CRC_LEN;
    let all = bytes.get(start..footer.metas_offset);
    let all = all.ok_or(ChunkError::malformed("footer", "the block metas begin before the symbols end"))?;
    let shared = Bytes::copy_from_slice(all);
    let mut reader = Reader::new(all, WHAT);
    let mut blocks = Vec::with_capacity(metas.len());
    for (meta, offset) in metas {
        let at = all.len() - reader.remaining();
        if offset != (start + at) as u64 {
            return Err(ChunkError::malformed("block metas", "the blocks do not follow each other"));
        }
        let len = reader.bytes(meta.compressed_len as usize)?.len();
        let meta = BlockMeta { crc: reader.u32_be()?, ..meta };
        blocks.push(Block::from_stored(meta, shared.slice(at..at + len))?);
    }
    if !reader.is_empty() {
        return Err(ChunkError::malformed("block metas", "they leave bytes between the blocks and themselves"));
    }
    Ok(blocks)
}
