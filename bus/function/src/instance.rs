//! One instance of a component: its store, its export, and one call after another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bus_protocol::{FunctionSpec, PartitionId};
use wasmtime::component::ResourceTable;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::WasiCtx;

use crate::bindings::bus::function as imports;
use crate::bindings::exports::bus::function as exports;
use crate::engine::Engine;
use crate::failure::{Failure, FailureKind};
use crate::inspect::{Entry, Loaded};
use crate::limiter::{Gauge, Limiter};
use crate::log::FunctionLog;
use crate::wasi::{self, Ambient, LineStream};

pub(crate) use imports::types;

/// What an instance's store holds beside the guest's own state.
pub(crate) struct Context {
    pub(crate) wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    pub(crate) ambient: Ambient,
    limiter: Limiter,
    log: Arc<FunctionLog>,
    config: Arc<BTreeMap<String, String>>,
    stdout: LineStream,
    stderr: LineStream,
}

impl imports::log::Host for Context {
    fn write(&mut self, level: imports::log::Level, message: String) {
        use imports::log::Level;
        let level = match level {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        };
        self.log.push(level, &message);
    }
}

impl imports::config::Host for Context {
    fn get(&mut self, key: String) -> Option<String> {
        self.config.get(&key).cloned()
    }

    fn all(&mut self) -> Vec<(String, String)> {
        self.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

impl imports::types::Host for Context {}

/// What an instance is made with.
pub(crate) struct Setting<'a> {
    pub(crate) spec: &'a FunctionSpec,
    pub(crate) config: Arc<BTreeMap<String, String>>,
    pub(crate) log: Arc<FunctionLog>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) output_bytes: usize,
}

/// What a call is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: PartitionId,
    pub(crate) base_offset: i64,
    pub(crate) base_timestamp: i64,
    /// What the guest's clocks say.
    pub(crate) now: i64,
    pub(crate) seed: u64,
}

impl Subject<'_> {
    fn context(&self) -> types::Context<'_> {
        types::Context {
            topic: self.topic,
            partition: self.partition,
            base_offset: self.base_offset,
            base_timestamp: self.base_timestamp,
        }
    }
}

enum Guest {
    TransformTyped(exports::transform::Guest),
    TransformFlat(exports::transform_flat::Guest),
    ConsumerTyped(exports::consumer::Guest),
    ConsumerFlat(exports::consumer_flat::Guest),
}

/// Records as they go in, in the form that the instance wants.
pub(crate) enum Input<'a> {
    Typed(&'a [types::Record<'a>]),
    Flat(&'a [u8]),
}

/// What a transform gave back.
pub(crate) enum TransformOutput {
    Typed(Vec<types::Verdict>),
    Flat(types::Outcome),
}

/// What a consumer gave back.
pub(crate) enum ConsumerOutput {
    Typed(Vec<types::Emission>),
    Flat(types::Emissions),
}

/// An instance, ready for calls.
pub(crate) struct Instance {
    store: Store<Context>,
    guest: Guest,
    fuel: u64,
    timeout_ticks: u64,
    hostcall_fuel: usize,
    /// Fuel that the last call burnt.
    pub(crate) burnt: u64,
}

impl Instance {
    /// Instantiates `loaded`; its start functions run under the limits of one call.
    pub(crate) fn new(engine: &Engine, loaded: &Loaded, setting: &Setting<'_>) -> Result<Self, Failure> {
        let spec = setting.spec;
        let stdout = LineStream::new("stdout", setting.log.clone());
        let stderr = LineStream::new("stderr", setting.log.clone());
        let (wasi, table) = wasi::context(&stdout, &stderr);
        let context = Context {
            wasi,
            table,
            ambient: Ambient::new(wasi::seed(&spec.name, &[])),
            limiter: Limiter::new(spec.memory_bytes, setting.gauge.clone()),
            log: setting.log.clone(),
            config: setting.config.clone(),
            stdout,
            stderr,
        };
        let mut store = Store::new(&engine.wasm, context);
        store.limiter(|context| &mut context.limiter);
        store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Interrupt));
        let timeout_ticks = Engine::ticks(Duration::from_millis(spec.timeout_ms));
        // What crosses back is bounded as it is lifted, before it is looked at. Lists of records take up more
        // on this side than their bytes do.
        let hostcall_fuel = setting.output_bytes.saturating_mul(2);
        let mut fresh = Fresh { store, fuel: spec.fuel, timeout_ticks, hostcall_fuel };
        fresh.arm(0, 0)?;
        let guest = fresh.instantiate(loaded).map_err(|error| {
            let failure = fresh.failure(&error);
            let kind =
                if failure.kind == FailureKind::Trap { FailureKind::Instantiate } else { failure.kind };
            Failure { kind, ..failure }
        })?;
        let Fresh { store, fuel, timeout_ticks, hostcall_fuel } = fresh;
        Ok(Self { store, guest, fuel, timeout_ticks, hostcall_fuel, burnt: 0 })
    }

    /// Whether records go in as bytes.
    pub(crate) fn is_flat(&self) -> bool {
        matches!(self.guest, Guest::TransformFlat(_) | Guest::ConsumerFlat(_))
    }

    pub(crate) fn transform(
        &mut self,
        subject: Subject<'_>,
        input: Input<'_>,
    ) -> Result<TransformOutput, Failure> {
        arm(&mut self.store, self.fuel, self.timeout_ticks, self.hostcall_fuel, subject.now, subject.seed)?;
        let store = &mut self.store;
        let Subject { topic, partition, base_offset, base_timestamp, .. } = subject;
        let result = match (&self.guest, input) {
            (Guest::TransformTyped(guest), Input::Typed(records)) => {
                guest.call_transform(store, subject.context(), records).map(TransformOutput::Typed)
            }
            (Guest::TransformFlat(guest), Input::Flat(records)) => guest
                .call_transform(store, topic, partition, base_offset, base_timestamp, records)
                .map(TransformOutput::Flat),
            _ => return Err(Failure::new(FailureKind::Instantiate, "the component is not a transform")),
        };
        self.finish(result)
    }

    pub(crate) fn consume(
        &mut self,
        subject: Subject<'_>,
        input: Input<'_>,
    ) -> Result<ConsumerOutput, Failure> {
        arm(&mut self.store, self.fuel, self.timeout_ticks, self.hostcall_fuel, subject.now, subject.seed)?;
        let store = &mut self.store;
        let Subject { topic, partition, base_offset, base_timestamp, .. } = subject;
        let result = match (&self.guest, input) {
            (Guest::ConsumerTyped(guest), Input::Typed(records)) => guest
                .call_consume(store, subject.context(), records)
                .map(|result| result.map(ConsumerOutput::Typed)),
            (Guest::ConsumerFlat(guest), Input::Flat(records)) => guest
                .call_consume(store, topic, partition, base_offset, base_timestamp, records)
                .map(|result| result.map(ConsumerOutput::Flat)),
            _ => return Err(Failure::new(FailureKind::Instantiate, "the component is not a consumer")),
        };
        self.finish(result)?.map_err(|error| Failure::new(FailureKind::Guest, error))
    }

    fn finish<T>(&mut self, result: wasmtime::Result<T>) -> Result<T, Failure> {
        self.burnt = self.fuel.saturating_sub(self.store.get_fuel().unwrap_or(0));
        match result {
            Ok(value) => {
                let context = self.store.data_mut();
                context.stdout.finish();
                context.stderr.finish();
                context.limiter.take_denied();
                Ok(value)
            }
            Err(error) => Err(failure(&mut self.store, &error, self.fuel)),
        }
    }
}

/// A store on its way to become an [`Instance`].
struct Fresh {
    store: Store<Context>,
    fuel: u64,
    timeout_ticks: u64,
    hostcall_fuel: usize,
}

impl Fresh {
    fn arm(&mut self, now: i64, seed: u64) -> Result<(), Failure> {
        arm(&mut self.store, self.fuel, self.timeout_ticks, self.hostcall_fuel, now, seed)
    }

    fn instantiate(&mut self, loaded: &Loaded) -> wasmtime::Result<Guest> {
        let instance = loaded.pre.instantiate(&mut self.store)?;
        let store = &mut self.store;
        Ok(match &loaded.entry {
            Entry::TransformTyped(indices) => Guest::TransformTyped(indices.load(store, &instance)?),
            Entry::TransformFlat(indices) => Guest::TransformFlat(indices.load(store, &instance)?),
            Entry::ConsumerTyped(indices) => Guest::ConsumerTyped(indices.load(store, &instance)?),
            Entry::ConsumerFlat(indices) => Guest::ConsumerFlat(indices.load(store, &instance)?),
        })
    }

    fn failure(&mut self, error: &wasmtime::Error) -> Failure {
        failure(&mut self.store, error, self.fuel)
    }
}

/// Sets the limits, the time and the seed for what comes next.
fn arm(
    store: &mut Store<Context>,
    fuel: u64,
    ticks: u64,
    hostcall_fuel: usize,
    now: i64,
    seed: u64,
) -> Result<(), Failure> {
    store.set_fuel(fuel).map_err(|error| Failure::new(FailureKind::Instantiate, error.to_string()))?;
    store.set_epoch_deadline(ticks);
    store.set_hostcall_fuel(hostcall_fuel);
    store.data_mut().ambient.start(now, seed);
    Ok(())
}

fn failure(store: &mut Store<Context>, error: &wasmtime::Error, fuel: u64) -> Failure {
    let context = store.data_mut();
    context.stdout.finish();
    let last_words = context.stderr.finish();
    Failure::of_call(error, context.limiter.take_denied(), &last_words, fuel)
}
