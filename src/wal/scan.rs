//! Reading a segment's bytes: groups, records, and what is damaged between them. Read-only and pure.

use super::format::{
    FIRST_GROUP, GROUP_ALIGN, GROUP_HEADER_LEN, GroupHeader, HeaderError, RECORD_ALIGN, RecordHead, SegmentHeader,
};
use super::verdict::Part;
use crate::codec::align_up;
use crate::fs::{File, PageBuffer};
use crate::planted::{Bug, is};
use memchr::memmem;
use std::fmt;
use std::io;
use std::ops::Range;

/// Where in a head the number of its segment lies.
const NUMBER: u64 = 16;

/// A stretch of bytes that should be structure and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Bytes of the segment file.
    pub bytes: Range<u64>,
    /// What does not hold there.
    pub part: Part,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Part::Missing => self.part.fmt(f),
            part => write!(f, "bytes {}..{}: {part}", self.bytes.start, self.bytes.end),
        }
    }
}

/// A record whose head and tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordScan {
    /// Offset in the segment.
    pub offset: u64,
    /// Its head.
    pub head: RecordHead,
    /// Does the body match its CRC?
    pub body_is_sound: bool,
}

/// A commit group, or the remains of one whose header is damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupScan {
    /// Offset in the segment, a multiple of 4096.
    pub offset: u64,
    /// Where the next group may start.
    pub end: u64,
    /// The header; `None` if records were found where no valid header lies.
    pub header: Option<GroupHeader>,
    /// CRC field of the header, for the segment's digest.
    pub crc: u32,
    /// Records whose head holds, in order.
    pub records: Vec<RecordScan>,
    /// What does not hold, padding apart.
    pub damage: Vec<Damage>,
    /// Bytes of padding that are not zero: harmless.
    pub dirty_padding: u64,
}

/// What a segment's bytes hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentScan {
    /// Its constants.
    pub header: SegmentHeader,
    /// The copy of the header that does not hold; then the other one serves.
    pub bad_header: Option<Range<u64>>,
    /// Bytes that are missing at the end of the file.
    pub missing: u64,
    /// Groups in the order of the file. Empty for a prepared segment.
    pub groups: Vec<GroupScan>,
}

impl SegmentScan {
    /// Holds the segment nothing yet? What lies in one that was used before is then the old segment's.
    pub fn is_prepared(&self) -> bool {
        let nothing = |g: &GroupScan| g.header.is_none() && g.records.is_empty();
        self.missing == 0 && (self.groups.is_empty() || self.header.recycled && self.groups.iter().all(nothing))
    }
}

/// Scans all bytes of a segment file.
///
/// # Errors
/// The segment header is unusable, so nothing can be proved.
pub fn scan_segment(file: &[u8]) -> Result<SegmentScan, HeaderError> {
    let SegmentStart { header, bad_header, len, missing } = SegmentStart::of(file, file.len() as u64)?;
    let mut groups = Vec::new();
    let scan = Scan { bytes: Bytes::whole(file.get(..len as usize).unwrap_or(file)), header };
    scan.run(FIRST_GROUP, &mut |group, _| groups.push(group));
    Ok(SegmentScan { header, bad_header, missing, groups })
}

/// The groups that follow one another from an offset of a segment on; `bytes` are those of the file from there. Ends where
/// no valid header lies, and before a group that is not there whole.
pub fn scan_groups(header: &SegmentHeader, offset: u64, bytes: &[u8]) -> Vec<GroupScan> {
    let scan = Scan { bytes: Bytes { bytes, base: offset }, header: *header };
    let (mut groups, mut at) = (Vec::new(), offset);
    while let Some(header) = scan.group_header(at).filter(|h| h.next_group(at) <= scan.end()) {
        let group = scan.group(at, header);
        at = group.end;
        groups.push(group);
    }
    groups
}

/// What the header tells of a segment.
pub(super) struct SegmentStart {
    pub header: SegmentHeader,
    /// The copy of the header that does not hold.
    pub bad_header: Option<Range<u64>>,
    /// Bytes of the file that count: those behind the header's length were never ours.
    len: u64,
    /// Bytes that are missing at the end of the file.
    pub missing: u64,
}

impl SegmentStart {
    /// `bytes` are the first of a file of `file_len` bytes.
    fn of(bytes: &[u8], file_len: u64) -> Result<Self, HeaderError> {
        let header = SegmentHeader::decode(bytes)?;
        let bad_header = SegmentHeader::damaged_copy(bytes);
        let missing = header.file_len.saturating_sub(file_len);
        Ok(Self { header, bad_header, len: header.file_len.min(file_len), missing })
    }

    /// As if the file ended there, if not before.
    pub fn up_to(self, len: u64) -> Self {
        Self { len: self.len.min(len), ..self }
    }
}

/// Bytes of a segment file.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a> {
    bytes: &'a [u8],
    /// Offset of the first in the file.
    base: u64,
}

impl<'a> Bytes<'a> {
    /// A whole file.
    pub fn whole(bytes: &'a [u8]) -> Self {
        Self { bytes, base: 0 }
    }

    /// Those from an offset on.
    pub fn from(self, offset: u64) -> &'a [u8] {
        let at = offset.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.bytes.get(at..)).unwrap_or_default()
    }
}

/// Reads a file piece by piece into a buffer that stays in the processor's cache.
#[derive(Default)]
pub(super) struct Window {
    buffer: PageBuffer,
    /// Offset of its first byte in the file.
    base: u64,
    /// Reads past the page cache.
    pub uncached: bool,
}

impl Window {
    /// The least that is read, and a part of the file: small files are read in pieces, too.
    fn size(file_len: u64) -> u64 {
        (file_len / 8).clamp(2 * FIRST_GROUP, 1 << 20)
    }

    /// Sees to it that the bytes of the range are there, as far as the file has them.
    fn need(&mut self, file: &dyn File, file_len: u64, range: Range<u64>) -> io::Result<()> {
        let end = range.end.min(file_len);
        if range.start >= self.base && end <= self.base + self.buffer.bytes().len() as u64 {
            return Ok(());
        }
        let end = end.max(range.start + Self::size(file_len)).min(file_len);
        self.base = range.start;
        self.buffer.read(file, range.start..end, self.uncached).map(drop)
    }

    /// What was read last, up to an offset of the file.
    pub fn bytes(&self, end: u64) -> Bytes<'_> {
        let bytes = self.buffer.bytes();
        let len = (end.saturating_sub(self.base) as usize).min(bytes.len());
        Bytes { bytes: bytes.get(..len).unwrap_or_default(), base: self.base }
    }

    fn scan(&self, start: &SegmentStart) -> Scan<'_> {
        Scan { bytes: self.bytes(start.len), header: start.header }
    }
}

/// Reads what the header of a segment file tells.
pub(super) fn read_start(file: &dyn File, window: &mut Window) -> io::Result<Result<SegmentStart, HeaderError>> {
    let file_len = file.len()?;
    window.buffer.forget();
    window.need(file, file_len, 0..2 * FIRST_GROUP)?;
    Ok(SegmentStart::of(window.bytes(file_len).bytes, file_len))
}

/// As [`scan_segment`], of a file that is read piece by piece: `each` gets every group, and bytes with all of it.
pub(super) fn read_groups(
    file: &dyn File,
    window: &mut Window,
    start: &SegmentStart,
    each: &mut dyn FnMut(GroupScan, Bytes<'_>),
) -> io::Result<()> {
    let mut at = FIRST_GROUP;
    while at < start.len {
        window.need(file, start.len, at..at + GROUP_ALIGN)?;
        let Some(header) = window.scan(start).group_header(at) else {
            // The end of what was written, or damage.
            match dead_end(file, window, start, at)? {
                Some(left) => left.into_iter().for_each(|left| each(left, window.bytes(start.len))),
                None => {
                    window.need(file, start.len, at..start.len)?;
                    window.scan(start).run(at, each);
                }
            }
            return Ok(());
        };
        window.need(file, start.len, at..header.next_group(at))?;
        let scan = window.scan(start);
        let group = scan.group(at, header);
        at = group.end;
        each(group, scan.bytes);
    }
    Ok(())
}

/// What [`Scan::run`] finds from an offset on if nothing there proves itself: nothing behind zeros, or that there is something, which is
/// what an older segment has left as a rule. It is read piece by piece: nearly each segment ends so, some with megabytes. `None` if
/// something may prove itself, which takes all bytes to find out.
fn dead_end(
    file: &dyn File,
    window: &mut Window,
    start: &SegmentStart,
    mut at: u64,
) -> io::Result<Option<Option<GroupScan>>> {
    let piece = align_up(Window::size(start.len), GROUP_ALIGN);
    let mut used: Option<Range<u64>> = None;
    while at < start.len {
        window.need(file, start.len, at..at + piece)?;
        let scan = window.scan(start);
        let end = scan.end().min(at + piece);
        if end <= at {
            break;
        }
        let is_group = |at| scan.group_header(at).is_some();
        if (at..end).step_by(GROUP_ALIGN as usize).any(is_group) || scan.may_hold_record(at..end, start.len) {
            return Ok(None);
        }
        while at < end {
            let block = at..end.min(at + GROUP_ALIGN);
            if !scan.is_zero(block.clone()) {
                let zeros = scan.slice(block.clone()).iter().rev().take_while(|byte| **byte == 0).count();
                used = Some(used.map_or(at, |used| used.start)..block.end - zeros as u64);
            }
            at = block.end;
        }
    }
    let left = |used: Range<u64>| GroupScan {
        offset: used.start,
        end: align_up(used.end, GROUP_ALIGN).min(at),
        damage: vec![Damage {
            bytes: used.start..used.start + align_up(used.end - used.start, RECORD_ALIGN),
            part: Part::GroupHeader,
        }],
        ..GroupScan::default()
    };
    Ok(Some(used.map(left)))
}

/// The group at an offset, if a valid header lies there.
pub(super) fn read_group(
    file: &dyn File,
    window: &mut Window,
    start: &SegmentStart,
    at: u64,
) -> io::Result<Option<GroupScan>> {
    window.need(file, start.len, at..at + GROUP_ALIGN)?;
    let Some(header) = window.scan(start).group_header(at) else { return Ok(None) };
    window.need(file, start.len, at..header.next_group(at))?;
    Ok(Some(window.scan(start).group(at, header)))
}

struct Scan<'a> {
    bytes: Bytes<'a>,
    header: SegmentHeader,
}

impl<'a> Scan<'a> {
    fn run(&self, mut at: u64, each: &mut dyn FnMut(GroupScan, Bytes<'a>)) {
        while at < self.end() {
            let group = if let Some(header) = self.group_header(at) {
                self.group(at, header)
            } else if self.is_zero(at..at + GROUP_ALIGN) {
                at += GROUP_ALIGN;
                continue;
            } else {
                self.remains(at)
            };
            at = group.end;
            each(group, self.bytes);
        }
    }

    /// Where the bytes end.
    fn end(&self) -> u64 {
        self.bytes.base + self.bytes.bytes.len() as u64
    }

    fn from(&self, at: u64) -> &'a [u8] {
        self.bytes.from(at)
    }

    fn group_header(&self, at: u64) -> Option<GroupHeader> {
        GroupHeader::decode_at(self.from(at), at, &self.header)
    }

    fn record_head(&self, at: u64, end: u64) -> Option<RecordHead> {
        let bytes = self.from(at);
        let len = (end.saturating_sub(at) as usize).min(bytes.len());
        RecordHead::decode_at(bytes.get(..len)?, at, &self.header)
    }

    fn group(&self, offset: u64, header: GroupHeader) -> GroupScan {
        let end = header.end(offset).min(self.end());
        let crc = self.from(offset + GROUP_HEADER_LEN as u64 - 4).first_chunk::<4>();
        let crc = crc.map_or(0, |c| u32::from_le_bytes(*c));
        let mut group =
            GroupScan { offset, end: header.next_group(offset), header: Some(header), crc, ..Default::default() };
        self.records(offset + GROUP_HEADER_LEN as u64, end, &mut group);
        group.dirty_padding += self.dirty(end..group.end);
        group
    }

    /// Walks the records of a group; after a damaged one, goes on at the next place where a valid head lies.
    fn records(&self, mut at: u64, end: u64, group: &mut GroupScan) {
        while at + RECORD_ALIGN <= end {
            match self.record_head(at, end) {
                Some(head) => {
                    let body_is_sound = head.body_is_sound(self.from(at), 0) || is(Bug::BodyUnchecked);
                    let record_end = at + u64::from(head.len);
                    if !body_is_sound {
                        group.damage.push(Damage { bytes: at..record_end, part: Part::record(head.known_kind()) });
                    }
                    group.records.push(RecordScan { offset: at, head, body_is_sound });
                    let next = head.next_record(at);
                    group.dirty_padding += self.dirty(record_end..next.min(end));
                    at = next;
                }
                None => {
                    let next = self.next_record(at + RECORD_ALIGN, end);
                    group.damage.push(Damage { bytes: at..next, part: Part::RecordHead });
                    at = next;
                }
            }
        }
    }

    /// Where the next valid head lies, from an offset on where one may lie.
    fn next_record(&self, at: u64, end: u64) -> u64 {
        self.heads(at, end).find(|at| self.record_head(*at, end).is_some()).unwrap_or(end)
    }

    /// May a record lie in the segment of which a part lies in this piece? One that reaches out of the piece cannot be checked.
    fn may_hold_record(&self, piece: Range<u64>, end: u64) -> bool {
        let may_be = |at: u64| match self.from(at).first_chunk() {
            Some(len) => at + u64::from(u32::from_le_bytes(*len)) > self.end() || self.record_head(at, end).is_some(),
            None => true,
        };
        self.heads(piece.start - NUMBER, piece.end).any(may_be)
    }

    /// Places for heads where the number of a segment is this one's: behind the last group of a segment that was used before lie
    /// megabytes of old bytes, and few of them hold it.
    fn heads(&self, mut at: u64, end: u64) -> impl Iterator<Item = u64> {
        let finder = memmem::Finder::new(&self.header.number.to_le_bytes()).into_owned();
        std::iter::from_fn(move || {
            loop {
                let found = at + finder.find(self.slice(at + NUMBER..end))? as u64;
                at = align_up(found + 1, RECORD_ALIGN);
                if found.is_multiple_of(RECORD_ALIGN) {
                    return Some(found);
                }
            }
        })
    }

    /// Bytes where a group should start and no valid header lies: takes the records that prove themselves, up to the
    /// next valid group header or the last byte that is not zero.
    fn remains(&self, offset: u64) -> GroupScan {
        let mut end = offset + GROUP_ALIGN;
        let mut content_end = end;
        while end < self.end() && self.group_header(end).is_none() {
            if !self.is_zero(end..end + GROUP_ALIGN) {
                content_end = end + GROUP_ALIGN;
            }
            end += GROUP_ALIGN;
        }
        let content_end = content_end.min(self.end());
        let mut group = GroupScan { offset, end: content_end, ..Default::default() };
        let first = self.next_record(offset, content_end);
        group.damage.push(Damage { bytes: offset..first, part: Part::GroupHeader });
        self.records(first, content_end, &mut group);
        // Behind the last record nothing says where the group ended; zeros are padding.
        if let Some(last) = group.damage.last_mut()
            && last.bytes.end == content_end
        {
            let slice = self.slice(last.bytes.clone());
            let used = slice.iter().rposition(|b| *b != 0).map_or(0, |i| i as u64 + 1);
            last.bytes.end = last.bytes.start + align_up(used, RECORD_ALIGN);
        }
        group.damage.retain(|d| !d.bytes.is_empty());
        group
    }

    fn slice(&self, bytes: Range<u64>) -> &[u8] {
        let from = self.from(bytes.start);
        let len = (bytes.end.saturating_sub(bytes.start) as usize).min(from.len());
        from.get(..len).unwrap_or_default()
    }

    /// Bytes that should be zero and are not.
    fn dirty(&self, bytes: Range<u64>) -> u64 {
        if self.is_zero(bytes.clone()) {
            return 0;
        }
        self.slice(bytes).iter().filter(|b| **b != 0).count() as u64
    }

    fn is_zero(&self, bytes: Range<u64>) -> bool {
        // Comparing memory is several times faster than looking at each byte.
        const ZEROS: [u8; GROUP_ALIGN as usize] = [0; GROUP_ALIGN as usize];
        self.slice(bytes).chunks(ZEROS.len()).all(|block| ZEROS.get(..block.len()) == Some(block))
    }
}
