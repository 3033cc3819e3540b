//! What one instance may hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

/// Elements of all tables of one instance.
const TABLE_ELEMENTS: usize = 100_000;

/// What a function's instances hold, all together.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    pub(crate) instances: AtomicU32,
    pub(crate) memory_bytes: AtomicU64,
}

/// Counts and bounds one instance's memory and tables, over all its modules.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: usize,
    memory: usize,
    table: usize,
    denied: bool,
    gauge: Arc<Gauge>,
}

impl Limiter {
    pub(crate) fn new(limit: u64, gauge: Arc<Gauge>) -> Self {
        gauge.instances.fetch_add(1, Ordering::Relaxed);
        Self {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            memory: 0,
            table: 0,
            denied: false,
            gauge,
        }
    }

    /// Whether memory was refused since the last time that this was asked.
    pub(crate) fn take_denied(&mut self) -> bool {
        std::mem::take(&mut self.denied)
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.gauge.instances.fetch_sub(1, Ordering::Relaxed);
        self.gauge.memory_bytes.fetch_sub(self.memory as u64, Ordering::Relaxed);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let fits = self.memory.checked_add(more).is_some_and(|total| total <= self.limit);
        if !fits {
            self.denied = true;
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.memory += more;
        self.gauge.memory_bytes.fetch_add(more as u64, Ordering::Relaxed);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.table.saturating_add(desired.saturating_sub(current));
        if total > TABLE_ELEMENTS || maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.table = total;
        Ok(true)
    }
}
