//! What records hold: tables and bodies of Entries, bincode bodies of the others (`wal-format.md`, section 5).
//!
//! bincode is used in this file only (docs/adr/0002-bincode.md says how to leave it).

use super::cut::Cut;
use super::format::{FLAG_CARRIED, Kind, MAX_RECORD_LEN, RECORD_HEAD_LEN, RecordHead};
use crate::codec::{Cursor, DecodeError, crc32, put_uvarint, put_varint, snappy};
use ahash::AHashMap;
use std::ops::Range;
use std::sync::Arc;

/// Compression of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// Stored as it is.
    None = 0,
    /// Snappy block format.
    #[default]
    Snappy = 1,
    /// One zstd frame, level 1.
    Zstd = 2,
}

/// Why a record's tables or body could not be read although their CRC holds: damage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A field is cut or too large.
    #[error("{0}")]
    Decode(#[from] DecodeError),
    /// A codec number that this program does not know.
    #[error("unknown compression codec {0}")]
    Codec(u8),
    /// Decompression failed or gave another size than the head says.
    #[error("the body does not decompress to its {0} bytes")]
    Decompress(u32),
    /// A bincode body does not decode.
    #[error("the {0} body does not decode: {1}")]
    Control(&'static str, String),
    /// A table and the body disagree.
    #[error("{0}")]
    Inconsistent(&'static str),
}

/// One row of the stream table of an Entries record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRow {
    /// Stream id.
    pub stream: u64,
    /// seq of the stream's first entry in this record.
    pub first_seq: u64,
    /// Entries of the stream.
    pub count: u32,
    /// Bytes of the stream's part of the body, decompressed.
    pub part_len: u32,
}

impl TableRow {
    /// The seq after its last.
    pub fn end_seq(&self) -> u64 {
        self.first_seq.saturating_add(u64::from(self.count))
    }

    /// Its bytes in the tables.
    pub fn encode(&self) -> [u8; ROW_LEN] {
        let mut out = [0; ROW_LEN];
        out[..8].copy_from_slice(&self.stream.to_le_bytes());
        out[8..16].copy_from_slice(&self.first_seq.to_le_bytes());
        out[16..20].copy_from_slice(&self.count.to_le_bytes());
        out[20..].copy_from_slice(&self.part_len.to_le_bytes());
        out
    }
}

const ROW_LEN: usize = 24;

/// The uncompressed tables of an Entries record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables<'a> {
    /// Tenant name.
    pub tenant: &'a str,
    /// Extension area: fields that a reader may pass over, such as a [`Cut`].
    pub extension: &'a [u8],
    /// One row a stream, in the order of the body.
    pub rows: Vec<TableRow>,
}

impl<'a> Tables<'a> {
    /// # Errors
    /// The tables are cut, hold another number of rows than they say, or a tenant that is not UTF-8.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BodyError> {
        let mut c = Cursor::new(bytes);
        let tenant_len = c.u16()?;
        let tenant = std::str::from_utf8(c.bytes(tenant_len.into())?)
            .map_err(|_| BodyError::Inconsistent("the tenant is not UTF-8"))?;
        let extension_len = c.u32()?;
        let extension = c.bytes(extension_len as usize)?;
        let count = c.u32()? as usize;
        if count.checked_mul(ROW_LEN) != Some(c.remaining()) {
            return Err(BodyError::Inconsistent("the stream table has another size than its count"));
        }
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            rows.push(TableRow { stream: c.u64()?, first_seq: c.u64()?, count: c.u32()?, part_len: c.u32()? });
        }
        Ok(Self { tenant, extension, rows })
    }

    /// Log lines in the record.
    pub fn lines(&self) -> u64 {
        self.rows.iter().map(|r| u64::from(r.count)).sum()
    }
}

/// One push as a record: encoded, compressed and its body's CRC computed; LSN, seqs and place are stamped by the log.
#[derive(Clone, Debug)]
pub struct EntriesRecord {
    /// Head, tables and stored body.
    bytes: Vec<u8>,
    head: RecordHead,
    rows_at: usize,
    rows: Vec<TableRow>,
    raw: Arc<Vec<u8>>,
}

impl EntriesRecord {
    /// Bytes in the log, padding excluded.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// A record always holds a head.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The stream table; seqs are those stamped last.
    pub fn rows(&self) -> &[TableRow] {
        &self.rows
    }

    /// The body before compression, for `apply`.
    pub fn raw(&self) -> &Arc<Vec<u8>> {
        &self.raw
    }

    /// Log lines in the record.
    pub fn lines(&self) -> u64 {
        self.rows.iter().map(|r| u64::from(r.count)).sum()
    }

    /// Takes seqs before the record is logged, as no correct program does.
    #[cfg(feature = "planted-bugs")]
    pub fn stamp_early(&mut self, row: usize, stream: &super::StreamLog) -> Option<TableRow> {
        let seq = stream.take_seqs_early(u64::from(self.rows.get(row)?.count));
        self.set_first_seq(row, seq);
        self.rows.get(row).copied()
    }

    /// Stamps the first seq of the stream in row `row`.
    pub(super) fn set_first_seq(&mut self, row: usize, seq: u64) {
        let at = self.rows_at + row * ROW_LEN + 8;
        if let (Some(r), Some(field)) = (self.rows.get_mut(row), self.bytes.get_mut(at..at + 8)) {
            r.first_seq = seq;
            field.copy_from_slice(&seq.to_le_bytes());
        }
    }

    /// Stamps the head for a place in the log and appends the record to a group.
    pub(super) fn stamp_into(&self, out: &mut Vec<u8>, lsn: u64, segment: u64, salt: u64, offset: u64) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let head = RecordHead { lsn, segment, ..self.head };
        head.stamp(out.get_mut(start..).unwrap_or_default(), salt, offset);
    }
}

/// Builds the record of one push.
pub struct EntriesBuilder<'a> {
    raw: Vec<u8>,
    rows: Vec<TableRow>,
    part_start: usize,
    /// Where the body is to be cut.
    cut: Option<usize>,
    last_timestamp: i64,
    symbols: Vec<&'a [u8]>,
    by_text: AHashMap<&'a [u8], u32>,
    /// By address: texts that come again and again, such as names of levels, lie at one.
    recent: [(&'a [u8], u32); RECENT],
}

const RECENT: usize = 16;

impl<'a> EntriesBuilder<'a> {
    /// `size_hint` is about the sum of all lines in bytes.
    pub fn new(size_hint: usize) -> Self {
        let mut raw = Vec::with_capacity(size_hint + size_hint / 8 + 64);
        raw.extend_from_slice(&[0; 4]);
        Self {
            raw,
            rows: Vec::new(),
            part_start: 4,
            cut: None,
            last_timestamp: 0,
            symbols: Vec::new(),
            by_text: AHashMap::new(),
            recent: [(&[], u32::MAX); RECENT],
        }
    }

    /// Begins the part of a stream. A stream comes once in a push.
    pub fn stream(&mut self, id: u64) {
        self.finish_part();
        self.rows.push(TableRow { stream: id, first_seq: 0, count: 0, part_len: 0 });
        self.last_timestamp = 0;
    }

    /// From here on come the streams with many lines: a start will decompress those before it without these.
    pub fn cut(&mut self) {
        self.cut = Some(self.raw.len());
    }

    /// Appends an entry to the current stream.
    pub fn entry(
        &mut self,
        timestamp: i64,
        line: &[u8],
        metadata: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
    ) {
        put_varint(&mut self.raw, timestamp.wrapping_sub(self.last_timestamp));
        self.last_timestamp = timestamp;
        put_uvarint(&mut self.raw, line.len() as u64);
        self.raw.extend_from_slice(line);
        put_uvarint(&mut self.raw, metadata.len() as u64);
        for (name, value) in metadata {
            let (name, value) = (self.symbol(name), self.symbol(value));
            put_uvarint(&mut self.raw, u64::from(name));
            put_uvarint(&mut self.raw, u64::from(value));
        }
        if let Some(row) = self.rows.last_mut() {
            row.count += 1;
        }
    }

    /// The id of a text. Most come from the address of one before: that is compared first.
    fn symbol(&mut self, text: &'a [u8]) -> u32 {
        let address = text.as_ptr() as usize;
        let recent = &mut self.recent[(address ^ address >> 4) % RECENT];
        if recent.1 != u32::MAX && std::ptr::eq(recent.0, text) {
            return recent.1;
        }
        let symbols = &mut self.symbols;
        let id = *self.by_text.entry(text).or_insert_with(|| {
            symbols.push(text);
            symbols.len() as u32 - 1
        });
        *recent = (text, id);
        id
    }

    fn finish_part(&mut self) {
        if let Some(row) = self.rows.last_mut() {
            row.part_len = (self.raw.len() - self.part_start) as u32;
        }
        self.part_start = self.raw.len();
    }

    /// As [`EntriesBuilder::finish`], for entries that are in the log already: `seqs` are the first ones of each row. A
    /// stream may have several rows here, in the order of their seqs.
    pub fn finish_carried(self, tenant: &str, codec: Codec, seqs: &[u64]) -> EntriesRecord {
        let mut record = self.finish(tenant, codec);
        record.head.flags |= FLAG_CARRIED;
        for (row, seq) in seqs.iter().enumerate() {
            record.set_first_seq(row, *seq);
        }
        record
    }

    /// Compresses the body and makes the record.
    pub fn finish(mut self, tenant: &str, codec: Codec) -> EntriesRecord {
        self.finish_part();
        let symbols_at = self.raw.len();
        if let Some(field) = self.raw.get_mut(..4) {
            field.copy_from_slice(&(symbols_at as u32).to_le_bytes());
        }
        put_uvarint(&mut self.raw, self.symbols.len() as u64);
        for symbol in &self.symbols {
            put_uvarint(&mut self.raw, symbol.len() as u64);
            self.raw.extend_from_slice(symbol);
        }
        // The tables lie ahead of the body and tell where it is cut.
        let mut body = Vec::new();
        let cut = self.cut.filter(|_| codec == Codec::Snappy);
        let cut = cut.and_then(|parts| Cut::compress(&self.raw, parts, symbols_at, &mut body));
        let extension = cut.map(Cut::field).unwrap_or_default();
        let mut bytes = vec![0; RECORD_HEAD_LEN];
        bytes.extend_from_slice(&(tenant.len() as u16).to_le_bytes());
        bytes.extend_from_slice(tenant.as_bytes());
        bytes.extend_from_slice(&(extension.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&extension);
        bytes.extend_from_slice(&(self.rows.len() as u32).to_le_bytes());
        let rows_at = bytes.len();
        for row in &self.rows {
            bytes.extend_from_slice(&row.encode());
        }
        let tables_len = bytes.len() - RECORD_HEAD_LEN;
        let codec = if cut.is_some() {
            bytes.extend_from_slice(&body);
            Codec::Snappy
        } else {
            compress(&mut bytes, &self.raw, codec)
        };
        let head = head_of(&bytes, Kind::Entries, &self.raw, codec, tables_len);
        EntriesRecord { bytes, head, rows_at, rows: self.rows, raw: Arc::new(self.raw) }
    }
}

/// The head, without LSN and place, of a record whose head, tables and body are `bytes`.
fn head_of(bytes: &[u8], kind: Kind, raw: &[u8], codec: Codec, tables_len: usize) -> RecordHead {
    let body = bytes.get(RECORD_HEAD_LEN + tables_len..).unwrap_or_default();
    RecordHead {
        len: bytes.len() as u32,
        kind: kind as u8,
        flags: 0,
        codec: codec as u8,
        lsn: 0,
        segment: 0,
        tables_len: tables_len as u32,
        body_len: body.len() as u32,
        raw_len: raw.len() as u32,
        body_crc: crc32(&[body]),
    }
}

/// Appends `raw`, compressed if that makes it smaller, and returns the codec that was used.
fn compress(out: &mut Vec<u8>, raw: &[u8], codec: Codec) -> Codec {
    let start = out.len();
    let compressed = match codec {
        Codec::None => false,
        Codec::Snappy => snappy::compress(raw, out),
        Codec::Zstd => match zstd::bulk::compress(raw, 1) {
            Ok(body) if body.len() < raw.len() => {
                out.extend_from_slice(&body);
                true
            }
            _ => false,
        },
    };
    if compressed {
        return codec;
    }
    out.truncate(start);
    out.extend_from_slice(raw);
    Codec::None
}

/// What a control record can hold. Other modules name this trait, never bincode.
pub(super) trait ControlBody: bincode::Encode {}

impl<T: bincode::Encode> ControlBody for T {}

/// Makes the bytes of a control record: a head and a bincode body. It runs on the log's thread and in recovery, where a
/// panic ends the process: nothing wrong is ever written.
pub(super) fn encode_control<T: ControlBody>(kind: Kind, value: &T) -> (Vec<u8>, RecordHead) {
    let raw = bincode::encode_to_vec(value, bincode::config::standard())
        .expect("encoding into a Vec fails only for types that control records do not hold (locks, cells, times)");
    let mut bytes = vec![0; RECORD_HEAD_LEN];
    let codec = compress(&mut bytes, &raw, Codec::Snappy);
    let head = head_of(&bytes, kind, &raw, codec, 0);
    (bytes, head)
}

/// Decodes a bincode body.
///
/// # Errors
/// The body does not decompress, or does not hold exactly one value of the type.
pub fn decode_control<T: bincode::Decode<()>>(head: &RecordHead, stored: &[u8]) -> Result<T, BodyError> {
    let name = head.known_kind().map_or("record", Kind::name);
    let raw = decompress_body(head, stored)?;
    only_value(name, &raw, decode_limited(&raw))
}

/// A list says how long it is before its elements come, and memory for all of them is taken at once. A number of one byte takes eight,
/// and nothing takes much more than that for each of its bytes: so what a body may take follows from its length, in steps of two.
fn decode_limited<T: bincode::Decode<()>>(raw: &[u8]) -> Result<(T, usize), bincode::error::DecodeError> {
    let config = bincode::config::standard;
    macro_rules! in_steps {
        ($($bits:literal)*) => {
            match raw.len() {
                $(len if len <= 1 << $bits => bincode::decode_from_slice(raw, config().with_limit::<{ 12 << $bits }>()),)*
                _ => bincode::decode_from_slice(raw, config().with_limit::<{ 12 * MAX_RECORD_LEN as usize }>()),
            }
        };
    }
    in_steps!(12 13 14 15 16 17 18 19 20 21 22 23 24)
}

fn only_value<T>(
    name: &'static str,
    raw: &[u8],
    decoded: Result<(T, usize), bincode::error::DecodeError>,
) -> Result<T, BodyError> {
    let (value, used) = decoded.map_err(|e| BodyError::Control(name, e.to_string()))?;
    if used != raw.len() {
        return Err(BodyError::Control(name, format!("{} bytes are left over", raw.len() - used)));
    }
    Ok(value)
}

/// Decompresses a stored body to the `raw_len` bytes of its head.
///
/// # Errors
/// Unknown codec, more than [`MAX_RECORD_LEN`], or bytes that do not decompress to that length.
pub fn decompress_body(head: &RecordHead, stored: &[u8]) -> Result<Vec<u8>, BodyError> {
    let mut raw = Vec::new();
    decompress_body_into(head, stored, &mut raw)?;
    Ok(raw)
}

/// The most bytes that a codec can hold in so many: nothing more is allocated, whatever a head says.
pub(super) fn most_decompressed(codec: u8, stored: usize) -> Option<u64> {
    let ratio = match codec {
        0 => 1,
        // A copy of 3 bytes yields 64.
        1 => 22,
        // A block of 4 bytes yields 128 KiB.
        2 => 32 << 10,
        _ => return None,
    };
    Some((stored as u64).saturating_mul(ratio))
}

/// As [`decompress_body`], into a buffer whose memory is used again.
///
/// # Errors
/// As [`decompress_body`]; what the buffer holds is unknown then.
pub fn decompress_body_into(head: &RecordHead, stored: &[u8], raw: &mut Vec<u8>) -> Result<(), BodyError> {
    let wrong = || BodyError::Decompress(head.raw_len);
    let most = most_decompressed(head.codec, stored.len()).ok_or(BodyError::Codec(head.codec))?;
    if u64::from(head.raw_len) > most.min(MAX_RECORD_LEN) {
        return Err(wrong());
    }
    let raw_len = head.raw_len as usize;
    let len = match head.codec {
        0 => {
            raw.clear();
            raw.extend_from_slice(stored);
            stored.len()
        }
        1 => {
            if snap::raw::decompress_len(stored).map_err(|_| wrong())? != raw_len {
                return Err(wrong());
            }
            set_len(raw, raw_len);
            snap::raw::Decoder::new().decompress(stored, raw).map_err(|_| wrong())?
        }
        2 => {
            set_len(raw, raw_len);
            zstd::bulk::decompress_to_buffer(stored, raw).map_err(|_| wrong())?
        }
        other => return Err(BodyError::Codec(other)),
    };
    if len == raw_len { Ok(()) } else { Err(wrong()) }
}

/// Makes a buffer so long; what it holds then is written over. Where it is made anew, fresh memory holds zeros already.
fn set_len(raw: &mut Vec<u8>, len: usize) {
    if raw.capacity() < len {
        *raw = vec![0; len];
    } else {
        raw.resize(len, 0);
    }
}

/// A decompressed body of an Entries record, with its symbols.
pub struct BodyView<'a> {
    parts: &'a [u8],
    symbols: Vec<&'a [u8]>,
}

impl<'a> BodyView<'a> {
    /// # Errors
    /// The body's symbol table is cut or lies outside it.
    pub fn new(raw: &'a [u8]) -> Result<Self, BodyError> {
        let mut c = Cursor::new(raw);
        let symbols_at = c.u32()? as usize;
        let parts = raw.get(4..symbols_at).ok_or(BodyError::Inconsistent("the symbol table lies outside the body"))?;
        let mut c = Cursor::new(raw.get(symbols_at..).unwrap_or_default());
        let count = c.uvarint()?;
        // All but one have at least a byte, with its length.
        if count > c.remaining() as u64 / 2 + 1 {
            return Err(DecodeError::Truncated.into());
        }
        let mut symbols = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let len = usize::try_from(c.uvarint()?).map_err(|_| DecodeError::Truncated)?;
            symbols.push(c.bytes(len)?);
        }
        Ok(Self { parts, symbols })
    }

    /// The metadata strings of the body.
    pub fn symbols(&self) -> &[&'a [u8]] {
        &self.symbols
    }

    /// The entries of the part that starts `start` bytes after the first one and belongs to `row`.
    pub fn part(&self, start: usize, row: &TableRow) -> Result<PartIter<'a>, BodyError> {
        let end = start.saturating_add(row.part_len as usize);
        let bytes =
            self.parts.get(start..end).ok_or(BodyError::Inconsistent("a stream's part lies outside the body"))?;
        Ok(PartIter { cursor: Cursor::new(bytes), left: row.count, timestamp: 0, symbols: self.symbols.len() as u64 })
    }
}

/// One entry of a body.
#[derive(Clone, Copy, Debug)]
pub struct EntryView<'a> {
    /// Nanoseconds since the Unix epoch.
    pub timestamp: i64,
    /// The line.
    pub line: &'a [u8],
    pairs: Cursor2<'a>,
}

#[derive(Clone, Copy, Debug)]
struct Cursor2<'a> {
    bytes: &'a [u8],
    pairs: u32,
}

impl<'a> EntryView<'a> {
    /// Indices of names and values in the body's symbols; they are in range.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + use<'a> {
        let mut cursor = Cursor::new(self.pairs.bytes);
        (0..self.pairs.pairs).map(move |_| {
            // `PartIter` has read these varints once already.
            (cursor.uvarint().unwrap_or(0) as u32, cursor.uvarint().unwrap_or(0) as u32)
        })
    }
}

/// Iterates over one stream's part of a body.
pub struct PartIter<'a> {
    cursor: Cursor<'a>,
    left: u32,
    timestamp: i64,
    symbols: u64,
}

impl<'a> PartIter<'a> {
    fn entry(&mut self) -> Result<EntryView<'a>, BodyError> {
        self.timestamp = self.timestamp.wrapping_add(self.cursor.varint()?);
        let len = usize::try_from(self.cursor.uvarint()?).map_err(|_| DecodeError::Truncated)?;
        let line = self.cursor.bytes(len)?;
        let pairs = self.cursor.uvarint()?;
        if pairs > self.cursor.remaining() as u64 {
            return Err(DecodeError::Truncated.into());
        }
        let start = self.cursor.clone();
        for _ in 0..2 * pairs {
            if self.cursor.uvarint()? >= self.symbols {
                return Err(BodyError::Inconsistent("a metadata symbol is not in the body's table"));
            }
        }
        let mut whole = start;
        let used = whole.remaining() - self.cursor.remaining();
        let bytes = whole.bytes(used)?;
        Ok(EntryView { timestamp: self.timestamp, line, pairs: Cursor2 { bytes, pairs: pairs as u32 } })
    }
}

impl<'a> Iterator for PartIter<'a> {
    type Item = Result<EntryView<'a>, BodyError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let rest = self.cursor.remaining();
            self.cursor = Cursor::new(&[]);
            return (rest > 0).then_some(Err(BodyError::Inconsistent("a stream's part is longer than its entries")));
        }
        self.left -= 1;
        let entry = self.entry();
        if entry.is_err() {
            self.left = 0;
            self.cursor = Cursor::new(&[]);
        }
        Some(entry)
    }
}

/// Definition of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SeriesDef {
    /// Stream id.
    pub id: u64,
    /// Tenant.
    pub tenant: String,
    /// Labels, sorted by name.
    pub labels: Vec<(String, String)>,
    /// xxhash64 of the labels, after collision mapping.
    pub fingerprint: u64,
    /// The seq that the stream's next entry gets, counted before the group of this record.
    pub next_seq: u64,
    /// All seqs below this one are in synced blocks or in the object store.
    pub settled_seq: u64,
}

/// The end of the last segment that had durable content when a segment was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Previous {
    /// Its number. Segments between it and the new one are void.
    pub segment: u64,
    /// Bytes from here on are void.
    pub end_offset: u64,
    /// The LSN after its last.
    pub end_lsn: u64,
    /// Chained CRC over the CRCs of its groups up to the end.
    pub digest: u32,
}

/// Where the log that is needed begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Beginning {
    /// Its oldest segment.
    pub segment: u64,
    /// First LSN of that segment.
    pub lsn: u64,
    /// Log lines in the log's life before it.
    pub lines: u64,
}

/// First record of a segment.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Open {
    /// First LSN of the segment.
    pub first_lsn: u64,
    /// No stream id from here on was given yet.
    pub next_stream_id: u64,
    /// Log lines in the log's life before this segment.
    pub total_lines: u64,
    /// Where the log ended before; `None` in the first segment.
    pub previous: Option<Previous>,
    /// The LSN after the last record that recovery wrote again in the segment's first group; `first_lsn` if it wrote
    /// none. As long as such a group is neither whole nor proved durable, the records at the end of the older segments
    /// are the ones that count.
    pub tail_end: u64,
    /// The oldest segment that is still needed.
    pub first_live: Beginning,
    /// The live segments of the block log, oldest first.
    pub blocks: Vec<BlocksSynced>,
}

/// How far a segment of the block log is durable. What lies behind does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct BlocksSynced {
    /// Its number.
    pub segment: u64,
    /// Bytes from here on do not count.
    pub end: u64,
    /// Offset of the group with its footer; 0 while the segment is written.
    pub footer: u64,
}

/// A chunk's blocks are all sealed: it takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct ChunkClosed {
    /// Stream id.
    pub stream: u64,
    /// Number of the chunk in its stream.
    pub chunk: u64,
    /// The seq after its last.
    pub end_seq: u64,
    /// 1 full, 2 idle, 3 max_age, 4 synced, 5 forced.
    pub reason: u8,
}

/// A chunk is in the object store and its index entry is written: exactly these seqs are settled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct ChunkFlushed {
    /// Stream id.
    pub stream: u64,
    /// Number of the chunk in its stream.
    pub chunk: u64,
    /// Its first seq.
    pub first_seq: u64,
    /// The seq after its last.
    pub end_seq: u64,
    /// Key of the object.
    pub key: String,
}

/// Segments that nothing needs any more; written before they are removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Retiring {
    /// The oldest segment of the write-ahead log that is still needed; zeros if only blocks go.
    pub first_live: Beginning,
    /// Segments of the block log that go.
    pub blocks: Vec<u64>,
}

/// The last record of a finished segment of the block log.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Footer {
    /// All streams of the segment.
    pub definitions: Vec<SeriesDef>,
    /// Offset, length and tables of each block record, in the order of the segment.
    pub blocks: Vec<(u64, u32, Vec<u8>)>,
}

/// Where the parts of a [`Footer`] lie in its body, which is kept as it is: nothing is copied out of it, and most of its definitions
/// are known already when a log is recovered.
#[derive(Debug, Default)]
pub(super) struct FooterParts {
    pub definitions: Vec<SeriesAt>,
    /// Offset and length of each block, and where its tables lie.
    pub blocks: Vec<(u64, u32, Range<usize>)>,
}

impl FooterParts {
    /// # Errors
    /// The body does not hold exactly one footer.
    pub fn find(raw: &[u8]) -> Result<Self, BodyError> {
        let mut c = Cursor::new(raw);
        let at = |c: &Cursor<'_>| raw.len() - c.remaining();
        let mut out = Self::default();
        let count = int(&mut c)?;
        out.definitions.reserve(room(count, &c));
        for _ in 0..count {
            let begin = at(&c);
            let SeriesRef { id, next_seq, .. } = SeriesRef::pass(&mut c)?;
            out.definitions.push(SeriesAt { id, next_seq, whole: begin..at(&c) });
        }
        let count = int(&mut c)?;
        out.blocks.reserve(room(count, &c));
        for _ in 0..count {
            let (offset, len) = (int(&mut c)?, int(&mut c)?);
            let len = u32::try_from(len).map_err(|_| BodyError::Inconsistent("a block is longer than 4 GiB"))?;
            let tables = bytes(&mut c)?.len();
            out.blocks.push((offset, len, at(&c) - tables..at(&c)));
        }
        nothing_left(&c)?;
        Ok(out)
    }
}

/// For how many of so many elements there is to be room before one is read: no more than may lie in what is left.
fn room(count: u64, rest: &Cursor<'_>) -> usize {
    const LEAST: usize = 16;
    usize::try_from(count).unwrap_or(usize::MAX).min(rest.remaining() / LEAST)
}

/// A [`SeriesDef`] somewhere in a body.
#[derive(Clone, Debug)]
pub(super) struct SeriesAt {
    pub id: u64,
    pub next_seq: u64,
    whole: Range<usize>,
}

impl SeriesAt {
    /// # Errors
    /// A text is not UTF-8, or `raw` is not the body in which it was found.
    pub fn decode(&self, raw: &[u8]) -> Result<SeriesDef, BodyError> {
        let whole = raw.get(self.whole.clone()).unwrap_or_default();
        SeriesRef { id: self.id, next_seq: self.next_seq, whole }.decode()
    }
}

/// A [`SeriesDef`] that was passed over: each segment defines its streams again, so most that a start meets are known already.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeriesRef<'a> {
    pub id: u64,
    pub next_seq: u64,
    whole: &'a [u8],
}

impl<'a> SeriesRef<'a> {
    /// All definitions in the body of a Series record.
    ///
    /// # Errors
    /// The body does not hold exactly one list of them.
    pub fn all(raw: &'a [u8]) -> Result<Vec<Self>, BodyError> {
        let mut c = Cursor::new(raw);
        let count = int(&mut c)?;
        let mut out = Vec::with_capacity(room(count, &c));
        for _ in 0..count {
            out.push(Self::pass(&mut c)?);
        }
        nothing_left(&c)?;
        Ok(out)
    }

    /// The fields of a [`SeriesDef`], in its order.
    fn pass(c: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let mut start = c.clone();
        let id = int(c)?;
        bytes(c)?;
        for _ in 0..int(c)? {
            bytes(c)?;
            bytes(c)?;
        }
        int(c)?;
        let next_seq = int(c)?;
        int(c)?;
        let whole = start.bytes(start.remaining() - c.remaining())?;
        Ok(Self { id, next_seq, whole })
    }

    /// # Errors
    /// A text is not UTF-8.
    pub fn decode(&self) -> Result<SeriesDef, BodyError> {
        let decoded = bincode::decode_from_slice(self.whole, bincode::config::standard());
        only_value(Kind::Series.name(), self.whole, decoded)
    }
}

/// An *int* of section 5.2.
fn int(c: &mut Cursor<'_>) -> Result<u64, DecodeError> {
    match c.u8()? {
        small @ 0..=250 => Ok(small.into()),
        251 => c.u16().map(u64::from),
        252 => c.u32().map(u64::from),
        253 => c.u64(),
        _ => Err(DecodeError::Varint),
    }
}

/// A *string*, or bytes, of section 5.2.
fn bytes<'a>(c: &mut Cursor<'a>) -> Result<&'a [u8], DecodeError> {
    let len = int(c)?;
    c.bytes(usize::try_from(len).map_err(|_| DecodeError::Truncated)?)
}

fn nothing_left(c: &Cursor<'_>) -> Result<(), BodyError> {
    if c.remaining() == 0 { Ok(()) } else { Err(BodyError::Inconsistent("bytes are left over")) }
}

/// The tables of a Block record: everything that is known of a block without its bytes. They own their symbols, or borrow them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTables<S = BlockSymbols> {
    /// Stream id.
    pub stream: u64,
    /// Number of the chunk in its stream.
    pub chunk: u64,
    /// First seq of the block.
    pub first_seq: u64,
    /// The seq after its last. Duplicates use up seqs and are not stored.
    pub end_seq: u64,
    /// Stored entries.
    pub entries: u32,
    /// Lowest timestamp of its entries.
    pub min_timestamp: i64,
    /// Highest timestamp of its entries, inclusive.
    pub max_timestamp: i64,
    /// Highest timestamp that the stream had when the block was frozen.
    pub newest_timestamp: i64,
    /// Timestamp of the entry with the seq before `end_seq`.
    pub last_timestamp: i64,
    /// XXH3-128 of that entry's line and metadata.
    pub last_hash: u128,
    /// Loki's number of the encoding.
    pub encoding: u8,
    /// Bytes of the lines, and 8 for each metadata pair.
    pub uncompressed_size: u64,
    /// CRC-32C of the block's bytes, as Loki's chunk has it.
    pub crc: u32,
    /// Ids and texts of the chunk's symbols that the block uses.
    pub symbols: S,
}

/// Ids and texts of symbols, as a record holds them: a log has many blocks with two or three short symbols each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSymbols(Box<[u8]>);

/// [`BlockSymbols`] where they lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSymbolsRef<'a>(&'a [u8]);

impl BlockSymbols {
    /// Each id with its text.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> {
        BlockSymbolsRef(&self.0).iter()
    }
}

impl<'a> BlockSymbolsRef<'a> {
    /// Takes the bytes that `count` symbols make up.
    fn decode(count: u32, bytes: &'a [u8]) -> Result<Self, BodyError> {
        let mut c = Cursor::new(bytes);
        for _ in 0..count {
            let (_id, len) = (c.u32()?, c.u32()?);
            c.bytes(len as usize)?;
        }
        if c.remaining() > 0 {
            return Err(BodyError::Inconsistent("the block's tables have bytes left over"));
        }
        Ok(Self(bytes))
    }

    /// Each id with its text.
    pub fn iter(self) -> impl Iterator<Item = (u32, &'a [u8])> {
        let mut c = Cursor::new(self.0);
        // The bytes were decoded once, or made here.
        std::iter::from_fn(move || {
            let (id, len) = (c.u32().ok()?, c.u32().ok()?);
            Some((id, c.bytes(len as usize).ok()?))
        })
    }
}

impl<'a> FromIterator<(u32, &'a [u8])> for BlockSymbols {
    fn from_iter<I: IntoIterator<Item = (u32, &'a [u8])>>(symbols: I) -> Self {
        let mut bytes = Vec::new();
        for (id, text) in symbols {
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text);
        }
        Self(bytes.into())
    }
}

/// Bytes of [`BlockTables`] before their symbols.
const BLOCK_TABLES_LEN: usize = 104;

impl BlockTables {
    /// The bytes of the tables.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_TABLES_LEN + self.symbols.0.len());
        for v in [self.stream, self.chunk, self.first_seq, self.end_seq] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        for v in [self.min_timestamp, self.max_timestamp, self.newest_timestamp, self.last_timestamp] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&self.last_hash.to_le_bytes());
        out.extend_from_slice(&self.uncompressed_size.to_le_bytes());
        for v in [self.entries, self.crc, u32::from(self.encoding), self.symbols.iter().count() as u32] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&self.symbols.0);
        out
    }

    /// # Errors
    /// As those of [`BlockTables::view`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BodyError> {
        BlockTables::view(bytes).map(BlockTables::into_owned)
    }
}

impl<'a> BlockTables<BlockSymbolsRef<'a>> {
    /// The tables without copies.
    ///
    /// # Errors
    /// The tables are cut or hold more than they say, or a range is empty.
    pub fn view(bytes: &'a [u8]) -> Result<Self, BodyError> {
        let mut c = Cursor::new(bytes);
        let mut out = Self {
            stream: c.u64()?,
            chunk: c.u64()?,
            first_seq: c.u64()?,
            end_seq: c.u64()?,
            min_timestamp: c.u64()? as i64,
            max_timestamp: c.u64()? as i64,
            newest_timestamp: c.u64()? as i64,
            last_timestamp: c.u64()? as i64,
            last_hash: u128::from(c.u64()?) | u128::from(c.u64()?) << 64,
            uncompressed_size: c.u64()?,
            entries: c.u32()?,
            crc: c.u32()?,
            encoding: u8::try_from(c.u32()?)
                .map_err(|_| BodyError::Inconsistent("the encoding is not a number of one byte"))?,
            symbols: BlockSymbolsRef::default(),
        };
        let count = c.u32()?;
        out.symbols = BlockSymbolsRef::decode(count, c.bytes(c.remaining())?)?;
        if out.first_seq >= out.end_seq {
            return Err(BodyError::Inconsistent("the block holds no seq"));
        }
        Ok(out)
    }

    /// Bytes of the tables.
    pub fn encoded_len(&self) -> usize {
        BLOCK_TABLES_LEN + self.symbols.0.len()
    }

    fn into_owned(self) -> BlockTables {
        BlockTables {
            stream: self.stream,
            chunk: self.chunk,
            first_seq: self.first_seq,
            end_seq: self.end_seq,
            entries: self.entries,
            min_timestamp: self.min_timestamp,
            max_timestamp: self.max_timestamp,
            newest_timestamp: self.newest_timestamp,
            last_timestamp: self.last_timestamp,
            last_hash: self.last_hash,
            encoding: self.encoding,
            uncompressed_size: self.uncompressed_size,
            crc: self.crc,
            symbols: BlockSymbols(self.symbols.0.into()),
        }
    }
}

/// Head of a Block record without place; `data` is compressed already.
pub(super) fn block_head(tables: &[u8], data: &[u8]) -> RecordHead {
    RecordHead {
        len: (RECORD_HEAD_LEN + tables.len() + data.len()) as u32,
        kind: Kind::Block as u8,
        flags: 0,
        codec: Codec::None as u8,
        lsn: 0,
        segment: 0,
        tables_len: tables.len() as u32,
        body_len: data.len() as u32,
        raw_len: data.len() as u32,
        body_crc: crc32(&[data]),
    }
}

/// LSNs and seqs that do not exist, as half-open ranges: a settled loss.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct Gap {
    /// Ranges of LSNs.
    pub lsns: Vec<(u64, u64)>,
    /// Ranges of seqs: stream id, first, end.
    pub seqs: Vec<(u64, u64, u64)>,
    /// Log lines that the lost records had; some may survive in blocks.
    pub lines: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Line = (i64, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

    fn build(streams: &[Vec<Line>], codec: Codec) -> EntriesRecord {
        let mut b = EntriesBuilder::new(0);
        for (id, lines) in streams.iter().enumerate() {
            b.stream(id as u64 + 1);
            for (ts, line, md) in lines {
                b.entry(*ts, line, md.iter().map(|(n, v)| (&n[..], &v[..])));
            }
        }
        b.finish("tenant", codec)
    }

    fn read(record: &EntriesRecord) -> Vec<Vec<Line>> {
        let tables = Tables::decode(&record.bytes[48..48 + record.head.tables_len as usize]).unwrap();
        let stored = &record.bytes[48 + record.head.tables_len as usize..];
        let raw = decompress_body(&record.head, stored).unwrap();
        assert_eq!(&raw, &**record.raw());
        let body = BodyView::new(&raw).unwrap();
        let mut start = 0;
        let mut out = Vec::new();
        for row in &tables.rows {
            let lines = body.part(start, row).unwrap().map(|e| {
                let e = e.unwrap();
                let s = |i: u32| body.symbols()[i as usize].to_vec();
                (e.timestamp, e.line.to_vec(), e.metadata().map(|(n, v)| (s(n), s(v))).collect())
            });
            out.push(lines.collect());
            start += row.part_len as usize;
        }
        out
    }

    fn lines() -> impl Strategy<Value = Vec<Vec<Line>>> {
        let text = || prop::collection::vec(any::<u8>(), 0..20);
        let md = prop::collection::vec((text(), text()), 0..3);
        prop::collection::vec(prop::collection::vec((any::<i64>(), text(), md), 0..5), 0..4)
    }

    proptest! {
        #[test]
        fn entries_round_trip(streams in lines(), codec in prop_oneof![Just(Codec::None), Just(Codec::Snappy), Just(Codec::Zstd)]) {
            prop_assert_eq!(read(&build(&streams, codec)), streams);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(raw in prop::collection::vec(any::<u8>(), 0..200), count in 0u32..50, part_len in 0u32..200) {
            let _ = Tables::decode(&raw);
            if let Ok(body) = BodyView::new(&raw)
                && let Ok(part) = body.part(0, &TableRow { stream: 1, first_seq: 0, count, part_len })
            {
                part.flatten().for_each(|e| e.metadata().for_each(drop));
            }
        }
    }

    #[test]
    fn control_bodies_round_trip_and_reject_leftovers() {
        let open = Open {
            first_lsn: 300,
            next_stream_id: 9,
            total_lines: 70_000,
            tail_end: 300,
            first_live: Beginning { segment: 1, lsn: 0, lines: 0 },
            blocks: vec![],
            previous: Some(Previous { segment: 1, end_offset: 8192, end_lsn: 300, digest: 7 }),
        };
        let (bytes, head) = encode_control(Kind::Open, &open);
        assert_eq!(decode_control::<Open>(&head, &bytes[48..]), Ok(open));
        let longer = [&bytes[48..], &[0]].concat();
        let head = RecordHead { raw_len: head.raw_len + 1, ..head };
        assert!(decode_control::<Open>(&head, &longer).is_err());
    }

    /// What a body says of its size is not believed beyond what its bytes can hold.
    #[test]
    fn lies_about_sizes_cost_nothing() {
        let head = |codec: u8, body: &[u8], raw_len| RecordHead {
            raw_len,
            codec,
            ..head_of(&[&[0; RECORD_HEAD_LEN], body].concat(), Kind::Gap, body, Codec::None, 0)
        };
        let mut raw = Vec::new();
        for (codec, body) in [(1, &b"\x80\x80\x80\x40"[..]), (2, &b"1234"[..])] {
            let lie = head(codec, body, 128 << 20);
            assert_eq!(decompress_body_into(&lie, body, &mut raw), Err(BodyError::Decompress(128 << 20)));
            assert_eq!(raw.capacity(), 0);
        }
        // Eight million ranges in five bytes: bincode would take memory for them before it looks for the first.
        let list = [252, 0, 0, 128, 0];
        let error = decode_control::<Gap>(&head(0, &list, 5), &list).unwrap_err();
        assert!(error.to_string().contains("LimitExceeded"), "{error}");
        // As small as they get, and none of them is too many.
        let gap = Gap { lsns: vec![(1, 2); 100_000], seqs: vec![(1, 2, 3); 100_000], lines: 7 };
        let (bytes, packed) = encode_control(Kind::Gap, &gap);
        assert_eq!(decode_control::<Gap>(&packed, &bytes[RECORD_HEAD_LEN..]), Ok(gap));
    }

    #[test]
    fn symbols_have_bytes() {
        let body = |count: u8, symbols: &[u8]| [&[4, 0, 0, 0, count], symbols].concat();
        assert_eq!(BodyView::new(&body(2, b"\0\x01a")).unwrap().symbols(), [&b""[..], b"a"]);
        assert!(BodyView::new(&body(9, &[0; 9])).is_err());
    }

    fn definitions() -> impl Strategy<Value = Vec<SeriesDef>> {
        let number =
            || prop_oneof![0u64..300, any::<u64>(), any::<u16>().prop_map(u64::from), any::<u32>().prop_map(u64::from)];
        let text = || prop_oneof!["[a-zé]{0,5}", "[a-z]{240,270}"];
        let labels = prop::collection::vec((text(), text()), 0..4);
        let one = (number(), text(), labels, number(), number(), number());
        let make = |(id, tenant, labels, fingerprint, next_seq, settled_seq)| SeriesDef {
            id,
            tenant,
            labels,
            fingerprint,
            next_seq,
            settled_seq,
        };
        prop::collection::vec(one.prop_map(make), 0..6)
    }

    proptest! {
        /// What is passed over is what decodes, whole, cut, and with bytes changed.
        #[test]
        fn definitions_are_passed_over_as_they_decode(given in definitions(), at in any::<prop::sample::Index>(), to: u8, cut: bool) {
            let config = bincode::config::standard;
            let mut raw = bincode::encode_to_vec(&given, config()).unwrap();
            let read = |raw: &[u8]| -> Option<Vec<SeriesDef>> {
                SeriesRef::all(raw).ok()?.iter().map(|d| d.decode().ok().filter(|s| (s.id, s.next_seq) == (d.id, d.next_seq))).collect()
            };
            prop_assert_eq!(read(&raw), Some(given.clone()));
            let footer = Footer { definitions: given.clone(), blocks: vec![(u64::MAX, 7, raw.clone()), (1, u32::MAX, vec![])] };
            let packed = bincode::encode_to_vec(&footer, config()).unwrap();
            let found = FooterParts::find(&packed).unwrap();
            let blocks: Vec<_> = found.blocks.into_iter().map(|(at, len, tables)| (at, len, &packed[tables])).collect();
            prop_assert_eq!(blocks, [(u64::MAX, 7, &raw[..]), (1, u32::MAX, &[][..])]);
            let definitions: Vec<_> = found.definitions.iter().map(|d| d.decode(&packed).unwrap()).collect();
            prop_assert_eq!(definitions, &given[..]);
            prop_assert!(found.definitions.iter().zip(&given).all(|(d, s)| (d.id, d.next_seq) == (s.id, s.next_seq)));
            let place = at.index(raw.len());
            if cut { raw.truncate(place) } else { raw[place] = to }
            let whole = bincode::decode_from_slice::<Vec<SeriesDef>, _>(&raw, config().with_limit::<{ 1 << 20 }>());
            prop_assert_eq!(read(&raw), whole.ok().filter(|(_, used)| *used == raw.len()).map(|(all, _)| all));
        }
    }
}
