//! The project's own source as text, for tests that hold its rules.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

/// A file of `src/`, without what only tests compile.
pub struct Source {
    /// Path below `src/`, as `wal/writer.rs`.
    pub name: String,
    /// Comments are gone; texts are kept.
    pub text: String,
    /// Comments are gone and texts are empty.
    pub code: String,
}

impl Source {
    /// The module of the crate's root that the file belongs to.
    pub fn room(&self) -> &str {
        self.name.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// Modules from the crate's root down to the file's own: 1 for `wal/mod.rs`, 2 for `wal/writer.rs`.
    pub fn depth(&self) -> usize {
        let path = self.name.trim_end_matches(".rs").trim_end_matches("/mod");
        path.split('/').count()
    }
}

/// The directory of `Cargo.toml`.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of `src/` that is no test.
pub fn all() -> Vec<Source> {
    let src = root().join("src");
    let files: Vec<(PathBuf, String)> = walk(&src)
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect();
    let tests: Vec<PathBuf> = files.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    let product = files.iter().filter(|(path, _)| !tests.contains(path));
    product
        .map(|(path, text)| Source {
            name: path.strip_prefix(&src).unwrap().to_str().unwrap().to_string(),
            text: without_test_modules(&strip(text, true)),
            code: without_test_modules(&strip(text, false)),
        })
        .collect()
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Files that `#[cfg(test)] mod name;` in this file names.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let is_mod = path.file_name().is_some_and(|n| n == "mod.rs");
    let dir = path.parent().unwrap();
    let own = if is_mod { dir.to_path_buf() } else { path.with_extension("") };
    let mut files = Vec::new();
    for (at, marker) in text.match_indices("#[cfg(test)]") {
        let mut rest = text[at + marker.len()..].trim_start();
        let mut named = None;
        if let Some(after) = rest.strip_prefix("#[path = \"") {
            let (name, after) = after.split_once("\"]").unwrap();
            named = Some(dir.join(name));
            rest = after.trim_start();
        }
        let rest = rest.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        let Some(name) = rest.strip_prefix("mod ").and_then(|r| r.split_once(';')).map(|(name, _)| name) else {
            continue;
        };
        if name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            files.push(named.unwrap_or_else(|| own.join(format!("{name}.rs"))));
            files.push(own.join(name).join("mod.rs"));
        }
    }
    files
}

/// Cuts `#[cfg(test)] mod name { ... }` out.
fn without_test_modules(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("#[cfg(test)]\nmod ") {
        out.push_str(&rest[..at]);
        let module = &rest[at..];
        let end = match (module.find('{'), module.find(';')) {
            (Some(open), semicolon) if semicolon.is_none_or(|s| open < s) => end_of_module(module, open),
            (_, Some(semicolon)) => semicolon + 1,
            _ => module.len(),
        };
        rest = &module[end..];
    }
    out + rest
}

/// rustfmt closes a module of the file's level with a brace in the first column.
fn end_of_module(text: &str, open: usize) -> usize {
    text[open..].find("\n}\n").map_or(text.len(), |at| open + at + 3)
}

/// Takes comments away, and the content of texts unless `keep_texts`.
fn strip(text: &str, keep_texts: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            'r' if raw_text(rest).is_some() => copied(raw_text(rest).unwrap_or(1), rest, keep_texts, &mut out),
            '"' => copied(quoted(rest, '"'), rest, keep_texts, &mut out),
            '\'' if is_char(rest) => copied(quoted(rest, '\''), rest, keep_texts, &mut out),
            c => {
                out.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[len..];
    }
    out
}

fn copied(len: usize, rest: &str, keep: bool, out: &mut String) -> usize {
    out.push_str(if keep { &rest[..len] } else { "\"\"" });
    len
}

/// Bytes of `r"..."` or `r#"..."#` at the start.
fn raw_text(rest: &str) -> Option<usize> {
    let hashes = rest[1..].bytes().take_while(|b| *b == b'#').count();
    let body = rest.get(1 + hashes..)?.strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    body.find(&close).map(|at| 2 + hashes + at + close.len())
}

/// A character, and not a lifetime.
fn is_char(rest: &str) -> bool {
    let mut chars = rest.chars().skip(1);
    matches!((chars.next(), chars.next()), (Some('\\'), _) | (Some(_), Some('\'')))
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}
