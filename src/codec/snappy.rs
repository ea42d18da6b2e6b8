//! Snappy's block and framing formats, written fast for log lines.
//!
//! The output is plain Snappy (<https://github.com/google/snappy>, `format_description.txt` and `framing_format.txt`),
//! which every decoder reads; this program decodes with the `snap` crate. Encoders in the manner of Google's look for
//! matches of 4 bytes. Log lines repeat each other in long runs: looking for 8 bytes finds fewer, longer matches, and so
//! takes less time. Three things make up for what short matches would save: a match is also extended backwards, the
//! window slides over the whole input instead of starting anew every 64 KiB, and some positions inside of a match are remembered.

use super::put_uvarint;
use std::cell::RefCell;
use std::hint::select_unpredictable;

/// Bytes that a match has at least, and that are hashed.
const MIN_MATCH: usize = 8;
/// A table of 16 KiB stays in the first-level cache beside the input.
const TABLE_BITS: u32 = 13;
const TABLE_LEN: usize = 1 << TABLE_BITS;
/// The last bytes of an input are literals, so that loads before them need no care.
const TAIL: usize = 24;
/// A copy element holds at most this many bytes.
const MAX_COPY: usize = 64;
/// Most raw bytes in a chunk of the framing format.
const FRAME_CHUNK: usize = 1 << 16;
/// A scratch buffer above this size is given back after use.
const KEPT_SCRATCH: usize = 4 << 20;
/// The first chunk of a framed stream.
const STREAM_IDENTIFIER: &[u8] = b"\xff\x06\x00\x00sNaPpY";
const CHUNK_COMPRESSED: u8 = 0;
const CHUNK_STORED: u8 = 1;
/// What the framing format adds to a rotated checksum.
const CRC_MASK: u32 = 0xa282_ead8;

/// So many positions are tried one by one, as a power of two, before the search begins to skip: each time that many were
/// tried in vain, the step grows by a byte. Less is faster and compresses less. Measured on log lines, 150 KB at a time, in speeds of
/// the `snap` crate, which makes 0.33 of the size of them: 1 makes 0.34 with 1.63, 2 makes 0.31 with 1.52, 3 makes 0.30 with 1.45, 4 makes 0.29 with 1.40.
///
/// A body of the log lives for minutes, and is compressed while somebody waits. Both logs together are to take at most 0.8 bytes for
/// each byte of lines.
const BODY_PATIENCE: u32 = 2;
/// A block is kept. 4 makes it no smaller to speak of.
const BLOCK_PATIENCE: u32 = 3;

thread_local! {
    static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new());
}

/// Appends `raw` in the block format if that makes it smaller; else nothing, and returns false. Inputs of 4 GiB or more,
/// which the format cannot hold, count as not smaller.
pub fn compress(raw: &[u8], out: &mut Vec<u8>) -> bool {
    compress_pieces([raw], out).is_some()
}

/// As [`compress`], of several pieces, one behind the other, none of which refers to bytes of another: so each, with its own length
/// ahead, can be decompressed alone. Returns where each begins in what was appended; the first one, behind the length of all.
pub fn compress_pieces<const N: usize>(pieces: [&[u8]; N], out: &mut Vec<u8>) -> Option<[usize; N]> {
    let (start, len) = (out.len(), pieces.iter().map(|p| p.len()).sum::<usize>());
    u32::try_from(len).ok()?;
    put_uvarint(out, len as u64);
    let places = ENCODER.with_borrow_mut(|encoder| {
        let mut append = |piece| {
            let place = out.len() - start;
            out.extend_from_slice(encoder.elements(piece, BODY_PATIENCE));
            place
        };
        let places = pieces.map(&mut append);
        encoder.trim();
        places
    });
    let smaller = out.len() - start < len;
    if !smaller {
        out.truncate(start);
    }
    smaller.then_some(places)
}

/// Appends `raw` as a whole stream of the framing format: an identifier, and chunks of 64 KiB with a checksum, each
/// stored as it is if it does not get smaller by an eighth. Nothing is appended for no bytes.
pub fn compress_framed(raw: &[u8], out: &mut Vec<u8>) {
    if raw.is_empty() {
        return;
    }
    out.extend_from_slice(STREAM_IDENTIFIER);
    ENCODER.with_borrow_mut(|encoder| {
        for chunk in raw.chunks(FRAME_CHUNK) {
            let packed = encoder.compress(chunk, BLOCK_PATIENCE);
            if packed.len() < chunk.len() - chunk.len() / 8 {
                put_chunk(CHUNK_COMPRESSED, chunk, packed, out);
            } else {
                put_chunk(CHUNK_STORED, chunk, chunk, out);
            }
        }
    });
}

fn put_chunk(kind: u8, raw: &[u8], stored: &[u8], out: &mut Vec<u8>) {
    let crc = crc32c::crc32c(raw).rotate_right(15).wrapping_add(CRC_MASK);
    // Never above 64 KiB and 4, so the length has three bytes.
    let head = (stored.len() as u32 + 4) << 8 | u32::from(kind);
    out.extend_from_slice(&head.to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(stored);
}

/// Most bytes that `len` bytes take in the block format, as Google's library bounds it.
fn max_compressed_len(len: usize) -> usize {
    32 + len + len / 6
}

struct Encoder {
    /// By hash: the low 16 bits of the newest position. A wrong one is found by comparing.
    table: Box<[u16; TABLE_LEN]>,
    /// Holds the output; filled with zeros once, not for each input.
    scratch: Vec<u8>,
}

impl Encoder {
    fn new() -> Self {
        Self { table: Box::new([0; TABLE_LEN]), scratch: Vec::new() }
    }

    fn compress(&mut self, raw: &[u8], patience: u32) -> &[u8] {
        self.run(raw, Some(raw.len()), patience)
    }

    /// The elements alone, without a length ahead.
    fn elements(&mut self, raw: &[u8], patience: u32) -> &[u8] {
        self.run(raw, None, patience)
    }

    fn run(&mut self, raw: &[u8], len: Option<usize>, patience: u32) -> &[u8] {
        let worst = max_compressed_len(raw.len());
        if self.scratch.len() < worst {
            self.scratch.resize(worst, 0);
        }
        let mut out = Output { bytes: &mut self.scratch, len: 0 };
        len.into_iter().for_each(|len| out.length(len));
        let literals = matches(raw, patience, &mut self.table, &mut out);
        out.literal(raw, literals, raw.len());
        let len = out.len;
        self.scratch.get(..len).unwrap_or_default()
    }

    fn trim(&mut self) {
        if self.scratch.len() > KEPT_SCRATCH {
            self.scratch = Vec::new();
        }
    }
}

/// Writes all matches and what lies between them; returns where the literals at the end begin.
fn matches(src: &[u8], patience: u32, table: &mut [u16; TABLE_LEN], out: &mut Output<'_>) -> usize {
    let mut emitted = 0;
    let Some(last) = src.len().checked_sub(TAIL) else { return emitted };
    table.fill(0);
    let mut at = 1;
    while let Some((start, distance)) = find(src, at, last, patience, table) {
        let back = extend_back(src, start, distance, emitted);
        out.literal(src, emitted, start - back);
        let end = start + MIN_MATCH + extend(src, start + MIN_MATCH, distance);
        let len = end - start + back;
        out.copy(distance, len);
        emitted = end;
        if end > last {
            break;
        }
        remember(src, table, start + 1);
        remember(src, table, end - 2);
        remember(src, table, end - len / 2);
        at = end;
    }
    emitted
}

/// The next position from `at` to `last` whose 8 bytes were seen, and how far before.
#[inline(always)]
fn find(src: &[u8], mut at: usize, last: usize, patience: u32, table: &mut [u16; TABLE_LEN]) -> Option<(usize, usize)> {
    let mut tried = 1 << patience;
    while at <= last {
        let bytes = u64_at(src, at);
        let slot = slot(table, bytes);
        // Up to 65535: what two bytes tell. 0 is this position 64 KiB before.
        let distance = usize::from((at as u16).wrapping_sub(*slot));
        *slot = at as u16;
        // In this order, and not as a range, the loads need no check of their own.
        if distance != 0 && distance <= at && u64_at(src, at - distance) == bytes {
            return Some((at, distance));
        }
        at += tried >> patience;
        tried += 1;
    }
    None
}

#[inline(always)]
fn slot(table: &mut [u16; TABLE_LEN], bytes: u64) -> &mut u16 {
    const GOLDEN_RATIO: u64 = 0x9e37_79b1_85eb_ca87;
    let hash = bytes.wrapping_mul(GOLDEN_RATIO) >> (u64::BITS - TABLE_BITS);
    // The mask changes nothing; it spares the bounds check.
    &mut table[hash as usize & (TABLE_LEN - 1)]
}

#[inline(always)]
fn remember(src: &[u8], table: &mut [u16; TABLE_LEN], at: usize) {
    *slot(table, u64_at(src, at)) = at as u16;
}

/// Eight bytes; zeros where there are fewer.
#[inline(always)]
fn u64_at(src: &[u8], at: usize) -> u64 {
    src.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// How many bytes before `at` match too: at most 8, because what is before them was tried itself.
#[inline(always)]
fn extend_back(src: &[u8], at: usize, distance: usize, emitted: usize) -> usize {
    let Some(earlier) = at.checked_sub(distance + 8) else { return 0 };
    let differ = u64_at(src, at - 8) ^ u64_at(src, earlier);
    (differ.leading_zeros() as usize / 8).min(at - emitted)
}

/// How many bytes from `at` match those at a distance before. Where in the first 32 they end is counted without a branch: most matches
/// end there, and nothing foretells where.
#[inline(always)]
fn extend(src: &[u8], at: usize, distance: usize) -> usize {
    let words = |at: usize| src.get(at..)?.as_chunks::<8>().0.first_chunk::<4>();
    let Some(([a, b, c, d], [e, f, g, h])) = words(at).zip(words(at - distance)) else {
        return extend_far(src, at, distance);
    };
    let differ = |here: &[u8; 8], before: &[u8; 8]| u64::from_le_bytes(*here) ^ u64::from_le_bytes(*before);
    let (first, second, third, fourth) = (differ(a, e), differ(b, f), differ(c, g), differ(d, h));
    let low = select_unpredictable(first != 0, first.trailing_zeros(), 64 + second.trailing_zeros());
    let high = select_unpredictable(third != 0, 128 + third.trailing_zeros(), 192 + fourth.trailing_zeros());
    match select_unpredictable(first | second != 0, low, high) as usize / 8 {
        32 => 32 + extend_far(src, at + 32, distance),
        len => len,
    }
}

/// As [`extend`], for any length.
#[inline(never)]
fn extend_far(src: &[u8], at: usize, distance: usize) -> usize {
    let (here, before) = (src.get(at..).unwrap_or_default(), src.get(at - distance..).unwrap_or_default());
    let ((here, here_end), (before, _)) = (here.as_chunks::<16>(), before.as_chunks::<16>());
    let mut len = 0;
    for (a, b) in here.iter().zip(before) {
        let differ = u128::from_le_bytes(*a) ^ u128::from_le_bytes(*b);
        if differ != 0 {
            return len + differ.trailing_zeros() as usize / 8;
        }
        len += 16;
    }
    let rest = src.get(at - distance + len..).unwrap_or_default();
    len + here_end.iter().zip(rest).take_while(|(a, b)| a == b).count()
}

/// Elements of the block format, in a buffer of the worst size.
struct Output<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl Output<'_> {
    /// The number of raw bytes, ahead of all elements.
    fn length(&mut self, len: usize) {
        let mut varint = Vec::with_capacity(10);
        put_uvarint(&mut varint, len as u64);
        self.put(&varint);
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    /// A literal element with the bytes from `start` to `end`, if there are any. Short ones are copied in a fixed size, because that
    /// needs no call; what is too much is overwritten.
    #[inline(always)]
    fn literal(&mut self, src: &[u8], start: usize, end: usize) {
        let len = end - start;
        if len <= 60 && self.short_literal(src, start, len) {
            return;
        }
        if len > 0 {
            self.long_literal(&src[start..end]);
        }
    }

    /// Whether there is none, as between a third of all matches, nothing foretells: so no branch asks.
    #[inline(always)]
    fn short_literal(&mut self, src: &[u8], start: usize, len: usize) -> bool {
        let from = src.get(start..).and_then(|rest| rest.first_chunk::<64>());
        let to = self.bytes.get_mut(self.len..).and_then(|rest| rest.split_first_mut());
        let (Some(from), Some((tag, rest))) = (from, to) else { return false };
        let Some(to) = rest.first_chunk_mut() else { return false };
        *tag = (len as u8).wrapping_sub(1) << 2;
        *to = *from;
        self.len += len + usize::from(len > 0);
        true
    }

    fn long_literal(&mut self, bytes: &[u8]) {
        let less_one = bytes.len() as u32 - 1;
        let [a, b, c, d] = less_one.to_le_bytes();
        match less_one {
            0..60 => self.put(&[a << 2]),
            60..0x100 => self.put(&[60 << 2, a]),
            0x100..0x1_0000 => self.put(&[61 << 2, a, b]),
            0x1_0000..0x100_0000 => self.put(&[62 << 2, a, b, c]),
            _ => self.put(&[63 << 2, a, b, c, d]),
        }
        self.put(bytes);
    }

    /// Copy elements. All have a two-byte distance: few matches of 8 bytes or more are short and near enough for the
    /// form that would save a byte.
    #[inline(always)]
    fn copy(&mut self, distance: usize, len: usize) {
        let rest = if len > MAX_COPY { self.long_copy(distance, len) } else { len };
        self.copy_element(distance, rest);
    }

    /// All elements but the last; returns what is left for that.
    #[cold]
    #[inline(never)]
    fn long_copy(&mut self, distance: usize, mut len: usize) -> usize {
        while len > MAX_COPY {
            self.copy_element(distance, MAX_COPY);
            len -= MAX_COPY;
        }
        len
    }

    /// Three bytes, written as four where there is room: the next element overwrites the last.
    #[inline(always)]
    fn copy_element(&mut self, distance: usize, len: usize) {
        let element = ((distance << 8 | (len - 1) << 2 | 2) as u32).to_le_bytes();
        match self.bytes.get_mut(self.len..).and_then(|rest| rest.first_chunk_mut()) {
            Some(to) => {
                *to = element;
                self.len += 3;
            }
            None => self.put(&element[..3]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    /// What the block format's encoder writes, whether or not it is smaller, decoded by another's decoder.
    fn block_round_trip(raw: &[u8]) -> usize {
        let mut encoder = Encoder::new();
        let packed = encoder.compress(raw, BODY_PATIENCE);
        assert!(packed.len() <= snap::raw::max_compress_len(raw.len()));
        assert!(snap::raw::Decoder::new().decompress_vec(packed).is_ok_and(|got| got == raw));
        packed.len()
    }

    fn frame_round_trip(raw: &[u8]) -> usize {
        let (mut packed, mut got) = (Vec::new(), Vec::new());
        compress_framed(raw, &mut packed);
        snap::read::FrameDecoder::new(&packed[..]).read_to_end(&mut got).unwrap();
        assert!(got == raw);
        packed.len()
    }

    /// Bytes that do not repeat.
    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let next = |x: &mut u64| {
            *x ^= *x << 13;
            *x ^= *x >> 7;
            *x ^= *x << 17;
            Some((*x >> 32) as u8)
        };
        let mut state = seed | 1;
        std::iter::from_fn(|| next(&mut state)).take(len).collect()
    }

    fn lines(count: usize) -> Vec<u8> {
        let line = |i: usize| {
            let level = if i.is_multiple_of(7) { "error" } else { "info" };
            format!(
                "2026-11-22T21:{:02}:{:02}Z {level} request path=/api/v1/items/{} took={}ms\n",
                i / 60 % 60,
                i % 60,
                i * 37 % 1000,
                i * 7919 % 311
            )
        };
        (0..count).flat_map(|i| line(i).into_bytes()).collect()
    }

    #[test]
    fn lengths_around_every_boundary() {
        for len in (0..100).chain([255, 256, 257, 65_535, 65_536, 65_537, 131_071, 131_072, 131_073, 1 << 20]) {
            for raw in [vec![b'x'; len], noise(len, 7), lines(len / 60 + 1)[..len].to_vec()] {
                block_round_trip(&raw);
                frame_round_trip(&raw);
            }
        }
    }

    #[test]
    fn copies_of_every_length_and_distance() {
        let noise = noise(70_000, 3);
        for distance in [8, 9, 16, 100, 2047, 2048, 65_534, 65_535, 65_536, 65_537] {
            for len in (8..140).chain([1000]) {
                let mut raw = noise[..distance].to_vec();
                (0..len).for_each(|i| raw.push(raw[i]));
                raw.extend_from_slice(&noise[..40]);
                block_round_trip(&raw);
            }
        }
        let far = [&noise[..1000], &vec![0; 64_000], &noise[..1000]].concat();
        assert!(block_round_trip(&far) < 4300, "the window reaches back almost 64 KiB");
    }

    #[test]
    fn log_lines_take_less_than_half() {
        let raw = lines(5000);
        assert!(block_round_trip(&raw) * 2 < raw.len());
        assert!(frame_round_trip(&raw) * 2 < raw.len());
    }

    #[test]
    fn what_does_not_compress_is_stored() {
        let raw = noise(100_000, 1);
        let mut out = b"before".to_vec();
        assert!(!compress(&raw, &mut out));
        assert_eq!(out, b"before");
        assert!(!compress(b"", &mut out));
        // Two chunks of a head and a checksum each.
        assert_eq!(frame_round_trip(&raw), STREAM_IDENTIFIER.len() + 2 * 8 + raw.len());
        assert_eq!(frame_round_trip(b""), 0);
    }

    #[test]
    fn an_input_leaves_nothing_behind() {
        let (mut fresh, mut used) = (Encoder::new(), Encoder::new());
        used.compress(&noise(200_000, 5), BLOCK_PATIENCE);
        let raw = lines(3000);
        assert_eq!(fresh.compress(&raw, BODY_PATIENCE), used.compress(&raw, BODY_PATIENCE));
        used.compress(&vec![0; KEPT_SCRATCH], BODY_PATIENCE);
        used.trim();
        assert!(used.scratch.is_empty());
    }

    #[test]
    fn frames_are_those_of_the_snap_crate_where_nothing_compresses() {
        use std::io::Write;
        for len in [1, 17, 65_536, 65_537, 200_000] {
            let (raw, mut ours, mut theirs) = (noise(len, 9), Vec::new(), Vec::new());
            compress_framed(&raw, &mut ours);
            let mut encoder = snap::write::FrameEncoder::new(&mut theirs);
            encoder.write_all(&raw).and_then(|()| encoder.flush()).unwrap();
            drop(encoder);
            assert!(ours == theirs, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_round_trip(raw in prop::collection::vec(any::<u8>(), 0..5000)) {
            block_round_trip(&raw);
            frame_round_trip(&raw);
        }

        /// Pieces of a few words make matches of all kinds, overlapping ones too.
        #[test]
        fn repetitive_bytes_round_trip(pieces in prop::collection::vec((0usize..2000, 0usize..300), 0..400), seed: u64) {
            let words = noise(2300, seed);
            let raw: Vec<u8> = pieces.iter().flat_map(|(at, len)| &words[*at..at + len]).copied().collect();
            block_round_trip(&raw);
            frame_round_trip(&raw);
        }

        #[test]
        fn few_letters_round_trip(raw in prop::collection::vec(0u8..2, 0..3000)) {
            block_round_trip(&raw);
        }
    }
}
