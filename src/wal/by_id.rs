//! Values by stream id.

use ahash::AHashMap;

/// Values by stream id. Ids are given one after the other, so most of those that live lie close to each other: in a list they are
/// found several times faster than in a map.
pub struct ById<T> {
    first: u64,
    near: Vec<Option<T>>,
    /// Those that lie too far from the others.
    far: AHashMap<u64, T>,
}

impl<T> ById<T> {
    /// For about these ids: the list has room for those that lie within a few times their number of the highest.
    pub fn for_ids(ids: impl Iterator<Item = u64> + Clone) -> Self {
        const SPREAD: u64 = 4;
        let (highest, count) = ids.clone().fold((0, 0), |(highest, count), id| (id.max(highest), count + 1));
        let first = highest.saturating_sub(SPREAD * count);
        let lowest = ids.filter(|id| *id >= first).min().unwrap_or(first);
        let len = if count == 0 { 0 } else { highest - lowest + 1 };
        Self { first: lowest, near: (0..len).map(|_| None).collect(), far: AHashMap::new() }
    }

    fn slot(&self, id: u64) -> Option<usize> {
        let at = usize::try_from(id.checked_sub(self.first)?).ok()?;
        (at < self.near.len()).then_some(at)
    }

    /// The value of an id.
    pub fn get(&self, id: u64) -> Option<&T> {
        match self.slot(id) {
            Some(at) => self.near.get(at)?.as_ref(),
            None => self.far.get(&id),
        }
    }

    /// The value of an id, to change it.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        match self.slot(id) {
            Some(at) => self.near.get_mut(at)?.as_mut(),
            None => self.far.get_mut(&id),
        }
    }

    /// Gives an id its value.
    pub fn insert(&mut self, id: u64, value: T) {
        match self.slot(id).and_then(|at| self.near.get_mut(at)) {
            Some(slot) => *slot = Some(value),
            None => drop(self.far.insert(id, value)),
        }
    }

    /// Takes an id's value away.
    pub fn remove(&mut self, id: u64) {
        match self.slot(id).and_then(|at| self.near.get_mut(at)) {
            Some(slot) => *slot = None,
            None => drop(self.far.remove(&id)),
        }
    }

    /// All values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.near.iter().flatten().chain(self.far.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_id_wherever_the_ids_lie() {
        let cases: [&[u64]; 6] =
            [&[], &[7], &[0, u64::MAX], &[5, 6, 9, 1 << 40], &[1, 1_000_000, 1_000_001, 1_000_010], &[u64::MAX, 3]];
        for ids in cases {
            let mut values = ById::for_ids(ids.iter().copied());
            assert!(values.near.len() as u64 <= 4 * ids.len() as u64 + 1, "{ids:?}: {} places", values.near.len());
            ids.iter().for_each(|id| values.insert(*id, *id));
            assert!(ids.iter().all(|id| values.get(*id) == Some(id)), "{ids:?}");
            assert_eq!(values.get(2), None);
            let mut all: Vec<u64> = values.iter().copied().collect();
            all.sort_unstable();
            let mut sorted = ids.to_vec();
            sorted.sort_unstable();
            assert_eq!(all, sorted);
            ids.iter().for_each(|id| *values.get_mut(*id).unwrap() = !id);
            assert!(ids.iter().all(|id| values.get(*id) == Some(&!id)), "{ids:?}");
            assert_eq!(values.get_mut(2), None);
            ids.iter().for_each(|id| values.remove(*id));
            assert_eq!(values.iter().count(), 0);
        }
    }
}
