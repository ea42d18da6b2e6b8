//! Blocks and chunks: any bytes, sections with valid checksums around anything, and round trips.

use super::allocation::{bounded, bounded_beside};
use super::choices::Choices;
use std::sync::Arc;
use timberline::chunk::{Block, BlockMeta, Chunk, Encoding, Head, Part, Selection, Symbols, decode_object, select};

const ENCODINGS: [Encoding; 3] = [Encoding::None, Encoding::Gzip, Encoding::Snappy];

/// What the decoder of an encoding needs whatever its input is: a window, or two frames.
fn fixed(encoding: Encoding) -> usize {
    match encoding {
        Encoding::None => 0,
        Encoding::Gzip => 96 << 10,
        Encoding::Snappy => 160 << 10,
    }
}

/// What bytes can decompress to, as far as an encoding can hold it.
fn ratio(encoding: Encoding) -> usize {
    match encoding {
        Encoding::None => 1,
        Encoding::Gzip => 1032,
        Encoding::Snappy => 22,
    }
}

/// A chunk, an object with one, or what they are built of.
pub fn block(input: &[u8]) {
    let mut choices = Choices::new(input);
    match choices.byte() % 4 {
        0 => raw(choices.rest()),
        1 => round_trip(&mut choices),
        _ => built(&mut choices),
    }
}

fn raw(bytes: &[u8]) {
    let encoding = bytes.get(5).and_then(|code| Encoding::from_code(*code).ok()).unwrap_or(Encoding::None);
    let allowed = bytes.len() * ratio(encoding);
    if let Ok(chunk) = bounded_beside(fixed(encoding), allowed, || Chunk::decode(bytes)) {
        read(&chunk, bytes.len());
    }
    // The metadata of an object is snappy; its chunk is mostly gzip.
    let object = bounded_beside(fixed(Encoding::Snappy), bytes.len() * ratio(Encoding::Gzip), || decode_object(bytes));
    if let Ok(object) = object {
        read(&object.chunk, bytes.len());
    }
}

/// Reads all blocks, and what can be read comes back from each encoding.
fn read(chunk: &Chunk, input: usize) {
    let symbols = Arc::new(chunk.symbols.clone());
    let all = Selection { start: i64::MIN, end: i64::MAX, forward: true, limit: 10 };
    let mut whole = true;
    for block in &chunk.blocks {
        let (fixed, ratio) = (fixed(block.meta().encoding), ratio(block.meta().encoding));
        let parts = [Part::Block(Arc::new(block.clone()), symbols.clone())];
        let selected = bounded_beside(fixed, block.data().len() * ratio, || select(&parts, &all, &mut |_, _| true));
        let entries = block.entries(&symbols);
        whole &= entries.is_ok();
        assert!(selected.is_ok() || entries.is_err(), "what can be read can be selected");
    }
    if whole && input < 1 << 12 {
        let entries = |chunk: &Chunk| -> Vec<_> {
            chunk
                .blocks
                .iter()
                .map(|b| b.entries(&chunk.symbols).expect("it was read"))
                .filter(|e| !e.is_empty())
                .collect()
        };
        for encoding in ENCODINGS {
            let again = Chunk::decode(&chunk.encode(encoding).expect("sound blocks")).expect("it was encoded");
            assert_eq!(entries(&again), entries(chunk));
            assert!(again.symbols.iter().eq(chunk.symbols.iter()));
        }
    }
}

/// A head that is sealed reads as it was.
fn round_trip(choices: &mut Choices<'_>) {
    let encoding = choices.of(&ENCODINGS);
    let (mut head, mut given) = (Head::new(), Vec::new());
    for arrival in 0..choices.byte() % 32 {
        let (timestamp, line) = (choices.number() as i64, choices.prefixed());
        let pairs: Vec<(String, String)> = (0..choices.byte() % 3).map(|_| (text(choices), text(choices))).collect();
        let ids: Vec<_> = pairs.iter().map(|(n, v)| (head.intern(n.as_bytes()), head.intern(v.as_bytes()))).collect();
        head.append(timestamp, line, &ids);
        given.push((timestamp, arrival, line.to_vec(), pairs));
    }
    given.sort_by_key(|e| (e.0, e.1));
    let mut symbols = Symbols::new();
    let block = Block::seal(&head, &mut symbols, encoding);
    let found = block.entries(&symbols).expect("a block that was sealed");
    assert_eq!(found.len(), given.len());
    for (found, (timestamp, _, line, pairs)) in found.iter().zip(&given) {
        let metadata: Vec<(String, String)> = found.metadata.to_vec();
        assert_eq!((found.timestamp, &found.line[..], &metadata), (*timestamp, &line[..], pairs));
    }
    read(&Chunk { symbols, blocks: vec![block] }, 0);
}

fn text(choices: &mut Choices<'_>) -> String {
    let len = choices.byte() % 8;
    String::from_utf8_lossy(choices.bytes(len.into())).into_owned()
}

/// Bytes and their checksum.
fn section(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.extend_from_slice(&crc32c::crc32c(bytes).to_be_bytes());
}

fn uvarint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A chunk of uncompressed parts that may say anything of themselves.
fn built(choices: &mut Choices<'_>) {
    let mut out = b"\x01\x2e\xe5\x6a\x04\x00".to_vec();
    let mut symbols = Vec::new();
    let count = choices.number();
    uvarint(count, &mut symbols);
    symbols.extend_from_slice(choices.prefixed());
    section(&mut out, &symbols);
    let (mut metas, blocks) = (Vec::new(), choices.byte() % 4);
    uvarint(blocks.into(), &mut metas);
    for _ in 0..blocks {
        let data = payload(choices);
        for number in [choices.number(), choices.number() << 1, choices.number() << 1] {
            uvarint(number, &mut metas);
        }
        uvarint(out.len() as u64, &mut metas);
        uvarint(choices.number(), &mut metas);
        uvarint(data.len() as u64, &mut metas);
        section(&mut out, &data);
    }
    let metas_at = out.len();
    section(&mut out, &metas);
    for number in [symbols.len(), 6, metas.len(), metas_at] {
        out.extend_from_slice(&(number as u64).to_be_bytes());
    }
    raw(&out);
    // A block whose metadata are right, apart from its compressed bytes.
    let (encoding, data) = (choices.of(&ENCODINGS), choices.rest());
    let meta = BlockMeta {
        encoding,
        entries: 3,
        min_timestamp: 0,
        max_timestamp: 9,
        uncompressed_size: u64::MAX,
        compressed_len: data.len() as u32,
        crc: crc32c::crc32c(data),
    };
    let shared = bytes::Bytes::copy_from_slice(data);
    let block = bounded(data.len(), || Block::from_stored(meta, shared)).expect("its checksum holds");
    read(&Chunk { symbols: Symbols::new(), blocks: vec![block] }, usize::MAX);
}

/// Entries, most of them as a block has them.
fn payload(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..choices.byte() % 8 {
        uvarint(choices.number() << 1, &mut out);
        let line = choices.prefixed();
        uvarint(line.len() as u64, &mut out);
        out.extend_from_slice(line);
        let mut ids = Vec::new();
        let pairs = choices.byte() % 4;
        uvarint(pairs.into(), &mut ids);
        (0..2 * pairs).for_each(|_| uvarint(choices.number(), &mut ids));
        uvarint(if choices.byte() == 255 { choices.number() } else { ids.len() as u64 }, &mut out);
        out.extend_from_slice(&ids);
    }
    out.extend_from_slice(choices.prefixed());
    out
}
