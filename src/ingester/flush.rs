//! What a flush changes in memory and in the log. Who uploads, and when, is decided elsewhere.

use super::{Ingester, Live, Stream};
use crate::wal::{ChunkFlushed, Decision, Unavailable};
use std::ops::Range;
use std::sync::Arc;

/// A closed chunk, all of whose blocks count: what it holds and its bytes are fixed.
pub struct ClosedChunk {
    stream: Arc<Stream>,
    number: u64,
    seqs: Range<u64>,
}

impl ClosedChunk {
    /// Its stream.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Its number in the stream.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The seqs that it holds.
    pub fn seqs(&self) -> Range<u64> {
        self.seqs.clone()
    }
}

impl Ingester<Live> {
    /// The oldest closed chunk of each stream that has one.
    pub fn closed_chunks(&self) -> Vec<ClosedChunk> {
        let streams = self.state.all_instances().into_iter().flat_map(|i| i.shown());
        let chunk = |stream: Arc<Stream>| {
            let (number, seqs) = stream.flushable()?;
            Some(ClosedChunk { stream, number, seqs })
        };
        streams.filter_map(chunk).collect()
    }

    /// Settles a chunk that is in the object store under this key: exactly its seqs are done with. From here on the ingester
    /// does not answer for its lines.
    ///
    /// # Errors
    /// The decision is not in the log, and nothing was changed.
    pub fn settle(&self, chunk: &ClosedChunk, key: &str) -> Result<(), Unavailable> {
        self.log.wal.decide(vec![Decision::ChunkFlushed(ChunkFlushed {
            stream: chunk.stream.log.id,
            chunk: chunk.number,
            first_seq: chunk.seqs.start,
            end_seq: chunk.seqs.end,
            key: key.to_string(),
        })])?;
        for place in chunk.stream.flushed(chunk.number) {
            self.log.blocks.store().free(place);
        }
        Ok(())
    }
}
