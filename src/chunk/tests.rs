//! What the room promises as a whole: Loki's bytes, round trips, damage, and reads against a naive model.

use super::*;
use crate::model::LogEntry;
use proptest::prelude::*;
use std::sync::Arc;

const STREAM_A: &[u8] = include_bytes!("../../testdata/loki/chunks/stream-a");
const STREAM_B: &[u8] = include_bytes!("../../testdata/loki/chunks/stream-b");
const BASE: i64 = 1_795_365_103_000_000_000;
const ENCODINGS: [Encoding; 3] = [Encoding::None, Encoding::Gzip, Encoding::Snappy];

fn entry(timestamp: i64, line: &str, metadata: &[(&str, &str)]) -> LogEntry {
    let metadata = metadata.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    LogEntry { timestamp, line: line.as_bytes().to_vec().into(), metadata }
}

fn head(entries: &[LogEntry]) -> Head {
    let mut head = Head::new();
    for e in entries {
        let pairs: Vec<_> =
            e.metadata.iter().map(|(n, v)| (head.intern(n.as_bytes()), head.intern(v.as_bytes()))).collect();
        head.append(e.timestamp, &e.line, &pairs);
    }
    head
}

fn chunk(blocks: &[&[LogEntry]], encoding: Encoding) -> Chunk {
    let mut symbols = Symbols::new();
    let blocks = blocks.iter().map(|b| Block::seal(&head(b), &mut symbols, encoding)).collect();
    Chunk { symbols, blocks }
}

fn contents(chunk: &Chunk) -> Result<Vec<Vec<LogEntry>>, ChunkError> {
    chunk.blocks.iter().map(|b| b.entries(&chunk.symbols)).collect()
}

fn small() -> [Vec<LogEntry>; 2] {
    let info = [("detected_level", "info")];
    let first = vec![entry(3, "c", &info), entry(-1, "", &[]), entry(3, "c", &[("trace_id", "1f"), info[0]])];
    [first, vec![entry(2, "late", &[("detected_level", "error")])]]
}

fn all(parts: &[Part], forward: bool, limit: usize) -> Vec<LogEntry> {
    let selection = Selection { start: i64::MIN, end: i64::MAX, forward, limit };
    select(parts, &selection, &mut |_, _| true).unwrap()
}

fn lines(entries: &[LogEntry]) -> Vec<&str> {
    entries.iter().map(|e| std::str::from_utf8(&e.line).unwrap()).collect()
}

#[test]
fn chunks_of_a_real_loki_decode() {
    let unknown = ("detected_level", "unknown");
    let object = decode_object(STREAM_A).unwrap();
    let expected = vec![
        entry(BASE - 1_000_000_000, "alpha 3", &[unknown]),
        entry(BASE, "alpha 0", &[unknown]),
        entry(BASE + 1, "alpha 1", &[unknown]),
        entry(BASE + 2, "alpha 2", &[("trace_id", "abc"), ("user", "u1"), unknown]),
    ];
    let mut found = contents(&object.chunk).unwrap().concat();
    found.iter_mut().for_each(|e| e.metadata.sort_by_key(|(n, _)| n == "detected_level"));
    assert_eq!(found, expected);
    assert_eq!(object.chunk.blocks[0].meta().encoding, Encoding::Gzip);
    let json: serde_json::Value = serde_json::from_slice(&object.metadata).unwrap();
    assert_eq!((&json["userID"], &json["metric"]["env"]), (&"fake".into(), &"a".into()));

    let object = decode_object(STREAM_B).unwrap();
    let expected = entry(BASE + 1_000_000_000, "level=error beta", &[("detected_level", "error")]);
    assert_eq!(contents(&object.chunk).unwrap(), [[expected]]);
}

#[test]
fn a_real_chunk_is_re_encoded_without_touching_its_blocks() {
    for object in [STREAM_A, STREAM_B] {
        let chunk = decode_object(object).unwrap().chunk;
        let again = Chunk::decode(&chunk.encode(Encoding::Gzip).unwrap()).unwrap();
        assert_eq!(again.blocks, chunk.blocks);
        assert!(again.symbols.iter().eq(chunk.symbols.iter()));
        for encoding in ENCODINGS {
            let recoded = Chunk::decode(&chunk.encode(encoding).unwrap()).unwrap();
            assert_eq!(contents(&recoded).unwrap(), contents(&chunk).unwrap());
            assert!(recoded.blocks.iter().all(|b| b.meta().encoding == encoding));
        }
    }
}

/// Uncompressed, a chunk has no freedom: the same entries must give byte for byte what the layout says.
#[test]
fn the_layout_of_an_uncompressed_chunk() {
    let c = chunk(&[&[entry(1, "ab", &[("k", "v")])]], Encoding::None);
    let mut expected = b"\x01\x2e\xe5\x6a\x04\x00".to_vec();
    let crc = |bytes: &[u8]| crc32c::crc32c(bytes).to_be_bytes();
    let symbols = b"\x02\x01k\x01v";
    let block = b"\x02\x02ab\x03\x01\x00\x01";
    // One block: 1 entry, min 1, max 1, offset 15, size 2 + 8, length 8.
    let metas = [1, 1, 2, 2, 15, 10, 8];
    for part in [&symbols[..], block, &metas] {
        expected.extend_from_slice(part);
        expected.extend_from_slice(&crc(part));
    }
    for number in [5u64, 6, 7, 27] {
        expected.extend_from_slice(&number.to_be_bytes());
    }
    assert_eq!(c.encode(Encoding::None).unwrap(), expected);
}

#[test]
fn chunks_round_trip() {
    let [first, second] = small();
    let mut sorted = first.clone();
    sorted.sort_by_key(|e| e.timestamp);
    for encoding in ENCODINGS {
        let c = chunk(&[&first, &[], &second], encoding);
        let decoded = Chunk::decode(&c.encode(encoding).unwrap()).unwrap();
        assert_eq!(contents(&decoded).unwrap(), [sorted.clone(), second.clone()]);
        let empty = Chunk::decode(&Chunk::default().encode(encoding).unwrap()).unwrap();
        assert!(empty.blocks.is_empty() && empty.symbols.is_empty());
    }
}

#[test]
fn sealing_tells_the_symbols_of_the_block() {
    let [first, second] = small();
    let mut symbols = Symbols::new();
    let (_, ids) = Block::seal_with_ids(&head(&first), &mut symbols, Encoding::None);
    assert_eq!(ids, [0, 1, 2, 3]);
    let (block, ids) = Block::seal_with_ids(&head(&second), &mut symbols, Encoding::None);
    let names: Vec<_> = ids.iter().map(|id| symbols.get(*id).unwrap()).collect();
    assert_eq!((names, symbols.len()), (vec![&b"detected_level"[..], b"error"], 5));
    assert_eq!((block.meta().entries, block.meta().uncompressed_size), (1, 4 + 8));
}

/// Every flip of a bit is an error or, where nothing depends on it, reads the same.
#[test]
fn no_flipped_bit_is_read() {
    let [first, second] = small();
    for encoding in ENCODINGS {
        let c = chunk(&[&first, &second], encoding);
        let good = c.encode(encoding).unwrap();
        let expected = contents(&c).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = Chunk::decode(&bad).and_then(|c| contents(&c)) {
                assert_eq!(read, expected, "{encoding}: bit {bit} of {} bytes", good.len());
            }
        }
    }
    let expected = contents(&decode_object(STREAM_A).unwrap().chunk).unwrap();
    for bit in 0..STREAM_A.len() * 8 {
        let mut bad = STREAM_A.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = decode_object(&bad).and_then(|o| contents(&o.chunk)) {
            assert_eq!(read, expected, "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    let [first, second] = small();
    for encoding in ENCODINGS {
        let good = chunk(&[&first, &second], encoding).encode(encoding).unwrap();
        for len in 0..good.len() {
            assert!(Chunk::decode(&good[..len]).is_err(), "{encoding}: {len} of {} bytes", good.len());
        }
        let longer = [&good[..], b"\0"].concat();
        assert!(Chunk::decode(&longer).is_err());
    }
    for len in 0..STREAM_A.len() {
        assert!(decode_object(&STREAM_A[..len]).is_err(), "{len}");
    }
    assert!(decode_object(&[STREAM_A, b"\0"].concat()).is_err());
}

#[test]
fn errors_say_what_is_wrong() {
    let mut bytes = chunk(&[&small()[0]], Encoding::None).encode(Encoding::None).unwrap();
    let message = |bytes: &[u8]| Chunk::decode(bytes).unwrap_err().to_string();
    bytes[5] = 9;
    assert_eq!(message(&bytes), "chunk encoding 9 is not supported; only 0 (none), 1 (gzip) and 4 (snappy) are");
    bytes[4] = 3;
    assert_eq!(message(&bytes), "chunk format 3 is not supported; only format 4 is (schema v13 and later)");
    bytes[0] = 0xff;
    assert_eq!(message(&bytes), "not a chunk: begins with 0xff2ee56a instead of 0x012ee56a");
    assert_eq!(message(b"\x01"), "chunk is cut short");
}

#[test]
fn a_stored_block_is_verified_when_it_comes_back_and_when_it_is_read() {
    let mut symbols = Symbols::new();
    let block = Block::seal(&head(&small()[0]), &mut symbols, Encoding::Snappy);
    let back = Block::from_stored(*block.meta(), block.data().clone()).unwrap();
    assert_eq!(back.entries(&symbols), block.entries(&symbols));
    let mut bad = block.data().to_vec();
    bad[12] ^= 1;
    let refused = Block::from_stored(*block.meta(), bad.into());
    assert!(matches!(refused, Err(ChunkError::Checksum { what: "block", .. })));
    assert!(Block::from_stored(*block.meta(), block.data().slice(1..)).is_err());
    let no_symbols = Symbols::new();
    assert!(matches!(block.entries(&no_symbols), Err(ChunkError::Malformed { .. })));
}

/// A right checksum over wrong content is still an error.
#[test]
fn blocks_that_contradict_their_metadata_are_refused() {
    let refused = |payload: &[u8], entries: u32, bounds: (i64, i64)| {
        let meta = BlockMeta {
            encoding: Encoding::None,
            entries,
            min_timestamp: bounds.0,
            max_timestamp: bounds.1,
            uncompressed_size: u64::MAX,
            compressed_len: payload.len() as u32,
            crc: crc32c::crc32c(payload),
        };
        let block = Block::from_stored(meta, payload.to_vec().into()).unwrap();
        block.entries(&Symbols::new()).err()
    };
    let two = b"\x02\x00\x01\x00\x04\x00\x01\x00";
    assert_eq!(refused(two, 2, (1, 2)), None);
    assert!(refused(two, u32::MAX, (1, 2)).is_some());
    assert!(refused(two, 2, (1, 3)).is_some());
    assert!(refused(two, 2, (0, 2)).is_some());
    assert!(refused(b"\x04\x00\x01\x00\x02\x00\x01\x00", 2, (2, 1)).is_some(), "out of order");
    assert!(refused(b"\x02\x00\x02\x00\x00", 1, (1, 1)).is_some(), "bytes left in the metadata");
    assert!(refused(b"\x02\x00\x03\x01\x00\x00", 1, (1, 1)).is_some(), "unknown symbol");
    assert!(refused(b"\x02\xff\xff\xff\xff\x0f", 1, (1, 1)).is_some(), "line longer than the block");
}

#[test]
fn equal_timestamps_come_in_arrival_order_and_backward_is_the_reverse() {
    let mut symbols = Symbols::new();
    let blocks = [
        Block::seal(&head(&[entry(2, "b1", &[]), entry(1, "a1", &[])]), &mut symbols, Encoding::Snappy),
        Block::seal(
            &head(&[entry(2, "b2", &[]), entry(2, "b1", &[]), entry(3, "c", &[])]),
            &mut symbols,
            Encoding::None,
        ),
    ];
    let symbols = Arc::new(symbols);
    let mut parts: Vec<Part> = blocks.map(|b| Part::Block(Arc::new(b), symbols.clone())).into();
    parts.push(Part::Head(Arc::new(head(&[entry(2, "b3", &[]), entry(2, "b2", &[("k", "v")]), entry(1, "a2", &[])]))));
    let forward = all(&parts, true, usize::MAX);
    assert_eq!(lines(&forward), ["a1", "a2", "b1", "b2", "b3", "b2", "c"]);
    assert_eq!(lines(&all(&parts, false, usize::MAX)), ["c", "b2", "b3", "b2", "b1", "a2", "a1"]);
    assert_eq!(lines(&all(&parts, true, 4)), ["a1", "a2", "b1", "b2"]);
    assert_eq!(lines(&all(&parts, false, 3)), ["c", "b2", "b3"]);
    assert!(all(&parts, true, 0).is_empty());
}

#[test]
fn keep_sees_line_and_metadata_and_the_limit_counts_what_it_accepts() {
    let entries: Vec<_> =
        (0..100).map(|i| entry(i, &format!("line {i}"), &[("level", if i % 10 == 0 { "x" } else { "y" })])).collect();
    let parts = [Part::Head(Arc::new(head(&entries)))];
    let selection = Selection { start: 10, end: 90, forward: false, limit: 3 };
    let mut asked = 0;
    let found = select(&parts, &selection, &mut |line, metadata| {
        asked += 1;
        line.starts_with(b"line") && metadata == [(&b"level"[..], &b"x"[..])]
    });
    assert_eq!(lines(&found.unwrap()), ["line 80", "line 70", "line 60"]);
    assert_eq!(asked, 30);
}

/// A block that cannot be read shows which blocks a query opens.
#[test]
fn blocks_that_cannot_contribute_are_not_decoded() {
    let mut symbols = Symbols::new();
    let mut sealed = |from: i64| {
        let entries: Vec<_> = (from..from + 10).map(|t| entry(t, "x", &[("k", "v")])).collect();
        Arc::new(Block::seal(&head(&entries), &mut symbols, Encoding::Snappy))
    };
    let (early, middle, late) = (sealed(0), sealed(10), sealed(20));
    let (good, broken) = (Arc::new(symbols), Arc::new(Symbols::new()));
    let parts = |broken_at: usize| -> Vec<Part> {
        let of = |(i, b): (usize, &Arc<Block>)| {
            Part::Block(b.clone(), if i == broken_at { broken.clone() } else { good.clone() })
        };
        [&late, &early, &middle].into_iter().enumerate().map(of).collect()
    };
    let run = |broken_at, start, end, forward, limit| {
        let found = select(&parts(broken_at), &Selection { start, end, forward, limit }, &mut |_, _| true);
        found.map(|e| e.len()).ok()
    };
    assert_eq!(run(0, 0, 30, true, 20), Some(20));
    assert_eq!(run(0, 0, 30, true, 21), None);
    assert_eq!(run(1, 0, 30, false, 20), Some(20));
    assert_eq!(run(1, 0, 30, false, 21), None);
    assert_eq!(run(1, 10, 30, true, 100), Some(20));
    assert_eq!(run(0, 0, 20, false, 100), Some(20));
    assert_eq!(run(0, 15, 15, false, 100), Some(0));
    assert_eq!(run(2, 20, 10, true, 100), Some(0));
}

fn timestamps() -> impl Strategy<Value = i64> {
    prop_oneof![4 => -3i64..6, 1 => any::<i64>(), 1 => Just(i64::MIN), 1 => Just(i64::MAX), 1 => Just(i64::MAX - 1)]
}

fn entries() -> impl Strategy<Value = LogEntry> {
    let line = prop_oneof![3 => prop::collection::vec(97u8..99, 0..2), 1 => prop::collection::vec(any::<u8>(), 0..40)];
    let symbol = || prop_oneof!["[ab]?", "\\PC{0,9}"];
    (timestamps(), line, prop::collection::vec((symbol(), symbol()), 0..3))
        .prop_map(|(timestamp, line, metadata)| LogEntry { timestamp, line: line.into(), metadata })
}

/// What a stream reads as: a set, by timestamp and then arrival.
fn model(parts: &[(Vec<LogEntry>, u8)], selection: &Selection) -> Vec<LogEntry> {
    let mut found: Vec<LogEntry> = Vec::new();
    for e in parts.iter().flat_map(|(entries, _)| entries) {
        if selection.start <= e.timestamp && e.timestamp < selection.end && !found.contains(e) {
            found.push(e.clone());
        }
    }
    found.sort_by_key(|e| e.timestamp);
    if !selection.forward {
        found.reverse();
    }
    found.retain(|e| e.line.len() % 3 != 1);
    found.truncate(selection.limit);
    found
}

proptest! {
    #[test]
    fn select_reads_what_the_naive_model_reads(
        parts in prop::collection::vec((prop::collection::vec(entries(), 0..12), 0u8..4), 0..6),
        bounds in prop::option::of((timestamps(), timestamps())),
        forward in any::<bool>(),
        limit in prop_oneof![0usize..12, Just(usize::MAX)],
    ) {
        let (start, end) = bounds.unwrap_or((i64::MIN, i64::MAX));
        let selection = Selection { start, end, forward, limit };
        let mut symbols = Symbols::new();
        let sealed: Vec<Option<Block>> = parts.iter().map(|(entries, kind)| {
            let encoding = ENCODINGS.get(*kind as usize)?;
            Some(Block::seal(&head(entries), &mut symbols, *encoding))
        }).collect();
        let symbols = Arc::new(symbols);
        let given: Vec<Part> = sealed.into_iter().zip(&parts).map(|(block, (entries, _))| match block {
            Some(block) => Part::Block(Arc::new(block), symbols.clone()),
            None => Part::Head(Arc::new(head(entries).slice(i64::MIN, i64::MAX))),
        }).collect();
        // A slice leaves the highest timestamp out, and so does every selection.
        let found = select(&given, &selection, &mut |line, _| line.len() % 3 != 1).unwrap();
        prop_assert_eq!(found, model(&parts, &selection));
    }

    #[test]
    fn sealing_sorts_and_a_chunk_keeps_it(entries in prop::collection::vec(entries(), 0..40), code in 0usize..3) {
        let encoding = ENCODINGS[code];
        let c = chunk(&[&entries], encoding);
        let mut sorted = entries.clone();
        sorted.sort_by_key(|e| e.timestamp);
        prop_assert_eq!(&c.blocks[0].entries(&c.symbols).unwrap(), &sorted);
        let decoded = Chunk::decode(&c.encode(encoding).unwrap()).unwrap();
        prop_assert_eq!(contents(&decoded).unwrap().concat(), sorted);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_object(&bytes);
        let _ = Chunk::decode(&bytes);
        for code in [0, 1, 4] {
            for (at, byte) in [1, 0x2e, 0xe5, 0x6a, 4, code].into_iter().enumerate() {
                if let Some(b) = bytes.get_mut(at) {
                    *b = byte;
                }
            }
            let _ = Chunk::decode(&bytes);
            let meta = BlockMeta {
                encoding: Encoding::from_code(code).unwrap(),
                entries: 2,
                min_timestamp: 0,
                max_timestamp: 0,
                uncompressed_size: 0,
                compressed_len: bytes.len() as u32,
                crc: crc32c::crc32c(&bytes),
            };
            let _ = Block::from_stored(meta, bytes.clone().into()).unwrap().entries(&Symbols::new());
        }
    }
}
