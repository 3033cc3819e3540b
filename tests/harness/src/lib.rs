//! Real brokers to be produced to, consumed from, stopped, killed, and cut off from one another: for the tests of
//! `bus`, and for those of programs that use it.
//!
//! ```text
//!   Cluster ── three brokers, in this process or in their own ── Network: a relay in front of each
//!      │ .kill(leader) .stop(n) .pause(n) .wipe(n) .start_node(n)      cuts, losses, delays, one way
//!      │ .partition(&[1], &[2, 3]) .cut(1, 2) .isolate(1) .heal()
//!      │ .leader_of(..) .wait_for_isr(..) .wait_all_in_sync()          each with a deadline
//!      └ .client()   .bus(["topic", "list"])   .node(1)
//!   BrokerProcess ── one broker without a network of ours
//!   History, replicas_agree ── is what is stored what was acknowledged, once, in order, on all replicas?
//!   SmallDisk ── a disk that can be full
//!   Chaos ── both of the above under random faults
//!   Failover, Scale, CatchUp ── how long a failover takes; many partitions; a node that was away
//! ```
//!
//! Nothing here sleeps for something to have happened: each wait is for a line, an exit, an answer or a state, with a
//! deadline.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use bus_testkit::Cluster;
//!
//! let cluster = Cluster::builder().nodes(3).start().await?;
//! cluster.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]).await?;
//! let producer = cluster.client().await?.producer().build().await?;
//! cluster.kill(cluster.leader_of("orders", 0).await?).await?;
//! producer.send(bus_client::Record::to("orders").value("still served")).await?.await?;
//! # Ok(())
//! # }
//! ```
//!
//! One broker, through the command line:
//!
//! ```no_run
//! let broker = bus_testkit::BrokerProcess::start()?;
//! broker.bus(["topic", "create", "orders"]).run()?.success()?;
//! broker.bus(["produce", "orders"]).stdin("hello\n").run()?.success()?;
//! let read = broker.bus(["consume", "orders", "--until", "end"]).run()?.success()?;
//! assert_eq!(read.stdout, b"hello\n");
//! # anyhow::Ok(())
//! ```
//!
//! Not here: other faults of disks, which the log's own tests inject, and time that can be held, which the simulation has.

mod binary;
mod broker;
mod catch_up;
mod chaos;
mod cluster;
mod command;
mod disk;
mod failover;
mod history;
mod load;
mod network;
mod open_loop;
mod process;
mod random;
mod raw_disk;
mod replicas;
mod scale;

pub use binary::{binary, build_function, components};
pub use broker::{BrokerProcess, Builder};
pub use catch_up::{CatchUp, CatchUpReport, ComeBack};
pub use chaos::{Chaos, ChaosReport};
pub use cluster::{Cluster, ClusterBuilder, Node, wait_until};
pub use command::{BusCommand, Finished, Running};
pub use disk::SmallDisk;
pub use failover::{Failover, FailoverReport};
pub use history::{Checker, Counts, History, Outcome, Sent, Violation, Violations};
pub use load::{Load, LoadResult, LoadUnderWay};
pub use network::{Link, Network, Peer};
pub use open_loop::Latencies;
pub use random::Random;
pub use raw_disk::raw_disk;
pub use replicas::{Agreement, replicas_agree};
pub use scale::{LostLeaders, Scale, ScaleReport};
