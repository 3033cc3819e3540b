//! What a start takes away again that fails before its node belongs to a cluster, so that it leaves nothing behind.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bus_transport::TrustStore;

use crate::authority;
use crate::data_dir::write_atomically;

/// What a start has made: in the data folder, and beside the CAs for clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traces {
    /// Files and folders that were not there, in the order in which they go.
    made: Vec<PathBuf>,
    /// Folders around them that were not there: they go if nobody else has put something there.
    around: Vec<PathBuf>,
    /// The mark of a clean stop, which the start has taken.
    mark: Option<PathBuf>,
    authority: Option<(TrustStore, String, String)>,
    /// The data folder's lock: nobody else makes anything there before this is done.
    lock: Option<Arc<File>>,
}

/// Whether there is nothing at `path`, and that is known: not a link to what is away, nor what cannot be looked at.
pub(crate) fn is_missing(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

impl Traces {
    /// Notes that `folder` is made now, and what is missing on the way to it.
    pub(crate) fn around(&mut self, folder: &Path) {
        let missing =
            folder.ancestors().filter(|folder| !folder.as_os_str().is_empty() && is_missing(folder));
        self.around.extend(missing.map(Path::to_owned));
    }

    /// Notes which of these are missing: what is made there from now on is this start's.
    pub(crate) fn note(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        self.made.extend(paths.into_iter().filter(|path| is_missing(path)));
    }

    /// The start has locked the data folder.
    pub(crate) fn locked(&mut self, lock: Arc<File>) {
        self.lock = Some(lock);
    }

    /// Notes what this start has made.
    pub(crate) fn made(&mut self, path: PathBuf) {
        self.made.push(path);
    }

    /// The start has taken the mark of a clean stop.
    pub(crate) fn took(&mut self, mark: PathBuf) {
        self.mark = Some(mark);
    }

    /// The start has left its new CA for others under `address`.
    pub(crate) fn left_authority(&mut self, store: &TrustStore, address: &str, ca_pem: &str) {
        self.authority = Some((store.clone(), address.to_owned(), ca_pem.to_owned()));
    }

    /// Other nodes have the CA by now.
    pub(crate) fn keep_authority(&mut self) {
        self.authority = None;
    }

    /// The node is of a cluster: what it has made stays.
    pub(crate) fn keep(&mut self) {
        (self.made, self.around, self.authority) = Default::default();
    }

    /// The node has been told what its data folder holds, or has changed that: its next stop says whether it is clean.
    pub(crate) fn keep_unmarked(&mut self) {
        self.mark = None;
    }

    /// Makes it as it was.
    pub(crate) fn remove(self) {
        for path in &self.made {
            let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            tell(path, removed);
        }
        if let Some(mark) = &self.mark {
            tell(mark, write_atomically(mark, b""));
        }
        // Of the CAs, nobody begins to use the folder before this is done.
        let _lock = self.authority.map(|(store, address, ca_pem)| {
            authority::withdraw(&store, &address, &ca_pem).inspect_err(|error| {
                tracing::warn!(%error, "the CA of a start that failed is left behind");
            })
        });
        // One that others use meanwhile stays.
        self.around.iter().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}

fn tell(path: &Path, done: io::Result<()>) {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a start that failed leaves this as it is");
        }
        _ => {}
    }
}
