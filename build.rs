//! Tells the program which commit it is built from, without running git: from the files of `.git`, where there are any.

use std::fs;
use std::path::{Path, PathBuf};

/// What is said where nothing can be known, such as in an unpacked archive.
const UNKNOWN: &str = "unknown";
/// Digits of a commit that are shown.
const DIGITS: usize = 10;

fn main() {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let head = Head::of(&root);
    println!("cargo::rerun-if-changed=build.rs");
    head.files.iter().for_each(|file| println!("cargo::rerun-if-changed={}", file.display()));
    println!("cargo::rustc-env=TIMBERLINE_REVISION={}", head.revision);
    println!("cargo::rustc-env=TIMBERLINE_BRANCH={}", head.branch);
}

/// What is checked out.
pub(crate) struct Head {
    pub(crate) revision: String,
    pub(crate) branch: String,
    /// Files that change when another commit is. Only such as exist: for one that does not, Cargo would always build again.
    pub(crate) files: Vec<PathBuf>,
}

impl Head {
    pub(crate) fn of(root: &Path) -> Head {
        let git = git_dir(root);
        let text = read(&git.join("HEAD")).unwrap_or_default();
        let common = read(&git.join("commondir")).map_or_else(|| git.clone(), |dir| git.join(dir));
        let name = text.strip_prefix("ref: ");
        let commit = match name {
            // Without a branch HEAD holds the commit.
            None => Some(text.clone()),
            Some(name) => read(&common.join(name)).or_else(|| packed(&common, name)),
        };
        let revision = commit.as_deref().and_then(|commit| commit.get(..DIGITS)).unwrap_or(UNKNOWN).to_string();
        let branch = match name {
            _ if text.is_empty() => UNKNOWN,
            None => "HEAD",
            Some(name) => name.trim_start_matches("refs/heads/"),
        };
        let mut files = vec![git.join("HEAD"), common.join("packed-refs")];
        // The commit of a branch that was packed becomes a file; the log of HEAD tells that, too.
        files.extend([git.join("logs/HEAD"), common.join(name.unwrap_or("HEAD"))]);
        files.retain(|file| file.is_file());
        Head { revision, branch: branch.to_string(), files }
    }
}

/// `.git` is a directory, or in a worktree a file that names it.
fn git_dir(root: &Path) -> PathBuf {
    let git = root.join(".git");
    let named = read(&git).and_then(|text| Some(root.join(text.strip_prefix("gitdir: ")?)));
    named.unwrap_or(git)
}

/// The commit of a branch in `packed-refs`, whose lines are `<commit> <name>`.
fn packed(common: &Path, name: &str) -> Option<String> {
    let refs = read(&common.join("packed-refs"))?;
    let of = |line: &str| Some(line.split_once(' ').filter(|(_, n)| *n == name)?.0.to_string());
    refs.lines().find_map(of)
}

fn read(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim_end().to_string())
}
