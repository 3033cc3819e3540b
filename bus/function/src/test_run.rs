//! Runs a component with no broker: what `bus function test` and an author's tests use. The host is the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_protocol::batch::{BatchBuilder, Compression, Header, Record};
use bus_protocol::{Attachment, FunctionSpec, RecordError, Timestamp, TopicName};
use bytes::Bytes;

use crate::{
    ConsumeError, Emission, Error, Function, FunctionHost, InvalidModule, Kind, MemoryModule, ModuleInfo,
    TransformError,
};

/// A record to feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestRecord {
    /// Milliseconds since the Unix epoch.
    pub timestamp: Timestamp,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// The headers.
    pub headers: Vec<Header>,
}

/// What became of a batch of records.
#[derive(Clone, Debug)]
pub enum TestResult {
    /// A transform let these through, and dropped that many.
    Transformed {
        /// What would be stored; offsets are places in the batch.
        records: Vec<Record>,
        /// How many were dropped.
        dropped: u32,
    },
    /// A transform refused these.
    Refused(Vec<RecordError>),
    /// A consumer emitted these.
    Emitted(Vec<Emission>),
}

/// Why a test run could not be made, or a batch not be run.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    /// The component cannot be deployed.
    #[error(transparent)]
    Module(#[from] InvalidModule),
    /// The settings are not valid.
    #[error(transparent)]
    Host(#[from] Error),
    /// The records are more than a batch holds.
    #[error(transparent)]
    Batch(#[from] bus_protocol::batch::BatchError),
    /// The transform failed.
    #[error(transparent)]
    Transform(TransformError),
    /// The consumer failed.
    #[error(transparent)]
    Consume(#[from] ConsumeError),
}

/// One component under test.
#[derive(Debug)]
pub struct TestRun {
    function: Arc<Function>,
    info: ModuleInfo,
    topic: TopicName,
    offset: i64,
}

/// The settings of a component that is deployed nowhere.
pub(crate) fn default_spec(name: &str, kind: Kind) -> FunctionSpec {
    let topic = TopicName::new("test");
    let attachment = match (kind, topic) {
        (Kind::Transform, Ok(topic)) => Attachment::Transform { topic },
        (_, topic) => Attachment::Consumer { topics: topic.into_iter().collect(), group: name.to_owned() },
    };
    FunctionSpec {
        name: name.to_owned(),
        attachment,
        outputs: Vec::new(),
        config: BTreeMap::new(),
        memory_bytes: FunctionSpec::DEFAULT_MEMORY_BYTES,
        fuel: FunctionSpec::DEFAULT_FUEL,
        timeout_ms: FunctionSpec::DEFAULT_TIMEOUT_MS,
        retries: FunctionSpec::DEFAULT_RETRIES,
        dead_letter: None,
    }
}

impl TestRun {
    /// A run of the component in `bytes`, with settings as a deploy would give them; `topic` is what the
    /// function is told it stands on. Blocks while it compiles.
    pub fn new(
        host: &FunctionHost,
        bytes: Bytes,
        config: BTreeMap<String, String>,
        outputs: Vec<TopicName>,
        topic: TopicName,
    ) -> Result<Self, TestError> {
        let info = host.inspect(&bytes)?;
        let mut spec = default_spec("test", info.kind);
        spec.config = config;
        if info.kind == Kind::Consumer {
            spec.outputs = outputs;
        }
        let function = host.function(spec, 1, Arc::new(MemoryModule::new(bytes)))?;
        Ok(Self { function, info, topic, offset: 0 })
    }

    /// What the component is.
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }

    /// The function: its log and its figures.
    pub fn function(&self) -> &Arc<Function> {
        &self.function
    }

    /// Runs one batch of records; each goes on at the offset where the last ended. No record is no call.
    pub async fn run(&mut self, records: &[TestRecord]) -> Result<TestResult, TestError> {
        let mut batch = BatchBuilder::new(Compression::None);
        for record in records {
            batch.push(record.timestamp, record.key.as_deref(), record.value.as_deref(), &record.headers);
        }
        if batch.is_empty() {
            return Ok(match self.info.kind {
                Kind::Transform => TestResult::Transformed { records: Vec::new(), dropped: 0 },
                Kind::Consumer => TestResult::Emitted(Vec::new()),
            });
        }
        let mut bytes = batch.build()?.to_vec();
        bus_protocol::batch::assign::set_base_offset(&mut bytes, self.offset);
        let batch = bus_protocol::batch::RecordBatch::parse(bytes.into())?;
        self.offset += records.len() as i64;
        match self.info.kind {
            Kind::Consumer => Ok(TestResult::Emitted(self.function.consume(&self.topic, 0, &batch).await?)),
            Kind::Transform => match self.function.transform(&self.topic, 0, batch).await {
                Ok(transformed) => Ok(TestResult::Transformed {
                    records: transformed.batch.records()?.collect::<Result<_, _>>()?,
                    dropped: transformed.dropped,
                }),
                Err(TransformError::Refused(errors)) => Ok(TestResult::Refused(errors)),
                Err(error) => Err(TestError::Transform(error)),
            },
        }
    }
}
