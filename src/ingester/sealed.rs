//! Blocks that count: their bytes are in the block log, memory keeps what is needed to find and check them.

use super::memory::{BLOCK_ENTRY, Meter};
use super::stream::{CloseReason, SealJob, Stream};
use crate::chunk::{Block, BlockMeta, BlockSource, ChunkError, Encoding, Symbols};
use crate::wal::{BlockPlace, BlockStore, BlockTables};
use std::ops::Range;
use std::sync::Arc;

/// What the blocks of a stream have in common. Each block counts itself here.
pub(super) struct Shelf {
    store: Arc<BlockStore>,
    /// What streams and blocks take of memory.
    metadata: Meter,
    /// What the tenant's blocks take of the disk.
    share: Meter,
}

impl Shelf {
    pub fn new(store: Arc<BlockStore>, metadata: &Meter, share: &Meter) -> Arc<Self> {
        Arc::new(Self { store, metadata: metadata.clone(), share: share.clone() })
    }
}

/// A block in the block log.
pub(super) struct SealedBlock {
    pub meta: BlockMeta,
    pub place: BlockPlace,
    pub seqs: Range<u64>,
    /// Highest timestamp of the stream when the block was frozen.
    pub newest: i64,
    /// Timestamp and hash of the last entry.
    pub last: (i64, u128),
    shelf: Arc<Shelf>,
}

impl SealedBlock {
    /// The block that the tables tell of.
    ///
    /// # Errors
    /// The encoding is unknown.
    pub fn of<S>(
        tables: &BlockTables<S>,
        place: BlockPlace,
        data_len: u32,
        shelf: &Arc<Shelf>,
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
        let last = (tables.last_timestamp, tables.last_hash);
        Ok(Self::new(meta, place, tables.first_seq..tables.end_seq, tables.newest_timestamp, last, shelf))
    }

    fn new(
        meta: BlockMeta,
        place: BlockPlace,
        seqs: Range<u64>,
        newest: i64,
        last: (i64, u128),
        shelf: &Arc<Shelf>,
    ) -> Self {
        shelf.metadata.add(size_of::<Self>() + BLOCK_ENTRY);
        shelf.share.add(place.len as usize);
        Self { meta, place, seqs, newest, last, shelf: shelf.clone() }
    }

    /// The same block in another place.
    pub fn moved(&self, place: BlockPlace) -> Self {
        Self::new(self.meta, place, self.seqs.clone(), self.newest, self.last, &self.shelf)
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

impl Drop for SealedBlock {
    fn drop(&mut self) {
        self.shelf.metadata.subtract(size_of::<Self>() + BLOCK_ENTRY);
        self.shelf.share.subtract(self.place.len as usize);
    }
}

impl BlockSource for SealedBlock {
    fn meta(&self) -> &BlockMeta {
        &self.meta
    }

    fn load(&self) -> Result<Block, ChunkError> {
        let unreadable = |e: crate::wal::BlockError| ChunkError::Unreadable { what: "block", reason: e.to_string() };
        Block::from_stored(self.meta, self.shelf.store.read(self.place).map_err(unreadable)?)
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
