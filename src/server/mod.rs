//! Configuration, telemetry, lifecycle: from the command line to a running server.

mod check;
pub mod config;
pub mod flags;
mod health;
mod lifecycle;
mod local;
mod overview;
mod reader;
mod status;
pub mod telemetry;

use crate::api::BuildInfo;
use config::Loaded;
use flags::Command;
use lifecycle::ListenerTls;
use std::process::ExitCode;
use telemetry::Telemetry;
use tracing::{error, warn};

pub use check::CheckOptions;
pub use health::health;
pub use lifecycle::{EXIT_POISONED, ingester_config};

/// Does what the command line asks for.
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.into_iter().collect();
    // An init container tells a wrong command line from what was found.
    let failure = if flags::wants_check(&args) { ExitCode::from(check::USAGE) } else { ExitCode::FAILURE };
    match flags::parse(args) {
        Ok(Command::Serve { loaded, print_config }) => serve(*loaded, print_config),
        Ok(Command::Verify { loaded, print_config }) => verify(&loaded, print_config),
        Ok(Command::Check { loaded, options }) => check::run(&loaded.config, &loaded.warnings, options),
        Ok(Command::Health { url }) => match health::health(&url) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        },
        Ok(Command::Version) => {
            let BuildInfo { version, branch, revision, .. } = BuildInfo::default();
            println!("timberline, version {version} (branch: {branch}, revision: {revision})");
            ExitCode::SUCCESS
        }
        Ok(Command::Help) => {
            println!("{}", flags::help());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            failure
        }
    }
}

/// Whatever a start would refuse before it looks at ports and disks.
fn verify(Loaded { config, warnings }: &Loaded, print_config: bool) -> ExitCode {
    if print_config {
        eprintln!("{}", config.to_yaml());
    }
    warnings.iter().for_each(|w| eprintln!("warning: {w}"));
    match ListenerTls::load(config) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(Loaded { config, warnings }: Loaded, print_config: bool) -> ExitCode {
    if print_config {
        eprintln!("{}", config.to_yaml());
    }
    let telemetry = match Telemetry::install(config.server.log_level, config.server.log_format) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    warnings.iter().for_each(|w| warn!("{w}"));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(lifecycle::run(config, telemetry));
    // A replay that a stop has made pointless is not waited for.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
