//! What is refused at the door, and guests that lie about what they did.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::sync::Arc;

use bus_function::{
    FailureKind, Interface, InvalidModule, Kind, MemoryModule, TestRecord, TestResult, TestRun,
    TransformError,
};
use bytes::Bytes;
use fixture::*;

fn wat(text: &str) -> Bytes {
    wat::parse_str(text).unwrap().into()
}

#[test]
fn the_examples_are_what_they_are() {
    let host = host();
    for (name, kind, interface) in [
        ("redact", Kind::Transform, Interface::Flat),
        ("typed-uppercase", Kind::Transform, Interface::Typed),
        ("route", Kind::Consumer, Interface::Flat),
    ] {
        let info = host.inspect(&component(name)).unwrap();
        assert_eq!((info.kind, info.interface), (kind, interface), "{name}");
        assert_eq!(info.check(&transform_spec("f")).is_ok(), kind == Kind::Transform);
    }
}

#[test]
fn what_cannot_be_deployed_is_told_why() {
    let host = host();
    let refused = |bytes: &Bytes| host.inspect(bytes).unwrap_err();
    assert_eq!(refused(&Bytes::from_static(b"#!/bin/sh")), InvalidModule::NotWasm);
    assert_eq!(refused(&Bytes::new()), InvalidModule::NotWasm);
    assert_eq!(refused(&wat("(module)")), InvalidModule::CoreModule);
    assert_eq!(refused(&wat("(component)")), InvalidModule::NoInterface);
    let mut torn = component("redact").to_vec();
    torn.truncate(torn.len() / 2);
    assert!(matches!(refused(&torn.into()), InvalidModule::Malformed(_)));

    let imports =
        wat(r#"(component (import "wasi:http/outgoing-handler@0.2.0" (instance (export "f" (func)))))"#);
    let error = refused(&imports);
    assert!(
        matches!(&error, InvalidModule::MissingImport { import, .. } if import == "wasi:http/outgoing-handler@0.2.0")
    );
    assert!(error.to_string().contains("no network inside a function"), "{error}");
    let imports = wat(r#"(component (import "bus:function/log@0.1.0" (instance (export "shout" (func)))))"#);
    assert!(refused(&imports).to_string().contains("shout"), "{}", refused(&imports));
    let imports = wat(r#"(component (import "surprise" (func)))"#);
    assert!(refused(&imports).to_string().contains("surprise"));

    let two = wat(r#"(component
            (instance $i)
            (export "bus:function/transform@0.1.0" (instance $i))
            (export "bus:function/consumer@0.1.0" (instance $i)))"#);
    assert!(matches!(refused(&two), InvalidModule::TwoInterfaces { .. }));
    let wrong =
        wat(r#"(component (instance $i) (export "bus:function/transform-flat@0.1.0" (instance $i)))"#);
    assert!(matches!(refused(&wrong), InvalidModule::WrongType { .. }), "{}", refused(&wrong));
}

/// What it is called, the outcome's case, pointer, length and payload, and what the host says of it.
type Case<'a> = (&'a str, u8, u32, u32, &'a [u8], Option<&'a str>);

/// A flat transform that answers with `result`: WAT that leaves a pointer to an `outcome` at 0, whose payload
/// lies at 64. `memory` is its size in pages, `start` what it does when it starts.
fn liar(case: u8, pointer: u32, length: u32, payload: &[u8], start: &str) -> Bytes {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\{byte:02x}")).collect::<String>();
    let mut outcome = vec![case, 0, 0, 0];
    outcome.extend_from_slice(&pointer.to_le_bytes());
    outcome.extend_from_slice(&length.to_le_bytes());
    wat(&format!(
        r#"(component
          (core module $m
            (memory (export "memory") 2)
            (data (i32.const 0) "{}")
            (data (i32.const 64) "{}")
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 65536)
            (func (export "f") (param i32 i32 i32 i64 i64 i32 i32) (result i32) i32.const 0)
            {start})
          (core instance $i (instantiate $m))
          (type $refusal' (record (field "index" u32) (field "reason" string)))
          (component $c
            (type $refusal' (record (field "index" u32) (field "reason" string)))
            (import "refusal" (type $refusal (eq $refusal')))
            (type $outcome' (variant (case "unchanged") (case "changed" (list u8)) (case "refused" (list $refusal))))
            (import "outcome" (type $outcome (eq $outcome')))
            (import "f" (func $f (param "topic" string) (param "partition" u32) (param "base-offset" s64)
              (param "base-timestamp" s64) (param "records" (list u8)) (result $outcome)))
            (export $refusal-out "refusal" (type $refusal))
            (type $outcome2' (variant (case "unchanged") (case "changed" (list u8)) (case "refused" (list $refusal-out))))
            (export $outcome-out "outcome" (type $outcome2'))
            (export "transform" (func $f) (func (param "topic" string) (param "partition" u32) (param "base-offset" s64)
              (param "base-timestamp" s64) (param "records" (list u8)) (result $outcome-out))))
          (type $outcome' (variant (case "unchanged") (case "changed" (list u8)) (case "refused" (list $refusal'))))
          (func $f (param "topic" string) (param "partition" u32) (param "base-offset" s64)
              (param "base-timestamp" s64) (param "records" (list u8)) (result $outcome')
            (canon lift (core func $i "f") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
          (instance $out (instantiate $c (with "refusal" (type $refusal')) (with "outcome" (type $outcome'))
            (with "f" (func $f))))
          (export "bus:function/transform-flat@0.1.0" (instance $out)))"#,
        hex(&outcome),
        hex(payload),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_found_out() {
    let host = host();
    // Two records: offset deltas 0 and 1, empty keys and values.
    let good: &[u8] = &[12, 0, 0, 0, 1, 1, 0, 12, 0, 0, 2, 1, 1, 0];
    let twice: &[u8] = &[12, 0, 0, 0, 1, 1, 0, 12, 0, 0, 0, 1, 1, 0];
    let beyond: &[u8] = &[12, 0, 0, 20, 1, 1, 0];
    let refusal: &[u8] = &[9, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0];
    let cases: [Case<'_>; 8] = [
        ("good", 1, 64, good.len() as u32, good, None),
        ("unchanged", 0, 0, 0, &[], None),
        ("garbage", 1, 64, 5, &[0xff; 5], Some("not valid")),
        ("the same delta twice", 1, 64, twice.len() as u32, twice, Some("does not rise")),
        ("a delta beyond", 1, 64, beyond.len() as u32, beyond, Some("past the batch's last")),
        ("refuses nothing", 2, 64, 0, &[], Some("no record of it")),
        ("refuses what is not there", 2, 64, 1, refusal, Some("refuses record 9 of 2")),
        ("a list out of bounds", 1, 131_000, 4_000_000, &[], Some("")),
    ];
    for (what, case, pointer, length, payload, expected) in cases {
        let bytes = liar(case, pointer, length, payload, "");
        assert_eq!(host.inspect(&bytes).unwrap().interface, Interface::Flat);
        let function = host.function(transform_spec("liar"), 1, Arc::new(MemoryModule::new(bytes))).unwrap();
        let result = function.transform(&topic("in"), 0, batch(&["a", "b"])).await;
        match (result, expected) {
            (Ok(out), None) => out.batch.validate().unwrap(),
            (Err(TransformError::Failed(failure)), Some(expected)) => {
                assert!(failure.message.contains(expected), "{what}: {failure}");
            }
            (result, _) => panic!("{what}: {result:?}"),
        }
    }
    // A batch that has gaps takes nothing into the gaps.
    let upper = deploy(&host, transform_spec("upper"), "typed-uppercase");
    let gap = upper.transform(&topic("in"), 0, batch(&["A", "", "B"])).await.unwrap().batch;
    let function = host
        .function(transform_spec("liar"), 1, Arc::new(MemoryModule::new(liar(1, 64, 14, good, ""))))
        .unwrap();
    let error = function.transform(&topic("in"), 0, gap).await.unwrap_err();
    assert!(error.to_string().contains("no record with offset delta 1"), "{error}");
}

#[test]
fn a_component_that_cannot_start_is_refused() {
    let host = host();
    let spin = "(func $s (loop br 0)) (start $s)";
    let error = host.inspect(&liar(0, 0, 0, &[], spin)).unwrap_err();
    assert!(matches!(error, InvalidModule::Start(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_module_is_no_records_fault() {
    struct Damaged;
    impl bus_function::ModuleSource for Damaged {
        fn id(&self) -> bus_protocol::BlobId {
            bus_protocol::BlobId([1; 32])
        }
        fn load(&self) -> std::io::Result<Bytes> {
            Ok(component("identity"))
        }
    }
    let function = host().function(transform_spec("f"), 1, Arc::new(Damaged)).unwrap();
    let error = function.transform(&topic("in"), 0, batch(&["a"])).await.unwrap_err();
    assert!(matches!(&error, TransformError::Failed(f) if f.kind == FailureKind::Instantiate), "{error}");
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_run_needs_no_broker() {
    let host = host();
    let records: Vec<TestRecord> = ["a", ""]
        .iter()
        .map(|v| TestRecord { value: Some(Bytes::from_static(v.as_bytes())), ..TestRecord::default() })
        .collect();
    let mut run =
        TestRun::new(&host, component("typed-uppercase"), Default::default(), vec![], topic("in")).unwrap();
    let TestResult::Transformed { records: kept, dropped } = run.run(&records).await.unwrap() else {
        panic!()
    };
    assert_eq!((kept.len(), dropped, kept[0].value.as_deref()), (1, 1, Some(&b"A"[..])));

    let mut run = TestRun::new(
        &host,
        component("consumer-faults"),
        Default::default(),
        vec![topic("out")],
        topic("in"),
    )
    .unwrap();
    let TestResult::Emitted(emitted) = run.run(&records).await.unwrap() else { panic!() };
    assert_eq!(emitted[0].records.len(), 2);
}
