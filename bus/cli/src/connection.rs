//! The way to the cluster.

use std::time::Duration;

use bus_client::{Client, ClientBuilder, NoMajority, Trust};
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
