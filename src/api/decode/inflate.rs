//! Decompression that never holds more than the limit, and reserves every byte before it allocates it.

use super::{DecodeLimits, Lease};
use crate::model::PushError;
use flate2::{Decompress, FlushDecompress, Status};
use snap::read::FrameDecoder;
use std::io::Read;

const UNEXPECTED_EOF: &str = "unexpected EOF";
/// A snappy copy of 3 bytes yields at most 64, so a body that declares more than this many times its size is corrupt.
const MAX_SNAPPY_RATIO: usize = 22;
/// The message becomes the push's arena; validation appends the names of levels to it, which must not move it.
const ARENA_SPARE: usize = 256;
/// Two bits of DEFLATE yield at most 258 bytes.
const MAX_DEFLATE_RATIO: usize = 1032;
/// Log lines usually deflate to less than a quarter.
const USUAL_DEFLATE_RATIO: usize = 4;
/// A body's account of its size is believed as far as this many times its own.
const BELIEVED_RATIO: usize = 8;
/// A buffer for bytes that nobody announced, or so many that they are not believed, doubles between these sizes. Beyond,
/// they are counted first: while they move, doubling holds three times what there is, and leaves holes in the heap.
const MIN_BUFFER: usize = 8 << 10;
const MAX_DOUBLED: usize = 1 << 20;
/// Bytes that counting keeps at a time.
const COUNTER_WINDOW: usize = 64 << 10;

/// Bytes that [`snappy`] will fill, by the body's own account but never more than its size allows.
pub(super) fn snappy_size(body: &[u8]) -> usize {
    snap::raw::decompress_len(body).unwrap_or(0).min(body.len().saturating_mul(MAX_SNAPPY_RATIO))
}

/// Bytes that [`gzip`] will fill, by the account of the last member but never more than the body's size allows.
pub(super) fn gzip_size(body: &[u8]) -> usize {
    let size = body.last_chunk::<4>().map_or(0, |size| u32::from_le_bytes(*size) as usize);
    size.min(most_inflated(body))
}

/// Bytes that [`deflate`] usually fills; such a body has no account of its size.
pub(super) fn deflate_size(body: &[u8]) -> usize {
    body.len().saturating_mul(USUAL_DEFLATE_RATIO)
}

/// No body of this size inflates to more.
pub(super) fn most_inflated(body: &[u8]) -> usize {
    body.len().saturating_mul(MAX_DEFLATE_RATIO)
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

/// Snappy's format of frames. They are counted before anything is allocated.
pub(super) fn snappy_frames(body: &[u8], limits: &DecodeLimits, lease: &mut Lease) -> Result<Vec<u8>, PushError> {
    let corrupt = |e: std::io::Error| PushError::bad_request(format!("snappy: {e}"));
    let (mut len, mut window, mut frames) = (0, vec![0; COUNTER_WINDOW], FrameDecoder::new(body));
    loop {
        match frames.read(&mut window).map_err(corrupt)? {
            0 => break,
            read => len += read,
        }
        limits.check_decompressed(len)?;
    }
    lease.take(len + ARENA_SPARE)?;
    let mut out = Vec::with_capacity(len + ARENA_SPARE);
    FrameDecoder::new(body).read_to_end(&mut out).map_err(corrupt)?;
    Ok(out)
}

/// Gzip, with one or more members. Bytes after the last member that are no member are ignored, as gzip(1) does.
pub(super) fn gzip(body: &[u8], limits: &DecodeLimits, lease: &mut Lease) -> Result<Vec<u8>, PushError> {
    let count = || gzip_members(body, Counter::new(limits)).and_then(Counter::sum);
    gzip_members(body, Output::new(body, Some(gzip_size(body)), count, limits, lease)?)?.end()
}

fn gzip_members<S: Sink>(body: &[u8], mut sink: S) -> Result<S, PushError> {
    let mut raw = Decompress::new(false);
    let mut rest = body;
    loop {
        rest = gzip_header(rest).map_err(PushError::bad_request)?;
        let member = inflate(&mut raw, rest, &mut sink)?;
        rest = rest.get(member.used..).unwrap_or_default();
        rest = gzip_trailer(rest, &member).map_err(PushError::bad_request)?;
        if !rest.starts_with(&GZIP_MAGIC) {
            return Ok(sink);
        }
        raw.reset(false);
    }
}

/// Raw DEFLATE as Loki wants it, or wrapped in zlib as the standard says and some clients send.
pub(super) fn deflate(body: &[u8], limits: &DecodeLimits, lease: &mut Lease) -> Result<Vec<u8>, PushError> {
    let stream = || Decompress::new(has_zlib_header(body));
    let count = || {
        let mut counter = Counter::new(limits);
        inflate(&mut stream(), body, &mut counter)?;
        counter.sum()
    };
    let mut output = Output::new(body, None, count, limits, lease)?;
    inflate(&mut stream(), body, &mut output)?;
    output.end()
}

/// RFC 1950: method 8, a window of at most 32 KiB, no dictionary, and a check that makes it a multiple of 31.
/// As raw DEFLATE such a byte would start a stored block with non-zero padding, which no encoder writes.
fn has_zlib_header(body: &[u8]) -> bool {
    let [method, flags, ..] = *body else { return false };
    let check = u16::from_be_bytes([method, flags]);
    method & 0x0f == 8 && method >> 4 <= 7 && flags & 0x20 == 0 && check % 31 == 0
}

/// Where inflated bytes go.
trait Sink {
    /// Bytes are appended to this, as far as it has capacity.
    fn buffer(&mut self) -> &mut Vec<u8>;

    /// Makes capacity in a buffer that is full.
    fn make_room(&mut self) -> Result<(), PushError>;
}

/// One stream, inflated.
struct Inflated {
    /// Bytes of the input.
    used: usize,
    len: usize,
    crc: u32,
}

/// Inflates one stream to its end.
fn inflate(stream: &mut Decompress, input: &[u8], sink: &mut impl Sink) -> Result<Inflated, PushError> {
    let mut crc = crc32fast::Hasher::new();
    loop {
        if sink.buffer().len() == sink.buffer().capacity() {
            sink.make_room()?;
        }
        let buffer = sink.buffer();
        let (read, written) = (stream.total_in(), buffer.len());
        let rest = input.get(read as usize..).unwrap_or_default();
        let status = stream
            .decompress_vec(rest, buffer, FlushDecompress::None)
            .map_err(|_| PushError::bad_request("flate: corrupt input"))?;
        crc.update(buffer.get(written..).unwrap_or_default());
        match status {
            Status::StreamEnd => break,
            Status::Ok | Status::BufError if stream.total_in() > read || buffer.len() > written => {}
            // There is room and nothing moves: the input ends before the stream does.
            Status::Ok | Status::BufError => return Err(PushError::bad_request(UNEXPECTED_EOF)),
        }
    }
    Ok(Inflated { used: stream.total_in() as usize, len: stream.total_out() as usize, crc: crc.finalize() })
}

/// The arena of a push. Every byte of it is taken from a lease before it is allocated.
struct Output<'a, C> {
    bytes: Vec<u8>,
    /// Counts what the whole body inflates to.
    count: C,
    limits: &'a DecodeLimits,
    lease: &'a mut Lease,
}

impl<'a, C: Fn() -> Result<usize, PushError>> Output<'a, C> {
    fn new(
        body: &[u8],
        announced: Option<usize>,
        count: C,
        limits: &'a DecodeLimits,
        lease: &'a mut Lease,
    ) -> Result<Self, PushError> {
        if body.is_empty() {
            return Err(PushError::bad_request("EOF"));
        }
        let believable = body.len().saturating_mul(BELIEVED_RATIO);
        let capacity = match announced {
            Some(size) if size <= believable => size.min(limits.decompressed()),
            _ if believable <= MAX_DOUBLED => believable.max(MIN_BUFFER),
            _ => count()?,
        };
        let mut bytes = Vec::new();
        lease.grow(&mut bytes, capacity + ARENA_SPARE)?;
        Ok(Self { bytes, count, limits, lease })
    }

    fn end(self) -> Result<Vec<u8>, PushError> {
        self.limits.check_decompressed(self.bytes.len())?;
        Ok(self.bytes)
    }
}

impl<C: Fn() -> Result<usize, PushError>> Sink for Output<'_, C> {
    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    fn make_room(&mut self) -> Result<(), PushError> {
        self.limits.check_decompressed(self.bytes.len())?;
        let doubled = self.bytes.capacity() * 2;
        let capacity = if doubled <= MAX_DOUBLED { doubled } else { (self.count)()? + ARENA_SPARE };
        Ok(self.lease.grow(&mut self.bytes, capacity)?)
    }
}

/// Counts inflated bytes and keeps none.
struct Counter<'a> {
    window: Vec<u8>,
    before: usize,
    limits: &'a DecodeLimits,
}

impl<'a> Counter<'a> {
    fn new(limits: &'a DecodeLimits) -> Self {
        Self { window: Vec::with_capacity(COUNTER_WINDOW), before: 0, limits }
    }

    fn sum(self) -> Result<usize, PushError> {
        let sum = self.before + self.window.len();
        self.limits.check_decompressed(sum).map(|()| sum)
    }
}

impl Sink for Counter<'_> {
    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.window
    }

    fn make_room(&mut self) -> Result<(), PushError> {
        self.before += self.window.len();
        self.window.clear();
        self.limits.check_decompressed(self.before)
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
fn gzip_trailer<'a>(input: &'a [u8], member: &Inflated) -> Result<&'a [u8], &'static str> {
    let (sum, rest) = input.split_first_chunk::<4>().ok_or(UNEXPECTED_EOF)?;
    let (size, rest) = rest.split_first_chunk::<4>().ok_or(UNEXPECTED_EOF)?;
    let sound = u32::from_le_bytes(*sum) == member.crc && u32::from_le_bytes(*size) == member.len as u32;
    if sound { Ok(rest) } else { Err("gzip: invalid checksum") }
}
