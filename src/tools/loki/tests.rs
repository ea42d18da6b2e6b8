use super::chunk::{BlockMeta, Chunk, ChunkError, decompress};
use super::record::{Record, StoredEntry, decode};
use super::wlog::{Piece, read};
use crate::codec::{put_uvarint, put_varint};
use crate::fs::{File, Fs, RealFs};
use std::io::{self, Write};
use std::path::Path;

/// Records, and places of damage.
fn read_all(path: &Path) -> (Vec<Vec<u8>>, Vec<u64>) {
    read_file(&*RealFs.open(path, false).unwrap())
}

fn read_file(file: &dyn File) -> (Vec<Vec<u8>>, Vec<u64>) {
    let (mut records, mut damage) = (Vec::new(), Vec::new());
    read::<io::Error>(file, &mut |offset, piece| {
        match piece {
            Piece::Record(record) => records.push(record.to_vec()),
            Piece::Damage(..) => damage.push(offset),
        }
        Ok(())
    })
    .unwrap();
    (records, damage)
}

fn segment() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/loki/wal/00000002")).unwrap()
}

/// A disk that does not give the first page.
struct Failing(Vec<u8>);

impl File for Failing {
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<usize> {
        unreachable!("it is only read")
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if offset < 32 << 10 {
            return Err(io::Error::from_raw_os_error(5));
        }
        let rest = &self.0[offset as usize..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn sync_data(&self) -> io::Result<()> {
        unreachable!("it is only read")
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn allocate(&self, _: u64) -> io::Result<()> {
        unreachable!("it is only read")
    }
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_page_that_the_disk_does_not_give_costs_its_records() {
    let (records, damage) = read_file(&Failing(segment()));
    // Fragment 66 ends a record that began in the first page.
    assert_eq!((records.len(), damage), (105 - 67, vec![0]));
}

/// Decodes everything in a record.
fn decode_all(record: &[u8]) {
    match decode(record) {
        Ok(Record::Series(_, series)) => assert!(series.count() < record.len()),
        Ok(Record::Entries(_, entries)) => {
            let _ = entries.each::<crate::codec::DecodeError>(&mut |_, _| Ok(()));
        }
        Ok(Record::Checkpoint(series)) => {
            for chunk in &series.chunks {
                let Ok(decoded) = Chunk::decode(&chunk.data) else { continue };
                for block in &decoded.blocks {
                    let _ = decoded.block::<ChunkError>(*block, &mut |_| Ok(()));
                }
                let _ = decoded.head::<ChunkError>(&chunk.head, &mut |_| Ok(()));
            }
        }
        Err(_) => {}
    }
}

#[test]
fn a_changed_byte_costs_its_page_at_most_and_is_told() {
    let (whole, tmp) = (segment(), tempfile::tempdir().unwrap());
    let path = tmp.path().join("0");
    std::fs::write(&path, &whole).unwrap();
    let (records, damage) = read_all(&path);
    assert_eq!((records.len(), damage.len()), (104, 0));
    let heads = [0, 1, 2, 3, 6, 32743, 32744, 32761, 32766, 32767, 32768, 32769];
    for at in heads.into_iter().chain((7..whole.len()).step_by(97)) {
        for bit in [1, 4, 0x80] {
            let mut changed = whole.clone();
            changed[at] ^= bit;
            std::fs::write(&path, &changed).unwrap();
            let (found, damage) = read_all(&path);
            found.iter().for_each(|record| decode_all(record));
            let same = records.iter().filter(|r| found.contains(r)).count();
            assert!(same >= records.len() - 67, "byte {at}: {same}");
            assert!(!damage.is_empty() || found == records, "byte {at} is not told");
            assert!(found.len() <= records.len(), "byte {at}");
        }
    }
    for len in (0..whole.len()).step_by(511) {
        std::fs::write(&path, &whole[..len]).unwrap();
        let (found, _) = read_all(&path);
        assert!(records.starts_with(&found), "cut at {len}");
    }
}

#[test]
fn records_that_are_no_records_are_errors() {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/loki/wal/checkpoint.000001/00000000");
    let (records, _) = read_all(&checkpoint);
    for record in records {
        for at in 0..record.len() {
            decode_all(&record[..at]);
            for bit in [1, 0x40, 0x80] {
                let mut changed = record.clone();
                changed[at] ^= bit;
                decode_all(&changed);
            }
        }
    }
}

fn section(out: &mut Vec<u8>, part: &[u8]) -> [u64; 2] {
    let place = [part.len() as u64, out.len() as u64];
    out.extend(part);
    out.extend(crc32c::crc32c(part).to_be_bytes());
    place
}

fn compress(codec: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let level = flate2::Compression::fast();
    match codec {
        1 => flate2::write::GzEncoder::new(&mut out, level).write_all(bytes).unwrap(),
        4 => snap::write::FrameEncoder::new(&mut out).write_all(bytes).unwrap(),
        3 | 5..=7 => out = lz4(codec, bytes),
        8 => flate2::write::DeflateEncoder::new(&mut out, level).write_all(bytes).unwrap(),
        9 => out = zstd::encode_all(bytes, 0).unwrap(),
        _ => out = bytes.to_vec(),
    }
    out
}

/// A frame as Loki's pools make it: blocks of the size that the codec names, with a checksum of the content.
fn lz4(codec: u8, bytes: &[u8]) -> Vec<u8> {
    use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
    let size = match codec {
        3 => BlockSize::Max64KB,
        5 => BlockSize::Max256KB,
        6 => BlockSize::Max1MB,
        _ => BlockSize::Max4MB,
    };
    let info = FrameInfo::new().block_size(size).content_checksum(true);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A chunk as a checkpoint has it, with two blocks of two lines each.
fn chunk(format: u8, codec: u8) -> Vec<u8> {
    let mut out = 0x012E_E56A_u32.to_be_bytes().to_vec();
    out.push(format);
    if format > 1 {
        out.push(codec);
    }
    let symbols = (format == 4).then(|| section(&mut out, b"\x02\x03key\x05value"));
    let mut metas = vec![2];
    for block in 0..2 {
        let mut payload = Vec::new();
        for line in 0..2 {
            put_varint(&mut payload, 100 * block + line);
            payload.extend(b"\x04line");
            if format == 4 {
                payload.extend(b"\x03\x01\x00\x01");
            }
        }
        let [len, at] = section(&mut out, &compress(codec, &payload));
        put_uvarint(&mut metas, 2);
        put_varint(&mut metas, 100 * block);
        put_varint(&mut metas, 100 * block + 1);
        put_uvarint(&mut metas, at);
        if format >= 3 {
            put_uvarint(&mut metas, payload.len() as u64);
        }
        put_uvarint(&mut metas, len);
    }
    let [metas_len, metas_at] = section(&mut out, &metas);
    match symbols {
        Some([len, at]) => [len, at, metas_len, metas_at].iter().for_each(|n| out.extend(n.to_be_bytes())),
        None => out.extend(metas_at.to_be_bytes()),
    }
    out
}

/// Timestamps of a block's lines; the lines are checked.
fn times(chunk: &Chunk<'_>, block: BlockMeta, has_metadata: bool) -> Result<Vec<i64>, ChunkError> {
    let mut times = Vec::new();
    chunk.block::<ChunkError>(block, &mut |StoredEntry { timestamp, line, metadata }| {
        let pairs: &[(&[u8], &[u8])] = if has_metadata { &[(b"key", b"value")] } else { &[] };
        assert_eq!((line, &*metadata), (&b"line"[..], pairs));
        times.push(timestamp);
        Ok(())
    })?;
    Ok(times)
}

#[test]
fn chunks_of_all_formats_and_codecs_are_read() {
    let cases = [(1, 1), (2, 1), (2, 4), (3, 0), (3, 4)].into_iter();
    for (format, codec) in cases.chain([0, 1, 3, 4, 5, 6, 7, 8, 9].map(|codec| (4, codec))) {
        let bytes = chunk(format, codec);
        let chunk = Chunk::decode(&bytes).unwrap();
        let found: Vec<_> = chunk.blocks.iter().map(|b| times(&chunk, *b, format == 4)).collect();
        assert_eq!(found, [Ok(vec![0, 1]), Ok(vec![100, 101])], "format {format}, codec {codec}");
        assert!(!chunk.is_unsupported());
    }
    let bytes = chunk(4, 2);
    let chunk = Chunk::decode(&bytes).unwrap();
    assert!(chunk.is_unsupported());
    assert_eq!(times(&chunk, chunk.blocks[0], true), Err(ChunkError::Codec(2)));
}

#[test]
fn a_block_decompresses_to_its_bound_at_most() {
    for codec in [0, 1, 3, 4, 5, 6, 7, 8, 9] {
        let packed = compress(codec, &[0; 100_000]);
        assert_eq!(decompress(codec, &packed, 100_000).unwrap().len(), 100_000, "codec {codec}");
        let over = ChunkError::Compression("more than 99999 bytes".to_string());
        assert_eq!(decompress(codec, &packed, 99_999), Err(over), "codec {codec}");
    }
}

#[test]
fn a_damaged_block_costs_its_own_lines() {
    let whole = chunk(4, 1);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x11;
        let Ok(chunk) = Chunk::decode(&bytes) else { continue };
        let found: Vec<_> = chunk.blocks.iter().map(|b| times(&chunk, *b, true)).collect();
        let lost = found.iter().filter(|f| f.is_err()).count();
        assert!(lost == 1 || at == 5, "byte {at}: {found:?}");
    }
}
