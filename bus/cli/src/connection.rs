//! The way to the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_client::{Client, ClientBuilder, NoLeader, NoMajority, Trust};
use bus_protocol::{PartitionId, TopicName};
use tokio::sync::watch;

use crate::args::Global;
use crate::failure::message;

/// What takes less needs no word.
const PATIENCE: Duration = Duration::from_secs(1);

/// A builder with the user's servers and trust in it.
pub(crate) fn builder(global: &Global) -> ClientBuilder {
    let trust = match &global.ca {
        Some(file) => Trust::File(file.clone()),
        None if global.insecure => Trust::Insecure,
        None => Trust::user(),
    };
    Client::builder()
        .servers(global.server())
        .trust(trust)
        .client_id(concat!("bus-cli/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(5))
}

/// Connects to the cluster that the flags name.
pub(crate) async fn connect(global: &Global) -> anyhow::Result<Client> {
    let client = builder(global).connect().await?;
    tokio::spawn(tell(client.majority()));
    tokio::spawn(tell_of_leaders(client.leaderless()));
    Ok(client)
}

/// Says, while the command takes long, that there is no majority, and when there is one again.
async fn tell(mut majority: watch::Receiver<Option<NoMajority>>) {
    // An error is a client that is gone.
    while majority.wait_for(Option::is_some).await.is_ok() {
        tokio::time::sleep(PATIENCE).await;
        let Some(missing) = majority.borrow_and_update().clone() else { continue };
        message(&format!("{missing}; what needs one waits for it"));
        if majority.wait_for(Option::is_none).await.is_ok() {
            message("there is a majority again");
        }
    }
}

/// The same of partitions that the command needs and nobody leads.
async fn tell_of_leaders(mut leaderless: watch::Receiver<BTreeMap<(TopicName, PartitionId), NoLeader>>) {
    while leaderless.wait_for(|all| !all.is_empty()).await.is_ok() {
        tokio::time::sleep(PATIENCE).await;
        let said = {
            let all = leaderless.borrow_and_update();
            let Some(first) = all.values().next() else { continue };
            match all.len() {
                1 => format!("{first}; what needs it waits for it"),
                many => format!("{first}; {} more have none: what needs them waits", many - 1),
            }
        };
        message(&said);
        if leaderless.wait_for(BTreeMap::is_empty).await.is_ok() {
            message("each partition has a leader again");
        }
    }
}
