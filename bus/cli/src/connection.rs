//! The way to the cluster.

use std::time::Duration;

use bus_client::{Client, ClientBuilder, Trust};

use crate::args::Global;

/// A builder with the user's servers and trust in it.
pub(crate) fn builder(global: &Global) -> ClientBuilder {
    let trust = match &global.ca {
        Some(file) => Trust::File(file.clone()),
        None if global.insecure => Trust::Insecure,
        None => Trust::user(),
    };
    Client::builder()
        .servers(&global.server)
        .trust(trust)
        .client_id(concat!("bus-cli/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(5))
}

/// Connects to the cluster that the flags name.
pub(crate) async fn connect(global: &Global) -> anyhow::Result<Client> {
    Ok(builder(global).connect().await?)
}
