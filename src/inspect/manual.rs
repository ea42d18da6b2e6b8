//! `completions` and `man`: made from the definitions of the command line, so that they never differ from it.

use super::cli::{Cli, Command};
use super::error::InspectError;
use clap::CommandFactory;
use std::io::Write;

/// Runs one of the two; `false` if it is another command.
///
/// # Errors
/// There is no command of that name, or the output cannot be written.
pub fn run(command: &Command, out: &mut impl Write) -> Result<bool, InspectError> {
    let mut text = Vec::new();
    match command {
        Command::Completions { shell } => {
            let mut cli = Cli::command();
            let name = cli.get_name().to_string();
            clap_complete::generate(*shell, &mut cli, name, &mut text);
        }
        Command::Man { page } => {
            let page = page_of(page.as_deref())?;
            clap_mangen::Man::new(page).render(&mut text).map_err(InspectError::Output)?;
        }
        _ => return Ok(false),
    }
    out.write_all(&text).and_then(|()| out.flush()).map_err(InspectError::Output)?;
    Ok(true)
}

/// The program, or one of its commands.
fn page_of(command: Option<&str>) -> Result<clap::Command, InspectError> {
    let mut cli = Cli::command();
    // Names of pages, and options that all commands have.
    cli.build();
    let Some(name) = command else { return Ok(cli) };
    let page = cli.find_subcommand(name).cloned();
    page.ok_or_else(|| InspectError::Tool {
        what: format!("wal-inspect has no command {name}"),
        next: "wal-inspect --help, which lists them".to_string(),
        code: 2,
    })
}
