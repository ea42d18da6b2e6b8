//! Cut bodies: the lines of streams that get few are compressed apart from the others, so that a start decompresses only
//! what no block has (`wal-format.md`, section 5.1).
//!
//! A stream that gets many lines soon fills a block, and then its lines in the log are needed no more. One that gets few
//! needs them until their segment goes, and nearly every record has some of those.

use super::record::{BodyError, Codec, most_decompressed};
use crate::codec::{Cursor, put_uvarint, snappy};
use std::ops::Range;

/// Streams with fewer bytes of lines in a push come first, and the body is cut behind them: it takes dozens of such pushes
/// to fill a block.
pub const SMALL_PART: usize = 4 << 10;
/// Less on one side is not worth a cut, which costs some of the compression.
const MIN_SIDE: usize = 8 << 10;
/// Bytes ahead of the first part: the offset of the symbol table.
const PARTS_AT: u32 = 4;

/// The field of the extension area that tells of a cut.
const FIELD: u16 = 1;
const FIELD_LEN: u16 = 16;

/// Where a body that is compressed with snappy is cut: no piece refers to bytes of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where the first part behind the cut begins in the decompressed body.
    pub parts: u32,
    /// Where the symbol table begins in it.
    pub symbols: u32,
    /// Where the first part behind the cut begins in the body as stored.
    pub stored_parts: u32,
    /// Where the symbol table begins in it.
    pub stored_symbols: u32,
}

/// A side of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The parts before it.
    Before,
    /// Those behind it.
    Behind,
}

impl Cut {
    /// Compresses a body cut at `parts`, if both sides are worth it, and appends it. `None`, and nothing appended, if
    /// they are not or if it does not get smaller.
    pub(super) fn compress(raw: &[u8], parts: usize, symbols: usize, out: &mut Vec<u8>) -> Option<Self> {
        let (before, rest) = raw.split_at_checked(parts)?;
        let (behind, table) = rest.split_at_checked(symbols.checked_sub(parts)?)?;
        if before.len() < MIN_SIDE || behind.len() < MIN_SIDE {
            return None;
        }
        let [_, stored_parts, stored_symbols] = snappy::compress_pieces([before, behind, table], out)?;
        let cut = [parts, symbols, stored_parts, stored_symbols].map(|n| n as u32);
        let [parts, symbols, stored_parts, stored_symbols] = cut;
        Some(Self { parts, symbols, stored_parts, stored_symbols })
    }

    /// As a field of the extension area.
    pub(super) fn field(self) -> Vec<u8> {
        let numbers = [self.parts, self.symbols, self.stored_parts, self.stored_symbols];
        let head = [FIELD, FIELD_LEN].into_iter().flat_map(u16::to_le_bytes);
        head.chain(numbers.into_iter().flat_map(u32::to_le_bytes)).collect()
    }

    /// The cut that an extension area tells of. Other fields are passed over.
    pub fn find(extension: &[u8]) -> Option<Self> {
        let mut area = Cursor::new(extension);
        loop {
            let (field, len) = (area.u16().ok()?, area.u16().ok()?);
            let mut f = Cursor::new(area.bytes(len.into()).ok()?);
            if field == FIELD {
                let (parts, symbols) = (f.u32().ok()?, f.u32().ok()?);
                return Some(Self { parts, symbols, stored_parts: f.u32().ok()?, stored_symbols: f.u32().ok()? });
            }
        }
    }

    /// On which side does a part lie that begins `start` bytes behind the beginning of the first?
    pub fn side(self, start: usize) -> Side {
        if start.saturating_add(PARTS_AT as usize) < self.parts as usize { Side::Before } else { Side::Behind }
    }

    /// How far the parts of a side lie before their place in the whole body.
    pub fn shift(self, side: Side) -> usize {
        match side {
            Side::Before => 0,
            Side::Behind => self.parts.saturating_sub(PARTS_AT) as usize,
        }
    }

    /// Decompresses one side, and the symbols: gives a body that has these parts alone. `raw_len` is the length of the
    /// whole one, and bounds what is allocated.
    ///
    /// # Errors
    /// The pieces are not where the cut says, or do not decompress to the lengths that it says.
    pub fn decompress(self, side: Side, raw_len: u32, stored: &[u8], raw: &mut Vec<u8>) -> Result<(), BodyError> {
        let wrong = || BodyError::Decompress(raw_len);
        let end = stored.len() as u32;
        let begin = {
            let mut rest = Cursor::new(stored);
            let len = rest.uvarint()?;
            if len != u64::from(raw_len) {
                return Err(wrong());
            }
            end - rest.remaining() as u32
        };
        if u64::from(raw_len) > most_decompressed(Codec::Snappy as u8, stored.len()).unwrap_or(0) {
            return Err(wrong());
        }
        let (parts, packed) = match side {
            Side::Before => (0..self.parts, begin..self.stored_parts),
            Side::Behind => (self.parts..self.symbols, self.stored_parts..self.stored_symbols),
        };
        let table = self.symbols..raw_len;
        if [&parts, &table].iter().any(|r| r.start > r.end || r.end > raw_len) {
            return Err(wrong());
        }
        let skipped = if side == Side::Before { 0 } else { PARTS_AT as usize };
        let symbols_at = skipped + parts.len();
        raw.resize(symbols_at + table.len(), 0);
        let (head, table_at) = raw.split_at_mut(symbols_at);
        unpack(stored, packed, head.get_mut(skipped..).unwrap_or_default()).ok_or_else(wrong)?;
        unpack(stored, self.stored_symbols..end, table_at).ok_or_else(wrong)?;
        let field = head.first_chunk_mut::<{ PARTS_AT as usize }>().ok_or_else(wrong)?;
        *field = (symbols_at as u32).to_le_bytes();
        Ok(())
    }
}

/// Decompresses a piece, which fills `raw`: with its length ahead, it is a body of its own.
fn unpack(stored: &[u8], piece: Range<u32>, raw: &mut [u8]) -> Option<()> {
    let piece = stored.get(piece.start as usize..piece.end as usize)?;
    let mut whole = Vec::with_capacity(piece.len() + 10);
    put_uvarint(&mut whole, raw.len() as u64);
    whole.extend_from_slice(piece);
    let len = snap::raw::Decoder::new().decompress(&whole, raw).ok()?;
    (len == raw.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{
        BodyView, Codec, EntriesBuilder, LogKind, RecordHead, SegmentHeader, TableRow, Tables, decompress_body,
    };
    use proptest::prelude::*;

    type Lines = Vec<(i64, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>)>;

    fn line(stream: usize, n: usize, len: usize) -> Vec<u8> {
        let text = format!("level=info stream={stream} request number {n} took {}ms", n * 37 % 1000);
        text.bytes().cycle().take(len).collect()
    }

    /// A record of streams with so many lines of so many bytes, cut behind the first `before` streams.
    fn record(streams: &[(usize, usize)], before: usize) -> (Vec<Lines>, Vec<u8>) {
        let lines = |(id, (count, len)): (usize, &(usize, usize))| {
            let pairs =
                |n: usize| if n.is_multiple_of(3) { vec![(b"trace".to_vec(), vec![b'a' + id as u8])] } else { vec![] };
            (0..*count).map(|n| (n as i64 * 1_000, line(id, n, *len), pairs(n))).collect()
        };
        let all: Vec<Lines> = streams.iter().enumerate().map(lines).collect();
        let mut builder = EntriesBuilder::new(0);
        for (id, lines) in all.iter().enumerate() {
            if id == before {
                builder.cut();
            }
            builder.stream(id as u64);
            for (timestamp, line, pairs) in lines {
                builder.entry(*timestamp, line, pairs.iter().map(|(n, v)| (&n[..], &v[..])));
            }
        }
        let mut bytes = Vec::new();
        builder.finish("a", Codec::Snappy).stamp_into(&mut bytes, 0, 1, 7, 0);
        (all, bytes)
    }

    fn read(body: &BodyView<'_>, row: &TableRow, start: usize) -> Lines {
        let text = |symbol: u32| body.symbols()[symbol as usize].to_vec();
        let entries = body.part(start, row).unwrap().map(Result::unwrap);
        entries
            .map(|e| (e.timestamp, e.line.to_vec(), e.metadata().map(|(n, v)| (text(n), text(v))).collect()))
            .collect()
    }

    /// Reads the whole body, and each side alone; says whether it was cut.
    fn check(streams: &[(usize, usize)], before: usize) -> bool {
        let (all, bytes) = record(streams, before);
        let head = head(&bytes);
        let tables = Tables::decode(head.tables(&bytes, 0)).unwrap();
        let stored = head.body(&bytes, 0);
        let whole = decompress_body(&head, stored).unwrap();
        let cut = Cut::find(tables.extension);
        let mut raw = vec![1; 77];
        let mut start = 0;
        for (row, lines) in tables.rows.iter().zip(&all) {
            assert_eq!(&read(&BodyView::new(&whole).unwrap(), row, start), lines);
            if let Some(cut) = cut {
                let side = cut.side(start);
                // A part without lines lies anywhere.
                assert!(row.count == 0 || (side == Side::Before) == ((row.stream as usize) < before));
                cut.decompress(side, head.raw_len, stored, &mut raw).unwrap();
                assert_eq!(&read(&BodyView::new(&raw).unwrap(), row, start - cut.shift(side)), lines);
            }
            start += row.part_len as usize;
        }
        cut.is_some()
    }

    fn head(bytes: &[u8]) -> RecordHead {
        let (log, volume) = (LogKind::Wal, uuid::Uuid::nil());
        let segment = SegmentHeader { log, number: 1, file_len: 1 << 20, salt: 7, volume, recycled: false };
        RecordHead::decode_at(bytes, 0, &segment).unwrap()
    }

    #[test]
    fn each_side_is_read_alone() {
        let streams: Vec<(usize, usize)> = [(4, 150); 50].into_iter().chain([(100, 150); 5]).collect();
        assert!(check(&streams, 50));
        // What lies before the cut is a small part of what is read.
        let (_, bytes) = record(&streams, 50);
        let head = head(&bytes);
        let cut = Cut::find(Tables::decode(head.tables(&bytes, 0)).unwrap().extension).unwrap();
        assert!(cut.stored_parts < head.body_len / 2, "{cut:?}");
    }

    #[test]
    fn little_on_one_side_is_not_cut() {
        assert!(!check(&[(4, 100), (100, 150)], 1));
        assert!(!check(&[(100, 150), (4, 100)], 1));
        assert!(!check(&[(100, 150), (100, 150)], 0), "nothing is before it");
        assert!(!check(&[(100, 150), (100, 150)], 2), "nothing is behind it");
        assert!(!check(&[], 0));
    }

    #[test]
    fn a_cut_that_does_not_fit_is_an_error_and_no_panic() {
        let (_, bytes) = record(&[(100, 150), (100, 150)], 1);
        let head = head(&bytes);
        let tables = Tables::decode(head.tables(&bytes, 0)).unwrap();
        let (cut, stored) = (Cut::find(tables.extension).unwrap(), head.body(&bytes, 0));
        let fields: [fn(&mut Cut) -> &mut u32; 4] =
            [|c| &mut c.parts, |c| &mut c.symbols, |c| &mut c.stored_parts, |c| &mut c.stored_symbols];
        let mut raw = Vec::new();
        for field in fields {
            for wrong in [0, 1, 3, 4, 5, 9_000, 1 << 20, u32::MAX] {
                let mut cut = cut;
                *field(&mut cut) = wrong;
                let sides =
                    [Side::Before, Side::Behind].map(|s| cut.decompress(s, head.raw_len, stored, &mut raw).is_err());
                assert!(sides.contains(&true), "{cut:?}");
                assert!(raw.capacity() < 1 << 20, "bounded by the length of the whole body");
            }
        }
        assert!(cut.decompress(Side::Before, head.raw_len + 1, stored, &mut raw).is_err());
        assert!(cut.decompress(Side::Before, head.raw_len, &stored[..10], &mut raw).is_err());
        assert!(cut.decompress(Side::Before, head.raw_len, &[], &mut raw).is_err());
    }

    #[test]
    fn the_field_is_found_among_others() {
        let cut = Cut { parts: 1, symbols: 2, stored_parts: 3, stored_symbols: 4 };
        let other = [9, 0, 3, 0, 1, 2, 3];
        assert_eq!(Cut::find(&cut.field()), Some(cut));
        assert_eq!(Cut::find(&[&other[..], &cut.field()].concat()), Some(cut));
        assert_eq!(Cut::find(&other), None);
        assert_eq!(Cut::find(&[]), None);
        (0..cut.field().len()).for_each(|n| assert_eq!(Cut::find(&cut.field()[..n]), None, "{n} bytes"));
    }

    proptest! {
        #[test]
        fn any_record_is_read_whole_and_by_sides(streams in prop::collection::vec((0usize..60, 0usize..600), 0..12), before in 0usize..12) {
            check(&streams, before);
        }
    }
}
