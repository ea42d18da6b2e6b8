//! A thread that works now and then, until it is told to stop.

use crate::wal::spawn_critical;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The thread.
pub(super) struct Worker {
    signal: Arc<Signal>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Runs `work` on a thread of this name; it ends when the signal says so.
    pub fn start(name: &str, work: impl FnOnce(Arc<Signal>) + Send + 'static) -> Self {
        let signal = Arc::new(Signal::default());
        let shared = signal.clone();
        let thread = spawn_critical(name, move || work(shared));
        Self { signal, thread: Mutex::new(Some(thread)) }
    }

    /// Tells it to stop, and waits for its end.
    pub fn stop(&self) {
        self.signal.stop();
        if let Some(thread) = self.thread.lock().take() {
            // A panic on the thread has ended the process already.
            let _ = thread.join();
        }
    }
}

/// Tells a thread to stop.
#[derive(Default)]
pub(super) struct Signal {
    stopping: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Signal {
    /// Waits a while; returns whether to go on.
    pub fn pause(&self, wait: Duration) -> bool {
        let mut lock = self.lock.lock();
        if !self.is_stopping() && !wait.is_zero() {
            self.wake.wait_for(&mut lock, wait);
        }
        !self.is_stopping()
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // Under the lock, so that the thread cannot miss it between its look and its sleep.
        drop(self.lock.lock());
        self.wake.notify_all();
    }
}
