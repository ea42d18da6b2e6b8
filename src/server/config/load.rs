//! Reading a configuration: file, overrides, flags; every problem is collected, and told in one message.

use super::foreign::{self, Foreign};
use super::units::scalar;
use super::yaml::{self, Entry, Node, Value};
use super::{Config, Key, MAX_DECOMPRESSED, expand, keys, validate};
use crate::model::{Limits, Tenant};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What holds without `-config.file`.
pub const EMBEDDED: &str = include_str!("../../../config/timberline.yaml");
/// How messages call it.
pub const EMBEDDED_NAME: &str = "config/timberline.yaml (embedded)";

/// A file's text.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Its path, for messages.
    pub name: &'a str,
    /// Its content.
    pub text: &'a str,
    /// Replace `${NAME}` first.
    pub expand_env: bool,
}

/// A flag as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagValue {
    /// Without dashes.
    pub name: String,
    /// Its text; `true` for a bare flag.
    pub value: String,
}

/// A configuration that can be run.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Complete and valid.
    pub config: Config,
    /// What the operator should know, one sentence each, for the log at start and for `-verify-config`.
    pub warnings: Vec<String>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `loki.yaml:12`, `-server.http-listen-port`, or a file's name.
    pub place: String,
    /// What is wrong, and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() { f.write_str(&self.text) } else { write!(f, "{}: {}", self.place, self.text) }
    }
}

/// Everything that is wrong with a configuration; its text has one line for each problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// One problem.
    pub fn one(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { problems: vec![Problem { place: place.into(), text: text.into() }] }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [problem] => write!(f, "cannot use the configuration: {problem}"),
            problems => {
                write!(f, "cannot use the configuration, {} problems:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// More problems than this are counted, not told.
const MAX_PROBLEMS: usize = 50;

/// Defaults < file < flags; then overrides, which start from the resulting `limits_config`. `read` returns the text of
/// a file that the configuration names (`runtime_config.file`).
///
/// # Errors
/// All problems at once.
pub fn load(
    file: File<'_>,
    flags: &[FlagValue],
    read: impl Fn(&str) -> Result<String, String>,
) -> Result<Loaded, ConfigError> {
    let mut loader = Loader::default();
    let overrides = loader.read_file(file);
    for flag in flags {
        loader.read_flag(flag);
    }
    if let Some(entry) = overrides {
        loader.read_overrides(file.name, &entry);
    }
    loader.read_runtime_files(read);
    loader.finish()
}

/// Whether this is a flag of Loki that has no meaning here (or that is refused).
pub fn is_foreign_flag(name: &str) -> bool {
    foreign::loki_flag(name)
}

#[derive(Default)]
struct Loader {
    config: Config,
    problems: Vec<Problem>,
    warnings: Vec<String>,
    /// Loki's settings that were given and mean nothing here.
    ignored: BTreeSet<String>,
    /// Where each key was set, for problems that show only later.
    origins: BTreeMap<&'static str, String>,
}

/// Where a walk over a file stands.
#[derive(Clone, Copy)]
struct Walk<'a> {
    file: &'a str,
    /// Replaces `limits_config` in messages when the walk is over a tenant's overrides.
    tenant: Option<&'a str>,
}

impl Walk<'_> {
    fn place(&self, line: u64) -> String {
        if line == 0 { self.file.to_string() } else { format!("{}:{line}", self.file) }
    }

    fn shown(&self, path: &str) -> String {
        match (self.tenant, path.strip_prefix("limits_config")) {
            (Some(tenant), Some(rest)) => format!("overrides.{tenant}{rest}"),
            _ => path.to_string(),
        }
    }
}

impl Loader {
    fn problem(&mut self, place: String, text: String) {
        self.problems.push(Problem { place, text });
    }

    /// Reads the main file; its `overrides` are returned, to be read when the default limits are known.
    fn read_file(&mut self, file: File<'_>) -> Option<Entry> {
        let walk = Walk { file: file.name, tenant: None };
        let root = self.parse(file)?;
        let Value::Map(mut entries) = root.value else {
            if root.value != Value::Null {
                self.problem(walk.place(root.line), "is no configuration: expected keys such as server:".to_string());
            }
            return None;
        };
        let overrides = entries.iter().position(|e| e.key == "overrides").map(|at| entries.remove(at));
        self.walk(walk, "", &entries, false);
        overrides
    }

    fn parse(&mut self, file: File<'_>) -> Option<Node> {
        let expanded = if file.expand_env { self.expand(file)? } else { file.text.to_string() };
        yaml::parse(&expanded)
            .map_err(|error| {
                let place = Walk { file: file.name, tenant: None }.place(error.line.unwrap_or(0));
                self.problem(place, format!("not YAML: {}", error.reason));
            })
            .ok()
    }

    fn expand(&mut self, file: File<'_>) -> Option<String> {
        match expand::expand(file.text, |name| std::env::var(name).ok()) {
            Ok((text, missing)) => {
                for name in missing {
                    self.warnings.push(format!(
                        "{}: the environment variable {name} is not set and ${{{name}}} has no default; it is empty",
                        file.name
                    ));
                }
                Some(text)
            }
            Err((line, reason)) => {
                self.problem(format!("{}:{line}", file.name), reason);
                None
            }
        }
    }

    /// `foreign`: the section is wholly Loki's and already named in the warning.
    fn walk(&mut self, walk: Walk<'_>, section: &str, entries: &[Entry], foreign: bool) {
        for entry in entries {
            let path = if section.is_empty() { entry.key.clone() } else { format!("{section}.{}", entry.key) };
            if let Some(key) = keys().iter().find(|k| k.path == path) {
                self.set(key, &entry.node, walk.place(entry.line), walk.shown(&path));
            } else if let Some(refused) = foreign::refused_key(&path, &entry.node) {
                let text = format!("{} is an error until it is built: {}", walk.shown(&path), refused.why);
                self.problem(walk.place(entry.line), text);
            } else {
                self.descend(walk, &path, entry, foreign);
            }
        }
    }

    /// A section, or a key that is not ours.
    fn descend(&mut self, walk: Walk<'_>, path: &str, entry: &Entry, foreign: bool) {
        let below = format!("{path}.");
        let ours = keys().iter().any(|k| k.path.starts_with(&below));
        let known = foreign::loki_key(path);
        if !ours && known.is_none() {
            let hint = foreign::nearest_key(path).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            let text = format!("{} is not a key of Timberline or Loki{hint}", walk.shown(path));
            return self.problem(walk.place(entry.line), text);
        }
        if !ours && !foreign {
            self.ignored.insert(walk.shown(path));
        }
        let section = ours || known == Some(Foreign::Section);
        match &entry.node.value {
            Value::Map(entries) if section => self.walk(walk, path, entries, !ours),
            Value::Scalar(_) | Value::List(_) if section => {
                let text = format!("{} is a section and has keys below it, not a value", walk.shown(path));
                self.problem(walk.place(entry.line), text);
            }
            _ => {}
        }
    }

    fn set(&mut self, key: &'static Key, node: &Node, place: String, shown: String) {
        if node.value == Value::Null {
            return; // As in Loki: nothing is said, so the default stays.
        }
        if let Err(reason) = (key.set)(&mut self.config, node) {
            return self.problem(place, format!("{shown}: {reason}"));
        }
        self.soften(key, node);
        self.origins.insert(key.path, place);
    }

    /// Values of a Loki configuration that hold here with a difference: it starts, and says so.
    fn soften(&mut self, key: &Key, node: &Node) {
        let Ok(text) = scalar(node, "") else { return };
        if key.path == "ingester.chunk_encoding" && super::keys::FOREIGN_ENCODINGS.contains(&text) {
            self.warnings
                .push(format!("ingester.chunk_encoding: {text} comes with the store; snappy is used until then"));
        }
        if key.path == "distributor.max_decompressed_size"
            && self.config.distributor.max_decompressed_size > MAX_DECOMPRESSED
        {
            self.config.distributor.max_decompressed_size = MAX_DECOMPRESSED;
            self.warnings
                .push(format!("distributor.max_decompressed_size: {text} is lowered to 256MB, the most for one push"));
        }
    }

    fn read_flag(&mut self, flag: &FlagValue) {
        let node = Node::flag(&flag.value);
        let place = format!("-{}", flag.name);
        if let Some(key) = keys().iter().find(|k| k.flag == flag.name) {
            self.set(key, &node, place, key.path.to_string());
        } else if let Some(refused) = foreign::refused_flag(&flag.name, &node) {
            self.problem(place, format!("is an error until it is built: {}", refused.why));
        } else if foreign::loki_flag(&flag.name) {
            self.ignored.insert(place);
        } else {
            self.problem(place, "is not a flag of Timberline or Loki. Run with -help".to_string());
        }
    }

    fn read_overrides(&mut self, file: &str, entry: &Entry) {
        let walk = Walk { file, tenant: None };
        match &entry.node.value {
            Value::Map(tenants) => tenants.iter().for_each(|tenant| self.read_tenant(file, tenant)),
            Value::Null => {}
            _ => self.problem(walk.place(entry.line), "overrides is not a map of tenants to limits".to_string()),
        }
    }

    /// A tenant's limits are the defaults with the keys that differ.
    fn read_tenant(&mut self, file: &str, entry: &Entry) {
        let walk = Walk { file, tenant: Some(&entry.key) };
        let place = walk.place(entry.line);
        if let Err(error) = Tenant::new(&entry.key) {
            return self.problem(place, format!("overrides.{}: {error}", entry.key));
        }
        if self.config.tenants.contains_key(&entry.key) {
            return self.problem(place, format!("overrides.{} is given twice, in two files; keep one", entry.key));
        }
        let limits = match &entry.node.value {
            Value::Map(entries) => self.read_limits(walk, entries),
            Value::Null => self.config.limits.clone(),
            _ => return self.problem(place, format!("overrides.{} is not a map of limits", entry.key)),
        };
        self.config.tenants.insert(entry.key.clone(), limits);
    }

    /// The walk writes into `limits_config`; the default is put back behind it.
    fn read_limits(&mut self, walk: Walk<'_>, entries: &[Entry]) -> Limits {
        let defaults = self.config.limits.clone();
        self.walk(walk, "limits_config", entries, false);
        let place = walk.place(entries.first().map_or(0, |e| e.line));
        for (path, reason) in validate::limits(&self.config) {
            self.problem(place.clone(), format!("{}: {reason}", walk.shown(path)));
        }
        std::mem::replace(&mut self.config.limits, defaults)
    }

    fn read_runtime_files(&mut self, read: impl Fn(&str) -> Result<String, String>) {
        let files = self.config.runtime_config.file.clone();
        for name in files.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match read(name) {
                Ok(text) => self.read_runtime_file(name, &text),
                Err(reason) => self.problem(name.to_string(), format!("runtime_config.file: {reason}")),
            }
        }
    }

    fn read_runtime_file(&mut self, name: &str, text: &str) {
        let Some(root) = self.parse(File { name, text, expand_env: false }) else { return };
        let entries = match root.value {
            Value::Map(entries) => entries,
            Value::Null => return,
            _ => return self.problem(name.to_string(), "is no runtime configuration: expected overrides:".to_string()),
        };
        for entry in &entries {
            match entry.key.as_str() {
                "overrides" => self.read_overrides(name, entry),
                "multi_kv_config" | "configs" => {
                    self.ignored.insert(format!("{} (in {name})", entry.key));
                }
                other => {
                    let text = format!("{other} is not a key of a runtime configuration; it has overrides");
                    self.problem(format!("{name}:{}", entry.line), text);
                }
            }
        }
    }

    fn finish(mut self) -> Result<Loaded, ConfigError> {
        for (path, reason) in validate::all(&self.config) {
            let place = self.origins.get(path).cloned().unwrap_or_default();
            self.problem(place, format!("{path}: {reason}"));
        }
        if !self.problems.is_empty() {
            return Err(ConfigError { problems: shortened(self.problems) });
        }
        if !self.ignored.is_empty() {
            let names: Vec<String> = self.ignored.into_iter().collect();
            self.warnings.push(format!("Loki settings without meaning in Timberline, ignored: {}", names.join(", ")));
        }
        Ok(Loaded { config: self.config, warnings: self.warnings })
    }
}

fn shortened(mut problems: Vec<Problem>) -> Vec<Problem> {
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if more > 0 {
        problems.push(Problem { place: String::new(), text: format!("and {more} more") });
    }
    problems
}
