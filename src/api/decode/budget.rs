use crate::model::PushError;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory that all pushes in flight may hold together, in bytes.
///
/// Decoding reserves before it allocates, so a hundred decompression bombs at once hold no more than one budget.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
}

/// Why bytes were not reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// Other pushes hold the bytes; waiting helps.
    #[error(
        "pushes in flight hold {used} of {limit} bytes of decoding memory and this one needs {needed} more; \
         try again later"
    )]
    Exhausted {
        /// Bytes that were asked for.
        needed: usize,
        /// Bytes that are reserved.
        used: usize,
        /// Size of the budget.
        limit: usize,
    },
    /// What the push is made of takes far more than its bytes explain: it is made of empty things.
    #[error(
        "the push has more empty streams, entries, labels or metadata than its {len} bytes allow for; send fewer of them"
    )]
    Hollow {
        /// Bytes of the push without its compression.
        len: usize,
    },
    /// One push needs more than the whole budget; waiting does not help.
    #[error(
        "request body too large: decoding it needs {needed} bytes of memory, more than the {limit} that all pushes \
         may hold together; send smaller batches"
    )]
    TooLarge {
        /// Bytes that this push would hold.
        needed: usize,
        /// Size of the budget.
        limit: usize,
    },
}

impl From<BudgetError> for PushError {
    fn from(error: BudgetError) -> Self {
        match error {
            BudgetError::Exhausted { .. } => Self::unavailable(error.to_string()),
            BudgetError::TooLarge { .. } => Self::too_large(error.to_string()),
            BudgetError::Hollow { .. } => Self::bad_request(error.to_string()),
        }
    }
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    /// Size in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that leases hold now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A lease of `bytes`, for instance of [`expected_size`](super::expected_size); 0 is allowed.
    ///
    /// # Errors
    /// Never blocks: a caller that wants to wait for [`BudgetError::Exhausted`] to pass does so by itself.
    pub fn try_reserve(self: &Arc<Self>, bytes: usize) -> Result<Lease, BudgetError> {
        let mut lease = Lease { budget: Arc::clone(self), reserved: 0, taken: 0, len: 0, most: usize::MAX };
        lease.reserve(bytes)?;
        Ok(lease)
    }
}

/// One push's share of a [`Budget`], given back when dropped. Keep it for as long as the decoded push lives.
#[derive(Debug)]
pub struct Lease {
    budget: Arc<Budget>,
    reserved: usize,
    taken: usize,
    /// Bytes of the push without its compression.
    len: usize,
    /// What [`Lease::push`] lets be taken.
    most: usize,
}

/// A decoded push takes at most this many bytes for each of its own, and [`HOLLOW`] besides.
const RATIO: usize = 8;
const HOLLOW: usize = 48 << 10;

impl Lease {
    /// Bytes that this lease holds of its budget.
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// Bytes of the lease that are in use.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Takes `bytes` from what is reserved, and reserves what is missing.
    ///
    /// # Errors
    /// The budget does not have them; nothing changed.
    pub fn take(&mut self, bytes: usize) -> Result<(), BudgetError> {
        let taken = self.taken.saturating_add(bytes);
        self.reserve(taken.saturating_sub(self.reserved))?;
        self.taken = taken;
        Ok(())
    }

    /// Gives bytes that were taken back to the budget.
    pub fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.taken);
        self.taken -= bytes;
        self.release(bytes);
    }

    /// Gives back what is reserved but not taken.
    pub fn trim(&mut self) {
        self.release(self.reserved - self.taken);
    }

    /// Makes the vector's capacity at least `capacity`, and no larger than needed. While the elements move, the old
    /// and the new memory are both accounted for.
    pub(super) fn grow<T>(&mut self, vec: &mut Vec<T>, capacity: usize) -> Result<(), BudgetError> {
        let old = vec.capacity();
        if capacity <= old {
            return Ok(());
        }
        self.take(capacity.saturating_mul(size_of::<T>()))?;
        vec.reserve_exact(capacity - vec.len());
        self.give_back(old * size_of::<T>());
        Ok(())
    }

    /// Bounds what [`Lease::push`] takes from now on for a push of `len` bytes, which are taken already.
    pub(super) fn bound(&mut self, len: usize) {
        self.len = len;
        self.most = self.taken.saturating_add(len.saturating_mul(RATIO - 1)).saturating_add(HOLLOW);
    }

    /// Pushes onto a vector whose growth is accounted for.
    #[inline]
    pub(super) fn push<T>(&mut self, vec: &mut Vec<T>, value: T) -> Result<(), BudgetError> {
        if vec.len() == vec.capacity() {
            self.grow_within(vec)?;
        }
        vec.push(value);
        Ok(())
    }

    /// Doubles a vector, or as far as the bound lets it.
    #[cold]
    fn grow_within<T>(&mut self, vec: &mut Vec<T>) -> Result<(), BudgetError> {
        let room = self.most.saturating_sub(self.taken) / size_of::<T>().max(1);
        let capacity = (vec.len() * 2).max(64).min(room);
        if capacity <= vec.len() {
            return Err(BudgetError::Hollow { len: self.len });
        }
        self.grow(vec, capacity)
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), BudgetError> {
        let limit = self.budget.limit;
        let needed = self.reserved.saturating_add(bytes);
        if needed > limit {
            return Err(BudgetError::TooLarge { needed, limit });
        }
        let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= limit);
        self.budget
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map_err(|used| BudgetError::Exhausted { needed: bytes, used, limit })?;
        self.reserved = needed;
        Ok(())
    }

    fn release(&mut self, bytes: usize) {
        self.reserved -= bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.release(self.reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_takes_what_it_reserved_before_it_asks_for_more() {
        let budget = Budget::new(100);
        let mut lease = budget.try_reserve(40).unwrap();
        lease.take(30).unwrap();
        assert_eq!(budget.used(), 40);
        lease.take(20).unwrap();
        assert_eq!(budget.used(), 50);
        lease.give_back(25);
        assert_eq!(budget.used(), 25);
        drop(lease);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn trim_gives_back_what_was_not_taken() {
        let budget = Budget::new(100);
        let mut lease = budget.try_reserve(40).unwrap();
        lease.take(10).unwrap();
        lease.trim();
        assert_eq!((budget.used(), lease.reserved()), (10, 10));
    }

    #[test]
    fn an_exhausted_budget_is_503_and_an_impossible_need_is_413() {
        let budget = Budget::new(100);
        let held = budget.try_reserve(60).unwrap();
        let full = budget.try_reserve(41).unwrap_err();
        assert_eq!(full, BudgetError::Exhausted { needed: 41, used: 60, limit: 100 });
        assert_eq!(PushError::from(full).status, 503);
        assert_eq!(PushError::from(budget.try_reserve(101).unwrap_err()).status, 413);
        assert_eq!(budget.used(), 60);
        drop(held);
        assert!(budget.try_reserve(100).is_ok());
    }

    #[test]
    fn a_growing_vector_never_holds_more_than_its_lease() {
        let budget = Budget::new(10_000);
        let mut lease = budget.try_reserve(0).unwrap();
        let mut vec: Vec<u64> = Vec::new();
        let mut refused = 0;
        for i in 0..2000 {
            refused += usize::from(lease.push(&mut vec, i).is_err());
            assert_eq!(budget.used(), vec.capacity() * 8);
        }
        // 512 elements are 4096 bytes; 1024 more would need 12288 while they move.
        assert_eq!((vec.len(), refused), (512, 2000 - 512));
    }
}
