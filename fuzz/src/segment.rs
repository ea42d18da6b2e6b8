//! Segments of the write-ahead log: any bytes, and groups and records with valid checksums around anything.

use super::allocation::bounded;
use super::choices::Choices;
use timberline::wal::format::{FIRST_GROUP, GROUP_ALIGN, GROUP_HEADER_LEN, RECORD_HEAD_LEN, SECOND_HEADER};
use timberline::wal::*;

const NUMBER: u64 = 7;
const VOLUME: uuid::Uuid = uuid::Uuid::from_u128(7);
const SALT: u64 = 0x5eed;
/// A decompressed body is bounded by what its format can hold in the stored bytes.
const SNAPPY_RATIO: usize = 22;
const ZSTD_RATIO: usize = 32 << 10;
/// As in `wal-format.md`: a carried record's flag, among others.
const FLAGS: [u8; 6] = [0, 0, 0, 1, 2, 255];

/// A whole file, or what a file is built of.
pub fn segment(input: &[u8]) {
    let mut choices = Choices::new(input);
    if choices.flag() {
        let file = choices.rest();
        read(file, file.len());
        return;
    }
    let built = Built::of(&mut choices);
    let scan = read(&built.file, built.file.len() + built.raw);
    if !built.is_damaged {
        let scan = scan.expect("its header holds");
        let found: Vec<(u64, RecordHead)> = scan
            .groups
            .iter()
            .flat_map(|g| &g.records)
            .filter(|r| r.body_is_sound)
            .map(|r| (r.offset, r.head))
            .collect();
        assert_eq!(found, built.records);
        assert!(scan.groups.iter().all(|g| g.damage.is_empty() && g.dirty_padding == 0));
    }
}

/// Scans, sums up, plans and decodes all that is there. `input` counts the bytes of the file, and of its bodies when decompressed.
fn read(file: &[u8], input: usize) -> Option<SegmentScan> {
    let scan = bounded(file.len(), || scan_segment(file)).ok()?;
    let number = scan.header.number;
    let summary = bounded(input, || Summary::of(number, &scan, file));
    let plan = bounded(input, || plan(&[summary]));
    for record in plan.records(number, &scan) {
        assert!(record.offset + u64::from(record.head.len) <= file.len() as u64);
    }
    for record in scan.groups.iter().flat_map(|g| &g.records) {
        decode(&record.head, record.head.tables(file, record.offset), record.head.body(file, record.offset));
    }
    Some(scan)
}

fn decode(head: &RecordHead, tables: &[u8], stored: &[u8]) {
    let ratio = [1, SNAPPY_RATIO, ZSTD_RATIO].get(usize::from(head.codec)).copied().unwrap_or(0);
    let declared = (head.raw_len as usize).min(stored.len() * ratio);
    let Ok(raw) = bounded(stored.len() + declared, || decompress_body(head, stored)) else { return };
    assert_eq!(raw.len(), head.raw_len as usize);
    let _ = bounded(tables.len(), || BlockTables::decode(tables).map(|t| assert_eq!(t.encode(), tables)));
    let rows = bounded(tables.len(), || Tables::decode(tables)).map(|t| (t.rows, Cut::find(t.extension)));
    if let (Ok((rows, cut)), Ok(view)) = (rows, bounded(raw.len(), || BodyView::new(&raw))) {
        let mut start = 0;
        for row in &rows {
            for entry in view.part(start, row).into_iter().flatten().map_while(Result::ok) {
                assert!(entry.metadata().all(|(n, v)| n.max(v) < view.symbols().len() as u32));
            }
            start = start.saturating_add(row.part_len as usize);
        }
        if let Some(cut) = cut {
            for side in [Side::Before, Side::Behind] {
                let mut half = Vec::new();
                let _ = bounded(stored.len() + raw.len(), || cut.decompress(side, head.raw_len, stored, &mut half));
            }
        }
    }
    macro_rules! control {
        ($($body:ty)*) => {$(
            let _ = bounded(stored.len() + 2 * raw.len(), || decode_control::<$body>(head, stored).map(drop));
        )*};
    }
    control!(Open Vec<SeriesDef> Gap BlocksSynced ChunkClosed ChunkFlushed Retiring Footer);
}

/// A segment that is made of choices.
struct Built {
    file: Vec<u8>,
    /// What was stamped, in order.
    records: Vec<(u64, RecordHead)>,
    lsn: u64,
    lines: u64,
    /// Bytes of the bodies when decompressed.
    raw: usize,
    is_damaged: bool,
}

impl Built {
    fn of(choices: &mut Choices<'_>) -> Self {
        let file = vec![0; FIRST_GROUP as usize];
        let mut out = Self { file, records: Vec::new(), lsn: choices.number(), lines: 0, raw: 0, is_damaged: false };
        let recycled = choices.flag();
        for _ in 0..choices.byte() % 4 + 1 {
            out.group(choices);
        }
        out.file.resize(out.file.len() + usize::from(choices.byte() % 3) * GROUP_ALIGN as usize, 0);
        let header = SegmentHeader {
            log: if choices.byte() == 255 { LogKind::Blocks } else { LogKind::Wal },
            number: NUMBER,
            file_len: out.file.len() as u64,
            salt: SALT,
            volume: VOLUME,
            recycled,
        };
        for at in [0, SECOND_HEADER] {
            out.put(at as usize, &header.encode(at));
        }
        while !choices.is_empty() {
            let at = choices.short() % out.file.len();
            let byte = choices.byte();
            out.is_damaged |= byte != 0;
            out.file[at] ^= byte;
        }
        out
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn group(&mut self, choices: &mut Choices<'_>) {
        let (start, first) = (self.file.len(), self.records.len());
        let (first_lsn, lines_before) = (self.lsn, self.lines);
        self.file.resize(start + GROUP_HEADER_LEN, 0);
        for _ in 0..choices.byte() % 5 {
            self.record(choices);
        }
        let records = &self.records[first..];
        let lsns = records.iter().filter(|(_, h)| h.known_kind().is_some_and(Kind::has_lsn)).count();
        // What a header tells is mostly true.
        let lie = choices.byte();
        let header = GroupHeader {
            len: (self.file.len() - start) as u32,
            segment: NUMBER,
            first_lsn: if lie == 1 { choices.number() } else { first_lsn },
            records: records.len() as u32 + u32::from(lie == 2),
            lsns: if lie == 3 { u32::MAX } else { lsns as u32 },
            durable_lsn: if lie == 4 { choices.number() } else { first_lsn },
            lines_before: if lie == 5 { choices.number() } else { lines_before },
            wall_clock: 1,
        };
        self.put(start, &header.encode(SALT, start as u64));
        self.file.resize(self.file.len().next_multiple_of(GROUP_ALIGN as usize), 0);
    }

    fn record(&mut self, choices: &mut Choices<'_>) {
        let mut record = vec![0; RECORD_HEAD_LEN];
        let kind = choices.byte() % 12 + 1;
        let (tables_len, body, raw_len, codec) = match (choices.flag(), Kind::from_u8(kind)) {
            (true, _) => {
                let (tables, body) = (choices.prefixed(), choices.long().to_vec());
                record.extend_from_slice(tables);
                let raw_len = if choices.flag() { choices.number() as u32 } else { body.len() as u32 };
                (tables.len(), body, raw_len, choices.byte() % 4)
            }
            (false, Some(Kind::Entries)) => {
                let (tables, body) = entries(choices);
                record.extend_from_slice(&tables);
                let raw_len = body.len() as u32;
                (tables.len(), body, raw_len, 0)
            }
            (false, _) => {
                let body = fields(choices);
                let raw_len = body.len() as u32;
                (0, body, raw_len, 0)
            }
        };
        let body = if codec == 1 && choices.flag() {
            snap::raw::Encoder::new().compress_vec(&body).expect("it is small")
        } else {
            body
        };
        record.extend_from_slice(&body);
        self.raw += (raw_len as usize).min(body.len() * ZSTD_RATIO);
        let head = RecordHead {
            len: record.len() as u32,
            kind,
            flags: choices.of(&FLAGS),
            codec,
            lsn: if choices.byte() == 255 { choices.number() } else { self.lsn },
            segment: NUMBER,
            tables_len: tables_len as u32,
            body_len: body.len() as u32,
            raw_len,
            body_crc: crc32fast::hash(&body),
        };
        let offset = self.file.len() as u64;
        head.stamp(&mut record, SALT, offset);
        self.file.extend_from_slice(&record);
        self.file.resize(self.file.len().next_multiple_of(8), 0);
        self.records.push((offset, head));
        self.lsn = self.lsn.wrapping_add(u64::from(head.known_kind().is_some_and(Kind::has_lsn)));
    }
}

/// Tables and body of an Entries record, as the log's own encoder makes them; they must decode to what was given.
fn entries(choices: &mut Choices<'_>) -> (Vec<u8>, Vec<u8>) {
    let mut builder = EntriesBuilder::new(0);
    let mut given = Vec::new();
    for stream in 0..choices.byte() % 4 {
        builder.stream(stream.into());
        for _ in 0..choices.byte() % 4 {
            let (timestamp, line) = (choices.number() as i64, choices.prefixed());
            let pairs: Vec<(&[u8], &[u8])> =
                (0..choices.byte() % 3).map(|_| (choices.prefixed(), choices.prefixed())).collect();
            builder.entry(timestamp, line, pairs.iter().copied());
            given.push((u64::from(stream), timestamp, line, pairs));
        }
    }
    let record = builder.finish("tenant", Codec::None);
    let view = BodyView::new(record.raw()).expect("a body that was encoded");
    let (mut found, mut start) = (Vec::new(), 0);
    for row in record.rows() {
        for entry in view.part(start, row).expect("a part that was encoded") {
            let entry = entry.expect("an entry that was encoded");
            let text = |n: u32| view.symbols()[n as usize];
            let pairs = entry.metadata().map(|(n, v)| (text(n), text(v))).collect();
            found.push((row.stream, entry.timestamp, entry.line, pairs));
        }
        start += row.part_len as usize;
    }
    assert_eq!(found, given);
    let mut tables = Vec::new();
    tables.extend_from_slice(&6u16.to_le_bytes());
    tables.extend_from_slice(b"tenant");
    tables.extend_from_slice(&0u32.to_le_bytes());
    tables.extend_from_slice(&(record.rows().len() as u32).to_le_bytes());
    for row in record.rows() {
        tables.extend_from_slice(&row.stream.to_le_bytes());
        tables.extend_from_slice(&choices.number().to_le_bytes());
        tables.extend_from_slice(&row.count.to_le_bytes());
        tables.extend_from_slice(&row.part_len.to_le_bytes());
    }
    (tables, record.raw().to_vec())
}

/// A sequence of fields as in section 5.2 of the format: numbers, lists and texts are numbers with something behind them.
fn fields(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..choices.byte() % 32 {
        match choices.byte() % 4 {
            0 => {
                let text = choices.prefixed();
                int(text.len() as u64, &mut out);
                out.extend_from_slice(text);
            }
            _ => int(choices.number(), &mut out),
        }
    }
    out
}

/// An *int* of that section.
fn int(value: u64, out: &mut Vec<u8>) {
    match value {
        0..=250 => out.push(value as u8),
        251..=0xffff => {
            out.push(251);
            out.extend_from_slice(&(value as u16).to_le_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(252);
            out.extend_from_slice(&(value as u32).to_le_bytes());
        }
        _ => {
            out.push(253);
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}
