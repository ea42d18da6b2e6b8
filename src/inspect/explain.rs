//! `explain`: one structure of a segment field by field, as its bytes lie there, believed or not.

use super::cli::Dirs;
use super::command::Context;
use super::error::InspectError;
use super::log::{Log, read_path};
use super::output::{Cell, Row, Shape, hex, rfc3339};
use crate::codec::crc32;
use crate::wal::format::{
    FIRST_GROUP, GROUP_HEADER_LEN, HeaderError, Kind, RECORD_HEAD_LEN, SECOND_HEADER, SEGMENT_HEADER_LEN,
    SegmentHeader, VERSION,
};
use crate::wal::{BlockTables, Cut, LogKind, decompress_body, file_name, file_number, scan_segment};
use crate::wal::{BlocksSynced, BodyError, ChunkClosed, ChunkFlushed, Footer, Gap, Open, Part, RecordHead, Retiring};
use crate::wal::{SegmentScan, SeriesDef, Tables, decode_control};
use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Rows of a table that are shown; the rest is counted.
const MAX_LISTED: usize = 200;

/// A file and an offset in it, written `FILE:OFFSET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A path, a file name in the log, or the number of a segment.
    pub file: String,
    /// Byte offset.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected FILE:OFFSET, such as 00000000000000000007.wal:8256 or 7:8256".to_string();
        let (file, offset) = text.rsplit_once(':').filter(|(file, _)| !file.is_empty()).ok_or_else(wrong)?;
        Ok(Self { file: file.to_string(), offset: offset.parse().map_err(|_| wrong())? })
    }
}

/// Explains what lies at a place; `true` if it is sound.
///
/// # Errors
/// The file cannot be read, the place lies outside it or in zeros, or the output cannot be written.
pub fn run<W: Write>(place: &Place, dirs: &Dirs, context: &mut Context<W>) -> Result<bool, InspectError> {
    let path = path_of(place, LogKind::Wal, dirs)?;
    let gone = || InspectError::io("open", &path)(io::ErrorKind::NotFound.into());
    let file = read_path(&path)?.ok_or_else(gone)?;
    if place.offset >= file.len() as u64 {
        let what = format!("{} ends at offset {}", path.display(), file.len());
        return Err(InspectError::Usage(what));
    }
    let mut explained = explain(&file, place.offset, &path)?;
    explained
        .fields
        .insert(0, Field { offset: explained.at, bytes: 0..0, name: "structure", value: explained.what.into() });
    let rows = explained.fields.iter().map(|f| f.row(&file));
    let mut print = || {
        context.printer.section("fields", Shape::Many)?;
        rows.clone().try_for_each(|row| context.printer.row(&row))
    };
    print().map_err(InspectError::Output)?;
    Ok(explained.sound)
}

/// The file of a place; a number is a segment of `log`.
pub(super) fn path_of(place: &Place, log: LogKind, dirs: &Dirs) -> Result<PathBuf, InspectError> {
    if let Ok(number) = place.file.parse::<u64>() {
        let at = Log::open(dirs)?;
        return Ok(if log == LogKind::Blocks { at.blocks_dir } else { at.dir }.join(file_name(log, number)));
    }
    let path = PathBuf::from(&place.file);
    if path.exists() || place.file.contains('/') {
        return Ok(path);
    }
    let log = Log::open(dirs)?;
    let of_blocks = file_number(LogKind::Blocks, &place.file).is_some();
    Ok(if of_blocks { log.blocks_dir } else { log.dir }.join(path))
}

/// One field: where its bytes lie and what they mean.
struct Field {
    offset: u64,
    bytes: Range<u64>,
    name: &'static str,
    value: Cell,
}

impl Field {
    fn row(&self, file: &[u8]) -> Row {
        let raw = slice(file, self.bytes.clone());
        vec![
            ("offset", self.offset.into()),
            ("field", self.name.into()),
            ("value", self.value.clone()),
            ("hex", if raw.is_empty() { Cell::None } else { hex(raw).into() }),
        ]
    }
}

struct Explained {
    what: &'static str,
    at: u64,
    fields: Vec<Field>,
    sound: bool,
}

fn slice(file: &[u8], bytes: Range<u64>) -> &[u8] {
    let range = usize::try_from(bytes.start).ok().zip(usize::try_from(bytes.end).ok());
    range.and_then(|(start, end)| file.get(start..end.min(file.len()))).unwrap_or_default()
}

fn explain(file: &[u8], offset: u64, path: &Path) -> Result<Explained, InspectError> {
    let segment = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let scan = match scan_segment(file) {
        Err(HeaderError::Version(version)) => return Err(InspectError::Version { segment, version }),
        Ok(scan) if offset >= FIRST_GROUP => scan,
        // Without a segment header nothing else can be checked.
        Ok(_) | Err(_) => {
            let at = if (SECOND_HEADER..FIRST_GROUP).contains(&offset) { SECOND_HEADER } else { 0 };
            return Ok(segment_header(file, at));
        }
    };
    let group = scan.groups.iter().find(|g| (g.offset..g.end).contains(&offset));
    let nothing = |near: u64| {
        let what =
            format!("nothing but zeros lies at offset {offset} of {segment}; the structure before it is at {near}");
        InspectError::Usage(what)
    };
    let Some(group) = group else {
        return Err(nothing(scan.groups.iter().rfind(|g| g.end <= offset).map_or(0, |g| g.offset)));
    };
    let holds = |at: u64, len: u32| (at..at + u64::from(len)).contains(&offset);
    if let Some(record) = group.records.iter().find(|r| holds(r.offset, r.head.len)) {
        return Ok(record_fields(file, record.offset, &scan));
    }
    if let Some(damage) = group.damage.iter().find(|d| d.bytes.contains(&offset)) {
        return Ok(match damage.part {
            Part::GroupHeader => group_header(file, damage.bytes.start, &scan.header),
            _ => record_fields(file, damage.bytes.start, &scan),
        });
    }
    if offset < group.offset + GROUP_HEADER_LEN as u64 {
        return Ok(group_header(file, group.offset, &scan.header));
    }
    Err(nothing(group.records.iter().rfind(|r| r.offset <= offset).map_or(group.offset, |r| r.offset)))
}

/// Reads little-endian fields one after the other and notes where they lie. Bytes past the end of the file are zero.
struct Fields<'a> {
    file: &'a [u8],
    at: u64,
    fields: Vec<Field>,
}

impl<'a> Fields<'a> {
    fn new(file: &'a [u8], at: u64) -> Self {
        Self { file, at, fields: Vec::new() }
    }

    fn push(&mut self, name: &'static str, len: u64, value: Cell) {
        let bytes = self.at..self.at.saturating_add(len);
        self.fields.push(Field { offset: self.at, bytes, name, value });
        self.at = self.at.saturating_add(len);
    }

    fn peek(&self, len: u64) -> u64 {
        let bytes = slice(self.file, self.at..self.at.saturating_add(len)).iter().take(8);
        bytes.rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
    }

    fn number(&mut self, name: &'static str, len: u64) -> u64 {
        let value = self.peek(len);
        self.push(name, len, Cell::Count(value));
        value
    }

    fn named(&mut self, name: &'static str, len: u64, text: impl FnOnce(u64) -> String) -> u64 {
        let value = self.peek(len);
        self.push(name, len, text(value).into());
        value
    }

    fn ascii(&mut self, name: &'static str, len: u64) {
        let text = String::from_utf8_lossy(slice(self.file, self.at..self.at + len)).into_owned();
        self.push(name, len, text.into());
    }

    /// Compares a stored CRC with the computed one; `true` if they are equal.
    fn crc(&mut self, name: &'static str, computed: u32) -> bool {
        let stored = self.peek(4);
        let sound = stored == u64::from(computed);
        self.push(name, 4, crc_text(stored as u32, computed).into());
        sound
    }

    /// A line without bytes of its own.
    fn note(&mut self, name: &'static str, value: impl Into<Cell>) {
        self.fields.push(Field { offset: self.at, bytes: 0..0, name, value: value.into() });
    }
}

fn crc_text(stored: u32, computed: u32) -> String {
    let verdict = if stored == computed { "ok" } else { "MISMATCH" };
    format!("{stored:08x} stored, {computed:08x} computed: {verdict}")
}

fn segment_header(file: &[u8], at: u64) -> Explained {
    let mut f = Fields::new(file, at);
    f.ascii("magic", 8);
    let version = f.number("version", 2);
    f.number("reserved", 6);
    let volume = uuid::Uuid::from_slice(slice(file, f.at..f.at + 16)).unwrap_or_default();
    f.push("volume", 16, volume.to_string().into());
    f.number("segment", 8);
    f.number("file_len", 8);
    f.named("salt", 8, |salt| format!("{salt:016x}"));
    f.number("reserved", 4);
    let covered = slice(file, at..at + SEGMENT_HEADER_LEN as u64 - 4);
    let sound = f.crc("crc", crc32(&[covered, &at.to_le_bytes()])) && version == u64::from(VERSION);
    let what = if at == 0 { "segment header, first copy" } else { "segment header, second copy" };
    Explained { what, at, fields: f.fields, sound }
}

fn group_header(file: &[u8], at: u64, segment: &SegmentHeader) -> Explained {
    let mut f = Fields::new(file, at);
    f.ascii("magic", 4);
    f.number("len", 4);
    f.number("segment", 8);
    f.number("first_lsn", 8);
    f.number("records", 4);
    f.number("lsns", 4);
    f.number("durable_lsn", 8);
    f.number("lines_before", 8);
    f.named("wall_clock", 8, |ns| rfc3339(ns as i64));
    f.number("reserved", 4);
    let covered = slice(file, at..at + GROUP_HEADER_LEN as u64 - 4);
    let sound = f.crc("crc", crc32(&[covered, &segment.salt.to_le_bytes(), &at.to_le_bytes()]));
    Explained { what: "group header", at, fields: f.fields, sound }
}

fn record_fields(file: &[u8], at: u64, scan: &SegmentScan) -> Explained {
    let mut f = Fields::new(file, at);
    let len = f.number("len", 4);
    let kind = f.named("kind", 1, kind_text);
    f.number("flags", 1);
    f.named("codec", 1, codec_text);
    f.number("reserved", 1);
    f.number("lsn", 8);
    f.number("segment", 8);
    let tables_len = f.number("tables_len", 4);
    let body_len = f.number("body_len", 4);
    f.number("raw_len", 4);
    let tables_at = at + RECORD_HEAD_LEN as u64;
    let body_at = tables_at.saturating_add(tables_len);
    let body = slice(file, body_at..body_at.saturating_add(body_len));
    let body_sound = f.crc("body_crc", crc32(&[body]));
    f.number("reserved", 4);
    let covered = slice(file, at..at + RECORD_HEAD_LEN as u64 - 4);
    let tables = slice(file, tables_at..body_at);
    let place = [&scan.header.salt.to_le_bytes()[..], &at.to_le_bytes()[..]].concat();
    let head_sound = f.crc("head_crc", crc32(&[covered, &place, tables]));
    let head = RecordHead::decode(file, at, at.saturating_add(len), &scan.header);
    let mut sound = head_sound && body_sound && head.is_some();
    if let Some(head) = head {
        if kind == Kind::Entries as u64 {
            sound &= table_fields(&mut f, file, at, &head);
        }
        if kind == Kind::Block as u64 {
            sound &= block_fields(&mut f, file, at, &head);
        }
        f.push("body", 0, format!("{body_len} bytes").into());
        if body_sound {
            sound &= body_fields(&mut f, &head, body);
        }
    }
    Explained { what: "record", at, fields: f.fields, sound }
}

fn kind_text(kind: u64) -> String {
    u8::try_from(kind).ok().and_then(Kind::from_u8).map_or("unknown", Kind::name).to_string() + &format!(" ({kind})")
}

fn codec_text(codec: u64) -> String {
    let name = match codec {
        0 => "none",
        1 => "snappy",
        2 => "zstd",
        _ => "unknown",
    };
    format!("{name} ({codec})")
}

/// Tenant and stream table of an Entries record; `false` if they do not decode.
fn table_fields(f: &mut Fields<'_>, file: &[u8], at: u64, head: &RecordHead) -> bool {
    let tables = match Tables::decode(head.tables(file, at)) {
        Ok(tables) => tables,
        Err(error) => {
            f.note("tables", format!("do not decode: {error}"));
            return false;
        }
    };
    let tenant_len = f.number("tenant_len", 2);
    f.ascii("tenant", tenant_len);
    let extension_len = f.number("extension_len", 4);
    let extension = match Cut::find(tables.extension) {
        Some(cut) => format!(
            "cut: parts from byte {} of the body, stored at {}; symbols from byte {}, stored at {}",
            cut.parts, cut.stored_parts, cut.symbols, cut.stored_symbols
        ),
        None => format!("{extension_len} bytes"),
    };
    f.push("extension", extension_len, extension.into());
    f.number("streams", 4);
    for row in tables.rows.iter().take(MAX_LISTED) {
        let text = format!(
            "stream {}: seqs {} to {} (end), {} bytes of the body",
            row.stream,
            row.first_seq,
            row.first_seq.saturating_add(row.count.into()),
            row.part_len
        );
        f.push("row", 24, text.into());
    }
    f.at = at + (RECORD_HEAD_LEN as u64) + u64::from(head.tables_len);
    more(f, tables.rows.len());
    true
}

/// Tables of a block; `false` if they do not decode. Its symbols are counted only: they are metadata of lines.
fn block_fields(f: &mut Fields<'_>, file: &[u8], at: u64, head: &RecordHead) -> bool {
    let tables = match BlockTables::decode(head.tables(file, at)) {
        Ok(tables) => tables,
        Err(error) => {
            f.note("tables", format!("do not decode: {error}"));
            return false;
        }
    };
    f.number("stream", 8);
    f.number("chunk", 8);
    f.number("first_seq", 8);
    f.number("end_seq", 8);
    for name in ["min_timestamp", "max_timestamp", "newest_timestamp", "last_timestamp"] {
        f.named(name, 8, |ns| rfc3339(ns as i64));
    }
    f.push("last_hash", 16, format!("{:032x}", tables.last_hash).into());
    f.number("uncompressed_size", 8);
    f.number("lines", 4);
    f.named("block_crc", 4, |crc| format!("{crc:08x}"));
    f.number("encoding", 4);
    f.number("symbols", 4);
    f.at = at + (RECORD_HEAD_LEN as u64) + u64::from(head.tables_len);
    true
}

/// What a body says, by name. Lines are printed by `dump` and `get` only.
///
/// # Errors
/// It does not decode.
pub(super) fn body_texts(head: &RecordHead, body: &[u8]) -> Result<Vec<(&'static str, String)>, BodyError> {
    match head.known_kind() {
        Some(Kind::Series) => decode_control(head, body).map(|d: Vec<SeriesDef>| series_texts(&d)),
        Some(Kind::Open) => decode_control(head, body).map(|o: Open| open_texts(&o)),
        Some(Kind::Gap) => decode_control(head, body).map(|g: Gap| gap_texts(&g)),
        Some(Kind::BlocksSynced) => decode_control(head, body).map(|b: BlocksSynced| blocks_texts(&b)),
        Some(Kind::ChunkClosed) => decode_control(head, body).map(|c: ChunkClosed| closed_texts(&c)),
        Some(Kind::ChunkFlushed) => decode_control(head, body).map(|c: ChunkFlushed| flushed_texts(&c)),
        Some(Kind::Retiring) => decode_control(head, body).map(|r: Retiring| retiring_texts(&r)),
        Some(Kind::Footer) => decode_control(head, body).map(|f: Footer| footer_texts(&f)),
        Some(Kind::Entries | Kind::Block) | None => {
            decompress_body(head, body).map(|raw| vec![("body_uncompressed", format!("{} bytes", raw.len()))])
        }
    }
}

/// The fields of a sound body; `false` if it does not decode.
fn body_fields(f: &mut Fields<'_>, head: &RecordHead, body: &[u8]) -> bool {
    match body_texts(head, body) {
        Ok(texts) => {
            let count = texts.len();
            texts.into_iter().take(MAX_LISTED).for_each(|(name, text)| f.note(name, text));
            more(f, count);
            true
        }
        Err(error) => {
            f.note("body", format!("does not decode: {error}"));
            false
        }
    }
}

fn more(f: &mut Fields<'_>, count: usize) {
    if count > MAX_LISTED {
        f.note("more", Cell::Count((count - MAX_LISTED) as u64));
    }
}

fn series_texts(definitions: &[SeriesDef]) -> Vec<(&'static str, String)> {
    let text = |d: &SeriesDef| {
        let labels = crate::model::LabelSet::new(d.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        let SeriesDef { id, tenant, fingerprint, next_seq, settled_seq, .. } = d;
        format!(
            "stream {id} of {tenant} {labels} next seq {next_seq}, settled {settled_seq}, fingerprint {fingerprint:016x}"
        )
    };
    definitions.iter().map(|d| ("definition", text(d))).collect()
}

fn open_texts(open: &Open) -> Vec<(&'static str, String)> {
    let previous = open.previous.map_or("none".to_string(), |p| {
        format!("segment {} to offset {}, LSN {}, digest {:08x}", p.segment, p.end_offset, p.end_lsn, p.digest)
    });
    vec![
        ("first_lsn", open.first_lsn.to_string()),
        ("next_stream_id", open.next_stream_id.to_string()),
        ("total_lines", open.total_lines.to_string()),
        ("previous", previous),
        ("first_live_segment", open.first_live.segment.to_string()),
        ("first_live_lsn", open.first_live.lsn.to_string()),
        ("first_live_lines", open.first_live.lines.to_string()),
        ("block_segments", open.blocks.len().to_string()),
    ]
}

fn blocks_texts(synced: &BlocksSynced) -> Vec<(&'static str, String)> {
    let footer = if synced.footer == 0 { "none".to_string() } else { synced.footer.to_string() };
    vec![
        ("block_segment", synced.segment.to_string()),
        ("synced_end", synced.end.to_string()),
        ("footer_offset", footer),
    ]
}

fn closed_texts(c: &ChunkClosed) -> Vec<(&'static str, String)> {
    let reason = ["unknown", "full", "idle", "max_age", "synced", "forced"].get(usize::from(c.reason));
    let chunk = format!("chunk {} of stream {}, up to seq {} (end)", c.chunk, c.stream, c.end_seq);
    vec![("closed", chunk), ("reason", reason.unwrap_or(&"unknown").to_string())]
}

fn flushed_texts(c: &ChunkFlushed) -> Vec<(&'static str, String)> {
    let chunk = format!("chunk {} of stream {}, seqs {} to {} (end)", c.chunk, c.stream, c.first_seq, c.end_seq);
    vec![("flushed", chunk), ("key", c.key.clone())]
}

fn retiring_texts(r: &Retiring) -> Vec<(&'static str, String)> {
    let blocks = r.blocks.iter().map(|n| ("block_segment", n.to_string()));
    let begins = [
        ("first_live_segment", r.first_live.segment.to_string()),
        ("first_live_lsn", r.first_live.lsn.to_string()),
        ("first_live_lines", r.first_live.lines.to_string()),
    ];
    begins.into_iter().chain(blocks).collect()
}

fn footer_texts(f: &Footer) -> Vec<(&'static str, String)> {
    vec![("blocks", f.blocks.len().to_string()), ("streams", f.definitions.len().to_string())]
}

fn gap_texts(gap: &Gap) -> Vec<(&'static str, String)> {
    let lsns = gap.lsns.iter().map(|(first, end)| ("lsns", format!("{first} to {end} (end)")));
    let seqs = gap.seqs.iter().map(|(id, first, end)| ("seqs", format!("stream {id}: {first} to {end} (end)")));
    lsns.chain(seqs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_from_the_right() {
        assert_eq!("7:8256".parse(), Ok(Place { file: "7".into(), offset: 8256 }));
        assert_eq!("C:/x.wal:1".parse(), Ok(Place { file: "C:/x.wal".into(), offset: 1 }));
        for wrong in ["", "7", ":7", "x:", "x:y"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn any_bytes_are_explained_without_a_panic() {
        let header = SegmentHeader {
            log: crate::wal::LogKind::Wal,
            number: 1,
            file_len: 16384,
            salt: 5,
            volume: uuid::Uuid::from_u128(1),
            recycled: false,
        };
        let mut file = vec![0xffu8; 16384];
        for at in [0usize, 4096] {
            file[at..at + 64].copy_from_slice(&header.encode(at as u64));
        }
        for offset in (0..16384).step_by(8) {
            let _ = explain(&file, offset, Path::new("x.wal"));
        }
        for len in [0, 1, 63, 64, 4100, 8200] {
            let _ = explain(&file[..len], 0, Path::new("x.wal"));
        }
    }
}
