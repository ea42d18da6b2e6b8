//! The bytes of a commit group, laid out record by record. Both logs are written with it.

use super::format::{
    GROUP_ALIGN, GROUP_HEADER_LEN, GroupHeader, Kind, RECORD_ALIGN, RECORD_HEAD_LEN, RecordHead, SegmentHeader,
};
use super::record::{ControlBody, EntriesRecord, SeriesDef, block_head, encode_control};
use crate::codec::{align_up, crc32};
use std::time::{SystemTime, UNIX_EPOCH};

/// Chains a group's CRC into the digest of its segment.
pub(super) fn chain_digest(digest: u32, group_crc: u32) -> u32 {
    crc32(&[&digest.to_le_bytes(), &group_crc.to_le_bytes()])
}

/// The bytes of a group, padded, and what its header says.
pub(super) struct Group {
    pub bytes: Vec<u8>,
    pub lsns: u32,
    pub crc: u32,
}

/// Lays records out one after the other, stamped for their place.
pub(super) struct GroupBuilder {
    bytes: Vec<u8>,
    segment: SegmentHeader,
    at: u64,
    first_lsn: u64,
    records: u32,
    lsns: u32,
}

impl GroupBuilder {
    /// A group at offset `at`; `bytes` is a buffer to use again.
    pub fn new(mut bytes: Vec<u8>, segment: SegmentHeader, at: u64, first_lsn: u64) -> Self {
        bytes.clear();
        bytes.resize(GROUP_HEADER_LEN, 0);
        Self { bytes, segment, at, first_lsn, records: 0, lsns: 0 }
    }

    fn next_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.lsns)
    }

    /// LSNs of the records so far.
    pub fn lsns(&self) -> u64 {
        u64::from(self.lsns)
    }

    /// Offset in the segment at which the next record will lie.
    pub fn place(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    fn end_record(&mut self, has_lsn: bool) {
        let padded = align_up(self.bytes.len() as u64, RECORD_ALIGN) as usize;
        self.bytes.resize(padded, 0);
        self.records += 1;
        self.lsns += u32::from(has_lsn);
    }

    pub fn control<T: ControlBody>(&mut self, kind: Kind, value: &T) {
        let (bytes, head) = encode_control(kind, value);
        self.stamped(&bytes, head, kind.has_lsn());
    }

    /// A block with its tables. Returns the record's length.
    pub fn block(&mut self, tables: &[u8], data: &[u8]) -> u32 {
        let head = block_head(tables, data);
        self.placed(head, false, &[&[0; RECORD_HEAD_LEN], tables, data]);
        head.len
    }

    pub fn stamped(&mut self, record: &[u8], head: RecordHead, has_lsn: bool) {
        self.placed(head, has_lsn, &[record]);
    }

    fn placed(&mut self, head: RecordHead, has_lsn: bool, parts: &[&[u8]]) {
        let head = RecordHead { lsn: self.next_lsn(), segment: self.segment.number, ..head };
        let (start, place) = (self.bytes.len(), self.place());
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        head.stamp(self.bytes.get_mut(start..).unwrap_or_default(), self.segment.salt, place);
        self.end_record(has_lsn);
    }

    pub fn series(&mut self, definitions: impl Iterator<Item = SeriesDef>) {
        let definitions: Vec<SeriesDef> = definitions.collect();
        if !definitions.is_empty() {
            self.control(Kind::Series, &definitions);
        }
    }

    pub fn entries(&mut self, record: &EntriesRecord) {
        let (lsn, place) = (self.next_lsn(), self.place());
        record.stamp_into(&mut self.bytes, lsn, self.segment.number, self.segment.salt, place);
        self.end_record(true);
    }

    pub fn finish(mut self, durable_lsn: u64, lines_before: u64) -> Group {
        let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64;
        let header = GroupHeader {
            len: self.bytes.len() as u32,
            segment: self.segment.number,
            first_lsn: self.first_lsn,
            records: self.records,
            lsns: self.lsns,
            durable_lsn,
            lines_before,
            wall_clock,
        };
        let raw = header.encode(self.segment.salt, self.at);
        if let Some(place) = self.bytes.first_chunk_mut::<GROUP_HEADER_LEN>() {
            *place = raw;
        }
        let padded = align_up(self.bytes.len() as u64, GROUP_ALIGN) as usize;
        self.bytes.resize(padded, 0);
        let crc = raw.last_chunk::<4>().map_or(0, |c| u32::from_le_bytes(*c));
        Group { bytes: self.bytes, lsns: self.lsns, crc }
    }
}
