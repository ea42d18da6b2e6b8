//! `format`: constants and layouts of the logs on one screen. Where fields lie is found by encoding structures that differ in one
//! field, so this cannot differ from the code that writes the logs.

use super::command::Context;
use super::output::{Cell, Row, Shape};
use crate::wal::format::{
    BLOCKS_MAGIC, FIRST_GROUP, FLAG_CARRIED, FLAG_SKIPPABLE, GROUP_ALIGN, GROUP_MAGIC, GroupHeader, Kind, MAGIC,
    MAX_RECORD_LEN, RECORD_ALIGN, RECORD_HEAD_LEN, RecordHead, SECOND_HEADER, SegmentHeader, VERSION,
};
use crate::wal::{BlockTables, Codec, LogKind, TableRow};
use std::io::{self, Write};
use std::ops::Range;
use uuid::Uuid;

/// Bytes of the checksum at the end of a header or head.
const CRC_LEN: usize = 4;

/// A structure whose fields are found.
struct Layout {
    name: &'static str,
    len: usize,
    /// Field and bytes, in the order of the bytes.
    fields: Vec<(&'static str, Range<usize>)>,
}

impl Layout {
    /// `plain` is the structure with all fields at zero, each of `fields` the same with all bits of one field set. `constants` lie
    /// in it in this order. What proves the structure, `crc` bytes at its end, differs in each.
    fn new(
        name: &'static str,
        plain: &[u8],
        constants: &[(&'static str, &[u8])],
        fields: &[(&'static str, Vec<u8>)],
        crc: usize,
    ) -> Self {
        let len = plain.len();
        let mut found: Vec<(&'static str, Range<usize>)> = Vec::new();
        for (name, bytes) in constants {
            let behind = found.last().map_or(0, |(_, before)| before.end);
            let rest = plain.get(behind..).unwrap_or_default();
            let at = rest.windows(bytes.len()).position(|w| w == *bytes);
            found.extend(at.map(|at| (*name, behind + at..behind + at + bytes.len())));
        }
        found.extend(fields.iter().map(|(name, ones)| (*name, differing(plain, ones, len - crc))));
        found.sort_by_key(|(_, bytes)| bytes.start);
        found.extend((crc > 0).then_some(("crc", len - crc..len)));
        Self { name, len, fields: found }
    }

    /// Each field with its offset and bytes.
    fn texts(&self) -> Vec<(String, String)> {
        self.fields.iter().map(|(name, at)| (name.to_string(), format!("{}+{}", at.start, at.len()))).collect()
    }
}

/// The first to the last of the first `end` bytes that differ.
fn differing(zero: &[u8], ones: &[u8], end: usize) -> Range<usize> {
    let differs = |at: &usize| zero.get(*at) != ones.get(*at);
    let first = (0..end).find(differs).unwrap_or(end);
    first..(first..end).rfind(differs).map_or(first, |last| last + 1)
}

fn segment_header() -> Layout {
    let zero =
        SegmentHeader { log: LogKind::Wal, number: 0, file_len: 0, salt: 0, volume: Uuid::nil(), recycled: false };
    let of = |header: SegmentHeader| header.encode(0).to_vec();
    let constants: [(&str, &[u8]); 2] = [("magic", &MAGIC), ("version", &VERSION.to_le_bytes())];
    let fields = [
        ("flags", of(SegmentHeader { recycled: true, ..zero })),
        ("volume", of(SegmentHeader { volume: Uuid::max(), ..zero })),
        ("segment", of(SegmentHeader { number: u64::MAX, ..zero })),
        ("file_len", of(SegmentHeader { file_len: u64::MAX, ..zero })),
        ("salt", of(SegmentHeader { salt: u64::MAX, ..zero })),
    ];
    Layout::new("segment header", &of(zero), &constants, &fields, CRC_LEN)
}

fn group_header() -> Layout {
    let zero = GroupHeader::default();
    let of = |header: GroupHeader| header.encode(0, 0).to_vec();
    let fields = [
        ("len", of(GroupHeader { len: u32::MAX, ..zero })),
        ("segment", of(GroupHeader { segment: u64::MAX, ..zero })),
        ("first_lsn", of(GroupHeader { first_lsn: u64::MAX, ..zero })),
        ("records", of(GroupHeader { records: u32::MAX, ..zero })),
        ("lsns", of(GroupHeader { lsns: u32::MAX, ..zero })),
        ("durable_lsn", of(GroupHeader { durable_lsn: u64::MAX, ..zero })),
        ("lines_before", of(GroupHeader { lines_before: u64::MAX, ..zero })),
        ("wall_clock", of(GroupHeader { wall_clock: -1, ..zero })),
    ];
    Layout::new("group header", &of(zero), &[("magic", &GROUP_MAGIC)], &fields, CRC_LEN)
}

fn record_head() -> Layout {
    let zero = RecordHead {
        len: 0,
        kind: 0,
        flags: 0,
        codec: 0,
        lsn: 0,
        segment: 0,
        tables_len: 0,
        body_len: 0,
        raw_len: 0,
        body_crc: 0,
    };
    let of = |head: RecordHead| {
        let mut bytes = vec![0; RECORD_HEAD_LEN];
        head.stamp(&mut bytes, 0, 0);
        bytes
    };
    let fields = [
        ("len", of(RecordHead { len: u32::MAX, ..zero })),
        ("kind", of(RecordHead { kind: u8::MAX, ..zero })),
        ("flags", of(RecordHead { flags: u8::MAX, ..zero })),
        ("codec", of(RecordHead { codec: u8::MAX, ..zero })),
        ("lsn", of(RecordHead { lsn: u64::MAX, ..zero })),
        ("segment", of(RecordHead { segment: u64::MAX, ..zero })),
        ("tables_len", of(RecordHead { tables_len: u32::MAX, ..zero })),
        ("body_len", of(RecordHead { body_len: u32::MAX, ..zero })),
        ("raw_len", of(RecordHead { raw_len: u32::MAX, ..zero })),
        ("body_crc", of(RecordHead { body_crc: u32::MAX, ..zero })),
    ];
    Layout::new("record head", &of(zero), &[], &fields, CRC_LEN)
}

fn entries_row() -> Layout {
    let zero = TableRow { stream: 0, first_seq: 0, count: 0, part_len: 0 };
    let of = |row: TableRow| row.encode().to_vec();
    let fields = [
        ("stream", of(TableRow { stream: u64::MAX, ..zero })),
        ("first_seq", of(TableRow { first_seq: u64::MAX, ..zero })),
        ("count", of(TableRow { count: u32::MAX, ..zero })),
        ("part_len", of(TableRow { part_len: u32::MAX, ..zero })),
    ];
    Layout::new("row of entries", &of(zero), &[], &fields, 0)
}

fn block_tables() -> Layout {
    let zero = BlockTables::default;
    let of = |tables: BlockTables| tables.encode();
    let fields = [
        ("stream", of(BlockTables { stream: u64::MAX, ..zero() })),
        ("chunk", of(BlockTables { chunk: u64::MAX, ..zero() })),
        ("first_seq", of(BlockTables { first_seq: u64::MAX, ..zero() })),
        ("end_seq", of(BlockTables { end_seq: u64::MAX, ..zero() })),
        ("min_timestamp", of(BlockTables { min_timestamp: -1, ..zero() })),
        ("max_timestamp", of(BlockTables { max_timestamp: -1, ..zero() })),
        ("newest_timestamp", of(BlockTables { newest_timestamp: -1, ..zero() })),
        ("last_timestamp", of(BlockTables { last_timestamp: -1, ..zero() })),
        ("last_hash", of(BlockTables { last_hash: u128::MAX, ..zero() })),
        ("uncompressed_size", of(BlockTables { uncompressed_size: u64::MAX, ..zero() })),
        ("lines", of(BlockTables { entries: u32::MAX, ..zero() })),
        ("block_crc", of(BlockTables { crc: u32::MAX, ..zero() })),
        ("encoding", of(BlockTables { encoding: u8::MAX, ..zero() })),
    ];
    Layout::new("tables of block", &of(zero()), &[], &fields, 0)
}

fn constants() -> [(&'static str, Cell); 13] {
    let text = |bytes: &[u8]| Cell::from(String::from_utf8_lossy(bytes).into_owned());
    let codecs = [(Codec::None, "none"), (Codec::Snappy, "snappy"), (Codec::Zstd, "zstd")];
    let codecs = codecs.map(|(codec, name)| (name.to_string(), (codec as u8).to_string()));
    [
        ("version", Cell::Count(VERSION.into())),
        ("magic_wal", text(&MAGIC)),
        ("magic_blocks", text(&BLOCKS_MAGIC)),
        ("magic_group", text(&GROUP_MAGIC)),
        ("second_header", SECOND_HEADER.into()),
        ("first_group", FIRST_GROUP.into()),
        ("group_align", GROUP_ALIGN.into()),
        ("record_align", RECORD_ALIGN.into()),
        ("largest_record", MAX_RECORD_LEN.into()),
        ("flag_may_be_skipped", Cell::Count(FLAG_SKIPPABLE.into())),
        ("flag_carried", Cell::Count(FLAG_CARRIED.into())),
        ("codecs", Cell::Pairs(codecs.to_vec())),
        ("checksum", "crc32 of the structure, its salt and its offset; little-endian".into()),
    ]
}

/// Prints all of it.
///
/// # Errors
/// As the printer.
pub fn run<W: Write>(context: &mut Context<W>) -> io::Result<()> {
    let printer = &mut context.printer;
    printer.section("format", Shape::One)?;
    printer.row(&constants().to_vec())?;
    printer.section("layouts", Shape::Many)?;
    for layout in [segment_header(), group_header(), record_head(), entries_row(), block_tables()] {
        let (fields, bytes) = (Cell::Pairs(layout.texts()), Cell::Count(layout.len as u64));
        printer.row(&vec![("structure", layout.name.into()), ("bytes", bytes), ("fields", fields)])?;
    }
    printer.section("kinds", Shape::Many)?;
    let kinds = (0..=u8::MAX).filter_map(|n| Some((n, Kind::from_u8(n)?)));
    kinds.map(|(number, kind)| kind_row(number, kind)).try_for_each(|row| printer.row(&row))
}

fn kind_row(number: u8, kind: Kind) -> Row {
    let flags = if kind == Kind::Entries { "carried" } else { "" };
    vec![
        ("kind", Cell::Count(number.into())),
        ("name", kind.name().into()),
        ("lsn", if kind.has_lsn() { "its own" } else { "none" }.into()),
        ("flags", if flags.is_empty() { Cell::None } else { flags.into() }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification has the same offsets, in a table that a person wrote.
    #[test]
    fn layouts_are_those_of_the_specification() {
        let text = include_str!("../../wal-format.md");
        let tables = [
            ("**Segment header** (64 bytes):", segment_header()),
            ("A group is a 64-byte header", group_header()),
            ("It is a head of 48 bytes", record_head()),
        ];
        for (before, layout) in tables {
            let section = text.split(before).nth(1).unwrap();
            let table = section.lines().skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|'));
            let used = table.filter(|l| !l.contains("reserved"));
            let offsets: Vec<usize> = used.filter_map(|l| l.split('|').nth(1)?.trim().parse().ok()).collect();
            let found: Vec<usize> = layout.fields.iter().map(|(_, bytes)| bytes.start).collect();
            assert_eq!(found, offsets, "{}", layout.name);
        }
        assert_eq!(entries_row().len, 24);
        let hash = block_tables().fields.into_iter().find(|(name, _)| *name == "last_hash");
        assert_eq!(hash, Some(("last_hash", 64..80)));
    }

    #[test]
    fn fields_do_not_overlap() {
        for layout in [segment_header(), group_header(), record_head(), entries_row(), block_tables()] {
            for pair in layout.fields.windows(2) {
                assert!(pair[0].1.end <= pair[1].1.start && !pair[0].1.is_empty(), "{}: {pair:?}", layout.name);
            }
        }
    }
}
