//! Choices made of bytes: what a property builds before it decodes. When the bytes are used up, all choices are 0.

pub struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// At most this many of the next bytes.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(n.min(self.rest.len()));
        self.rest = rest;
        head
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number of two bytes.
    pub fn short(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    /// Mostly a small number, sometimes any.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            255 => {
                let mut eight = [0; 8];
                let bytes = self.bytes(8);
                eight[..bytes.len()].copy_from_slice(bytes);
                u64::from_le_bytes(eight)
            }
            small => small.into(),
        }
    }

    /// Bytes with their number ahead.
    pub fn prefixed(&mut self) -> &'a [u8] {
        let n = usize::from(self.byte());
        self.bytes(n)
    }

    /// As [`Choices::prefixed`], up to 64 KiB.
    pub fn long(&mut self) -> &'a [u8] {
        let n = self.short();
        self.bytes(n)
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}
