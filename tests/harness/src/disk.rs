//! A disk that can be full.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The file that fills what is left.
const BALLAST: &str = "ballast";
/// It is written in pieces that become smaller, down to one byte.
const PIECE: usize = 64 << 10;

/// A file system of its own, in memory, of a size that is given; gone when it is dropped. To be dropped before what it
/// lies in.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many bytes at `folder`, which is made. An error where this user may mount nothing: a test is
    /// skipped then, and says so.
    pub fn mount(folder: &Path, bytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        mount(folder, &format!("size={bytes}"))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives it another size; what is on it stays.
    pub fn resize(&self, bytes: u64) -> anyhow::Result<()> {
        mount(&self.folder, &format!("remount,size={bytes}"))
    }

    /// Leaves no room on it.
    pub fn fill(&self) -> anyhow::Result<()> {
        let ballast = self.folder.join(BALLAST);
        let mut file = std::fs::File::create(&ballast).with_context(|| ballast.display().to_string())?;
        let mut piece = vec![0; PIECE];
        while !piece.is_empty() {
            match file.write(&piece) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => piece.truncate(piece.len() / 2),
                Err(error) => return Err(error).context("the ballast"),
            }
        }
        Ok(())
    }

    /// Takes away what [`Self::fill`] has left no room with.
    pub fn make_room(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.folder.join(BALLAST)).context("the ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a broker on it may be ending still.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn mount(folder: &Path, options: &str) -> anyhow::Result<()> {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", options, "bus-test"]).arg(folder);
    let output = mount.output().context("cannot run mount")?;
    ensure!(output.status.success(), "cannot mount: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
