//! `COVERAGE.md` names a test for every fault that must be survived; this holds it against the tests that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rows of the fault model: a letter for the kind, and how many there are.
const ROWS: [(&str, usize); 7] = [("P", 12), ("L", 14), ("E", 14), ("C", 9), ("T", 2), ("N", 4), ("H", 9)];

struct Row<'a> {
    id: &'a str,
    fault: &'a str,
    by: &'a str,
}

/// What kind of answer a row has.
#[derive(Debug, PartialEq, Eq)]
enum By<'a> {
    Tests(Vec<&'a str>),
    Open(&'a str),
    NotTestable,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Lines of the table: `| ID | fault | tests |`.
fn rows(text: &str) -> Vec<Row<'_>> {
    let table = text.lines().filter_map(|l| l.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = table.filter_map(|line| {
        let mut cells = line.split(" | ");
        Some(Row { id: cells.next()?, fault: cells.next()?, by: cells.next()? })
    });
    rows.filter(|r| r.id != "ID" && !r.id.starts_with('-')).collect()
}

fn by<'a>(row: &Row<'a>) -> Result<By<'a>, String> {
    if row.by.starts_with("not testable: ") {
        return Ok(By::NotTestable);
    }
    if let Some(part) = row.by.strip_prefix("open: ") {
        return Ok(By::Open(part));
    }
    let tests: Vec<&str> = row.by.split('`').skip(1).step_by(2).collect();
    if tests.is_empty() {
        Err(format!("{}: neither a test, nor open, nor not testable", row.id))
    } else {
        Ok(By::Tests(tests))
    }
}

/// Files of each test target; `lib` is the source itself.
fn targets() -> BTreeMap<String, Vec<PathBuf>> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut out = BTreeMap::new();
    for table in manifest.split("[[test]]").skip(1) {
        let value = |key: &str| {
            let line = table.lines().take(4).find_map(|l| l.strip_prefix(&format!("{key} = \"")))?;
            line.strip_suffix('"').map(String::from)
        };
        if let (Some(name), Some(path)) = (value("name"), value("path")) {
            out.insert(name, vec![root().join(path)]);
        }
    }
    let mut sources = Vec::new();
    walk(&root().join("src"), &mut sources);
    out.insert("lib".into(), sources);
    out
}

fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() {
            walk(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Does the text have a test of this name that is run?
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is = |line: &str| {
        line.trim_start_matches("async ").strip_prefix("fn ").is_some_and(|l| l.starts_with(&format!("{name}(")))
    };
    lines.iter().enumerate().filter(|(_, line)| is(line)).any(|(at, _)| {
        let above: Vec<&&str> = lines[..at].iter().rev().take_while(|l| l.starts_with("#[")).collect();
        let marked = above.iter().any(|l| l.starts_with("#[test]") || l.starts_with("#[tokio::test"));
        marked && !above.iter().any(|l| l.starts_with("#[ignore"))
    })
}

/// What is wrong with the table.
fn problems(text: &str) -> Vec<String> {
    let rows = rows(text);
    let mut wrong = Vec::new();
    let expected: BTreeSet<String> =
        ROWS.iter().flat_map(|(kind, n)| (1..=*n).map(move |i| format!("{kind}{i}"))).collect();
    let found: BTreeSet<String> = rows.iter().map(|r| r.id.to_string()).collect();
    wrong.extend(expected.difference(&found).map(|id| format!("{id} is missing")));
    wrong.extend(found.difference(&expected).map(|id| format!("{id} is not in the fault model")));
    if found.len() != rows.len() {
        wrong.push("a row is there twice".into());
    }
    let targets = targets();
    let (mut tested, mut open) = (0, 0);
    for row in &rows {
        if row.fault.len() < 10 {
            wrong.push(format!("{}: the fault is not described", row.id));
        }
        match by(row) {
            Ok(By::Tests(tests)) => {
                tested += 1;
                wrong.extend(tests.iter().filter_map(|t| missing(&targets, t)).map(|why| format!("{}: {why}", row.id)));
            }
            Ok(By::Open(part)) if part.starts_with("part ") => open += 1,
            Ok(By::Open(_)) => wrong.push(format!("{}: open, and no part of the plan has it", row.id)),
            Ok(By::NotTestable) if row.id == "L13" => {}
            Ok(By::NotTestable) => wrong.push(format!("{}: only a device that lies is not testable", row.id)),
            Err(why) => wrong.push(why),
        }
    }
    let head =
        format!("**{} rows: {tested} tested, {open} open, {} not testable.**", rows.len(), rows.len() - tested - open);
    if !text.contains(&head) {
        wrong.push(format!("the head must say: {head}"));
    }
    wrong
}

/// Why a named test is not one.
fn missing(targets: &BTreeMap<String, Vec<PathBuf>>, test: &str) -> Option<String> {
    let Some((target, name)) = test.split_once("::") else { return Some(format!("{test} is not target::name")) };
    let Some(files) = targets.get(target) else { return Some(format!("there is no target {target}")) };
    let found = files.iter().any(|f| has_test(&std::fs::read_to_string(f).unwrap(), name));
    (!found).then(|| format!("there is no test {test}"))
}

#[test]
fn every_fault_has_a_test() {
    let wrong = problems(&std::fs::read_to_string(root().join("recovery-tests/COVERAGE.md")).unwrap());
    assert!(wrong.is_empty(), "COVERAGE.md:\n{}", wrong.join("\n"));
}

#[test]
fn what_is_wrong_with_the_table_is_found() {
    let good = std::fs::read_to_string(root().join("recovery-tests/COVERAGE.md")).unwrap();
    let broken = |from: &str, to: &str, finds: &str| {
        assert!(good.contains(from), "{from} is not in the table");
        let wrong = problems(&good.replacen(from, to, 1));
        assert!(wrong.iter().any(|w| w.contains(finds)), "{finds} was not found: {wrong:?}");
    };
    broken("kill9::every_acknowledged_line_is_back_after_kill_9", "kill9::nothing_of_this_name", "there is no test");
    broken("kill9::every_acknowledged_line_is_back_after_kill_9", "kill9::check", "there is no test");
    broken("`kill9::", "`kill10::", "there is no target kill10");
    broken("| P1 |", "| P99 |", "P1 is missing");
    broken(" tested, ", " tested or not, ", "the head must say");
    broken("| L13 |", "| L1 |", "twice");
    assert!(has_test("#[test]\nfn a() {}", "a") && !has_test("#[test]\n#[ignore]\nfn a() {}", "a"));
    assert!(!has_test("fn a() {}", "a") && !has_test("#[test]\nfn ab() {}", "a"));
}
