use crate::model::{PushError, add_within};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A lease of more than this many bytes is large.
const LARGE: usize = 256 << 10;
/// Bytes that large leases may hold together, however large the budget is: 64 bombs at once then add less than 300 MB. The
/// third above this is for their bodies as long as they are not large, and for what the allocator has not yet returned.
const MAX_LARGE: usize = 192 << 20;

/// Memory that all pushes in flight may hold together, in bytes.
///
/// Decoding reserves before it allocates, so a hundred decompression bombs at once hold no more than one budget. The
/// larger pushes share a part of it, and so leave room for the others.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
    /// What large leases hold, in all.
    large: AtomicUsize,
}

/// Why bytes were not reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// Other pushes hold the bytes; waiting helps.
    #[error(
        "{whose} in flight hold {used} of {limit} bytes of decoding memory and this one needs {needed} more; \
         try again later"
    )]
    Exhausted {
        /// Who shares the memory: `pushes` or `large pushes`.
        whose: &'static str,
        /// Bytes that were asked for.
        needed: usize,
        /// Bytes that are reserved.
        used: usize,
        /// Bytes that they may hold together.
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
        /// Bytes that pushes of this size may hold together.
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
        Arc::new(Self { limit, used: AtomicUsize::new(0), large: AtomicUsize::new(0) })
    }

    /// Size in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that leases hold now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that large leases may hold together, and so the most of one lease.
    fn large_limit(&self) -> usize {
        self.limit.min(MAX_LARGE)
    }

    /// A lease of nothing yet. It never blocks: a caller that wants to wait for [`BudgetError::Exhausted`] to pass does so
    /// by itself.
    pub fn lease(self: &Arc<Self>) -> Lease {
        Lease { budget: Arc::clone(self), reserved: 0, taken: 0, len: 0, most: usize::MAX }
    }
}

/// What a lease of `reserved` bytes adds to what large leases hold.
fn large_share(reserved: usize) -> usize {
    if reserved > LARGE { reserved } else { 0 }
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
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Reserves what decoding is [expected](super::expected) to take besides, as far as one lease may grow.
    ///
    /// # Errors
    /// As [`Lease::take`].
    pub fn expect(&mut self, bytes: usize) -> Result<(), BudgetError> {
        let room = self.budget.large_limit().saturating_sub(self.taken);
        let reserved = self.taken.saturating_add(bytes.min(room));
        self.reserve(reserved.saturating_sub(self.reserved))
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

    /// Takes `bytes` for a body that is still coming in. A quarter of what large pushes may hold is closed to such bodies:
    /// if they held all of it, none of them could be decoded.
    ///
    /// # Errors
    /// As [`Lease::take`].
    pub fn take_to_receive(&mut self, bytes: usize) -> Result<(), BudgetError> {
        let taken = self.taken.saturating_add(bytes);
        let limit = self.budget.large_limit() / 4 * 3;
        self.reserve_within(taken.saturating_sub(self.reserved), limit)?;
        self.taken = taken;
        Ok(())
    }

    /// Takes or gives back what lets exactly `bytes` be taken.
    ///
    /// # Errors
    /// As [`Lease::take`].
    pub fn hold(&mut self, bytes: usize) -> Result<(), BudgetError> {
        self.give_back(self.taken.saturating_sub(bytes));
        self.take(bytes - self.taken)
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
        self.reserve_within(bytes, self.budget.large_limit())
    }

    /// Reserves so that large leases hold at most `large_limit` together.
    fn reserve_within(&mut self, bytes: usize, large_limit: usize) -> Result<(), BudgetError> {
        let budget = &*self.budget;
        let needed = self.reserved.saturating_add(bytes);
        let most = if needed > LARGE { large_limit } else { budget.limit };
        if needed > most {
            return Err(BudgetError::TooLarge { needed, limit: most });
        }
        let exhausted = |whose, limit| move |used| BudgetError::Exhausted { whose, needed: bytes, used, limit };
        add_within(&budget.used, bytes, budget.limit).map_err(exhausted("pushes", budget.limit))?;
        let large = large_share(needed) - large_share(self.reserved);
        if large > 0
            && let Err(used) = add_within(&budget.large, large, large_limit)
        {
            budget.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(exhausted("large pushes", large_limit)(used));
        }
        self.reserved = needed;
        Ok(())
    }

    fn release(&mut self, bytes: usize) {
        let left = self.reserved - bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.large.fetch_sub(large_share(self.reserved) - large_share(left), Ordering::Relaxed);
        self.reserved = left;
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
        let mut lease = budget.lease();
        lease.expect(40).unwrap();
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
        let mut lease = budget.lease();
        lease.expect(40).unwrap();
        lease.take(10).unwrap();
        lease.trim();
        assert_eq!((budget.used(), lease.reserved()), (10, 10));
    }

    #[test]
    fn an_exhausted_budget_is_503_and_an_impossible_need_is_413() {
        let budget = Budget::new(100);
        let mut held = budget.lease();
        held.take(60).unwrap();
        let full = budget.lease().take(41).unwrap_err();
        assert_eq!(full, BudgetError::Exhausted { whose: "pushes", needed: 41, used: 60, limit: 100 });
        assert_eq!(PushError::from(full).status, 503);
        assert_eq!(PushError::from(budget.lease().take(101).unwrap_err()).status, 413);
        assert_eq!(budget.used(), 60);
        drop(held);
        assert!(budget.lease().take(100).is_ok());
    }

    #[test]
    fn large_pushes_share_a_part_and_leave_the_rest_to_the_others() {
        const MIB: usize = 1 << 20;
        let budget = Budget::new(1 << 30);
        let mut first = budget.lease();
        first.take(MAX_LARGE - 56 * MIB).unwrap();
        let mut second = budget.lease();
        let used = MAX_LARGE - 56 * MIB;
        let full = BudgetError::Exhausted { whose: "large pushes", needed: 57 * MIB, used, limit: MAX_LARGE };
        assert_eq!(second.take(57 * MIB), Err(full));
        assert_eq!(budget.used(), used);
        let needed = MAX_LARGE + 1;
        assert_eq!(second.take(needed), Err(BudgetError::TooLarge { needed, limit: MAX_LARGE }));
        // A small one has room, and so has one that grows to be large within what is left.
        second.take(LARGE).unwrap();
        second.take(56 * MIB - LARGE).unwrap();
        // What was large and becomes small again is no more counted as large.
        second.give_back(56 * MIB - LARGE);
        first.take(56 * MIB).unwrap();
        drop((first, second));
        assert_eq!((budget.used(), budget.large.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn bodies_that_come_in_leave_room_to_decode_one() {
        let budget = Budget::new(1 << 30);
        let mut bodies = budget.lease();
        bodies.take_to_receive(MAX_LARGE / 4 * 3).unwrap();
        let mut body = budget.lease();
        assert!(matches!(body.take_to_receive(1 << 20), Err(BudgetError::Exhausted { whose: "large pushes", .. })));
        body.take_to_receive(LARGE).unwrap();
        body.take(MAX_LARGE / 4 - LARGE).unwrap();
    }

    #[test]
    fn no_more_is_expected_than_one_lease_may_hold() {
        let budget = Budget::new(1 << 30);
        let mut lease = budget.lease();
        lease.take(10 << 20).unwrap();
        lease.expect(300 << 20).unwrap();
        assert_eq!(lease.reserved(), MAX_LARGE);
        lease.trim();
        lease.hold(1000).unwrap();
        assert_eq!((lease.taken(), budget.used()), (1000, 1000));
        lease.hold(2000).unwrap();
        assert_eq!((lease.taken(), budget.used()), (2000, 2000));
    }

    #[test]
    fn a_growing_vector_never_holds_more_than_its_lease() {
        let budget = Budget::new(10_000);
        let mut lease = budget.lease();
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
