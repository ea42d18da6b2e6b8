//! Crash states, crashes inside recovery, and failing calls.

use super::content::{Image, mix};
use super::crash::{Breadth, Volume};
use super::disk::{Call, EDQUOT, EIO, ENOSPC, Failure, Fault};
use super::ledger::{Found, Ledger};
use super::report::Layer;
use super::workload::{Run, Step, Stop, Workload};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// A machine that is too slow for the log's timers this often in a row, and for so long, is not fit to simulate.
const REPEATS: usize = 40;
const PATIENCE: Duration = Duration::from_secs(60);

fn attempts() -> impl Iterator<Item = usize> {
    let until = Instant::now() + PATIENCE;
    (0..).take_while(move |n| *n < REPEATS || Instant::now() < until)
}

/// How far to look.
#[derive(Clone, Copy)]
pub struct Depth {
    pub breadth: Breadth,
    /// Crashes inside recovery, and inside the recovery after that.
    pub nested: [Breadth; 2],
    /// One of this many states with something to recover is recovered and crashed again, by level.
    pub every: [u64; 2],
}

impl Depth {
    /// Of the quick tier.
    pub const QUICK: Self = Self {
        breadth: Breadth { exhaustive: 64, samples: 24, singles: 60 },
        nested: [Breadth { exhaustive: 8, samples: 3, singles: 4 }, Breadth { exhaustive: 4, samples: 2, singles: 2 }],
        every: [8, 60],
    };

    /// Of the full tier: more states of each point, which are cheaper than more recoveries.
    pub const FULL: Self = Self {
        breadth: Breadth { exhaustive: 256, samples: 48, singles: 160 },
        nested: [Breadth { exhaustive: 16, samples: 6, singles: 8 }, Breadth { exhaustive: 4, samples: 2, singles: 2 }],
        every: [16, 60],
    };

    /// Of a whole ingester in the quick tier: a state is read twice, and its runs are long.
    pub const NODE: Self = Self {
        breadth: Breadth { exhaustive: 6, samples: 3, singles: 4 },
        nested: [Breadth { exhaustive: 2, samples: 1, singles: 2 }, Breadth { exhaustive: 2, samples: 0, singles: 0 }],
        every: [150, 150],
    };

    /// Each fault has its own run, so fewer states of each.
    pub const FAULTS: Self = Self {
        breadth: Breadth { exhaustive: 4, samples: 2, singles: 2 },
        nested: [Breadth { exhaustive: 2, samples: 1, singles: 0 }; 2],
        every: [40, 0],
    };
}

/// A run that has ended, and the operations that were done before each of its steps.
pub struct Played {
    pub run: Run,
    pub marks: Vec<usize>,
    pub stopped: Option<Stop>,
}

/// Runs a workload from an empty disk. It is repeated if this machine was too slow for the log's timers.
pub fn play(workload: &Workload, fault: Option<Fault>) -> Played {
    for _ in attempts() {
        let played = play_once(workload, fault);
        if !matches!(played.stopped, Some(Stop::Disturbed)) {
            return played;
        }
    }
    panic!("{workload:?} was disturbed {REPEATS} times: this machine is too slow or too busy");
}

fn play_once(workload: &Workload, fault: Option<Fault>) -> Played {
    let mut run = Run::new(workload);
    run.disk.fail(fault);
    let mut marks = vec![0];
    let mut stopped = run.open().err();
    for step in &workload.steps {
        if stopped.is_some() {
            break;
        }
        marks.push(run.disk.now());
        stopped = run.step(*step).err();
        if run.disk.disturbed() {
            stopped = Some(Stop::Disturbed);
        }
    }
    Played { run, marks, stopped }
}

/// Every crash point of the workload's last step (those of the steps before are the shorter workloads'), every state,
/// and crashes inside the recovery of those that have something to recover.
pub fn crashes(layer: &Layer, workload: &Workload, depth: &Depth) {
    let mut played = play(workload, None);
    played.run.kill();
    layer.counts.add("workloads", 1);
    if let Some(stop) = played.stopped {
        return layer.fail(workload, "run", &format!("{stop:?} without a fault"));
    }
    let from = played.marks.last().copied().unwrap_or(0);
    let states = States { layer, workload, depth, level: 0, path: "crash".into() };
    states.visit(&played.run, from);
}

/// The states of one run.
struct States<'a> {
    layer: &'a Layer,
    workload: &'a Workload,
    depth: &'a Depth,
    level: usize,
    path: String,
}

impl States<'_> {
    fn visit(&self, run: &Run, from: usize) {
        let ops = run.disk.ops();
        let mut volume = Volume::new(&run.disk.base);
        let (mut new, mut points, mut repeated) = (0, 0, 0);
        let breadth = match self.level {
            0 => self.depth.breadth,
            n => self.depth.nested[n - 1],
        };
        for at in 0..=ops.len() {
            if at >= from && !self.layer.enough() {
                points += 1;
                let expectation = run.ledger.expectation(at);
                volume.crashes(breadth, mix(&[self.workload.seed, at as u64]), &mut |label, image| {
                    if !self.layer.wants(|| format!("{}/{at}/{label}", self.path)) {
                        return true;
                    }
                    if self.layer.is_new(image.hash(), expectation) {
                        new += 1;
                        self.state(&run.ledger, image, at, label);
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

    fn state(&self, ledger: &Ledger, image: &Image, at: usize, label: usize) {
        let checked = catch_unwind(AssertUnwindSafe(|| ledger.check(image, at)));
        let path = || format!("{}/{at}/{label}", self.path);
        match checked {
            Err(_) => self.layer.fail(self.workload, &path(), "panic"),
            Ok(Err(why)) => self.layer.fail(self.workload, &path(), &why),
            Ok(Ok(found)) => self.recover(ledger, image, at, &path, &found),
        }
    }

    /// Recovers the state for real, pushes, and crashes at every operation of that.
    fn recover(&self, ledger: &Ledger, image: &Image, at: usize, path: &dyn Fn() -> String, found: &Found) {
        if found.has_tail {
            self.layer.counts.add("states with a tail", 1);
        }
        let Some(every) = self.depth.every.get(self.level).filter(|n| **n > 0) else { return };
        // What has nothing to recover is recovered too, now and then: the next push is what can go wrong.
        let every = if found.has_tail || found.leftovers { *every } else { every * 32 };
        if self.layer.only.is_none() && !mix(&[self.workload.seed, image_coin(image, at)]).is_multiple_of(every) {
            return;
        }
        for _ in attempts() {
            let mut run = Run::on(image.clone(), ledger.at(at), self.workload);
            let outcome = recover_and_push(&mut run, found);
            if matches!(outcome, Err(Stop::Disturbed)) || run.disk.disturbed() {
                continue;
            }
            self.layer.counts.add("recoveries", 1);
            if let Err(stop) = outcome {
                return self.layer.fail(self.workload, &path(), &format!("{stop:?} in the recovery of this state"));
            }
            if self.level == 0 {
                self.failing_recovery(ledger, image, at, &path(), &run.disk.calls());
            }
            let path = format!("{}/open", path());
            let inner = States { level: self.level + 1, path, ..*self };
            return inner.visit(&run, 0);
        }
        panic!("{:?} was disturbed {REPEATS} times", self.workload);
    }
}

impl States<'_> {
    /// A call of the recovery of this state fails, and the process ends: the next start, on a healthy disk, finds all.
    fn failing_recovery(&self, ledger: &Ledger, image: &Image, at: usize, path: &str, calls: &[Call]) {
        let coin = mix(&[self.workload.seed, image_coin(image, at), 7]) as usize;
        let Some(call) = calls.get(coin % calls.len().max(1)) else { return };
        let failures = failures(*call);
        let fault = Fault {
            at: coin % calls.len(),
            failure: failures[(coin >> 16) % failures.len()],
            for_ever: coin >> 32 & 1 == 1,
        };
        let mut run = Run::on(image.clone(), ledger.at(at), self.workload);
        run.disk.fail(Some(fault));
        let opened = run.open();
        run.kill();
        if run.disk.disturbed() {
            return;
        }
        self.layer.counts.add("faults inside recovery", 1);
        let mut volume = Volume::new(&run.disk.base);
        let ops = run.disk.ops();
        ops.iter().for_each(|op| volume.apply(op));
        let second = |image: Image| run.ledger.check(&image, ops.len()).map(drop);
        let outcome = match opened {
            Err(Stop::Wrong(why)) => Err(why),
            _ => second(volume.kept()).and_then(|()| second(volume.lost())),
        };
        if let Err(why) = outcome {
            self.layer.fail(self.workload, path, &format!("{why} (after {fault:?} in the recovery of this state)"));
        }
    }
}

fn image_coin(image: &Image, at: usize) -> u64 {
    mix(&[image.hash(), at as u64])
}

fn recover_and_push(run: &mut Run, expected: &Found) -> Result<(), Stop> {
    let found = run.open()?;
    if found != *expected {
        return Err(Stop::Wrong(format!("recovered {found:?}, read {expected:?}")));
    }
    run.step(Step::Small)?;
    run.kill();
    Ok(())
}

/// Which failures of a call are tried.
pub fn failures(call: Call) -> Vec<Failure> {
    let errnos = [EIO, ENOSPC, EDQUOT];
    if call != Call::Write {
        return errnos.map(|e| Failure::Errno(e, 0)).to_vec();
    }
    let partly = errnos.iter().flat_map(|e| (0..3).map(|halves| Failure::Errno(*e, halves)));
    partly.chain([Failure::Short]).collect()
}

/// Every call of a workload fails in every way, once and for ever; one of `every` such faults is tried, by seed.
pub fn faults(layer: &Layer, workload: &Workload, depth: &Depth, every: u64) {
    let calls = {
        let mut played = play(workload, None);
        played.run.kill();
        played.run.disk.calls()
    };
    layer.counts.add("workloads", 1);
    for (at, call) in calls.iter().enumerate() {
        for (i, failure) in failures(*call).into_iter().enumerate() {
            for for_ever in [false, true] {
                let coin = mix(&[workload.seed, at as u64, i as u64, u64::from(for_ever)]);
                let path = format!("fault/{at}/{i}/{}", u8::from(for_ever));
                // A full disk that keeps all bytes of a group that has failed: only there can they come back to life.
                let kept = *call == Call::Write && failure == Failure::Errno(ENOSPC, 2) && !for_ever;
                let wanted = if layer.only.is_some() {
                    layer.wants(|| path.clone())
                } else {
                    kept || coin.is_multiple_of(every)
                };
                if wanted && !layer.enough() {
                    one_fault(layer, workload, depth, Fault { at, failure, for_ever }, &path);
                }
            }
        }
    }
}

fn one_fault(layer: &Layer, workload: &Workload, depth: &Depth, fault: Fault, path: &str) {
    let mut played = play(workload, Some(fault));
    layer.counts.add("faults", 1);
    let wrong = |why: String| layer.fail(workload, path, &format!("{why} ({fault:?})"));
    let Some(failed_at) = played.run.disk.failed_at() else {
        return match played.stopped {
            None => {}
            Some(stop) => wrong(format!("{stop:?} without a failure")),
        };
    };
    match &played.stopped {
        Some(Stop::Wrong(why)) => return wrong(why.clone()),
        Some(_) => layer.counts.add("faults that ended the process", 1),
        None => {
            played.run.disk.fail(None);
            // Looking for space again takes a quarter of a second.
            if mix(&[workload.seed, fault.at as u64]).is_multiple_of(4) {
                layer.counts.add("resumptions", 1);
                if !played.run.resumes() {
                    let call = played.run.disk.calls().get(fault.at).copied();
                    wrong(format!("the log does not go on after a failed {call:?} although the disk is healthy again"));
                }
            }
        }
    }
    played.run.kill();
    // The sync of the log that has failed, and all that follows.
    let states = States { layer, workload, depth, level: 0, path: path.to_string() };
    states.visit(&played.run, failed_at);
}
