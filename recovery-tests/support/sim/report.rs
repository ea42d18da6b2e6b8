//! Figures of a layer, failures with their reproduction, and the files they go to.

use super::content::mix;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// After this many failures the rest of a layer is not run.
const ENOUGH: usize = 8;

/// What a layer counts.
#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<&'static str, u64>>);

impl Counts {
    pub fn add(&self, what: &'static str, n: usize) {
        if n > 0 {
            *self.0.lock().entry(what).or_default() += n as u64;
        }
    }

    pub fn get(&self, what: &str) -> u64 {
        self.0.lock().get(what).copied().unwrap_or(0)
    }
}

/// One layer at work.
pub struct Layer {
    name: &'static str,
    pub counts: Counts,
    failures: Mutex<Vec<String>>,
    failed: AtomicUsize,
    /// Hashes of states with what is expected of them, over all workloads.
    seen: [Mutex<HashSet<u64>>; 64],
    /// After so many failures, or then, the rest is not run.
    enough: usize,
    until: Option<Instant>,
    /// Only states whose path lies on the way to this one.
    pub only: Option<String>,
    started: Instant,
    seeds: AtomicU64,
}

impl Layer {
    pub fn new(name: &'static str, only: Option<String>) -> Self {
        Self {
            name,
            counts: Counts::default(),
            failures: Mutex::default(),
            failed: AtomicUsize::new(0),
            seen: std::array::from_fn(|_| Mutex::default()),
            enough: ENOUGH,
            until: seconds().map(|s| Instant::now() + s),
            only,
            started: Instant::now(),
            seeds: AtomicU64::new(0),
        }
    }

    /// A layer that ends with its first failure, or when the time is up.
    pub fn hunting(budget: Duration) -> Self {
        Self { enough: 1, until: Some(Instant::now() + budget), ..Self::new("hunt", None) }
    }

    /// The first failure, with the line that shows it again.
    pub fn first_failure(&self) -> Option<String> {
        self.failures.lock().first().cloned()
    }

    /// Notes a failure and how to see it again.
    pub fn fail(&self, workload: &dyn std::fmt::Debug, path: &str, why: &str) {
        self.failed.fetch_add(1, Ordering::SeqCst);
        let mut failures = self.failures.lock();
        if failures.len() < ENOUGH {
            let line = format!(
                "{why}\n  TIMBERLINE_SIM={workload:?}:{path} cargo test --test simulation reproduce -- --nocapture"
            );
            eprintln!("{}: {line}", self.name);
            failures.push(line);
        }
    }

    /// Is this state, by the hash of its image, with this expectation the first one of the layer?
    pub fn is_new(&self, image: u64, expectation: u64) -> bool {
        let state = mix(&[image, expectation]);
        self.seen[(state % 64) as usize].lock().insert(state)
    }

    pub fn failures(&self) -> usize {
        self.failed.load(Ordering::SeqCst)
    }

    pub fn enough(&self) -> bool {
        self.failures() >= self.enough || self.until.is_some_and(|until| Instant::now() > until)
    }

    /// Does the path lead to the state that is asked for?
    pub fn wants(&self, path: impl FnOnce() -> String) -> bool {
        let Some(only) = &self.only else { return true };
        let path = path();
        let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        only.is_empty() || below(only, &path) || below(&path, only)
    }

    /// Runs the items on some threads until all are done or enough have failed. `Workload`s that run are told if a
    /// thread of the log panics, which ends the process.
    pub fn each<T: Sync + std::fmt::Debug>(&self, items: &[T], threads: usize, run: impl Fn(&T) + Sync) {
        let next = AtomicUsize::new(0);
        let running: Vec<Mutex<String>> = (0..threads).map(|_| Mutex::default()).collect();
        std::thread::scope(|scope| {
            for slot in &running {
                let (next, run) = (&next, &run);
                scope.spawn(move || {
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::SeqCst)) {
                        if self.enough() {
                            return;
                        }
                        *slot.lock() = format!("{item:?}");
                        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(item)));
                        if ran.is_err() {
                            self.failed.fetch_add(1, Ordering::SeqCst);
                            self.failures.lock().push(format!("panic in {item:?} (see above)"));
                        }
                        self.seeds.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }

    /// Prints the figures, keeps them for a full run that goes on later, and fails the test if a state failed.
    pub fn finish(self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let counts = self.counts.0.lock().clone();
        let states = counts.get("states").copied().unwrap_or(0);
        let text: Vec<String> = counts.iter().map(|(what, n)| format!("\"{what}\": {n}")).collect();
        let json = format!(
            "{{\"layer\": \"{}\", \"full\": {}, \"seconds\": {seconds:.1}, \"states_per_second\": {:.0}, {}, \"failures\": {}}}",
            self.name,
            is_full(),
            states as f64 / seconds.max(0.001),
            text.join(", "),
            self.failures(),
        );
        println!("{json}");
        let failures = self.failures.lock();
        assert!(failures.is_empty(), "{} failed: {}", self.name, failures.join("\n"));
        let cut = self.until.is_some_and(|until| Instant::now() > until);
        if self.only.is_none() && !cut {
            save(self.name, &json);
        }
    }
}

/// `TIMBERLINE_SIM_SECONDS`: each layer ends after so many; what it has found by then it tells, but it is not done.
fn seconds() -> Option<Duration> {
    let seconds = std::env::var("TIMBERLINE_SIM_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("TIMBERLINE_SIM_SECONDS is a number")))
}

/// Is the full tier asked for?
pub fn is_full() -> bool {
    std::env::var_os("TIMBERLINE_SIM_FULL").is_some_and(|v| v == "1")
}

fn done_file(layer: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("simulation").join(format!("{layer}.json"))
}

/// This build of the test: figures of another one do not count.
fn build() -> String {
    let exe = std::env::current_exe().and_then(std::fs::metadata);
    exe.map_or(String::new(), |m| format!("{} {:?}", m.len(), m.modified().ok()))
}

/// Has this build done the full tier of this layer? Then a run that was cut goes on with the next.
pub fn is_done(layer: &str) -> bool {
    let saved = is_full().then(|| std::fs::read_to_string(done_file(layer)).ok()).flatten();
    let Some((_, json)) = saved.as_deref().and_then(|s| s.split_once('\n')).filter(|(b, _)| *b == build()) else {
        return false;
    };
    note_result(json.trim_end());
    println!("{layer}: done before; {} has its figures, remove it to repeat", done_file(layer).display());
    true
}

fn save(layer: &str, json: &str) {
    if is_full() {
        let file = done_file(layer);
        let made = std::fs::create_dir_all(file.parent().expect("a file in a directory"));
        made.and_then(|()| std::fs::write(&file, format!("{}\n{json}\n", build())))
            .expect("the target directory is writable");
    }
    note_result(json);
}

/// Adds a line of JSON to the file that `TIMBERLINE_RESULTS` names, if it names one.
pub fn note_result(json: &str) {
    if let Some(path) = std::env::var_os("TIMBERLINE_RESULTS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let wrote = file.and_then(|mut f| writeln!(f, "{json}"));
        wrote.unwrap_or_else(|e| panic!("TIMBERLINE_RESULTS names {}: {e}", path.display()));
    }
}
