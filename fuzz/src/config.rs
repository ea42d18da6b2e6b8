//! Configurations: files, flags and command lines.

use super::allocation::bounded_beside;
use timberline::server::config::{File, FlagValue, load};
use timberline::server::flags::parse;

/// The tables of keys, the defaults, and up to fifty problems with their texts.
const FIXED: usize = 512 << 10;

/// A file, and behind a zero each a flag; or, behind a first byte of 1, a command line of arguments.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match text.strip_prefix('\u{1}') {
        Some(arguments) => command_line(arguments),
        None => file(text),
    }
}

fn flag(text: &str) -> FlagValue {
    let (name, value) = text.split_once('=').unwrap_or((text, "true"));
    FlagValue { name: name.to_string(), value: value.to_string() }
}

fn file(text: &str) {
    let mut parts = text.split('\0');
    let file = File { name: "f", text: parts.next().unwrap_or_default(), expand_env: false };
    let flags: Vec<FlagValue> = parts.map(flag).collect();
    // What the configuration names is read as the file itself.
    let read = |_: &str| Ok(file.text.to_string());
    let result = bounded_beside(FIXED, text.len(), || load(file, &flags, read));
    match result {
        Ok(loaded) => {
            let yaml = loaded.config.to_yaml();
            let again = load(File { name: "again", text: &yaml, expand_env: false }, &[], |_| Ok(String::new()));
            assert_eq!(again.expect("a configuration that was written").config.to_yaml(), yaml);
        }
        Err(error) => assert!(!error.problems.is_empty() && !error.to_string().is_empty()),
    }
}

fn command_line(text: &str) {
    // Names of files would be opened, and `-health` asks a server only when it is run.
    if text.contains("file") {
        return;
    }
    if let Err(error) = parse(text.split('\0').map(str::to_string)) {
        assert!(!error.problems.is_empty());
    }
}
