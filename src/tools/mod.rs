//! Commands of `wal-inspect` that write a log, talk to a network, or load a disk. Their arguments are read in
//! [`crate::inspect`], which only reads and never sees this room.

mod bench;
mod import;
mod loki;
mod replay;
mod target;

use crate::inspect::cli::{Command, Dirs};
use crate::inspect::{InspectError, Progress, Report};

/// Runs a command on a data directory.
///
/// # Errors
/// It could not do its work; the error says what to try next.
pub fn run(command: &Command, dirs: &Dirs, progress: Progress) -> Result<Report, InspectError> {
    match command {
        Command::Import(args) => import::run(args, &dirs.dir),
        Command::Replay(args) => replay::run(args, dirs, progress),
        Command::Bench(args) => bench::run(args, &dirs.dir),
        _ => crate::mend::run(command, dirs, progress),
    }
}
