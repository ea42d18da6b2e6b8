//! Bounded decoding of untrusted bytes, and the encodings that mirror it. No I/O, no panics.

pub mod snappy;

/// The bytes ended early or hold a number that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes are left than the field needs.
    #[error("the bytes end in the middle of a field")]
    Truncated,
    /// A varint is longer than ten bytes or does not fit 64 bits.
    #[error("a varint does not fit 64 bits")]
    Varint,
}

/// Reads fields from a byte slice and never past its end.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Takes `n` bytes.
    ///
    /// # Errors
    /// Fewer are left; none is taken then.
    #[inline]
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// # Errors
    /// No byte is left.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Little-endian.
    ///
    /// # Errors
    /// Fewer than 2 bytes are left.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Little-endian.
    ///
    /// # Errors
    /// Fewer than 4 bytes are left.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Little-endian.
    ///
    /// # Errors
    /// Fewer than 8 bytes are left.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// An unsigned LEB128 varint.
    ///
    /// # Errors
    /// The bytes end early, or the number does not fit 64 bits.
    #[inline]
    pub fn uvarint(&mut self) -> Result<u64, DecodeError> {
        if let [byte, rest @ ..] = self.rest
            && *byte < 0x80
        {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        self.uvarint_slow()
    }

    fn uvarint_slow(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (i, byte) in self.rest.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if i == 9 && bits > 1 {
                return Err(DecodeError::Varint);
            }
            value |= bits << (7 * i);
            if byte & 0x80 == 0 {
                self.rest = self.rest.get(i + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(if self.rest.len() >= 10 { DecodeError::Varint } else { DecodeError::Truncated })
    }

    /// A zigzag varint.
    ///
    /// # Errors
    /// As [`Cursor::uvarint`].
    #[inline]
    pub fn varint(&mut self) -> Result<i64, DecodeError> {
        let raw = self.uvarint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }
}

/// Appends an unsigned LEB128 varint.
#[inline]
pub fn put_uvarint(out: &mut Vec<u8>, value: u64) {
    match value {
        0..0x80 => out.push(value as u8),
        0x80..0x4000 => out.extend_from_slice(&[value as u8 | 0x80, (value >> 7) as u8]),
        _ => put_long_uvarint(out, value),
    }
}

/// Timestamps take nine bytes: no branch for each, and one check of the capacity for all of them.
fn put_long_uvarint(out: &mut Vec<u8>, value: u64) {
    let bits = (u64::BITS - value.leading_zeros()).max(1);
    let len = bits.div_ceil(7) as usize;
    let mut bytes = [0x80; 10];
    bytes[..8].copy_from_slice(&(spread(value) | 0x8080_8080_8080_8080).to_le_bytes());
    bytes[8] |= (value >> 56) as u8;
    bytes[9] |= (value >> 63) as u8;
    if let Some(last) = bytes.get_mut(len - 1) {
        *last &= 0x7f;
    }
    let end = out.len() + len;
    out.extend_from_slice(&bytes);
    out.truncate(end);
}

/// The low 56 bits, seven in each byte: halves move apart, then their halves, then theirs.
fn spread(value: u64) -> u64 {
    let by_28 = value & 0x0fff_ffff | (value & 0x00ff_ffff_f000_0000) << 4;
    let by_14 = by_28 & 0x0000_3fff_0000_3fff | (by_28 & 0x0fff_c000_0fff_c000) << 2;
    by_14 & 0x007f_007f_007f_007f | (by_14 & 0x3f80_3f80_3f80_3f80) << 1
}

/// Appends a zigzag varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: i64) {
    put_uvarint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// CRC-32/IEEE over several pieces as if they were one.
pub fn crc32(pieces: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for piece in pieces {
        hasher.update(piece);
    }
    hasher.finalize()
}

/// `n` rounded up to a multiple of `to`, which is a power of two.
pub const fn align_up(n: u64, to: u64) -> u64 {
    n.saturating_add(to - 1) & !(to - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_round_trip(u in any::<u64>(), i in any::<i64>()) {
            let mut out = Vec::new();
            put_uvarint(&mut out, u);
            put_varint(&mut out, i);
            let mut c = Cursor::new(&out);
            prop_assert_eq!(c.uvarint(), Ok(u));
            prop_assert_eq!(c.varint(), Ok(i));
            prop_assert_eq!(c.remaining(), 0);
            for cut in 0..out.len() {
                let mut c = Cursor::new(&out[..cut]);
                prop_assert!(c.uvarint().and_then(|_| c.varint()).is_err());
            }
        }
    }

    #[test]
    fn a_varint_that_does_not_fit_is_refused() {
        assert_eq!(Cursor::new(&[0xff; 11]).uvarint(), Err(DecodeError::Varint));
        let mut max = vec![0xff; 9];
        max.push(1);
        assert_eq!(Cursor::new(&max).uvarint(), Ok(u64::MAX));
        max[9] = 2;
        assert_eq!(Cursor::new(&max).uvarint(), Err(DecodeError::Varint));
    }
}
