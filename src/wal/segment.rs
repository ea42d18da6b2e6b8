//! Segment files: names, preparation.

use super::format::{FIRST_GROUP, LogKind, SECOND_HEADER, SegmentHeader};
use crate::fs::{File, Fs, temporary_name, write_all_at, zero_fill};
use crate::planted::{Bug, is};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const FILL_STEP: u64 = 1 << 20;
/// Between two steps: at most about 500 MB/s, far above what the log takes.
const FILL_PAUSE: Duration = Duration::from_millis(2);

/// File name of a segment of the write-ahead log: twenty digits and `.wal`.
pub fn segment_name(number: u64) -> String {
    file_name(LogKind::Wal, number)
}

/// The number in the file name of a segment of the write-ahead log.
pub fn segment_number(name: &str) -> Option<u64> {
    file_number(LogKind::Wal, name)
}

/// File name of a segment of either log: twenty digits and the log's extension.
pub fn file_name(log: LogKind, number: u64) -> String {
    format!("{number:020}.{}", log.extension())
}

/// The number in the file name of a segment of this log.
pub fn file_number(log: LogKind, name: &str) -> Option<u64> {
    let digits = name.strip_suffix(log.extension())?.strip_suffix('.')?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// A segment that is filled, synced and durable in its directory, and holds no group yet.
pub(super) struct Prepared {
    pub header: SegmentHeader,
    /// The descriptor that filled the file: the kernel reports a failed write-back to it.
    pub file: Arc<dyn File>,
}

/// Where writing over a file takes new space, prepared segments are no reserve: this many times a new segment stays free beside it.
const MARGIN: u64 = 2;

fn keep_margin(fs: &dyn Fs, dir: &Path, file_len: u64) -> io::Result<()> {
    let (space, margin) = (fs.space(dir)?, MARGIN.saturating_mul(file_len));
    if space.copies && space.available < margin.saturating_add(file_len) {
        return Err(io::Error::other(format!(
            "{} bytes are free, and of those {margin} are kept: this file system copies what is written over",
            space.available
        )));
    }
    Ok(())
}

/// Makes a segment: fills it with zeros, so that a later sync carries no metadata and a full disk shows now, writes
/// the header, syncs, renames, syncs the directory. A failure discards the file.
pub(super) fn prepare(fs: &dyn Fs, dir: &Path, volume: Uuid, number: u64, file_len: u64) -> io::Result<Prepared> {
    let header = SegmentHeader { log: LogKind::Wal, number, file_len, salt: new_salt(fs), volume, recycled: false };
    keep_margin(fs, dir, file_len)?;
    make(fs, dir, header, |fs, temporary| {
        let file = create(fs, temporary)?;
        fill(&*file, file_len)?;
        Ok(file)
    })
}

/// Makes a segment of the block log: its space is reserved, not filled. Few syncs carry many bytes there, so metadata in a
/// sync costs little, and filling would write every block twice.
pub(super) fn prepare_blocks(
    fs: &dyn Fs,
    dir: &Path,
    volume: Uuid,
    number: u64,
    file_len: u64,
) -> io::Result<Prepared> {
    let header = SegmentHeader { log: LogKind::Blocks, number, file_len, salt: new_salt(fs), volume, recycled: false };
    keep_margin(fs, dir, file_len)?;
    make(fs, dir, header, |fs, temporary| {
        let file = create(fs, temporary)?;
        file.allocate(file_len)?;
        Ok(file)
    })
}

/// Is the segment still found under its name? What is durable in a file that no start will find is as good as lost: the
/// data directory was unmounted, moved away or replaced while the log was open.
pub(super) fn in_place(file: &dyn File, path: &Path) -> io::Result<()> {
    if file.is_at(path)? {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} is not the open segment any more: the data directory was unmounted, moved or replaced; put it back and start \
         again",
        path.display()
    )))
}

/// Makes a segment from one that was retired. Its bytes stay: under a new salt they prove nothing.
pub(super) fn recycle(
    fs: &dyn Fs,
    dir: &Path,
    volume: Uuid,
    from: u64,
    number: u64,
    file_len: u64,
) -> io::Result<Prepared> {
    let header = SegmentHeader { log: LogKind::Wal, number, file_len, salt: new_salt(fs), volume, recycled: true };
    make(fs, dir, header, |fs, temporary| {
        fs.rename(&dir.join(segment_name(from)), temporary)?;
        fs.sync_dir(dir)?;
        fs.open(temporary, true)
    })
}

/// Makes the file under a temporary name, gives it its header, syncs, renames, syncs the directory. A failure discards it.
fn make(
    fs: &dyn Fs,
    dir: &Path,
    header: SegmentHeader,
    content: impl FnOnce(&dyn Fs, &Path) -> io::Result<Arc<dyn File>>,
) -> io::Result<Prepared> {
    let path = dir.join(file_name(header.log, header.number));
    let temporary = temporary_name(&path);
    let made = content(fs, &temporary).and_then(|file| {
        if is(Bug::HeaderAfterRename) {
            fs.rename(&temporary, &path)?;
        }
        write_all_at(&*file, 0, &header.encode(0))?;
        write_all_at(&*file, SECOND_HEADER, &header.encode(SECOND_HEADER))?;
        if !is(Bug::SegmentUnsynced) {
            file.sync_data()?;
        }
        if !is(Bug::HeaderAfterRename) {
            fs.rename(&temporary, &path)?;
        }
        if !is(Bug::DirectoryUnsynced) {
            fs.sync_dir(dir)?;
        }
        Ok(Prepared { header, file })
    });
    if made.is_err() {
        // Either name may or may not exist; what counts is that no unfinished file takes space.
        let _ = fs.remove(&temporary);
        let _ = fs.remove(&path);
    }
    made
}

fn create(fs: &dyn Fs, temporary: &Path) -> io::Result<Arc<dyn File>> {
    match fs.remove(temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs.create_new(temporary)
}

fn fill(file: &dyn File, file_len: u64) -> io::Result<()> {
    let mut at = 0;
    while at < file_len {
        let end = file_len.min(at + FILL_STEP);
        zero_fill(file, at, end)?;
        at = end;
        if at < file_len {
            // Many megabytes of zeros in one sync would hold up the syncs of pushes: a little at a time, with pauses.
            file.sync_data()?;
            std::thread::sleep(FILL_PAUSE);
        }
    }
    Ok(())
}

/// Why a prepared segment could not be enlarged.
pub(super) enum ExtendError {
    /// A write failed: the segment keeps its old size.
    Write(io::Error),
    /// A sync failed, which is final.
    Sync(io::Error),
}

/// Enlarges a prepared segment to the size in `header`: zeros first, then, one after the other, both header copies. A
/// crash in between leaves a file that is longer than its header says, which is harmless.
pub(super) fn extend(file: &dyn File, old_len: u64, header: &SegmentHeader) -> Result<(), ExtendError> {
    zero_fill(file, old_len, header.file_len).map_err(ExtendError::Write)?;
    file.sync_data().map_err(ExtendError::Sync)?;
    for copy in [SECOND_HEADER, 0] {
        write_all_at(file, copy, &header.encode(copy)).map_err(ExtendError::Write)?;
        file.sync_data().map_err(ExtendError::Sync)?;
    }
    Ok(())
}

/// Removes a segment that was never used. An empty file tells so, until a newer segment is used: a number without a file is a segment that is
/// gone. Without room even for that, the segment stays.
pub(super) fn give_up(fs: &dyn Fs, dir: &Path, number: u64) {
    let path = dir.join(segment_name(number));
    let told = create(fs, &temporary_name(&path)).and_then(|_| fs.sync_dir(dir));
    if told.is_ok() {
        let _ = fs.remove(&path);
    }
}

/// Size of a segment that holds a group of `group_len` bytes and the final watermark.
pub(super) fn len_for(group_len: u64) -> u64 {
    crate::codec::align_up(FIRST_GROUP + group_len + super::format::GROUP_ALIGN, FILL_STEP)
}

fn new_salt(fs: &dyn Fs) -> u64 {
    if is(Bug::SaltKept) { 1 } else { fs.random() }
}
