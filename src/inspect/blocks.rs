//! The block log beside a write-ahead log: which of its segments live, what they hold, and what of it still counts.
//!
//! The write-ahead log is read first. What it names of a block segment was synced before and is never written again, so
//! it can be read while a server appends behind it.

use super::error::InspectError;
use super::log::{Log, Problem};
use super::ranges::Ranges;
use super::say;
use crate::chunk::{Block, BlockMeta, ChunkError, Encoding, Symbols};
use crate::fs::Map;
use crate::model::LogEntry;
use crate::wal::format::{FIRST_GROUP, GROUP_HEADER_LEN, HeaderError, Kind};
use crate::wal::{
    BlockPlace, BlockSeqs, BlockTables, BlocksSynced, Footer, Hold, LogKind, Part, Plan, RecordScan, SegmentScan,
    SeriesDef, decode_control, file_name, scan_segment,
};
use ahash::AHashMap;
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use uuid::Uuid;

/// Largest id of a symbol that is believed: no chunk has so many, and each costs memory.
const MAX_SYMBOL: u32 = 1 << 24;

/// What one block segment holds, in numbers.
#[derive(Clone, Debug, Default)]
pub struct BlockFacts {
    /// Number of the segment.
    pub number: u64,
    /// Bytes of the file.
    pub len: u64,
    /// One word: `active`, `full` (has its footer, or takes no more), `dead` (full, and nothing in it is needed), `prepared`, `unnamed`
    /// (no record tells of it), `missing` or `damaged` (its header is unusable).
    pub state: &'static str,
    /// The synced end: what lies behind it does not count.
    pub end: u64,
    /// Offset of the footer.
    pub footer: Option<u64>,
    /// Sound blocks.
    pub blocks: u64,
    /// Lines in them.
    pub lines: u64,
    /// Bytes of block records that are needed.
    pub live: u64,
    /// Bytes of block records of flushed chunks, and of those that have a newer copy.
    pub dead: u64,
    /// Stretches of damage.
    pub damage: u64,
}

/// A sound block.
#[derive(Clone, Debug)]
pub struct KnownBlock {
    /// Where it lies.
    pub place: BlockPlace,
    /// Stream id.
    pub stream: u64,
    /// Number of the chunk in its stream.
    pub chunk: u64,
    /// Its seqs; duplicates in it use up seqs too.
    pub seqs: Range<u64>,
    /// Stored lines.
    pub lines: u64,
    /// Lowest and highest timestamp.
    pub times: (i64, i64),
    /// Bytes of lines and metadata before compression.
    pub raw: u64,
    /// It counts: its chunk is not flushed, and no newer copy is there.
    pub live: bool,
}

/// The block log as the write-ahead log tells it.
#[derive(Default)]
pub struct Blocks {
    /// Every segment, by number.
    pub facts: Vec<BlockFacts>,
    /// Sound blocks, in the order of the log.
    pub known: Vec<KnownBlock>,
    /// Live segments that are not there.
    pub missing: Vec<u64>,
    /// There are, or were, blocks of which nothing tells: segments are missing or have no header, or heads do not hold.
    pub unseen: bool,
    /// What does not hold.
    pub problems: Vec<Problem>,
    /// Streams that it defines.
    pub definitions: Vec<SeriesDef>,
    /// Blocks whose bytes are damaged: stream and seqs.
    pub broken: Vec<(u64, Range<u64>)>,
    /// Seqs by stream that blocks hold that count.
    pub held: HashMap<u64, Ranges>,
    /// Seqs by stream of chunks that are in the object store.
    pub flushed: HashMap<u64, Ranges>,
    /// Live segments and their ends, for a second look.
    pub(super) live: Vec<BlocksSynced>,
    /// The synced ends that the write-ahead log tells of.
    told: HashMap<u64, u64>,
}

/// One live segment up to its synced end.
pub struct BlockView<'a> {
    /// Its number, its footer, and where the bytes end that count.
    pub synced: BlocksSynced,
    /// All before this offset was synced, as the write-ahead log tells.
    told: u64,
    /// Its bytes up to the synced end.
    pub file: &'a [u8],
    /// Its groups and records.
    pub scan: &'a SegmentScan,
}

impl BlockView<'_> {
    /// The records, in order.
    pub fn records(&self) -> impl Iterator<Item = &RecordScan> {
        self.scan.groups.iter().flat_map(|g| &g.records)
    }
}

/// Why a block cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableBlock {
    /// Its tables.
    #[error("{0}")]
    Tables(#[from] crate::wal::BodyError),
    /// Its bytes.
    #[error("{0}")]
    Chunk(#[from] ChunkError),
    /// Its symbols.
    #[error("symbol {0} is above the limit of {MAX_SYMBOL}")]
    Symbol(u32),
}

/// The lines of a block: checks its CRC-32C and everything in it.
///
/// # Errors
/// Its tables or its bytes do not decode, or disagree.
pub fn read_block(record: &RecordScan, file: &[u8]) -> Result<(BlockTables, Vec<LogEntry>), UnreadableBlock> {
    let tables = BlockTables::decode(record.head.tables(file, record.offset))?;
    let data = record.head.body(file, record.offset);
    let meta = BlockMeta {
        encoding: Encoding::from_code(tables.encoding)?,
        entries: tables.entries,
        min_timestamp: tables.min_timestamp,
        max_timestamp: tables.max_timestamp,
        uncompressed_size: tables.uncompressed_size,
        compressed_len: record.head.body_len,
        crc: tables.crc,
    };
    let mut texts: Vec<(u32, &[u8])> = tables.symbols.iter().collect();
    texts.sort_by_key(|(id, _)| *id);
    let mut symbols = Symbols::new();
    for (id, text) in texts {
        if id > MAX_SYMBOL {
            return Err(UnreadableBlock::Symbol(id));
        }
        // Symbols that only other blocks of the chunk use.
        while symbols.len() < id as usize {
            symbols.push(b"");
        }
        symbols.push(text);
    }
    let entries = Block::from_stored(meta, Bytes::copy_from_slice(data))?.entries(&symbols)?;
    Ok((tables, entries))
}

/// A crash leaves one segment that holds something of which no record tells. With more of them behind all that are told of, another
/// write-ahead log was used since: the server has it elsewhere, and what is read here is of the time before.
///
/// # Errors
/// A file cannot be read.
pub fn warn_of_another_log(log: &Log, plan: &Plan) -> Result<(), InspectError> {
    let told = plan.blocks.iter().map(|b| b.segment).chain(plan.retired_blocks.iter().copied()).max();
    let mut untold = 0;
    for (number, _) in log.block_files.iter().filter(|(number, _)| told.is_none_or(|told| *number > told)) {
        untold += usize::from(!is_prepared(log, *number)?);
    }
    // With no record that tells of blocks, each of them counts, and is shown.
    if untold > 1 && !plan.blocks_are_uncertain {
        say(&format!(
            "wal-inspect: {untold} segments in {} hold blocks that the write-ahead log in {} does not tell of: it is older than they are. If \
             ingester.wal.dir is set, name that directory with --wal-dir",
            log.blocks_dir.display(),
            log.dir.display()
        ));
    }
    Ok(())
}

/// Reads the segments that `plan` tells of, and lists the others. `None` if one of them vanished.
///
/// # Errors
/// A file cannot be read, or is of a newer version; the directory is not there, and blocks count that are in it.
pub fn judge(log: &Log, plan: &Plan, volume: Option<Uuid>) -> Result<Option<Blocks>, InspectError> {
    let told = plan.blocks.iter().map(|b| (b.segment, b.end)).collect();
    let mut out = Blocks { live: plan.blocks_to_read().collect(), told, ..Blocks::default() };
    for (number, len) in log.block_files.iter().filter(|(n, _)| !plan.blocks.iter().any(|b| b.segment == *n)) {
        if plan.blocks_are_uncertain && !plan.retired_blocks.contains(number) {
            // The record that names it may be lost.
            out.live.push(BlocksSynced { segment: *number, end: u64::MAX, footer: 0 });
        } else {
            let state = if is_prepared(log, *number)? { "prepared" } else { "unnamed" };
            out.facts.push(BlockFacts { number: *number, len: *len, state, ..BlockFacts::default() });
        }
    }
    // Nobody has said where it is: this tells nothing of the blocks.
    if !log.has_blocks_dir && !out.live.is_empty() {
        return Err(InspectError::NoBlocks(log.blocks_dir.clone()));
    }
    let newest = plan.blocks.last().map(|b| b.segment);
    for synced in out.live.clone() {
        match open(log, synced.segment)? {
            Some(map) => out.segment(&map, synced, volume, newest)?,
            None if log.block_files.iter().any(|(n, _)| *n == synced.segment) => return Ok(None),
            None => {
                out.missing.push(synced.segment);
                out.unseen = true;
                let (end, number) = (out.told(synced.segment), synced.segment);
                out.facts.push(BlockFacts { number, end, state: "missing", ..BlockFacts::default() });
            }
        }
    }
    out.settle(plan);
    out.facts.sort_by_key(|f| f.number);
    Ok(Some(out))
}

fn open(log: &Log, number: u64) -> Result<Option<Map>, InspectError> {
    let path = log.blocks_dir.join(file_name(LogKind::Blocks, number));
    match Map::open(&path) {
        Ok(map) => Ok(Some(map)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(InspectError::io("map", &path)(e)),
    }
}

/// Was nothing written to it yet?
fn is_prepared(log: &Log, number: u64) -> Result<bool, InspectError> {
    let first = FIRST_GROUP as usize..FIRST_GROUP as usize + GROUP_HEADER_LEN;
    Ok(open(log, number)?.is_some_and(|map| map.get(first).is_some_and(|bytes| bytes.iter().all(|b| *b == 0))))
}

/// The bytes that count.
fn counted(file: &[u8], end: u64) -> &[u8] {
    usize::try_from(end).ok().and_then(|end| file.get(..end)).unwrap_or(file)
}

impl Blocks {
    /// Nothing that counts is damaged or missing.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.missing.is_empty() && self.broken.is_empty()
    }

    /// Is a line with this seq in a block that counts, or in the object store?
    pub fn settles(&self, stream: u64, seq: u64) -> bool {
        [&self.held, &self.flushed].iter().any(|of| of.get(&stream).is_some_and(|r| r.contains(seq)))
    }

    /// Seqs by stream that blocks hold that count, or the object store.
    pub fn settled(&self) -> AHashMap<u64, Ranges> {
        let mut out: AHashMap<u64, Ranges> = AHashMap::new();
        for (stream, ranges) in self.held.iter().chain(&self.flushed) {
            let known = out.entry(*stream).or_default();
            ranges.iter().for_each(|r| known.insert(r.clone()));
        }
        out
    }

    /// The seqs that are neither in a block that counts nor in the object store.
    pub fn unsettled(&self, stream: u64, seqs: &Range<u64>) -> Vec<Range<u64>> {
        let without = |of: &HashMap<u64, Ranges>, seqs: &Range<u64>| match of.get(&stream) {
            Some(ranges) => ranges.missing(seqs),
            None => vec![seqs.clone()],
        };
        without(&self.held, seqs).iter().flat_map(|r| without(&self.flushed, r)).filter(|r| !r.is_empty()).collect()
    }

    /// What the sound blocks hold.
    pub fn seqs(&self) -> Vec<BlockSeqs> {
        let seqs = |b: &KnownBlock| BlockSeqs { stream: b.stream, chunk: b.chunk, seqs: b.seqs.clone() };
        self.known.iter().map(seqs).collect()
    }

    /// Blocks that count.
    pub fn counting(&self) -> impl Iterator<Item = &KnownBlock> {
        self.known.iter().filter(|b| b.live)
    }

    /// All before this offset of a segment was synced: nothing of one that no record names.
    fn told(&self, segment: u64) -> u64 {
        self.told.get(&segment).copied().unwrap_or(0)
    }

    fn problem(&mut self, segment: u64, bytes: Range<u64>, what: impl Into<String>) {
        let (offset, bytes) = (bytes.start, bytes.end.saturating_sub(bytes.start));
        self.problems.push(Problem { log: LogKind::Blocks, segment, offset, bytes, what: what.into() });
    }

    fn segment(
        &mut self,
        map: &[u8],
        synced: BlocksSynced,
        volume: Option<Uuid>,
        newest: Option<u64>,
    ) -> Result<(), InspectError> {
        let (number, len) = (synced.segment, map.len() as u64);
        let state = match newest {
            Some(newest) if newest == number && synced.footer == 0 => "active",
            _ if !self.told.contains_key(&number) => "unnamed",
            _ => "full",
        };
        let told = self.told(number);
        let footer = (synced.footer > 0).then_some(synced.footer);
        let mut facts = BlockFacts { number, len, state, end: synced.end.min(len), footer, ..BlockFacts::default() };
        let file = counted(map, synced.end);
        let before = self.problems.len();
        match scan_segment(file) {
            Err(HeaderError::Version(version)) => {
                return Err(InspectError::Version { segment: file_name(LogKind::Blocks, number), version });
            }
            Err(error) => {
                self.problem(number, 0..FIRST_GROUP.min(len), error.to_string());
                facts.state = "damaged";
                self.unseen = true;
            }
            Ok(scan) if (scan.header.number, scan.header.log) != (number, LogKind::Blocks) => {
                self.problem(number, 0..64, "the header is that of another segment");
                facts.state = "damaged";
                self.unseen = true;
            }
            Ok(scan) if volume.is_some_and(|v| v != scan.header.volume) => {
                let what = format!("the segment belongs to another data directory (volume {})", scan.header.volume);
                self.problem(number, 0..64, what);
                facts.state = "damaged";
            }
            Ok(scan) => {
                if let Some(copy) = scan.bad_header.clone() {
                    self.problem(number, copy, Part::Header.to_string());
                }
                if len < told {
                    self.problem(number, len..told, Part::Cut.to_string());
                    self.unseen = true;
                }
                self.records(&BlockView { synced, told, file, scan: &scan }, &mut facts);
            }
        }
        facts.damage = (self.problems.len() - before) as u64;
        self.facts.push(facts);
        Ok(())
    }

    fn records(&mut self, view: &BlockView<'_>, facts: &mut BlockFacts) {
        let number = view.synced.segment;
        // Behind an end that nobody knows lies what a crash has left.
        let is_certain = |offset: u64| offset < view.told;
        for damage in view.scan.groups.iter().flat_map(|g| &g.damage).filter(|d| is_certain(d.bytes.start)) {
            self.problem(number, damage.bytes.clone(), damage.part.to_string());
            self.unseen |= matches!(damage.part, Part::GroupHeader | Part::RecordHead);
        }
        for record in view.records() {
            let (head, at) = (record.head, record.offset);
            let bytes = at..at + u64::from(head.len);
            match head.known_kind() {
                Some(Kind::Block) => match BlockTables::decode(head.tables(view.file, at)) {
                    Ok(tables) if record.body_is_sound => {
                        facts.blocks += 1;
                        facts.lines += u64::from(tables.entries);
                        let place = BlockPlace { segment: number, offset: at, len: head.len };
                        self.known.push(KnownBlock::of(&tables, place));
                    }
                    Ok(tables) if is_certain(at) => self.broken.push((tables.stream, tables.first_seq..tables.end_seq)),
                    Ok(_) => {}
                    Err(error) => {
                        self.problem(number, bytes, format!("tables of a block: {error}"));
                        self.unseen = true;
                    }
                },
                Some(Kind::Series) if record.body_is_sound => {
                    match decode_control::<Vec<SeriesDef>>(&head, head.body(view.file, at)) {
                        Ok(definitions) => self.definitions.extend(definitions),
                        Err(error) => self.problem(number, bytes, error.to_string()),
                    }
                }
                Some(Kind::Footer) if record.body_is_sound => {
                    if let Err(error) = decode_control::<Footer>(&head, head.body(view.file, at)) {
                        self.problem(number, bytes, error.to_string());
                    }
                }
                Some(Kind::Series | Kind::Footer) => {}
                _ => self.problem(number, bytes, format!("a record of type {} in the block log", head.kind)),
            }
        }
    }

    /// Tells blocks that count from those of flushed chunks and from those with a newer copy, as recovery does.
    fn settle(&mut self, plan: &Plan) {
        let mut flushed_chunks: HashSet<(u64, u64)> = HashSet::new();
        for hold in plan.contents.iter().flat_map(|c| &c.holds) {
            if let Hold::Flushed(f) = hold {
                flushed_chunks.insert((f.stream, f.chunk));
                self.flushed.entry(f.stream).or_default().insert(f.first_seq..f.end_seq);
            }
        }
        let mut order: Vec<usize> = (0..self.known.len()).collect();
        let key = |b: &KnownBlock| (b.stream, b.seqs.start, Reverse((b.place.segment, b.place.offset)));
        order.sort_by_key(|i| self.known.get(*i).map(key));
        let mut last: Option<(u64, Range<u64>)> = None;
        let mut overlaps = Vec::new();
        for i in order {
            let Some(block) = self.known.get_mut(i) else { continue };
            if flushed_chunks.contains(&(block.stream, block.chunk)) {
                continue;
            }
            match last.as_ref().filter(|(stream, seqs)| *stream == block.stream && block.seqs.start < seqs.end) {
                Some((_, seqs)) if *seqs != block.seqs => overlaps.push((block.clone(), seqs.clone())),
                // An older copy.
                Some(_) => {}
                None => {
                    block.live = true;
                    self.held.entry(block.stream).or_default().insert(block.seqs.clone());
                    last = Some((block.stream, block.seqs.clone()));
                }
            }
        }
        for (b, with) in overlaps {
            let (first, end) = (b.seqs.start.max(with.start), b.seqs.end.min(with.end));
            let what = format!("stream {} has seqs {first} to {end} in two blocks that are no copies", b.stream);
            self.problem(b.place.segment, b.place.offset..b.place.offset + u64::from(b.place.len), what);
        }
        let mut bytes: HashMap<u64, (u64, u64)> = HashMap::new();
        for b in &self.known {
            let (live, dead) = bytes.entry(b.place.segment).or_default();
            *if b.live { live } else { dead } += u64::from(b.place.len);
        }
        for facts in &mut self.facts {
            (facts.live, facts.dead) = bytes.get(&facts.number).copied().unwrap_or_default();
            if facts.state == "full" && facts.live == 0 && facts.damage == 0 {
                facts.state = "dead";
            }
        }
    }

    /// Reads the live segments again, oldest first, and hands them to `visit` until it returns `false`. A segment that is
    /// gone, or whose header is damaged, is passed over: the judgement has told of it, or it was retired since.
    ///
    /// # Errors
    /// A file cannot be read, or `visit` failed.
    pub fn walk(
        &self,
        log: &Log,
        mut visit: impl FnMut(&BlockView<'_>) -> Result<bool, InspectError>,
    ) -> Result<(), InspectError> {
        for synced in &self.live {
            let usable = |f: &&BlockFacts| f.number == synced.segment && !matches!(f.state, "damaged" | "missing");
            if !self.facts.iter().any(|f| usable(&f)) {
                continue;
            }
            let Some(map) = open(log, synced.segment)? else { continue };
            let file = counted(&map, synced.end);
            let Ok(scan) = scan_segment(file) else { continue };
            let told = self.told(synced.segment);
            if !visit(&BlockView { synced: *synced, told, file, scan: &scan })? {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl KnownBlock {
    fn of(tables: &BlockTables, place: BlockPlace) -> Self {
        Self {
            place,
            stream: tables.stream,
            chunk: tables.chunk,
            seqs: tables.first_seq..tables.end_seq,
            lines: tables.entries.into(),
            times: (tables.min_timestamp, tables.max_timestamp),
            raw: tables.uncompressed_size,
            live: false,
        }
    }
}
