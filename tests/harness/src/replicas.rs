//! What replicas of a partition hold on their disks, compared while nobody writes to them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bus_protocol::Offset;
use bus_protocol::batch::{self, Batches, RecordBatch};
use bytes::Bytes;

/// What replicas have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Batches that were compared.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The batches of one partition's folder, a segment's file at a time.
struct Stored {
    /// Segments to come: base offset and file, in order.
    segments: VecDeque<(Offset, PathBuf)>,
    /// The segment that is read.
    file: PathBuf,
    batches: Batches,
}

impl Stored {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                let base = name.parse().with_context(|| format!("{} is no segment", path.display()))?;
                segments.push((base, path));
            }
        }
        segments.sort();
        Ok(Self { segments: segments.into(), file: folder.to_owned(), batches: batch::split(Bytes::new()) })
    }

    /// The next batch that begins below `end` and ends behind `start`.
    fn next(&mut self, start: Offset, end: Offset) -> anyhow::Result<Option<RecordBatch>> {
        loop {
            match self.batches.next() {
                Some(Ok(batch)) if batch.header().base_offset >= end => return Ok(None),
                Some(Ok(batch)) if batch.header().next_offset() > start => return Ok(Some(batch)),
                Some(Ok(_)) => continue,
                Some(Err(error)) => bail!("{}: {error}", self.file.display()),
                None => {}
            }
            match self.segments.pop_front() {
                Some((base, file)) if base < end => {
                    let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
                    self.batches = batch::split(Bytes::from(bytes));
                    self.file = file;
                }
                _ => return Ok(None),
            }
        }
    }

    fn log_start(&self) -> Offset {
        self.segments.front().map_or(0, |(base, _)| *base)
    }
}

/// Compares the replicas in these folders below the high watermark, batch by batch, byte by byte: from where the one
/// that starts last starts. All must reach the high watermark, unless the partition is empty.
pub fn replicas_agree(folders: &[PathBuf], high_watermark: Offset) -> anyhow::Result<Agreement> {
    let mut replicas =
        folders.iter().map(|folder| Stored::open(folder)).collect::<anyhow::Result<Vec<_>>>()?;
    let start = replicas.iter().map(Stored::log_start).max().unwrap_or(0);
    let mut agreement = Agreement::default();
    let mut end = start;
    loop {
        let mut batches = Vec::with_capacity(replicas.len());
        for replica in &mut replicas {
            batches.push(replica.next(start, high_watermark)?);
        }
        let Some(Some(first)) = batches.first() else {
            let longer = batches.iter().position(Option::is_some);
            ensure!(longer.is_none(), "{} ends at {end}, and others go on", folders[0].display());
            break;
        };
        for (folder, batch) in folders.iter().zip(&batches).skip(1) {
            let Some(batch) = batch else {
                bail!("{} ends at {end}, below the high watermark of {high_watermark}", folder.display());
            };
            ensure!(
                batch.bytes() == first.bytes(),
                "{} and {} differ at offset {end}: {:?} and {:?}",
                folders[0].display(),
                folder.display(),
                first.header(),
                batch.header()
            );
        }
        end = first.header().next_offset();
        agreement.batches += 1;
        agreement.records += u64::try_from(first.header().record_count).unwrap_or_default();
        agreement.bytes += first.bytes().len() as u64;
    }
    ensure!(end >= high_watermark, "the replicas end at {end}, below the high watermark of {high_watermark}");
    Ok(agreement)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use bus_protocol::batch::{BatchBuilder, Compression, assign};

    use super::*;

    /// A batch of one record at each of the offsets, in segments that begin at `bases`.
    fn replica(parent: &Path, name: &str, bases: &[Offset], values: &[&str]) -> PathBuf {
        let folder = parent.join(name);
        std::fs::create_dir(&folder).unwrap();
        for (index, base) in bases.iter().enumerate() {
            let end = bases.get(index + 1).copied().unwrap_or(values.len() as Offset);
            let mut segment = Vec::new();
            for offset in *base..end {
                let mut builder = BatchBuilder::new(Compression::None);
                builder.push(0, None, Some(values[offset as usize].as_bytes()), &[]);
                let mut bytes = builder.build().unwrap().to_vec();
                assign::set_base_offset(&mut bytes, offset);
                segment.extend(bytes);
            }
            std::fs::write(folder.join(format!("{base:020}.log")), segment).unwrap();
        }
        folder
    }

    #[test]
    fn segments_and_starts_may_differ_but_nothing_below_the_high_watermark() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name, bases: &[Offset], values: &[&str]| replica(parent.path(), name, bases, values);
        let one = make("one", &[0, 3], &["a", "b", "c", "d", "e"]);
        let two = make("two", &[1, 2], &["a", "b", "c", "d", "e", "f"]);
        let other = make("other", &[0], &["a", "b", "c", "x", "e"]);
        let short = make("short", &[0], &["a", "b"]);
        let agree = |folders: &[&PathBuf], high_watermark| {
            let folders: Vec<_> = folders.iter().map(|folder| (*folder).clone()).collect();
            replicas_agree(&folders, high_watermark)
        };
        assert_eq!(agree(&[&one, &two], 5).unwrap().records, 4);
        assert_eq!(agree(&[&one, &other], 3).unwrap().records, 3);
        let error = agree(&[&one, &other], 4).unwrap_err().to_string();
        assert!(error.contains("differ at offset 3"), "{error}");
        assert!(agree(&[&one, &short], 3).is_err() && agree(&[&short, &one], 3).is_err());
        assert!(agree(&[&one, &two], 6).is_err(), "one does not reach it");
        assert_eq!(agree(&[&one, &short], 2).unwrap().batches, 2);
        // A segment that is damaged below the high watermark.
        let file = one.join(format!("{:020}.log", 3));
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(agree(&[&one, &two], 5).unwrap_err().to_string().contains("crc"));
        assert!(agree(&[&one, &two], 3).is_ok());
    }

    #[test]
    fn empty_replicas_agree() {
        let parent = tempfile::tempdir().unwrap();
        let folders = ["a", "b"].map(|name| replica(parent.path(), name, &[], &[]));
        assert_eq!(replicas_agree(&folders, 0).unwrap(), Agreement::default());
        assert!(replicas_agree(&folders, 1).is_err());
    }
}
