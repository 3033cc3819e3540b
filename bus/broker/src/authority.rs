//! How the nodes of one cluster come by one CA.
//!
//! A node with a CA in its data directory keeps it; on several machines the operator copies `tls/ca.pem` and
//! `tls/ca.key` there. Nodes that one user starts on one machine find it by themselves: the first of a
//! `--join` list leaves it beside the CAs for clients, where the others, and a node whose disk was emptied, take it from.

use std::fs::File;
use std::path::Path;

use bus_protocol::NodeId;
use bus_transport::{Identity, IdentityError, TrustStore};

use crate::traces::Traces;

fn file(path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { path, source }
}

/// This node's identity, of the cluster that is joined over `seeds`, if any. `traces` hears what is left for others.
pub(crate) fn identity(
    store: &TrustStore,
    tls: &Path,
    node: NodeId,
    hosts: &[String],
    seeds: &[String],
    traces: &mut Traces,
) -> Result<Identity, IdentityError> {
    let Some(first) = seeds.first().filter(|_| !tls.join("ca.pem").exists()) else {
        return Identity::load_or_create(tls, node, hosts);
    };
    let folder = store.folder();
    traces.around(folder);
    std::fs::create_dir_all(folder).map_err(file(folder))?;
    let _lock = lock(store)?;
    for seed in seeds {
        if let Some((pem, key)) = store.authority(seed).map_err(file(folder))? {
            Identity::adopt(tls, &pem, &key)?;
            return Identity::load_or_create(tls, node, hosts);
        }
    }
    let identity = Identity::load_or_create(tls, node, hosts)?;
    if let Some(key) = identity.ca_key_pem()? {
        store.publish_authority(first, identity.ca_pem(), &key).map_err(file(folder))?;
        traces.left_authority(store, first, identity.ca_pem());
    }
    Ok(identity)
}

/// Nodes that start together: one makes the CA, the others wait and find it. The lock is the folder's own.
fn lock(store: &TrustStore) -> Result<File, IdentityError> {
    let folder = store.folder();
    let lock = File::open(folder).map_err(file(folder))?;
    lock.lock().map_err(file(folder))?;
    Ok(lock)
}

/// Takes back a CA that was left for other nodes, unless another lies there by now.
pub(crate) fn withdraw(store: &TrustStore, address: &str, ca_pem: &str) -> Result<(), IdentityError> {
    let _lock = lock(store)?;
    store.withdraw_authority(address, ca_pem).map_err(file(store.folder()))
}

/// Leaves the CA, and its key if it is here, for the user's clients and other nodes.
pub(crate) fn publish(store: &TrustStore, address: &str, identity: &Identity) -> Result<(), IdentityError> {
    let folder = store.folder();
    if let Some(key) = identity.ca_key_pem()? {
        store.publish_authority(address, identity.ca_pem(), &key).map_err(file(folder))?;
    }
    store.publish(address, identity.ca_pem()).map_err(file(folder))
}
