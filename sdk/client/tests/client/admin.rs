//! Administration of several brokers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::broker::{Broker, TOPIC};
use crate::soon;
use bus_client::{Error, Position, Record};
use bus_protocol::request::Request;
use bus_protocol::{ErrorCode, TopicName};

fn topic() -> TopicName {
    TopicName::new(TOPIC).unwrap()
}

#[tokio::test]
async fn what_one_broker_refuses_for_now_another_does() {
    let brokers = Broker::cluster(3, 1);
    let admin = brokers[0].client().await.admin();
    soon(admin.cluster()).await.unwrap();
    for code in [ErrorCode::ShuttingDown, ErrorCode::Busy, ErrorCode::NotLeader] {
        *brokers[0].state.refuses.lock().unwrap() = Some(code);
        soon(admin.cluster()).await.unwrap();
        soon(admin.drain_broker(2, true)).await.unwrap();
        assert_eq!(
            soon(admin.reassign(&topic(), vec![(0, vec![2, 3])], Some(9))).await.unwrap().partitions,
            3
        );
        assert_eq!(soon(admin.rebalance(None)).await.unwrap().partitions, 3);
        soon(admin.commit_offsets("g", vec![(topic(), 0, 7)])).await.unwrap();
        let changes = std::mem::take(&mut *brokers[0].state.world.changes.lock().unwrap());
        assert!(changes.iter().all(|(node, _)| *node != 1), "{changes:?}");
        let asked: Vec<_> = changes.into_iter().map(|(_, request)| request).collect();
        let assignments = vec![(0, vec![2, 3])];
        assert_eq!(
            asked[..3],
            [
                Request::DrainBroker { node: 2, drained: true },
                Request::Reassign { topic: topic(), assignments, throttle: Some(9) },
                Request::Rebalance { throttle: None },
            ]
        );
    }
    // What is refused for good is so by the first that is asked.
    let error = soon(admin.delete_topic(&topic())).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest));
}

#[tokio::test]
async fn without_a_majority_nothing_is_asked_for_and_that_is_why_things_fail() {
    let mut brokers = Broker::cluster(3, 2);
    brokers[0].state.world.elect(1, 2);
    brokers[0].store(0, &["a", "b"], 0);
    let client = brokers[0].builder().request_timeout(Duration::from_secs(1)).connect().await.unwrap();
    let admin = client.admin();
    assert_eq!(*client.majority().borrow(), None);
    brokers[1].freeze();
    brokers[2].freeze();
    *brokers[0].state.world.silent.lock().unwrap() = vec![2, 3];
    let error = soon(admin.drain_broker(2, true)).await.unwrap_err();
    assert!(matches!(&error, Error::NoMajority { missing, .. } if missing.node == 1), "{error}");
    let said = error.to_string();
    assert!(said.contains("most of the 3 voters behind it for 5 s; voters 2 at 127.0.0.1:"), "{said}");
    assert!(said.ends_with("(nothing was changed)"), "{said}");
    assert!(brokers[0].state.world.changes.lock().unwrap().is_empty());
    assert_eq!(soon(client.majority().wait_for(Option::is_some)).await.unwrap().clone().unwrap().voters, 3);
    // What needs none goes on; and whose leader is gone is left out.
    soon(admin.commit_offsets("g", vec![(topic(), 0, 7)])).await.unwrap();
    let described = soon(admin.describe_partitions(&topic())).await.unwrap();
    assert_eq!(described.iter().map(|it| (it.partition, it.log_end)).collect::<Vec<_>>(), [(0, 2)]);
    let error = soon(admin.list_offsets(&topic(), &[1], Position::End)).await.unwrap_err();
    assert!(matches!(error, Error::NoMajority { .. }), "{error}");
    let producer = client.producer().delivery_timeout(Duration::from_secs(1)).build().await.unwrap();
    let record = Record::to(TOPIC).partition(1).value("v");
    let error = soon(soon(producer.send(record)).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }) && error.to_string().contains("no majority"), "{error}");
    brokers[0].state.world.silent.lock().unwrap().clear();
    soon(admin.drain_broker(2, true)).await.unwrap();
    assert_eq!(*client.majority().borrow(), None);
}

#[tokio::test]
async fn a_change_that_nobody_confirms_may_still_be_made() {
    let brokers = Broker::cluster(2, 1);
    let client = brokers[0].builder().request_timeout(Duration::from_millis(600)).connect().await.unwrap();
    // Where it is asked for again, and that changes nothing, the first attempt may still.
    brokers[0].state.world.loses_the_next.store(true, Ordering::Relaxed);
    let error = soon(client.admin().drain_broker(2, true)).await.unwrap_err();
    assert_eq!(error.to_string(), "it may still be");
}

#[tokio::test]
async fn partitions_are_asked_of_their_leaders() {
    let brokers = Broker::cluster(3, 4);
    for (partition, leader) in [(1, 2), (2, 3)] {
        brokers[0].state.world.elect(partition, leader);
    }
    brokers[0].state.world.elect(3, None);
    brokers[1].store(1, &["a", "b"], 0);
    brokers[2].store(2, &["c"], 0);
    let admin = brokers[0].client().await.admin();
    let ends = soon(admin.list_offsets(&topic(), &[2, 0, 1], Position::End)).await.unwrap();
    assert_eq!(ends, [(2, 1), (0, 0), (1, 2)]);
    let described = soon(admin.describe_partitions(&topic())).await.unwrap();
    let ends: Vec<_> = described.iter().map(|it| (it.partition, it.log_end)).collect();
    assert_eq!(ends, [(0, 0), (1, 2), (2, 1)]);
}

#[tokio::test]
async fn offsets_are_asked_of_the_next_leader_when_one_dies() {
    let mut brokers = Broker::cluster(2, 1);
    brokers[0].store(0, &["a", "b"], 0);
    let client = brokers[0].builder();
    let servers = format!("{},{}", brokers[0].address, brokers[1].address);
    let admin = client.servers(servers).connect().await.unwrap().admin();
    assert_eq!(soon(admin.list_offsets(&topic(), &[0], Position::End)).await.unwrap(), [(0, 2)]);
    brokers[0].freeze();
    let (old, new) = brokers.split_at(1);
    let mut asked = new[0].state.world.asked.subscribe();
    asked.mark_unchanged();
    let topic = topic();
    let (offsets, ()) = tokio::join!(soon(admin.list_offsets(&topic, &[0], Position::End)), async {
        soon(asked.changed()).await.unwrap();
        new[0].take_over(&old[0], 0, usize::MAX);
    });
    assert_eq!(offsets.unwrap(), [(0, 2)]);
}

#[tokio::test]
async fn functions_are_put_together_from_all_brokers_that_are_up() {
    let mut brokers = Broker::cluster(3, 1);
    let admin = brokers[0].client().await.admin();
    let functions = soon(admin.list_functions(None)).await.unwrap();
    assert_eq!(functions.len(), 1);
    let function = &functions[0];
    assert_eq!((function.records_in, function.records_out, function.instances), (60, 6, 3));
    assert_eq!((&function.state[..], &function.last_error), ("running", &Some((3, "of 3".to_owned()))));
    let messages = |lines: Vec<bus_protocol::request::LogLine>| -> Vec<String> {
        lines.into_iter().map(|line| line.message).collect()
    };
    let lines = soon(admin.function_logs("f", 0)).await.unwrap();
    assert!(lines.is_sorted_by_key(|line| line.timestamp));
    assert_eq!(messages(lines).len(), 9);
    assert_eq!(messages(soon(admin.function_logs("f", 2)).await.unwrap()), ["1.3", "2.3", "3.3"]);
    brokers[1].freeze();
    let mut log = admin.function_log("f");
    let lines = messages(soon(log.more()).await.unwrap());
    assert_eq!(lines, ["1.1", "1.2", "1.3", "3.1", "3.2", "3.3"]);
    assert_eq!(messages(soon(log.more()).await.unwrap()), Vec::<String>::new());
}
