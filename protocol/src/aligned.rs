//! Memory that direct I/O takes.

/// Its alignment and that of its length, in bytes: what every storage that can
/// be used is content with.
pub(crate) const BLOCK: usize = 4096;

/// Zeroes at first.
#[derive(Debug)]
pub(crate) struct Aligned {
    space: Vec<u8>,
    length: usize,
}

impl Aligned {
    /// This many blocks.
    pub(crate) fn new(blocks: usize) -> Self {
        let length = blocks.saturating_mul(BLOCK);
        Self {
            space: vec![0; length.saturating_add(BLOCK)],
            length,
        }
    }

    /// All of it.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let begin = self.space.as_ptr().align_offset(BLOCK);
        let end = begin.saturating_add(self.length);
        self.space.get_mut(begin..end).unwrap_or_default()
    }
}
