//! The host of all functions: the engine, the workers, and who sweeps up after them.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bus_protocol::{BlobId, Clock, FunctionSpec};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::engine::Engine;
use crate::inspect::{InvalidModule, Kind, Loaded, ModuleInfo};
use crate::module::{MemoryModule, Module, ModuleSource, blob_id};
use crate::{Error, Function, Options};

/// A call, ready to run on a worker.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// What functions share.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) options: Options,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) queue: mpsc::Sender<Job>,
    modules: Mutex<HashMap<BlobId, Weak<Module>>>,
    functions: Mutex<Vec<Weak<Function>>>,
    sweep: Arc<Sweep>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn functions(&self) -> Vec<Arc<Function>> {
        let mut functions = lock(&self.functions);
        functions.retain(|function| function.strong_count() > 0);
        functions.iter().filter_map(Weak::upgrade).collect()
    }

    /// Drops idle instances, oldest first, until there is room for another.
    pub(crate) fn make_room(&self) {
        let functions = self.functions();
        let mut live: u32 = functions.iter().map(|function| function.instances()).sum();
        while live >= self.options.instances {
            let oldest =
                functions.iter().filter_map(|f| Some((f.oldest_idle()?, f))).min_by_key(|(at, _)| *at);
            let Some((since, function)) = oldest else { return };
            function.drop_idle(since);
            live = functions.iter().map(|function| function.instances()).sum();
        }
    }

    fn sweep(&self) {
        let Some(before) = self.clock.monotonic().checked_sub(self.options.idle()) else { return };
        for function in self.functions() {
            function.drop_idle(before);
        }
        let mut modules = lock(&self.modules);
        modules.retain(|_, module| module.strong_count() > 0);
        let live: Vec<Arc<Module>> = modules.values().filter_map(Weak::upgrade).collect();
        drop(modules);
        for module in live {
            module.drop_idle(before);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        *lock(&self.sweep.stopped) = true;
        self.sweep.wake.notify_all();
    }
}

/// The sweeper's bell.
#[derive(Default)]
struct Sweep {
    stopped: Mutex<bool>,
    wake: Condvar,
}

/// Runs functions. Its threads end once it and all its functions are dropped.
pub struct FunctionHost {
    shared: Arc<Shared>,
}

impl FunctionHost {
    /// Sets up the engine and starts the workers. Takes some milliseconds; blocks.
    pub fn new(options: Options, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        options.validate().map_err(Error::Options)?;
        let engine = Engine::new(&options)?;
        let (queue, jobs) = mpsc::channel(options.queue);
        let jobs = Arc::new(Mutex::new(jobs));
        for n in 0..options.worker_threads() {
            let jobs = jobs.clone();
            std::thread::Builder::new().name(format!("function-{n}")).spawn(move || work(&jobs))?;
        }
        let sweep = Arc::new(Sweep::default());
        let every = (options.idle() / 4).clamp(Duration::from_millis(100), Duration::from_secs(10));
        let shared = Arc::new(Shared {
            engine,
            options,
            clock,
            queue,
            modules: Mutex::default(),
            functions: Mutex::default(),
            sweep: sweep.clone(),
        });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("function-sweep".into())
            .spawn(move || sweep_every(&weak, &sweep, every))?;
        Ok(Self { shared })
    }

    /// What the component in `bytes` is, or why it cannot be deployed: compiles it (which fills the compile
    /// cache), checks imports and export, and starts an instance once, under the default limits. Blocks, for
    /// some 30 ms for a small component: call it off the async runtime.
    pub fn inspect(&self, bytes: &Bytes) -> Result<ModuleInfo, InvalidModule> {
        let loaded = Loaded::new(&self.shared.engine, bytes)?;
        let info = ModuleInfo { kind: loaded.kind(), interface: loaded.interface(), blob: blob_id(bytes) };
        drop(loaded);
        let spec = trial(info.kind);
        let source = Arc::new(MemoryModule::new(bytes.clone()));
        let module = Arc::new(Module::new(source));
        let trial = Function::new(spec, 0, module, self.shared.clone());
        // On a thread of its own: a guest that writes or sleeps while it starts must not meet the caller's runtime.
        let started = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .spawn_scoped(scope, || trial.try_instance())
                .map(|thread| thread.join())
        });
        match started {
            Ok(Ok(Ok(()))) => Ok(info),
            Ok(Ok(Err(failure))) => Err(InvalidModule::Start(failure.message)),
            Ok(Err(_)) | Err(_) => Err(InvalidModule::Start("no thread to try it on".into())),
        }
    }

    /// A function ready to be called. Nothing is read or compiled before the first call. Functions of the same
    /// module share its compiled component.
    pub fn function(
        &self,
        spec: FunctionSpec,
        version: u32,
        source: Arc<dyn ModuleSource>,
    ) -> Result<Arc<Function>, Error> {
        spec.validate().map_err(Error::Spec)?;
        let module = {
            let mut modules = lock(&self.shared.modules);
            let id = source.id();
            let known = modules.get(&id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let module = Arc::new(Module::new(source));
                modules.insert(id, Arc::downgrade(&module));
                module
            })
        };
        let function = Arc::new(Function::new(spec, version, module, self.shared.clone()));
        lock(&self.shared.functions).push(Arc::downgrade(&function));
        Ok(function)
    }

    /// Drops instances and components that were idle for [`Options::idle_ms`]. The host does so by itself every
    /// quarter of that time, or every 10 s; tests that hold the clock call it.
    pub fn sweep(&self) {
        self.shared.sweep();
    }

    /// Compiled components in memory.
    pub fn components(&self) -> usize {
        let modules: Vec<_> = lock(&self.shared.modules).values().filter_map(Weak::upgrade).collect();
        modules.iter().filter(|module| module.is_loaded()).count()
    }
}

impl std::fmt::Debug for FunctionHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FunctionHost").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// Settings to start a component with that has none yet.
fn trial(kind: Kind) -> FunctionSpec {
    crate::test_run::default_spec("inspect", kind)
}

fn work(jobs: &Mutex<mpsc::Receiver<Job>>) {
    // WASI's synchronous calls look for a runtime to block on. This one is never driven by anything else, and
    // spares the process the threads that WASI would start for itself.
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let _entered = runtime.as_ref().ok().map(tokio::runtime::Runtime::enter);
    loop {
        // One idle worker waits for a job, the others for their turn to wait.
        let job = lock(jobs).blocking_recv();
        let Some(job) = job else { return };
        // A panic here is a bug of ours. It ends the call, not the worker.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a function call panicked in the host");
        }
    }
}

fn sweep_every(shared: &Weak<Shared>, sweep: &Sweep, every: Duration) {
    let mut stopped = lock(&sweep.stopped);
    while !*stopped {
        stopped = sweep.wake.wait_timeout(stopped, every).unwrap_or_else(PoisonError::into_inner).0;
        if *stopped {
            return;
        }
        drop(stopped);
        let Some(host) = shared.upgrade() else { return };
        host.sweep();
        drop(host);
        stopped = lock(&sweep.stopped);
    }
}
