//! Commands of `wal-inspect` that write a log, talk to a network, or load a disk. Their arguments are read in
//! [`crate::inspect`], which only reads and never sees this room.

mod bench;
mod import;
mod loki;
mod replay;
mod target;

use crate::inspect::cli::Command;
use crate::inspect::{InspectError, Progress, Report};
use std::path::Path;

/// Runs a command on a data directory.
///
/// # Errors
/// It could not do its work; the error says what to try next.
pub fn run(command: &Command, dir: &Path, progress: Progress) -> Result<Report, InspectError> {
    match command {
        Command::Import(args) => import::run(args, dir),
        Command::Replay(args) => replay::run(args, dir, progress),
        Command::Bench(args) => bench::run(args, dir),
        _ => crate::mend::run(command, dir, progress),
    }
}
