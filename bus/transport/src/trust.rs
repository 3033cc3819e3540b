//! Whom a client trusts.

use std::io;
use std::path::{Path, PathBuf};

/// How a client makes sure that the server is the one it wants.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The server's certificate is signed by the CA in this PEM file.
    File(PathBuf),
    /// The server's certificate is signed by this CA, in PEM.
    Pem(String),
    /// The CA that a broker on this machine left for its address; see [`TrustStore`].
    Store(TrustStore),
    /// Any certificate will do: encrypted, but whoever is on the way can read and change everything.
    Insecure,
}

impl Trust {
    /// The trust of the user who runs this: what [`TrustStore::user`] holds.
    pub fn user() -> Self {
        Self::Store(TrustStore::user())
    }
}

/// The CAs that brokers on this machine leave for their user's clients, one PEM file an address.
#[derive(Clone, Debug)]
pub struct TrustStore {
    folder: PathBuf,
}

impl TrustStore {
    /// The user's store: `$BUS_TRUST_DIR`, else `$XDG_DATA_HOME/bus/trust`, else `~/.local/share/bus/trust`.
    pub fn user() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = variable("BUS_TRUST_DIR")
            .or_else(|| variable("XDG_DATA_HOME").map(|data| data.join("bus/trust")))
            .or_else(|| variable("HOME").map(|home| home.join(".local/share/bus/trust")))
            .unwrap_or_else(|| PathBuf::from("/tmp/bus/trust"));
        Self { folder }
    }

    /// A store in another folder; it need not exist.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of the broker at `address` (`HOST:PORT`), whether it exists or not.
    /// `localhost`, `[::1]` and `0.0.0.0` are filed as `127.0.0.1`.
    pub fn path(&self, address: &str) -> PathBuf {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let host = match host.as_str() {
            "localhost" | "::1" | "::" | "0.0.0.0" => "127.0.0.1".to_owned(),
            // The name comes from a flag: it must not lead out of the folder.
            other => other.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-', "_"),
        };
        let port = port.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        self.folder.join(format!("{host}_{port}.pem"))
    }

    /// Leaves the CA of the broker at `address`, in place of what was there. Readers see the old or the new file whole.
    pub fn publish(&self, address: &str, ca_pem: &str) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        crate::identity::write_atomically(&self.path(address), ca_pem.as_bytes(), 0o644)
    }

    /// Leaves the CA of the broker at `address` with its key, for the other nodes of its cluster that this user runs
    /// on this machine; readable by its owner only.
    pub fn publish_authority(&self, address: &str, ca_pem: &str, ca_key: &str) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let both = format!("{ca_pem}{ca_key}");
        crate::identity::write_atomically(&self.authority_path(address), both.as_bytes(), 0o600)
    }

    /// The CA and its key, both in PEM, that were left for `address`; `None` where there are none.
    pub fn authority(&self, address: &str) -> io::Result<Option<(String, String)>> {
        let both = match std::fs::read_to_string(self.authority_path(address)) {
            Ok(both) => both,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        const END: &str = "-----END CERTIFICATE-----\n";
        Ok(both.find(END).map(|at| both.split_at(at + END.len())).map(|(pem, key)| (pem.into(), key.into())))
    }

    /// Removes the CA and its key that were left for `address`, if it is this CA.
    pub fn withdraw_authority(&self, address: &str, ca_pem: &str) -> io::Result<()> {
        match self.authority(address)? {
            Some((left, _)) if left == ca_pem => std::fs::remove_file(self.authority_path(address)),
            _ => Ok(()),
        }
    }

    fn authority_path(&self, address: &str) -> PathBuf {
        self.path(address).with_extension("authority")
    }

    /// The CA left for `address`; `None` where there is none.
    pub fn lookup(&self, address: &str) -> io::Result<Option<String>> {
        match std::fs::read_to_string(self.path(address)) {
            Ok(pem) => Ok(Some(pem)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_for_an_address_is_found_under_its_other_names() {
        let folder = tempfile::tempdir().unwrap();
        let store = TrustStore::at(folder.path().join("a/b"));
        assert_eq!(store.lookup("127.0.0.1:9440").unwrap(), None);
        store.publish("127.0.0.1:9440", "old").unwrap();
        store.publish("localhost:9440", "new").unwrap();
        for name in ["127.0.0.1:9440", "localhost:9440", "[::1]:9440"] {
            assert_eq!(store.lookup(name).unwrap().as_deref(), Some("new"), "{name}");
        }
        assert_eq!(store.lookup("127.0.0.1:9441").unwrap(), None);
        let ca = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
        store.publish_authority("localhost:9440", ca, "key").unwrap();
        store.withdraw_authority("127.0.0.1:9440", "another").unwrap();
        assert_eq!(store.authority("127.0.0.1:9440").unwrap(), Some((ca.to_owned(), "key".to_owned())));
        store.withdraw_authority("127.0.0.1:9440", ca).unwrap();
        assert_eq!(store.authority("127.0.0.1:9440").unwrap(), None);
        assert!(store.path("../../etc/passwd:1").starts_with(folder.path()));
        assert!(!store.path("../../etc/passwd:1").to_string_lossy().contains("/etc/"));
    }
}
