//! `/metrics`, `/healthz` and `/readyz`, over plain HTTP for the tools that watch machines.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::node::Node;
use crate::topics::Served;

/// Binds `listen`; a taken port is an error here and now, not in the background.
pub(crate) async fn bind(listen: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Serves until the broker stops.
pub(crate) async fn serve(listener: TcpListener, node: Arc<Node>) {
    let stopping = node.stopping();
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(node);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopping).await {
        tracing::error!(%error, "the metrics endpoint ended");
    }
}

async fn ready(State(node): State<Arc<Node>>) -> (StatusCode, &'static str) {
    if node.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    }
}

async fn metrics(State(node): State<Arc<Node>>) -> String {
    for (name, topic) in node.topics.all().iter() {
        for (number, served) in topic.partitions.load().iter().enumerate() {
            let labels = [("topic", name.to_string()), ("partition", number.to_string())];
            let online = match served {
                Served::Here(partition) | Served::Follows(partition, _) => {
                    let reader = partition.reader();
                    node.metrics.set("bus_partition_log_start", &labels, reader.log_start() as f64);
                    node.metrics.set("bus_partition_log_end", &labels, reader.log_end() as f64);
                    node.metrics.set(
                        "bus_partition_high_watermark",
                        &labels,
                        partition.high_watermark() as f64,
                    );
                    node.metrics.set("bus_partition_bytes", &labels, reader.size() as f64);
                    partition.offline().is_none()
                }
                Served::Offline(_) => false,
                Served::Elsewhere(_) => continue,
            };
            node.metrics.set("bus_partition_online", &labels, f64::from(u8::from(online)));
        }
    }
    node.functions.export(&node.metrics);
    node.metrics.render()
}
