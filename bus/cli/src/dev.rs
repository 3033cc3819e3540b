//! `bus dev`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use bus_broker::Options;
use clap::Args;

use crate::failure::usage;
use crate::interrupt::Interrupt;
use crate::start;

/// Run a throwaway cluster on this machine, in the foreground
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus dev                      # gone without a trace after Ctrl-C
  bus dev --data ./dev-data    # kept")]
pub(crate) struct Dev {
    /// How many brokers; this version runs one
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: u32,
    /// Where everything is kept; without it, in a temporary folder that is deleted at the end
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub(crate) async fn run(args: Dev, interrupt: Interrupt) -> anyhow::Result<()> {
    if args.nodes != 1 {
        return Err(usage(format!(
            "--nodes {}: this version of bus runs clusters of one broker: leave --nodes out",
            args.nodes
        )));
    }
    let mut options = Options::default();
    // The usual port, so that the other verbs need no flag; a free one where it is taken.
    if std::net::UdpSocket::bind(options.listen).is_err() {
        options.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    }
    options.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (data, temporary) = match args.data {
        Some(data) => (data, None),
        None => {
            let folder = tempfile::Builder::new().prefix("bus-dev-").tempdir();
            let folder = folder.context("cannot make a temporary folder: set TMPDIR, or use --data")?;
            (folder.path().to_owned(), Some(folder))
        }
    };
    options.data = data;
    let note = if temporary.is_some() { " (deleted at the end)" } else { "" };
    start::serve(options, note, false, &interrupt).await?;
    if let Some(folder) = temporary {
        folder.close().context("cannot delete the temporary data folder")?;
    }
    Ok(())
}
