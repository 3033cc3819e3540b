//! What QUIC carries on this machine's loopback: one raw stream, a frame there and back on a stream of its own, and
//! on one that stays open. `cargo run --release -p bus-transport --example raw [SECONDS]`

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::StreamKind;
use bus_transport::{Close, Connection, Endpoint, Identity, Options, Trust, drain, measure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::time::Instant;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn serve(connection: Connection) -> Outcome<()> {
    while let Ok(opening) = connection.accept().await {
        tokio::spawn(async move {
            let (kind, mut send, mut recv) = opening.accept().await?;
            if kind == StreamKind::Discard {
                drain(send, recv).await?;
                return Outcome::Ok(());
            }
            while let Some((number, payload)) = recv.read_frame::<u64>().await? {
                send.write_frame(
                    &number,
                    if kind == StreamKind::Fetch { &[] } else { std::slice::from_ref(&payload) },
                )
                .await?;
            }
            send.finish()?;
            Ok(())
        });
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example speaks to its user")]
fn report(what: &str, times: &Histogram<u64>) {
    let [p50, p99] = [0.5, 0.99].map(|q| times.value_at_quantile(q) as f64 / 1000.0);
    println!("{what}: p50 {p50:.0} us, p99 {p99:.0} us");
}

/// The default limits, or those that the environment says, in KiB.
fn options() -> Options {
    let mut options = Options::default();
    for (name, field) in [
        ("STREAM_KIB", &mut options.stream_window_bytes),
        ("CONNECTION_KIB", &mut options.connection_window_bytes),
        ("SEND_KIB", &mut options.send_window_bytes),
        ("SOCKET_KIB", &mut options.socket_buffer_bytes),
    ] {
        if let Some(kib) = std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok()) {
            *field = kib << 10;
        }
    }
    options
}

#[expect(clippy::print_stdout, reason = "an example speaks to its user")]
async fn throughput(connection: &Connection, duration: Duration) -> Outcome<()> {
    for _ in 0..3 {
        let raw = measure(connection, duration).await?;
        let rate = raw.bytes as f64 / raw.elapsed.as_secs_f64() / 1e6;
        println!("one raw stream: {rate:.0} MB/s ({:?})", connection.stats());
    }
    let (mut send, mut recv) = connection.open(StreamKind::Fetch).await?;
    let block = Bytes::from(vec![0x5a; 256 << 10]);
    let start = Instant::now();
    let (mut sent, mut answered) = (0u64, 0u64);
    while start.elapsed() < duration {
        if sent - answered < 16 {
            send.write_frame(&sent, std::slice::from_ref(&block)).await?;
            sent += 1;
        } else {
            recv.read_frame::<u64>().await?;
            answered += 1;
        }
    }
    let rate = (answered << 18) as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("frames of 256 KiB, 16 under way: {rate:.0} MB/s");
    Ok(())
}

async fn latency(connection: &Connection) -> Outcome<()> {
    let mut times = Histogram::<u64>::new(3)?;
    for number in 0..5_000u64 {
        let start = Instant::now();
        let (mut send, mut recv) = connection.open(StreamKind::Request).await?;
        send.write_frame(&number, &[]).await?;
        send.finish()?;
        recv.read_frame::<u64>().await?;
        times.record(start.elapsed().as_nanos() as u64)?;
    }
    report("a request on a stream of its own", &times);
    for (what, size) in [("a tiny frame there and back", 0), ("1 KiB there and back", 1024)] {
        times.clear();
        let (mut send, mut recv) = connection.open(StreamKind::Produce).await?;
        let payload = Bytes::from(vec![0x5a; size]);
        for number in 0..10_000u64 {
            let start = Instant::now();
            send.write_frame(&number, std::slice::from_ref(&payload)).await?;
            recv.read_frame::<u64>().await?;
            times.record(start.elapsed().as_nanos() as u64)?;
        }
        report(what, &times);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3);
    let options = options();
    let folder = tempfile::tempdir()?;
    let identity = Arc::new(Identity::load_or_create(folder.path(), 1, &[])?);
    let server = Endpoint::server("127.0.0.1:0".parse()?, identity.clone(), &options)?;
    let address = server.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            tokio::spawn(async move { serve(incoming.accept().await?).await });
        }
    });
    let client = Endpoint::client(Trust::Pem(identity.ca_pem().to_owned()), None, &options)?;
    throughput(&client.connect(&address).await?, Duration::from_secs(seconds)).await?;
    let connection = client.connect(&address).await?;
    latency(&connection).await?;
    connection.close(Close::Done);
    Ok(())
}
