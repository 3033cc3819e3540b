//! A deployed function: one version of it, with its instances, its back-off, its log and its figures.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus_protocol::{BlobId, FunctionSpec};
use tokio::sync::{Semaphore, oneshot};

use crate::backoff::Backoff;
use crate::failure::Failure;
use crate::host::Shared;
use crate::instance::{Instance, Setting};
use crate::limiter::Gauge;
use crate::log::FunctionLog;
use crate::module::Module;
use crate::stats::{Counters, State, Stats};

/// One version of a deployed function. Made by [`crate::FunctionHost::function`]; cheap while idle: it holds
/// neither module bytes nor an instance.
pub struct Function {
    spec: FunctionSpec,
    version: u32,
    module: Arc<Module>,
    pub(crate) shared: Arc<Shared>,
    config: Arc<BTreeMap<String, String>>,
    warm: Mutex<Vec<Warm>>,
    permits: Arc<Semaphore>,
    backoff: Mutex<Backoff>,
    pub(crate) counters: Counters,
    gauge: Arc<Gauge>,
    log: Arc<FunctionLog>,
}

/// An instance between calls.
struct Warm {
    instance: Instance,
    since: Duration,
}

/// Why a call has no result.
#[derive(Debug)]
pub(crate) enum CallError {
    Failed(Failure),
    Backoff(Duration),
    Stopped,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Function {
    pub(crate) fn new(spec: FunctionSpec, version: u32, module: Arc<Module>, shared: Arc<Shared>) -> Self {
        let options = &shared.options;
        // One function leaves at least one worker to the others, whatever it does.
        let permits = Arc::new(Semaphore::new((options.worker_threads() - 1).max(1)));
        let log = FunctionLog::new(options.log_lines, options.log_line_bytes, shared.clock.clone());
        Self {
            config: Arc::new(spec.config.clone()),
            spec,
            version,
            module,
            shared,
            warm: Mutex::default(),
            permits,
            backoff: Mutex::default(),
            counters: Counters::default(),
            gauge: Arc::default(),
            log: Arc::new(log),
        }
    }

    /// Its settings.
    pub fn spec(&self) -> &FunctionSpec {
        &self.spec
    }

    /// Its version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Its module's content address.
    pub fn module(&self) -> BlobId {
        self.module.id()
    }

    /// Its log.
    pub fn log(&self) -> &FunctionLog {
        &self.log
    }

    /// Its log's lines after a sequence number, oldest first; 0 for all that are kept.
    pub fn logs(&self, after: u64) -> Vec<bus_protocol::request::LogLine> {
        self.log.after(after)
    }

    pub(crate) fn log_line(&self, level: &str, message: &str) {
        self.log.push(level, message);
    }

    /// How it does.
    pub fn stats(&self) -> Stats {
        let counters = &self.counters;
        let instances = self.gauge.instances.load(Ordering::Relaxed);
        let state = match (lock(&self.backoff).is_failing(), instances) {
            (true, _) => State::Failing,
            (false, 0) => State::Idle,
            (false, _) => State::Running,
        };
        Stats {
            state,
            records_in: counters.records_in.load(Ordering::Relaxed),
            records_out: counters.records_out.load(Ordering::Relaxed),
            records_failed: counters.records_failed.load(Ordering::Relaxed),
            calls_failed: counters.calls_failed.load(Ordering::Relaxed),
            fuel: counters.fuel.load(Ordering::Relaxed),
            instances,
            memory_bytes: self.gauge.memory_bytes.load(Ordering::Relaxed),
            last_error: counters.last_error(),
        }
    }

    /// How long the function is to be left alone yet, after a failure.
    pub fn backoff(&self) -> Option<Duration> {
        lock(&self.backoff).remaining(self.shared.clock.monotonic())
    }

    /// Runs `work` with an instance on a worker. `whole`: whether a failure counts towards the doubling of the
    /// back-off. Callers are served in their order. When the future is dropped, a call that has begun goes on.
    pub(crate) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        whole: bool,
        work: impl FnOnce(&mut Instance) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, CallError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| CallError::Stopped)?;
        if let Some(left) = self.backoff() {
            return Err(CallError::Backoff(left));
        }
        let (answer, answered) = oneshot::channel();
        let function = self.clone();
        let job = Box::new(move || {
            let result = function.run(whole, work);
            drop(permit);
            // Nobody waits any more where the caller was cancelled.
            let _ = answer.send(result);
        });
        self.shared.queue.send(job).await.map_err(|_| CallError::Stopped)?;
        answered.await.map_err(|_| CallError::Stopped)?.map_err(CallError::Failed)
    }

    fn run<T>(
        &self,
        whole: bool,
        work: impl FnOnce(&mut Instance) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let start = self.shared.clock.monotonic();
        let warm = lock(&self.warm).pop().map(|warm| warm.instance);
        let _ticking = self.shared.engine.ticking();
        let result = warm.map_or_else(|| self.instantiate(start), Ok).and_then(|mut instance| {
            let result = work(&mut instance);
            self.counters.fuel.fetch_add(std::mem::take(&mut instance.burnt), Ordering::Relaxed);
            if result.as_ref().err().is_none_or(Failure::spares_instance) {
                let since = self.shared.clock.monotonic();
                lock(&self.warm).push(Warm { instance, since });
            }
            result
        });
        match &result {
            Ok(_) => lock(&self.backoff).succeeded(),
            Err(failure) => self.note(failure, whole, start),
        }
        result
    }

    fn note(&self, failure: &Failure, whole: bool, start: Duration) {
        let now = self.shared.clock.monotonic();
        lock(&self.backoff).failed(&self.shared.options, now, now.saturating_sub(start), whole);
        self.counters.failed(self.shared.clock.timestamp(), failure);
        self.log.push("error", &format!("call failed: {failure}"));
    }

    fn instantiate(&self, now: Duration) -> Result<Instance, Failure> {
        self.shared.make_room();
        let loaded = self.module.loaded(&self.shared.engine, now)?;
        let setting = Setting {
            spec: &self.spec,
            config: self.config.clone(),
            log: self.log.clone(),
            gauge: self.gauge.clone(),
            output_bytes: self.shared.options.output_bytes,
        };
        Instance::new(&self.shared.engine, &loaded, &setting)
    }

    /// Makes an instance and throws it away, so that a component that cannot start is known at once. Blocks.
    pub(crate) fn try_instance(&self) -> Result<(), Failure> {
        let _ticking = self.shared.engine.ticking();
        self.instantiate(self.shared.clock.monotonic()).map(drop)
    }

    /// The seed of a call's random numbers.
    pub(crate) fn seed(&self, parts: &[i64]) -> u64 {
        crate::wasi::seed(&self.spec.name, parts)
    }

    /// Instances that exist, calls under way included.
    pub(crate) fn instances(&self) -> u32 {
        self.gauge.instances.load(Ordering::Relaxed)
    }

    /// Drops instances that had no call since `before`.
    pub(crate) fn drop_idle(&self, before: Duration) {
        // Dropped outside the lock: giving memory back takes a while.
        let idle: Vec<Warm> = lock(&self.warm).extract_if(.., |warm| warm.since <= before).collect();
        drop(idle);
    }

    /// Since when the instance that waits longest has waited.
    pub(crate) fn oldest_idle(&self) -> Option<Duration> {
        lock(&self.warm).iter().map(|warm| warm.since).min()
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function").field("name", &self.spec.name).field("version", &self.version).finish()
    }
}
