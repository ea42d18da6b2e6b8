//! Shows what a write-ahead log of Timberline holds. Everything is in [`timberline::inspect`] and, for what writes,
//! [`timberline::tools`].

use std::process::ExitCode;

fn main() -> ExitCode {
    timberline::inspect::main(std::env::args_os(), timberline::tools::run)
}
