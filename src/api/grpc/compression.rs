//! Messages that a client has compressed, as Loki's distributors do with `grpc_compression`.
//!
//! tonic would bound what one message becomes, but not what all of them do at a time. Here every byte is reserved in the
//! budget of the pushes in flight before it is allocated, as for a body over HTTP.

use crate::api::decode::{self, DecodeLimits, Lease};
use crate::model::PushError;
use axum::http::request::Parts;

const GRPC_ENCODING: &str = "grpc-encoding";

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

    /// The message without its compression. The lease covers it before, and the result afterwards.
    pub(super) fn decompress(
        self,
        message: Vec<u8>,
        limits: &DecodeLimits,
        lease: &mut Lease,
    ) -> Result<Vec<u8>, PushError> {
        match self {
            Self::Gzip => decode::unpack_gzip(message, limits, lease),
            Self::Snappy => decode::unpack_snappy_frames(message, limits, lease),
        }
    }
}
