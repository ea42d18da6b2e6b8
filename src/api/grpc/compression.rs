//! Messages that a client has compressed, as Loki's distributors do with `grpc_compression`.
//!
//! tonic would bound what one message becomes, but not what all of them do at a time. Here every byte is reserved in the
//! budget of the pushes in flight before it is allocated, as for a body over HTTP.

use crate::api::decode::{Lease, PushHeaders, expected_size};
use crate::model::PushError;
use axum::http::request::Parts;
use std::io::Read;

const GRPC_ENCODING: &str = "grpc-encoding";
/// A first buffer for the message; it doubles from there.
const MIN_BUFFER: usize = 8 << 10;

/// What a message is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    /// Snappy's format of streams, unlike the raw block of a push over HTTP.
    Snappy,
}

impl Compression {
    /// The compression of the message in a frame. It is taken from the head and from the frame's flag, so that tonic hands
    /// the message on as it is. What is not known stays, and tonic refuses it.
    pub(super) fn take(head: &mut Parts, frame: &mut [u8]) -> Option<Self> {
        let compression = match head.headers.get(GRPC_ENCODING)?.as_bytes() {
            b"gzip" => Self::Gzip,
            b"snappy" => Self::Snappy,
            _ => return None,
        };
        head.headers.remove(GRPC_ENCODING);
        // A client may send a message without compression all the same.
        let flag = frame.first_mut().filter(|flag| **flag == 1)?;
        *flag = 0;
        Some(compression)
    }

    /// What a message of this compression is expected to take when it is decoded.
    pub(super) fn expected_size(message: &[u8]) -> usize {
        expected_size(&PushHeaders { content_encoding: Some("gzip"), ..PushHeaders::default() }, message)
    }

    /// The message without its compression, of `max` bytes at most. The lease has taken its capacity.
    pub(super) fn decompress(self, message: &[u8], max: usize, lease: &mut Lease) -> Result<Vec<u8>, PushError> {
        let first = message.len().saturating_mul(4).clamp(MIN_BUFFER, 1 << 20);
        match self {
            Self::Gzip => read(flate2::read::MultiGzDecoder::new(message), first, max, lease),
            Self::Snappy => read(snap::read::FrameDecoder::new(message), first, max, lease),
        }
    }
}

fn read(mut from: impl Read, first: usize, max: usize, lease: &mut Lease) -> Result<Vec<u8>, PushError> {
    // One byte more tells a message that exceeds the limit from one that fits.
    let most = max.saturating_add(1);
    let (mut out, mut capacity) = (Vec::new(), first.min(most));
    loop {
        let old = out.capacity();
        lease.take(capacity)?;
        out.reserve_exact(capacity - out.len());
        lease.give_back(old);
        let room = capacity - out.len();
        // What is read is never more than the room, so the buffer does not grow by itself.
        let read = from.by_ref().take(room as u64).read_to_end(&mut out);
        let read = read.map_err(|e| PushError::bad_request(format!("the message cannot be decompressed: {e}")))?;
        if out.len() > max {
            return Err(PushError::too_large(format!(
                "request body too large: decompressed message size too large than max (more than {max})"
            )));
        }
        if read < room {
            return Ok(out);
        }
        capacity = capacity.saturating_mul(2).min(most);
    }
}
