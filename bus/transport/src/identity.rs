//! Who a broker is: the cluster's CA and the node's certificate, in its data directory.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bus_protocol::{Clock, NodeId, SystemClock, Timestamp};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificate::{self, Pair};

/// A node certificate with less left is made anew at start.
const RENEW_BEFORE_MS: i64 = 365 * 24 * 60 * 60 * 1000;

/// A broker's certificate and key, and the CA that signed it.
#[derive(Debug)]
pub struct Identity {
    node: NodeId,
    ca_file: PathBuf,
    ca_pem: String,
    pub(crate) ca: CertificateDer<'static>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Why a broker's identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{path} cannot be used: {why}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The node certificate must be made anew, and the CA's key is not here.
    #[error("the node certificate in {folder} needs to be made anew and ca.key is missing: copy ca.pem and ca.key from another node", folder = folder.display())]
    NoCaKey {
        /// The folder.
        folder: PathBuf,
    },
    /// A host's name cannot stand in a certificate.
    #[error("no certificate can be made: {0}")]
    Certificate(String),
}

impl Identity {
    /// The identity kept in `folder`: `ca.pem`, `ca.key`, `node.pem`, `node.key` (keys readable by their owner only).
    /// What is missing is made; a CA that was put there is used. The node certificate is made anew when it is not
    /// for this node and all of `hosts`, not of this CA, or near its end. Names beside `hosts`: `localhost`,
    /// `127.0.0.1`, `::1`, this machine's name, and `node-ID.bus`, by which brokers know each other.
    pub fn load_or_create(folder: &Path, node: NodeId, hosts: &[String]) -> Result<Self, IdentityError> {
        Self::load_or_create_at(folder, node, hosts, SystemClock::new().timestamp())
    }

    fn load_or_create_at(
        folder: &Path,
        node: NodeId,
        hosts: &[String],
        now: Timestamp,
    ) -> Result<Self, IdentityError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| IdentityError::File { path: folder.to_owned(), source })?;
        let [ca_file, ca_key, node_file, node_key] =
            ["ca.pem", "ca.key", "node.pem", "node.key"].map(|name| folder.join(name));
        let made = |error: rcgen::Error| IdentityError::Certificate(error.to_string());
        let ca_pem = match read(&ca_file)? {
            Some(pem) => pem,
            None => {
                let Pair { certificate, key } = certificate::make_ca(now).map_err(made)?;
                // The key first: a crash between the two leaves a key that nothing was signed with.
                write(&ca_key, &key, 0o600)?;
                write(&ca_file, &certificate, 0o644)?;
                certificate
            }
        };
        let names = names(node, hosts);
        let usable = match (read(&node_file)?, read(&node_key)?) {
            (Some(pem), Some(key)) if serves(&pem, &ca_pem, &names, now) => Some((pem, key)),
            _ => None,
        };
        let (pem, key) = match usable {
            Some(pair) => pair,
            None => {
                let key =
                    read(&ca_key)?.ok_or_else(|| IdentityError::NoCaKey { folder: folder.to_owned() })?;
                let ca = Pair { certificate: ca_pem.clone(), key };
                let Pair { certificate, key } =
                    certificate::make_node(&ca, node, &names, now).map_err(made)?;
                write(&node_key, &key, 0o600)?;
                // The CA stands behind the node's own: whoever is shown the file can follow it up.
                let chain = format!("{certificate}{ca_pem}");
                write(&node_file, &chain, 0o644)?;
                (chain, key)
            }
        };
        let damaged = |path: &Path, error: rustls::pki_types::pem::Error| IdentityError::Damaged {
            path: path.to_owned(),
            why: error.to_string(),
        };
        Ok(Self {
            node,
            ca: CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| damaged(&ca_file, e))?,
            certificate: CertificateDer::from_pem_slice(pem.as_bytes())
                .map_err(|e| damaged(&node_file, e))?,
            key: PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| damaged(&node_key, e))?,
            ca_file,
            ca_pem,
        })
    }

    /// Whose identity it is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The CA's certificate, in PEM: what clients need in order to trust the cluster.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The CA's key, in PEM, if it lies in this node's folder.
    pub fn ca_key_pem(&self) -> Result<Option<String>, IdentityError> {
        read(&self.ca_file.with_file_name("ca.key"))
    }

    /// Uses the CA `ca_pem` with its key in `folder`, where there is none yet.
    pub fn adopt(folder: &Path, ca_pem: &str, ca_key: &str) -> Result<(), IdentityError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| IdentityError::File { path: folder.to_owned(), source })?;
        let ca_file = folder.join("ca.pem");
        if read(&ca_file)?.is_none() {
            write(&folder.join("ca.key"), ca_key, 0o600)?;
            write(&ca_file, ca_pem, 0o644)?;
        }
        Ok(())
    }

    /// The file that holds [`Identity::ca_pem`].
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }
}

/// All names of the certificate, sorted, each once.
fn names(node: NodeId, hosts: &[String]) -> Vec<String> {
    let mut names: BTreeSet<String> =
        ["localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned).collect();
    names.insert(certificate::node_name(node));
    // Cheap, and where it exists it is what other machines call this one.
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    for host in hosts.iter().map(String::as_str).chain([machine.trim()]) {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let is_name =
            host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'_'));
        if !host.is_empty() && is_name {
            names.insert(host);
        }
    }
    names.into_iter().collect()
}

/// Whether the certificate in `pem` is of this CA, for at least these names, and good for a while.
fn serves(pem: &str, ca_pem: &str, names: &[String], now: Timestamp) -> bool {
    let Ok(certificate) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Some(facts) = certificate::read(&certificate) else { return false };
    // The chain in the file ends with the CA that signed it.
    pem.ends_with(ca_pem)
        && names.iter().all(|name| facts.names.contains(name))
        && facts.not_after - now > RENEW_BEFORE_MS
}

fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::File { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), IdentityError> {
    write_atomically(path, content.as_bytes(), mode)
        .map_err(|source| IdentityError::File { path: path.to_owned(), source })
}

/// Writes a file so that readers, and a crash, see the old or the new content whole.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    // What a crash left under the name may have another mode.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: Timestamp = 1_790_000_000_000;

    fn der(identity: &Identity) -> Vec<u8> {
        identity.certificate.to_vec()
    }

    #[test]
    fn the_first_start_makes_what_later_ones_keep() {
        let folder = tempfile::tempdir().unwrap();
        let at = |hosts: &[&str], now| {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            Identity::load_or_create_at(folder.path(), 7, &hosts, now).unwrap()
        };
        let first = at(&["10.0.0.1"], NOW);
        assert_eq!(certificate::node_of(&first.certificate), Some(7));
        for key in ["ca.key", "node.key"] {
            let mode = folder.path().join(key).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        assert_eq!(der(&first), der(&at(&["10.0.0.1"], NOW)));
        // A new host, and time, make a new certificate of the same CA.
        let wider = at(&["10.0.0.1", "bus.example.org"], NOW);
        assert_ne!(der(&first), der(&wider));
        assert_eq!(first.ca_pem(), wider.ca_pem());
        let later = at(&["10.0.0.1", "bus.example.org"], NOW + 5 * RENEW_BEFORE_MS);
        assert_ne!(der(&wider), der(&later));
    }

    #[test]
    fn without_the_cas_key_the_error_says_what_to_copy() {
        let folder = tempfile::tempdir().unwrap();
        Identity::load_or_create_at(folder.path(), 7, &[], NOW).unwrap();
        std::fs::remove_file(folder.path().join("ca.key")).unwrap();
        Identity::load_or_create_at(folder.path(), 7, &[], NOW).unwrap();
        let error = Identity::load_or_create_at(folder.path(), 8, &[], NOW).unwrap_err();
        assert!(error.to_string().contains("ca.key"), "{error}");
    }
}
