//! The oracle for memory: how many bytes a thread holds at most while it does something.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What a decoder may hold for each byte of its input, and besides.
const RATIO: usize = 8;
const FIXED: usize = 64 << 10;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, which counts for each thread.
pub struct Counting;

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    if live > PEAK.get() {
        PEAK.set(live);
    }
}

// SAFETY: every call goes to the system's allocator as it came. Counting touches two cells of the thread, which need no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller holds to the contract of this same method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs something and tells the most bytes that it held at a time, beside those that were held before.
pub fn peak<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let out = run();
    (out, PEAK.get().saturating_sub(before).max(0) as usize)
}

/// Runs a decoder of `input` bytes, which may hold at most 8 times as many, and 64 KiB.
///
/// # Panics
/// It held more.
pub fn bounded<T>(input: usize, run: impl FnOnce() -> T) -> T {
    bounded_beside(0, input, run)
}

/// As [`bounded`], for one that needs some bytes whatever its input is.
///
/// # Panics
/// It held more.
pub fn bounded_beside<T>(fixed: usize, input: usize, run: impl FnOnce() -> T) -> T {
    let (out, held) = peak(run);
    let allowed = input * RATIO + FIXED + fixed;
    assert!(held <= allowed, "{held} bytes were held for an input of {input}; {allowed} are allowed");
    out
}
