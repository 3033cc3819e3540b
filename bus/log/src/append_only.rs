//! A list that one writer appends to while readers read it, with no lock and no copy of what is there.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;

/// Slots in a chunk: a list that is used at all takes this many.
const CHUNK: usize = 128;

type Chunk<T> = Arc<[OnceLock<T>]>;

/// See the module. Only one task calls [`AppendOnly::push`]; anybody may read.
pub(crate) struct AppendOnly<T> {
    chunks: ArcSwap<Vec<Chunk<T>>>,
    length: AtomicUsize,
}

/// The list as it was at one moment.
pub(crate) struct Snapshot<T> {
    chunks: Arc<Vec<Chunk<T>>>,
    length: usize,
}

impl<T: Copy> AppendOnly<T> {
    pub(crate) fn new(items: impl IntoIterator<Item = T>) -> Self {
        let list = Self { chunks: ArcSwap::from_pointee(Vec::new()), length: AtomicUsize::new(0) };
        items.into_iter().for_each(|item| list.push(item));
        list
    }

    pub(crate) fn push(&self, item: T) {
        let at = self.length.load(Ordering::Relaxed);
        let mut chunks = self.chunks.load();
        if at / CHUNK == chunks.len() {
            let mut longer = chunks.as_ref().clone();
            longer.push((0..CHUNK).map(|_| OnceLock::new()).collect());
            self.chunks.store(Arc::new(longer));
            chunks = self.chunks.load();
        }
        let fresh = chunks[at / CHUNK][at % CHUNK].set(item).is_ok();
        assert!(fresh, "two writers of one list");
        self.length.store(at + 1, Ordering::Release);
    }

    pub(crate) fn last(&self) -> Option<T> {
        let snapshot = self.snapshot();
        snapshot.length.checked_sub(1).and_then(|at| snapshot.get(at))
    }

    pub(crate) fn snapshot(&self) -> Snapshot<T> {
        // The length first: the chunks that hold so many are there by then.
        let length = self.length.load(Ordering::Acquire);
        Snapshot { chunks: self.chunks.load_full(), length }
    }
}

impl<T: Copy> Snapshot<T> {
    pub(crate) fn get(&self, at: usize) -> Option<T> {
        self.chunks.get(at / CHUNK)?[at % CHUNK].get().copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        (0..self.length).filter_map(|at| self.get(at))
    }

    /// The last item for which `holds`; it holds for a prefix of the list.
    pub(crate) fn last_where(&self, holds: impl Fn(&T) -> bool) -> Option<T> {
        let (mut low, mut high) = (0, self.length);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle).is_some_and(|item| holds(&item)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.checked_sub(1).and_then(|at| self.get(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_pushed_and_finds_it() {
        let list = AppendOnly::new(0..1_000u32);
        assert_eq!(list.last(), Some(999));
        let before = list.snapshot();
        list.push(1_000);
        assert_eq!(before.iter().count(), 1_000);
        for wanted in [0, 1, 127, 128, 500, 999] {
            assert_eq!(before.last_where(|item| *item <= wanted), Some(wanted));
        }
        assert_eq!(before.last_where(|_| false), None);
        assert_eq!(AppendOnly::<u32>::new([]).last(), None);
    }
}
