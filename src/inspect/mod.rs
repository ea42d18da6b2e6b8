//! `wal-inspect`: shows what a log holds and whether it is sound, without changing it. See docs/wal-inspect.md.
//!
//! Commands that write a log or talk to a network are on its command line, but in rooms above: the binary hands those in
//! as [`RunTool`].
//!
//! Everything is read over memory maps: a fault ends a tool with an exit code, and never a server. Each segment is copied
//! out of its map before anything is believed, and the copy counts only if the file still has its name afterwards: a
//! server may use it again meanwhile. A log is read twice: once to judge it as recovery would ([`log::judge`]), and once
//! more for what a command shows ([`log::Judged::walk`]).

pub mod args;
pub mod blocks;
pub mod cli;
pub mod command;
pub mod diff;
pub mod dump;
pub mod entries;
pub mod error;
pub mod explain;
pub mod export;
mod follow;
mod format;
mod get;
mod lines;
pub mod log;
mod manual;
pub mod output;
mod progress;
mod selector;
mod seqs;
pub mod stats;
pub mod streams;
mod summary;
pub mod verify;

pub use error::InspectError;
pub use progress::Progress;
pub use selector::{Selector, SelectorError};

use crate::fs::exit_on_map_fault;
use crate::wal::ranges;
use clap::Parser;
use cli::{Cli, Command, Dirs, When};
use command::Context;
use log::Judged;
use output::{Printer, Row, Shape};
use std::ffi::OsString;
use std::io::{BufWriter, IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;

/// Exit code for damage.
const DAMAGED: u8 = 1;
/// Exit code and text of a fault: a file became shorter than it was, or the disk failed below it.
const FAULT: i32 = 3;
const FAULT_TEXT: &str = "wal-inspect: a segment cannot be read: its file became shorter meanwhile, or the disk failed\n\
    next: the same command again; then dmesg, which shows whether the disk failed\n";

/// What a tool has done.
#[derive(Debug, Default)]
pub struct Report {
    /// Sections of the output.
    pub sections: Vec<(&'static str, Shape, Vec<Row>)>,
    /// Something was found.
    pub found: Option<Finding>,
}

/// Not all is well: the exit code is 1.
#[derive(Debug)]
pub struct Finding {
    /// In a few words.
    pub what: &'static str,
    /// What to try next.
    pub next: String,
}

impl Finding {
    /// Damage was found.
    pub fn damage(next: String) -> Self {
        Self { what: "damage was found", next }
    }
}

/// Runs one of the commands that are not of this room.
pub type RunTool = fn(&Command, &Dirs, Progress) -> Result<Report, InspectError>;

/// Runs `wal-inspect` with command-line arguments, the program's name first, and returns its exit code: 0 sound,
/// 1 damage, 2 usage, 3 I/O, 5 unknown version.
pub fn main(args: impl IntoIterator<Item = OsString>, tool: RunTool) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no errors; a closed pipe is none either.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    exit_on_map_fault(FAULT, FAULT_TEXT);
    match run(&cli, tool) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(Finding { what, next })) => {
            say(&format!("wal-inspect: {what}\nnext: {next}"));
            ExitCode::from(DAMAGED)
        }
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("wal-inspect: {error}\nnext: {}", error.next()));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Writes to standard error. If that is closed, nobody wants to know.
pub fn say(text: &str) {
    let _ = writeln!(stderr().lock(), "{text}");
}

/// Runs a command; tells what it found if not all is well.
fn run(cli: &Cli, tool: RunTool) -> Result<Option<Finding>, InspectError> {
    let command = cli.command.as_ref().unwrap_or(&Command::Summary);
    let terminal = stdout().is_terminal();
    let color = match cli.color {
        When::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        When::Always => true,
        When::Never => false,
    };
    let scrolls = terminal && matches!(command, Command::Dump(_) | Command::Export(_));
    let mut out = BufWriter::with_capacity(64 * 1024, stdout().lock());
    if manual::run(command, &mut out)? {
        return Ok(None);
    }
    let mut progress = Progress::new(!scrolls);
    if command.is_tool() {
        let report = tool(command, &cli.dirs, progress)?;
        print(&report, printer(out, cli, color, command)?).map_err(InspectError::Output)?;
        return Ok(report.found);
    }
    if let Command::Export(args) = command {
        let judged = log::judge(&cli.dirs, &mut progress)?;
        let whole = export::run(args, &judged, out, &mut progress)?;
        return Ok((!whole).then(|| Finding::damage(after_damage(command, &judged, &cli.dirs))));
    }
    let mut context = Context { printer: printer(out, cli, color, command)?, progress };
    let found = show(command, &cli.dirs, &mut context)?;
    context.printer.finish().map_err(InspectError::Output)?;
    Ok(found)
}

/// Runs a command of this room.
fn show<W: Write>(command: &Command, dirs: &Dirs, context: &mut Context<W>) -> Result<Option<Finding>, InspectError> {
    match command {
        Command::Explain { place } => {
            let sound = explain::run(place, dirs, context)?;
            Ok((!sound).then(|| Finding::damage(next("verify", dirs))))
        }
        Command::Get { place, log } => {
            let sound = get::run(place, *log, dirs, context)?;
            Ok((!sound).then(|| Finding::damage(next(&format!("explain {place}"), dirs))))
        }
        Command::Format => format::run(context).map(|()| None).map_err(InspectError::Output),
        Command::Diff(args) => diff::run(args, context),
        _ => {
            let judged = log::judge(dirs, &mut context.progress)?;
            let sound = show_log(command, &judged, context)?;
            Ok((!sound).then(|| Finding::damage(after_damage(command, &judged, dirs))))
        }
    }
}

fn printer<W: Write>(out: W, cli: &Cli, color: bool, command: &Command) -> Result<Printer<W>, InspectError> {
    Printer::new(out, cli.output, color, command.name()).map_err(InspectError::Output)
}

fn print<W: Write>(report: &Report, mut printer: Printer<W>) -> std::io::Result<()> {
    for (name, shape, rows) in &report.sections {
        printer.section(name, *shape)?;
        rows.iter().try_for_each(|row| printer.row(row))?;
    }
    printer.finish()
}

/// Runs a command on a judged log; `true` if the log is sound.
fn show_log<W: Write>(command: &Command, judged: &Judged, context: &mut Context<W>) -> Result<bool, InspectError> {
    match command {
        Command::Summary => summary::summary(judged, context)?,
        Command::Ls => summary::ls(judged, context)?,
        Command::Dump(args) => dump::run(args, judged, context)?,
        Command::Streams { top, by, tenant, selector } => {
            let (tenant, selector) = (tenant.as_deref(), selector.as_ref());
            streams::run(&streams::Choice { top: *top, by: *by, tenant, selector }, judged, context)?;
        }
        Command::Stats { by } => stats::run(*by, judged, context)?,
        Command::Verify => return verify::run(judged, context),
        // `show` and `run` have answered the others.
        _ => {}
    }
    Ok(judged.is_sound())
}

/// A command line of this program.
pub fn next(command: &str, dirs: &Dirs) -> String {
    format!("wal-inspect {command} {dirs}")
}

fn after_damage(command: &Command, judged: &Judged, dirs: &Dirs) -> String {
    match judged.damage().first() {
        Some(first) if matches!(command, Command::Verify) => {
            next(&format!("explain {}", cli::place(first.log, first.segment, first.offset)), dirs)
        }
        _ if matches!(command, Command::Verify) => next("ls", dirs),
        _ => next("verify", dirs),
    }
}
