//! Shows what a write-ahead log of Timberline holds, mends it, and brings lines in and out. Reading is in
//! [`timberline::inspect`], the rest in [`timberline::tools`].

use std::process::ExitCode;

fn main() -> ExitCode {
    timberline::inspect::main(std::env::args_os(), timberline::tools::run)
}
