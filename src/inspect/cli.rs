//! The command line.

use super::dump::{DumpArgs, Position};
use super::explain::Place;
use super::output::Format;
use super::selector::Selector;
use super::stats::By;
use crate::wal::{LogKind, file_name};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::fmt;
use std::path::PathBuf;

/// Shows what a write-ahead log of Timberline holds, and whether it is sound.
///
/// Reads only, takes no lock, and works on the directory of a running server: it stops at the durable end of the log.
#[derive(Debug, Parser)]
#[command(name = "wal-inspect", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where the logs lie
    #[command(flatten)]
    pub dirs: Dirs,
    /// Format of the output
    #[arg(short, long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
    /// Colour in tables
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    pub color: When,
    /// What to show; `summary` if left out
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Where the logs lie.
#[derive(Clone, Debug, Args)]
pub struct Dirs {
    /// Data directory of the server, or the directory of the segments itself
    #[arg(short, long, global = true, value_name = "DIR", default_value = "./data")]
    pub dir: PathBuf,
    /// Directory of the write-ahead log, if ingester.wal.dir is set [default: DIR/wal]
    #[arg(long, global = true, value_name = "DIR")]
    pub wal_dir: Option<PathBuf>,
    /// Directory of the block log, if ingester.blocks.dir is set [default: DIR/blocks]
    #[arg(long, global = true, value_name = "DIR")]
    pub blocks_dir: Option<PathBuf>,
}

/// As on the command line.
impl fmt::Display for Dirs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-d {}", self.dir.display())?;
        let others = [("--wal-dir", &self.wal_dir), ("--blocks-dir", &self.blocks_dir)];
        let mut given = others.into_iter().filter_map(|(flag, dir)| Some((flag, dir.as_ref()?)));
        given.try_for_each(|(flag, dir)| write!(f, " {flag} {}", dir.display()))
    }
}

const EXIT_CODES: &str = "Exit codes: 0 sound, 1 damage or difference, 2 usage, 3 I/O, 5 unknown version.";

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// One screen: size, streams, positions, verdict (default)
    Summary,
    /// Segments: size, records, LSNs, state
    Ls,
    /// Series and entry records
    Dump(Box<DumpArgs>),
    /// Streams with their labels, lines, bytes and time range
    Streams {
        /// Show only the first N
        #[arg(long, value_name = "N")]
        top: Option<usize>,
        /// Order, largest first
        #[arg(long, value_name = "FIGURE", value_enum, default_value_t)]
        by: super::streams::Order,
        /// Only this tenant
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Only streams that satisfy a selector, such as '{app="web", env=~"prod|test"}'
        #[arg(short = 'm', long = "match", value_name = "SELECTOR")]
        selector: Option<Selector>,
    },
    /// Lines, bytes and compression
    Stats {
        /// What the rows stand for
        #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
        by: By,
    },
    /// Check every checksum, position and seq; tell what is missing, by stream
    Verify,
    /// One record, group header or segment header, field by field
    Explain {
        /// FILE:OFFSET, where FILE is a path, a file name or the number of a segment
        #[arg(value_name = "FILE:OFFSET")]
        place: Place,
    },
}

impl Command {
    /// Its name on the command line and in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Summary => "summary",
            Self::Ls => "ls",
            Self::Dump(_) => "dump",
            Self::Streams { .. } => "streams",
            Self::Stats { .. } => "stats",
            Self::Verify => "verify",
            Self::Explain { .. } => "explain",
        }
    }
}

/// Text of a place in one of the logs, as `explain` takes it.
pub fn place(log: LogKind, segment: u64, offset: u64) -> String {
    match log {
        LogKind::Wal => Position { segment, offset }.to_string(),
        LogKind::Blocks => format!("{}:{offset}", file_name(log, segment)),
    }
}
