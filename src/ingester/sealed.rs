//! Blocks that count: their bytes are in the block log, memory keeps what is needed to find and check them.

use super::memory::{Held, Meter};
use super::stream::{CloseReason, SealJob, Stream};
use crate::chunk::{Block, BlockMeta, BlockSource, ChunkError, Encoding, Symbols};
use crate::wal::{BlockPlace, BlockStore, BlockTables};
use std::ops::Range;
use std::sync::Arc;

/// A block in the block log.
#[derive(Clone)]
pub(super) struct SealedBlock {
    pub meta: BlockMeta,
    pub place: BlockPlace,
    pub seqs: Range<u64>,
    /// Highest timestamp of the stream when the block was frozen.
    pub newest: i64,
    /// Timestamp and hash of the last entry.
    pub last: (i64, u128),
    pub store: Arc<BlockStore>,
    /// What it takes of memory, and of its tenant's share of the disk.
    _held: [Held; 2],
}

impl SealedBlock {
    /// The block that the tables tell of.
    ///
    /// # Errors
    /// The encoding is unknown.
    pub fn of(
        tables: &BlockTables,
        place: BlockPlace,
        data_len: u32,
        store: Arc<BlockStore>,
        metadata: &Meter,
        share: &Meter,
    ) -> Result<Self, ChunkError> {
        let meta = BlockMeta {
            encoding: Encoding::from_code(tables.encoding)?,
            entries: tables.entries,
            min_timestamp: tables.min_timestamp,
            max_timestamp: tables.max_timestamp,
            uncompressed_size: tables.uncompressed_size,
            compressed_len: data_len,
            crc: tables.crc,
        };
        Ok(Self {
            meta,
            place,
            seqs: tables.first_seq..tables.end_seq,
            newest: tables.newest_timestamp,
            last: (tables.last_timestamp, tables.last_hash),
            store,
            _held: [metadata.block(), share.disk(place.len)],
        })
    }

    /// The same block in another place.
    pub fn moved(&self, place: BlockPlace) -> Self {
        Self { place, ..self.clone() }
    }

    /// Compressed bytes.
    pub fn len(&self) -> usize {
        self.meta.compressed_len as usize
    }

    /// What a record of the block tells of it.
    pub fn tables(&self, stream: u64, chunk: u64, symbols: &Symbols, ids: &[u32]) -> BlockTables {
        tables(stream, chunk, self.seqs.clone(), &self.meta, (self.newest, self.last), symbols, ids)
    }
}

impl BlockSource for SealedBlock {
    fn meta(&self) -> &BlockMeta {
        &self.meta
    }

    fn load(&self) -> Result<Block, ChunkError> {
        let unreadable = |e: crate::wal::BlockError| ChunkError::Unreadable { what: "block", reason: e.to_string() };
        Block::from_stored(self.meta, self.store.read(self.place).map_err(unreadable)?)
    }
}

/// What a new block's record tells.
pub(super) fn tables_of(
    job: &SealJob,
    stream: &Stream,
    meta: &BlockMeta,
    symbols: &Symbols,
    ids: &[u32],
) -> BlockTables {
    let times = (job.newest, job.last);
    tables(stream.log.id, job.chunk, job.first_seq..job.end_seq, meta, times, symbols, ids)
}

fn tables(
    stream: u64,
    chunk: u64,
    seqs: Range<u64>,
    meta: &BlockMeta,
    (newest, last): (i64, (i64, u128)),
    symbols: &Symbols,
    ids: &[u32],
) -> BlockTables {
    let text = |id: &u32| (*id, symbols.get(*id).unwrap_or_default());
    BlockTables {
        stream,
        chunk,
        first_seq: seqs.start,
        end_seq: seqs.end,
        entries: meta.entries,
        min_timestamp: meta.min_timestamp,
        max_timestamp: meta.max_timestamp,
        newest_timestamp: newest,
        last_timestamp: last.0,
        last_hash: last.1,
        encoding: meta.encoding.code(),
        uncompressed_size: meta.uncompressed_size,
        crc: meta.crc,
        symbols: ids.iter().map(text).collect(),
    }
}

/// What comes back with a block that counts.
pub(super) enum Sealing {
    /// A head became a block.
    New { stream: Arc<Stream>, tables: BlockTables, data_len: u32, symbols: Arc<Symbols>, closed: Option<CloseReason> },
    /// A block was copied out of a segment that is mostly dead.
    Moved { stream: Arc<Stream>, chunk: u64, from: BlockPlace },
}
