//! Go's varints (`encoding/binary`): little-endian groups of seven bits, signed ones in zigzag.

use super::ChunkError;
pub(super) use crate::codec::{put_uvarint, put_varint};

/// Bytes of the longest varint.
const MAX_LEN: usize = 10;

/// Bytes that [`put_uvarint`] appends for a value.
pub(super) fn uvarint_len(value: u32) -> usize {
    (38 - value.max(1).leading_zeros() as usize) / 7
}

/// Reads from the front of a slice; every read is bounded by it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// `what` names the bytes in errors.
    pub(super) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The bytes that were not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], ChunkError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(ChunkError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ChunkError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(ChunkError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ChunkError> {
        self.array::<1>().map(|[b]| b)
    }

    pub(super) fn u32_be(&mut self) -> Result<u32, ChunkError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64_be(&mut self) -> Result<u64, ChunkError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn uvarint(&mut self) -> Result<u64, ChunkError> {
        let mut value = 0u64;
        for (i, byte) in self.rest.iter().take(MAX_LEN).enumerate() {
            if i == MAX_LEN - 1 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if *byte < 0x80 {
                self.rest = self.rest.get(i + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        if self.rest.len() < MAX_LEN {
            return Err(ChunkError::Truncated { what: self.what });
        }
        Err(ChunkError::malformed(self.what, "a varint does not fit 64 bits"))
    }

    pub(super) fn varint(&mut self) -> Result<i64, ChunkError> {
        let raw = self.uvarint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// A varint that says how many bytes follow: checked against what is left.
    pub(super) fn length(&mut self) -> Result<usize, ChunkError> {
        let len = self.uvarint()?;
        match usize::try_from(len) {
            Ok(len) if len <= self.rest.len() => Ok(len),
            _ => Err(ChunkError::Truncated { what: self.what }),
        }
    }

    /// A varint that fits 32 bits.
    pub(super) fn uvarint32(&mut self) -> Result<u32, ChunkError> {
        let value = self.uvarint()?;
        u32::try_from(value).map_err(|_| ChunkError::malformed(self.what, "a number does not fit 32 bits"))
    }

    /// Bytes with their length before them.
    pub(super) fn prefixed(&mut self) -> Result<&'a [u8], ChunkError> {
        let len = self.length()?;
        self.bytes(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(u in any::<u64>(), shift in 0u32..64, i in any::<i64>(), id in any::<u32>()) {
            let mut out = Vec::new();
            put_uvarint(&mut out, u >> shift);
            put_varint(&mut out, i >> shift);
            let split = out.len();
            put_uvarint(&mut out, u64::from(id >> (shift % 32)));
            prop_assert_eq!(out.len() - split, uvarint_len(id >> (shift % 32)));
            let mut r = Reader::new(&out, "test");
            prop_assert_eq!(r.uvarint()?, u >> shift);
            prop_assert_eq!(r.varint()?, i >> shift);
            prop_assert_eq!(r.uvarint32()?, id >> (shift % 32));
            prop_assert!(r.is_empty());
        }
    }

    #[test]
    fn overlong_and_cut_varints_are_errors() {
        let cut = Reader::new(&[0x80, 0x80], "test").uvarint();
        assert_eq!(cut, Err(ChunkError::Truncated { what: "test" }));
        assert!(matches!(Reader::new(&[0xff; 10], "test").uvarint(), Err(ChunkError::Malformed { .. })));
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(Reader::new(&max, "test").uvarint(), Ok(u64::MAX));
        assert_eq!(Reader::new(&[5, 1, 2], "test").prefixed(), Err(ChunkError::Truncated { what: "test" }));
    }
}
