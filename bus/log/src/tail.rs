//! The hot tail: a log's newest batches, in memory, for readers that keep up.
//!
//! ```text
//!   chunk chunk chunk chunk        a chunk: up to 64 append groups or 512 KiB
//!   <- whole chunks go             groups are set in slots, in place: a reader needs no lock, the writer
//!      when there are too many     no copy, and the list of chunks changes only when a chunk is full
//! ```
//!
//! The tail is one stretch of offsets that ends at the log's end, or it is empty.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bus_protocol::Offset;
use bytes::Bytes;

const CHUNK_GROUPS: usize = 64;
const CHUNK_BYTES: usize = 512 << 10;
/// What a group costs beside its bytes: its slot and the allocation's own.
const GROUP_OVERHEAD: usize = 96;

/// The memory that the hot tails of all logs on a disk share.
#[derive(Debug)]
pub struct TailBudget {
    limit: usize,
    used: AtomicUsize,
}

impl TailBudget {
    /// `limit` bytes for all.
    pub fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0) }
    }

    /// Bytes that tails hold now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether three quarters are used: time for idle partitions to give their tails back
    /// ([`crate::Log::trim_tail`]).
    pub fn is_tight(&self) -> bool {
        self.used() > self.limit / 4 * 3
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One append group: whole batches end to end.
#[derive(Debug)]
struct Group {
    base_offset: Offset,
    next_offset: Offset,
    bytes: Bytes,
}

#[derive(Debug)]
pub(crate) struct Chunk {
    base_offset: Offset,
    groups: Vec<OnceLock<Group>>,
}

/// The tail as readers hold it.
pub(crate) type TailView = Arc<[Arc<Chunk>]>;

/// The tail as its writer holds it.
pub(crate) struct Tail {
    chunks: VecDeque<(Arc<Chunk>, usize)>,
    /// Groups set in the last chunk.
    filled: usize,
    bytes: usize,
    limit: usize,
    budget: Arc<TailBudget>,
}

impl Tail {
    pub(crate) fn new(limit: usize, budget: Arc<TailBudget>) -> Self {
        Self { chunks: VecDeque::new(), filled: 0, bytes: 0, limit, budget }
    }

    /// Adds a group, which continues the tail; older ones go to make room, and if there is none, all go.
    /// Whether the list of chunks changed, so that [`Tail::view`] must be published.
    #[must_use]
    pub(crate) fn push(&mut self, base_offset: Offset, next_offset: Offset, bytes: Bytes) -> bool {
        let cost = bytes.len() + GROUP_OVERHEAD;
        let mut changed = false;
        while self.bytes + cost > self.limit && self.drop_oldest() {
            changed = true;
        }
        let mut granted = self.bytes + cost <= self.limit && self.budget.take(cost);
        while !granted && self.drop_oldest() {
            changed = true;
            granted = self.bytes + cost <= self.limit && self.budget.take(cost);
        }
        if !granted {
            return changed;
        }
        self.bytes += cost;
        let full = self.filled == CHUNK_GROUPS;
        if full || self.chunks.back().is_none_or(|(_, held)| *held >= CHUNK_BYTES) {
            let groups = (0..CHUNK_GROUPS).map(|_| OnceLock::new()).collect();
            self.chunks.push_back((Arc::new(Chunk { base_offset, groups }), 0));
            self.filled = 0;
            changed = true;
        }
        if let Some((chunk, held)) = self.chunks.back_mut() {
            let fresh = chunk.groups[self.filled].set(Group { base_offset, next_offset, bytes }).is_ok();
            assert!(fresh, "two writers of one tail");
            *held += cost;
            self.filled += 1;
        }
        changed
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((_, held)) = self.chunks.pop_front() else { return false };
        self.bytes -= held;
        self.budget.give_back(held);
        true
    }

    /// Gives all memory back.
    pub(crate) fn clear(&mut self) {
        while self.drop_oldest() {}
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn view(&self) -> TailView {
        self.chunks.iter().map(|(chunk, _)| chunk.clone()).collect()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The groups from the one that holds `from` on; `None` if the tail begins after it.
pub(crate) fn groups_from(tail: &TailView, from: Offset) -> Option<impl Iterator<Item = &Bytes> + '_> {
    let first = tail.partition_point(|chunk| chunk.base_offset <= from).checked_sub(1)?;
    let groups = tail[first..].iter().flat_map(|chunk| chunk.groups.iter().map_while(OnceLock::get));
    let mut groups = groups.skip_while(move |group| group.next_offset <= from).peekable();
    // A group that begins later than asked would be a hole.
    groups.peek().is_some_and(|group| group.base_offset <= from).then(|| groups.map(|group| &group.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(view: &TailView, from: Offset) -> Option<usize> {
        groups_from(view, from).map(Iterator::count)
    }

    #[test]
    fn holds_one_stretch_within_its_limit() {
        let budget = Arc::new(TailBudget::new(1 << 20));
        let mut tail = Tail::new(64 << 10, budget.clone());
        for n in 0..1_000 {
            let _ = tail.push(n, n + 1, Bytes::from(vec![0; 1_000]));
            assert!(budget.used() <= 64 << 10);
        }
        let view = tail.view();
        let first = view[0].base_offset;
        assert!(first > 900);
        assert_eq!(offsets(&view, first), Some((1_000 - first) as usize));
        assert_eq!(offsets(&view, 999), Some(1));
        assert_eq!(offsets(&view, first - 1), None);
        assert_eq!(offsets(&view, 1_000), None);
        drop(tail);
        assert_eq!(budget.used(), 0);
        assert_eq!(offsets(&view, 999), Some(1), "a reader keeps what it holds");
    }

    #[test]
    fn without_budget_there_is_no_tail() {
        let budget = Arc::new(TailBudget::new(2_000));
        let mut first = Tail::new(1 << 20, budget.clone());
        let mut second = Tail::new(1 << 20, budget.clone());
        assert!(first.push(0, 1, Bytes::from(vec![0; 1_500])));
        assert!(!second.push(0, 1, Bytes::from(vec![0; 1_500])));
        assert!(second.is_empty() && budget.is_tight());
        first.clear();
        assert!(second.push(1, 2, Bytes::from(vec![0; 1_500])));
    }
}
