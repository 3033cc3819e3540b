//! Readers: they follow each partition from its start, asking whom they take for the leader.

use bus_protocol::batch::split;
use bus_protocol::{Epoch, Offset};

use crate::clock::MS;
use crate::invariants::{Place, readers_below_high_watermark};
use crate::mutation::Mutation;
use crate::world::{Event, World};

/// Where a reader is in a partition, and what it was told last of leader epoch and high watermark.
#[derive(Clone, Copy, Debug)]
struct Position {
    place: Place,
    next: Offset,
    told: (Epoch, Offset),
}

/// One that reads all partitions.
#[derive(Debug)]
pub(crate) struct Reader {
    positions: Vec<Position>,
}

impl Reader {
    pub(crate) fn new(places: &[Place]) -> Self {
        let positions = places.iter().map(|place| Position { place: *place, next: 0, told: (-1, 0) });
        Self { positions: positions.collect() }
    }
}

impl World {
    pub(crate) fn read(&mut self, reader: usize) {
        for position in 0..self.readers[reader].positions.len() {
            self.read_on(reader, position);
        }
        let delay = self.random.within(10..200) * MS;
        self.schedule(delay, Event::Read(reader));
    }

    fn read_on(&mut self, reader: usize, number: usize) {
        let Position { place, next, told } = self.readers[reader].positions[number];
        let Some(broker) = self.ask_for_leader(place).filter(|broker| self.awake(*broker)) else { return };
        let Some(hosted) = self.nodes[broker].replicas.get(&place) else { return };
        let settled = hosted.replica.is_settled() || self.mutation == Some(Mutation::ServesUnsettled);
        if !hosted.replica.leads() || !settled {
            return;
        }
        let log = hosted.replica.log();
        let below = match self.mutation {
            Some(Mutation::ReaderGetsLogEnd) => log.log_end(),
            _ => hosted.replica.high_watermark(),
        };
        let now = (hosted.replica.role().epoch, hosted.replica.high_watermark());
        let from = next.max(log.log_start());
        let read = log.reader().read(from, 16 << 10, below);
        self.uphold(readers_below_high_watermark::check_told(place, told, now));
        if now.0 >= told.0 {
            self.readers[reader].positions[number].told = now;
        }
        let read = match read {
            Ok(read) => read,
            Err(error @ bus_log::Error::Damaged { .. }) => {
                return self.go_offline(broker, place, &error.to_string());
            }
            // It reads ahead of what a leader of an older epoch knows.
            Err(_) => return,
        };
        let batches: Vec<_> = read.chunks.into_iter().flat_map(split).filter_map(Result::ok).collect();
        let ledger = self.watch.ledgers.entry(place).or_default();
        let check = readers_below_high_watermark::check(place, ledger, &batches);
        self.uphold(check);
        self.readers[reader].positions[number].next = read.next_offset;
    }
}
