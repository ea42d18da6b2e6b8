//! Fixed-width structures of a segment: header, group header, record head (`wal-format.md`, sections 2 to 4).
//!
//! Everything here is little-endian, stamped in place, and proved by a CRC that also covers where it lies: the
//! segment's salt and the file offset. So bytes of another segment, of another place or inside a log line are never
//! taken for a structure.

use crate::codec::{Cursor, DecodeError, align_up, crc32};
use crate::planted::{Bug, is};
use std::ops::Range;
use uuid::Uuid;

/// First bytes of every segment of the write-ahead log.
pub const MAGIC: [u8; 8] = *b"TMBRWAL1";
/// First bytes of every segment of the block log.
pub const BLOCKS_MAGIC: [u8; 8] = *b"TMBRBLK1";
/// Version of the format that this code reads and writes.
pub const VERSION: u16 = 1;
/// Groups start at multiples of this, so that an acknowledged sector is never written again.
pub const GROUP_ALIGN: u64 = 4096;
/// Offset of the second copy of the segment header.
pub const SECOND_HEADER: u64 = 4096;
/// Offset of the first group.
pub const FIRST_GROUP: u64 = 8192;
/// Bytes of a segment header that are in use.
pub const SEGMENT_HEADER_LEN: usize = 64;
/// Bytes of a group header.
pub const GROUP_HEADER_LEN: usize = 64;
/// Bytes of a record head, before its tables.
pub const RECORD_HEAD_LEN: usize = 48;
/// Records start at multiples of this within a group.
pub const RECORD_ALIGN: u64 = 8;
/// Largest record that a reader accepts: a push of 128 MiB, incompressible, with its tables and head.
pub const MAX_RECORD_LEN: u64 = 256 << 20;

/// First bytes of every group.
pub const GROUP_MAGIC: [u8; 4] = *b"TGRP";

/// Which of the two logs a segment belongs to. Their framing is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LogKind {
    /// The write-ahead log: short-lived records.
    #[default]
    Wal,
    /// The block log: sealed blocks.
    Blocks,
}

impl LogKind {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::Wal => MAGIC,
            Self::Blocks => BLOCKS_MAGIC,
        }
    }

    fn of_magic(magic: &[u8]) -> Option<Self> {
        [Self::Wal, Self::Blocks].into_iter().find(|kind| kind.magic() == magic)
    }

    /// Extension of the segments' file names.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Blocks => "blk",
        }
    }
}

/// The constants of a segment, written once, before the segment is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log that it belongs to.
    pub log: LogKind,
    /// Number of the segment; also its file name.
    pub number: u64,
    /// Size of the file. A shorter file was cut.
    pub file_len: u64,
    /// Random; part of every CRC of the segment.
    pub salt: u64,
    /// Identity of the data directory.
    pub volume: Uuid,
    /// Made from a retired segment: where no group was written yet, bytes of the old one lie, not zeros.
    pub recycled: bool,
}

/// Why a segment header was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Neither copy carries the magic.
    #[error("no segment header")]
    NotASegment,
    /// Both copies fail their CRC.
    #[error("both copies of the segment header are damaged")]
    Damaged,
    /// Made by a newer Timberline.
    #[error("format version {0}, this program reads version {VERSION}: use the newer program that wrote it")]
    Version(u16),
}

impl SegmentHeader {
    /// Encodes the copy that lies at `offset` (0 or [`SECOND_HEADER`]).
    pub fn encode(&self, offset: u64) -> [u8; SEGMENT_HEADER_LEN] {
        let mut out = [0; SEGMENT_HEADER_LEN];
        let mut w = Stamp::new(&mut out);
        w.bytes(&self.log.magic()).u16(VERSION).u16(u16::from(self.recycled)).u32(0).bytes(self.volume.as_bytes());
        w.u64(self.number).u64(self.file_len).u64(self.salt).u32(0);
        let crc = crc32(&[&out[..60], &offset.to_le_bytes()]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads either copy from the beginning of a segment file.
    ///
    /// # Errors
    /// Both copies are unusable, or the version is newer.
    pub fn decode(file: &[u8]) -> Result<Self, HeaderError> {
        let mut worst = HeaderError::NotASegment;
        for offset in [0, SECOND_HEADER] {
            let copy = file.get(offset as usize..).and_then(|b| b.first_chunk::<SEGMENT_HEADER_LEN>());
            match copy.map(|copy| Self::decode_copy(copy, offset)) {
                Some(Ok(header)) => return Ok(header),
                Some(Err(e @ HeaderError::Version(_))) => return Err(e),
                Some(Err(HeaderError::Damaged)) => worst = HeaderError::Damaged,
                Some(Err(HeaderError::NotASegment)) | None => {}
            }
        }
        Err(worst)
    }

    /// The copy that does not hold where the other one does.
    pub fn damaged_copy(file: &[u8]) -> Option<Range<u64>> {
        let place = |offset: u64| offset..offset + SEGMENT_HEADER_LEN as u64;
        let copy = |offset: u64| file.get(offset as usize..)?.first_chunk::<SEGMENT_HEADER_LEN>();
        let holds = |offset: u64| copy(offset).is_some_and(|c| Self::decode_copy(c, offset).is_ok());
        match (holds(0), holds(SECOND_HEADER)) {
            (false, true) => Some(place(0)),
            (true, false) => Some(place(SECOND_HEADER)),
            _ => None,
        }
    }

    fn decode_copy(copy: &[u8; SEGMENT_HEADER_LEN], offset: u64) -> Result<Self, HeaderError> {
        let crc = crc32(&[&copy[..60], &offset.to_le_bytes()]);
        let log = LogKind::of_magic(&copy[..8]);
        if crc.to_le_bytes() != copy[60..] {
            return Err(if log.is_some() { HeaderError::Damaged } else { HeaderError::NotASegment });
        }
        let Some(log) = log else { return Err(HeaderError::NotASegment) };
        let parse = || -> Result<(u16, Self), DecodeError> {
            let mut c = Cursor::new(copy.get(8..).unwrap_or_default());
            let version = c.u16()?;
            let recycled = c.u16()? & 1 == 1;
            c.bytes(4)?;
            let volume = Uuid::from_slice(c.bytes(16)?).unwrap_or_default();
            Ok((version, Self { log, volume, recycled, number: c.u64()?, file_len: c.u64()?, salt: c.u64()? }))
        };
        let (version, header) = parse().map_err(|_| HeaderError::Damaged)?;
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        Ok(header)
    }
}

/// The head of a commit group: what one `pwrite` and one `fdatasync` made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupHeader {
    /// Bytes of the group, this header included, padding excluded.
    pub len: u32,
    /// Number of the segment.
    pub segment: u64,
    /// LSN of the first record that has one of its own; the next LSN if none has.
    pub first_lsn: u64,
    /// Records of any kind.
    pub records: u32,
    /// Records that have an LSN of their own.
    pub lsns: u32,
    /// Every LSN below this one was durable when the group was built. A valid header proves it.
    pub durable_lsn: u64,
    /// Log lines in the log's life before this group.
    pub lines_before: u64,
    /// Nanoseconds since the Unix epoch when the group was built.
    pub wall_clock: i64,
}

impl GroupHeader {
    /// Encodes the header of a group at `offset`.
    pub fn encode(&self, salt: u64, offset: u64) -> [u8; GROUP_HEADER_LEN] {
        let mut out = [0; GROUP_HEADER_LEN];
        let mut w = Stamp::new(&mut out);
        w.bytes(&GROUP_MAGIC).u32(self.len).u64(self.segment).u64(self.first_lsn).u32(self.records).u32(self.lsns);
        w.u64(self.durable_lsn).u64(self.lines_before).u64(self.wall_clock as u64).u32(0);
        let crc = crc32(&[&out[..60], &salt.to_le_bytes(), &offset.to_le_bytes()]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of a group that lies at `offset` of its segment, if a valid one is there. `bytes` begin with it.
    pub fn decode_at(bytes: &[u8], offset: u64, segment: &SegmentHeader) -> Option<Self> {
        let raw = bytes.first_chunk::<GROUP_HEADER_LEN>()?;
        if raw[..4] != GROUP_MAGIC {
            return None;
        }
        let crc = crc32(&[&raw[..60], &segment.salt.to_le_bytes(), &offset.to_le_bytes()]);
        if crc.to_le_bytes() != raw[60..] {
            return None;
        }
        let parse = || -> Result<Self, DecodeError> {
            let mut c = Cursor::new(raw.get(4..).unwrap_or_default());
            Ok(Self {
                len: c.u32()?,
                segment: c.u64()?,
                first_lsn: c.u64()?,
                records: c.u32()?,
                lsns: c.u32()?,
                durable_lsn: c.u64()?,
                lines_before: c.u64()?,
                wall_clock: c.u64()? as i64,
            })
        };
        let header = parse().ok()?;
        let end = offset.checked_add(u64::from(header.len))?;
        // A group that a cut file holds in part still tells its LSNs and what was durable.
        let fits = header.len as usize >= GROUP_HEADER_LEN && end <= segment.file_len;
        ((header.segment == segment.number || is(Bug::SaltKept)) && fits).then_some(header)
    }

    /// End of the group's records in the file, for a group at `offset`.
    pub fn end(&self, offset: u64) -> u64 {
        offset.saturating_add(u64::from(self.len))
    }

    /// Where the next group starts, for a group at `offset`.
    pub fn next_group(&self, offset: u64) -> u64 {
        align_up(self.end(offset), GROUP_ALIGN)
    }

    /// The LSN after the group's last.
    pub fn end_lsn(&self) -> u64 {
        self.first_lsn.saturating_add(u64::from(self.lsns))
    }
}

/// What a record holds. 0 is reserved: a run of zeros is never a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Definitions of streams.
    Series = 1,
    /// Log entries of one push.
    Entries = 2,
    /// First record of a segment.
    Open = 3,
    /// A loss that was settled: these LSNs and seqs do not exist.
    Gap = 4,
    /// The block log is durable up to here.
    BlocksSynced = 5,
    /// A chunk takes no more blocks.
    ChunkClosed = 6,
    /// A chunk is in the object store.
    ChunkFlushed = 7,
    /// Segments that are about to go.
    Retiring = 8,
    /// A sealed block (block log only).
    Block = 9,
    /// What a segment of the block log holds (block log only).
    Footer = 10,
}

impl Kind {
    /// The kind with this number.
    pub fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Series,
            2 => Self::Entries,
            3 => Self::Open,
            4 => Self::Gap,
            5 => Self::BlocksSynced,
            6 => Self::ChunkClosed,
            7 => Self::ChunkFlushed,
            8 => Self::Retiring,
            9 => Self::Block,
            10 => Self::Footer,
            _ => return None,
        })
    }

    /// Does a record of this kind use up an LSN? Open and Series can be derived from the rest of the log, so they are
    /// written again wherever they are needed and carry the LSN of the record that comes next. The block log has no
    /// LSNs of its own.
    pub fn has_lsn(self) -> bool {
        match self {
            Self::Entries | Self::Gap => true,
            Self::BlocksSynced | Self::ChunkClosed | Self::ChunkFlushed | Self::Retiring => true,
            Self::Series | Self::Open | Self::Block | Self::Footer => false,
        }
    }

    /// The name in messages and in `wal-inspect`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Series => "series",
            Self::Entries => "entries",
            Self::Open => "open",
            Self::Gap => "gap",
            Self::BlocksSynced => "blocks_synced",
            Self::ChunkClosed => "chunk_closed",
            Self::ChunkFlushed => "chunk_flushed",
            Self::Retiring => "retiring",
            Self::Block => "block",
            Self::Footer => "footer",
        }
    }
}

/// Flag of a record that a reader which does not know its type may skip.
pub const FLAG_SKIPPABLE: u8 = 1;
/// Flag of an Entries record whose entries were in the log before: small heads of the oldest segment, logged again.
pub const FLAG_CARRIED: u8 = 2;

/// The head of a record. Its tables and its body follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// Bytes of head, tables and body; padding to [`RECORD_ALIGN`] excluded.
    pub len: u32,
    /// A [`Kind`], as its number: a reader may meet newer ones.
    pub kind: u8,
    /// [`FLAG_SKIPPABLE`] or 0.
    pub flags: u8,
    /// A [`super::Codec`], as its number.
    pub codec: u8,
    /// Log sequence number.
    pub lsn: u64,
    /// Number of the segment.
    pub segment: u64,
    /// Bytes of the tables.
    pub tables_len: u32,
    /// Bytes of the body as stored.
    pub body_len: u32,
    /// Bytes of the body when decompressed.
    pub raw_len: u32,
    /// CRC-32 of the body as stored.
    pub body_crc: u32,
}

impl RecordHead {
    /// Stamps the head into the first bytes of a record that will lie at `offset`; `record` holds head, tables and
    /// body. The CRC covers the head, the tables and, through the body's CRC, the body.
    pub fn stamp(&self, record: &mut [u8], salt: u64, offset: u64) {
        let (head, rest) = record.split_at_mut(RECORD_HEAD_LEN);
        head.fill(0);
        let mut w = Stamp::new(head);
        w.u32(self.len).bytes(&[self.kind, self.flags, self.codec, 0]).u64(self.lsn).u64(self.segment);
        w.u32(self.tables_len).u32(self.body_len).u32(self.raw_len).u32(self.body_crc).u32(0);
        let tables = rest.get(..self.tables_len as usize).unwrap_or_default();
        let crc = crc32(&[&head[..44], &salt.to_le_bytes(), &offset.to_le_bytes(), tables]);
        head[44..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the record head at `offset` of a segment's bytes, if a valid one with valid tables lies there and the
    /// record ends at or before `limit`. The body is not checked.
    pub fn decode(file: &[u8], offset: u64, limit: u64, segment: &SegmentHeader) -> Option<Self> {
        let end = usize::try_from(limit).unwrap_or(usize::MAX).min(file.len());
        Self::decode_at(file.get(usize::try_from(offset).ok()?..end)?, offset, segment)
    }

    /// As [`RecordHead::decode`], from bytes that begin with the record, which lies at `offset` of its segment.
    pub fn decode_at(bytes: &[u8], offset: u64, segment: &SegmentHeader) -> Option<Self> {
        let raw = bytes.first_chunk::<RECORD_HEAD_LEN>()?;
        let parse = || -> Result<Self, DecodeError> {
            let mut c = Cursor::new(raw);
            let len = c.u32()?;
            let (kind, flags, codec, _) = (c.u8()?, c.u8()?, c.u8()?, c.u8()?);
            Ok(Self {
                len,
                kind,
                flags,
                codec,
                lsn: c.u64()?,
                segment: c.u64()?,
                tables_len: c.u32()?,
                body_len: c.u32()?,
                raw_len: c.u32()?,
                body_crc: c.u32()?,
            })
        };
        let head = parse().ok()?;
        let sum = RECORD_HEAD_LEN as u64 + u64::from(head.tables_len) + u64::from(head.body_len);
        let ours = head.segment == segment.number || is(Bug::SaltKept);
        let plausible = head.kind != 0 && ours && u64::from(head.len) == sum;
        if !plausible || sum > MAX_RECORD_LEN || sum > bytes.len() as u64 {
            return None;
        }
        let tables = bytes.get(RECORD_HEAD_LEN..RECORD_HEAD_LEN + head.tables_len as usize)?;
        let crc = crc32(&[&raw[..44], &segment.salt.to_le_bytes(), &offset.to_le_bytes(), tables]);
        (crc.to_le_bytes() == raw[44..] || is(Bug::HeadUnchecked)).then_some(head)
    }

    /// The record's tables, for a record at `offset`.
    pub fn tables<'a>(&self, file: &'a [u8], offset: u64) -> &'a [u8] {
        let start = offset as usize + RECORD_HEAD_LEN;
        file.get(start..start + self.tables_len as usize).unwrap_or_default()
    }

    /// The record's body as stored, for a record at `offset`.
    pub fn body<'a>(&self, file: &'a [u8], offset: u64) -> &'a [u8] {
        let start = offset as usize + RECORD_HEAD_LEN + self.tables_len as usize;
        file.get(start..start + self.body_len as usize).unwrap_or_default()
    }

    /// Does the stored body match its CRC?
    pub fn body_is_sound(&self, file: &[u8], offset: u64) -> bool {
        crc32(&[self.body(file, offset)]) == self.body_crc
    }

    /// Where the next record of the group starts, for a record at `offset`.
    pub fn next_record(&self, offset: u64) -> u64 {
        align_up(offset.saturating_add(u64::from(self.len)), RECORD_ALIGN)
    }

    /// The kind, if this program knows it.
    pub fn known_kind(&self) -> Option<Kind> {
        Kind::from_u8(self.kind)
    }
}

/// Writes fixed-width fields one after the other. The layouts above fit their buffers; a field past the end would be
/// dropped and its CRC would never match.
struct Stamp<'a> {
    rest: &'a mut [u8],
}

impl<'a> Stamp<'a> {
    fn new(rest: &'a mut [u8]) -> Self {
        Self { rest }
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let rest = std::mem::take(&mut self.rest);
        if let Some((head, tail)) = rest.split_at_mut_checked(bytes.len()) {
            head.copy_from_slice(bytes);
            self.rest = tail;
        }
        self
    }

    fn u16(&mut self, v: u16) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    fn u32(&mut self, v: u32) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            log: LogKind::Wal,
            number: 7,
            file_len: 1 << 20,
            salt: 0x1122_3344_5566_7788,
            volume: Uuid::from_u128(9),
            recycled: false,
        }
    }

    #[test]
    fn either_copy_of_the_segment_header_serves() {
        let mut file = vec![0; 8192];
        file[..64].copy_from_slice(&header().encode(0));
        file[4096..4160].copy_from_slice(&header().encode(SECOND_HEADER));
        assert_eq!(SegmentHeader::decode(&file), Ok(header()));
        for byte in 0..64 {
            for bit in 0..8 {
                file[byte] ^= 1 << bit;
                assert_eq!(SegmentHeader::decode(&file), Ok(header()), "byte {byte}");
                file[byte] ^= 1 << bit;
            }
        }
        file[9] ^= 1;
        file[4100] ^= 1;
        assert!(SegmentHeader::decode(&file).is_err());
        assert_eq!(SegmentHeader::decode(&[0; 8192]), Err(HeaderError::NotASegment));
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        let mut copy = header().encode(0);
        copy[8] = 2;
        let crc = crc32(&[&copy[..60], &0u64.to_le_bytes()]);
        copy[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&copy), Err(HeaderError::Version(2)));
    }

    #[test]
    fn a_group_header_is_bound_to_its_place() {
        let group = GroupHeader { len: 64, segment: 7, first_lsn: 3, durable_lsn: 3, ..GroupHeader::default() };
        let mut file = vec![0; 16384];
        file[8192..8256].copy_from_slice(&group.encode(header().salt, 8192));
        assert_eq!(GroupHeader::decode_at(&file[8192..], 8192, &header()), Some(group));
        file.copy_within(8192..8256, 12288);
        assert_eq!(GroupHeader::decode_at(&file[12288..], 12288, &header()), None);
        assert_eq!(GroupHeader::decode_at(&file[8192..], 8192, &SegmentHeader { salt: 1, ..header() }), None);
    }
}
