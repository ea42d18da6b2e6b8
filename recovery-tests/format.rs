//! A second reader, written from `wal-format.md` alone, over the golden logs and the example in that file. Nothing of
//! it comes from the crate; the crate's own reader must give the same lines.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One line as text: stream, seq, tenant, labels, timestamp, line, metadata.
type Printed = BTreeSet<String>;

/// The reader of a stranger. Sections in the comments are those of `wal-format.md`.
mod stranger {
    use super::Printed;
    use std::collections::{BTreeMap, BTreeSet};
    use std::io::Read;
    use std::ops::Range;

    /// Everything that cannot be read is `None`.
    struct Bytes<'a>(&'a [u8]);

    impl<'a> Bytes<'a> {
        fn take(&mut self, n: usize) -> Option<&'a [u8]> {
            let (head, rest) = self.0.split_at_checked(n)?;
            self.0 = rest;
            Some(head)
        }
        fn le(&mut self, n: usize) -> Option<u64> {
            Some(self.take(n)?.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)))
        }
        fn leb(&mut self) -> Option<u64> {
            let mut v = 0u128;
            for i in 0..10 {
                let b = self.le(1)?;
                v |= u128::from(b & 0x7f) << (7 * i);
                if b < 0x80 {
                    return v.try_into().ok();
                }
            }
            None
        }
        fn zigzag(&mut self) -> Option<i64> {
            let v = self.leb()?;
            Some((v >> 1) as i64 ^ -((v & 1) as i64))
        }
        /// Section 5.2.
        fn int(&mut self) -> Option<u64> {
            match self.le(1)? {
                251 => self.le(2),
                252 => self.le(4),
                253 => self.le(8),
                small @ 0..=250 => Some(small),
                _ => None,
            }
        }
        fn string(&mut self) -> Option<String> {
            let n = self.int()?;
            String::from_utf8(self.take(usize::try_from(n).ok()?)?.to_vec()).ok()
        }
    }

    fn at(file: &[u8], offset: usize, n: usize) -> Option<Bytes<'_>> {
        Some(Bytes(file.get(offset..offset.checked_add(n)?)?))
    }

    fn crc(parts: &[&[u8]]) -> u64 {
        crc32fast::hash(&parts.concat()).into()
    }

    /// Section 2.
    struct Segment<'a> {
        number: u64,
        salt: u64,
        /// Made from a retired segment.
        recycled: bool,
        file: &'a [u8],
        records: Vec<Record<'a>>,
        durable: u64,
        open: Option<Open>,
        /// Header at 8192 with all records sound and nothing else.
        whole: bool,
        has_content: bool,
    }

    struct Record<'a> {
        kind: u64,
        flags: u64,
        lsn: u64,
        tables: &'a [u8],
        body: Vec<u8>,
    }

    /// Section 5.2.
    struct Open {
        first_lsn: u64,
        /// Segment, end LSN.
        previous: Option<(u64, u64)>,
        tail_end: u64,
        first_live: u64,
        blocks: Vec<Synced>,
    }

    /// Section 5.2: block segment, end, footer offset.
    type Synced = (u64, u64, u64);

    impl<'a> Segment<'a> {
        /// A segment of the log with this magic, without its groups.
        fn header(name: u64, file: &'a [u8], magic: &[u8]) -> Option<Self> {
            let copy = |offset: usize| {
                let mut b = at(file, offset, 64)?;
                let place = (offset as u64).to_le_bytes();
                let sound = crc(&[file.get(offset..offset + 60)?, &place]) == at(file, offset + 60, 4)?.le(4)?;
                let magic = b.take(8)? == magic;
                let (version, flags) = (b.le(2)?, b.le(2)?);
                b.take(4 + 16)?;
                (sound && magic && version == 1).then_some((b.le(8)?, b.le(8)?, b.le(8)?, flags & 1 == 1))
            };
            let (number, len, salt, recycled) = copy(0).or_else(|| copy(4096))?;
            let file = file.get(..len as usize).unwrap_or(file);
            let segment = Segment {
                number,
                salt,
                recycled,
                file,
                records: vec![],
                durable: 0,
                open: None,
                whole: false,
                has_content: false,
            };
            (number == name).then_some(segment)
        }

        fn read(name: u64, file: &'a [u8]) -> Option<Self> {
            let mut segment = Self::header(name, file, b"TMBRWAL1")?;
            segment.groups();
            Some(segment)
        }

        /// Section 3: length, records, durable LSN.
        fn group(&self, offset: usize) -> Option<(usize, u64, u64)> {
            let mut b = at(self.file, offset, 64)?;
            let place = (offset as u64).to_le_bytes();
            let sum = crc(&[self.file.get(offset..offset + 60)?, &self.salt.to_le_bytes(), &place]);
            let magic = b.take(4)? == b"TGRP";
            let (len, number) = (b.le(4)?, b.le(8)?);
            b.le(8)?;
            let (records, _) = (b.le(4)?, b.le(4)?);
            let durable = b.le(8)?;
            let sound = magic && sum == at(self.file, offset + 60, 4)?.le(4)? && number == self.number && len >= 64;
            sound.then_some((len as usize, records, durable))
        }

        fn groups(&mut self) {
            let mut offset = 8192;
            while offset < self.file.len() {
                let block = &self.file[offset..self.file.len().min(offset + 4096)];
                if let Some((len, records, durable)) = self.group(offset) {
                    self.has_content = true;
                    self.durable = self.durable.max(durable);
                    let found = self.records(offset + 64, (offset + len).min(self.file.len()));
                    self.whole |= offset == 8192 && found == records;
                    offset = (offset + len).div_ceil(4096) * 4096;
                } else if block.iter().all(|b| *b == 0) {
                    offset += 4096;
                } else {
                    let mut end = offset + 4096;
                    while end < self.file.len() && self.group(end).is_none() {
                        end += 4096;
                    }
                    let found = self.records(offset, end.min(self.file.len()));
                    self.has_content |= found > 0 || !self.recycled;
                    offset = end;
                }
            }
        }

        /// Section 4, with resynchronisation; returns the number of sound records.
        fn records(&mut self, mut offset: usize, end: usize) -> u64 {
            let mut found = 0;
            while offset + 8 <= end {
                match self.record(offset, end) {
                    Some((len, record)) => {
                        if let Some(record) = record {
                            found += 1;
                            if record.kind == 3 {
                                self.open = read_open(&record.body);
                            }
                            self.records.push(record);
                        }
                        offset = (offset + len).div_ceil(8) * 8;
                    }
                    None => offset += 8,
                }
            }
            found
        }

        fn record(&self, offset: usize, end: usize) -> Option<(usize, Option<Record<'a>>)> {
            let mut b = at(self.file, offset, 48)?;
            let (len, kind, flags) = (b.le(4)? as usize, b.le(1)?, b.le(1)?);
            let codec = b.le(1)?;
            b.le(1)?;
            let (lsn, number) = (b.le(8)?, b.le(8)?);
            let (tables, body, raw) = (b.le(4)? as usize, b.le(4)? as usize, b.le(4)? as usize);
            let body_crc = b.le(4)?;
            if kind == 0 || number != self.number || len != 48 + tables + body || offset + len > end || len > 1 << 28 {
                return None;
            }
            let tables = self.file.get(offset + 48..offset + 48 + tables)?;
            let place = (offset as u64).to_le_bytes();
            let sum = crc(&[self.file.get(offset..offset + 44)?, &self.salt.to_le_bytes(), &place, tables]);
            if sum != at(self.file, offset + 44, 4)?.le(4)? {
                return None;
            }
            let stored = self.file.get(offset + 48 + tables.len()..offset + len)?;
            let body = if crc(&[stored]) == body_crc { decompress(codec, stored, raw) } else { None };
            Some((len, body.map(|body| Record { kind, flags, lsn, tables, body })))
        }

        fn first_lsn(&self) -> Option<u64> {
            let seen = self.records.iter().map(|r| r.lsn).min();
            self.open.as_ref().map(|o| o.first_lsn).or(seen)
        }
    }

    fn decompress(codec: u64, stored: &[u8], raw: usize) -> Option<Vec<u8>> {
        let body = match codec {
            0 => stored.to_vec(),
            1 if snap::raw::decompress_len(stored).ok()? == raw => {
                snap::raw::Decoder::new().decompress_vec(stored).ok()?
            }
            2 if raw <= 1 << 28 => zstd::bulk::decompress(stored, raw).ok()?,
            _ => return None,
        };
        (body.len() == raw).then_some(body)
    }

    fn read_open(body: &[u8]) -> Option<Open> {
        let mut b = Bytes(body);
        let (first_lsn, _, _) = (b.int()?, b.int()?, b.int()?);
        let previous = match b.le(1)? {
            0 => None,
            1 => {
                let (segment, _, end_lsn, _) = (b.int()?, b.int()?, b.int()?, b.int()?);
                Some((segment, end_lsn))
            }
            _ => return None,
        };
        let (tail_end, first_live, _, _) = (b.int()?, b.int()?, b.int()?, b.int()?);
        let mut blocks = Vec::new();
        for _ in 0..b.int()? {
            blocks.push((b.int()?, b.int()?, b.int()?));
        }
        b.0.is_empty().then_some(Open { first_lsn, previous, tail_end, first_live, blocks })
    }

    /// Oldest segment that is needed, and block segments that go.
    fn read_retiring(body: &[u8]) -> Option<(u64, Vec<u64>)> {
        let mut b = Bytes(body);
        let (first_live, _, _) = (b.int()?, b.int()?, b.int()?);
        let mut blocks = Vec::new();
        for _ in 0..b.int()? {
            blocks.push(b.int()?);
        }
        b.0.is_empty().then_some((first_live, blocks))
    }

    fn read_synced(body: &[u8]) -> Option<Synced> {
        let mut b = Bytes(body);
        let synced = (b.int()?, b.int()?, b.int()?);
        b.0.is_empty().then_some(synced)
    }

    /// Stream, chunk and seqs.
    fn read_flushed(body: &[u8]) -> Option<((u64, u64), Range<u64>)> {
        let mut b = Bytes(body);
        let flushed = ((b.int()?, b.int()?), b.int()?..b.int()?);
        b.string()?;
        b.0.is_empty().then_some(flushed)
    }

    /// Stream id → tenant and labels.
    type Names = BTreeMap<u64, (String, String)>;

    fn read_series(body: &[u8], out: &mut Names) -> Option<()> {
        let mut b = Bytes(body);
        series(&mut b, out)?;
        b.0.is_empty().then_some(())
    }

    fn series(b: &mut Bytes<'_>, out: &mut Names) -> Option<()> {
        for _ in 0..b.int()? {
            let (id, tenant) = (b.int()?, b.string()?);
            let mut labels = Vec::new();
            for _ in 0..b.int()? {
                labels.push(format!("{}={:?}", b.string()?, b.string()?));
            }
            let (_, _, _) = (b.int()?, b.int()?, b.int()?);
            out.insert(id, (tenant, labels.join(",")));
        }
        Some(())
    }

    /// Section 8: one block that counts or not.
    struct Block {
        stream: u64,
        chunk: u64,
        seqs: Range<u64>,
        /// Timestamp, line, metadata, in the order of the block.
        lines: Vec<super::support::Line>,
    }

    /// Offset and tables of the blocks that a sound footer at `offset` tells of.
    fn read_footer(segment: &Segment<'_>, offset: usize, names: &mut Names) -> Option<Vec<(usize, Vec<u8>)>> {
        let (len, _, _) = segment.group(offset)?;
        let (_, record) = segment.record(offset + 64, offset + len)?;
        let record = record.filter(|r| r.kind == 10)?;
        let mut b = Bytes(&record.body);
        let mut defined = Names::new();
        series(&mut b, &mut defined)?;
        let mut blocks = Vec::new();
        for _ in 0..b.int()? {
            let (at, _, n) = (b.int()? as usize, b.int()?, b.int()? as usize);
            blocks.push((at, b.take(n)?.to_vec()));
        }
        b.0.is_empty().then_some(())?;
        names.extend(defined);
        Some(blocks)
    }

    fn read_blocks(file: &[u8], (number, end, footer): Synced, names: &mut Names, out: &mut Vec<Block>) {
        let file = file.get(..end as usize).unwrap_or(file);
        let Some(mut segment) = Segment::header(number, file, b"TMBRBLK1") else { return };
        let told = if footer > 0 { read_footer(&segment, footer as usize, names) } else { None };
        match told {
            Some(told) => {
                for (offset, tables) in told {
                    let Some((_, Some(record))) = segment.record(offset, file.len()) else { continue };
                    assert_eq!((record.kind, record.tables), (9, &tables[..]), "the footer tells of another block");
                    out.extend(read_block(&record));
                }
            }
            None => {
                segment.groups();
                for record in segment.records.iter().filter(|r| r.kind == 1) {
                    read_series(&record.body, names);
                }
                out.extend(segment.records.iter().filter(|r| r.kind == 9).filter_map(read_block));
            }
        }
    }

    fn read_block(record: &Record<'_>) -> Option<Block> {
        let mut t = Bytes(record.tables);
        let (stream, chunk, seqs) = (t.le(8)?, t.le(8)?, t.le(8)?..t.le(8)?);
        let (min, max) = (t.le(8)? as i64, t.le(8)? as i64);
        t.take(8 + 8 + 16)?;
        let (size, count, sum, encoding) = (t.le(8)?, t.le(4)?, t.le(4)?, t.le(4)?);
        let mut symbols = BTreeMap::new();
        for _ in 0..t.le(4)? {
            let (id, n) = (t.le(4)?, t.le(4)? as usize);
            symbols.insert(id, t.take(n)?.to_vec());
        }
        assert!(t.0.is_empty());
        if u64::from(crc32c::crc32c(&record.body)) != sum {
            return None;
        }
        let mut payload = Vec::new();
        let limit = 1 << 30;
        match encoding {
            0 => payload.extend_from_slice(&record.body),
            1 => drop(flate2::read::MultiGzDecoder::new(&record.body[..]).take(limit).read_to_end(&mut payload).ok()?),
            4 => drop(snap::read::FrameDecoder::new(&record.body[..]).take(limit).read_to_end(&mut payload).ok()?),
            _ => return None,
        }
        let mut p = Bytes(&payload);
        let mut lines: Vec<super::support::Line> = Vec::new();
        while !p.0.is_empty() {
            let timestamp = p.zigzag()?;
            let n = p.leb()? as usize;
            let line = p.take(n)?.to_vec();
            let n = p.leb()? as usize;
            let mut section = Bytes(p.take(n)?);
            let mut metadata = Vec::new();
            for _ in 0..section.leb()? {
                let (name, value) = (section.leb()?, section.leb()?);
                metadata.push((symbols.get(&name)?.clone(), symbols.get(&value)?.clone()));
            }
            assert!(section.0.is_empty());
            lines.push((timestamp, line, metadata));
        }
        let times = || lines.iter().map(|(t, _, _)| *t);
        assert!(times().is_sorted() && (times().min(), times().max()) == (Some(min), Some(max)));
        assert_eq!(lines.iter().map(|(_, l, m)| l.len() as u64 + 8 * m.len() as u64).sum::<u64>(), size);
        assert_eq!(lines.len() as u64, count);
        Some(Block { stream, chunk, seqs, lines })
    }

    /// Seqs by stream.
    #[derive(Default)]
    struct Settled(BTreeMap<u64, Vec<Range<u64>>>);

    impl Settled {
        fn has(&self, stream: u64, seq: u64) -> bool {
            self.0.get(&stream).is_some_and(|ranges| ranges.iter().any(|r| r.contains(&seq)))
        }
        fn add(&mut self, stream: u64, seqs: Range<u64>) {
            self.0.entry(stream).or_default().push(seqs);
        }
    }

    /// Section 5.1. `next` has the next seq of each stream.
    fn read_entries(
        record: &Record<'_>,
        names: &Names,
        settled: &Settled,
        next: &mut BTreeMap<u64, u64>,
        out: &mut Printed,
    ) -> Option<()> {
        let mut t = Bytes(record.tables);
        let n = t.le(2)? as usize;
        let tenant = std::str::from_utf8(t.take(n)?).ok()?;
        let n = t.le(4)? as usize;
        t.take(n)?;
        let rows = t.le(4)?;
        let mut body = Bytes(&record.body);
        let symbols_at = body.le(4)? as usize;
        let mut s = Bytes(record.body.get(symbols_at..)?);
        let mut symbols = Vec::new();
        for _ in 0..s.leb()? {
            let n = s.leb()? as usize;
            symbols.push(s.take(n)?);
        }
        for _ in 0..rows {
            let (id, first_seq, count, len) = (t.le(8)?, t.le(8)?, t.le(4)?, t.le(4)? as usize);
            let mut part = Bytes(body.take(len)?);
            let mut timestamp = 0i64;
            for seq in first_seq..first_seq + count {
                timestamp = timestamp.wrapping_add(part.zigzag()?);
                let n = part.leb()? as usize;
                let line = part.take(n)?;
                let mut metadata = Vec::new();
                for _ in 0..part.leb()? {
                    let (name, value) = (part.leb()? as usize, part.leb()? as usize);
                    metadata.push((symbols.get(name)?.to_vec(), symbols.get(value)?.to_vec()));
                }
                let next = next.entry(id).or_default();
                if settled.has(id, seq) || seq < *next {
                    continue;
                }
                *next = seq + 1;
                let (of, labels) = names.get(&id)?;
                assert_eq!(of, tenant);
                let fresh = out.insert(super::print(id, seq, tenant, labels, timestamp, line, &metadata));
                assert!(fresh, "a line twice");
            }
            assert!(part.0.is_empty());
        }
        Some(())
    }

    /// Sections 6 and 8.
    pub fn read(files: &[(u64, Vec<u8>)], block_files: &[(u64, Vec<u8>)]) -> Printed {
        let segments: Vec<Segment<'_>> = files.iter().filter_map(|(n, f)| Segment::read(*n, f)).collect();
        let retiring: Vec<(u64, Vec<u64>)> = segments
            .iter()
            .flat_map(|s| &s.records)
            .filter(|r| r.kind == 8)
            .map(|r| read_retiring(&r.body).expect("a sound record decodes"))
            .collect();
        let opens = segments.iter().filter_map(|s| s.open.as_ref());
        let first_live = retiring.iter().map(|(n, _)| *n).chain(opens.map(|o| o.first_live)).max().unwrap_or(0);
        let used: Vec<&Segment<'_>> = segments.iter().filter(|s| s.has_content && s.number >= first_live).collect();
        let told = used.iter().map(|s| s.durable);
        let opened = used.iter().filter_map(|s| s.open.as_ref()?.previous).map(|(_, end)| end);
        let durable = told.chain(opened).max().unwrap_or(0);
        let mut names = Names::new();
        for record in used.iter().flat_map(|s| &s.records).filter(|r| r.kind == 1) {
            read_series(&record.body, &mut names);
        }
        let mut by_lsn: BTreeMap<u64, &Record<'_>> = BTreeMap::new();
        let (mut limit, mut wanted) = (u64::MAX, u64::MAX);
        for segment in used.iter().rev() {
            if segment.number > wanted {
                continue;
            }
            for record in segment.records.iter().filter(|r| r.lsn < limit && (r.kind == 2 || r.kind == 4)) {
                // Of two equal records the older serves; the newer one was inserted first.
                by_lsn.insert(record.lsn, record);
            }
            let first = segment.first_lsn();
            let copies = segment.open.as_ref().is_none_or(|o| o.tail_end > o.first_lsn);
            if first.is_none_or(|f| f >= durable) && !segment.whole && copies {
                continue;
            }
            match &segment.open {
                Some(Open { previous: Some((number, end)), .. }) => (wanted, limit) = (*number, *end),
                Some(_) => break,
                None => limit = first.unwrap_or(limit).min(limit),
            }
        }
        let gone: BTreeSet<u64> = retiring.into_iter().flat_map(|(_, blocks)| blocks).collect();
        let mut out = Printed::new();
        let settled = blocks(&used, block_files, &gone, &mut names, &mut out);
        let mut next = BTreeMap::new();
        let entries = || by_lsn.values().filter(|r| r.kind == 2);
        for record in entries().filter(|r| r.flags & 2 != 0).chain(entries().filter(|r| r.flags & 2 == 0)) {
            read_entries(record, &names, &settled, &mut next, &mut out).expect("a sound record decodes");
        }
        out
    }

    /// Prints the blocks that count, and tells what they and the flushed chunks settle.
    fn blocks(
        used: &[&Segment<'_>],
        files: &[(u64, Vec<u8>)],
        gone: &BTreeSet<u64>,
        names: &mut Names,
        out: &mut Printed,
    ) -> Settled {
        let mut ends: BTreeMap<u64, Synced> = BTreeMap::new();
        let mut settled = Settled::default();
        let mut flushed = BTreeSet::new();
        for segment in used {
            if let Some(open) = &segment.open {
                ends = open.blocks.iter().map(|b| (b.0, *b)).collect();
            }
            for record in &segment.records {
                if let (5, Some(synced)) = (record.kind, read_synced(&record.body)) {
                    let known = ends.entry(synced.0).or_insert(synced);
                    *known = if known.1 < synced.1 { synced } else { *known };
                }
                if let (7, Some((chunk, seqs))) = (record.kind, read_flushed(&record.body)) {
                    flushed.insert(chunk);
                    settled.add(chunk.0, seqs);
                }
            }
        }
        let mut found = Vec::new();
        for synced in ends.into_values().filter(|s| !gone.contains(&s.0)) {
            if let Some((_, file)) = files.iter().find(|(n, _)| *n == synced.0) {
                read_blocks(file, synced, names, &mut found);
            }
        }
        let counts = |b: &Block| !flushed.contains(&(b.stream, b.chunk));
        // Of copies, the newest one is taken.
        let found: BTreeMap<(u64, u64), Block> =
            found.into_iter().filter(counts).map(|b| ((b.stream, b.seqs.start), b)).collect();
        for block in found.into_values() {
            let Some((tenant, labels)) = names.get(&block.stream) else { continue };
            super::print_block(block.stream, &block.seqs, tenant, labels, &block.lines, out);
            settled.add(block.stream, block.seqs);
        }
        settled
    }
}

/// Lines of a block have a place in it instead of a seq.
fn print_block(
    id: u64,
    seqs: &std::ops::Range<u64>,
    tenant: &str,
    labels: &str,
    lines: &[support::Line],
    out: &mut Printed,
) {
    for (i, (timestamp, line, metadata)) in lines.iter().enumerate() {
        let line = print(id, 0, tenant, labels, *timestamp, line, metadata);
        let rest = line.split_once(" 0 ").map_or("", |(_, rest)| rest);
        out.insert(format!("{id} {}-{}.{i} {rest}", seqs.start, seqs.end));
    }
}

fn print(
    id: u64,
    seq: u64,
    tenant: &str,
    labels: &str,
    timestamp: i64,
    line: &[u8],
    metadata: &[(Vec<u8>, Vec<u8>)],
) -> String {
    let metadata: Vec<String> =
        metadata.iter().map(|(n, v)| format!("{}={}", n.escape_ascii(), v.escape_ascii())).collect();
    format!("{id} {seq} {tenant} {{{labels}}} {timestamp} \"{}\" [{}]", line.escape_ascii(), metadata.join(","))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn golden() -> PathBuf {
    root().join("testdata/golden/v1")
}

fn golden_files() -> Vec<(u64, Vec<u8>)> {
    files_in(&golden().join("wal"))
}

fn files_in(dir: &Path) -> Vec<(u64, Vec<u8>)> {
    let mut files: Vec<(u64, Vec<u8>)> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| {
            let name = e.file_name().into_string().unwrap();
            let number = name.get(..20).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{name}"));
            (number, std::fs::read(e.path()).unwrap())
        })
        .collect();
    files.sort_by_key(|(number, _)| *number);
    files
}

fn expected(text: &str) -> Printed {
    text.lines().map(str::to_string).collect()
}

#[test]
fn a_stranger_reads_the_golden_log() {
    let text = std::fs::read_to_string(golden().join("lines.txt")).unwrap();
    assert_eq!(stranger::read(&golden_files(), &[]), expected(&text));
}

/// The crate's own reader, printed the same way.
fn by_the_crate(files: &[(u64, Vec<u8>)]) -> Printed {
    use timberline::wal::*;
    let summaries: Vec<Summary> =
        files.iter().map(|(n, b)| Summary::of(*n, &scan_segment(b).expect("a sound segment header"), b)).collect();
    let plan = plan(&summaries);
    let mut out = Printed::new();
    for (number, file) in files {
        let scan = scan_segment(file).unwrap();
        for record in plan.records(*number, &scan) {
            let tenant = Tables::decode(record.head.tables(file, record.offset)).unwrap().tenant.to_string();
            let mut lines = support::Lines::new();
            support::decode_record(&record, &file[record.offset as usize..], &mut lines);
            for ((id, seq), (timestamp, line, metadata)) in lines {
                let labels = plan.definitions[&id].labels.iter().map(|(n, v)| format!("{n}={v:?}"));
                let labels = labels.collect::<Vec<_>>().join(",");
                out.insert(print(id, seq, &tenant, &labels, timestamp, &line, &metadata));
            }
        }
    }
    out
}

#[test]
fn the_crate_reads_the_golden_log() {
    let text = std::fs::read_to_string(golden().join("lines.txt")).unwrap();
    assert_eq!(by_the_crate(&golden_files()), expected(&text));
}

#[test]
fn the_golden_log_holds_what_it_should() {
    use timberline::wal::{Summary, plan, scan_segment};
    let files = golden_files();
    let summaries: Vec<Summary> = files.iter().map(|(n, b)| Summary::of(*n, &scan_segment(b).unwrap(), b)).collect();
    let plan = plan(&summaries);
    assert!(plan.loss.is_empty() && plan.tail.is_empty());
    let void: usize = files
        .iter()
        .map(|(n, b)| {
            let all =
                scan_segment(b).unwrap().groups.iter().flat_map(|g| &g.records).filter(|r| r.head.kind == 2).count();
            all - plan.records(*n, &scan_segment(b).unwrap()).len()
        })
        .sum();
    assert!(void >= 2, "void records: of a failed write, and the originals of a rewritten tail; {void} found");
    assert_eq!(plan.gaps.len(), 1);
    assert!(!plan.empty.is_empty(), "a prepared segment");
    let text = std::fs::read_to_string(golden().join("lines.txt")).unwrap();
    for what in [" tenant-a ", " tenant-b ", "\"\" ", "\\xff", " -5 ", "é", "[k="] {
        assert!(text.contains(what), "{what}");
    }
}

const BEGIN: &str = "<!-- example -->\n";
const END: &str = "<!-- /example -->";

fn example() -> Vec<u8> {
    let text = std::fs::read_to_string(root().join("wal-format.md")).unwrap();
    let (_, rest) = text.split_once(BEGIN).unwrap();
    let (block, _) = rest.split_once(END).unwrap();
    let mut file = vec![0; 65_536];
    for line in block.lines().filter(|l| l.contains(':')) {
        let (offset, hex) = line.split_once(':').unwrap();
        let bytes = hex.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()).collect::<Vec<_>>();
        let at: usize = offset.trim().parse().unwrap();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    file
}

#[test]
fn both_readers_read_the_example_of_the_specification() {
    let files = [(1, example())];
    let want = expected(
        "1 0 demo {app=\"app-1\",zone=\"é\"} -1 \"one\" [k=v]\n\
         1 1 demo {app=\"app-1\",zone=\"é\"} 1700000000000000000 \"\" []\n\
         2 0 demo {app=\"app-2\",zone=\"é\"} 1700000000000000001 \"two\" [k=v]",
    );
    assert_eq!(stranger::read(&files, &[]), want);
    assert_eq!(by_the_crate(&files), want);
}

#[test]
fn a_stranger_reads_torn_and_damaged_logs_as_the_crate_does() {
    let files = golden_files();
    for (i, (_, file)) in files.iter().enumerate() {
        for at in (8192..file.len()).step_by(509).filter(|at| file[*at / 64 * 64..][..64].iter().any(|b| *b != 0)) {
            let mut damaged = files.clone();
            damaged[i].1[at] ^= 0x40;
            assert_eq!(stranger::read(&damaged, &[]), by_the_crate(&damaged), "byte {at} of segment {}", files[i].0);
        }
    }
}

/// Writes the golden log and the example anew: only when the format gets a new version.
#[test]
#[ignore = "rewrites testdata/golden and the example in wal-format.md"]
fn generate() {
    generate_golden();
    generate_blocks();
    generate_example();
}

/// Writes the golden log with blocks anew.
#[test]
#[ignore = "rewrites testdata/golden/v1-blocks"]
fn generate_with_blocks() {
    generate_blocks();
}

fn generate_golden() {
    use support::disk::{Call, ENOSPC, Fault, MemDisk};
    use support::{Log, dir, push};
    use timberline::wal::*;
    let k = |v: &str| vec![(b"k".to_vec(), v.as_bytes().to_vec())];
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let send = |log: &Log, n: u32, p: &support::Push, tenant: &str, codec| {
        log.send(n, p, tenant, codec).unwrap();
        log.outcome(n)
    };
    let durable = |o| assert!(matches!(o, support::Outcome::Durable { .. }), "{o:?}");
    let odd = vec![
        (1, vec![(-5, b"before 1970".to_vec(), k("v")), (7, Vec::new(), vec![]), (6, b"\xff\xfe\0".to_vec(), k("é"))]),
        (2, vec![(i64::MIN, b"first".to_vec(), vec![]), (i64::MAX, b"last".to_vec(), k(""))]),
    ];
    durable(send(&log, 0, &odd, "tenant-a", Codec::None));
    durable(send(&log, 1, &push(1, &[1, 2], 20), "tenant-a", Codec::Snappy));
    durable(send(&log, 2, &push(2, &[11], 20), "tenant-b", Codec::Zstd));
    // A write that fails with all of its bytes on disk: void.
    disk.fail(Fault { leaves: 1 << 20, name: segment_name(1), ..Fault::new(Call::Write, 0, ENOSPC) });
    assert!(matches!(send(&log, 3, &push(3, &[1], 2), "tenant-a", Codec::None), support::Outcome::Failed(_)));
    durable(send(&log, 4, &push(4, &[1], 2), "tenant-a", Codec::None));
    log.wal.stop();
    // A tail of three groups in a weaker mode, the first of them damaged: a Gap.
    let (log, _) = Log::mem(&disk, SyncMode::Os);
    for n in 5..8 {
        durable(send(&log, n, &push(n, &[1, 2], 2), "tenant-a", Codec::Snappy));
    }
    log.kill();
    let mut files = disk.after_kill().durable_files();
    let newest = files.iter_mut().rev().find(|(_, b)| !scan_segment(b).unwrap().groups.is_empty()).unwrap();
    let record = *scan_segment(&newest.1).unwrap().groups[0].records.last().unwrap();
    newest.1[record.offset as usize + 100] ^= 1;
    let disk = MemDisk::with_files(&dir(), &files);
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    assert_eq!(log.plan.tail.len(), 2);
    for n in 8..24 {
        durable(send(&log, n, &push(n, &[1, 2], 2), "tenant-a", Codec::Snappy));
    }
    log.wal.stop();
    let _ = std::fs::remove_dir_all(golden());
    std::fs::create_dir_all(golden().join("wal")).unwrap();
    let files = disk.durable_files();
    for (name, bytes) in &files {
        std::fs::write(golden().join("wal").join(name), bytes).unwrap();
    }
    let lines = by_the_crate(&golden_files());
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    std::fs::write(golden().join("lines.txt"), text).unwrap();
}

fn generate_example() {
    use support::Log;
    use support::disk::MemDisk;
    use timberline::wal::*;
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let k = || vec![(b"k".to_vec(), b"v".to_vec())];
    let t = 1_700_000_000_000_000_000;
    let p =
        vec![(1, vec![(-1, b"one".to_vec(), k()), (t, Vec::new(), vec![])]), (2, vec![(t + 1, b"two".to_vec(), k())])];
    log.send(0, &p, "demo", Codec::Snappy).unwrap();
    log.outcome(0);
    log.wal.stop();
    let file = &disk.durable_files()[0].1;
    let mut block = String::from("```\n");
    for (i, row) in file.chunks(16).enumerate().filter(|(_, row)| row.iter().any(|b| *b != 0)) {
        let hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
        block += &format!("{:5}: {}\n", i * 16, hex.join(" "));
    }
    block += "```\n";
    let path = root().join("wal-format.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    std::fs::write(path, format!("{before}{BEGIN}{block}{END}{after}")).unwrap();
}

#[test]
fn the_reader_of_the_stranger_uses_nothing_of_the_crate() {
    let text = std::fs::read_to_string(Path::new(file!())).or_else(|_| std::fs::read_to_string(root().join(file!())));
    let text = text.unwrap();
    let (_, rest) = text.split_once("mod stranger {").unwrap();
    let (module, _) = rest.split_once("\n}\n").unwrap();
    // Of the tests' own module it names the type of a line only.
    assert!(!module.contains("timberline") && !module.replace("super::support::Line", "").contains("support"));
}

fn golden_blocks() -> PathBuf {
    root().join("testdata/golden/v1-blocks")
}

fn golden_block_lines() -> Printed {
    expected(&std::fs::read_to_string(golden_blocks().join("lines.txt")).unwrap())
}

#[test]
fn a_stranger_reads_the_golden_log_with_blocks() {
    let (wal, blocks) = (files_in(&golden_blocks().join("wal")), files_in(&golden_blocks().join("blocks")));
    assert_eq!(stranger::read(&wal, &blocks), golden_block_lines());
}

/// The crate's own reader of both logs, printed the same way. `dir` holds `wal` and `blocks`.
fn both_by_the_crate(dir: &Path) -> Printed {
    use std::collections::BTreeMap;
    use timberline::chunk::{Block, BlockMeta, Encoding, Symbols};
    use timberline::wal::*;
    let recovered = recover(options_in(dir), &mut |_, _| {}).unwrap();
    let plan = &recovered.plan;
    let labels = |id: u64| {
        let definition = plan.definitions.get(&id)?;
        let labels = definition.labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect::<Vec<_>>();
        Some((definition.tenant.clone(), labels.join(",")))
    };
    let mut out = Printed::new();
    let mut settled: Vec<(u64, std::ops::Range<u64>)> = Vec::new();
    let mut flushed = BTreeSet::new();
    for hold in plan.contents.iter().flat_map(|c| &c.holds) {
        if let Hold::Flushed(f) = hold {
            flushed.insert((f.stream, f.chunk));
            settled.push((f.stream, f.first_seq..f.end_seq));
        }
    }
    let mut blocks: BTreeMap<(u64, u64), FoundBlock<'_>> = BTreeMap::new();
    for found in recovered.blocks().iter().filter(|b| !flushed.contains(&(b.tables.stream, b.tables.chunk))) {
        blocks.insert((found.tables.stream, found.tables.first_seq), found);
    }
    for FoundBlock { place, tables } in blocks.into_values() {
        let Ok(data) = recovered.block_store().read(place) else { continue };
        let Some((tenant, labels)) = labels(tables.stream) else { continue };
        let meta = BlockMeta {
            encoding: Encoding::from_code(tables.encoding).unwrap(),
            entries: tables.entries,
            min_timestamp: tables.min_timestamp,
            max_timestamp: tables.max_timestamp,
            uncompressed_size: tables.uncompressed_size,
            compressed_len: data.len() as u32,
            crc: tables.crc,
        };
        let mut symbols = Symbols::new();
        for (id, text) in tables.symbols.iter() {
            while symbols.len() < id as usize {
                symbols.push(b"");
            }
            symbols.push(text);
        }
        let bytes = |s: String| s.into_bytes();
        let entries = Block::from_stored(meta, data).unwrap().entries(&symbols).unwrap();
        let line = |e: timberline::model::LogEntry| -> support::Line {
            (e.timestamp, e.line.to_vec(), e.metadata.into_iter().map(|(n, v)| (bytes(n), bytes(v))).collect())
        };
        let lines: Vec<support::Line> = entries.into_iter().map(line).collect();
        print_block(tables.stream, &(tables.first_seq..tables.end_seq), &tenant, &labels, &lines, &mut out);
        settled.push((tables.stream, tables.first_seq..tables.end_seq));
    }
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    let mut apply = |record: &RecordRef, bytes: &[u8]| {
        let tenant = Tables::decode(record.head.tables(bytes, 0)).unwrap().tenant.to_string();
        let mut lines = support::Lines::new();
        support::decode_record(record, bytes, &mut lines);
        for ((id, seq), (timestamp, line, metadata)) in lines {
            let next = next.entry(id).or_default();
            if settled.iter().any(|(of, seqs)| *of == id && seqs.contains(&seq)) || seq < *next {
                continue;
            }
            *next = seq + 1;
            let (_, labels) = labels(id).unwrap();
            out.insert(print(id, seq, &tenant, &labels, timestamp, &line, &metadata));
        }
    };
    recovered.replay_carried(&mut apply).unwrap();
    recovered.replay(&mut apply).unwrap();
    out
}

fn options_in(dir: &Path) -> timberline::wal::WalOptions {
    let fs = std::sync::Arc::new(timberline::fs::RealFs);
    let mut options = support::options(fs, &dir.join("wal"), timberline::wal::SyncMode::Always);
    options.blocks.dir = dir.join("blocks");
    options
}

fn copy_golden_blocks() -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for part in ["wal", "blocks"] {
        std::fs::create_dir(to.path().join(part)).unwrap();
        for file in std::fs::read_dir(golden_blocks().join(part)).unwrap().flatten() {
            std::fs::copy(file.path(), to.path().join(part).join(file.file_name())).unwrap();
        }
    }
    to
}

#[test]
fn the_crate_reads_the_golden_log_with_blocks() {
    let dir = copy_golden_blocks();
    assert_eq!(both_by_the_crate(dir.path()), golden_block_lines());
}

#[test]
fn the_golden_log_with_blocks_holds_what_it_should() {
    let dir = copy_golden_blocks();
    let recovered = timberline::wal::recover(options_in(dir.path()), &mut |_, _| {}).unwrap();
    let (plan, found) = (&recovered.plan, recovered.blocks());
    assert!(plan.loss.is_empty() && found.damage.is_empty(), "{:?} {:?}", plan.loss, found.damage);
    let encodings: BTreeSet<u8> = found.iter().map(|b| b.tables.encoding).collect();
    assert_eq!(encodings, BTreeSet::from([1, 4]));
    assert!(plan.blocks.iter().any(|b| b.footer > 0) && plan.blocks.iter().any(|b| b.footer == 0), "{:?}", plan.blocks);
    assert_eq!(plan.carried.len(), 1);
    assert!(plan.first_live_segment > 1 && plan.retired_blocks.contains(&2), "retired segments of both logs");
    let flushed =
        plan.contents.iter().flat_map(|c| &c.holds).filter(|h| matches!(h, timberline::wal::Hold::Flushed(_)));
    assert_eq!(flushed.count(), 1);
    let text = std::fs::read_to_string(golden_blocks().join("lines.txt")).unwrap();
    assert!(text.lines().any(|l| l.starts_with("1 0-20.0 ")) && text.lines().any(|l| l.starts_with("4 4 ")), "{text}");
    assert!(!text.contains("xxxx") && !text.contains("\n4 3 "), "a flushed line, or a duplicate");
    let recycled = files_in(&dir.path().join("wal")).iter().any(|(_, f)| f[10] == 1);
    assert!(recycled, "a segment made from a retired one");
}

#[test]
fn a_stranger_reads_damaged_blocks_as_the_crate_does() {
    let dir = copy_golden_blocks();
    let wal = files_in(&dir.path().join("wal"));
    let blocks = files_in(&dir.path().join("blocks"));
    let whole = golden_block_lines();
    let mut fewer = 0;
    for (i, (number, file)) in blocks.iter().enumerate() {
        let path = dir.path().join("blocks").join(format!("{number:020}.blk"));
        for at in (0..file.len()).step_by(41).filter(|at| file[at / 64 * 64..][..64].iter().any(|b| *b != 0)) {
            let mut damaged = blocks.clone();
            damaged[i].1[at] ^= 0x40;
            std::fs::write(&path, &damaged[i].1).unwrap();
            let read = stranger::read(&wal, &damaged);
            assert_eq!(read, both_by_the_crate(dir.path()), "byte {at} of block segment {number}");
            fewer += usize::from(read != whole);
        }
        std::fs::write(&path, file).unwrap();
    }
    assert!(fewer > 10, "only {fewer} flipped bytes were seen");
}

/// Seals lines as a block of their stream.
fn sealed(
    log: &support::Log,
    (stream, chunk, first_seq): (u64, u64, u64),
    lines: &[support::Line],
    encoding: timberline::chunk::Encoding,
    symbols: &mut timberline::chunk::Symbols,
    closes: bool,
) {
    use timberline::chunk::{Block, Head};
    use timberline::wal::{BlockAppend, BlockTables, ChunkClosed};
    let mut head = Head::new();
    for (timestamp, line, metadata) in lines {
        let pairs: Vec<_> = metadata.iter().map(|(n, v)| (head.intern(n), head.intern(v))).collect();
        head.append(*timestamp, line, &pairs);
    }
    let (block, ids) = Block::seal_with_ids(&head, symbols, encoding);
    let meta = block.meta();
    let end_seq = first_seq + lines.len() as u64;
    let tables = BlockTables {
        stream,
        chunk,
        first_seq,
        end_seq,
        entries: meta.entries,
        min_timestamp: meta.min_timestamp,
        max_timestamp: meta.max_timestamp,
        newest_timestamp: meta.max_timestamp,
        last_timestamp: lines.last().unwrap().0,
        last_hash: 7,
        encoding: encoding.code(),
        uncompressed_size: meta.uncompressed_size,
        crc: meta.crc,
        symbols: ids.iter().map(|id| (*id, symbols.get(*id).unwrap())).collect(),
    };
    let closes = closes.then_some(ChunkClosed { stream, chunk, end_seq, reason: 1 });
    let stream = stream_log(stream, end_seq);
    log.blocks.append(BlockAppend { tables, data: block.data().clone(), stream, closes, lets_go: false, payload: 0 });
}

fn stream_log(id: u64, next_seq: u64) -> std::sync::Arc<timberline::wal::StreamLog> {
    use timberline::model::{LabelSet, Tenant};
    let labels = LabelSet::new([("app".to_string(), format!("app-{id}")), ("zone".into(), "é".into())]);
    let tenant = Tenant::new("tenant-a").unwrap();
    std::sync::Arc::new(timberline::wal::StreamLog::new(id, tenant, std::sync::Arc::new(labels), next_seq))
}

/// Waits until so many blocks count.
fn wait_for_blocks(dir: &Path, count: usize) {
    for _ in 0..500 {
        let recovered = timberline::wal::recover(options_in(dir), &mut |_, _| {}).unwrap();
        if recovered.blocks().len() >= count {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{count} blocks do not come to count");
}

fn generate_blocks() {
    use support::{Log, Outcome, push};
    use timberline::chunk::{Encoding, Symbols};
    use timberline::wal::*;
    let data = tempfile::tempdir().unwrap();
    for part in ["wal", "blocks"] {
        std::fs::create_dir(data.path().join(part)).unwrap();
    }
    let open = || Log::open(options_in(data.path()), None).unwrap().0;
    let send = |log: &Log, n: u32, p: &support::Push| assert!(matches!(log.push(n, p), Outcome::Durable { .. }));
    let log = open();
    let first = push(0, &[1, 2], 20);
    send(&log, 0, &first);
    let mut small = push(1, &[4], 6);
    small[0].1[3] = small[0].1[2].clone();
    send(&log, 1, &small);
    let mut symbols = Symbols::new();
    sealed(&log, (1, 0, 0), &first[0].1, Encoding::Snappy, &mut symbols, false);
    sealed(&log, (2, 0, 0), &first[1].1, Encoding::Gzip, &mut Symbols::new(), true);
    wait_for_blocks(data.path(), 2);
    // So large that it gets a segment of its own, and finishes the one before. Flushed at once.
    let large = vec![(3, vec![(5, vec![b'x'; 1 << 20], vec![])])];
    send(&log, 2, &large);
    sealed(&log, (3, 0, 0), &large[0].1, Encoding::None, &mut Symbols::new(), true);
    wait_for_blocks(data.path(), 3);
    let key = "tenant-a/1".to_string();
    let flushed = ChunkFlushed { stream: 3, chunk: 0, first_seq: 0, end_seq: 1, key };
    log.wal.decide(vec![Decision::ChunkFlushed(flushed)]).unwrap();
    log.blocks.stop();
    log.wal.retire(0, vec![2], vec![]).unwrap();
    log.wal.stop();
    drop(log);

    let log = open();
    let second = push(3, &[1, 2], 10);
    send(&log, 3, &second);
    sealed(&log, (1, 0, 20), &second[0].1, Encoding::Snappy, &mut symbols, false);
    wait_for_blocks(data.path(), 3);
    // The head of stream 4, so that the first segment can go. One of its lines was a duplicate.
    let mut builder = EntriesBuilder::new(0);
    for run in [0..3, 4..6] {
        builder.stream(4);
        for (timestamp, line, metadata) in &small[0].1[run] {
            builder.entry(*timestamp, line, metadata.iter().map(|(n, v)| (&n[..], &v[..])));
        }
    }
    let record = builder.finish_carried("tenant-a", Codec::Snappy, &[0, 4]);
    let streams = vec![stream_log(4, 6), stream_log(4, 6)];
    log.wal.decide(vec![Decision::Carried { record, streams }]).unwrap();
    log.wal.retire(2, vec![], vec![]).unwrap();
    // Through a few segments, so that the retired one is used again.
    for n in 4..64 {
        send(&log, n, &push(n, &[[1, 2, 4][n as usize % 3]], 1));
    }
    log.blocks.stop();
    log.wal.stop();
    drop(log);
    let _ = std::fs::remove_dir_all(golden_blocks());
    for part in ["wal", "blocks"] {
        std::fs::create_dir_all(golden_blocks().join(part)).unwrap();
        for file in std::fs::read_dir(data.path().join(part)).unwrap().flatten() {
            if !file.file_name().to_string_lossy().ends_with(".tmp") {
                let bytes = std::fs::read(file.path()).unwrap();
                std::fs::write(golden_blocks().join(part).join(file.file_name()), bytes).unwrap();
            }
        }
    }
    let text: String = both_by_the_crate(data.path()).iter().map(|l| format!("{l}\n")).collect();
    std::fs::write(golden_blocks().join("lines.txt"), text).unwrap();
}
