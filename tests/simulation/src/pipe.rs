//! One direction of a stream: ordered, reliable, until it breaks.

use std::collections::VecDeque;

use crate::clock::Time;
use crate::random::Random;

/// What is on its way, oldest first; the world schedules one arrival for each.
#[derive(Debug)]
pub(crate) struct Pipe<M> {
    under_way: VecDeque<M>,
    last: Time,
    closed: bool,
    /// The connection is gone: nothing follows on what was kept, but the news of it.
    torn: bool,
}

impl<M> Default for Pipe<M> {
    fn default() -> Self {
        Self { under_way: VecDeque::new(), last: 0, closed: false, torn: false }
    }
}

impl<M> Pipe<M> {
    /// Sends, unless the sender's side is closed; gives when it arrives at the earliest.
    pub(crate) fn send(&mut self, message: M, now: Time, delay: Time) -> Option<Time> {
        if self.closed || self.torn {
            return None;
        }
        Some(self.push(message, now, delay))
    }

    fn push(&mut self, message: M, now: Time, delay: Time) -> Time {
        self.under_way.push_back(message);
        self.last = self.last.max(now + delay);
        self.last
    }

    /// Sends the last message.
    pub(crate) fn finish(&mut self, message: M, now: Time, delay: Time) -> Option<Time> {
        let arrives = (!self.closed).then(|| self.push(message, now, delay));
        self.closed = true;
        arrives
    }

    /// The connection broke: of what is under way a part arrives, from the first on.
    pub(crate) fn tear(&mut self, random: &mut Random) {
        let kept = random.index(self.under_way.len() + 1);
        self.under_way.truncate(kept);
        (self.closed, self.torn) = (false, true);
    }

    pub(crate) fn receive(&mut self) -> Option<M> {
        self.under_way.pop_front()
    }

    pub(crate) fn front(&self) -> Option<&M> {
        self.under_way.front()
    }

    pub(crate) fn len(&self) -> usize {
        self.under_way.len()
    }
}
