//! Following a log that a server writes: groups are handed on as they become durable, through rotation and recycling.
//!
//! A group is durable when a later group header, or the Open of a later segment, says so; a server writes one within 50 ms.
//! What is read twice on the way is the last group or two. Records that a server retires faster than they are read are
//! missed, and their LSNs tell how many.

use super::error::InspectError;
use super::log::Judged;
use super::say;
use crate::fs::{File, Fs, RealFs, read_full_at};
use crate::wal::format::{FIRST_GROUP, GROUP_ALIGN, GROUP_HEADER_LEN, GroupHeader, HeaderError, Kind, SegmentHeader};
use crate::wal::{GroupScan, Open, RecordScan, decode_control, scan_groups, segment_name, segment_number};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The least that is read at a time.
const WINDOW: u64 = 1 << 20;

/// Gets the number of the segment, bytes that begin with the record, and the record; returns whether to go on.
pub type Follow<'a> = dyn FnMut(u64, &[u8], &RecordScan) -> Result<bool, InspectError> + 'a;

/// How far a log was followed.
pub struct Tailer {
    dir: PathBuf,
    segment: u64,
    /// Offset of the next group.
    at: u64,
    /// Records below this LSN were handed on.
    next_lsn: u64,
    /// What group headers say is durable.
    durable_lsn: u64,
}

/// An open segment.
struct Segment {
    header: SegmentHeader,
    file: Arc<dyn File>,
}

/// The next segment with content: where the followed one ends, and whether that was found.
struct Newer {
    number: u64,
    end: Option<u64>,
}

impl Tailer {
    /// From the durable end of a judged log on.
    pub fn behind(judged: &Judged) -> Self {
        let newest = judged.plan.replay.iter().map(|(number, _)| *number).max();
        let lsn = judged.plan.durable_lsn;
        let segment = newest.unwrap_or(0);
        Self { dir: judged.log.dir.clone(), segment, at: FIRST_GROUP, next_lsn: lsn, durable_lsn: lsn }
    }

    /// Hands on what became durable since the last time.
    ///
    /// # Errors
    /// The log cannot be read, or `each` failed.
    pub fn poll(&mut self, each: &mut Follow<'_>) -> Result<(), InspectError> {
        loop {
            let newer = self.newer()?;
            let end = newer.as_ref().and_then(|n| n.end).unwrap_or(u64::MAX);
            let go_on = match self.open(self.segment)? {
                Some(segment) => self.groups(&segment, end, each)?,
                None => true,
            };
            let Some(newer) = newer.filter(|_| go_on) else { return Ok(()) };
            if newer.end.is_some_and(|end| self.at < end) {
                let name = segment_name(self.segment);
                say(&format!("wal-inspect: {name} is damaged at {}, or was removed: run wal-inspect verify", self.at));
            }
            (self.segment, self.at) = (newer.number, FIRST_GROUP);
        }
    }

    /// The next segment that holds something. Its Open says where the one before it ends.
    fn newer(&mut self) -> Result<Option<Newer>, InspectError> {
        let listed = RealFs.list(&self.dir).map_err(InspectError::io("list", &self.dir))?;
        let mut numbers: Vec<u64> = listed.iter().filter_map(|e| segment_number(&e.name)).collect();
        numbers.sort_unstable();
        for number in numbers.into_iter().filter(|n| *n > self.segment) {
            let Some(segment) = self.open(number)? else { continue };
            let Some((group, bytes)) = self.group(&segment, FIRST_GROUP)? else { continue };
            let open = group.records.first().filter(|r| r.head.known_kind() == Some(Kind::Open) && r.body_is_sound);
            let open = open.and_then(|r| {
                let from = bytes.get((r.offset - FIRST_GROUP) as usize..)?;
                decode_control::<Open>(&r.head, r.head.body(from, 0)).ok()
            });
            let previous = open.and_then(|o| o.previous);
            if let Some(previous) = previous {
                self.durable_lsn = self.durable_lsn.max(previous.end_lsn);
            }
            let end = match previous {
                Some(p) if p.segment == self.segment => Some(p.end_offset),
                // What is not shown of the followed one was given up.
                Some(p) if p.segment < self.segment => Some(self.at),
                _ => None,
            };
            return Ok(Some(Newer { number, end }));
        }
        Ok(None)
    }

    /// `None` if it was removed, is used for another one by now, or holds no valid header.
    fn open(&self, number: u64) -> Result<Option<Segment>, InspectError> {
        let path = self.dir.join(segment_name(number));
        let file = match RealFs.open(&path, false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(InspectError::io("open", &path))?,
        };
        let mut bytes = vec![0; FIRST_GROUP as usize];
        let n = read_full_at(&*file, 0, &mut bytes).map_err(InspectError::io("read", &path))?;
        match SegmentHeader::decode(bytes.get(..n).unwrap_or_default()) {
            Ok(header) => Ok((header.number == number).then_some(Segment { header, file })),
            Err(HeaderError::Version(version)) => Err(InspectError::Version { segment: segment_name(number), version }),
            Err(HeaderError::NotASegment | HeaderError::Damaged) => Ok(None),
        }
    }

    fn read(&self, segment: &Segment, at: u64, len: u64) -> Result<Vec<u8>, InspectError> {
        let len = len.min(segment.header.file_len.saturating_sub(at));
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let path = self.dir.join(segment_name(segment.header.number));
        let n = read_full_at(&*segment.file, at, &mut bytes).map_err(InspectError::io("read", &path))?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// The header of a group, if a valid one lies there.
    fn header(&self, segment: &Segment, at: u64) -> Result<Option<GroupHeader>, InspectError> {
        Ok(GroupHeader::decode_at(&self.read(segment, at, GROUP_HEADER_LEN as u64)?, at, &segment.header))
    }

    /// A group and its bytes.
    fn group(&self, segment: &Segment, at: u64) -> Result<Option<(GroupScan, Vec<u8>)>, InspectError> {
        let Some(header) = self.header(segment, at)? else { return Ok(None) };
        let bytes = self.read(segment, at, header.next_group(at) - at)?;
        Ok(scan_groups(&segment.header, at, &bytes).into_iter().next().map(|group| (group, bytes)))
    }

    /// Hands on the durable groups of a segment up to `end`; returns whether to go on.
    fn groups(&mut self, segment: &Segment, end: u64, each: &mut Follow<'_>) -> Result<bool, InspectError> {
        loop {
            // The headers are read first and the groups afterwards: what a header proves was in place before it.
            let Some(len) = self.durable_len(segment, end)? else { return Ok(true) };
            let bytes = self.read(segment, self.at, len)?;
            let groups = scan_groups(&segment.header, self.at, &bytes);
            if groups.is_empty() {
                return Ok(true);
            }
            let base = self.at;
            for group in groups {
                if !self.hand_on(segment.header.number, &group, base, &bytes, each)? {
                    return Ok(false);
                }
            }
        }
    }

    /// Bytes of durable groups that are next: one, or as many as fit a window.
    fn durable_len(&mut self, segment: &Segment, end: u64) -> Result<Option<u64>, InspectError> {
        let (mut at, mut headers) = (self.at, Vec::new());
        while at < end && at - self.at < WINDOW {
            let Some(header) = self.header(segment, at)? else { break };
            self.durable_lsn = self.durable_lsn.max(header.durable_lsn);
            at = header.next_group(at);
            headers.push((header.end_lsn(), at));
        }
        let durable = headers.iter().take_while(|(lsn, _)| *lsn <= self.durable_lsn).last();
        Ok(durable.map(|(_, end)| end - self.at))
    }

    fn hand_on(
        &mut self,
        number: u64,
        group: &GroupScan,
        base: u64,
        bytes: &[u8],
        each: &mut Follow<'_>,
    ) -> Result<bool, InspectError> {
        let Some(header) = group.header else { return Ok(true) };
        if header.first_lsn > self.next_lsn {
            let missed = header.first_lsn - self.next_lsn;
            say(&format!("wal-inspect: {missed} records were removed or damaged before they could be read"));
        }
        for damage in &group.damage {
            say(&format!("wal-inspect: {}: {damage}: run wal-inspect verify", segment_name(number)));
        }
        // A Series record has the LSN of the record behind it.
        for record in group.records.iter().filter(|r| r.body_is_sound && r.head.lsn >= self.next_lsn) {
            let from = bytes.get((record.offset - base) as usize..).unwrap_or_default();
            if !each(number, from, record)? {
                return Ok(false);
            }
        }
        self.next_lsn = self.next_lsn.max(header.end_lsn());
        self.at = group.end.max(self.at + GROUP_ALIGN);
        Ok(true)
    }
}
