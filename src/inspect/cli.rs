//! The command line.

use super::args::{BenchArgs, ImportArgs, ReplayArgs};
use super::dump::{DumpArgs, Position};
use super::explain::Place;
use super::export::ExportArgs;
use super::output::Format;
use super::selector::Selector;
use super::stats::By;
use crate::wal::{LogKind, file_name};
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Shows what a write-ahead log of Timberline holds, and whether it is sound.
///
/// But for `import`, `bench` and files that you name, it reads only. It takes no lock to read, and works on the directory
/// of a running server: it stops at the durable end of the log.
#[derive(Debug, Parser)]
#[command(name = "wal-inspect", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Data directory of the server, or the directory of the segments itself
    #[arg(short, long, global = true, value_name = "DIR", default_value = "./data")]
    pub dir: PathBuf,
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
    #[command(after_help = DUMP_EXAMPLE)]
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
    /// Every line once, as JSON: for other programs
    #[command(after_help = EXPORT_EXAMPLE)]
    Export(Box<ExportArgs>),
    /// Make a new log from the write-ahead log of a Loki ingester
    #[command(after_help = IMPORT_EXAMPLE)]
    Import(ImportArgs),
    /// Push the lines of a log to a server that speaks Loki's protocol
    #[command(after_help = REPLAY_EXAMPLE)]
    Replay(Box<ReplayArgs>),
    /// Measure how long syncs take in a directory
    #[command(after_help = BENCH_EXAMPLE)]
    Bench(BenchArgs),
}

const DUMP_EXAMPLE: &str = "Example, the errors of one tenant as they become durable:
  wal-inspect -d /var/lib/timberline dump --follow --tenant acme --grep 'level=error'";
const EXPORT_EXAMPLE: &str = "Example, an hour of one application, compressed:
  wal-inspect -d /var/lib/timberline export -m '{app=\"web\"}' --since 1h --to web.jsonl.zst";
const IMPORT_EXAMPLE: &str = "Example, with Loki stopped:
  wal-inspect -d /var/lib/timberline import --from-loki /var/lib/loki/wal";
const REPLAY_EXAMPLE: &str = "Example, from an orphaned volume to the service, interrupted or not:
  wal-inspect -d /mnt/orphan replay --to http://loki:3100 --rate 20MB --resume /var/tmp/orphan.json";
const BENCH_EXAMPLE: &str = "Example:
  wal-inspect -d /var/lib/timberline bench --seconds 5";

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
            Self::Export(_) => "export",
            Self::Import(_) => "import",
            Self::Replay(_) => "replay",
            Self::Bench(_) => "bench",
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
