//! Reading a segment's bytes: groups, records, and what is damaged between them. Read-only and pure.

use super::format::{
    FIRST_GROUP, GROUP_ALIGN, GROUP_HEADER_LEN, GroupHeader, HeaderError, RECORD_ALIGN, RecordHead, SegmentHeader,
};
use super::verdict::Part;
use crate::codec::align_up;
use crate::planted::{Bug, is};
use std::fmt;
use std::ops::Range;

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
    let header = SegmentHeader::decode(file)?;
    let bad_header = SegmentHeader::damaged_copy(file);
    let len = usize::try_from(header.file_len).unwrap_or(usize::MAX);
    let missing = header.file_len.saturating_sub(file.len() as u64);
    // Bytes behind the header's length were never ours.
    let file = file.get(..len).unwrap_or(file);
    let mut scan = Scan { file, header, groups: Vec::new() };
    scan.run();
    Ok(SegmentScan { header, bad_header, missing, groups: scan.groups })
}

struct Scan<'a> {
    file: &'a [u8],
    header: SegmentHeader,
    groups: Vec<GroupScan>,
}

impl Scan<'_> {
    fn run(&mut self) {
        let mut at = FIRST_GROUP;
        while at < self.file.len() as u64 {
            if let Some(header) = GroupHeader::decode(self.file, at, &self.header) {
                let group = self.group(at, header);
                at = group.end;
                self.groups.push(group);
            } else if self.is_zero(at..at + GROUP_ALIGN) {
                at += GROUP_ALIGN;
            } else {
                let group = self.remains(at);
                at = group.end;
                self.groups.push(group);
            }
        }
    }

    fn group(&self, offset: u64, header: GroupHeader) -> GroupScan {
        let end = header.end(offset).min(self.file.len() as u64);
        let crc_at = offset as usize + GROUP_HEADER_LEN - 4;
        let crc = self.file.get(crc_at..).and_then(|b| b.first_chunk::<4>()).map_or(0, |c| u32::from_le_bytes(*c));
        let mut group =
            GroupScan { offset, end: header.next_group(offset), header: Some(header), crc, ..Default::default() };
        self.records(offset + GROUP_HEADER_LEN as u64, end, &mut group);
        let padding = self.slice(end..group.end);
        group.dirty_padding += padding.iter().filter(|b| **b != 0).count() as u64;
        group
    }

    /// Walks the records of a group; after a damaged one, goes on at the next place where a valid head lies.
    fn records(&self, mut at: u64, end: u64, group: &mut GroupScan) {
        while at + RECORD_ALIGN <= end {
            match RecordHead::decode(self.file, at, end, &self.header) {
                Some(head) => {
                    let body_is_sound = head.body_is_sound(self.file, at) || is(Bug::BodyUnchecked);
                    let record_end = at + u64::from(head.len);
                    if !body_is_sound {
                        group.damage.push(Damage { bytes: at..record_end, part: Part::record(head.known_kind()) });
                    }
                    group.records.push(RecordScan { offset: at, head, body_is_sound });
                    let next = head.next_record(at);
                    group.dirty_padding +=
                        self.slice(record_end..next.min(end)).iter().filter(|b| **b != 0).count() as u64;
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

    fn next_record(&self, mut at: u64, end: u64) -> u64 {
        while at < end && !self.is_record(at, end) {
            at += RECORD_ALIGN;
        }
        at.min(end)
    }

    /// Behind the last group of a segment that was used before lie megabytes of old bytes: the segment's number, which few
    /// places hold, is looked at first.
    fn is_record(&self, at: u64, end: u64) -> bool {
        let number = self.file.get(at as usize + 16..).and_then(|b| b.first_chunk::<8>());
        number.is_some_and(|n| *n == self.header.number.to_le_bytes())
            && RecordHead::decode(self.file, at, end, &self.header).is_some()
    }

    /// Bytes where a group should start and no valid header lies: takes the records that prove themselves, up to the
    /// next valid group header or the last byte that is not zero.
    fn remains(&self, offset: u64) -> GroupScan {
        let mut end = offset + GROUP_ALIGN;
        let mut content_end = end;
        while end < self.file.len() as u64 && GroupHeader::decode(self.file, end, &self.header).is_none() {
            if !self.is_zero(end..end + GROUP_ALIGN) {
                content_end = end + GROUP_ALIGN;
            }
            end += GROUP_ALIGN;
        }
        let content_end = content_end.min(self.file.len() as u64);
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
        let end = (bytes.end as usize).min(self.file.len());
        self.file.get(bytes.start as usize..end).unwrap_or_default()
    }

    fn is_zero(&self, bytes: Range<u64>) -> bool {
        // Comparing memory is several times faster than looking at each byte.
        const ZEROS: [u8; GROUP_ALIGN as usize] = [0; GROUP_ALIGN as usize];
        self.slice(bytes).chunks(ZEROS.len()).all(|block| ZEROS.get(..block.len()) == Some(block))
    }
}
