//! What a crash can leave of a disk: for each operation of a run, the images that the fault model allows.
//!
//! Everything that is not synced is a choice: each sector of 512 bytes is old, new, one of the versions between, or,
//! where the file had no such sector, zeros or what lay in that block before; a size is old or new; a name is changed,
//! unchanged or, in a rename, in both places. Few choices are enumerated whole; of many, each single deviation from
//! "all lost" and from "all kept" is made, and a sample by seed.

use super::content::{Content, Image, PAGE, SECTOR, mix};
use super::disk::Op;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// How many states of one crash point are made.
#[derive(Clone, Copy, Debug)]
pub struct Breadth {
    /// All combinations, if they are not more.
    pub exhaustive: usize,
    /// Else, beside the single deviations, this many by coin.
    pub samples: usize,
    /// At most this many single deviations, evenly chosen.
    pub singles: usize,
}

#[derive(Clone, Default)]
struct Node {
    durable: Content,
    cached: Content,
    /// Writes since the last sync; true if a sync of them has failed.
    pending: Vec<(u64, Arc<[u8]>, bool)>,
}

impl Node {
    fn of(content: &Content) -> Self {
        Self { durable: content.clone(), cached: content.clone(), pending: Vec::new() }
    }
}

#[derive(Clone)]
enum NameOp {
    Add(Arc<Path>, usize),
    Move(Arc<Path>, Arc<Path>, usize),
    Remove(Arc<Path>),
}

impl NameOp {
    /// A name that it changes; all of one operation are in the same directory.
    fn path(&self) -> &Path {
        match self {
            Self::Add(path, _) | Self::Move(path, _, _) | Self::Remove(path) => path,
        }
    }
}

/// The disk after some operations, with what is durable and what is not.
#[derive(Clone)]
pub struct Volume {
    nodes: Vec<Node>,
    names: BTreeMap<Arc<Path>, usize>,
    durable_names: BTreeMap<Arc<Path>, usize>,
    name_ops: Vec<NameOp>,
}

/// One thing that a crash decides. Option 0 is old; `newest` is new.
struct Choice {
    options: u8,
    newest: u8,
    what: What,
}

enum What {
    /// Sectors of a node: bytes of each option, `None` for what is durable.
    Sectors {
        node: usize,
        options: Vec<Vec<(u64, Box<[u8]>)>>,
    },
    Size {
        node: usize,
        lens: Vec<u64>,
    },
    Name(NameOp),
}

impl Volume {
    pub fn new(base: &Image) -> Self {
        let mut out = Self { nodes: vec![], names: BTreeMap::new(), durable_names: BTreeMap::new(), name_ops: vec![] };
        for (path, content) in &base.files {
            out.names.insert(path.clone(), out.nodes.len());
            out.nodes.push(Node::of(content));
        }
        out.durable_names = out.names.clone();
        out
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Nothing => {}
            Op::Create(path, inode) => {
                assert_eq!(*inode, self.nodes.len(), "operations are applied to the disk that they were made on");
                self.nodes.push(Node::default());
                self.names.insert(path.clone(), *inode);
                self.name_ops.push(NameOp::Add(path.clone(), *inode));
            }
            Op::Write(inode, offset, bytes) => {
                let node = &mut self.nodes[*inode];
                node.cached.put(*offset, bytes);
                node.pending.push((*offset, bytes.clone(), false));
            }
            Op::Sync(inode) => {
                let node = &mut self.nodes[*inode];
                for (offset, bytes, _) in node.pending.iter().filter(|(_, _, limbo)| !limbo) {
                    node.durable.put(*offset, bytes);
                }
                node.pending.retain(|(_, _, limbo)| *limbo);
            }
            Op::SyncFailed(inode) => self.nodes[*inode].pending.iter_mut().for_each(|p| p.2 = true),
            Op::Resolved(inode, kept) => {
                let node = &mut self.nodes[*inode];
                if *kept {
                    node.durable = node.cached.clone();
                }
                node.cached = node.durable.clone();
                node.pending.clear();
            }
            Op::Rename(from, to) => {
                if let Some(inode) = self.names.remove(from) {
                    self.names.insert(to.clone(), inode);
                    self.name_ops.push(NameOp::Move(from.clone(), to.clone(), inode));
                }
            }
            Op::Remove(path) => {
                self.names.remove(path);
                self.name_ops.push(NameOp::Remove(path.clone()));
            }
            Op::SyncDir(dir) => {
                let here = |path: &Path| path.parent() == Some(dir);
                self.durable_names.retain(|path, _| !here(path));
                self.durable_names.extend(self.names.iter().filter(|(p, _)| here(p)).map(|(p, i)| (p.clone(), *i)));
                self.name_ops.retain(|op| !here(op.path()));
            }
        }
    }

    /// Calls `visit` with the images that a crash now can leave; `label` names one within this point. Stops early when
    /// `visit` returns false.
    pub fn crashes(&self, breadth: Breadth, seed: u64, visit: &mut dyn FnMut(usize, &Image) -> bool) {
        let choices = self.choices();
        for (label, picks) in picks(&choices, breadth, seed).enumerate() {
            if !visit(label, &self.image(&choices, &picks)) {
                return;
            }
        }
    }

    /// The disk with everything that was written, as a process sees it.
    pub fn kept(&self) -> Image {
        let files = self.names.iter().map(|(p, i)| (p.clone(), Arc::new(self.nodes[*i].cached.clone())));
        Image { files: files.collect() }
    }

    /// Only what is durable.
    pub fn lost(&self) -> Image {
        let files = self.durable_names.iter().map(|(p, i)| (p.clone(), Arc::new(self.nodes[*i].durable.clone())));
        Image { files: files.collect() }
    }

    fn choices(&self) -> Vec<Choice> {
        let mut out: Vec<Choice> = self.name_ops.iter().map(name_choice).collect();
        for (i, node) in self.nodes.iter().enumerate().filter(|(_, n)| !n.pending.is_empty()) {
            let named = |names: &BTreeMap<_, usize>| names.values().any(|n| *n == i);
            if named(&self.names) || named(&self.durable_names) {
                self.node_choices(i, node, &mut out);
            }
        }
        out
    }

    fn node_choices(&self, number: usize, node: &Node, out: &mut Vec<Choice>) {
        let mut versions = vec![node.durable.clone()];
        for (offset, bytes, _) in &node.pending {
            let mut next = versions.last().cloned().unwrap_or_default();
            next.put(*offset, bytes);
            versions.push(next);
        }
        let mut lens: Vec<u64> = versions.iter().map(Content::len).collect();
        lens.dedup();
        if lens.len() > 1 {
            let options = lens.len() as u8;
            out.push(Choice { options, newest: options - 1, what: What::Size { node: number, lens } });
        }
        let newest = versions.last().cloned().unwrap_or_default();
        let mut fresh = Vec::new();
        for sector in 0..newest.len().div_ceil(SECTOR as u64) {
            if versions.windows(2).all(|w| w[0].shares_page(&w[1], sector as usize * SECTOR / PAGE)) {
                if sector * SECTOR as u64 >= node.durable.len() {
                    fresh.push(sector);
                }
                continue;
            }
            let mut seen: Vec<&[u8]> = versions.iter().map(|v| v.sector(sector)).collect();
            seen.dedup();
            if seen.len() > 1 {
                let mut options: Vec<Vec<(u64, Box<[u8]>)>> =
                    seen.iter().map(|s| vec![(sector, (*s).into())]).collect();
                let last = options.len() as u8 - 1;
                if sector * SECTOR as u64 >= node.durable.len() {
                    options.push(vec![(sector, self.stale(number, sector))]);
                }
                let count = options.len() as u8;
                out.push(Choice { options: count, newest: last, what: What::Sectors { node: number, options } });
            } else if sector * SECTOR as u64 >= node.durable.len() {
                fresh.push(sector);
            }
        }
        // Blocks that are new and were written with zeros hold zeros or what they held before, some together.
        for group in fresh.chunks(fresh.len().div_ceil(8).max(1)) {
            let stale = group.iter().map(|s| (*s, self.stale(number, *s))).collect();
            let what = What::Sectors { node: number, options: vec![vec![], stale] };
            out.push(Choice { options: 2, newest: 0, what });
        }
    }

    /// What a newly allocated block may hold: the same place of another file, as if its block had been freed.
    fn stale(&self, node: usize, sector: u64) -> Box<[u8]> {
        let others =
            self.nodes.iter().enumerate().rev().filter(|(i, _)| *i != node).map(|(_, n)| n.cached.sector(sector));
        let used = others.into_iter().find(|s| s.iter().any(|b| *b != 0));
        used.map_or_else(|| vec![0xA5; SECTOR].into(), Into::into)
    }

    fn image(&self, choices: &[Choice], picks: &[u8]) -> Image {
        let mut names = self.durable_names.clone();
        let mut changed: BTreeMap<usize, Content> = BTreeMap::new();
        let mut sizes: Vec<(usize, u64)> = Vec::new();
        let content = |node: usize| self.nodes[node].durable.clone();
        for (choice, pick) in choices.iter().zip(picks) {
            match &choice.what {
                What::Name(op) => apply_name(&mut names, op, *pick),
                What::Size { node, lens } => sizes.push((*node, lens[usize::from(*pick)])),
                What::Sectors { node, options } => {
                    let file = changed.entry(*node).or_insert_with(|| content(*node));
                    for (sector, bytes) in &options[usize::from(*pick)] {
                        if *pick > 0 {
                            file.put(sector * SECTOR as u64, bytes);
                        }
                    }
                }
            }
        }
        // A sector may lie in a block behind the end of the file: then it is there and nobody sees it.
        for (node, len) in sizes {
            changed.entry(node).or_insert_with(|| content(node)).set_len(len);
        }
        for (node, file) in &mut changed {
            let longest = self.nodes[*node].cached.len().max(self.nodes[*node].durable.len());
            if file.len() > longest {
                file.set_len(longest);
            }
        }
        let file = |node: usize| Arc::new(changed.get(&node).cloned().unwrap_or_else(|| content(node)));
        Image { files: names.into_iter().map(|(p, i)| (p, file(i))).collect() }
    }
}

fn name_choice(op: &NameOp) -> Choice {
    let options = if matches!(op, NameOp::Move(..)) { 3 } else { 2 };
    Choice { options, newest: 1, what: What::Name(op.clone()) }
}

/// Pick 0: the operation is lost. 1: done. 2: a rename of which both names are there.
fn apply_name(names: &mut BTreeMap<Arc<Path>, usize>, op: &NameOp, pick: u8) {
    if pick == 0 {
        return;
    }
    match op {
        NameOp::Add(path, inode) => drop(names.insert(path.clone(), *inode)),
        NameOp::Remove(path) => drop(names.remove(path)),
        NameOp::Move(from, to, inode) => {
            if pick == 1 {
                names.remove(from);
            }
            names.insert(to.clone(), *inode);
        }
    }
}

/// Which option of each choice each state takes.
fn picks(choices: &[Choice], breadth: Breadth, seed: u64) -> Box<dyn Iterator<Item = Vec<u8>>> {
    let options: Vec<u8> = choices.iter().map(|c| c.options).collect();
    let newest: Vec<u8> = choices.iter().map(|c| c.newest).collect();
    let all = options.iter().try_fold(1usize, |n, o| n.checked_mul(usize::from(*o)));
    if let Some(all) = all.filter(|n| *n <= breadth.exhaustive) {
        return Box::new((0..all).map(move |mut n| {
            let digit = |o: &u8| {
                let digit = n % usize::from(*o);
                n /= usize::from(*o);
                digit as u8
            };
            options.iter().map(digit).collect()
        }));
    }
    let (lost, kept) = (vec![0; options.len()], newest);
    // New sizes over old bytes: zeros.
    let sizes: Vec<bool> = choices.iter().map(|c| matches!(c.what, What::Size { .. })).collect();
    let zeros = kept.iter().zip(&sizes).map(|(k, size)| if *size { *k } else { 0 }).collect();
    let stale = options.iter().map(|o| o - 1).collect();
    let mut single = Vec::new();
    for start in [&lost, &kept] {
        for (i, o) in options.iter().enumerate() {
            for option in (0..*o).filter(|option| *option != start[i]) {
                let mut picks = start.clone();
                picks[i] = option;
                single.push(picks);
            }
        }
    }
    let step = single.len().div_ceil(breadth.singles.max(1)).max(1);
    let samples = breadth.samples as u64;
    let coins = (0..samples).map(move |n| {
        let bias = mix(&[seed, n]) % 8;
        let pick = |(i, o): (usize, &u8)| {
            let coin = mix(&[seed, n, i as u64]);
            // From nearly nothing to nearly all of it is kept.
            if coin % 8 < bias { (coin >> 8) as u8 % *o } else { 0 }
        };
        options.iter().enumerate().map(pick).collect()
    });
    let four = [lost, kept, zeros, stale];
    Box::new(four.into_iter().chain(single.into_iter().step_by(step)).chain(coins))
}
