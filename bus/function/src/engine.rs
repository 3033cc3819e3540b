//! wasmtime, set up: the engine, the linker, and the thread that moves epochs on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use wasmtime::component::{HasSelf, Linker};
use wasmtime::{
    Cache, CacheConfig, Config, Engine as WasmEngine, InstanceAllocationStrategy, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

use crate::bindings::bus::function;
use crate::instance::Context;
use crate::{Error, Options, wasi};

/// How often the epoch moves while calls run.
const TICK: Duration = Duration::from_millis(10);
/// Ticks without a call before the ticker sleeps: waking it costs a call more than a few ticks cost the machine.
const LINGER_TICKS: u32 = 100;
/// Core instances, memories and tables that one component may consist of: its own module and its adapters.
const PARTS: u32 = 8;

/// What all functions share of wasmtime.
pub(crate) struct Engine {
    pub(crate) wasm: WasmEngine,
    pub(crate) linker: Linker<Context>,
    ticker: Arc<Ticker>,
}

impl Engine {
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let refuse = |error: wasmtime::Error| Error::Engine(format!("{error:#}"));
        let wasm = WasmEngine::new(&config(options).map_err(refuse)?).map_err(refuse)?;
        let mut linker = Linker::new(&wasm);
        wasi::add_to_linker(&mut linker).map_err(refuse)?;
        function::log::add_to_linker::<_, HasSelf<Context>>(&mut linker, |context| context)
            .map_err(refuse)?;
        function::config::add_to_linker::<_, HasSelf<Context>>(&mut linker, |context| context)
            .map_err(refuse)?;
        let ticker = Arc::new(Ticker::default());
        ticker.clone().spawn(&wasm)?;
        Ok(Self { wasm, linker, ticker })
    }

    /// Moves epochs on until the guard is dropped.
    pub(crate) fn ticking(&self) -> Ticking<'_> {
        self.ticker.active.fetch_add(1, Ordering::SeqCst);
        if self.ticker.parked.load(Ordering::SeqCst) {
            drop(self.ticker.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.ticker.wake.notify_one();
        }
        Ticking(&self.ticker)
    }

    /// The epoch deadline that is `timeout` away, at least.
    pub(crate) fn ticks(timeout: Duration) -> u64 {
        timeout.as_millis().div_ceil(TICK.as_millis()) as u64 + 1
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.ticker.stop.store(true, Ordering::SeqCst);
        drop(self.ticker.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.ticker.wake.notify_one();
    }
}

fn config(options: &Options) -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .consume_fuel(true)
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        // A deploy compiles on one core and leaves the others to the broker.
        .parallel_compilation(false)
        .max_wasm_stack(512 << 10);
    if let Some(directory) = &options.cache {
        let mut cache = CacheConfig::new();
        cache.with_directory(directory.clone()).with_files_total_size_soft_limit(options.cache_bytes);
        config.cache(Some(Cache::new(cache)?));
    }
    // Address space is reserved and committed page by page as guests touch it; an instance that goes gives its
    // pages back, so that idle slots cost nothing.
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(options.instances)
        .total_core_instances(options.instances * PARTS)
        .total_memories(options.instances)
        .total_tables(options.instances * PARTS)
        .total_stacks(0)
        .max_core_instances_per_component(PARTS * 2)
        .max_memories_per_component(PARTS)
        .max_tables_per_component(PARTS * 2)
        .max_memory_size(1 << 30)
        .max_unused_warm_slots(16)
        .linear_memory_keep_resident(0)
        .table_keep_resident(0);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Ok(config)
}

/// A call is under way.
pub(crate) struct Ticking<'a>(&'a Ticker);

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The thread that moves the epoch on, so that a call over its time is interrupted. Sleeps when nothing runs.
#[derive(Default)]
struct Ticker {
    active: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Ticker {
    fn spawn(self: Arc<Self>, engine: &WasmEngine) -> Result<(), Error> {
        let engine = engine.clone();
        std::thread::Builder::new().name("function-epoch".into()).spawn(move || self.run(&engine))?;
        Ok(())
    }

    fn run(&self, engine: &WasmEngine) {
        let mut quiet = 0;
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.stop.load(Ordering::SeqCst) {
            if self.active.load(Ordering::SeqCst) > 0 {
                quiet = 0;
            } else {
                quiet += 1;
            }
            if quiet > LINGER_TICKS {
                // A call that starts after this store sees it and takes the lock, which the wait gives up.
                self.parked.store(true, Ordering::SeqCst);
                while self.active.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
                    guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.parked.store(false, Ordering::SeqCst);
                quiet = 0;
            } else {
                guard = self.wake.wait_timeout(guard, TICK).unwrap_or_else(PoisonError::into_inner).0;
                engine.increment_epoch();
            }
        }
    }
}
