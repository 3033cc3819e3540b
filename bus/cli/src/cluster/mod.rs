//! `bus cluster`.
//!
//! ```text
//!   status                        what is            (status.rs)
//!   drain | add-back              who leads          (leadership.rs)  -\
//!   reassign | rebalance          who holds          (replicas.rs)    --> asked for at once, then waited for (wait.rs)
//! ```

mod leadership;
mod replicas;
mod status;
mod wait;

use clap::Subcommand;

use crate::args::Global;
use crate::connection;
use crate::interrupt::Interrupt;

pub(crate) use self::status::Status;

/// Look at the cluster, and move leaders and replicas between its brokers
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  bus cluster status
  bus cluster drain 2                     # before its machine is serviced
  bus cluster add-back 2
  bus cluster reassign orders --replicas 1,2,3
  bus cluster rebalance --throttle 50MiB  # after a broker was added")]
pub(crate) enum Cluster {
    /// Show the brokers, the controller, and the partitions that want attention
    #[command(after_help = "Examples:
  bus cluster status
  bus cluster status -o json | jq -r 'select(.state != \"up\") | .node'
  bus cluster status --server 10.0.0.1:9440 --ca ca.pem -o json

STATE: up, fenced (silent: it leads nothing), drained, or both. CONTROLLER: decides for the cluster; nobody does without a \
majority of the voters, and a line says so. VOTER: votes on the cluster's metadata, which can be changed while most voters run. \
EPOCH: of its registration, raised at each start. LEADERS, REPLICAS: partitions that it leads, and holds. UNDER-REPLICATED: of \
those it holds, the ones in which it is not in sync. OFFLINE: of those it holds, the ones that nobody leads, so that they are \
neither read nor written.
Below the brokers: each partition that is offline, lacks an in-sync replica, or is on its way to other brokers. With -o json only \
the brokers: see `bus topic describe` for partitions.")]
    Status,
    Drain(leadership::Drain),
    AddBack(leadership::AddBack),
    Reassign(replicas::Reassign),
    Rebalance(replicas::Rebalance),
}

pub(crate) async fn run(global: &Global, verb: Cluster, interrupt: Interrupt) -> anyhow::Result<()> {
    let client = interrupt.or(connection::connect(global)).await?;
    match verb {
        Cluster::Status => interrupt.or(async { Status::ask(&client).await?.print(global.format) }).await,
        Cluster::Drain(args) => leadership::drain(&client, &args, global.format, &interrupt).await,
        Cluster::AddBack(args) => leadership::add_back(&client, &args, global.format, &interrupt).await,
        Cluster::Reassign(args) => replicas::reassign(&client, args, global.format, &interrupt).await,
        Cluster::Rebalance(args) => replicas::rebalance(&client, &args, global.format, &interrupt).await,
    }
}
