//! Broken input into every decoder that meets bytes it cannot trust: frames, requests, batches.
//!
//! Mutates what is valid, and what was interesting before, with a seed; runs for `FUZZ_SECONDS` (2 unless set, a minute
//! under `make fuzz`). A panic, a hang or a wild allocation fails the test; the seed and the input are printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bus_protocol::batch::{self, BatchBuilder, Compression, Header, RecordBatch};
use bus_protocol::fetch::{FetchCredit, FetchOpen, FetchPush, Isolation};
use bus_protocol::produce::{Acks, ProduceAnswer, ProduceOpen, ProduceOpened};
use bus_protocol::request::{Answer, CreateTopic, Position, Request};
use bus_protocol::{
    Attachment, FrameHeader, FunctionSpec, Preamble, TopicId, TopicName, decode_control, encode_control,
};
use bytes::Bytes;

/// xorshift64*: the same seed, the same run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// One to eight changes of the kinds that break decoders: flipped bits, extreme numbers, cuts, repeats, splices.
fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..1 + random.below(8) {
        let at = random.below(input.len());
        match random.below(7) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => input.truncate(at),
            3 => input.insert(at, random.next() as u8),
            4 if input.len() >= 4 => {
                let at = random.below(input.len() - 3);
                let number = [0, 1, -1, i32::MAX, i32::MIN, 61, 1 << 20][random.below(7)];
                input[at..at + 4].copy_from_slice(&i32::to_be_bytes(number));
            }
            5 => {
                let end = at + random.below(input.len() - at + 1).min(256);
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            _ => {
                let from = random.below(other.len());
                let end = from + random.below(other.len() - from + 1).min(256);
                input.splice(at..at, other[from..end].iter().copied());
            }
        }
    }
    input.truncate(64 << 10);
}

/// Runs `decode` on mutations of `corpus` until the time is up. What `decode` says was interesting joins the corpus.
fn fuzz(name: &str, mut corpus: Vec<Vec<u8>>, decode: impl Fn(&[u8]) -> bool + std::panic::RefUnwindSafe) {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed_u64);
    #[expect(clippy::disallowed_methods, reason = "bounds the run; the inputs depend on the seed alone")]
    let started = Instant::now();
    let until = Duration::from_secs_f64(seconds);
    let mut random = Random(seed | 1);
    let mut runs = 0_u64;
    while !runs.is_multiple_of(64) || started.elapsed() < until {
        runs += 1;
        let mut input = corpus[random.below(corpus.len())].clone();
        let other = random.below(corpus.len());
        let other = corpus[other].clone();
        mutate(&mut input, &other, &mut random);
        let before = started.elapsed();
        let result = std::panic::catch_unwind(|| decode(&input));
        let Ok(interesting) = result else {
            panic!("{name}, seed {seed}, run {runs}: it panicked on {input:02x?}");
        };
        let took = started.elapsed() - before;
        assert!(took < Duration::from_secs(10), "{name}, seed {seed}, run {runs}: {took:?} on {input:02x?}");
        if interesting && corpus.len() < 1_024 {
            corpus.push(input);
        }
    }
    eprintln!("{name}: {runs} runs in {:?}, corpus of {}", started.elapsed(), corpus.len());
}

fn topic() -> TopicName {
    TopicName::new("orders").unwrap()
}

/// The control part of a message's frame.
fn control(message: &impl serde::Serialize) -> Vec<u8> {
    encode_control(message, 0).unwrap()[FrameHeader::LEN..].to_vec()
}

fn requests() -> Vec<Request> {
    let config = BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]);
    vec![
        Request::Cluster,
        Request::Topics { topics: Some(vec![topic()]) },
        Request::CreateTopic(CreateTopic {
            topic: topic(),
            partitions: 3,
            replicas: 1,
            config: config.clone(),
            if_not_exists: true,
        }),
        Request::AlterTopic { topic: topic(), partitions: Some(9), config: config.clone() },
        Request::ListOffsets { topic: topic(), partitions: vec![0, 1, 2], position: Position::Timestamp(7) },
        Request::DeployFunction(FunctionSpec {
            name: "f".into(),
            attachment: Attachment::Consumer { topics: vec![topic()], group: "g".into() },
            outputs: vec![topic()],
            config,
            memory_bytes: 1 << 26,
            fuel: 1 << 30,
            timeout_ms: 1_000,
            retries: 3,
            dead_letter: None,
        }),
        Request::CommitOffsets { group: "g".into(), offsets: vec![(topic(), 0, 5)] },
    ]
}

#[test]
fn frames_and_preambles() {
    let mut corpus: Vec<Vec<u8>> =
        vec![b"BUS\x01\x00".to_vec(), vec![0; 8], vec![0xff; 8], vec![0, 0, 1, 0, 0, 0, 0, 0]];
    corpus.push(vec![0x41; 64]);
    fuzz("frames", corpus, |input| {
        let preamble =
            input.first_chunk().is_some_and(|bytes: &[u8; Preamble::LEN]| Preamble::decode(*bytes).is_ok());
        let frame = input.first_chunk().is_some_and(|bytes| FrameHeader::decode(*bytes).is_ok());
        preamble || frame
    });
}

#[test]
fn control_messages() {
    let mut corpus: Vec<Vec<u8>> = requests().iter().map(control).collect();
    let open = ProduceOpen { topic: topic(), partition: 1, acks: Acks::All, id: Some(TopicId(3)) };
    corpus.push(control(&open));
    let (isolation, id) = (Isolation::Committed, Some(TopicId(3)));
    let fetch = FetchOpen { topic: topic(), partition: 1, from: 7, isolation, credit: 1 << 20, id };
    corpus.push(control(&fetch));
    corpus.push(control(&FetchCredit { bytes: u64::MAX }));
    fuzz("control messages", corpus, |input| {
        let request = decode_control::<Request>(input);
        if let Ok(Request::DeployFunction(spec)) = &request {
            // Its checks meet whatever came off the wire.
            let _ = spec.validate();
        }
        let others = [
            decode_control::<Answer>(input).is_ok(),
            decode_control::<ProduceOpen>(input).is_ok(),
            decode_control::<Result<ProduceOpened, bus_protocol::WireError>>(input).is_ok(),
            decode_control::<ProduceAnswer>(input).is_ok(),
            decode_control::<FetchOpen>(input).is_ok(),
            decode_control::<FetchCredit>(input).is_ok(),
            decode_control::<FetchPush>(input).is_ok(),
        ];
        request.is_ok() || others.contains(&true)
    });
}

fn batches() -> Vec<Vec<u8>> {
    let codecs =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    let build = |codec| {
        let mut batch = BatchBuilder::new(codec);
        let header = Header { key: Bytes::from_static(b"h"), value: Some(Bytes::from_static(b"v")) };
        batch.push(5, Some(b"key"), Some(b"a value that repeats, a value that repeats"), &[header]);
        batch.push(6, None, None, &[]);
        batch.push(7, Some(b""), Some(&[0xff; 300]), &[]);
        batch.build().unwrap().to_vec()
    };
    codecs.into_iter().map(build).collect()
}

/// Walks everything that a broker or a client walks. Whether anything was there.
fn walk(batch: &RecordBatch) -> bool {
    let valid = batch.validate().is_ok();
    let records = batch.records().map(|records| records.filter(Result::is_ok).count()).unwrap_or(0);
    if let Ok(section) = batch.records_bytes() {
        let _ = batch.with_records(&section, batch.header().record_count);
    }
    valid || records > 0
}

#[test]
fn batches_as_they_come() {
    fuzz("batches", batches(), |input| {
        let input = Bytes::copy_from_slice(input);
        let found = RecordBatch::parse(input.clone()).is_ok_and(|batch| walk(&batch));
        let split = batch::split(input).take(1_000).filter_map(Result::ok).filter(walk).count();
        found || split > 0
    });
}

#[test]
fn batches_whose_crc_is_right() {
    // Most mutations end at the CRC; here it is made right, so that the records behind it are met.
    fuzz("batches behind the CRC", batches(), |input| {
        let mut input = input.to_vec();
        if input.len() < batch::HEADER_BYTES {
            return false;
        }
        let length = i32::try_from(input.len() - 12).unwrap_or(i32::MAX);
        input[8..12].copy_from_slice(&length.to_be_bytes());
        input[16] = 2;
        let crc = crc32c(&input[21..]);
        input[17..21].copy_from_slice(&crc.to_be_bytes());
        RecordBatch::parse(input.into()).is_ok_and(|batch| walk(&batch))
    });
}

/// CRC-32C, a bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}
