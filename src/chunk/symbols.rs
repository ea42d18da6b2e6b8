use std::sync::LazyLock;

/// Tables up to this size are searched one by one; most streams only ever see `detected_level` and its values.
const SEARCHED: usize = 8;
/// A free slot of the hash table.
const FREE: u32 = u32::MAX;

/// One key for all tables of the process: pushed strings must not be able to collide on purpose.
static HASHER: LazyLock<ahash::RandomState> = LazyLock::new(ahash::RandomState::new);

/// An append-only table of strings with dense ids: names and values of structured metadata.
///
/// The strings are UTF-8 wherever they come from a push; the table does not depend on it. It holds at most 4 GiB.
#[derive(Clone, Default)]
pub struct Symbols {
    bytes: Vec<u8>,
    /// End of each string in `bytes`.
    ends: Vec<u32>,
    /// Open addressing with linear probing, at most half full; empty for small tables.
    table: Vec<u32>,
}

impl Symbols {
    /// An empty table, which holds no memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty table with room for so many strings of so many bytes together.
    pub fn with_capacity(strings: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(strings), table: Vec::new() }
    }

    /// The id of a string; appends it if it is new.
    ///
    /// # Panics
    /// As [`Symbols::push`].
    pub fn intern(&mut self, symbol: &[u8]) -> u32 {
        match self.find(symbol) {
            Some(id) => id,
            None => self.push(symbol),
        }
    }

    /// Appends a string at the next id without looking for an equal one, as a stored table lists them.
    ///
    /// # Panics
    /// The table would hold more than 4 GiB: heads and chunks are limited to a fraction of that.
    pub fn push(&mut self, symbol: &[u8]) -> u32 {
        let end = u32::try_from(self.bytes.len() + symbol.len()).expect("a symbol table holds at most 4 GiB");
        let id = self.ends.len() as u32;
        self.bytes.extend_from_slice(symbol);
        self.ends.push(end);
        self.index(id);
        id
    }

    /// The id of a string that is in the table.
    pub fn find(&self, symbol: &[u8]) -> Option<u32> {
        if self.table.is_empty() {
            return (0..self.ends.len() as u32).find(|id| self.get(*id) == Some(symbol));
        }
        let mut slot = self.home(symbol);
        loop {
            match self.table.get(slot) {
                None | Some(&FREE) => return None,
                Some(id) if self.get(*id) == Some(symbol) => return Some(*id),
                Some(_) => slot = (slot + 1) & (self.table.len() - 1),
            }
        }
    }

    /// The string of an id.
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = id.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.bytes.get(start as usize..end as usize)
    }

    /// All strings in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len() as u32).filter_map(|id| self.get(id))
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Is there no string?
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all strings together.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Heap bytes held, unused capacity included.
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + (self.ends.capacity() + self.table.capacity()) * size_of::<u32>()
    }

    /// Forgets all strings but keeps the memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.table.clear();
    }

    /// The slot at which the search for a string begins. The table is not empty.
    fn home(&self, symbol: &[u8]) -> usize {
        HASHER.hash_one(symbol) as usize & (self.table.len() - 1)
    }

    /// Puts the newest id into the hash table, which is built or doubled first where that is due.
    fn index(&mut self, id: u32) {
        if self.ends.len() <= SEARCHED {
            return;
        }
        if self.ends.len() * 2 <= self.table.len() {
            return self.place(id);
        }
        self.table.clear();
        self.table.resize((self.ends.len() * 2).next_power_of_two(), FREE);
        for id in 0..self.ends.len() as u32 {
            self.place(id);
        }
    }

    fn place(&mut self, id: u32) {
        let mut slot = self.home(self.get(id).unwrap_or_default());
        let mask = self.table.len() - 1;
        // At most half of the slots are taken, so the loop ends.
        while self.table.get(slot).is_some_and(|taken| *taken != FREE) {
            slot = (slot + 1) & mask;
        }
        if let Some(free) = self.table.get_mut(slot) {
            *free = id;
        }
    }
}

impl std::fmt::Debug for Symbols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(String::from_utf8_lossy)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_dense_and_stable_past_the_growth_of_the_table() {
        let mut s = Symbols::new();
        assert_eq!(s.memory(), 0);
        let names: Vec<String> = (0..1000).map(|i| format!("symbol {i}")).collect();
        for (i, name) in names.iter().enumerate() {
            assert_eq!(s.intern(name.as_bytes()), i as u32);
            assert_eq!(s.intern(names[i / 2].as_bytes()), (i / 2) as u32);
        }
        assert_eq!(s.len(), 1000);
        assert_eq!(s.get(999), Some(&b"symbol 999"[..]));
        assert_eq!(s.get(1000), None);
        assert_eq!(s.find(b"symbol 7"), Some(7));
        assert_eq!(s.find(b"absent"), None);
        assert!(s.iter().eq(names.iter().map(String::as_bytes)));
        assert_eq!(s.size(), names.iter().map(String::len).sum::<usize>());
    }

    #[test]
    fn the_empty_string_is_a_symbol() {
        let mut s = Symbols::new();
        assert_eq!(s.find(b""), None);
        assert_eq!((s.intern(b""), s.intern(b"a"), s.intern(b"")), (0, 1, 0));
        assert_eq!(s.get(0), Some(&b""[..]));
    }

    #[test]
    fn push_keeps_the_ids_of_a_stored_table() {
        let mut s = Symbols::new();
        assert_eq!((s.push(b"x"), s.push(b"x"), s.push(b"y")), (0, 1, 2));
        assert_eq!(s.intern(b"x"), 0);
        s.clear();
        assert!(s.is_empty());
        assert_eq!(s.intern(b"y"), 0);
    }
}
