//! The framing of Prometheus' log. A segment is pages of 32 KiB; a page holds fragments, and zeros at its end:
//!
//! ```text
//! u8 kind (1 whole record, 2 first, 3 middle, 4 last fragment; 8 snappy, 16 zstd) | u16 length | u32 CRC-32C of the payload | payload
//! ```
//! Numbers are big-endian. Nothing covers kind and length, and records have no numbers. So after damage, reading goes on
//! with the fragment behind it if that is sound, else with the next page, which always begins with a fragment.

use crate::fs::{File, read_full_at};
use std::io::{self, Read};

const PAGE: usize = 32 << 10;
const HEADER: usize = 7;
/// A segment has no more bytes, so a record has not.
const MAX_RECORD: u64 = 512 << 20;

const SNAPPY: u8 = 8;
const ZSTD: u8 = 16;

/// What a segment holds at an offset.
pub enum Piece<'a> {
    /// A record, decompressed.
    Record(&'a [u8]),
    /// Something that does not hold, and how many bytes are passed over for it.
    Damage(u64, String),
}

/// Hands everything that a segment holds to `each`, with its offset. A page that the disk does not give is damage.
///
/// # Errors
/// The file has no size, or `each` failed.
pub fn read<E: From<io::Error>>(
    file: &dyn File,
    each: &mut dyn FnMut(u64, Piece<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut page = vec![0; PAGE];
    let mut reader = Reader { each, open: None, record: Vec::new(), after_damage: false };
    let (mut base, len) = (0, file.len()?);
    while base < len {
        let (page, _) = page.split_at_mut(PAGE.min(usize::try_from(len - base).unwrap_or(PAGE)));
        match read_full_at(file, base, page) {
            Ok(n) => reader.page(base, page.get(..n).unwrap_or_default())?,
            Err(e) => reader.damage(base, page.len(), &format!("a page that cannot be read: {e}"))?,
        }
        base += page.len() as u64;
    }
    reader.end(len)
}

/// A fragment's header. Its payload may be damaged.
#[derive(Clone, Copy)]
struct Fragment<'a> {
    kind: u8,
    payload: &'a [u8],
    sound: bool,
}

impl<'a> Fragment<'a> {
    /// `None` if no fragment can lie here.
    fn at(page: &'a [u8], at: usize) -> Option<Self> {
        let (header, rest) = page.get(at..)?.split_first_chunk::<HEADER>()?;
        let [kind, a, b, crc @ ..] = *header;
        let payload = rest.get(..usize::from(u16::from_be_bytes([a, b])))?;
        let known = matches!(kind & 7, 1..=4) && kind & !(7 | SNAPPY | ZSTD) == 0 && kind & 24 != 24;
        let sound = crc32c::crc32c(payload) == u32::from_be_bytes(crc);
        known.then_some(Self { kind, payload, sound })
    }

    fn len(&self) -> usize {
        HEADER + self.payload.len()
    }
}

struct Reader<'a, E> {
    each: &'a mut dyn FnMut(u64, Piece<'_>) -> Result<(), E>,
    /// Offset and compression of the record whose first fragment was read.
    open: Option<(u64, u8)>,
    record: Vec<u8>,
    /// Fragments of the record that is lost may follow.
    after_damage: bool,
}

impl<E> Reader<'_, E> {
    fn page(&mut self, base: u64, page: &[u8]) -> Result<(), E> {
        let mut at = 0;
        while at < page.len() {
            let rest = page.get(at..).unwrap_or_default();
            if rest.first() == Some(&0) || rest.len() < HEADER {
                // What is behind the last fragment of a page is zero.
                if rest.iter().any(|b| *b != 0) {
                    self.damage(base + at as u64, rest.len(), "bytes that are no fragment")?;
                }
                return Ok(());
            }
            let offset = base + at as u64;
            match Fragment::at(page, at) {
                Some(fragment) if fragment.sound => {
                    self.fragment(offset, fragment)?;
                    at += fragment.len();
                }
                Some(fragment) if goes_on(page, at + fragment.len()) => {
                    self.damage(offset, fragment.len(), "a fragment whose checksum does not match")?;
                    at += fragment.len();
                }
                _ => return self.damage(offset, rest.len(), "a damaged fragment: the rest of its page is passed over"),
            }
        }
        Ok(())
    }

    fn fragment(&mut self, offset: u64, fragment: Fragment<'_>) -> Result<(), E> {
        let compression = fragment.kind & (SNAPPY | ZSTD);
        match fragment.kind & 7 {
            1 => {
                self.unfinished(offset)?;
                self.record(offset, compression, fragment.payload)
            }
            2 => {
                self.unfinished(offset)?;
                self.record.clear();
                self.record.extend_from_slice(fragment.payload);
                self.open = Some((offset, compression));
                self.after_damage = false;
                Ok(())
            }
            // A record that has lost a fragment has lost all of them.
            _ if self.open.is_none() && self.after_damage => Ok(()),
            _ if self.open.is_none() => self.damage(offset, fragment.len(), "a record without its beginning"),
            part => {
                self.record.extend_from_slice(fragment.payload);
                match self.open.filter(|_| part == 4) {
                    Some((start, compression)) => {
                        self.open = None;
                        let record = std::mem::take(&mut self.record);
                        let outcome = self.record(start, compression, &record);
                        self.record = record;
                        outcome
                    }
                    None => Ok(()),
                }
            }
        }
    }

    fn record(&mut self, offset: u64, compression: u8, stored: &[u8]) -> Result<(), E> {
        self.after_damage = false;
        let record = match compression {
            0 => return (self.each)(offset, Piece::Record(stored)),
            SNAPPY => decompress_snappy(stored),
            _ => decompress_zstd(stored),
        };
        match record {
            Ok(record) => (self.each)(offset, Piece::Record(&record)),
            Err(why) => self.damage(offset, stored.len(), &format!("a record that does not decompress: {why}")),
        }
    }

    /// Another record begins, or the segment ends, where the open one should go on.
    fn unfinished(&mut self, offset: u64) -> Result<(), E> {
        match self.open {
            Some((start, _)) => self.damage(start, (offset - start) as usize, "a record without its end"),
            None => Ok(()),
        }
    }

    fn damage(&mut self, offset: u64, len: usize, what: &str) -> Result<(), E> {
        self.open = None;
        self.after_damage = true;
        (self.each)(offset, Piece::Damage(len as u64, what.to_string()))
    }

    fn end(&mut self, len: u64) -> Result<(), E> {
        self.unfinished(len)
    }
}

/// Is there a sound fragment, or nothing more in the page?
fn goes_on(page: &[u8], at: usize) -> bool {
    let rest = page.get(at..).unwrap_or_default();
    rest.iter().all(|b| *b == 0) || Fragment::at(page, at).is_some_and(|f| f.sound)
}

fn decompress_snappy(stored: &[u8]) -> Result<Vec<u8>, String> {
    // No snappy block holds more than 32 times its length, so a false length costs little.
    let len = snap::raw::decompress_len(stored).map_err(|e| e.to_string())?;
    if len > stored.len().saturating_mul(32) {
        return Err(format!("{len} bytes do not fit"));
    }
    snap::raw::Decoder::new().decompress_vec(stored).map_err(|e| e.to_string())
}

fn decompress_zstd(stored: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(|e| e.to_string())?;
    decoder.take(MAX_RECORD + 1).read_to_end(&mut out).map_err(|e| e.to_string())?;
    if out.len() as u64 > MAX_RECORD { Err(format!("more than {MAX_RECORD} bytes")) } else { Ok(out) }
}
