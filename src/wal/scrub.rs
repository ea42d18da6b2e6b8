//! Reads sealed segments once more, so that damage is found while there is another copy of what it hit. Read-only.

use super::format::{FIRST_GROUP, GROUP_ALIGN, HeaderError, LogKind};
use super::scan::{Damage, Window, read_group, read_start};
use super::verdict::Part;
use crate::fs::Fs;
use std::io;
use std::path::Path;
use uuid::Uuid;

/// A segment that should be read once more.
pub struct Sealed<'a> {
    /// Its file.
    pub path: &'a Path,
    /// Which log it belongs to.
    pub log: LogKind,
    /// Its number.
    pub number: u64,
    /// Its volume.
    pub volume: Uuid,
    /// Bytes before this offset are synced.
    pub end: u64,
}

/// What a segment holds on the disk now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Its salt; 0 if its header is gone.
    pub salt: u64,
    /// What does not hold.
    pub damage: Vec<Damage>,
}

/// Reads segments piece by piece into one buffer: 1 MiB, or a group if that is larger.
#[derive(Default)]
pub struct Scrub {
    window: Window,
}

impl Scrub {
    /// Reads a segment past the page cache and checks every checksum before its end. `pace` is told how many bytes come next, and
    /// whether to go on is its answer. `None` if it was not to, or if the file was used again or removed meanwhile: then
    /// nothing that was read counts.
    ///
    /// # Errors
    /// The disk fails.
    pub fn run(
        &mut self,
        fs: &dyn Fs,
        sealed: &Sealed<'_>,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Option<Scrubbed>> {
        let file = match fs.open(sealed.path, false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        // It is synced, so no page of it is dirty.
        file.drop_cache()?;
        let mut out = Scrubbed::default();
        let start = match read_start(&*file, &mut self.window)? {
            Ok(start) => start,
            Err(HeaderError::NotASegment | HeaderError::Damaged | HeaderError::Version(_)) => {
                out.damage.push(Damage { bytes: 0..FIRST_GROUP, part: Part::Header });
                return Ok(file.is_at(sealed.path)?.then_some(out));
            }
        };
        out.salt = start.header.salt;
        out.damage.extend(start.bad_header.clone().map(|bytes| Damage { bytes, part: Part::Header }));
        let is_ours =
            (start.header.log, start.header.number, start.header.volume) == (sealed.log, sealed.number, sealed.volume);
        if !is_ours {
            out.damage.push(Damage { bytes: 0..FIRST_GROUP, part: Part::Name });
        }
        if start.missing > 0 {
            let end = start.header.file_len;
            out.damage.push(Damage { bytes: end - start.missing..end, part: Part::Cut });
        }
        let mut at = if is_ours { FIRST_GROUP } else { sealed.end };
        let mut hole = None;
        while at < sealed.end {
            let group = read_group(&*file, &mut self.window, &start, at)?;
            let next = group.as_ref().map_or(at + GROUP_ALIGN, |g| g.end);
            if let Some(group) = group {
                let lost = hole.take().map(|from| Damage { bytes: from..at, part: Part::GroupHeader });
                out.damage.extend(lost);
                out.damage.extend(group.damage);
            } else {
                hole.get_or_insert(at);
            }
            if !pace(next - at) {
                return Ok(None);
            }
            at = next;
        }
        out.damage.extend(hole.map(|from| Damage { bytes: from..sealed.end, part: Part::GroupHeader }));
        // What only this has read need not stay cached.
        file.drop_cache()?;
        let again = read_start(&*file, &mut self.window)?;
        let same = again.is_ok_and(|again| again.header == start.header);
        Ok((same && file.is_at(sealed.path)?).then_some(out))
    }
}
