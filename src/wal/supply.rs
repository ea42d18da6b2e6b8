//! Prepared segments: a background thread keeps some ahead of the log, so that a sync carries no metadata and a full
//! disk shows before it hurts.

use super::segment::{Prepared, prepare, recycle, segment_name};
use super::writer::{WalOptions, spawn_critical};
use crate::fs::Fs;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use uuid::Uuid;

/// Segments that are kept ready. The last one is for recovery: ordinary pushes leave it.
const AHEAD: usize = 2;
/// Retired segments that wait to be used again.
const SPARE: usize = 2;
/// After a failure, space is looked for this often.
const RETRY: Duration = Duration::from_millis(250);

pub(super) struct Supply {
    state: Mutex<State>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Makes a segment when one is asked for, where no thread makes them ahead.
    on_demand: Option<Preparer>,
}

struct State {
    ready: VecDeque<Prepared>,
    /// Segments that were given up: numbers and sizes. They are used again, or removed if there are many.
    retired: VecDeque<(u64, u64)>,
    next_number: u64,
    /// Why the last preparation failed.
    failure: Option<String>,
    /// Somebody could not get a segment since then.
    starved: bool,
    stopping: bool,
}

struct Preparer {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    volume: Uuid,
    segment_size: u64,
}

impl Preparer {
    fn new(options: &WalOptions) -> Self {
        Self {
            fs: options.fs.clone(),
            dir: options.dir.clone(),
            volume: options.volume,
            segment_size: options.segment_size,
        }
    }

    /// The next segment, from a retired one where that has the right size and no other name, such as one in quarantine.
    fn make(&self, number: u64, spare: Option<(u64, u64)>) -> io::Result<Prepared> {
        let (fs, dir) = (&*self.fs, &self.dir);
        if let Some((old, len)) = spare {
            let alone = fs.links(&dir.join(segment_name(old))).is_ok_and(|links| links == 1);
            if alone && len == self.segment_size {
                return recycle(fs, dir, self.volume, old, number, len);
            }
            self.remove(old);
        }
        prepare(fs, dir, self.volume, number, self.segment_size)
    }

    /// Removes a retired segment. Should it stay, the next start removes it: the log says that it went.
    fn remove(&self, number: u64) {
        let _ = self.fs.remove(&self.dir.join(segment_name(number)));
    }
}

impl Supply {
    pub fn start(options: &WalOptions, next_number: u64, prepared: Vec<Prepared>) -> Arc<Self> {
        let supply = Arc::new(Self::new(next_number, prepared, None));
        let preparer = Preparer::new(options);
        let shared = supply.clone();
        *supply.thread.lock() = Some(spawn_critical("wal-prepare", move || shared.run(&preparer)));
        supply
    }

    /// Without a thread: a segment is made when it is needed, and none ahead.
    pub fn on_demand(options: &WalOptions, next_number: u64, prepared: Vec<Prepared>) -> Arc<Self> {
        Arc::new(Self::new(next_number, prepared, Some(Preparer::new(options))))
    }

    fn new(next_number: u64, prepared: Vec<Prepared>, on_demand: Option<Preparer>) -> Self {
        let state = State {
            ready: prepared.into(),
            retired: VecDeque::new(),
            next_number,
            failure: None,
            starved: false,
            stopping: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), thread: Mutex::new(None), on_demand }
    }

    fn run(&self, preparer: &Preparer) {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return;
            }
            if state.retired.len() > SPARE {
                let gone = state.retired.pop_front();
                drop(state);
                gone.into_iter().for_each(|(number, _)| preparer.remove(number));
                state = self.state.lock();
                continue;
            }
            if state.ready.len() >= AHEAD {
                self.changed.wait(&mut state);
                continue;
            }
            let number = state.next_number;
            let spare = state.retired.pop_front();
            drop(state);
            let made = preparer.make(number, spare);
            state = self.state.lock();
            match made {
                Ok(prepared) => {
                    state.ready.push_back(prepared);
                    // None is left out: a number without a file, before one with a file, is a segment that is gone.
                    state.next_number += 1;
                    state.failure = None;
                    state.starved &= state.ready.len() < AHEAD;
                }
                Err(error) => {
                    state.failure = Some(error.to_string());
                    self.changed.notify_all();
                    self.changed.wait_for(&mut state, RETRY);
                    continue;
                }
            }
            self.changed.notify_all();
        }
    }

    /// The next segment. Waits while one is being made; fails when making one has failed.
    pub fn take(&self, may_take_last: bool) -> Result<Prepared, String> {
        let mut state = self.wait_for_more_than(usize::from(!may_take_last))?;
        let taken = state.ready.pop_front();
        self.changed.notify_all();
        taken.ok_or_else(String::new)
    }

    /// Makes sure that a segment is left in which recovery can write the end of the log again: what is acknowledged
    /// without one could keep a full disk from starting. Waits and fails as [`Supply::take`].
    pub fn reserve(&self) -> Result<(), String> {
        self.wait_for_more_than(0).map(drop)
    }

    fn wait_for_more_than(&self, count: usize) -> Result<MutexGuard<'_, State>, String> {
        let mut state = self.state.lock();
        while state.ready.len() <= count {
            if let Some(preparer) = &self.on_demand {
                let prepared = preparer.make(state.next_number, None).map_err(|e| e.to_string())?;
                state.ready.push_back(prepared);
                state.next_number += 1;
                continue;
            }
            if let Some(why) = state.failure.clone() {
                state.starved = true;
                return Err(why);
            }
            if state.stopping {
                return Err("the log is stopping".into());
            }
            self.changed.wait(&mut state);
        }
        Ok(state)
    }

    /// Takes segments that nothing needs any more.
    pub fn retired(&self, segments: Vec<(u64, u64)>) {
        self.state.lock().retired.extend(segments);
        self.changed.notify_all();
    }

    /// Why the log cannot go on for lack of segments, if it had to refuse somebody.
    pub fn exhausted(&self) -> Option<String> {
        let state = self.state.lock();
        if state.starved { Some(state.failure.clone().unwrap_or_else(|| "waiting for space".into())) } else { None }
    }

    pub fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}
