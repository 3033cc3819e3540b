//! What the machine itself can do.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bus_client::Client;
use bus_log::storage::{DiskStorage, Storage as _};
use tokio::time::Instant;

use super::Bench;

/// How long each limit is measured.
const EACH: Duration = Duration::from_secs(2);
/// What one write carries.
const WRITE_BYTES: usize = 1 << 20;
/// Writes that share one fdatasync in the second way.
const GROUP: u32 = 8;

/// Raw speeds in millions of bytes a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// One QUIC stream to the broker, which throws the bytes away.
    pub(super) quic: f64,
    /// Sequential writes of 1 MiB, an fdatasync after each.
    pub(super) disk_each: f64,
    /// Sequential writes of 1 MiB, an fdatasync after eight.
    pub(super) disk_grouped: f64,
}

impl Limits {
    /// The faster way to the disk.
    pub(super) fn disk(&self) -> f64 {
        self.disk_each.max(self.disk_grouped)
    }

    /// The most that records can take in: they pass both.
    pub(super) fn produce(&self) -> f64 {
        self.quic.min(self.disk())
    }
}

pub(super) async fn measure(client: &Client, args: &Bench) -> anyhow::Result<Limits> {
    let link = client.measure_link(EACH).await.context("cannot measure the raw QUIC stream")?;
    let folder = args.disk_dir.clone();
    let shown = folder.display().to_string();
    let disk =
        tokio::task::spawn_blocking(move || Ok::<_, io::Error>((write(&folder, 1)?, write(&folder, GROUP)?)));
    let (disk_each, disk_grouped) = disk
        .await?
        .with_context(|| format!("cannot measure the disk in {shown}: name a folder with --disk-dir"))?;
    Ok(Limits { quic: megabytes(link.bytes, link.elapsed), disk_each, disk_grouped })
}

/// Writes for a while, in groups that end with an fdatasync, the way that a log writes: past the page cache, where the
/// file system takes that.
fn write(folder: &Path, group: u32) -> io::Result<f64> {
    let (storage, path) =
        (DiskStorage::default(), folder.join(format!("bus-bench-{}.tmp", std::process::id())));
    let result = write_file(&storage, &path, group);
    storage.remove_file(&path)?;
    result
}

fn write_file(storage: &DiskStorage, path: &Path, group: u32) -> io::Result<f64> {
    let chunk = vec![0x5a; WRITE_BYTES];
    let file = storage.create(path)?;
    let started = Instant::now();
    let mut bytes = 0;
    while started.elapsed() < EACH {
        for _ in 0..group {
            file.write_at(&[&chunk], bytes)?;
            bytes += WRITE_BYTES as u64;
        }
        file.sync_data()?;
    }
    Ok(megabytes(bytes, started.elapsed()))
}

/// Millions of bytes a second.
pub(super) fn megabytes(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64().max(f64::EPSILON)
}
