use std::sync::atomic::{AtomicUsize, Ordering};

/// Adds `more` to a counter that several share if it stays within `limit`.
///
/// # Errors
/// It would not: what it is, unchanged.
pub fn add_within(counter: &AtomicUsize, more: usize, limit: usize) -> Result<(), usize> {
    let add = |used: usize| used.checked_add(more).filter(|sum| *sum <= limit);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map(drop)
}
