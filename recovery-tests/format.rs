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
    use std::collections::BTreeMap;

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
    }

    impl<'a> Segment<'a> {
        fn read(name: u64, file: &'a [u8]) -> Option<Self> {
            let copy = |offset: usize| {
                let mut b = at(file, offset, 64)?;
                let place = (offset as u64).to_le_bytes();
                let sound = crc(&[file.get(offset..offset + 60)?, &place]) == at(file, offset + 60, 4)?.le(4)?;
                let magic = b.take(8)? == b"TMBRWAL1";
                let version = b.le(2)?;
                b.take(6 + 16)?;
                (sound && magic && version == 1).then_some((b.le(8)?, b.le(8)?, b.le(8)?))
            };
            let (number, len, salt) = copy(0).or_else(|| copy(4096))?;
            let file = file.get(..len as usize).unwrap_or(file);
            let mut segment = Segment {
                number,
                salt,
                file,
                records: vec![],
                durable: 0,
                open: None,
                whole: false,
                has_content: false,
            };
            if number != name {
                return None;
            }
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
                    self.has_content = true;
                    let mut end = offset + 4096;
                    while end < self.file.len() && self.group(end).is_none() {
                        end += 4096;
                    }
                    self.records(offset, end.min(self.file.len()));
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
            let (len, kind) = (b.le(4)? as usize, b.le(1)?);
            b.le(1)?;
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
            Some((len, body.map(|body| Record { kind, lsn, tables, body })))
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
        Some(Open { first_lsn, previous, tail_end: b.int()? })
    }

    /// Stream id → tenant and labels.
    fn read_series(body: &[u8], out: &mut BTreeMap<u64, (String, String)>) -> Option<()> {
        let mut b = Bytes(body);
        for _ in 0..b.int()? {
            let (id, tenant) = (b.int()?, b.string()?);
            let mut labels = Vec::new();
            for _ in 0..b.int()? {
                labels.push(format!("{}={:?}", b.string()?, b.string()?));
            }
            let (_, _, _) = (b.int()?, b.int()?, b.int()?);
            out.insert(id, (tenant, labels.join(",")));
        }
        b.0.is_empty().then_some(())
    }

    /// Section 5.1.
    fn read_entries(record: &Record<'_>, names: &BTreeMap<u64, (String, String)>, out: &mut Printed) -> Option<()> {
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
                let (of, labels) = names.get(&id)?;
                assert_eq!(of, tenant);
                let fresh = out.insert(super::print(id, seq, tenant, labels, timestamp, line, &metadata));
                assert!(fresh, "a line twice");
            }
            assert!(part.0.is_empty());
        }
        Some(())
    }

    /// Section 6.
    pub fn read(files: &[(u64, Vec<u8>)]) -> Printed {
        let segments: Vec<Segment<'_>> = files.iter().filter_map(|(n, f)| Segment::read(*n, f)).collect();
        let used: Vec<&Segment<'_>> = segments.iter().filter(|s| s.has_content).collect();
        let told = used.iter().map(|s| s.durable);
        let opened = used.iter().filter_map(|s| s.open.as_ref()?.previous).map(|(_, end)| end);
        let durable = told.chain(opened).max().unwrap_or(0);
        let mut names = BTreeMap::new();
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
        let mut out = Printed::new();
        for record in by_lsn.values().filter(|r| r.kind == 2) {
            read_entries(record, &names, &mut out).expect("a sound record decodes");
        }
        out
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
    let mut files: Vec<(u64, Vec<u8>)> = std::fs::read_dir(golden().join("wal"))
        .unwrap()
        .flatten()
        .map(|e| {
            let name = e.file_name().into_string().unwrap();
            let number = name.strip_suffix(".wal").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{name}"));
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
    assert_eq!(stranger::read(&golden_files()), expected(&text));
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
            support::decode_record(&record, file, &mut lines);
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
    assert_eq!(stranger::read(&files), want);
    assert_eq!(by_the_crate(&files), want);
}

#[test]
fn a_stranger_reads_torn_and_damaged_logs_as_the_crate_does() {
    let files = golden_files();
    for (i, (_, file)) in files.iter().enumerate() {
        for at in (8192..file.len()).step_by(509).filter(|at| file[*at / 64 * 64..][..64].iter().any(|b| *b != 0)) {
            let mut damaged = files.clone();
            damaged[i].1[at] ^= 0x40;
            assert_eq!(stranger::read(&damaged), by_the_crate(&damaged), "byte {at} of segment {}", files[i].0);
        }
    }
}

/// Writes the golden log and the example anew: only when the format gets a new version.
#[test]
#[ignore = "rewrites testdata/golden/v1 and the example in wal-format.md"]
fn generate() {
    generate_golden();
    generate_example();
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
    assert!(!module.contains("timberline") && !module.contains("support"));
}
