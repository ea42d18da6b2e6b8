//! The command line, in Go's syntax: `-flag=value`, `-flag value`, `--flag`, and a bare flag for `true`.

use super::CheckOptions;
use super::config::{
    self, Config, ConfigError, EMBEDDED, EMBEDDED_NAME, File, FlagValue, Key, Loaded, Problem, SECTIONS, keys,
    nearest_flag,
};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Run the server; print the resolved configuration first, if asked.
    Serve {
        /// The configuration to run.
        loaded: Box<Loaded>,
        /// `-print-config-stderr`
        print_config: bool,
    },
    /// `-verify-config`: the configuration is good; look at the files that it names, tell its warnings and exit.
    Verify {
        /// The configuration that a start would have.
        loaded: Box<Loaded>,
        /// `-print-config-stderr`
        print_config: bool,
    },
    /// `-check`: would a start succeed here?
    Check {
        /// The configuration that a start would have.
        loaded: Box<Loaded>,
        /// How to tell.
        options: CheckOptions,
    },
    /// `-health`: ask this URL, exit with 0 if it answers 200.
    Health {
        /// `http://host:port/path`, or the same with `https`
        url: String,
    },
    /// `-version`
    Version,
    /// `-help`
    Help,
}

/// A flag that is no setting.
struct Special {
    name: &'static str,
    takes_value: bool,
    help: &'static str,
}

const fn bare(name: &'static str, help: &'static str) -> Special {
    Special { name, takes_value: false, help }
}

const fn valued(name: &'static str, help: &'static str) -> Special {
    Special { name, takes_value: true, help }
}

const SPECIALS: &[Special] = &[
    valued(
        "config.file",
        "YAML file; of several, separated by commas, the first that exists. Without it an embedded one applies.",
    ),
    bare("config.expand-env", "Replace ${NAME} and ${NAME:default} in that file by environment variables."),
    bare(
        "verify-config",
        "Check the configuration and the files that it names, tell what is wrong, and exit with 0 or 1.",
    ),
    bare(
        "check",
        "Check directories, disk, memory, log and ports without starting; exits with 0 (fine, or warnings), 1 (errors) or 2 (wrong usage).",
    ),
    valued("check.format", "How -check tells what it found: text or json."),
    bare("check.strict", "With -check: exit with 3 if there are warnings only."),
    bare("print-config-stderr", "Print the resolved configuration to stderr first; also with -verify-config."),
    bare("health", "Ask a running server whether it is ready; exits with 0 or 1 (a container's health check)."),
    valued("health.url", "What -health asks; by default /ready on the configured HTTP listener."),
    bare("version", "Print the version and exit."),
    bare("help", "Print this text and exit."),
];

/// No configuration file is larger.
const MAX_FILE: u64 = 16 << 20;

/// Reads the arguments (without the program's name) and the configuration that they name.
///
/// # Errors
/// Every problem of the command line, or else every problem of the configuration.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, ConfigError> {
    let given = split(args)?;
    if given.is_set("help")? {
        return Ok(Command::Help);
    }
    if given.is_set("version")? {
        return Ok(Command::Version);
    }
    if given.is_set("health")?
        && let Some(url) = given.text("health.url")
    {
        return Ok(Command::Health { url: url.to_string() });
    }
    let loaded = load(&given)?;
    if given.is_set("health")? {
        return Ok(Command::Health { url: ready_url(&loaded.config) });
    }
    let (loaded, print_config) = (Box::new(loaded), given.is_set("print-config-stderr")?);
    if given.is_set("verify-config")? {
        return Ok(Command::Verify { loaded, print_config });
    }
    if given.is_set("check")? {
        return Ok(Command::Check { options: check_options(&given)?, loaded });
    }
    Ok(Command::Serve { loaded, print_config })
}

/// Is `-check` among the arguments, whatever is wrong with the others?
pub(super) fn wants_check(args: &[String]) -> bool {
    let is_check =
        |arg: &String| matches!(arg.trim_start_matches('-').split('=').next(), Some("check")) && arg.starts_with('-');
    args.iter().any(is_check)
}

fn check_options(given: &Given) -> Result<CheckOptions, ConfigError> {
    let json = match given.text("check.format") {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => return Err(ConfigError::one("-check.format", format!("{other:?} is not text or json"))),
    };
    Ok(CheckOptions { json, strict: given.is_set("check.strict")? })
}

/// Flags by what they are for.
#[derive(Debug, Default)]
struct Given {
    special: Vec<FlagValue>,
    settings: Vec<FlagValue>,
}

impl Given {
    /// The last one given counts, as in Go.
    fn text(&self, name: &str) -> Option<&str> {
        self.special.iter().rev().find(|f| f.name == name).map(|f| f.value.as_str())
    }

    fn is_set(&self, name: &str) -> Result<bool, ConfigError> {
        match self.text(name) {
            None | Some("false" | "0" | "f") => Ok(false),
            Some("true" | "1" | "t") => Ok(true),
            Some(other) => Err(ConfigError::one(format!("-{name}"), format!("{other:?} is not true or false"))),
        }
    }
}

fn split(args: impl IntoIterator<Item = String>) -> Result<Given, ConfigError> {
    let mut args = args.into_iter().peekable();
    let (mut given, mut problems) = (Given::default(), Vec::new());
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|f| !f.is_empty()) else {
            let text = "is no flag; flags begin with a dash, and a bool's value follows an equals sign. Run with -help";
            problems.push(Problem { place: format!("argument {arg:?}"), text: text.to_string() });
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (flag, None),
        };
        let name = if name == "h" { "help" } else { name };
        let Some(class) = class_of(name) else {
            problems.push(unknown(name));
            // Its value, if it has one, is no second problem.
            if value.is_none() {
                args.next_if(|next| !next.starts_with('-'));
            }
            continue;
        };
        let value = value.or_else(|| class.value(&mut || args.next_if(|next| !next.starts_with('-'))));
        let Some(value) = value else {
            problems.push(Problem { place: format!("-{name}"), text: "needs a value: write -flag=value".to_string() });
            continue;
        };
        let list = if matches!(class, Class::Special(_)) { &mut given.special } else { &mut given.settings };
        list.push(FlagValue { name: name.to_string(), value });
    }
    if problems.is_empty() { Ok(given) } else { Err(ConfigError { problems }) }
}

fn unknown(name: &str) -> Problem {
    let near = nearest_flag(name, SPECIALS.iter().map(|s| s.name));
    let hint = near.map(|near| format!("; did you mean -{near}?")).unwrap_or_else(|| ".".to_string());
    Problem { place: format!("-{name}"), text: format!("is not a flag of Timberline or Loki{hint} Run with -help") }
}

enum Class {
    Special(&'static Special),
    Setting(&'static Key),
    Foreign,
}

fn class_of(name: &str) -> Option<Class> {
    if let Some(special) = SPECIALS.iter().find(|s| s.name == name) {
        return Some(Class::Special(special));
    }
    if let Some(key) = keys().iter().find(|k| k.flag == name) {
        return Some(Class::Setting(key));
    }
    config::is_foreign_flag(name).then_some(Class::Foreign)
}

impl Class {
    /// The value of a flag without an equals sign; `next` takes the argument behind it.
    fn value(&self, next: &mut dyn FnMut() -> Option<String>) -> Option<String> {
        let bare = || Some("true".to_string());
        match self {
            Self::Special(special) if special.takes_value => next(),
            Self::Setting(key) if !key.is_bool() => next(),
            Self::Special(_) | Self::Setting(_) => bare(),
            // Whether Loki's flag is a bool is not known here, nor does it matter: its value is not used.
            Self::Foreign => next().or_else(bare),
        }
    }
}

fn load(given: &Given) -> Result<Loaded, ConfigError> {
    let expand_env = given.is_set("config.expand-env")?;
    match given.text("config.file") {
        None => {
            let file = File { name: EMBEDDED_NAME, text: EMBEDDED, expand_env: false };
            config::load(file, &given.settings, read)
        }
        Some(list) => {
            let (name, text) = first_file(list)?;
            config::load(File { name, text: &text, expand_env }, &given.settings, read)
        }
    }
}

/// The first file of a comma-separated list that exists.
fn first_file(list: &str) -> Result<(&str, String), ConfigError> {
    let names: Vec<&str> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let found = names.iter().find(|name| !matches!(fs::metadata(name), Err(e) if e.kind() == io::ErrorKind::NotFound));
    match found {
        Some(name) => read(name)
            .map(|text| (*name, text))
            .map_err(|reason| ConfigError::one(format!("-config.file {name}"), reason)),
        None => Err(ConfigError::one("-config.file", format!("no such file: {list:?}"))),
    }
}

fn read(name: &str) -> Result<String, String> {
    let file = fs::File::open(name).map_err(|e| format!("cannot be opened: {e}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("is larger than 16MB; a configuration is not".to_string());
    }
    String::from_utf8(bytes).map_err(|e| format!("is not UTF-8 text (at byte {})", e.utf8_error().valid_up_to()))
}

/// `/ready` on the configured HTTP listener, as seen from this machine.
fn ready_url(config: &Config) -> String {
    let server = &config.server;
    let scheme = if server.http_tls_config.enabled() { "https" } else { "http" };
    let host = match server.http_listen_address.as_str() {
        "" | "0.0.0.0" => "127.0.0.1".to_string(),
        "::" | "[::]" => "[::1]".to_string(),
        host if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
        host => host.to_string(),
    };
    format!("{scheme}://{host}:{}/ready", server.http_listen_port)
}

/// The text of `-help`.
pub fn help() -> String {
    let mut text = String::from(
        "Timberline: a log ingester for Loki's protocols that answers a push when its lines are on disk.\n\n\
         Usage: timberline [-config.file=FILE] [-flag=value ...]\n\
         Flags have one or two dashes and outrank the file. Each is also a key of the file (in brackets).\n",
    );
    heading(&mut text, "Commands and files");
    for special in SPECIALS {
        let argument = if special.takes_value { " text" } else { "" };
        item(&mut text, &format!("-{}{argument}", special.name), special.help, "");
    }
    for (section, title) in SECTIONS {
        heading(&mut text, title);
        for key in keys().iter().filter(|k| k.path.split_once('.').map_or("", |(head, _)| head) == *section) {
            let note = format!("[{}, default {}]", key.path, key.default());
            item(&mut text, &format!("-{} {}", key.flag, key.kind), key.help, &note);
        }
    }
    text
}

fn heading(text: &mut String, title: &str) {
    let _ = writeln!(text, "\n{title}"); // writing to a String cannot fail
}

/// Help texts are folded here.
const WIDTH: usize = 100;

fn item(text: &mut String, flag: &str, help: &str, note: &str) {
    let _ = writeln!(text, "  {flag}");
    let mut line = String::from("     ");
    for word in help.split(' ').chain(note.split(' ')).filter(|w| !w.is_empty()) {
        if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = String::from("     ");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_string).collect()
    }

    fn config(line: &str) -> Config {
        match parse(args(line)) {
            Ok(Command::Serve { loaded, .. }) => loaded.config,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn message(line: &str) -> String {
        parse(args(line)).map(|c| format!("{c:?}")).unwrap_err().to_string()
    }

    #[test]
    fn go_syntax() {
        for line in [
            "-server.http-listen-port=3101",
            "--server.http-listen-port=3101",
            "-server.http-listen-port 3101",
            "--server.http-listen-port 3101 -auth.enabled=false",
            "-server.http-listen-port=1 -server.http-listen-port=3101",
        ] {
            assert_eq!(config(line).server.http_listen_port, 3101, "{line}");
        }
        assert!(config("-auth.enabled").auth_enabled);
        assert!(config("-auth.enabled -log.level debug").auth_enabled);
        assert!(!config("-auth.enabled=false").auth_enabled);
        assert_eq!(config("-ingester.lifecycler.addr=").common.instance_addr, "");
    }

    #[test]
    fn problems_of_the_command_line_come_together() {
        assert_eq!(
            message("-sever.http-listen-port=1 stray -log.level -targt all"),
            "cannot use the configuration, 4 problems:\n  \
             -sever.http-listen-port: is not a flag of Timberline or Loki; did you mean -server.http-listen-port? Run with -help\n  \
             argument \"stray\": is no flag; flags begin with a dash, and a bool's value follows an equals sign. Run with -help\n  \
             -log.level: needs a value: write -flag=value\n  \
             -targt: is not a flag of Timberline or Loki; did you mean -target? Run with -help"
        );
        assert_eq!(
            message("-qqqqqqqq"),
            "cannot use the configuration: -qqqqqqqq: is not a flag of Timberline or Loki. Run with -help"
        );
        assert!(message("-verify-config=maybe").contains("\"maybe\" is not true or false"));
        assert!(message("-config.file=/no/such,/nor/this").contains("no such file: \"/no/such,/nor/this\""));
    }

    #[test]
    fn flags_of_loki_are_ignored_with_a_warning_or_refused() {
        let Ok(Command::Serve { loaded, .. }) =
            parse(args("-querier.max-concurrent 4 -bloom-build.enabled -log.level=warn"))
        else {
            panic!("serves")
        };
        assert_eq!(
            loaded.warnings,
            ["Loki settings without meaning in Timberline, ignored: -bloom-build.enabled, -querier.max-concurrent"]
        );
        assert!(message("-store.retention=30d").contains("-store.retention: is an error until it is built: retention"));
        assert!(message("-ingester.wal-enabled=false").contains("ingester.wal.enabled: false is not possible"));
        assert!(parse(args("-store.retention=0s")).is_ok());
    }

    #[test]
    fn help_shows_every_flag_and_folds_its_lines() {
        let help = help();
        for name in keys().iter().map(|k| k.flag).chain(SPECIALS.iter().map(|s| s.name)) {
            assert!(help.contains(&format!("\n  -{name}")), "{name}");
        }
        // A list of texts is one word of the note, with commas inside.
        let long = help.lines().find(|l| l.chars().count() > WIDTH);
        assert_eq!(long, None);
    }

    #[test]
    fn commands() {
        assert!(matches!(parse(args("-help")), Ok(Command::Help)));
        assert!(matches!(parse(args("-h")), Ok(Command::Help)));
        assert!(matches!(parse(args("--version -log.level=debug")), Ok(Command::Version)));
        assert!(matches!(parse(args("-verify-config")), Ok(Command::Verify { print_config: false, .. })));
        let both = parse(args("-print-config-stderr -verify-config"));
        assert!(matches!(both, Ok(Command::Verify { print_config: true, .. })));
        assert!(matches!(parse(args("-print-config-stderr")), Ok(Command::Serve { print_config: true, .. })));
        assert!(matches!(parse(args("-verify-config=false")), Ok(Command::Serve { print_config: false, .. })));
    }

    #[test]
    fn health_asks_the_configured_listener() {
        let url = |line: &str| match parse(args(line)) {
            Ok(Command::Health { url }) => url,
            other => panic!("{other:?}"),
        };
        assert_eq!(url("-health"), "http://127.0.0.1:3100/ready");
        assert_eq!(url("-health -server.http-listen-port=1 -server.http-listen-address=::"), "http://[::1]:1/ready");
        assert_eq!(url("-health -health.url=http://x/ready"), "http://x/ready");
        let tls = "-server.http-tls-cert-path=c -server.http-tls-key-path=k";
        assert_eq!(url(&format!("-health {tls}")), "https://127.0.0.1:3100/ready");
    }
}
