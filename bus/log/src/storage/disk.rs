//! The machine's file system.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;

use super::buffers::{BLOCK, Buffers};
use super::direct::{self, Direct};
use super::parts::Parts;
use super::{File, Storage, read_copy};

/// The most that goes to the page cache in one write.
const GATHERED_BYTES: usize = 256 << 10;

/// The machine's file system. Paths are taken as they come.
///
/// Large writes, and large reads of files that were not written in small pieces, go past the page cache where they can,
/// unless told otherwise: who reads what is old pushes nothing out of it.
#[derive(Clone, Debug)]
pub struct DiskStorage {
    buffers: Buffers,
    direct: bool,
}

impl Default for DiskStorage {
    fn default() -> Self {
        Self::new(true)
    }
}

#[derive(Debug)]
struct DiskFile {
    file: fs::File,
    direct: Option<Direct>,
    buffers: Buffers,
    /// Bytes written through the page cache since the file was opened, less those written past it: where there are any,
    /// it is worth asking the cache for them.
    cached: AtomicI64,
}

impl DiskStorage {
    /// With `direct`, past the page cache where it can be.
    pub fn new(direct: bool) -> Self {
        Self { buffers: Buffers::default(), direct }
    }

    fn shared(&self, file: fs::File) -> Arc<dyn File> {
        let buffers = self.buffers.clone();
        Arc::new(DiskFile {
            file,
            direct: self.direct.then(Direct::default),
            buffers,
            cached: AtomicI64::new(0),
        })
    }
}

impl DiskFile {
    /// Writes `rest` through the page cache: gathered, as a batch has several parts, and std no pwritev.
    fn write_cached(&self, mut rest: Parts<'_>, mut position: u64) -> io::Result<()> {
        let mut gathered = vec![0; rest.left().min(GATHERED_BYTES)];
        while rest.left() > 0 {
            let count = rest.left().min(gathered.len());
            rest.copy(&mut gathered[..count]);
            self.file.write_all_at(&gathered[..count], position)?;
            position += count as u64;
        }
        Ok(())
    }
}

impl Storage for DiskStorage {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        OpenOptions::new().read(true).write(true).open(path).map(|file| self.shared(file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(self.shared(file))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        // Names that are not UTF-8 are none of ours.
        let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok());
        fs::read_dir(dir)?.map(name).filter_map(Result::transpose).collect()
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    #[cfg(target_os = "linux")]
    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        let system = rustix::fs::statvfs(dir).ok()?;
        // Some file systems that are not on a disk count no blocks at all.
        (system.f_blocks > 0).then(|| system.f_bavail.saturating_mul(system.f_frsize))
    }
}

impl File for DiskFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.file.read_at(&mut buffer[read..], position + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn read(&self, position: u64, length: usize) -> io::Result<Bytes> {
        let worth = length >= direct::LEAST_BYTES && self.cached.load(Ordering::Relaxed) <= 0;
        if let Some(direct) = self.direct.as_ref().filter(|_| worth)
            && let Some(bytes) = direct.read(&self.file, &self.buffers, position, length)?
        {
            return Ok(bytes);
        }
        read_copy(self, position, length)
    }

    fn write_at(&self, parts: &[&[u8]], position: u64) -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let Some(direct) = self.direct.as_ref().filter(|_| length >= direct::LEAST_BYTES) else {
            self.cached.fetch_add(length as i64, Ordering::Relaxed);
            return self.write_cached(Parts::new(parts), position);
        };
        // The blocks from the one on that the last write ended in, which is written again with what follows in it: left
        // to the page cache, it could reach the disk after what comes behind it. Then what is left, less than a block
        // where all went well.
        let mut head = vec![0; position as usize % BLOCK];
        let start = position - head.len() as u64;
        if self.read_at(&mut head, start)? < head.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let all: Vec<&[u8]> = std::iter::once(&head[..]).chain(parts.iter().copied()).collect();
        let mut rest = Parts::new(&all);
        let written = direct.write(&self.file, &self.buffers, &mut rest, start)?;
        self.cached.fetch_sub(written as i64, Ordering::Relaxed);
        self.write_cached(rest, start + written)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn length(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_system_without_blocks_is_not_a_full_one() {
        let storage = DiskStorage::default();
        assert_eq!(storage.free_bytes(Path::new("/proc")), None);
        let folder = tempfile::tempdir().unwrap();
        assert!(storage.free_bytes(folder.path()).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_way_it_is_written_it_reads_back(
            writes in prop::collection::vec((prop::collection::vec(0..200_000usize, 1..4), 0..5_000usize), 1..8),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            let storage = DiskStorage::default();
            let file = storage.create(&path).unwrap();
            let mut expected: Vec<u8> = Vec::new();
            for (number, (lengths, cut)) in writes.into_iter().enumerate() {
                let part = |length: &usize| (0..*length).map(|at| (at * 7 + number) as u8).collect::<Vec<_>>();
                let parts: Vec<Vec<u8>> = lengths.iter().map(part).collect();
                let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                file.write_at(&slices, expected.len() as u64).unwrap();
                expected.extend(parts.concat());
                let mut read = vec![0; expected.len() + 1];
                prop_assert_eq!(file.read_at(&mut read, 0).unwrap(), expected.len());
                prop_assert!(read[..expected.len()] == expected);
                let from = cut.min(expected.len());
                let read = file.read(from as u64, expected.len() + 100).unwrap();
                prop_assert!(read == expected[from..]);
                expected.truncate(expected.len() - cut.min(expected.len()));
                file.truncate(expected.len() as u64).unwrap();
            }
            file.sync_data().unwrap();
            prop_assert!(fs::read(&path).unwrap() == expected);
        }
    }

    #[test]
    fn large_writes_go_past_the_page_cache_where_they_can() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = fs::File::create(folder.path().join("file")).unwrap();
        let bytes = vec![7; 3 << 20];
        let (parts, direct) = ([&bytes[..100], &bytes[100..]], Direct::default());
        let mut rest = Parts::new(&parts);
        let written = direct.write(&file, &Buffers::default(), &mut rest, 0).unwrap();
        assert!(written == 0 || written == 3 << 20, "all of it, or none where the file system will not");
        assert_eq!(rest.left() as u64 + written, 3 << 20);
        let read = direct.read(&file, &Buffers::default(), 5_000, 70_000).unwrap();
        assert_eq!(read.is_some(), written > 0);
        assert!(read.is_none_or(|read| read == bytes[..70_000]));
    }
}
