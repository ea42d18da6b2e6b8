use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C (SIGINT) is only noted, for [`interrupted`]; the second ends the process. For tools that
/// have something to finish.
pub fn watch_interrupts() {
    // SAFETY: the handler does only what a signal handler may, and nothing else in a tool handles SIGINT.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGINT, on_interrupt as *const () as libc::sighandler_t)
    };
}

/// Was Ctrl-C pressed since [`watch_interrupts`]?
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

extern "C" fn on_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    // SAFETY: signal(2) may be called in a signal handler.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_DFL)
    };
}
