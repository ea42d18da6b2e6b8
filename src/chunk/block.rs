use super::error::verify;
use super::varint::{Reader, put_uvarint, put_varint, uvarint_len};
use super::{ChunkError, Encoding, Head, MAX_PAYLOAD, Symbols};
use crate::model::{LogEntry, Metadata};
use bytes::Bytes;
use std::cell::RefCell;

/// What is known of a block without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockMeta {
    /// How the bytes are compressed.
    pub encoding: Encoding,
    /// Number of entries.
    pub entries: u32,
    /// Lowest timestamp, nanoseconds since the Unix epoch; 0 without entries.
    pub min_timestamp: i64,
    /// Highest timestamp, inclusive; 0 without entries.
    pub max_timestamp: i64,
    /// Bytes of the lines, and 8 for each metadata pair, as Loki counts.
    pub uncompressed_size: u64,
    /// Number of compressed bytes.
    pub compressed_len: u32,
    /// CRC-32C of the compressed bytes.
    pub crc: u32,
}

/// Sorted, compressed entries: the bytes of a block in Loki's chunk format 4.
///
/// Metadata names and values are ids in the [`Symbols`] of the block's chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    meta: BlockMeta,
    data: Bytes,
}

impl Block {
    /// Sorts a head by timestamp and arrival and compresses it. Metadata strings that are new are appended to the
    /// chunk's `symbols`. Equal entries all stay; [`select`](super::select) shows them once.
    ///
    /// A head without entries gives a block without entries, which reads as nothing and which a chunk leaves out.
    pub fn seal(head: &Head, symbols: &mut Symbols, encoding: Encoding) -> Block {
        Self::seal_with_ids(head, symbols, encoding).0
    }

    /// As [`Block::seal`], with the ids of all symbols that the block uses, ascending.
    pub fn seal_with_ids(head: &Head, symbols: &mut Symbols, encoding: Encoding) -> (Block, Vec<u32>) {
        SCRATCH.with_borrow_mut(|Scratch { payload, data }| {
            payload.clear();
            let mut writer = PayloadWriter::new(head, symbols, payload);
            if head.is_ordered() {
                (0..head.len()).for_each(|position| writer.entry(position));
            } else {
                head.order(..).iter().for_each(|position| writer.entry(*position as usize));
            }
            let ids = writer.finish();
            data.clear();
            encoding.compress(payload, data);
            let block = Self::with_data(head, data, encoding);
            payload.shrink_to(KEPT_SCRATCH);
            data.shrink_to(KEPT_SCRATCH);
            (block, ids)
        })
    }

    fn with_data(head: &Head, data: &[u8], encoding: Encoding) -> Block {
        let (min_timestamp, max_timestamp) = head.bounds().unwrap_or_default();
        let meta = BlockMeta {
            encoding,
            // A head's payload is at most MAX_PAYLOAD, so counts and lengths fit 32 bits.
            entries: head.len() as u32,
            min_timestamp,
            max_timestamp,
            uncompressed_size: head.uncompressed_size() as u64,
            compressed_len: data.len() as u32,
            crc: crc32c::crc32c(data),
        };
        Block { meta, data: Bytes::copy_from_slice(data) }
    }

    /// A block from its stored parts. The bytes are verified here and at each read.
    ///
    /// # Errors
    /// The bytes do not have the length or the checksum that `meta` tells.
    pub fn from_stored(meta: BlockMeta, data: Bytes) -> Result<Block, ChunkError> {
        if data.len() != meta.compressed_len as usize {
            return Err(ChunkError::malformed(WHAT, "its length is not the stored one"));
        }
        verify(WHAT, &data, meta.crc)?;
        Ok(Block { meta, data })
    }

    /// What is known without the bytes.
    pub fn meta(&self) -> &BlockMeta {
        &self.meta
    }

    /// The compressed bytes, without their checksum.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// All entries by timestamp, then arrival.
    ///
    /// Metadata that is not UTF-8, which no push brings in, reads with U+FFFD in its place.
    ///
    /// # Errors
    /// The bytes do not have their checksum, do not decompress, or are not the entries that the metadata tells.
    pub fn entries(&self, symbols: &Symbols) -> Result<Vec<LogEntry>, ChunkError> {
        let open = self.open(symbols)?;
        let entry = |position| {
            let metadata: Vec<_> = open.metadata(position).collect();
            log_entry(open.timestamp(position), open.line(position), &metadata)
        };
        Ok((0..open.len()).map(entry).collect())
    }

    /// The same entries in another encoding.
    pub(super) fn recode(&self, encoding: Encoding) -> Result<Block, ChunkError> {
        let mut data = Vec::new();
        encoding.compress(&self.payload()?, &mut data);
        let compressed_len =
            u32::try_from(data.len()).map_err(|_| ChunkError::TooLarge { what: WHAT, limit: u32::MAX as usize })?;
        let meta = BlockMeta { encoding, compressed_len, crc: crc32c::crc32c(&data), ..self.meta };
        Ok(Block { meta, data: data.into() })
    }

    /// Verifies, decompresses and checks the whole block.
    pub(super) fn open<'a>(&self, symbols: &'a Symbols) -> Result<OpenBlock<'a>, ChunkError> {
        let payload = self.payload()?;
        let index = index(&payload, &self.meta, symbols.len())?;
        Ok(OpenBlock { payload, index, symbols })
    }

    /// The verified, decompressed bytes.
    fn payload(&self) -> Result<Vec<u8>, ChunkError> {
        verify(WHAT, &self.data, self.meta.crc)?;
        let expected = (self.meta.entries as usize)
            .saturating_mul(16)
            .saturating_add(usize::try_from(self.meta.uncompressed_size).unwrap_or(usize::MAX));
        self.meta.encoding.decompress(WHAT, &self.data, expected, MAX_PAYLOAD)
    }
}

const WHAT: &str = "block";

/// A [`LogEntry`] with copies of borrowed bytes.
pub(super) fn log_entry(timestamp: i64, line: &[u8], metadata: &[(&[u8], &[u8])]) -> LogEntry {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let metadata: Metadata = metadata.iter().map(|(name, value)| (text(name), text(value))).collect();
    LogEntry { timestamp, line: Bytes::copy_from_slice(line), metadata }
}

/// Buffers of a thread that seals: pages that are new to the process cost more than what is written to them.
#[derive(Default)]
struct Scratch {
    payload: Vec<u8>,
    data: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Bytes of each scratch buffer that are kept after use.
const KEPT_SCRATCH: usize = 1 << 20;

/// Writes entries of a head as the payload of a block.
struct PayloadWriter<'a> {
    head: &'a Head,
    symbols: &'a mut Symbols,
    /// Chunk ids of the head's symbols, where they were needed already.
    ids: Vec<Option<u32>>,
    pairs: Vec<(u32, u32)>,
    out: &'a mut Vec<u8>,
}

impl<'a> PayloadWriter<'a> {
    fn new(head: &'a Head, symbols: &'a mut Symbols, out: &'a mut Vec<u8>) -> Self {
        let ids = vec![None; head.symbols().len()];
        out.reserve(head.largest_payload());
        Self { head, symbols, ids, pairs: Vec::new(), out }
    }

    fn entry(&mut self, position: usize) {
        let Some(entry) = self.head.get(position) else { return };
        put_varint(self.out, entry.timestamp);
        put_uvarint(self.out, entry.line.len() as u64);
        self.out.extend_from_slice(entry.line);
        let mut pairs = std::mem::take(&mut self.pairs);
        pairs.clear();
        pairs.extend(entry.ids().map(|(name, value)| (self.chunk_id(name), self.chunk_id(value))));
        put_metadata(self.out, &pairs);
        self.pairs = pairs;
    }

    fn chunk_id(&mut self, id: u32) -> u32 {
        match self.ids.get_mut(id as usize) {
            Some(Some(known)) => *known,
            Some(unknown) => *unknown.insert(self.symbols.intern(self.head.symbols().get(id).unwrap_or_default())),
            None => unreachable!("a head lets no unknown id in"),
        }
    }

    fn finish(self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.ids.into_iter().flatten().collect();
        ids.sort_unstable();
        ids
    }
}

/// The metadata section of an entry: its length, the number of pairs, and their ids.
fn put_metadata(out: &mut Vec<u8>, pairs: &[(u32, u32)]) {
    let count = pairs.len() as u32;
    let len = uvarint_len(count) + pairs.iter().map(|(n, v)| uvarint_len(*n) + uvarint_len(*v)).sum::<usize>();
    put_uvarint(out, len as u64);
    put_uvarint(out, u64::from(count));
    for (name, value) in pairs {
        put_uvarint(out, u64::from(*name));
        put_uvarint(out, u64::from(*value));
    }
}

/// A decompressed block whose every byte was checked.
pub(super) struct OpenBlock<'a> {
    payload: Vec<u8>,
    index: Vec<Place>,
    symbols: &'a Symbols,
}

/// Where an entry lies in a payload; that is at most [`MAX_PAYLOAD`], so 32 bits do.
#[derive(Clone, Copy, Debug)]
struct Place {
    timestamp: i64,
    line: u32,
    line_len: u32,
    /// First byte of the ids.
    metadata: u32,
    pairs: u32,
}

impl OpenBlock<'_> {
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn timestamp(&self, position: usize) -> i64 {
        self.index.get(position).map_or(i64::MIN, |p| p.timestamp)
    }

    /// The first position whose timestamp is `timestamp` or more.
    pub(super) fn position(&self, timestamp: i64) -> usize {
        self.index.partition_point(|p| p.timestamp < timestamp)
    }

    pub(super) fn line(&self, position: usize) -> &[u8] {
        let line = |p: &Place| self.payload.get(p.line as usize..)?.get(..p.line_len as usize);
        self.index.get(position).and_then(line).unwrap_or_default()
    }

    pub(super) fn metadata(&self, position: usize) -> impl Iterator<Item = (&[u8], &[u8])> {
        let (start, pairs) = self.index.get(position).map_or((0, 0), |p| (p.metadata as usize, p.pairs));
        let mut reader = Reader::new(self.payload.get(start..).unwrap_or_default(), WHAT);
        let mut text = move || self.symbols.get(reader.uvarint32().ok()?);
        (0..pairs).map_while(move |_| Some((text()?, text()?)))
    }
}

/// Finds the entries of a payload, and checks that they are what the metadata tells.
fn index(payload: &[u8], meta: &BlockMeta, symbols: usize) -> Result<Vec<Place>, ChunkError> {
    // The smallest entry has four bytes: a false count allocates no more than the payload can hold.
    let mut places: Vec<Place> = Vec::with_capacity((meta.entries as usize).min(payload.len() / 4));
    let mut reader = Reader::new(payload, WHAT);
    while !reader.is_empty() {
        let place = place(&mut reader, payload.len(), symbols)?;
        if places.last().is_some_and(|before| place.timestamp < before.timestamp) {
            return Err(ChunkError::malformed(WHAT, "its entries are not in the order of their timestamps"));
        }
        places.push(place);
    }
    let bounds = |p: &[Place]| Some((p.first()?.timestamp, p.last()?.timestamp));
    if places.len() != meta.entries as usize {
        return Err(ChunkError::malformed(WHAT, "the number of its entries is not the stored one"));
    }
    if bounds(&places).is_some_and(|b| b != (meta.min_timestamp, meta.max_timestamp)) {
        return Err(ChunkError::malformed(WHAT, "its lowest or highest timestamp is not the stored one"));
    }
    Ok(places)
}

fn place(reader: &mut Reader<'_>, total: usize, symbols: usize) -> Result<Place, ChunkError> {
    let timestamp = reader.varint()?;
    let line_len = reader.length()? as u32;
    let line = (total - reader.remaining()) as u32;
    reader.bytes(line_len as usize)?;
    let section = reader.length()?;
    let section_start = total - reader.remaining();
    let mut ids = Reader::new(reader.bytes(section)?, WHAT);
    let pairs = ids.uvarint32()?;
    let metadata = (section_start + section - ids.remaining()) as u32;
    for _ in 0..pairs {
        for id in [ids.uvarint32()?, ids.uvarint32()?] {
            if id as usize >= symbols {
                return Err(ChunkError::malformed(WHAT, "an id is not in the chunk's symbols"));
            }
        }
    }
    if !ids.is_empty() {
        return Err(ChunkError::malformed(WHAT, "the metadata of an entry has bytes left over"));
    }
    Ok(Place { timestamp, line, line_len, metadata, pairs })
}
