//! Shows what a write-ahead log of Timberline holds. Everything is in [`timberline::inspect`].

use std::process::ExitCode;

fn main() -> ExitCode {
    timberline::inspect::main(std::env::args_os())
}
