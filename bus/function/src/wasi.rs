//! WASI, made deterministic: what a guest's standard library needs, and nothing that tells one run from another.
//!
//! Clocks answer the batch's time, and move only when the guest sleeps, which takes no time. Random follows from
//! a seed. There is no environment, no argument, no folder, no standard input; sockets are not offered at all.
//! Standard output and standard error end in the function's log, line by line.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream, WasiCli, WasiCliView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, random, sync};
use wasmtime_wasi::p2::{DynPollable, OutputStream, Pollable, StreamResult, subscribe};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::failure::cut;
use crate::instance::Context;
use crate::log::FunctionLog;

/// The most random bytes that a guest gets at once.
const RANDOM_BYTES: u64 = 1 << 20;
/// Handles that one instance may hold open.
const HANDLES: usize = 4_096;
/// What a guest may write at once.
const WRITE_BYTES: usize = 64 << 10;

/// Time and chance as one call sees them.
#[derive(Debug, Default)]
pub(crate) struct Ambient {
    /// The wall clock at the start of the call, in milliseconds since the Unix epoch.
    millis: u64,
    /// How long the guest has slept in this call, in nanoseconds.
    slept: u64,
    random: u64,
    /// Constant for a function: an instance's hash tables read it once, and must not tell when that was.
    hash_seed: u64,
}

impl Ambient {
    pub(crate) fn new(hash_seed: u64) -> Self {
        Self { hash_seed, ..Self::default() }
    }

    /// Sets time and seed for a call.
    pub(crate) fn start(&mut self, timestamp: i64, seed: u64) {
        self.millis = u64::try_from(timestamp).unwrap_or(0);
        self.slept = 0;
        self.random = seed;
    }

    fn nanoseconds(&self) -> u64 {
        self.millis.saturating_mul(1_000_000).saturating_add(self.slept)
    }

    /// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }

    fn bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        if len > RANDOM_BYTES {
            wasmtime::bail!("{len} random bytes are over the limit of {RANDOM_BYTES}");
        }
        let mut out = Vec::with_capacity(len as usize + 8);
        while (out.len() as u64) < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len as usize);
        Ok(out)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seed from parts; the same parts give the same seed, on every machine and in every version.
pub(crate) fn seed(name: &str, parts: &[i64]) -> u64 {
    // FNV-1a, then mixed.
    let bytes = name.bytes().chain(parts.iter().flat_map(|part| part.to_le_bytes()));
    mix(bytes
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)))
}

impl clocks::wall_clock::Host for Ambient {
    fn now(&mut self) -> wasmtime::Result<clocks::wall_clock::Datetime> {
        let nanoseconds = self.nanoseconds();
        Ok(clocks::wall_clock::Datetime {
            seconds: nanoseconds / 1_000_000_000,
            nanoseconds: (nanoseconds % 1_000_000_000) as u32,
        })
    }

    fn resolution(&mut self) -> wasmtime::Result<clocks::wall_clock::Datetime> {
        Ok(clocks::wall_clock::Datetime { seconds: 0, nanoseconds: 1_000_000 })
    }
}

/// The monotonic clock's view of the store: the time, and the table for its pollables.
pub(crate) struct Clocks<'a> {
    ambient: &'a mut Ambient,
    table: &'a mut ResourceTable,
}

struct HasClocks;
impl HasData for HasClocks {
    type Data<'a> = Clocks<'a>;
}

impl clocks::monotonic_clock::Host for Clocks<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.ambient.nanoseconds())
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(1_000_000)
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.subscribe_duration(when.saturating_sub(self.ambient.nanoseconds()))
    }

    fn subscribe_duration(&mut self, duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.ambient.slept = self.ambient.slept.saturating_add(duration);
        let slept = self.table.push(Slept)?;
        subscribe(self.table, slept)
    }
}

/// A sleep: over as soon as it began.
struct Slept;

#[async_trait::async_trait]
impl Pollable for Slept {
    async fn ready(&mut self) {}
}

struct HasAmbient;
impl HasData for HasAmbient {
    type Data<'a> = &'a mut Ambient;
}

impl random::random::Host for Ambient {
    fn get_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        self.bytes(len)
    }
    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        Ok(self.next())
    }
}

impl random::insecure::Host for Ambient {
    fn get_insecure_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        self.bytes(len)
    }
    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        Ok(self.next())
    }
}

impl random::insecure_seed::Host for Ambient {
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        Ok((self.hash_seed, mix(self.hash_seed)))
    }
}

struct HasTable;
impl HasData for HasTable {
    type Data<'a> = &'a mut ResourceTable;
}

impl WasiView for Context {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Offers all of the above to components.
pub(crate) fn add_to_linker(l: &mut Linker<Context>) -> wasmtime::Result<()> {
    fn ambient(context: &mut Context) -> &mut Ambient {
        &mut context.ambient
    }
    fn table(context: &mut Context) -> &mut ResourceTable {
        &mut context.table
    }
    type C = Context;
    clocks::wall_clock::add_to_linker::<C, HasAmbient>(l, ambient)?;
    clocks::monotonic_clock::add_to_linker::<C, HasClocks>(l, |context| Clocks {
        ambient: &mut context.ambient,
        table: &mut context.table,
    })?;
    random::random::add_to_linker::<C, HasAmbient>(l, ambient)?;
    random::insecure::add_to_linker::<C, HasAmbient>(l, ambient)?;
    random::insecure_seed::add_to_linker::<C, HasAmbient>(l, ambient)?;
    sync::io::poll::add_to_linker::<C, HasTable>(l, table)?;
    sync::io::streams::add_to_linker::<C, HasTable>(l, table)?;
    sync::io::error::add_to_linker::<C, HasTable>(l, table)?;
    filesystem::preopens::add_to_linker::<C, WasiFilesystem>(l, C::filesystem)?;
    sync::filesystem::types::add_to_linker::<C, WasiFilesystem>(l, C::filesystem)?;
    cli::exit::add_to_linker::<C, WasiCli>(l, C::cli)?;
    cli::environment::add_to_linker::<C, WasiCli>(l, C::cli)?;
    cli::stdin::add_to_linker::<C, WasiCli>(l, C::cli)?;
    cli::stdout::add_to_linker::<C, WasiCli>(l, C::cli)?;
    cli::stderr::add_to_linker::<C, WasiCli>(l, C::cli)?;
    cli::terminal_input::add_to_linker::<C, WasiCli>(l, C::cli)?;
    cli::terminal_output::add_to_linker::<C, WasiCli>(l, C::cli)?;
    cli::terminal_stdin::add_to_linker::<C, WasiCli>(l, C::cli)?;
    cli::terminal_stdout::add_to_linker::<C, WasiCli>(l, C::cli)?;
    cli::terminal_stderr::add_to_linker::<C, WasiCli>(l, C::cli)?;
    Ok(())
}

/// WASI's own state for an instance whose output goes to `stdout` and `stderr`.
pub(crate) fn context(stdout: &LineStream, stderr: &LineStream) -> (WasiCtx, ResourceTable) {
    let mut wasi = WasiCtx::builder();
    wasi.stdout(stdout.clone()).stderr(stderr.clone());
    wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES);
    (wasi.build(), table)
}

/// A stream that cuts what is written to it into lines and gives them to a log.
#[derive(Clone)]
pub(crate) struct LineStream {
    level: &'static str,
    log: Arc<FunctionLog>,
    line: Arc<Mutex<Line>>,
}

#[derive(Default)]
struct Line {
    /// What there is of the line, up to the log's longest.
    bytes: Vec<u8>,
    /// The last line that was complete: a panic's message, if the guest panicked.
    last: String,
}

impl LineStream {
    pub(crate) fn new(level: &'static str, log: Arc<FunctionLog>) -> Self {
        Self { level, log, line: Arc::default() }
    }

    fn push(&self, bytes: &[u8]) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = self.log.line_bytes();
        for (n, part) in bytes.split(|&byte| byte == b'\n').enumerate() {
            if n > 0 {
                self.end(&mut line);
            }
            let room = limit.saturating_sub(line.bytes.len());
            line.bytes.extend_from_slice(&part[..part.len().min(room)]);
        }
    }

    fn end(&self, line: &mut Line) {
        let text = String::from_utf8_lossy(&line.bytes).into_owned();
        line.bytes.clear();
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        self.log.push(self.level, text);
        // A panic in Rust takes two lines ("thread panicked at src/lib.rs:3:5:", then why) and a note.
        let continued = line.last.ends_with(':');
        let text = cut(text, 400);
        if text.starts_with("note:") {
        } else if continued {
            line.last = format!("{} {text}", cut(&line.last, 400));
        } else {
            text.clone_into(&mut line.last);
        }
    }

    /// Ends the line that is under way; answers with the last line since this was asked.
    pub(crate) fn finish(&self) -> String {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if !line.bytes.is_empty() {
            self.end(&mut line);
        }
        std::mem::take(&mut line.last)
    }
}

impl IsTerminal for LineStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LineStream {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this one, which the linker does not offer.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for LineStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LineStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}
