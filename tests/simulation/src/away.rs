//! A replica is given up and comes back to the same node, maybe before all have heard that it was gone.

use bus_metadata::{Command, Partition};
use bus_protocol::NodeId;

use crate::clock::{MS, SECOND, Time};
use crate::invariants::Place;
use crate::world::{Event, Mend, World};

impl World {
    fn partition(&self, place: Place) -> Option<&Partition> {
        self.control.image().topic_by_id(place.0)?.partition(place.1).map(|partition| &**partition)
    }

    /// Takes a follower's replica away, to give it back soon. Its leader may hear of the one with the other, as it skips
    /// what lies between, and late of all that the follower had under way, its stream's end with it.
    pub(crate) fn send_away(&mut self, place: Place) {
        let Some(partition) = self.partition(place).filter(|partition| partition.target.is_none()) else {
            return;
        };
        let Some(leader) = partition.leader else { return };
        let replicas = partition.replicas.clone();
        let followers: Vec<NodeId> = replicas.iter().copied().filter(|node| *node != leader).collect();
        if followers.is_empty() {
            return;
        }
        let away = *self.random.pick(&followers);
        let left = replicas.iter().copied().filter(|node| *node != away).collect();
        let leave = Command::Reassign { changes: vec![(place.0, place.1, left)], throttle: None };
        if self.apply(leave).1.is_err() {
            return;
        }
        if self.random.permille(700) {
            let (node, span) = (leader as usize - 1, self.random.within(50..2_000) * MS);
            self.nodes[node].deaf = self.nodes[node].deaf.max(self.now + span);
            self.schedule(span, Event::Mend(Mend::Hearing(node)));
        }
        if self.random.permille(700) {
            let until = self.now + self.random.within(50..2_000) * MS;
            let mine = self.replications.values_mut().filter(|stream| stream.place == place);
            let of_away = mine.filter(|stream| stream.follower.0 == away as usize - 1);
            of_away.for_each(|stream| stream.held = until);
        }
        self.bring_back_later(place, replicas, self.now + 3 * SECOND);
    }

    fn bring_back_later(&mut self, place: Place, replicas: Vec<NodeId>, until: Time) {
        let delay = self.random.within(5..150) * MS;
        self.schedule(delay, Event::BringBack { place, replicas, until });
    }

    /// Gives the replica back once it is gone; or at `until`, whatever has become of it.
    pub(crate) fn bring_back(&mut self, place: Place, replicas: Vec<NodeId>, until: Time) {
        let waits = self.partition(place).is_some_and(|partition| partition.target.is_some());
        let back = Command::Reassign { changes: vec![(place.0, place.1, replicas.clone())], throttle: None };
        if self.now < until && (waits || self.apply(back).1.is_err()) {
            self.bring_back_later(place, replicas, until);
        }
    }
}
