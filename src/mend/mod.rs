//! The commands of `wal-inspect` that write: `repair` does what a start of the server does to a data directory, `salvage` makes a
//! new one of what is left of another. What they show is printed as [`crate::inspect`] prints; what they change goes through the
//! log's own recovery and writer.

mod repair;
mod salvage;

use crate::fs::{Fs, read_full_at};
use crate::ingester::{DataDirError, Dirs};
use crate::inspect::cli::{Attach, Command, Dirs as Asked};
use crate::inspect::{InspectError, Progress, Report, next};
use crate::wal::format::FIRST_GROUP;
use crate::wal::{
    BlockLogOptions, LogKind, RecoverError, SegmentHeader, SeriesDef, SyncMode, Unattributed, WalMetrics, WalOptions,
    file_number,
};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use uuid::Uuid;

/// Bytes of a segment where there is none to learn it from: the server's default.
const SEGMENT_SIZE: u64 = 64 << 20;
/// No budget refuses what is there already.
const NO_LIMIT: u64 = 1 << 62;

/// Runs one of the commands on the directory that `-d` names.
///
/// # Errors
/// See [`InspectError`].
pub fn run(command: &Command, asked: &Asked, progress: Progress) -> Result<Report, InspectError> {
    match command {
        Command::Repair(args) => repair::run(args, asked, progress),
        Command::Salvage(args) => salvage::run(args, asked, progress),
        _ => Ok(Report::default()),
    }
}

/// A log in these directories, without budgets.
fn options(fs: Arc<dyn Fs>, dirs: &Dirs, volume: Uuid, segment_size: u64) -> WalOptions {
    WalOptions {
        fs,
        dir: dirs.wal.clone(),
        volume,
        segment_size,
        max_size: NO_LIMIT,
        blocks: BlockLogOptions { dir: dirs.blocks.clone(), segment_size, max_size: NO_LIMIT },
        sync: SyncMode::Always,
        queue_bytes: 8 << 20,
        next_stream_id: Arc::new(AtomicU64::new(1)),
        metrics: WalMetrics::unregistered(),
    }
}

/// The size that most segments of both logs have: what the server was set up with. Others hold a record of that size, or are
/// of another time.
fn usual_segment_size(fs: &dyn Fs, dirs: &Dirs) -> Result<u64, InspectError> {
    let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
    for (log, dir) in [(LogKind::Wal, &dirs.wal), (LogKind::Blocks, &dirs.blocks)] {
        let entries = match fs.list(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            listed => listed.map_err(InspectError::io("list", dir))?,
        };
        for entry in entries.into_iter().filter(|e| file_number(log, &e.name).is_some()) {
            let path = dir.join(&entry.name);
            let mut start = vec![0; FIRST_GROUP as usize];
            let file = fs.open(&path, false).map_err(InspectError::io("open", &path))?;
            let read = read_full_at(&*file, 0, &mut start).map_err(InspectError::io("read", &path))?;
            start.truncate(read);
            if let Ok(header) = SegmentHeader::decode(&start) {
                *sizes.entry(header.file_len).or_default() += 1;
            }
        }
    }
    // Of equally many, the smaller.
    let most = sizes.into_iter().rev().max_by_key(|(_, count)| *count);
    Ok(most.map_or(SEGMENT_SIZE, |(size, _)| size))
}

/// The definitions of streams whose labels were given.
fn define(
    given: &[Attach],
    tenant: Option<&str>,
    unattributed: &[Unattributed],
    asked: &Asked,
) -> Result<Vec<SeriesDef>, InspectError> {
    let wrong = |what: String| refused(what, 2, next("repair", asked) + ", which lists the streams without labels");
    let mut out: Vec<SeriesDef> = Vec::new();
    for Attach { stream, labels } in given {
        let Some(found) = unattributed.iter().find(|u| u.stream == *stream) else {
            return Err(wrong(format!("no line without labels is of stream {stream}")));
        };
        // Blocks do not tell.
        let told = Some(&*found.tenant).filter(|told| !told.is_empty());
        let Some(of) = told.or(tenant) else {
            return Err(wrong(format!("nothing tells whose stream {stream} is: say so with --tenant NAME")));
        };
        if let Some(tenant) = tenant.filter(|tenant| *tenant != of) {
            return Err(wrong(format!("stream {stream} is of tenant {of}, not of {tenant}")));
        }
        if out.iter().any(|d| d.id == *stream) {
            return Err(wrong(format!("stream {stream} is given labels twice")));
        }
        out.push(SeriesDef {
            id: *stream,
            tenant: of.to_string(),
            labels: labels.pairs().iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
            fingerprint: labels.hash(),
            next_seq: found.end_seq,
            settled_seq: 0,
        });
    }
    Ok(out)
}

fn refused(what: impl ToString, code: u8, next: impl Into<String>) -> InspectError {
    InspectError::Tool { what: what.to_string(), code, next: next.into() }
}

/// Why a data directory was not taken.
fn not_taken(error: &DataDirError, asked: &Asked) -> InspectError {
    match error {
        DataDirError::Locked(dir, who) => {
            let what = format!("{dir} is in use by another process ({who})");
            refused(what, 3, format!("stop the server ({who}), then the same command"))
        }
        DataDirError::Version(..) => refused(error, 5, "the wal-inspect of the Timberline that made the directory"),
        DataDirError::Io(..) => {
            refused(error, 3, format!("ls -ld {0} {0}/LOCK, and the user of the server", asked.dir.display()))
        }
        DataDirError::Damaged(..) | DataDirError::Gone(_) | DataDirError::Empty(_) => {
            refused(error, 3, next("summary", asked) + ", which shows the volume that identity names")
        }
    }
}

/// Why a log was not recovered.
fn not_recovered(error: &RecoverError, asked: &Asked) -> InspectError {
    match error {
        RecoverError::Version(..) | RecoverError::Kind(..) => {
            refused(error, 5, "the wal-inspect of the Timberline that wrote the log")
        }
        RecoverError::Foreign(..) => refused(error, 3, next("ls", asked)),
        RecoverError::Tail(_) => refused(error, 3, format!("df {}, then the same command", asked.dir.display())),
        RecoverError::Io { .. } | RecoverError::Changed { .. } => {
            refused(error, 3, "dmesg, which shows whether the disk failed")
        }
    }
}
