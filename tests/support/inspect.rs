//! `wal-inspect` as a user runs it, and what it prints.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_wal-inspect"))
}

pub fn inspect(data: &Path, args: &[&str]) -> Output {
    program().arg("-d").arg(data).args(args).output().unwrap()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a command with `-o json`, checks its exit code and gives the document.
#[track_caller]
pub fn json(data: &Path, args: &[&str], exit: i32) -> Value {
    let output = inspect(data, &[args, &["-o", "json"]].concat());
    assert_eq!(code(&output), exit, "{args:?}: {}\n{}", stderr(&output), stdout(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema_version"], 1);
    document
}
