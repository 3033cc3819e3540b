//! Modules on this node's disk, by content address.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bus_protocol::BlobId;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::data_dir::write_atomically;

/// The blobs of this node. A blob's file is named by its SHA-256 and never changes.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Stores `bytes`; on the disk for good when this returns.
    pub(crate) fn put(&self, bytes: &[u8]) -> io::Result<BlobId> {
        let id = address(bytes);
        let path = self.path(id);
        match self.get(id) {
            Ok(_) => {}
            // Missing, or damaged: either way what we hold is what it should be.
            Err(_) => write_atomically(&path, bytes)?,
        }
        Ok(id)
    }

    /// Reads a blob and checks it against its address.
    pub(crate) fn get(&self, id: BlobId) -> io::Result<Bytes> {
        let bytes = fs::read(self.path(id))?;
        if address(&bytes) == id {
            Ok(Bytes::from(bytes))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("blob {id} does not match its address")))
        }
    }

    /// Removes the blobs that `keep` does not hold. Only for the start, when nobody deploys.
    pub(crate) fn sweep(&self, keep: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(&keep) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Where a blob is, if it is here.
    pub(crate) fn path(&self, id: BlobId) -> PathBuf {
        Path::new(&self.folder).join(id.to_string())
    }
}

fn address(bytes: &[u8]) -> BlobId {
    BlobId(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_blob_is_noticed_and_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(temp.path().to_owned());
        let id = blobs.put(b"module").unwrap();
        assert_eq!(blobs.get(id).unwrap(), "module");
        fs::write(temp.path().join(id.to_string()), "other").unwrap();
        assert!(blobs.get(id).is_err());
        blobs.put(b"module").unwrap();
        assert_eq!(blobs.get(id).unwrap(), "module");
        blobs.sweep(|_| false).unwrap();
        assert_eq!(blobs.get(id).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
