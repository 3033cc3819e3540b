//! How the nodes of one cluster come by one CA.
//!
//! A node with a CA in its data directory keeps it; on several machines the operator copies `tls/ca.pem` and
//! `tls/ca.key` there. Nodes that one user starts on one machine find it by themselves: whoever of a `--join` list has it
//! leaves it under its own address, beside the CAs for clients, where the others, and a node whose disk was emptied, take
//! it from; a node that is not in its list itself leaves it where they look as well. A start that fails takes back what it
//! left itself, and no more: others that took it meanwhile have left it as well.

use std::fs::File;
use std::path::Path;

use bus_protocol::NodeId;
use bus_transport::{Identity, IdentityError, TrustStore};

use crate::data_dir::is_same;
use crate::traces::Traces;

fn file(path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { path, source }
}

/// The identity of this node, which is reached at `own`, of the cluster that is joined over `seeds`, if any. `traces`
/// hears what is left for others.
pub(crate) fn identity(
    store: &TrustStore,
    tls: &Path,
    (node, own): (NodeId, &str),
    hosts: &[String],
    seeds: &[String],
    traces: &mut Traces,
) -> Result<Identity, IdentityError> {
    if seeds.is_empty() || tls.join("ca.pem").exists() {
        return Identity::load_or_create(tls, node, hosts);
    }
    let folder = store.folder();
    traces.around(folder);
    let _lock = lock(store)?;
    for place in seeds.iter().flat_map(|seed| [seed.clone(), beside(seed)]) {
        if let Some((pem, key)) = store.authority(&place).map_err(file(folder))? {
            Identity::adopt(tls, &pem, &key)?;
            break;
        }
    }
    let identity = Identity::load_or_create(tls, node, hosts)?;
    let is_listed = seeds.iter().any(|seed| store.path(seed) == store.path(own));
    let place = if is_listed { own.to_owned() } else { beside(&seeds[0]) };
    if let Some(key) = identity.ca_key_pem()?
        && store.authority(&place).map_err(file(folder))?.is_none()
    {
        store.publish_authority(&place, identity.ca_pem(), &key).map_err(file(folder))?;
        traces.left_authority(store, &place, identity.ca_pem());
    }
    Ok(identity)
}

/// Where a node that is not in its list leaves the CA. Not under the seed's own address: the seed that takes it from here
/// leaves it there itself, and it stays when the start of the node that left it here fails.
fn beside(seed: &str) -> String {
    format!("beside-{seed}")
}

/// Nodes that start together: one makes the CA, the others wait and find it. The lock is the folder's own.
fn lock(store: &TrustStore) -> Result<File, IdentityError> {
    let folder = store.folder();
    loop {
        std::fs::create_dir_all(folder).map_err(file(folder))?;
        let lock = match File::open(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened.map_err(file(folder))?,
        };
        lock.lock().map_err(file(folder))?;
        // A start that failed may have taken the folder away between the two: then this one guards nothing.
        if is_same(&lock, folder).map_err(file(folder))? {
            return Ok(lock);
        }
    }
}

/// Takes back a CA that was left for other nodes, unless another lies there by now. Nobody looks for one while the lock
/// lives that comes back.
pub(crate) fn withdraw(store: &TrustStore, address: &str, ca_pem: &str) -> Result<File, IdentityError> {
    let lock = lock(store)?;
    store.withdraw_authority(address, ca_pem).map_err(file(store.folder()))?;
    Ok(lock)
}

/// Leaves the CA, and its key if it is here, for the user's clients and other nodes.
pub(crate) fn publish(store: &TrustStore, address: &str, identity: &Identity) -> Result<(), IdentityError> {
    let folder = store.folder();
    if let Some(key) = identity.ca_key_pem()? {
        store.publish_authority(address, identity.ca_pem(), &key).map_err(file(folder))?;
    }
    store.publish(address, identity.ca_pem()).map_err(file(folder))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Barrier;

    use super::*;

    /// Starts at one moment, of which some fail; gives the CAs of those that go on.
    fn start(folder: &Path, round: usize, nodes: usize, fails: impl Fn(usize) -> bool + Sync) -> Vec<String> {
        let store = TrustStore::at(folder.join(format!("user-{round}/trust")));
        let seeds: Vec<String> = (0..nodes).map(|node| format!("127.0.0.1:{}", 9_000 + node)).collect();
        let (together, hosts) = (Barrier::new(nodes), ["127.0.0.1".to_owned()]);
        let one = |node: usize| {
            let tls: PathBuf = folder.join(format!("{round}-{node}"));
            let mut traces = Traces::default();
            together.wait();
            let name = (node as NodeId + 1, seeds[node].as_str());
            let identity = identity(&store, &tls, name, &hosts, &seeds, &mut traces).unwrap();
            if fails(node) {
                traces.remove();
                return None;
            }
            Some(identity.ca_pem().to_owned())
        };
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..nodes).map(|node| scope.spawn(move || one(node))).collect();
            started.into_iter().filter_map(|start| start.join().unwrap()).collect()
        })
    }

    #[test]
    fn nodes_that_start_together_have_one_ca_whichever_of_them_fails() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..40 {
            let cas = start(folder.path(), round, 5, |node| node == round % 5);
            assert_eq!(cas.len(), 4);
            assert!(cas.iter().all(|ca| *ca == cas[0]), "round {round}");
        }
    }

    #[test]
    fn a_node_that_is_not_in_its_list_and_starts_first_has_the_ca_of_those_that_are() {
        let folder = tempfile::tempdir().unwrap();
        let store = TrustStore::at(folder.path().join("trust"));
        let seeds = [9_000, 9_001].map(|port| format!("127.0.0.1:{port}"));
        let start = |node: NodeId, own: &str| {
            let (tls, mut traces) = (folder.path().join(node.to_string()), Traces::default());
            let hosts = ["127.0.0.1".to_owned()];
            let identity = identity(&store, &tls, (node, own), &hosts, &seeds, &mut traces).unwrap();
            (identity.ca_pem().to_owned(), traces)
        };
        // One that fails takes the CA back, wherever it was left.
        let (given_up, traces) = start(5, "127.0.0.1:9004");
        traces.remove();
        let (ca, traces) = start(4, "127.0.0.1:9003");
        assert!(ca != given_up);
        assert!(start(1, &seeds[0]).0 == ca);
        // And leaves it to those who have taken it.
        traces.remove();
        assert!(start(2, &seeds[1]).0 == ca);
    }

    #[test]
    fn nodes_that_all_fail_leave_no_ca_behind() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..10 {
            assert!(start(folder.path(), round, 3, |_| true).is_empty());
            // Who came late did not make the folder, and who made it may have gone early: it may stay, empty.
            let left = std::fs::read_dir(folder.path().join(format!("user-{round}/trust")));
            assert_eq!(left.map_or(0, Iterator::count), 0, "round {round}");
        }
    }
}
