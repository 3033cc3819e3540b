//! `bus start`.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bus_broker::{Broker, Failure, Options};
use clap::Args;
use tokio::io::AsyncReadExt as _;

use crate::failure::usage;
use crate::interrupt::Interrupt;
use crate::output;
use crate::waiting::Waiting;

/// Run a broker
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus start  # a single node, data in ./bus-data
  bus start --data /srv/bus --listen 0.0.0.0:9440 --advertise bus-1.example:9440
  bus start --config bus.toml
  BUS_LOG=info bus start

A cluster of three: the same --join list on each, an id and a folder of its own for each. They wait for each other the first \
time; later each can come and go. On one machine (`bus dev --nodes 3` is shorter):
  J=127.0.0.1:9440,127.0.0.1:9450,127.0.0.1:9460
  bus start --node-id 1 --data n1 --listen 127.0.0.1:9440 --http none --join $J
  bus start --node-id 2 --data n2 --listen 127.0.0.1:9450 --http none --join $J
  bus start --node-id 3 --data n3 --listen 127.0.0.1:9460 --http none --join $J
On three machines, copy tls/ca.pem and tls/ca.key from the first node's folder into the others' before they start.
A node that joins later needs no change of the list: any nodes of the cluster will do. `bus cluster rebalance` gives it its share.

Prints one line when it is ready. SIGTERM and Ctrl-C hand leadership over, flush, and end with 0. What is acknowledged is on \
the disk in any case.")]
pub(crate) struct Start {
    /// Settings, as TOML; flags have the last word
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This broker's id, from 1 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    node_id: Option<u64>,
    /// Where everything is kept [default: ./bus-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where clients reach it, over UDP; port 0 takes a free one [default: 127.0.0.1:9440]
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    listen: Option<SocketAddr>,
    /// What it tells clients to connect to [default: where it listens]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The advertised addresses of the cluster's first nodes, the same list on each: the first of it forms the cluster
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', value_parser = peer)]
    join: Vec<String>,
    /// Where it stands: replicas of a partition are spread over racks
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    rack: Option<String>,
    /// Where /metrics, /healthz and /readyz are served, over TCP; `none` for nowhere [default: 127.0.0.1:9441]
    #[arg(long, value_name = "HOST:PORT|none", value_parser = address_or_none)]
    http: Option<Http>,
    /// End when stdin closes: for a program that must not leave a broker behind
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

#[derive(Clone, Copy, Debug)]
struct Http(Option<SocketAddr>);

fn address(text: &str) -> Result<SocketAddr, String> {
    let wrong = |why: String| format!("{why}: write HOST:PORT, as in 127.0.0.1:9440");
    let mut found = text.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("no such address".into()))
}

/// An address that is looked up later, when its node may be there.
fn peer(text: &str) -> Result<String, String> {
    let text = text.trim();
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) => Ok(text.to_owned()),
        _ => Err("write HOST:PORT,HOST:PORT,..., as in 10.0.0.1:9440,10.0.0.2:9440".into()),
    }
}

fn address_or_none(text: &str) -> Result<Http, String> {
    if text == "none" { Ok(Http(None)) } else { address(text).map(|address| Http(Some(address))) }
}

pub(crate) async fn run(args: Start, interrupt: Interrupt, waiting: Waiting) -> anyhow::Result<()> {
    let until_stdin_closes = args.until_stdin_closes;
    let options = options(args)?;
    serve(options, "", until_stdin_closes, &interrupt, waiting).await
}

/// The settings: defaults, then the file, then the flags.
fn options(args: Start) -> anyhow::Result<Options> {
    let mut options = match &args.config {
        Some(file) => {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            parse(&text).with_context(|| file.display().to_string())?
        }
        None => Options::default(),
    };
    if let Some(node_id) = args.node_id {
        options.node_id = node_id;
    }
    if let Some(data) = args.data {
        options.data = data;
    }
    if let Some(listen) = args.listen {
        options.listen = listen;
    }
    if let Some(Http(http)) = args.http {
        options.http = http;
    }
    if !args.join.is_empty() {
        options.join = args.join;
    }
    options.rack = args.rack.or(options.rack);
    options.advertise = args.advertise.or(options.advertise);
    if !options.join.is_empty() && options.advertise.is_none() && options.listen.ip().is_unspecified() {
        return Err(usage(format!(
            "{} is no address that other nodes can reach: say which is, with --advertise HOST:PORT",
            options.listen
        )));
    }
    Ok(options)
}

/// Parses a settings file; an error names the line, and for a misspelt setting the nearest that exists.
fn parse(text: &str) -> anyhow::Result<Options> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let mut why = error.message().to_owned();
        if let Some(nearest) = nearest(&why) {
            why = format!("{}: did you mean {nearest}?", why.split(", expected").next().unwrap_or(&why));
        }
        anyhow::anyhow!("line {line}: {why}")
    })
}

/// Of "unknown field `x`, expected one of `a`, `b`": the name nearest to `x`.
fn nearest(message: &str) -> Option<String> {
    let mut names = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    names
        .map(|name| (strsim::normalized_damerau_levenshtein(wrong, name), name))
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name.to_owned())
}

/// Runs a broker until the user interrupts; `note` stands behind the line that says that it is ready. What it is
/// `waiting` for before that is said.
pub(crate) async fn serve(
    options: Options,
    note: &str,
    until_stdin_closes: bool,
    interrupt: &Interrupt,
    waiting: Waiting,
) -> anyhow::Result<()> {
    let (node, data) = (options.node_id, shown(&options.data));
    let broker = tokio::select! {
        broker = Broker::start(options) => broker?,
        () = interrupt.wait() => return Ok(()),
        never = waiting.tell() => match never {},
    };
    let metrics =
        broker.http_address().map(|http| format!(", metrics at http://{http}/metrics")).unwrap_or_default();
    let ready = format!("ready: node {node} at {}{metrics}, data in {data}{note}", broker.address());
    // A closed stdout does not stop a broker.
    if let Err(error) = output::line(&ready) {
        tracing::debug!(%error, "stdout is closed");
    }
    let failed = tokio::select! {
        () = interrupt.wait() => None,
        () = stdin_closed(), if until_stdin_closes => None,
        failure = broker.failed() => Some((node, failure)),
    };
    broker.shutdown().await;
    ended(failed)
}

/// What comes of a node that could not go on.
pub(crate) fn ended(failed: Option<(u64, Failure)>) -> anyhow::Result<()> {
    match failed {
        None => Ok(()),
        Some((node, failure)) => anyhow::bail!("node {node} has stopped: {failure}"),
    }
}

fn shown(data: &Path) -> String {
    if data.is_relative() && !data.starts_with(".") {
        return Path::new(".").join(data).display().to_string();
    }
    data.display().to_string()
}

async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut buffer = [0; 64];
    while matches!(stdin.read(&mut buffer).await, Ok(1..)) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settings_file_is_strict_and_says_where() {
        assert_eq!(parse("").unwrap(), Options::default());
        assert_eq!(parse("node_id = 7\n").unwrap().node_id, 7);
        let error = parse("node_id = 7\n\nlisen = \"127.0.0.1:1\"\n").unwrap_err().to_string();
        assert_eq!(error, "line 3: unknown field `lisen`: did you mean listen?");
        assert!(parse("node_id = \"x\"\n").unwrap_err().to_string().starts_with("line 1: invalid type"));
        assert!(parse("= 7").unwrap_err().to_string().starts_with("line 1: "));
    }

    #[test]
    fn addresses() {
        assert_eq!(address("127.0.0.1:9440"), Ok(SocketAddr::from(([127, 0, 0, 1], 9440))));
        assert!(address("9440").unwrap_err().contains("HOST:PORT"));
        assert!(address_or_none("none").unwrap().0.is_none());
        assert_eq!(peer(" bus-1.example.org:9440"), Ok("bus-1.example.org:9440".to_owned()));
        assert_eq!(peer("[::1]:9440"), Ok("[::1]:9440".to_owned()));
        for wrong in ["", "9440", ":9440", "host", "host:", "host:0", "host:99999"] {
            assert!(peer(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_cluster_needs_addresses_that_others_can_reach() {
        use clap::Parser as _;
        let parse = |words: &[&str]| {
            let words = ["bus", "start"].into_iter().chain(words.iter().copied());
            match crate::args::Cli::parse_from(words).verb {
                crate::args::Verb::Start(start) => options(start),
                other => panic!("{other:?}"),
            }
        };
        let joined = parse(&["--join", "a:1,b:2", "--rack", "r", "--node-id", "2"]).unwrap();
        assert_eq!(
            (joined.join, joined.rack.as_deref(), joined.node_id),
            (vec!["a:1".into(), "b:2".into()], Some("r"), 2)
        );
        assert!(parse(&["--listen", "0.0.0.0:9440"]).is_ok());
        let error = parse(&["--listen", "0.0.0.0:9440", "--join", "a:1"]).unwrap_err();
        assert!(error.to_string().contains("--advertise"), "{error}");
        assert!(parse(&["--listen", "0.0.0.0:9440", "--join", "a:1", "--advertise", "a:1"]).is_ok());
    }
}
