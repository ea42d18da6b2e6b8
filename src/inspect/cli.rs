//! The command line.

use super::args::{BenchArgs, ImportArgs, ReplayArgs};
use super::diff::DiffArgs;
use super::dump::{DumpArgs, DumpLog, Position};
use super::explain::Place;
use super::export::ExportArgs;
use super::output::Format;
use super::selector::Selector;
use super::stats::By;
use crate::model::{LabelSet, parse_labels};
use crate::wal::{LogKind, file_name};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Shows what a write-ahead log of Timberline holds, and whether it is sound; repairs it, and saves what is left.
///
/// But for `repair`, `salvage`, `import`, `bench` and files that you name, it reads only. It takes no lock to read, and works on
/// the directory of a running server: it stops at the durable end of the log.
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

impl Dirs {
    /// A data directory with both logs in their usual places.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), wal_dir: None, blocks_dir: None }
    }
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

const EXIT_CODES: &str = "Exit codes: 0 sound, 1 damage or difference, 2 usage, 3 I/O, 5 unknown version.\n\n\
    Example: wal-inspect -d /var/lib/timberline verify";

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
    #[command(after_help = "Example: wal-inspect -d /var/lib/timberline summary")]
    Summary,
    /// Segments: size, records, LSNs, state
    #[command(after_help = "Example: wal-inspect -d /var/lib/timberline ls")]
    Ls,
    /// Series and entry records
    #[command(after_help = DUMP_EXAMPLE)]
    Dump(Box<DumpArgs>),
    /// Streams with their labels, lines, bytes and time range
    #[command(after_help = "Example: wal-inspect -d /var/lib/timberline streams --top 10 --by bytes")]
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
    #[command(after_help = "Example: wal-inspect -d /var/lib/timberline stats --by stream")]
    Stats {
        /// What the rows stand for
        #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
        by: By,
    },
    /// Check every checksum, position and seq; tell what is missing, by stream
    #[command(after_help = "Example: wal-inspect -d /var/lib/timberline verify -o json")]
    Verify,
    /// One record, group header or segment header, field by field
    #[command(after_help = "Example: wal-inspect -d /var/lib/timberline explain 7:8256")]
    Explain {
        /// FILE:OFFSET, where FILE is a path, a file name or the number of a segment
        #[arg(value_name = "FILE:OFFSET")]
        place: Place,
    },
    /// One record or block by its position, with its lines
    #[command(after_help = "Example: wal-inspect -d /var/lib/timberline get 7:8256")]
    Get {
        /// SEGMENT:OFFSET as `dump` prints it, or FILE:OFFSET as `explain` takes it
        #[arg(value_name = "POSITION")]
        place: Place,
        /// The log of a position that is two numbers; wal if left out
        #[arg(long, value_name = "LOG", value_enum)]
        log: Option<DumpLog>,
    },
    /// Lines that only one of two data directories has, by stream
    #[command(after_help = "Example: wal-inspect diff /var/lib/timberline /mnt/copy --lines")]
    Diff(DiffArgs),
    /// Do to a stopped data directory what a start of the server would do, without serving; a dry run unless --apply
    #[command(after_help = "Example: wal-inspect -d /var/lib/timberline repair")]
    Repair(RepairArgs),
    /// Write everything that can be read from a data directory into a new one
    #[command(after_help = "Example: wal-inspect salvage /var/lib/timberline /mnt/new")]
    Salvage(SalvageArgs),
    /// Constants and layouts of the logs, on one screen
    #[command(after_help = "Example: wal-inspect format")]
    Format,
    /// Completions for a shell
    #[command(after_help = "Example: wal-inspect completions bash > /etc/bash_completion.d/wal-inspect")]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL", value_enum)]
        shell: clap_complete::Shell,
    },
    /// The manual page, of the program or of a command
    #[command(after_help = "Example: wal-inspect man repair | man -l -")]
    Man {
        /// A command
        #[arg(value_name = "COMMAND")]
        page: Option<String>,
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

/// What `repair` does.
#[derive(Debug, clap::Args)]
pub struct RepairArgs {
    /// Do it, and keep a copy of all that changes in DIR/repair-TIME
    #[arg(long)]
    pub apply: bool,
    /// Gives labels to lines in the write-ahead log whose stream no definition names, such as 7='{app="web"}'
    #[arg(long, value_name = "STREAM=LABELS")]
    pub attach_labels: Vec<Attach>,
    /// The tenant that these streams must have
    #[arg(long, value_name = "NAME", requires = "attach_labels")]
    pub tenant: Option<String>,
}

/// What `salvage` copies.
#[derive(Debug, clap::Args)]
pub struct SalvageArgs {
    /// A data directory, or the directory of the segments itself; it is only read
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// A directory that is not there yet, or is empty
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
    /// Gives labels to a stream that no definition names, such as 7='{app="web"}'; in the new directory they last
    #[arg(long, value_name = "STREAM=LABELS")]
    pub attach_labels: Vec<Attach>,
    /// The tenant that these streams must have, or have if nothing tells
    #[arg(long, value_name = "NAME", requires = "attach_labels")]
    pub tenant: Option<String>,
}

/// Labels for a stream.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Stream id.
    pub stream: u64,
    /// Its labels.
    pub labels: LabelSet,
}

impl FromStr for Attach {
    type Err = String;

    /// `7={app="web"}`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected STREAM=LABELS, such as 7='{app=\"web\"}'".to_string();
        let (stream, labels) = text.split_once('=').ok_or_else(wrong)?;
        let pairs = parse_labels(labels).map_err(|e| e.to_string())?;
        let mut names: Vec<&str> = pairs.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err("a label comes twice".to_string());
        }
        let labels = LabelSet::new(pairs);
        if labels.pairs().is_empty() {
            return Err("a stream has at least one label".to_string());
        }
        Ok(Self { stream: stream.trim().parse().map_err(|_| wrong())?, labels })
    }
}

const DUMP_EXAMPLE: &str =
    "Example: wal-inspect -d /var/lib/timberline dump --follow --tenant acme --grep 'level=error'";
const EXPORT_EXAMPLE: &str =
    "Example: wal-inspect -d /var/lib/timberline export -m '{app=\"web\"}' --since 1h --to web.jsonl.zst";
const IMPORT_EXAMPLE: &str = "Example: wal-inspect -d /var/lib/timberline import --from-loki /var/lib/loki/wal";
const REPLAY_EXAMPLE: &str =
    "Example: wal-inspect -d /mnt/orphan replay --to http://loki:3100 --rate 20MB --resume /var/tmp/orphan.json";
const BENCH_EXAMPLE: &str = "Example: wal-inspect -d /var/lib/timberline bench --seconds 5";

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
            Self::Get { .. } => "get",
            Self::Diff(_) => "diff",
            Self::Repair(_) => "repair",
            Self::Salvage(_) => "salvage",
            Self::Format => "format",
            Self::Completions { .. } => "completions",
            Self::Man { .. } => "man",
            Self::Export(_) => "export",
            Self::Import(_) => "import",
            Self::Replay(_) => "replay",
            Self::Bench(_) => "bench",
        }
    }

    /// Does it do more than read, and so belong to a room above?
    pub(super) fn is_tool(&self) -> bool {
        matches!(self, Self::Repair(_) | Self::Salvage(_) | Self::Import(_) | Self::Replay(_) | Self::Bench(_))
    }
}

/// Text of a place in one of the logs, as `explain` takes it.
pub fn place(log: LogKind, segment: u64, offset: u64) -> String {
    match log {
        LogKind::Wal => Position { segment, offset }.to_string(),
        LogKind::Blocks => format!("{}:{offset}", file_name(log, segment)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn labels_are_read_with_their_stream() {
        let read: Attach = "7={env=\"prod\", app='we=b'}".parse().unwrap();
        assert_eq!((read.stream, read.labels.text()), (7, "{app=\"we=b\", env=\"prod\"}"));
        for wrong in ["", "7", "x={a=\"b\"}", "7={}", "7={a=\"b\"", "7={a=\"\"}", "7={a=\"1\", a=\"2\"}", "={a=\"b\"}"]
        {
            assert!(wrong.parse::<Attach>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_command_has_an_example_that_can_be_parsed() {
        let cli = Cli::command();
        cli.clone().debug_assert();
        for command in cli.get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = help.lines().find_map(|line| line.strip_prefix("Example: "));
            let example = example.unwrap_or_else(|| panic!("{} has no example", command.get_name()));
            // As a shell splits it: what is in single quotes is one word.
            let words = example.split([' ']).take_while(|w| !["|", ">"].contains(w)).map(|w| w.trim_matches('\''));
            let parsed = Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{example}: {e}"));
            assert_eq!(parsed.command.map(|c| c.name()), Some(command.get_name()), "{example}");
        }
    }
}
