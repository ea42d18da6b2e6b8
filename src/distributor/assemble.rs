//! From a decoded request to the push that is stored: entries are checked, get their level, and streams with equal
//! labels become one. Lines stay where they are in the arena.

use super::labels::{LabelLevel, Resolved, StreamLabels};
use super::level::{Level, LevelDetector};
use super::metrics::{Received, Volume};
use super::rejection::{EntryRejection, LabelRejection, Reason, Rejections, StreamRejections};
use crate::model::{Amount, Entry, Limits, MetadataPair, Push, PushRequest, PushStream, RawStream, Span};
use ahash::AHashMap;
use memchr::memmem;
use std::ops::Range;

/// The structured metadata that holds an entry's level.
const DETECTED_LEVEL: &[u8] = b"detected_level";
/// The structured metadata that holds OTLP's severity number.
const SEVERITY_NUMBER: &[u8] = b"severity_number";
/// U+FFFD in UTF-8: what a decoder puts in the place of invalid bytes.
const REPLACEMENT: &[u8] = b"\xef\xbf\xbd";
/// The arena's bound after everything that is added to it. Requests are at most 256 MiB.
const MAX_ARENA: usize = 1 << 30;
/// Bytes of labels that break a limit, for those who look for the streams that are refused.
const MAX_TOLD_LABELS: usize = 2048;

/// A push after validation and what happened on the way.
pub struct Assembled {
    /// What is to be stored; without streams if nothing is left.
    pub push: Push,
    /// Lines and bytes of the push, `detected_level` not counted: what the tenant's rate limit weighs.
    pub accepted: Volume,
    /// What the request brought.
    pub received: Received,
    /// What was refused.
    pub rejections: Rejections,
}

/// Validates the entries of a request. `resolved` holds the labels of each of its streams; `None` for one that is to be
/// ignored. `now` is in nanoseconds since the Unix epoch.
pub fn assemble(request: PushRequest, resolved: &[Option<Resolved>], limits: &Limits, now: i64) -> Assembled {
    let PushRequest { arena, streams, entries, metadata, agent } = request;
    let rules = Rules::new(limits, now);
    let mut assembler = Assembler {
        limits,
        input: Input { entries: &entries, metadata: &metadata },
        entries: Vec::with_capacity(entries.len()),
        metadata: Vec::with_capacity(metadata.len() + if rules.detector.is_some() { entries.len() } else { 0 }),
        arena: Arena::new(arena),
        rules,
        accepted: Volume::default(),
        received: Received::default(),
        rejections: Rejections::default(),
    };
    let mut out = Vec::new();
    for group in groups(&streams, resolved) {
        assembler.group(&group, &streams, &mut out);
    }
    for (stream, resolved) in streams.iter().zip(resolved) {
        if let Some(Err(rejection)) = resolved.as_deref() {
            assembler.refuse(stream, rejection);
        }
    }
    let Assembler { entries, metadata, arena, accepted, received, rejections, .. } = assembler;
    let push = Push { arena: arena.bytes, streams: out, entries, metadata, agent };
    Assembled { push, accepted, received, rejections }
}

/// Streams of the request that have equal labels.
struct Group<'a> {
    stream: &'a StreamLabels,
    /// Positions in the request.
    members: Vec<usize>,
}

/// Groups good streams by their canonical labels, in the order of their first appearance.
fn groups<'a>(streams: &[RawStream], resolved: &'a [Option<Resolved>]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::with_capacity(streams.len());
    let mut by_labels: AHashMap<&'a str, usize> = AHashMap::with_capacity(streams.len());
    for (position, (raw, resolved)) in streams.iter().zip(resolved).enumerate() {
        let Some(Ok(stream)) = resolved.as_deref() else { continue };
        if raw.entries.is_empty() {
            continue;
        }
        let at = *by_labels.entry(stream.labels.text()).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.members.push(position),
            None => groups.push(Group { stream, members: vec![position] }),
        }
    }
    groups
}

/// The limits as an entry is compared with them.
struct Rules<'a> {
    /// Nanoseconds since the Unix epoch; older entries are refused.
    oldest: i64,
    /// Newer entries are refused.
    newest: i64,
    /// Bytes; longer lines are refused or cut.
    max_line: usize,
    /// What a line keeps before the identifier when it is cut; `None` if long lines are refused.
    truncate_to: Option<usize>,
    detector: Option<LevelDetector<'a>>,
}

impl<'a> Rules<'a> {
    fn new(limits: &'a Limits, now: i64) -> Self {
        let nanos = |d: std::time::Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        let max_line = if limits.max_line_size == 0 { usize::MAX } else { limits.max_line_size };
        let identifier = limits.max_line_size_truncate_identifier.len();
        let discover = limits.discover_log_levels && limits.allow_structured_metadata;
        Self {
            oldest: if limits.reject_old_samples {
                now.saturating_sub(nanos(limits.reject_old_samples_max_age))
            } else {
                i64::MIN
            },
            newest: now.saturating_add(nanos(limits.creation_grace_period)),
            max_line,
            truncate_to: limits.max_line_size_truncate.then_some(max_line.saturating_sub(identifier)),
            detector: discover.then(|| LevelDetector::new(limits)),
        }
    }
}

/// The bytes of the request, and behind them what is added.
struct Arena {
    bytes: Vec<u8>,
    level_name: Option<Span>,
    levels: [Option<Span>; Level::COUNT],
    /// The level that the labels of the stream in work tell, if it is none of ours.
    verbatim: Option<Span>,
    /// Sanitised names by the names that were pushed.
    names: AHashMap<Box<[u8]>, Span>,
}

impl Arena {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, level_name: None, levels: [None; Level::COUNT], verbatim: None, names: AHashMap::new() }
    }

    fn of(&self, span: Span) -> &[u8] {
        span.of(&self.bytes)
    }

    fn intern(&mut self, bytes: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Span::new(start, bytes.len())
    }

    fn has_room(&self, len: usize) -> bool {
        self.bytes.len().saturating_add(len) <= MAX_ARENA
    }

    fn level_name(&mut self) -> Span {
        let name = self.level_name.unwrap_or_else(|| self.intern(DETECTED_LEVEL));
        self.level_name = Some(name);
        name
    }

    fn level(&mut self, level: Level) -> Span {
        let known = self.levels.get(level as usize).copied().flatten();
        let span = known.unwrap_or_else(|| self.intern(level.as_str().as_bytes()));
        if let Some(slot) = self.levels.get_mut(level as usize) {
            *slot = Some(span);
        }
        span
    }

    /// The value as a known level where it names one.
    fn normalised_level(&mut self, value: Span) -> Span {
        match Level::of_value(self.of(value)) {
            Some(level) if level.as_str().as_bytes() != self.of(value) => self.level(level),
            _ => value,
        }
    }

    /// A name that Prometheus takes for a label, and whether it is another one.
    fn sanitised_name(&mut self, name: Span) -> (Span, bool) {
        if is_label_name(self.of(name)) {
            return (name, false);
        }
        if let Some(known) = self.names.get(self.of(name)) {
            return (*known, true);
        }
        let pushed: Box<[u8]> = self.of(name).into();
        let sanitised = sanitise(&pushed);
        let span = self.intern(&sanitised);
        self.names.insert(pushed, span);
        (span, true)
    }

    /// A value without replacement characters, and whether it is another one.
    fn sanitised_value(&mut self, value: Span) -> (Span, bool) {
        let bytes = self.of(value);
        if memmem::find(bytes, REPLACEMENT).is_none() {
            return (value, false);
        }
        let text = String::from_utf8_lossy(bytes).replace('\u{fffd}', " ");
        (self.intern(text.as_bytes()), true)
    }
}

fn is_label_name(name: &[u8]) -> bool {
    name.first().is_some_and(|b| !b.is_ascii_digit()) && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

/// A name with each run of characters that a label name cannot have, underscores around them included, as one
/// underscore, and `key_` before a digit: what OpenTelemetry's rules make of it. Good names are not passed here.
fn sanitise(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 4);
    if name.first().is_some_and(u8::is_ascii_digit) {
        out.extend_from_slice(b"key_");
    }
    for byte in name {
        if byte.is_ascii_alphanumeric() {
            out.push(*byte);
        } else if out.last() != Some(&b'_') {
            out.push(b'_');
        }
    }
    if out.is_empty() {
        out.push(b'_');
    }
    out
}

/// Sizes of an entry as it was pushed.
#[derive(Clone, Copy)]
struct Sizes {
    line: usize,
    /// Names and values, `detected_level` not counted.
    metadata: usize,
}

/// What the entry before left behind, for `increment_duplicate_timestamp`.
struct Previous {
    /// The timestamp that was pushed with the last entry that kept its own.
    pushed: i64,
    stored: i64,
    line: Span,
}

#[derive(Clone, Copy)]
struct Input<'a> {
    entries: &'a [Entry],
    metadata: &'a [MetadataPair],
}

impl<'a> Input<'a> {
    fn entries(self, range: &Range<u32>) -> &'a [Entry] {
        self.entries.get(range.start as usize..range.end as usize).unwrap_or(&[])
    }

    fn metadata(self, entry: &Entry) -> &'a [MetadataPair] {
        self.metadata.get(entry.metadata.start as usize..entry.metadata.end as usize).unwrap_or(&[])
    }
}

struct Assembler<'a> {
    limits: &'a Limits,
    input: Input<'a>,
    rules: Rules<'a>,
    arena: Arena,
    entries: Vec<Entry>,
    metadata: Vec<MetadataPair>,
    accepted: Volume,
    received: Received,
    rejections: Rejections,
}

impl Assembler<'_> {
    /// Appends the good entries of a group and, if there are any, its stream.
    fn group(&mut self, group: &Group<'_>, raw: &[RawStream], out: &mut Vec<PushStream>) {
        let first = self.entries.len();
        let mut told = StreamRejections::default();
        let mut previous = None;
        self.arena.verbatim = None;
        for range in group.members.iter().filter_map(|i| raw.get(*i)).map(|stream| &stream.entries) {
            for entry in self.input.entries(range) {
                self.entry(entry, group.stream, &mut told, &mut previous);
            }
        }
        self.rejections.end_stream(group.stream.labels.text(), &told);
        if self.entries.len() > first {
            let entries = first as u32..self.entries.len() as u32;
            out.push(PushStream { labels: group.stream.labels.clone(), token: group.stream.token, entries });
        }
    }

    fn entry(
        &mut self,
        entry: &Entry,
        stream: &StreamLabels,
        told: &mut StreamRejections,
        previous: &mut Option<Previous>,
    ) {
        let pairs = self.input.metadata(entry);
        let sizes = Sizes { line: entry.line.len as usize, metadata: self.metadata_size(pairs) };
        self.count_received(sizes, stream.internal);
        let line = match self
            .fit(entry.line)
            .and_then(|line| self.check(entry.timestamp, line, pairs.len(), sizes).map(|()| line))
        {
            Ok(line) => line,
            Err(rejection) => {
                let bytes = (sizes.line + sizes.metadata) as u64;
                return self.rejections.add_entry(rejection, stream.labels.text(), told, bytes);
            }
        };
        let first = self.metadata.len() as u32;
        self.append_metadata(pairs);
        self.append_level(line, first as usize, stream);
        let timestamp = self.timestamp(entry.timestamp, line, previous);
        self.accepted.lines += 1;
        self.accepted.metadata_bytes += sizes.metadata as u64;
        self.accepted.bytes += (line.len as usize + sizes.metadata) as u64;
        self.entries.push(Entry { timestamp, line, metadata: first..self.metadata.len() as u32 });
    }

    fn metadata_size(&self, pairs: &[MetadataPair]) -> usize {
        let counted = pairs.iter().filter(|pair| self.arena.of(pair.name) != DETECTED_LEVEL);
        counted.map(|pair| pair.name.len as usize + pair.value.len as usize).sum()
    }

    fn count_received(&mut self, sizes: Sizes, internal: bool) {
        if let Some(volume) = self.received.by_kind.get_mut(usize::from(internal)) {
            volume.lines += 1;
            volume.bytes += (sizes.line + sizes.metadata) as u64;
            volume.metadata_bytes += sizes.metadata as u64;
        }
    }

    /// The line, cut to `max_line_size` if the limits say so.
    fn fit(&mut self, line: Span) -> Result<Span, EntryRejection> {
        let len = line.len as usize;
        let (Some(keep), true) = (self.rules.truncate_to, len > self.rules.max_line) else { return Ok(line) };
        let identifier = self.limits.max_line_size_truncate_identifier.as_bytes();
        let kept = Span { len: keep as u32, ..line };
        let cut = if identifier.is_empty() {
            kept
        } else if self.arena.has_room(keep + identifier.len()) {
            let bytes = [self.arena.of(kept), identifier].concat();
            self.arena.intern(&bytes)
        } else {
            return Err(EntryRejection::LineTooLong { len, limit: self.rules.max_line });
        };
        self.received.truncated_lines += 1;
        self.received.truncated_bytes += len.saturating_sub(cut.len as usize) as u64;
        Ok(cut)
    }

    /// Loki's checks of an entry, in its order.
    fn check(&self, timestamp: i64, line: Span, pairs: usize, sizes: Sizes) -> Result<(), EntryRejection> {
        let (rules, limits) = (&self.rules, self.limits);
        if timestamp < rules.oldest {
            return Err(EntryRejection::TooOld { timestamp, oldest: rules.oldest });
        }
        if timestamp > rules.newest {
            return Err(EntryRejection::TooNew { timestamp });
        }
        if line.len as usize > rules.max_line {
            return Err(EntryRejection::LineTooLong { len: line.len as usize, limit: rules.max_line });
        }
        if pairs == 0 {
            return Ok(());
        }
        if !limits.allow_structured_metadata {
            return Err(EntryRejection::MetadataDisallowed);
        }
        let limit = limits.max_structured_metadata_size;
        if sizes.metadata > limit || !self.arena.has_room(2 * sizes.metadata) {
            return Err(EntryRejection::MetadataTooLarge { size: sizes.metadata, limit });
        }
        let limit = limits.max_structured_metadata_entries_count;
        if pairs > limit {
            return Err(EntryRejection::MetadataTooMany { count: pairs, limit });
        }
        Ok(())
    }

    fn append_metadata(&mut self, pairs: &[MetadataPair]) {
        for pair in pairs {
            let (name, other_name) = self.arena.sanitised_name(pair.name);
            let (value, other_value) = self.arena.sanitised_value(pair.value);
            self.received.sanitized += u64::from(other_name) + u64::from(other_value);
            self.metadata.push(MetadataPair { name, value });
        }
    }

    /// Adds the entry's level to its metadata, which begin at `first`. A level that was pushed is only normalised.
    fn append_level(&mut self, line: Span, first: usize, stream: &StreamLabels) {
        let Some(detector) = self.rules.detector else { return };
        let arena = &mut self.arena;
        let pairs = self.metadata.get_mut(first..).unwrap_or(&mut []);
        if let Some(pushed) = pairs.iter_mut().find(|pair| arena.of(pair.name) == DETECTED_LEVEL) {
            pushed.value = arena.normalised_level(pushed.value);
            return;
        }
        let value = match &stream.level {
            Some(LabelLevel::Known(level)) => arena.level(*level),
            Some(LabelLevel::Verbatim(text)) => {
                let span = arena.verbatim.unwrap_or_else(|| arena.intern(text.as_bytes()));
                arena.verbatim = Some(span);
                span
            }
            None => level_of_entry(arena, detector, line, pairs),
        };
        if value.len > 0 {
            let name = arena.level_name();
            self.metadata.push(MetadataPair { name, value });
        }
    }

    /// The timestamp that is stored: with `increment_duplicate_timestamp` a nanosecond behind the entry before, if
    /// both were pushed with one timestamp and differ in their lines.
    fn timestamp(&self, pushed: i64, line: Span, previous: &mut Option<Previous>) -> i64 {
        if !self.limits.increment_duplicate_timestamp {
            return pushed;
        }
        let (kept, stored) = match previous {
            Some(p) if (pushed == p.pushed || pushed == p.stored) && self.arena.of(p.line) != self.arena.of(line) => {
                (p.pushed, p.stored.saturating_add(1))
            }
            _ => (pushed, pushed),
        };
        *previous = Some(Previous { pushed: kept, stored, line });
        stored
    }

    /// Tells and counts a stream whose labels were refused.
    fn refuse(&mut self, stream: &RawStream, rejection: &LabelRejection) {
        let mut volume = (0u64, 0u64);
        for entry in self.input.entries(&stream.entries) {
            let metadata = self.metadata_size(self.input.metadata(entry));
            let sizes = Sizes { line: entry.line.len as usize, metadata };
            self.count_received(sizes, false);
            volume = (volume.0 + 1, volume.1 + (sizes.line + sizes.metadata) as u64);
        }
        if volume.0 == 0 {
            return;
        }
        let (reason, text) = match rejection {
            LabelRejection::Limit(reason, text) => (*reason, text.clone()),
            LabelRejection::Syntax(error) => {
                let labels = String::from_utf8_lossy(self.arena.of(stream.labels));
                (Reason::InvalidLabels, format!("error parsing labels '{labels}' with error: {error}"))
            }
        };
        self.rejections.discard(reason, volume.0, volume.1);
        let labels = self.arena.of(stream.labels);
        let labels = String::from_utf8_lossy(labels.get(..MAX_TOLD_LABELS).unwrap_or(labels)).into();
        self.rejections.streams.push((labels, reason, Amount { lines: volume.0, bytes: volume.1 }));
        self.rejections.add(text);
    }
}

/// The level that an entry's metadata or line tell.
fn level_of_entry(arena: &mut Arena, detector: LevelDetector<'_>, line: Span, pairs: &[MetadataPair]) -> Span {
    let ranked = pairs.iter().filter_map(|pair| Some((detector.rank(arena.of(pair.name))?, pair.value)));
    if let Some((_, value)) = ranked.min_by_key(|(rank, _)| *rank) {
        return arena.normalised_level(value);
    }
    let number = pairs.iter().find(|pair| pair.value.len > 0 && arena.of(pair.name) == SEVERITY_NUMBER);
    let level = match number {
        Some(pair) => Level::of_severity_number(arena.of(pair.value)),
        None => detector.of_line(arena.of(line)),
    };
    arena.level(level)
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
