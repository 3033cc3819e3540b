//! What the disk does when one reads and another writes: the most that a follower can catch up with, whose leader is on
//! the same disk.

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use bus_log::storage::{DiskStorage, File, Storage as _};
use tokio::time::Instant;

/// What one read or write carries.
const CHUNK: usize = 1 << 20;
/// Writes that share one fdatasync.
const GROUP: u64 = 8;

/// How long it takes to write a file of so many bytes, to the disk, while another thread reads as many from another
/// file: both in `folder`, by chunks of 1 MiB and past the page cache, as logs are where the file system takes that.
/// Blocks. Whole chunks only.
pub fn raw_disk(folder: &Path, bytes: u64) -> io::Result<Duration> {
    let storage = DiskStorage::default();
    let (old, new) = (folder.join("raw-disk-old"), folder.join("raw-disk-new"));
    let result = measure(&storage, &old, &new, bytes / CHUNK as u64);
    for path in [&old, &new] {
        match storage.remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    result
}

fn measure(storage: &DiskStorage, old: &Path, new: &Path, chunks: u64) -> io::Result<Duration> {
    let (old, new) = (storage.create(old)?, storage.create(new)?);
    write(&*old, chunks)?;
    let started = Instant::now();
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&*old, chunks));
        write(&*new, chunks)?;
        reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))
    })?;
    Ok(started.elapsed())
}

fn write(file: &dyn File, chunks: u64) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    for number in 0..chunks {
        file.write_at(&[&chunk], number * CHUNK as u64)?;
        if number % GROUP == GROUP - 1 {
            file.sync_data()?;
        }
    }
    file.sync_data()
}

fn read(file: &dyn File, chunks: u64) -> io::Result<()> {
    (0..chunks).try_for_each(|number| match file.read(number * CHUNK as u64, CHUNK)?.len() {
        CHUNK => Ok(()),
        length => Err(io::Error::other(format!("{length} bytes were read, not {CHUNK}"))),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn it_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(raw_disk(folder.path(), 3 * CHUNK as u64).unwrap() > Duration::ZERO);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
