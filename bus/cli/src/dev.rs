//! `bus dev`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bus_broker::{Broker, Failure, Options};
use clap::Args;
use futures::FutureExt as _;
use futures::future::{select_all, try_join_all};

use crate::failure::usage;
use crate::interrupt::Interrupt;
use crate::scratch::Scratch;
use crate::waiting::Waiting;
use crate::{output, ports, start};

/// In a folder that is kept: the addresses of the cluster's nodes, which know each other by them.
const ADDRESSES: &str = "addresses.json";

/// Run a throwaway cluster on this machine, in the foreground
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus dev                      # one broker, gone without a trace after Ctrl-C
  bus dev --nodes 3            # a cluster: bus topic create orders --replicas 3
  bus dev --data ./dev-data    # kept

The first node listens on 127.0.0.1:9440 if that is free, where the other verbs find it without a flag. `bus cluster status` shows \
the cluster: of three nodes all are VOTERs, of which most must run; EPOCH is raised at a broker's start; UNDER-REPLICATED and OFFLINE \
count the partitions that it holds and is not in sync with, and those that nobody leads.")]
pub(crate) struct Dev {
    /// How many brokers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// Where everything is kept; without it, in a temporary folder that is deleted at the end
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub(crate) async fn run(
    args: Dev,
    interrupt: Interrupt,
    waiting: Waiting,
    scratch: &Scratch,
) -> anyhow::Result<()> {
    let (data, note) = match args.data {
        Some(data) => (data, ""),
        None => (scratch.folder("bus-dev-")?, " (deleted at the end)"),
    };
    let addresses = addresses(&data, args.nodes as usize)?;
    if let [address] = addresses[..] {
        start::serve(options(1, data, address, Vec::new()), note, false, &interrupt, waiting).await
    } else {
        serve(&data, &addresses, note, &interrupt).await
    }
}

fn options(node_id: u64, data: PathBuf, listen: SocketAddr, join: Vec<String>) -> Options {
    let http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    Options { node_id, data, listen, join, http, ..Options::default() }
}

/// Where the nodes of the cluster in `data` listen: where they did before, as far as there were any. A node by itself
/// is known to nobody, and may be anywhere.
fn addresses(data: &Path, nodes: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let shown = data.display();
    let file = data.join(ADDRESSES);
    let mut addresses: Vec<SocketAddr> = match fs::read(&file) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    if addresses.len() > nodes {
        let nodes = addresses.len();
        return Err(usage(format!(
            "{shown} holds a cluster of {nodes} nodes: pass --nodes {nodes}, or another --data"
        )));
    }
    if nodes > 1 && data.join("node.json").exists() {
        return Err(usage(format!(
            "{shown} holds a node by itself: leave --nodes out, or pass another --data"
        )));
    }
    let missing = nodes - addresses.len();
    let found = ports::free(missing, addresses.is_empty()).context("no free port on 127.0.0.1")?;
    addresses.extend(found);
    if nodes > 1 && missing > 0 {
        let written =
            fs::create_dir_all(data).and_then(|()| fs::write(&file, serde_json::to_vec(&addresses)?));
        written.with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(addresses)
}

/// Runs a cluster in this process until the user interrupts, or one of its nodes cannot go on.
async fn serve(
    data: &Path,
    addresses: &[SocketAddr],
    note: &str,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let join: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let nodes = (1..).zip(addresses).map(|(node, address)| {
        let folder = data.join(format!("node-{node}"));
        Box::pin(Broker::start(options(node, folder, *address, join.clone())))
    });
    let brokers = tokio::select! {
        brokers = try_join_all(nodes) => brokers?,
        () = interrupt.wait() => return Ok(()),
    };
    let shown = tell(&brokers, data, note);
    // A closed stdout does not stop a cluster.
    if let Err(error) = shown {
        tracing::debug!(%error, "stdout is closed");
    }
    let failed = tokio::select! {
        () = interrupt.wait() => None,
        failure = first_failure(&brokers) => Some(failure),
    };
    // One after the other, so that each has somebody to hand over to; only the last has not.
    for broker in brokers {
        broker.shutdown().await;
    }
    start::ended(failed)
}

/// Resolves when one of the nodes cannot go on, with which and why. None comes back by itself here.
async fn first_failure(brokers: &[Broker]) -> (u64, Failure) {
    let failures =
        (1..).zip(brokers).map(|(node, broker)| Box::pin(broker.failed().map(move |why| (node, why))));
    select_all(failures).await.0
}

fn tell(brokers: &[Broker], data: &Path, note: &str) -> anyhow::Result<()> {
    for (node, broker) in (1..).zip(brokers) {
        let metrics = broker.http_address().map(|http| format!(", metrics at http://{http}/metrics"));
        output::line(&format!("node {node} at {}{}", broker.address(), metrics.unwrap_or_default()))?;
    }
    let servers: Vec<_> = brokers.iter().map(Broker::address).collect();
    let (count, data) = (brokers.len(), data.display());
    output::line(&format!("ready: {count} nodes, BUS_SERVER={}, data in {data}{note}", servers.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_cluster_comes_back_where_it_was_and_may_grow() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        assert_eq!(addresses(&data, 1).unwrap().len(), 1);
        let three = addresses(&data, 3).unwrap();
        assert_eq!(addresses(&data, 3).unwrap(), three);
        let four = addresses(&data, 4).unwrap();
        assert_eq!(four[..3], three);
        let error = addresses(&data, 3).unwrap_err().to_string();
        assert!(error.ends_with("holds a cluster of 4 nodes: pass --nodes 4, or another --data"), "{error}");
        let alone = folder.path().join("alone");
        fs::create_dir(&alone).unwrap();
        fs::write(alone.join("node.json"), "{}").unwrap();
        assert!(addresses(&alone, 1).is_ok());
        assert!(addresses(&alone, 3).unwrap_err().to_string().contains("by itself"));
    }
}
