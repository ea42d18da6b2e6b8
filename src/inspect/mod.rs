//! `wal-inspect`: shows what a log holds and whether it is sound, without changing it. See docs/wal-inspect.md.
//!
//! Everything is read over memory maps: a fault ends a tool with an exit code, and never a server. Each segment is copied
//! out of its map before anything is believed, and the copy counts only if the file still has its name afterwards: a
//! server may use it again meanwhile. A log is read twice: once to judge it as recovery would ([`log::judge`]), and once
//! more for what a command shows ([`log::Judged::walk`]).

pub mod blocks;
pub mod cli;
pub mod command;
pub mod dump;
pub mod error;
pub mod explain;
pub mod log;
pub mod output;
mod progress;
mod selector;
mod seqs;
pub mod stats;
pub mod streams;
mod summary;
mod verify;

pub use error::InspectError;
pub use progress::Progress;
pub use selector::{Selector, SelectorError};

use crate::fs::exit_on_map_fault;
use crate::wal::ranges;
use clap::Parser;
use cli::{Cli, Command, Dirs, When};
use command::Context;
use log::Judged;
use output::Printer;
use std::ffi::OsString;
use std::io::{BufWriter, IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;

/// Exit code for damage.
const DAMAGED: u8 = 1;
/// Exit code and text of a fault: a file became shorter than it was, or the disk failed below it.
const FAULT: i32 = 3;
const FAULT_TEXT: &str = "wal-inspect: a segment cannot be read: its file became shorter meanwhile, or the disk failed\n\
    next: the same command again; then dmesg, which shows whether the disk failed\n";

/// Runs `wal-inspect` with command-line arguments, the program's name first, and returns its exit code: 0 sound,
/// 1 damage, 2 usage, 3 I/O, 5 unknown version.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no errors; a closed pipe is none either.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    exit_on_map_fault(FAULT, FAULT_TEXT);
    match run(&cli) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(next)) => {
            say(&format!("wal-inspect: damage was found\nnext: {next}"));
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
fn say(text: &str) {
    let _ = writeln!(stderr().lock(), "{text}");
}

/// Runs a command; tells what to try next if damage was found.
fn run(cli: &Cli) -> Result<Option<String>, InspectError> {
    let command = cli.command.as_ref().unwrap_or(&Command::Summary);
    let terminal = stdout().is_terminal();
    let color = match cli.color {
        When::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        When::Always => true,
        When::Never => false,
    };
    let scrolls = terminal && matches!(command, Command::Dump(_));
    let out = BufWriter::with_capacity(64 * 1024, stdout().lock());
    let mut progress = Progress::new(!scrolls);
    if let Command::Explain { place } = command {
        let mut context = Context { printer: printer(out, cli, color, command)?, progress };
        let sound = explain::run(place, &cli.dirs, &mut context)?;
        context.printer.finish().map_err(InspectError::Output)?;
        return Ok((!sound).then(|| next("verify", &cli.dirs)));
    }
    let judged = log::judge(&cli.dirs, &mut progress)?;
    let mut context = Context { printer: printer(out, cli, color, command)?, progress };
    let sound = show(command, &judged, &mut context)?;
    context.printer.finish().map_err(InspectError::Output)?;
    Ok((!sound).then(|| after_damage(command, &judged, &cli.dirs)))
}

fn printer<W: Write>(out: W, cli: &Cli, color: bool, command: &Command) -> Result<Printer<W>, InspectError> {
    Printer::new(out, cli.output, color, command.name()).map_err(InspectError::Output)
}

/// Runs a command on a judged log; `true` if the log is sound.
fn show<W: Write>(command: &Command, judged: &Judged, context: &mut Context<W>) -> Result<bool, InspectError> {
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
        // Explain needs no judgement: `run` has answered it.
        Command::Explain { .. } => {}
    }
    Ok(judged.is_sound())
}

fn next(command: &str, dirs: &Dirs) -> String {
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
