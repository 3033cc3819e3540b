//! What the client itself costs: a producer whose batches are acknowledged at once and thrown away, and a reader that
//! is pushed one batch over and over. `cargo run --release -p bus-client --example speed [SECONDS]`

use std::sync::Arc;
use std::time::Duration;

use bus_client::{Client, From, Record, Trust};
use bus_protocol::batch::{BatchBuilder, Compression, assign};
use bus_protocol::fetch::{FetchCredit, FetchOpen, FetchPush};
use bus_protocol::produce::{ProduceAck, ProduceAnswer, ProduceOpen, ProduceOpened};
use bus_protocol::request::{BrokerInfo, ClusterInfo, PartitionState, Quorum, Request, Response, TopicInfo};
use bus_protocol::{StreamKind, TopicId, WireError};
use bus_transport::{Endpoint, Error, Identity, Options, RecvStream, SendStream};
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

async fn answer(address: &str, mut send: SendStream, mut recv: RecvStream) -> Result<(), Error> {
    let Some((request, _)) = recv.read_frame::<Request>().await? else { return Ok(()) };
    let response = match request {
        Request::Topics { topics } => Response::Topics(
            topics
                .into_iter()
                .flatten()
                .map(|topic| TopicInfo {
                    topic,
                    id: TopicId(1),
                    config: [].into(),
                    functions: vec![],
                    partitions: vec![PartitionState {
                        leader: Some(1),
                        epoch: 0,
                        replicas: vec![1],
                        isr: vec![1],
                        target: None,
                    }],
                })
                .collect(),
        ),
        Request::ListOffsets { partitions, .. } => {
            Response::Offsets(partitions.into_iter().map(|partition| (partition, 0)).collect())
        }
        Request::InitProducer => Response::Producer { id: 1 },
        _ => Response::Cluster(ClusterInfo {
            cluster_id: String::new(),
            node: 1,
            version: String::new(),
            controller: Some(1),
            quorum: Quorum { held: true, ..Quorum::default() },
            throttle: None,
            brokers: vec![BrokerInfo {
                node: 1,
                address: address.to_owned(),
                fenced: false,
                drained: false,
                epoch: 1,
                rack: None,
                voter: true,
            }],
        }),
    };
    send.write_frame(&Ok::<_, WireError>(response), &[]).await?;
    send.finish()
}

async fn produce(mut send: SendStream, mut recv: RecvStream) -> Result<(), Error> {
    recv.read_frame::<ProduceOpen>().await?;
    let opened = ProduceOpened { max_message_bytes: 4 << 20 };
    send.write_frame(&Ok::<_, WireError>(opened), &[]).await?;
    while recv.read_frame::<()>().await?.is_some() {
        let ack: ProduceAnswer = Ok(ProduceAck { base_offset: 0, append_time: None });
        send.write_frame(&ack, &[]).await?;
    }
    send.finish()
}

async fn push(mut send: SendStream, mut recv: RecvStream) -> Result<(), Error> {
    let Some((open, _)) = recv.read_frame::<FetchOpen>().await? else { return Ok(()) };
    // The topic's name says how large its records are.
    let size = open.topic.as_str().trim_start_matches("of").parse().unwrap_or(100);
    let mut builder = BatchBuilder::new(Compression::None);
    while builder.size_hint() < 1 << 20 {
        builder.push(1, None, Some(&vec![b'x'; size]), &[]);
    }
    let (count, batch) = (builder.len() as i64, builder.build().unwrap_or_default());
    let (mut next, mut credit) = (open.from, open.credit as i64);
    loop {
        while credit > 0 {
            let mut bytes = BytesMut::from(&batch[..]);
            assign::set_base_offset(&mut bytes, next);
            next += count;
            credit -= bytes.len() as i64;
            send.write_frame(&FetchPush::Batches { high_watermark: next }, &[bytes.freeze()]).await?;
        }
        match recv.read_frame::<FetchCredit>().await? {
            Some((more, _)) => credit += more.bytes as i64,
            None => return Ok(()),
        }
    }
}

async fn serve(endpoint: Endpoint, address: String) {
    while let Some(incoming) = endpoint.accept().await {
        let address = address.clone();
        tokio::spawn(async move {
            let Ok(connection) = incoming.accept().await else { return };
            while let Ok(opening) = connection.accept().await {
                let address = address.clone();
                tokio::spawn(async move {
                    let (kind, send, recv) = opening.accept().await?;
                    match kind {
                        StreamKind::Produce => produce(send, recv).await,
                        StreamKind::Fetch => push(send, recv).await,
                        _ => answer(&address, send, recv).await,
                    }
                });
            }
        });
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example speaks to its user")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    let duration = Duration::from_secs(seconds);
    let folder = tempfile::tempdir()?;
    let identity = Arc::new(Identity::load_or_create(folder.path(), 1, &[])?);
    let endpoint = Endpoint::server("127.0.0.1:0".parse()?, identity.clone(), &Options::default())?;
    let address = endpoint.local_addr()?.to_string();
    tokio::spawn(serve(endpoint, address.clone()));
    let trust = Trust::Pem(identity.ca_pem().to_owned());
    let client = Client::builder().servers(&address).trust(trust).connect().await?;

    for (size, batch) in [(100, 256), (1024, 256), (1024, 1024)] {
        let value = Bytes::from(vec![b'x'; size]);
        let producer = client.producer().batch_bytes(batch << 10).build().await?;
        let topic = producer.topic("speed").await?;
        let (start, mut sent) = (Instant::now(), 0u64);
        while start.elapsed() < duration {
            for _ in 0..1_000 {
                drop(topic.send(Record::new().value(&value)).await?);
            }
            sent += 1_000;
        }
        producer.flush().await?;
        let rate = sent as f64 / start.elapsed().as_secs_f64();
        println!(
            "produce {size} B, batches of {batch} KiB: {:.2} M/s, {:.0} MB/s",
            rate / 1e6,
            rate * size as f64 / 1e6
        );
        producer.close().await?;
    }

    let producer = client.producer().build().await?;
    let mut times = Vec::new();
    for _ in 0..5_000 {
        let start = Instant::now();
        producer.send(Record::to("speed").value("one at a time")).await?.await?;
        times.push(start.elapsed());
    }
    times.sort();
    println!(
        "one record at a time: p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );

    for size in [100, 1024] {
        let topic = format!("of{size}");
        let mut reader = client.reader([&topic]).from(From::Start).build().await?;
        let (start, mut read) = (Instant::now(), 0u64);
        while start.elapsed() < duration {
            for _ in 0..1_000 {
                if let Some(record) = reader.next().await {
                    record?;
                    read += 1;
                }
            }
        }
        let rate = read as f64 / start.elapsed().as_secs_f64();
        println!("read {size} B: {:.2} M/s, {:.0} MB/s", rate / 1e6, rate * size as f64 / 1e6);
    }
    Ok(())
}
