//! Round trips, Kafka's own bytes both ways, and bytes that mean harm.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::TimestampType;

type Plain = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

fn headers_of(record: &Plain) -> Vec<Header> {
    let header = |(key, value): &(String, Option<Vec<u8>>)| Header {
        key: Bytes::from(key.clone()),
        value: value.clone().map(Bytes::from),
    };
    record.3.iter().map(header).collect()
}

fn build(compression: Compression, records: &[Plain]) -> RecordBatch {
    let mut builder = BatchBuilder::new(compression);
    for (index, record) in records.iter().enumerate() {
        let headers = headers_of(record);
        let bound =
            builder.size_hint() + record_bytes_bound(record.1.as_deref(), record.2.as_deref(), &headers);
        assert_eq!(
            builder.push(record.0, record.1.as_deref(), record.2.as_deref(), &headers) as usize,
            index
        );
        assert!(builder.size_hint() <= bound);
    }
    builder.set_producer(77, 3, 1_000);
    RecordBatch::parse(builder.build().unwrap()).unwrap()
}

fn plain(record: &Record) -> Plain {
    let headers = record.headers.iter().map(|header| {
        (String::from_utf8(header.key.to_vec()).unwrap(), header.value.as_ref().map(|value| value.to_vec()))
    });
    let owned = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| bytes.to_vec());
    (record.timestamp, owned(&record.key), owned(&record.value), headers.collect())
}

fn sample(count: usize) -> Vec<Plain> {
    (0..count)
        .map(|n| {
            let headers = match n % 3 {
                0 => vec![],
                1 => vec![("trace".to_owned(), Some(vec![n as u8; 9])), ("none".to_owned(), None)],
                _ => vec![("é".to_owned(), Some(vec![]))],
            };
            let key = (n % 4 != 0).then(|| format!("key-{n}").into_bytes());
            let value = (n % 5 != 0).then(|| format!("value {n} ").repeat(n % 40).into_bytes());
            (1_700_000_000_000 + n as i64 * 7 - (n as i64 % 11) * 100, key, value, headers)
        })
        .collect()
}

mod kafka {
    //! Against the `kafka-protocol` crate, which writes and reads what Kafka's clients do.

    use bytes::BytesMut;
    use kafka_protocol::protocol::StrBytes;
    use kafka_protocol::records as theirs;

    use super::*;

    fn their_compression(compression: Compression) -> theirs::Compression {
        match compression {
            Compression::None => theirs::Compression::None,
            Compression::Gzip => theirs::Compression::Gzip,
            Compression::Snappy => theirs::Compression::Snappy,
            Compression::Lz4 => theirs::Compression::Lz4,
            Compression::Zstd => theirs::Compression::Zstd,
        }
    }

    fn their_record(offset: i64, producer: i64, record: &Plain) -> theirs::Record {
        let header = |(key, value): &(String, Option<Vec<u8>>)| {
            (StrBytes::from_string(key.clone()), value.clone().map(Bytes::from))
        };
        theirs::Record {
            transactional: producer == 9,
            control: false,
            partition_leader_epoch: 5,
            producer_id: producer,
            producer_epoch: 2,
            timestamp_type: theirs::TimestampType::Creation,
            offset,
            sequence: offset as i32,
            timestamp: record.0,
            key: record.1.clone().map(Bytes::from),
            value: record.2.clone().map(Bytes::from),
            headers: record.3.iter().map(header).collect(),
        }
    }

    #[test]
    fn what_kafka_writes_reads_here() {
        for compression in Compression::ALL {
            let records = sample(300);
            let mut bytes = BytesMut::new();
            // Two producers: the encoder starts a batch for each.
            for (producer, part) in [(-1, &records[..120]), (9, &records[120..])] {
                let start = if producer == 9 { 120 } else { 0 };
                let theirs: Vec<_> = part
                    .iter()
                    .enumerate()
                    .map(|(n, record)| their_record(start + n as i64, producer, record))
                    .collect();
                let options =
                    theirs::RecordEncodeOptions { version: 2, compression: their_compression(compression) };
                theirs::RecordBatchEncoder::encode(&mut bytes, theirs.iter(), &options).unwrap();
            }
            let batches: Vec<RecordBatch> = split(bytes.freeze()).collect::<Result<_, _>>().unwrap();
            let mut read = Vec::new();
            for batch in &batches {
                batch.validate().unwrap();
                assert_eq!(batch.header().compression(), compression);
                assert_eq!(batch.header().leader_epoch, 5);
                assert_eq!(batch.header().is_transactional(), batch.header().producer_id == 9);
                read.extend(batch.records().unwrap().map(Result::unwrap));
            }
            assert_eq!(read.iter().map(plain).collect::<Vec<_>>(), records, "{compression}");
            assert!(read.iter().enumerate().all(|(n, record)| record.offset == n as i64));
            assert!(batches.iter().any(|batch| batch.header().producer_id == 9));
        }
    }

    #[test]
    fn what_is_written_here_kafka_reads() {
        for compression in Compression::ALL {
            // Large enough for several blocks of every compression.
            for count in [1, 2, 3_000] {
                let records = sample(count);
                let batch = build(compression, &records);
                let mut bytes = BytesMut::from(&batch.bytes()[..]);
                assign::set_base_offset(&mut bytes, 40);
                assign::set_leader_epoch(&mut bytes, 6);
                let set = theirs::RecordBatchDecoder::decode(&mut bytes.freeze()).unwrap();
                assert_eq!(set.records.len(), count);
                for (n, (theirs, ours)) in set.records.iter().zip(&records).enumerate() {
                    let mut expected = their_record(40 + n as i64, 77, ours);
                    (expected.producer_epoch, expected.partition_leader_epoch) = (3, 6);
                    expected.sequence = 1_000 + n as i32;
                    assert_eq!(*theirs, expected, "{compression}");
                }
            }
        }
    }
}

#[test]
fn snappy_is_read_in_both_framings() {
    let records = sample(50);
    let batch = build(Compression::None, &records);
    let section = batch.records_bytes().unwrap();
    let mut header = *batch.header();
    header.attributes |= Compression::Snappy as i16;
    let mut out = vec![0; HEADER_BYTES];
    out.extend(snap::raw::Encoder::new().compress_vec(&section).unwrap());
    let raw = RecordBatch::seal(header, out).unwrap();
    raw.validate().unwrap();
    assert_eq!(raw.records_bytes().unwrap(), section);
    // Two xerial streams end to end.
    let mut out = vec![0; HEADER_BYTES];
    let (front, back) = section.split_at(section.len() / 2);
    Compression::Snappy.compress(front, &mut out).unwrap();
    Compression::Snappy.compress(back, &mut out).unwrap();
    RecordBatch::seal(header, out).unwrap().validate().unwrap();
}

#[test]
fn a_batch_takes_its_place_without_a_new_crc() {
    let mut bytes = build(Compression::Lz4, &sample(9)).into_bytes().to_vec();
    assign::set_base_offset(&mut bytes, 1 << 40);
    assign::set_leader_epoch(&mut bytes, 12);
    let batch = RecordBatch::parse(bytes.clone().into()).unwrap();
    assert_eq!((batch.header().base_offset, batch.header().leader_epoch), (1 << 40, 12));
    assert_eq!(batch.header().next_offset(), (1 << 40) + 9);
    assert_eq!(batch.records().unwrap().last().unwrap().unwrap().offset, (1 << 40) + 8);

    assign::set_append_time(&mut bytes, 123_456);
    let batch = RecordBatch::parse(bytes.into()).unwrap();
    batch.validate().unwrap();
    assert_eq!(batch.header().timestamp_type(), TimestampType::LogAppendTime);
    assert!(batch.records().unwrap().all(|record| record.unwrap().timestamp == 123_456));
    // Nothing to write into: nothing is written.
    assign::set_append_time(&mut [0; 10], 1);
    assign::set_base_offset(&mut [0; 4], 1);
}

#[test]
fn a_batch_is_numbered_anew_without_reading_it_all() {
    for compression in [Compression::None, Compression::Lz4] {
        let mut bytes = build(compression, &sample(9)).into_bytes().to_vec();
        assign::set_producer(&mut bytes, 1 << 40, 12, i32::MAX);
        let batch = RecordBatch::parse(bytes.into()).unwrap();
        batch.validate().unwrap();
        let header = batch.header();
        assert_eq!(
            (header.producer_id, header.producer_epoch, header.base_sequence),
            (1 << 40, 12, i32::MAX)
        );
        assert_eq!(batch.records().unwrap().count(), 9);
    }
    assign::set_producer(&mut [0; 60], 1, 1, 1);
}

#[test]
fn a_transform_leaves_gaps_and_may_leave_nothing() {
    for compression in Compression::ALL {
        let batch = build(compression, &sample(10));
        let section = batch.records_bytes().unwrap();
        let kept: Vec<u8> = RecordSlices::new(&section)
            .map(Result::unwrap)
            .filter(|record| record.offset_delta % 3 == 1)
            .flat_map(|record| record.raw.to_vec())
            .collect();
        let fewer = RecordBatch::parse(batch.with_records(&kept, 3).unwrap().into_bytes()).unwrap();
        fewer.validate().unwrap();
        let offsets: Vec<_> = fewer.records().unwrap().map(|record| record.unwrap().offset).collect();
        assert_eq!(offsets, [1, 4, 7]);
        assert_eq!(fewer.header().next_offset(), 10);
        assert_eq!(fewer.header().base_sequence, 1_000);
        let latest = fewer.records().unwrap().map(|record| record.unwrap().timestamp).max();
        assert_eq!(Some(fewer.header().max_timestamp), latest);
        assert!(!fewer.header().is_dense() && batch.header().is_dense());

        let none = RecordBatch::parse(batch.with_records(&[], 0).unwrap().into_bytes()).unwrap();
        none.validate().unwrap();
        assert_eq!(none.records().unwrap().count(), 0);
        assert_eq!(none.header().next_offset(), 10);

        // A guest's records are not taken on trust.
        assert!(batch.with_records(&kept, 2).is_err());
        assert!(batch.with_records(&kept[1..], 3).is_err());
        let twice = [&kept[..], &kept[..]].concat();
        assert!(batch.with_records(&twice, 6).is_err());
        let mut past = Vec::new();
        encode_record(&mut past, 10, 0, None, None, [].into_iter());
        assert!(batch.with_records(&past, 1).is_err());
    }
}

#[test]
fn batches_end_to_end_come_apart() {
    let batches: Vec<RecordBatch> = Compression::ALL.map(|compression| build(compression, &sample(5))).into();
    let all: Vec<u8> = batches.iter().flat_map(|batch| batch.bytes().to_vec()).collect();
    let found: Vec<RecordBatch> = split(all.clone().into()).collect::<Result<_, _>>().unwrap();
    assert_eq!(found, batches);
    let cut = Bytes::from(all).slice(..batches[0].bytes().len() + 70);
    let found: Vec<_> = split(cut).collect();
    assert!(matches!(found[..], [Ok(_), Err(BatchError::Truncated { .. })]));
    assert!(RecordBatch::parse([&batches[0].bytes()[..], &[0]].concat().into()).is_err());
}

#[test]
fn a_small_batch_does_not_become_a_huge_one() {
    let bomb = vec![0u8; crate::limits::DECOMPRESSED_BATCH_BYTES + 1];
    for compression in Compression::ALL.into_iter().skip(1) {
        let mut header = *build(compression, &sample(1)).header();
        header.attributes = compression as i16;
        let mut out = vec![0; HEADER_BYTES];
        compression.compress(&bomb, &mut out).unwrap();
        let batch = RecordBatch::seal(header, out).unwrap();
        let error = batch.validate().unwrap_err();
        assert!(matches!(error, BatchError::TooLarge { .. } | BatchError::Decompress { .. }), "{error}");
    }
    // A snappy block that claims 64 MiB and holds five bytes.
    let claim = [0x80, 0x80, 0x80, 0x20, 0x00];
    assert!(Compression::Snappy.decompress(&Bytes::copy_from_slice(&claim)).is_err());
}

#[test]
fn an_empty_builder_builds_nothing() {
    assert_eq!(BatchBuilder::new(Compression::Zstd).build(), Err(BatchError::Empty));
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let batch = build(Compression::None, &sample(3));
    let refused = |at: usize, field: &[u8]| {
        let mut bytes = batch.bytes().to_vec();
        assign::put(&mut bytes, at, field);
        let crc = crc32c::crc32c(&bytes[CRC_START..]);
        assign::put(&mut bytes, 17, &crc.to_be_bytes());
        RecordBatch::parse(bytes.into()).and_then(|batch| batch.validate()).unwrap_err().to_string()
    };
    assert!(refused(0, &(-1i64).to_be_bytes()).contains("base offset"));
    assert!(refused(0, &i64::MAX.to_be_bytes()).contains("base offset"));
    assert!(refused(8, &10i32.to_be_bytes()).contains("smaller than a header"));
    assert!(refused(8, &i32::MAX.to_be_bytes()).contains("too large"));
    assert!(refused(16, &[1]).contains("magic 1"));
    assert!(refused(21, &7i16.to_be_bytes()).contains("compression"));
    assert!(refused(23, &(-1i32).to_be_bytes()).contains("negative"));
    assert!(refused(23, &1i32.to_be_bytes()).contains("more records than"));
    assert!(refused(57, &2i32.to_be_bytes()).contains("says it holds 2"));
    assert!(refused(35, &0i64.to_be_bytes()).contains("later than"));
    let mut bytes = batch.bytes().to_vec();
    bytes[80] ^= 1;
    assert!(matches!(RecordBatch::parse(bytes.into()), Err(BatchError::Crc { .. })));
}

fn any_record() -> impl Strategy<Value = Plain> {
    let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
    let headers = proptest::collection::vec((".{0,12}", bytes()), 0..4);
    (any::<i64>(), bytes(), bytes(), headers)
}

fn any_compression() -> impl Strategy<Value = Compression> {
    proptest::sample::select(Compression::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn records_round_trip(
        compression in any_compression(),
        records in proptest::collection::vec(any_record(), 1..40),
    ) {
        let batch = build(compression, &records);
        prop_assert!(batch.validate().is_ok());
        let read: Vec<Record> = batch.records().unwrap().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(read.iter().map(plain).collect::<Vec<_>>(), records);
        prop_assert_eq!(BatchHeader::decode(&batch.header().encode()), Ok(*batch.header()));
    }

    /// Bytes changed within the records, with a CRC that fits: nobody panics, nobody reads more than there is.
    #[test]
    fn damaged_records_never_panic(
        compression in any_compression(),
        records in proptest::collection::vec(any_record(), 1..12),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = build(compression, &records).into_bytes().to_vec();
        for (at, byte) in changes {
            let at = CRC_START + at.index(bytes.len() - CRC_START);
            bytes[at] = byte;
        }
        let crc = crc32c::crc32c(&bytes[CRC_START..]);
        assign::put(&mut bytes, 17, &crc.to_be_bytes());
        if let Ok(batch) = RecordBatch::parse(bytes.into()) {
            let valid = batch.validate().is_ok();
            let all: Result<Vec<Record>, _> = match batch.records() {
                Ok(records) => records.collect(),
                Err(error) => Err(error),
            };
            prop_assert!(!valid || all.is_ok());
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = BatchHeader::check(&bytes);
        for record in RecordSlices::new(&bytes).flatten() {
            prop_assert_eq!(record.headers().count(), record.header_count as usize);
        }
        for compression in Compression::ALL {
            let _ = compression.decompress(&Bytes::copy_from_slice(&bytes));
        }
        let _ = split(bytes.into()).count();
    }
}
