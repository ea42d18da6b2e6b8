//! Changed bytes of the block log under a whole ingester: every bit, sectors and blocks lost, set, swapped, repeated and
//! shifted, files cut, lost, repeated and mixed up.
//!
//! What must hold: no panic, no line that was not sent so, none twice; what is missing is told, with the exact number of lines where
//! a start can know it, and a block that only a query finds damaged is told by the query.

use super::content::{Content, Image};
use super::crash::Volume;
use super::damage::changes;
use super::node::{Script, start, start_damaged};
use super::node_book::{Book, Seen};
use super::node_explore::play;
use super::report::Layer;
use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use timberline::wal::format::LogKind;
use timberline::wal::{file_name, file_number, scan_segment};

/// An image, and the files of its block log.
struct Blocks {
    image: Image,
    files: Vec<(u64, Vec<u8>)>,
    /// Segment and bytes of headers and groups, padding apart.
    live: Vec<(u64, Range<u64>)>,
}

impl Blocks {
    fn of(image: Image) -> Self {
        let mut files = Vec::new();
        for (path, content) in image.files.iter().filter(|(path, _)| path.starts_with("/blocks")) {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            files.extend(file_number(LogKind::Blocks, &name).map(|n| (n, content.to_vec())));
        }
        let mut live = Vec::new();
        for (number, bytes) in &files {
            let groups = scan_segment(bytes).map(|scan| scan.groups).unwrap_or_default();
            let headers = groups.iter().filter_map(|g| Some((g.offset, g.header?.len)));
            let groups: Vec<_> = headers.map(|(at, len)| (*number, at..at + u64::from(len))).collect();
            if !groups.is_empty() {
                live.extend([0, 4096].map(|copy| (*number, copy..copy + 64)));
                live.extend(groups);
            }
        }
        Self { image, files, live }
    }

    /// The image with these files in the place of its own; without bytes a file is not there.
    fn with(&self, changed: &[(u64, Option<Vec<u8>>)]) -> Image {
        let mut image = self.image.clone();
        for (number, bytes) in changed {
            let path: Arc<Path> = Path::new("/blocks").join(file_name(LogKind::Blocks, *number)).into();
            match bytes {
                Some(bytes) => image.files.insert(path, Arc::new(Content::of(bytes))),
                None => image.files.remove(&path),
            };
        }
        image
    }
}

fn lines(seen: &Seen) -> BTreeSet<i64> {
    seen.values().flatten().map(|(t, _)| *t).collect()
}

/// Reads a damaged image and compares it with the whole one.
fn check(book: &Book, whole: &Seen, image: &Image) -> Result<(), String> {
    let (seen, unreadable, report) = start_damaged(image)?;
    book.is_sent(&seen)?;
    let missing = lines(whole).difference(&lines(&seen)).count() as u64;
    let told = report.lost_lines;
    if missing == 0 {
        return if told == 0 || report.at_least {
            Ok(())
        } else {
            Err(format!("nothing is lost, {told} lines are told: {report:?}"))
        };
    }
    if unreadable == 0 && report.damaged_places == 0 {
        return Err(format!("{missing} lines are lost silently: {report:?}"));
    }
    // A query tells of a block that it cannot read, not of its lines; a start tells when it can count at least.
    let exact = unreadable == 0 && !report.at_least;
    if (exact && told != missing) || told > missing {
        return Err(format!("{missing} lines are lost, {told} are told: {report:?}"));
    }
    Ok(())
}

/// Every change of the block log that a script leaves.
pub fn node_damage(layer: &Layer, script: &Script, every_bit: u64, every: usize) {
    let (mut node, _, stopped) = play(script, None);
    node.kill();
    let mut volume = Volume::new(&node.disk.base);
    node.disk.ops().iter().for_each(|op| volume.apply(op));
    let blocks = Blocks::of(volume.kept());
    let whole = match (stopped, start(&blocks.image)) {
        (None, Ok((whole, _))) => whole,
        (stopped, outcome) => return layer.fail(script, "node-damage", &format!("{stopped:?} {:?}", outcome.err())),
    };
    layer.counts.add("logs", 1);
    let (mut flips, mut other, mut mixed) = (0, 0, 0);
    let look = |path: String, what: String, changed: &[(u64, Option<Vec<u8>>)]| {
        let image = blocks.with(changed);
        let checked = catch_unwind(AssertUnwindSafe(|| check(&node.book, &whole, &image)));
        if let Err(why) = checked.unwrap_or_else(|_| Err("panic".into())) {
            layer.fail(script, &path, &format!("{what}: {why}"));
        }
    };
    let sizes: Vec<(u64, u64)> = blocks.files.iter().map(|(n, bytes)| (*n, bytes.len() as u64)).collect();
    let file = |n: u64| blocks.files.iter().find(|(of, _)| *of == n).map(|(_, bytes)| bytes.clone());
    for (i, change) in changes(&sizes, &blocks.live, every_bit).enumerate().step_by(every) {
        if layer.enough() {
            return;
        }
        if !layer.wants(|| format!("node-damage/{i}")) {
            continue;
        }
        let Some((number, _, bytes)) = change.apply(file) else { continue };
        if file(number).is_some_and(|whole| whole == bytes) {
            continue;
        }
        *(if matches!(change, super::damage::Change::Bit(..)) { &mut flips } else { &mut other }) += 1;
        look(format!("node-damage/{i}"), format!("{change:?} of block segment {number}"), &[(number, Some(bytes))]);
    }
    for (i, (a, bytes)) in blocks.files.iter().enumerate() {
        mixed += 1;
        look(format!("node-damage/gone-{a}"), format!("block segment {a} is gone"), &[(*a, None)]);
        for (b, others) in &blocks.files[..i] {
            mixed += 2;
            let swapped = [(*a, Some(others.clone())), (*b, Some(bytes.clone()))];
            look(format!("node-damage/swapped-{a}-{b}"), format!("block segments {a} and {b} are swapped"), &swapped);
            let twice = [(*a, Some(others.clone()))];
            look(format!("node-damage/twice-{b}-{a}"), format!("block segment {a} is a copy of {b}"), &twice);
        }
    }
    layer.counts.add("bit flips", flips);
    layer.counts.add("other damage", other);
    layer.counts.add("segments mixed up", mixed);
    layer.counts.add("states", flips + other + mixed);
}
