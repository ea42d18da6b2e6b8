//! Decompression that never holds more than the limit, and reserves every byte before it allocates it.

use super::{DecodeLimits, Lease};
use crate::model::PushError;
use flate2::{Decompress, FlushDecompress, Status};

const UNEXPECTED_EOF: &str = "unexpected EOF";
/// A snappy copy of 3 bytes yields at most 64, so a body that declares more than this many times its size is corrupt.
const MAX_SNAPPY_RATIO: usize = 22;
/// The message becomes the push's arena; validation appends the names of levels to it, which must not move it.
const ARENA_SPARE: usize = 256;
/// A first buffer for inflated bytes; it doubles from there.
const MIN_BUFFER: usize = 8 << 10;
const MAX_FIRST_BUFFER: usize = 1 << 20;
/// Log lines usually deflate to less than a quarter.
const USUAL_DEFLATE_RATIO: usize = 4;

/// Bytes that [`snappy`] will fill, by the body's own account but never more than its size allows.
pub(super) fn snappy_size(body: &[u8]) -> usize {
    snap::raw::decompress_len(body).unwrap_or(0).min(body.len().saturating_mul(MAX_SNAPPY_RATIO))
}

/// Bytes that inflating starts with.
pub(super) fn first_buffer(body: &[u8]) -> usize {
    body.len().saturating_mul(USUAL_DEFLATE_RATIO).clamp(MIN_BUFFER, MAX_FIRST_BUFFER)
}

/// One raw snappy block. The declared length is checked before anything is allocated.
pub(super) fn snappy(body: &[u8], limits: &DecodeLimits, lease: &mut Lease) -> Result<Vec<u8>, PushError> {
    let corrupt = || PushError::bad_request("snappy: corrupt input");
    if body.is_empty() {
        return Err(corrupt());
    }
    let len = snap::raw::decompress_len(body).map_err(|_| corrupt())?;
    limits.check_decompressed(len)?;
    if len > body.len().saturating_mul(MAX_SNAPPY_RATIO) {
        return Err(corrupt());
    }
    lease.take(len + ARENA_SPARE)?;
    let mut out = Vec::with_capacity(len + ARENA_SPARE);
    out.resize(len, 0);
    let written = snap::raw::Decoder::new().decompress(body, &mut out).map_err(|_| corrupt())?;
    if written == len { Ok(out) } else { Err(corrupt()) }
}

/// Gzip, with one or more members. Bytes after the last member that are no member are ignored, as gzip(1) does.
pub(super) fn gzip(body: &[u8], limits: &DecodeLimits, lease: &mut Lease) -> Result<Vec<u8>, PushError> {
    let mut output = Output::new(body, limits, lease)?;
    let mut raw = Decompress::new(false);
    let mut rest = body;
    loop {
        rest = gzip_header(rest).map_err(PushError::bad_request)?;
        let start = output.bytes.len();
        let used = output.inflate(&mut raw, rest)?;
        rest = rest.get(used..).unwrap_or_default();
        let member = output.bytes.get(start..).unwrap_or_default();
        rest = gzip_trailer(rest, member).map_err(PushError::bad_request)?;
        if !rest.starts_with(&GZIP_MAGIC) {
            return Ok(output.bytes);
        }
        raw.reset(false);
    }
}

/// Raw DEFLATE as Loki wants it, or wrapped in zlib as the standard says and some clients send.
pub(super) fn deflate(body: &[u8], limits: &DecodeLimits, lease: &mut Lease) -> Result<Vec<u8>, PushError> {
    let mut output = Output::new(body, limits, lease)?;
    output.inflate(&mut Decompress::new(has_zlib_header(body)), body)?;
    Ok(output.bytes)
}

/// RFC 1950: method 8, a window of at most 32 KiB, no dictionary, and a check that makes it a multiple of 31.
/// As raw DEFLATE such a byte would start a stored block with non-zero padding, which no encoder writes.
fn has_zlib_header(body: &[u8]) -> bool {
    let [method, flags, ..] = *body else { return false };
    let check = u16::from_be_bytes([method, flags]);
    method & 0x0f == 8 && method >> 4 <= 7 && flags & 0x20 == 0 && check % 31 == 0
}

struct Output<'a> {
    bytes: Vec<u8>,
    limits: &'a DecodeLimits,
    lease: &'a mut Lease,
}

impl<'a> Output<'a> {
    fn new(body: &[u8], limits: &'a DecodeLimits, lease: &'a mut Lease) -> Result<Self, PushError> {
        if body.is_empty() {
            return Err(PushError::bad_request("EOF"));
        }
        let mut bytes = Vec::new();
        lease.grow(&mut bytes, first_buffer(body).min(limits.decompressed() + 1))?;
        Ok(Self { bytes, limits, lease })
    }

    /// Inflates one stream to its end and gives the number of bytes that it took from `input`.
    fn inflate(&mut self, stream: &mut Decompress, input: &[u8]) -> Result<usize, PushError> {
        let mut used = 0;
        loop {
            self.make_room()?;
            let rest = input.get(used..).unwrap_or_default();
            let (read, written) = (stream.total_in(), self.bytes.len());
            let status = stream
                .decompress_vec(rest, &mut self.bytes, FlushDecompress::None)
                .map_err(|_| PushError::bad_request("flate: corrupt input"))?;
            let read = (stream.total_in() - read) as usize;
            used += read;
            self.limits.check_decompressed(self.bytes.len())?;
            match status {
                Status::StreamEnd => return Ok(used),
                Status::Ok | Status::BufError if read > 0 || self.bytes.len() > written => {}
                // There is room and nothing moves: the input ends before the stream does.
                Status::Ok | Status::BufError => return Err(PushError::bad_request(UNEXPECTED_EOF)),
            }
        }
    }

    /// Doubles a full buffer, up to one byte above the limit, which tells a body that exceeds it from one that fits.
    fn make_room(&mut self) -> Result<(), PushError> {
        if self.bytes.len() == self.bytes.capacity() {
            let capacity = (self.bytes.capacity() * 2).min(self.limits.decompressed() + 1);
            self.lease.grow(&mut self.bytes, capacity)?;
        }
        Ok(())
    }
}

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Skips the header of a gzip member (RFC 1952).
fn gzip_header(input: &[u8]) -> Result<&[u8], &'static str> {
    const INVALID: &str = "gzip: invalid header";
    let (head, mut rest) = input.split_at_checked(10).ok_or(UNEXPECTED_EOF)?;
    let flags = match *head {
        [0x1f, 0x8b, 8, flags, ..] if flags & 0xe0 == 0 => flags,
        _ => return Err(INVALID),
    };
    if flags & 0x04 != 0 {
        let (size, after) = rest.split_first_chunk::<2>().ok_or(UNEXPECTED_EOF)?;
        rest = after.get(usize::from(u16::from_le_bytes(*size))..).ok_or(UNEXPECTED_EOF)?;
    }
    // The file's name and a comment, each ended by a zero.
    for text in [0x08, 0x10] {
        if flags & text != 0 {
            let end = memchr::memchr(0, rest).ok_or(UNEXPECTED_EOF)?;
            rest = rest.get(end + 1..).ok_or(UNEXPECTED_EOF)?;
        }
    }
    if flags & 0x02 == 0 {
        return Ok(rest);
    }
    let (sum, after) = rest.split_first_chunk::<2>().ok_or(UNEXPECTED_EOF)?;
    let head = input.get(..input.len() - rest.len()).unwrap_or_default();
    if crc32fast::hash(head) as u16 == u16::from_le_bytes(*sum) { Ok(after) } else { Err(INVALID) }
}

/// Checks CRC and length of a member.
fn gzip_trailer<'a>(input: &'a [u8], member: &[u8]) -> Result<&'a [u8], &'static str> {
    let (sum, rest) = input.split_first_chunk::<4>().ok_or(UNEXPECTED_EOF)?;
    let (size, rest) = rest.split_first_chunk::<4>().ok_or(UNEXPECTED_EOF)?;
    let sound = u32::from_le_bytes(*sum) == crc32fast::hash(member) && u32::from_le_bytes(*size) == member.len() as u32;
    if sound { Ok(rest) } else { Err("gzip: invalid checksum") }
}
