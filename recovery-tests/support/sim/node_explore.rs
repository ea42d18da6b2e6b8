//! Crash states and failing calls of a whole ingester.

use super::content::{Image, mix};
use super::crash::Volume;
use super::disk::{Call, Fault};
use super::explore::{Depth, failures};
use super::node::{Act, Below, Node, Script, below, keep, start};
use super::node_book::{Book, Seen};
use super::report::Layer;
use super::workload::Stop;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(super) fn play(script: &Script, fault: Option<Fault>) -> (Node, Vec<usize>, Option<Stop>) {
    let mut node = Node::new(script, fault);
    let mut marks = vec![0];
    let mut stopped = node.open().err();
    for act in &script.acts {
        if stopped.is_some() {
            break;
        }
        marks.push(node.disk.now());
        stopped = node.act(*act).err();
    }
    (node, marks, stopped)
}

/// Every crash point of a script, or only of its last step.
pub fn node_crashes(layer: &Layer, script: &Script, depth: &Depth, whole: bool) {
    let (mut node, marks, stopped) = play(script, None);
    node.kill();
    layer.counts.add("workloads", 1);
    if let Some(stop) = stopped {
        return layer.fail(script, "node-run", &format!("{stop:?} without a fault"));
    }
    for (what, n) in &node.happened {
        layer.counts.add(what, *n as usize);
    }
    layer.counts.add("recycled log segments", node.recycled() as usize);
    let from = if whole { 0 } else { marks.last().copied().unwrap_or(0) };
    let states = States { layer, script, depth, level: 0, path: "node-crash".into() };
    states.visit(&node, from);
}

struct States<'a> {
    layer: &'a Layer,
    script: &'a Script,
    depth: &'a Depth,
    level: usize,
    path: String,
}

impl States<'_> {
    fn visit(&self, node: &Node, from: usize) {
        let ops = node.disk.ops();
        let mut volume = Volume::new(&node.disk.base);
        let breadth = if self.level == 0 { self.depth.breadth } else { self.depth.nested[self.level - 1] };
        let (mut new, mut points, mut repeated) = (0, 0, 0);
        let (mut floor, mut known) = (Floor::default(), None);
        for at in 0..=ops.len() {
            if at >= from && !self.layer.enough() {
                points += 1;
                let expectation = node.book.expectation(at);
                if known.replace(expectation) != Some(expectation) {
                    floor.rise(&volume.lost());
                }
                volume.crashes(breadth, mix(&[self.script.seed, at as u64]), &mut |label, image| {
                    if self.layer.is_new(image.hash(), expectation) {
                        new += 1;
                        self.state(&node.book, image, at, label, floor);
                    } else {
                        repeated += 1;
                    }
                    !self.layer.enough()
                });
            }
            if let Some(op) = ops.get(at) {
                volume.apply(op);
            }
        }
        let names = ["states", "states inside recovery", "states inside recovery of recovery"];
        self.layer.counts.add(names[self.level], new);
        if self.level > 0 {
            self.layer.counts.add("states", new);
        }
        self.layer.counts.add("crash points", points);
        self.layer.counts.add("states repeated", repeated);
    }

    fn fail(&self, image: &Image, path: &str, why: &str) {
        let kept = keep(image).map_or(String::new(), |dir| format!(" (the disk is kept in {})", dir.display()));
        self.layer.fail(self.script, path, &format!("{why}{kept}"));
    }

    fn state(&self, book: &Book, image: &Image, at: usize, label: usize, floor: Floor) {
        let path = format!("{}/{at}/{label}", self.path);
        let check = || {
            let below = below(image)?;
            floor.check(&below)?;
            let (seen, stored) = start(image)?;
            book.check(at, &seen)?;
            if stored > below.names {
                return Err(format!("memory holds {stored} lines, the logs {}", below.names));
            }
            Ok::<_, String>((below, seen))
        };
        match catch_unwind(AssertUnwindSafe(check)) {
            Err(_) => self.fail(image, &path, "panic"),
            Ok(Err(why)) => self.fail(image, &path, &why),
            Ok(Ok((below, seen))) => {
                self.layer.counts.add("states with a block in two places", usize::from(below.copies > 0));
                self.recover(book, image, at, &path, &seen);
            }
        }
    }

    /// Recovers the state for real, pushes, and crashes at every operation of that.
    fn recover(&self, book: &Book, image: &Image, at: usize, path: &str, seen: &Seen) {
        let Some(every) = self.depth.every.get(self.level).filter(|n| **n > 0) else { return };
        if !mix(&[self.script.seed, image.hash()]).is_multiple_of(*every) {
            return;
        }
        let mut node = Node::on(image.clone(), book.at(at), self.script.seed);
        let outcome = node.open().and_then(|found| {
            if found == *seen { Ok(()) } else { Err(Stop::Wrong(format!("recovered {found:?}, read {seen:?}"))) }
        });
        let calls = node.disk.calls();
        let outcome = outcome.and_then(|()| node.act(Act::Small));
        node.kill();
        self.layer.counts.add("recoveries", 1);
        self.failing_recovery(book, image, at, path, &calls);
        if let Err(stop) = outcome {
            return self.fail(image, path, &format!("{stop:?} in the recovery of this state"));
        }
        let inner = States { level: self.level + 1, path: format!("{path}/open"), ..*self };
        inner.visit(&node, 0);
    }
}

impl States<'_> {
    /// A call of the recovery of this state fails, and the process ends: the next start, on a healthy disk, finds all.
    fn failing_recovery(&self, book: &Book, image: &Image, at: usize, path: &str, calls: &[Call]) {
        let coin = mix(&[self.script.seed, at as u64, calls.len() as u64]) as usize;
        let Some(call) = calls.get(coin % calls.len().max(1)) else { return };
        let failures = failures(*call);
        let failure = failures[(coin >> 16) % failures.len()];
        let fault = Fault { at: coin % calls.len(), failure, for_ever: coin >> 32 & 1 == 1 };
        let mut node = Node::on(image.clone(), book.at(at), self.script.seed);
        node.disk.fail(Some(fault));
        let opened = node.open();
        node.kill();
        self.layer.counts.add("faults inside recovery", 1);
        let ops = node.disk.ops();
        let mut volume = Volume::new(&node.disk.base);
        ops.iter().for_each(|op| volume.apply(op));
        let second = |image: Image| start(&image).and_then(|(seen, _)| node.book.check(ops.len(), &seen));
        let outcome = match opened {
            Err(Stop::Wrong(why)) => Err(why),
            _ => second(volume.kept()).and_then(|()| second(volume.lost())),
        };
        if let Err(why) = outcome {
            self.fail(image, path, &format!("{why} (after {fault:?} in the recovery of this state)"));
        }
    }
}

/// Below this nothing goes back: no durable LSN is given again, nor is the id of a stream that has durable lines.
#[derive(Clone, Copy, Default)]
struct Floor {
    lsn: u64,
    stream_id: u64,
}

impl Floor {
    /// All that is not synced is lost here: what is left stays.
    fn rise(&mut self, lost: &Image) {
        // If it cannot be read, the state says so by itself.
        if let Ok(below) = below(lost) {
            self.lsn = self.lsn.max(below.durable_lsn);
            self.stream_id = self.stream_id.max(below.next_stream_id);
        }
    }

    fn check(&self, below: &Below) -> Result<(), String> {
        let Self { lsn, stream_id } = *self;
        if below.durable_lsn < lsn || below.next_stream_id < stream_id {
            let (now, id) = (below.durable_lsn, below.next_stream_id);
            return Err(format!("LSN {now} or stream id {id} went back behind {lsn} or {stream_id}"));
        }
        Ok(())
    }
}

/// Calls of a script fail, one of `every` by seed, and what is left is crashed.
pub fn node_faults(layer: &Layer, script: &Script, depth: &Depth, every: u64) {
    let calls = {
        let (mut node, _, _) = play(script, None);
        node.kill();
        node.disk.calls()
    };
    layer.counts.add("workloads", 1);
    for (at, call) in calls.iter().enumerate() {
        for (i, failure) in failures(*call).into_iter().enumerate() {
            for for_ever in [false, true] {
                let coin = mix(&[script.seed, at as u64, i as u64, u64::from(for_ever)]);
                if coin.is_multiple_of(every) && !layer.enough() {
                    one_fault(layer, script, depth, Fault { at, failure, for_ever });
                }
            }
        }
    }
}

fn one_fault(layer: &Layer, script: &Script, depth: &Depth, fault: Fault) {
    let (mut node, _, stopped) = play(script, Some(fault));
    node.kill();
    layer.counts.add("faults", 1);
    let path = format!("node-fault/{fault:?}");
    // Threads run freely: in this run there may be fewer calls.
    let Some(failed_at) = node.disk.failed_at() else { return };
    match stopped {
        Some(Stop::Wrong(why)) => return layer.fail(script, &path, &why),
        Some(_) => layer.counts.add("faults that ended the process", 1),
        None => {}
    }
    let states = States { layer, script, depth, level: 0, path };
    states.visit(&node, failed_at);
}

/// Two equal pushes at the same time: no answer before their lines are durable. Every crash point.
pub fn node_twice(layer: &Layer, script: &Script) {
    let mut node = Node::new(script, None);
    let stopped = node.open().and_then(|_| node.twice()).err();
    node.kill();
    if let Some(stop) = stopped {
        return layer.fail(script, "node-twice", &format!("{stop:?} without a fault"));
    }
    // Below deduplication the line lies there twice, as it should: only what is read counts here.
    let ops = node.disk.ops();
    let mut volume = Volume::new(&node.disk.base);
    for at in 0..=ops.len() {
        volume.crashes(Depth::NODE.breadth, mix(&[script.seed, at as u64]), &mut |label, image| {
            if let Err(why) = start(image).and_then(|(seen, _)| node.book.check(at, &seen)) {
                layer.fail(script, &format!("node-twice/{at}/{label}"), &why);
            }
            !layer.enough()
        });
        if let Some(op) = ops.get(at) {
            volume.apply(op);
        }
    }
}
