//! Shows what a write-ahead log of Timberline holds, and mends it. Reading is in [`timberline::inspect`], writing in
//! [`timberline::mend`].

use std::process::ExitCode;

fn main() -> ExitCode {
    timberline::inspect::main(std::env::args_os(), timberline::mend::run)
}
