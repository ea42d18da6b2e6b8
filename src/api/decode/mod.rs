//! Push bodies of HTTP: from compressed bytes to a [`PushRequest`], in as few copies as the format allows.
//!
//! The decompressed body becomes the push's arena, and every string stays where it is. Nothing is allocated before its
//! size was checked against the limits and reserved in the [`Budget`] of all pushes in flight.

mod budget;
mod builder;
mod inflate;
mod json;
mod media_type;
mod protobuf;
#[cfg(test)]
mod tests;

pub use budget::{Budget, BudgetError, Lease};

use crate::model::{PushError, PushRequest};
use media_type::Format;

/// No configuration lifts the size of a decompressed body above this: offsets in an arena have 32 bits.
pub const MAX_DECOMPRESSED: usize = 256 << 20;

/// Entries are 24 bytes each, beside a line of about a hundred: a quarter of the arena.
const ENTRY_SHARE: usize = 4;

/// What a request's head says about its body.
#[derive(Clone, Copy, Debug, Default)]
pub struct PushHeaders<'a> {
    /// `Content-Type`, which a push must have.
    pub content_type: Option<&'a str>,
    /// `Content-Encoding`; none and empty mean that the body is not compressed (protobuf is always raw snappy).
    pub content_encoding: Option<&'a str>,
    /// The request came on `/loki/api/v1`, not on a legacy path. Decides only how a JSON stream with the keys of both
    /// shapes is read.
    pub path_is_v1: bool,
}

/// Sizes above which a push is refused with 413, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// `distributor.max_recv_msg_size`: the body as it was received. Default 100 MiB.
    pub max_compressed: usize,
    /// `distributor.max_decompressed_size`: the body without its compression. Default and maximum
    /// [`MAX_DECOMPRESSED`].
    pub max_decompressed: usize,
    /// `max_push_bytes`: label texts, lines and metadata of a push, and 8 for each stream and entry. Default 128 MiB.
    pub max_push_bytes: usize,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_compressed: 100 << 20, max_decompressed: MAX_DECOMPRESSED, max_push_bytes: 128 << 20 }
    }
}

impl DecodeLimits {
    fn decompressed(&self) -> usize {
        self.max_decompressed.min(MAX_DECOMPRESSED)
    }

    /// # Errors
    /// 413 with Loki's text if the received body is too large. A server can ask with `Content-Length`, too.
    pub fn check_compressed(&self, len: usize) -> Result<(), PushError> {
        check_size("message size", len, self.max_compressed)
    }

    fn check_decompressed(&self, len: usize) -> Result<(), PushError> {
        check_size("decompressed message size", len, self.decompressed())
    }
}

fn check_size(what: &str, len: usize, limit: usize) -> Result<(), PushError> {
    if len <= limit {
        return Ok(());
    }
    Err(PushError::too_large(format!("request body too large: {what} too large than max ({len} vs {limit})")))
}

/// `Content-Encoding`, matched exactly as Loki does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// Also `snappy`, which says nothing: protobuf is raw snappy with and without it, and JSON never is.
    None,
    Gzip,
    Deflate,
}

impl Encoding {
    fn parse(header: Option<&str>) -> Result<Self, PushError> {
        match header.unwrap_or_default() {
            "" | "snappy" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "deflate" => Ok(Self::Deflate),
            other => Err(PushError::bad_request(format!("Content-Encoding {other:?} not supported"))),
        }
    }
}

/// Decodes the body of a push, which the lease covers: its capacity is taken. Then the lease covers everything that the push
/// holds; keep it as long as the push.
///
/// Labels and metadata are UTF-8; lines are any bytes. Label texts are as the client wrote them, or made from its JSON
/// label map: their grammar is not checked here. A push without streams is `Ok`.
///
/// # Errors
/// 400 if the body or its headers are wrong, 413 if a limit is exceeded or the whole budget would not do, 503 if other
/// pushes hold the budget. After an error the lease holds nothing of this push.
pub fn decode(
    headers: &PushHeaders<'_>,
    body: Vec<u8>,
    limits: &DecodeLimits,
    lease: &mut Lease,
) -> Result<PushRequest, PushError> {
    let before = lease.taken().saturating_sub(body.capacity());
    let result = decode_body(headers, body, limits, lease);
    settle(&result, before, lease);
    result
}

/// Gives back what a push took that came to nothing, and what was reserved for one that turned out smaller.
fn settle(result: &Result<PushRequest, PushError>, before: usize, lease: &mut Lease) {
    if result.is_err() {
        lease.give_back(lease.taken() - before);
    }
    lease.trim();
}

fn decode_body(
    headers: &PushHeaders<'_>,
    body: Vec<u8>,
    limits: &DecodeLimits,
    lease: &mut Lease,
) -> Result<PushRequest, PushError> {
    limits.check_compressed(body.len())?;
    let encoding = Encoding::parse(headers.content_encoding)?;
    let format = media_type::format(headers.content_type)?;
    let body = match encoding {
        Encoding::None => body,
        Encoding::Gzip => unpack(body, inflate::gzip, limits, lease)?,
        Encoding::Deflate => unpack(body, inflate::deflate, limits, lease)?,
    };
    match format {
        Format::Json => {
            limits.check_decompressed(body.len())?;
            json::decode(body, headers.path_is_v1, limits, lease)
        }
        Format::Protobuf => protobuf::decode(unpack(body, inflate::snappy, limits, lease)?, limits, lease),
    }
}

/// Decompresses what the lease covers, and gives it back.
fn unpack(
    packed: Vec<u8>,
    decompress: fn(&[u8], &DecodeLimits, &mut Lease) -> Result<Vec<u8>, PushError>,
    limits: &DecodeLimits,
    lease: &mut Lease,
) -> Result<Vec<u8>, PushError> {
    let bytes = decompress(&packed, limits, lease)?;
    lease.give_back(packed.capacity());
    Ok(bytes)
}

/// A gzip body without its compression. The lease covers it before, and the result afterwards.
///
/// # Errors
/// As [`decode`].
pub(super) fn unpack_gzip(packed: Vec<u8>, limits: &DecodeLimits, lease: &mut Lease) -> Result<Vec<u8>, PushError> {
    unpack(packed, inflate::gzip, limits, lease)
}

/// The same for snappy's format of frames, as gRPC has it.
///
/// # Errors
/// As [`decode`].
pub(super) fn unpack_snappy_frames(
    packed: Vec<u8>,
    limits: &DecodeLimits,
    lease: &mut Lease,
) -> Result<Vec<u8>, PushError> {
    unpack(packed, inflate::snappy_frames, limits, lease)
}

/// Decodes a `logproto.PushRequest` message without compression, such as the body of a gRPC call. As with [`decode`], the
/// lease covers it.
///
/// # Errors
/// As [`decode`].
pub fn decode_protobuf(message: Vec<u8>, limits: &DecodeLimits, lease: &mut Lease) -> Result<PushRequest, PushError> {
    let before = lease.taken().saturating_sub(message.capacity());
    let decoded = limits.check_decompressed(message.len()).and_then(|()| protobuf::decode(message, limits, lease));
    settle(&decoded, before, lease);
    decoded
}

/// What decoding a body will take besides it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// By the body's own account, or as usual. A caller that is ready to wait for the budget reserves them first
    /// ([`Lease::expect`]); decoding itself never waits.
    pub bytes: usize,
    /// At most, for a body that lies: a bound of the time that decoding takes.
    pub most: usize,
}

/// Tells what decoding a body will take.
pub fn expected(headers: &PushHeaders<'_>, body: &[u8]) -> Expected {
    let encoding = Encoding::parse(headers.content_encoding).unwrap_or(Encoding::None);
    let (arena, most) = match (encoding, media_type::format(headers.content_type)) {
        (_, Err(_)) => (0, 0),
        (Encoding::Gzip, _) => (inflate::gzip_size(body), inflate::most_inflated(body)),
        (Encoding::Deflate, _) => (inflate::deflate_size(body), inflate::most_inflated(body)),
        (Encoding::None, Ok(Format::Protobuf)) => (inflate::snappy_size(body), inflate::snappy_size(body)),
        (Encoding::None, Ok(Format::Json)) => return expected_of_message(body),
    };
    let arena = arena.min(MAX_DECOMPRESSED);
    Expected { bytes: arena + arena / ENTRY_SHARE, most }
}

/// The same for a message of gRPC that is compressed.
pub(super) fn expected_of_packed(packed: &[u8]) -> Expected {
    let arena = inflate::gzip_size(packed).min(MAX_DECOMPRESSED);
    Expected { bytes: arena + arena / ENTRY_SHARE, most: inflate::most_inflated(packed) }
}

/// The same for a message that itself becomes the arena, such as that of a gRPC call.
pub fn expected_of_message(message: &[u8]) -> Expected {
    Expected { bytes: message.len() / ENTRY_SHARE, most: message.len() }
}
