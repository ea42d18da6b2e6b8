//! `diff`: lines that only one of two logs has, by stream. A line is its tenant, labels, timestamp, bytes and metadata.

use super::cli::Dirs;
use super::command::{Context, Stream, Streams};
use super::error::InspectError;
use super::lines::{self, Line};
use super::log::{self, Judged};
use super::output::{Cell, Row, Shape};
use super::progress::Progress;
use super::{Finding, next};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::PathBuf;

/// Lines of both logs that are compared at once; of larger logs, a part after the other.
const AT_ONCE: u64 = 4 << 20;

/// What to compare.
#[derive(Clone, Debug, clap::Args)]
pub struct DiffArgs {
    /// A data directory, or the directory of the segments itself
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// Another one
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// Print the lines that only one of them has
    #[arg(long)]
    pub lines: bool,
}

/// One of the two logs.
struct Side {
    name: &'static str,
    dir: PathBuf,
    judged: Judged,
    streams: Streams,
    /// Stream id → number of its labels, which both sides share.
    keys: HashMap<u64, u32>,
    /// Lines that no definition names: they are not compared.
    unnamed: u64,
}

/// Tenant and labels, and what was found of them.
struct Key {
    tenant: String,
    labels: String,
    counts: Counts,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    only: [u64; 2],
    both: u64,
}

/// What a line is known by: number of its labels, and a hash of the rest.
type Mark = (u32, u128);

/// Compares two logs.
///
/// # Errors
/// One of them cannot be read, or the output not be written.
pub fn run<W: Write>(args: &DiffArgs, context: &mut Context<W>) -> Result<Option<Finding>, InspectError> {
    let mut keys: BTreeMap<(String, String), u32> = BTreeMap::new();
    let mut side = |name, dir: &PathBuf| -> Result<Side, InspectError> {
        let judged = log::judge(&Dirs::at(dir), &mut context.progress)?;
        let streams = Streams::of(&judged);
        let mut of_ids = HashMap::new();
        for (id, Stream { tenant, labels }) in streams.all() {
            let next = u32::try_from(keys.len()).unwrap_or(u32::MAX);
            of_ids.insert(id, *keys.entry((tenant.clone(), labels.text().to_string())).or_insert(next));
        }
        Ok(Side { name, dir: dir.clone(), judged, streams, keys: of_ids, unnamed: 0 })
    };
    let mut sides = [side("a", &args.a)?, side("b", &args.b)?];
    let mut by_number: Vec<Key> = Vec::new();
    let mut numbered: Vec<_> = keys.into_iter().collect();
    numbered.sort_by_key(|(_, number)| *number);
    by_number.extend(numbered.into_iter().map(|((tenant, labels), _)| Key {
        tenant,
        labels,
        counts: Counts::default(),
    }));
    let parts = sides.iter().map(|s| s.judged.lines()).sum::<u64>() / AT_ONCE + 1;
    if args.lines {
        context.printer.section("lines", Shape::Stream).map_err(InspectError::Output)?;
    }
    for part in 0..parts {
        let wanted = |mark: &Mark| mark.1 % u128::from(parts) == u128::from(part);
        let [a, b] = &mut sides;
        let marks = [a.marks(&wanted, &mut context.progress)?, b.marks(&wanted, &mut context.progress)?];
        let only = compare(&marks, &mut by_number, args.lines);
        drop(marks);
        for (side, only) in sides.iter().zip(only).filter(|(_, only)| !only.is_empty()) {
            print_lines(side, only, &by_number, context)?;
        }
    }
    report(&sides, &by_number, context).map_err(InspectError::Output)?;
    let different = by_number.iter().any(|k| k.counts.only != [0, 0]);
    Ok(different.then(|| {
        let damaged = sides.iter().find(|s| !s.judged.is_sound());
        let next_step = match damaged {
            Some(side) => next("verify", &Dirs::at(&side.dir)),
            None => format!("wal-inspect diff --lines {} {}", args.a.display(), args.b.display()),
        };
        Finding { what: "the logs differ", next: next_step }
    }))
}

impl Side {
    fn mark(&self, line: &Line<'_>) -> Mark {
        let mut h = twox_hash::XxHash3_128::new();
        h.write(&line.timestamp.to_le_bytes());
        let texts = line.metadata.iter().flat_map(|(n, v)| [n.as_bytes(), v.as_bytes()]);
        for text in std::iter::once(line.line).chain(texts) {
            h.write(&(text.len() as u64).to_le_bytes());
            h.write(text);
        }
        (self.keys.get(&line.stream).copied().unwrap_or(u32::MAX), h.finish_128())
    }

    /// The lines of a part, each once, in order.
    fn marks(&mut self, wanted: &dyn Fn(&Mark) -> bool, progress: &mut Progress) -> Result<Vec<Mark>, InspectError> {
        let mut marks = Vec::new();
        let unnamed = lines::each(&self.judged, &self.streams, progress, &mut |line| {
            let mark = self.mark(&line);
            marks.extend(wanted(&mark).then_some(mark));
            Ok(())
        })?;
        self.unnamed = unnamed;
        marks.sort_unstable();
        marks.dedup();
        Ok(marks)
    }
}

/// Counts what is in both and what is in one; the latter is handed back if it is to be printed.
fn compare([a, b]: &[Vec<Mark>; 2], keys: &mut [Key], keep: bool) -> [HashSet<Mark>; 2] {
    let mut only = [HashSet::new(), HashSet::new()];
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let (mark, side) = match (a.peek(), b.peek()) {
            (None, None) => return only,
            (Some(x), Some(y)) if x == y => (**x, None),
            (Some(x), other) if other.is_none_or(|y| *x < y) => (**x, Some(0)),
            (_, Some(y)) => (**y, Some(1)),
            (Some(x), None) => (**x, Some(0)),
        };
        a.next_if(|_| side != Some(1));
        b.next_if(|_| side != Some(0));
        let Some(key) = keys.get_mut(mark.0 as usize) else { continue };
        match side {
            None => key.counts.both += 1,
            Some(side) => {
                let of: usize = side;
                if let Some(count) = key.counts.only.get_mut(of) {
                    *count += 1;
                }
                if let Some(set) = only.get_mut(of).filter(|_| keep) {
                    set.insert(mark);
                }
            }
        }
    }
}

fn print_lines<W: Write>(
    side: &Side,
    mut only: HashSet<Mark>,
    keys: &[Key],
    context: &mut Context<W>,
) -> Result<(), InspectError> {
    let Context { printer, progress } = context;
    lines::each(&side.judged, &side.streams, progress, &mut |line| {
        let mark = side.mark(&line);
        let Some(key) = keys.get(mark.0 as usize).filter(|_| only.remove(&mark)) else { return Ok(()) };
        let row: Row = vec![
            ("only", side.name.into()),
            ("tenant", key.tenant.as_str().into()),
            ("timestamp", Cell::Time(line.timestamp)),
            ("labels", key.labels.as_str().into()),
            ("line", Cell::Line(line.line.to_vec())),
            ("metadata", Cell::Pairs(line.metadata)),
        ];
        printer.row(&row).map_err(InspectError::Output)
    })?;
    Ok(())
}

fn report<W: Write>(sides: &[Side; 2], keys: &[Key], context: &mut Context<W>) -> std::io::Result<()> {
    let printer = &mut context.printer;
    let [a, b] = sides;
    let sum = |of: fn(&Counts) -> u64| Cell::Count(keys.iter().map(|k| of(&k.counts)).sum());
    let different = || keys.iter().filter(|k| k.counts.only != [0, 0]);
    let verdict = |side: &Side| Cell::from(if side.judged.is_sound() { "sound" } else { "damaged" });
    printer.section("diff", Shape::One)?;
    printer.row(&vec![
        ("a", a.dir.display().to_string().into()),
        ("b", b.dir.display().to_string().into()),
        ("result", if different().next().is_some() { "different" } else { "equal" }.into()),
        ("lines_both", sum(|c| c.both)),
        ("lines_only_a", sum(|c| c.only[0])),
        ("lines_only_b", sum(|c| c.only[1])),
        ("streams_different", Cell::Count(different().count() as u64)),
        ("verdict_a", verdict(a)),
        ("verdict_b", verdict(b)),
        ("lines_without_labels_a", a.unnamed.into()),
        ("lines_without_labels_b", b.unnamed.into()),
    ])?;
    printer.section("streams", Shape::Many)?;
    different().try_for_each(|key| {
        printer.row(&vec![
            ("tenant", key.tenant.as_str().into()),
            ("only_a", key.counts.only[0].into()),
            ("only_b", key.counts.only[1].into()),
            ("both", key.counts.both.into()),
            ("labels", key.labels.as_str().into()),
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_one_and_in_both_is_counted_by_stream() {
        let key = |name: &str| Key { tenant: String::new(), labels: name.into(), counts: Counts::default() };
        let mut keys = vec![key("x"), key("y"), key("z")];
        // A mark of no stream is passed over.
        let a = vec![(0, 1), (0, 3), (1, 1), (1, 9), (7, 0)];
        let b = vec![(0, 2), (0, 3), (1, 9), (2, 4), (2, 5)];
        let only = compare(&[a, b], &mut keys, true);
        let counts: Vec<_> = keys.iter().map(|k| (k.counts.only, k.counts.both)).collect();
        assert_eq!(counts, [([1, 1], 1), ([1, 0], 1), ([0, 2], 0)]);
        assert_eq!(only, [HashSet::from([(0, 1), (1, 1)]), HashSet::from([(0, 2), (2, 4), (2, 5)])]);
        assert_eq!(compare(&[vec![], vec![]], &mut keys, true), [HashSet::new(), HashSet::new()]);
    }
}
