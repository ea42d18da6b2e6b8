//! Heads, blocks and chunks: what a stream holds between a push and the object store.
//!
//! A [`Head`] takes entries in the order of their arrival. Sealing sorts and compresses it once into a [`Block`], whose
//! bytes are those of Loki's chunk format 4. A [`Chunk`] is a table of symbols and blocks in order; encoding it copies
//! the blocks. [`select`] reads heads and blocks together as the set of entries that a query sees.
//!
//! Everything here is pure: no files, no clock, no runtime. Decoding treats its bytes as untrusted.

mod block;
mod encoding;
mod error;
mod format;
mod head;
mod select;
mod symbols;
mod varint;

#[cfg(test)]
mod tests;

pub use block::{Block, BlockMeta};
pub use encoding::Encoding;
pub use error::ChunkError;
pub use format::{Chunk, ChunkObject, decode_object};
pub use head::{EntryRef, Head};
pub use select::{BlockSource, Part, Selection, select, select_readable};
pub use symbols::Symbols;

/// Most bytes of a block's entries, or of a chunk's symbols, before compression: 1 GiB.
///
/// It bounds what a read decompresses, so a head never grows past it either ([`Head::has_room`]). The largest push that
/// the log takes stays below it.
pub const MAX_PAYLOAD: usize = 1 << 30;
