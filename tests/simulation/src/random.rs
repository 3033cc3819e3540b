//! Chance with a seed.

use std::ops::Range;

/// splitmix64 (Steele, Lea, Flood 2014): the same seed, the same numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in the range, which is not empty.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        assert!(!range.is_empty(), "there is no number in {range:?}");
        range.start + self.next() % (range.end - range.start)
    }

    /// A place in a list of `len` things, which has one.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.within(0..len as u64) as usize
    }

    /// True this often in a thousand times.
    pub(crate) fn permille(&mut self, often: u64) -> bool {
        self.next() % 1_000 < often
    }

    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }
}
