//! `logproto.PushRequest`, decoded without copying: every string stays where it is, and spans point to it.
//!
//! ```text
//! PushRequest    1 streams (repeated Stream)
//! Stream         1 labels, 2 entries (repeated Entry), 3 hash (not used)
//! Entry          1 timestamp (Timestamp), 2 line, 3 structuredMetadata (repeated Pair), 4 parsed (not used)
//! Timestamp      1 seconds (int64), 2 nanos (int32)
//! Pair           1 name, 2 value
//! ```

use super::builder::Builder;
use super::{DecodeLimits, Lease};
use crate::model::{MetadataPair, PushError, PushRequest, Span};

const NANOS_PER_SECOND: i64 = 1_000_000_000;
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;
const FIXED32: u8 = 5;
/// Varints up to this many bytes are read with one check of the bounds.
const SHORT_VARINT: usize = 5;

/// Decodes a protobuf message that is not compressed any more. It becomes the arena of the push; the caller's lease
/// covers it.
pub(super) fn decode(message: Vec<u8>, limits: &DecodeLimits, lease: &mut Lease) -> Result<PushRequest, PushError> {
    lease.bound(message.len());
    let mut builder = Builder::new(limits, lease);
    let mut reader = Reader { bytes: &message, at: 0, end: message.len() };
    while let Some((field, wire)) = reader.tag()? {
        match field {
            1 => stream(reader.message(wire)?, &mut builder)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(builder.finish(message))
}

fn stream(mut reader: Reader<'_>, builder: &mut Builder<'_>) -> Result<(), PushError> {
    let mark = builder.mark();
    let mut labels = Span::default();
    while let Some((field, wire)) = reader.tag()? {
        match field {
            1 => labels = reader.text(wire, "labels")?,
            2 => entry(reader.message(wire)?, builder)?,
            _ => reader.skip(wire)?,
        }
    }
    builder.add_stream(labels, mark)
}

#[inline]
fn entry(mut reader: Reader<'_>, builder: &mut Builder<'_>) -> Result<(), PushError> {
    let first_metadata = builder.metadata.len();
    let mut timestamp = Timestamp::default();
    let mut line = Span::default();
    while let Some((field, wire)) = reader.tag()? {
        match field {
            1 => timestamp.merge(reader.message(wire)?)?,
            // Not checked: Loki takes lines that are no UTF-8.
            2 => line = reader.bytes(wire)?,
            3 => builder.add_metadata(pair(reader.message(wire)?)?)?,
            _ => reader.skip(wire)?,
        }
    }
    builder.add_entry(timestamp.nanoseconds()?, line, first_metadata)
}

fn pair(mut reader: Reader<'_>) -> Result<MetadataPair, PushError> {
    let mut pair = MetadataPair::default();
    while let Some((field, wire)) = reader.tag()? {
        match field {
            1 => pair.name = reader.text(wire, "the name of structured metadata")?,
            2 => pair.value = reader.text(wire, "a value of structured metadata")?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(pair)
}

#[derive(Clone, Copy, Default)]
struct Timestamp {
    seconds: i64,
    nanos: i32,
}

impl Timestamp {
    /// A message that comes again is merged: the fields that it has replace those before.
    #[inline]
    fn merge(&mut self, mut reader: Reader<'_>) -> Result<(), PushError> {
        while let Some((field, wire)) = reader.tag()? {
            match field {
                1 => self.seconds = reader.integer(wire)? as i64,
                2 => self.nanos = reader.integer(wire)? as i32,
                _ => reader.skip(wire)?,
            }
        }
        Ok(())
    }

    fn nanoseconds(self) -> Result<i64, PushError> {
        // Of the first second that nanoseconds can tell, the end alone fits: it is put together in more bits.
        let total = i128::from(self.seconds) * i128::from(NANOS_PER_SECOND) + i128::from(self.nanos);
        match i64::try_from(total) {
            Ok(total) if (0..NANOS_PER_SECOND).contains(&i64::from(self.nanos)) => Ok(total),
            _ => Err(PushError::bad_request(format!(
                "timestamp: seconds:{} nanos:{}: nanos not in [0, 1000000000) or out of the range of int64 nanoseconds",
                self.seconds, self.nanos
            ))),
        }
    }
}

/// Reads the fields of one message: the bytes from `at` to `end` of the whole push, so that spans need no base.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    /// Number and wire type of the next field; `None` at the end of the message.
    #[inline]
    fn tag(&mut self) -> Result<Option<(u64, u8)>, PushError> {
        if self.at == self.end {
            return Ok(None);
        }
        // All fields that are known have numbers below 16: one byte.
        if let Some(byte @ 8..0x80) = self.bytes.get(self.at) {
            self.at += 1;
            return Ok(Some((u64::from(byte >> 3), byte & 7)));
        }
        self.long_tag()
    }

    #[cold]
    fn long_tag(&mut self) -> Result<Option<(u64, u8)>, PushError> {
        let tag = self.varint()?;
        let field = tag >> 3;
        // Field numbers have 29 bits, 0 is none.
        if field == 0 || tag > u64::from(u32::MAX) {
            return Err(self.illegal_tag(tag));
        }
        Ok(Some((field, (tag & 7) as u8)))
    }

    #[cold]
    fn illegal_tag(&self, tag: u64) -> PushError {
        self.error(&format!("illegal tag {tag}"))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, PushError> {
        let (mut value, at) = (0, self.at);
        // Lengths of lines have two bytes, seconds and nanoseconds have five. The bytes may lie behind the end of the
        // message; the varint may not.
        if let Some(bytes) = self.bytes.get(at..).and_then(|rest| rest.first_chunk::<SHORT_VARINT>()) {
            for (i, byte) in bytes.iter().enumerate() {
                value |= u64::from(byte & 0x7f) << (7 * i);
                if *byte < 0x80 {
                    let after = at + i + 1;
                    if after > self.end {
                        break;
                    }
                    self.at = after;
                    return Ok(value);
                }
            }
        }
        self.long_varint()
    }

    /// A varint of any length, and near the end of the push.
    #[cold]
    fn long_varint(&mut self) -> Result<u64, PushError> {
        let mut value = 0_u64;
        let rest = self.bytes.get(self.at..self.end).unwrap_or_default();
        for (i, &byte) in rest.iter().take(10).enumerate() {
            if i == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.at += i + 1;
                return Ok(value);
            }
        }
        Err(self.error(if rest.len() < 10 { "unexpected EOF" } else { "integer overflow" }))
    }

    #[inline]
    fn integer(&mut self, wire: u8) -> Result<u64, PushError> {
        self.expect(wire, VARINT)?;
        self.varint()
    }

    /// A length-delimited field.
    #[inline]
    fn bytes(&mut self, wire: u8) -> Result<Span, PushError> {
        self.expect(wire, LEN)?;
        let len = self.varint()?;
        let start = self.at;
        self.advance(len)?;
        Ok(Span::new(start, len as usize))
    }

    fn text(&mut self, wire: u8, what: &str) -> Result<Span, PushError> {
        let span = self.bytes(wire)?;
        match std::str::from_utf8(span.of(self.bytes)) {
            Ok(_) => Ok(span),
            Err(_) => Err(self.error(&format!("{what} is not valid UTF-8"))),
        }
    }

    #[inline]
    fn message(&mut self, wire: u8) -> Result<Reader<'a>, PushError> {
        let span = self.bytes(wire)?;
        Ok(Reader { bytes: self.bytes, at: span.start as usize, end: self.at })
    }

    fn skip(&mut self, wire: u8) -> Result<(), PushError> {
        match wire {
            VARINT => self.varint().map(drop),
            FIXED64 => self.advance(8),
            LEN => self.bytes(LEN).map(drop),
            FIXED32 => self.advance(4),
            3 | 4 => Err(self.error("groups are not supported")),
            _ => Err(self.error(&format!("illegal wireType {wire}"))),
        }
    }

    #[inline]
    fn advance(&mut self, len: u64) -> Result<(), PushError> {
        if len > (self.end - self.at) as u64 {
            return Err(self.error("unexpected EOF"));
        }
        self.at += len as usize;
        Ok(())
    }

    #[inline]
    fn expect(&self, wire: u8, want: u8) -> Result<(), PushError> {
        if wire == want { Ok(()) } else { Err(self.wrong_wire(wire, want)) }
    }

    #[cold]
    fn wrong_wire(&self, wire: u8, want: u8) -> PushError {
        self.error(&format!("wrong wireType = {wire}, want {want}"))
    }

    #[cold]
    fn error(&self, what: &str) -> PushError {
        PushError::bad_request(format!("proto: {what} at byte {} of the decompressed push", self.at))
    }
}
