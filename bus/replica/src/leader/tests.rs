//! A leader's rules, one by one.

use std::sync::LazyLock;

use super::*;

const LAG: Duration = Duration::from_secs(3);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

static REPLICAS: LazyLock<BTreeMap<NodeId, u32>> = LazyLock::new(|| [(1, 0), (2, 0), (3, 0)].into());

fn isr<'a>(members: &'a [NodeId], min: u32, partition_epoch: u32) -> Isr<'a> {
    Isr { members, replicas: &REPLICAS, partition_epoch, min, live: members.len() }
}

fn leader<T>(members: &[NodeId], min: u32, end: Offset, high_watermark: Offset) -> Leader<T> {
    let mut leader = Leader::new(1, 0, isr(members, min, 0), (end, end), high_watermark, at(0));
    for node in [2, 3] {
        assert!(leader.follower_started((node, 7), node, end, at(0)));
    }
    leader
}

#[test]
fn acks_all_waits_for_the_slowest_in_sync_replica() {
    let mut leader = leader(&[1, 2, 3], 2, 0, 0);
    leader.appended(10, Acks::All, "a", at(0));
    assert!(leader.stored(10).is_empty());
    assert!(leader.follower_stored((2, 7), 2, 10, at(0)).is_empty());
    assert!(leader.follower_stored((3, 6), 3, 10, at(0)).is_empty(), "an earlier life of it counts nothing");
    assert_eq!(leader.follower_stored((3, 7), 3, 10, at(0)), ["a"]);
    assert_eq!(leader.high_watermark(), 10);
}

#[test]
fn below_the_minimum_nothing_is_admitted_or_committed() {
    let mut leader = leader(&[1, 2], 2, 5, 5);
    leader.appended(6, Acks::All, (), at(0));
    assert!(leader.stored(6).is_empty());
    assert!(leader.reconfigure(isr(&[1], 2, 1), at(0)).is_empty());
    assert_eq!(leader.high_watermark(), 5);
    assert_eq!(leader.admit(Acks::All, at(0)), Err(NotEnoughReplicas { in_sync: 1, wanted: 2 }));
    assert_eq!(leader.admit(Acks::Leader, at(0)), Ok(()));
    assert_eq!(leader.reconfigure(isr(&[1], 1, 2), at(0)).len(), 1);
}

#[test]
fn the_isr_does_not_shrink_below_the_minimum_and_one_that_is_down_does_not_count() {
    let mut leader = leader(&[1, 2], 2, 8, 8);
    leader.appended(9, Acks::All, 'x', at(0));
    leader.stored(9);
    assert_eq!(leader.propose(at(99), LAG), None);
    leader.reconfigure(Isr { live: 1, ..isr(&[1, 2], 2, 0) }, at(99));
    assert_eq!(leader.admit(Acks::All, at(99)), Err(NotEnoughReplicas { in_sync: 1, wanted: 2 }));
    assert_eq!(leader.follower_stored((2, 7), 2, 9, at(99)), ['x']);
    leader.reconfigure(isr(&[1, 2], 2, 0), at(99));
    leader.follower_gone((2, 7), 2, at(100));
    assert_eq!(leader.admit(Acks::All, at(102)), Ok(()));
    assert!(leader.admit(Acks::All, at(104)).is_err(), "it is gone for too long");
}

#[test]
fn one_that_is_late_leaves_and_one_that_has_caught_up_joins() {
    let mut leader = leader(&[1, 2], 1, 8, 8);
    leader.follower_stored((3, 7), 3, 8, at(0));
    assert_eq!(leader.propose(at(0), LAG).unwrap().isr, [(1, 0), (2, 0), (3, 7)]);
    leader.appended(9, Acks::All, 'x', at(0));
    leader.stored(9);
    assert!(leader.follower_stored((2, 7), 2, 9, at(1)).is_empty(), "the one that is to join counts already");
    assert_eq!(leader.propose(at(9), LAG), None, "one change at a time");
    assert!(leader.reconfigure(isr(&[1, 2, 3], 1, 1), at(1)).is_empty());
    assert_eq!(leader.propose(at(3), LAG), None, "late for less than the limit");
    assert_eq!(leader.propose(at(5), LAG).unwrap().isr, [(1, 0), (2, 0)]);
    assert!(leader.stored(9).is_empty(), "the one that is to leave counts still");
    assert_eq!(leader.reconfigure(isr(&[1, 2], 1, 2), at(5)), ['x']);
}

#[test]
fn one_that_lacks_what_earlier_leaders_left_does_not_join() {
    let mut leader = leader::<()>(&[1, 2], 1, 8, 3);
    leader.follower_stored((3, 7), 3, 5, at(0));
    assert!(!leader.is_settled());
    assert_eq!(leader.propose(at(0), LAG), None, "it has all that is committed, not all that may be");
    leader.follower_stored((2, 7), 2, 8, at(0));
    assert!(leader.is_settled());
    leader.follower_stored((3, 7), 3, 8, at(0));
    assert!(leader.propose(at(0), LAG).is_some());
}

#[test]
fn a_refused_change_frees_the_high_watermark() {
    let mut leader = leader(&[1], 1, 8, 8);
    leader.follower_stored((2, 7), 2, 8, at(0));
    assert_eq!(leader.propose(at(0), LAG).unwrap().isr, [(1, 0), (2, 7)]);
    leader.appended(9, Acks::All, 'x', at(0));
    assert!(leader.stored(9).is_empty());
    assert!(leader.proposal_refused(4, at(0)).is_empty(), "not the one under way");
    assert_eq!(leader.proposal_refused(0, at(0)), ['x']);
    assert_eq!(leader.propose(at(0), LAG), None, "not at once");
}

#[test]
fn a_batch_that_comes_again_is_answered_when_the_first_is_committed() {
    let mut leader = leader(&[1, 2], 1, 0, 0);
    leader.appended(5, Acks::All, "first", at(0));
    leader.appended(9, Acks::All, "second", at(0));
    leader.repeated(5, Acks::All, "again");
    assert!(leader.stored(9).is_empty());
    assert_eq!(leader.follower_stored((2, 7), 2, 5, at(0)), ["first"]);
    assert_eq!(leader.follower_stored((2, 7), 2, 9, at(0)), ["second", "again"]);
}

#[test]
fn one_replica_commits_what_it_stored_and_abandons_the_rest() {
    let replicas = [(7, 0)].into();
    let one = Isr { members: &[7], replicas: &replicas, partition_epoch: 0, min: 1, live: 1 };
    let mut leader = Leader::new(7, 0, one, (0, 0), 0, at(0));
    leader.appended(1, Acks::All, 1, at(0));
    leader.appended(2, Acks::Leader, 2, at(0));
    assert_eq!(leader.stored(1), [1]);
    assert_eq!(leader.abandon(), [2]);
    assert_eq!(leader.high_watermark(), 1);
}

#[test]
fn one_that_was_idle_is_not_late_with_the_first_record() {
    let mut leader = leader(&[1, 2, 3], 2, 8, 8);
    for node in [2, 3] {
        leader.follower_stored((node, 7), node, 8, at(0));
    }
    leader.appended(9, Acks::All, 'x', at(100));
    leader.stored(9);
    assert_eq!(leader.propose(at(100), LAG), None);
    assert_eq!(leader.propose(at(104), LAG).unwrap().isr.len(), 2, "now it is");
}

#[test]
fn who_waits_for_the_leader_alone_does_not_wait_behind_others() {
    let mut leader = leader(&[1, 2], 1, 0, 0);
    leader.appended(1, Acks::All, "all", at(0));
    leader.appended(2, Acks::Leader, "leader", at(0));
    assert_eq!(leader.stored(2), ["leader"]);
    assert_eq!(leader.follower_stored((2, 7), 2, 2, at(0)), ["all"]);
}

#[test]
fn one_that_was_given_up_and_came_back_is_nobody_that_is_known() {
    let mut leader = leader::<()>(&[1, 2], 1, 8, 8);
    leader.follower_stored((3, 7), 3, 8, at(0));
    // It was away and is back, as seen from metadata; here the one is heard with the other.
    let back = [(1, 0), (2, 0), (3, 2)].into();
    leader.reconfigure(Isr { replicas: &back, ..isr(&[1, 2], 1, 2) }, at(0));
    assert_eq!(leader.propose(at(0), LAG), None, "its log may be empty by now");
    leader.follower_stored((3, 7), 3, 8, at(0));
    assert_eq!(leader.propose(at(0), LAG), None, "the stream of its earlier stay says nothing of this one");
    assert!(leader.follower_started((3, 7), 4, 0, at(0)));
    leader.follower_stored((3, 7), 3, 8, at(0));
    assert_eq!(leader.propose(at(0), LAG), None, "nor does it late");
    leader.follower_stored((3, 7), 4, 8, at(0));
    assert_eq!(leader.propose(at(0), LAG).unwrap().isr, [(1, 0), (2, 0), (3, 7)]);
    leader.reconfigure(Isr { replicas: &back, ..isr(&[1, 2, 3], 1, 3) }, at(0));
    assert_eq!(leader.followers(), [(2, 8), (3, 8)], "another change leaves it what it has");
}
