//! Temporary folders of a verb. They go with the process, also where it is interrupted twice and the verb is left where
//! it stands.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

/// What is left of a verb may write for a moment still: how often, and how long after, it is tried again.
const ATTEMPTS: usize = 50;
const AGAIN: Duration = Duration::from_millis(10);

/// The folders. A clone is a handle to the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scratch(Arc<Mutex<Vec<TempDir>>>);

impl Scratch {
    /// A new folder, which stays until [`Self::clear`].
    pub(crate) fn folder(&self, prefix: &str) -> anyhow::Result<PathBuf> {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir();
        let folder =
            folder.context("cannot make a temporary folder: set TMPDIR to one that can be written")?;
        let path = folder.path().to_owned();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(folder);
        Ok(path)
    }

    /// Deletes all of them. Blocks.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        let folders = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for folder in folders {
            let path = folder.keep();
            let mut removed = fs::remove_dir_all(&path);
            for _ in 1..ATTEMPTS {
                match &removed {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        std::thread::sleep(AGAIN);
                        removed = fs::remove_dir_all(&path);
                    }
                    _ => break,
                }
            }
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot delete the temporary folder {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_go_with_all_that_is_in_them() {
        let scratch = Scratch::default();
        let folders = ["bus-a-", "bus-b-"].map(|prefix| scratch.clone().folder(prefix).unwrap());
        fs::write(folders[0].join("file"), "x").unwrap();
        fs::remove_dir(&folders[1]).unwrap();
        scratch.clear().unwrap();
        assert!(!folders[0].exists());
        scratch.clear().unwrap();
    }
}
