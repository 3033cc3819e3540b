//! Transforms made of the example components, typed and flat, good and bad.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use bus_function::{Chain, FailureKind, FunctionHost, Options, State, TransformError};
use bus_protocol::Clock;
use fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_flat_transform_replaces_and_keeps_the_batchs_place() {
    let host = host();
    let redact = deploy(&host, transform_spec("redact"), "redact");
    let rows = [r#"{"tailnum":"N1","origin":"JFK"}"#, r#"{"origin":"EWR"}"#, r#"{"tailnum":null}"#];
    let input = batch(&rows);
    let out = redact.transform(&topic("in"), 0, input.clone()).await.unwrap();
    assert_eq!(out.dropped, 0);
    let expected = [r#"{"tailnum":"***","origin":"JFK"}"#, rows[1], rows[2]];
    assert_eq!(values(&out.batch).iter().map(|(_, v)| v.as_str()).collect::<Vec<_>>(), expected);
    let (before, after) = (input.header(), out.batch.header());
    assert_eq!(
        (after.base_sequence, after.last_offset_delta, after.producer_id, after.attributes),
        (before.base_sequence, before.last_offset_delta, before.producer_id, before.attributes)
    );
    out.batch.validate().unwrap();

    // A batch that it leaves alone is not even copied.
    let input = batch(&["x"]);
    let out = redact.transform(&topic("in"), 0, input.clone()).await.unwrap();
    assert_eq!(out.batch.bytes().as_ptr(), input.bytes().as_ptr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typed_transform_keeps_drops_replaces_and_refuses() {
    let host = host();
    let upper = deploy(&host, transform_spec("upper"), "typed-uppercase");
    let out = upper.transform(&topic("in"), 0, batch(&["a", "", "B", "c", ""])).await.unwrap();
    assert_eq!(out.dropped, 2);
    assert_eq!(values(&out.batch), [(0, "A".into()), (2, "B".into()), (3, "C".into())]);
    assert_eq!(out.batch.header().last_offset_delta, 4);

    // The second of a chain names the record's place in the producer's batch, not in what the first left.
    let validate = deploy(&host, transform_spec("validate"), "validate");
    let chain = Chain::new(vec![upper.clone(), validate]);
    let complete = r#"{"carrier":"UA","flight":1,"origin":"EWR","dest":"IAH"}"#.to_uppercase();
    let error = chain.transform(&topic("in"), 0, batch(&["", &complete])).await.unwrap_err();
    assert_eq!(error.function, "validate");
    let TransformError::Refused(records) = error.error else { panic!("{error}") };
    assert_eq!((records.len(), records[0].index), (1, 1));
    assert_eq!(records[0].reason, "field carrier is missing or null");

    // All dropped: an empty batch in its place.
    let out = upper.transform(&topic("in"), 0, batch(&["", ""])).await.unwrap();
    assert_eq!(
        (out.dropped, out.batch.header().record_count, out.batch.header().last_offset_delta),
        (2, 0, 1)
    );
    assert_eq!(upper.stats().records_in, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_decide_and_refusals_say_why() {
    let host = host();
    let mut spec = transform_spec("validate");
    spec.config.insert("required".into(), "a, b".into());
    let validate = deploy(&host, spec, "validate");
    let rows = [r#"{"a":1,"b":2}"#, r#"{"a":1}"#, r#"{"a":null,"b":2}"#];
    let refused = validate.transform(&topic("in"), 0, batch(&rows)).await.unwrap_err();
    let TransformError::Refused(records) = refused else { panic!("{refused}") };
    let said: Vec<_> = records.iter().map(|r| (r.index, r.reason.as_str())).collect();
    assert_eq!(said, [(1, "field b is missing or null"), (2, "field a is missing or null")]);
    assert_eq!(validate.stats().state, State::Running, "a refusal is no failure");
    assert_eq!(validate.stats().records_failed, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn misbehaviour_ends_the_call_and_not_the_host() {
    let host = host();
    let neighbour = deploy(&host, transform_spec("neighbour"), "identity");
    for (name, kind) in
        [("trap", FailureKind::Trap), ("loop", FailureKind::Fuel), ("hog", FailureKind::Memory)]
    {
        let function = deploy(&host, transform_spec(name), name);
        function.transform(&topic("in"), 0, batch(&["fine"])).await.unwrap();
        let error = function.transform(&topic("in"), 0, batch(&["fine", "poison"])).await.unwrap_err();
        let TransformError::Failed(failure) = error else { panic!("{error}") };
        assert_eq!(failure.kind, kind, "{failure}");
        if kind == FailureKind::Trap {
            assert!(failure.message.contains("poison at 1"), "{failure}");
            assert!(failure.trace.contains("trap"), "{}", failure.trace);
        }
        let stats = function.stats();
        assert_eq!((stats.instances, stats.memory_bytes, stats.state), (0, 0, State::Failing));
        assert!(stats.last_error.is_some());
        assert!(function.logs(0).iter().any(|line| line.message.contains("call failed")));
        neighbour.transform(&topic("in"), 0, batch(&["poison"])).await.unwrap();
        // It is served again once its records are good.
        loop {
            match function.transform(&topic("in"), 0, batch(&["fine"])).await {
                Ok(_) => break,
                Err(TransformError::Backoff { retry_after }) => tokio::time::sleep(retry_after).await,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(function.stats().state, State::Running);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn time_is_the_net_below_fuel() {
    let host = host();
    let spec = bus_protocol::FunctionSpec { fuel: u64::MAX / 2, timeout_ms: 30, ..transform_spec("loop") };
    let function = deploy(&host, spec, "loop");
    let error = function.transform(&topic("in"), 0, batch(&["poison"])).await.unwrap_err();
    assert!(matches!(&error, TransformError::Failed(f) if f.kind == FailureKind::Timeout), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_function_is_left_alone_and_idle_instances_go() {
    let clock = Arc::new(HeldClock::default());
    clock.advance(Duration::from_secs(1));
    let host = FunctionHost::new(Options::default(), clock.clone()).unwrap();
    let function = deploy(&host, transform_spec("trap"), "trap");
    function.transform(&topic("in"), 0, batch(&["poison"])).await.unwrap_err();
    let error = function.transform(&topic("in"), 0, batch(&["fine"])).await.unwrap_err();
    assert_eq!(error, TransformError::Backoff { retry_after: Duration::from_millis(50) });
    clock.advance(Duration::from_millis(50));
    function.transform(&topic("in"), 0, batch(&["fine"])).await.unwrap();
    assert_eq!((function.stats().instances, host.components()), (1, 1));
    assert!(function.stats().memory_bytes > 0);

    clock.advance(Duration::from_secs(59));
    host.sweep();
    assert_eq!(function.stats().instances, 1);
    clock.advance(Duration::from_secs(1));
    host.sweep();
    let stats = function.stats();
    assert_eq!((stats.instances, stats.memory_bytes, stats.state), (0, 0, State::Idle));
    assert_eq!(host.components(), 0);
    function.transform(&topic("in"), 0, batch(&["fine"])).await.unwrap();
    assert!(clock.timestamp() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_the_same_module_share_its_component_and_instances_are_bounded() {
    let options = Options { instances: 16, ..eager() };
    let host = FunctionHost::new(options, Arc::new(bus_protocol::SystemClock::new())).unwrap();
    let functions: Vec<_> =
        (0..40).map(|n| deploy(&host, transform_spec(&format!("f{n}")), "identity")).collect();
    for function in functions.iter().chain(&functions) {
        function.transform(&topic("in"), 0, batch(&["a"])).await.unwrap();
    }
    assert_eq!(host.components(), 1);
    let live: u32 = functions.iter().map(|f| f.stats().instances).sum();
    assert!((1..=16).contains(&live), "{live}");
}
