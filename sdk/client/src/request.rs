//! Requests: one stream each, one answer each.

use std::sync::Arc;

use bus_protocol::request::{Answer, Request, Response};
use bus_protocol::{ErrorCode, StreamKind};
use bus_transport::Connection;
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::backoff::Backoff;
use crate::{Client, Error};

/// The request's name, for errors.
fn name(request: &Request) -> &'static str {
    match request {
        Request::Cluster => "the request for the cluster",
        Request::Topics { .. } => "the request for topics",
        Request::CreateTopic(_) => "the creation of the topic",
        Request::AlterTopic { .. } => "the change of the topic",
        Request::DeleteTopic { .. } => "the deletion of the topic",
        Request::DescribePartitions { .. } => "the request for partitions",
        Request::ListOffsets { .. } => "the request for offsets",
        Request::DeployFunction(_) => "the deployment",
        Request::ListFunctions { .. } => "the request for functions",
        Request::FunctionLogs { .. } => "the request for a function's log",
        Request::DeleteFunction { .. } => "the deletion of the function",
        Request::CommitOffsets { .. } => "the commit of offsets",
        Request::CommittedOffsets { .. } => "the request for committed offsets",
        _ => "the request",
    }
}

/// Asks on a stream of its own.
async fn exchange(connection: &Connection, request: &Request, payload: Bytes) -> Result<Response, Error> {
    let (mut send, mut recv) = connection.open(StreamKind::Request).await?;
    let payload = if payload.is_empty() { vec![] } else { vec![payload] };
    // A broker that refuses may stop reading before it has the payload: then its answer says why.
    let written = match send.write_frame(request, &payload).await {
        Ok(()) => send.finish(),
        Err(error) => Err(error),
    };
    match (recv.read_frame::<Answer>().await, written) {
        (Ok(Some((answer, _))), _) => answer.map_err(Error::from),
        (Err(refused @ bus_transport::Error::Refused(_)), _) => Err(refused.into()),
        (_, Err(error)) | (Err(error), Ok(())) => Err(error.into()),
        (Ok(None), Ok(())) => Err(bus_transport::Error::Truncated.into()),
    }
}

/// Whether a refusal means that nothing was done, and that it is worth asking again.
fn is_refused_for_now(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::NotLeader | ErrorCode::ShuttingDown | ErrorCode::Busy | ErrorCode::FencedEpoch)
    )
}

impl Client {
    /// Asks one broker, once, under the request timeout.
    pub(crate) async fn ask(
        &self,
        address: &str,
        request: &Request,
        payload: Bytes,
    ) -> Result<Response, Error> {
        let after = self.request_timeout();
        let asked = async {
            let connection = self.pool().get(address).await?;
            exchange(&connection, request, payload).await
        };
        match tokio::time::timeout(after, asked).await {
            Ok(result) => result,
            Err(_) => Err(Error::NoAnswer { request: name(request), after }),
        }
    }

    /// Asks what changes nothing: of any broker, again where one cannot answer, until the request timeout.
    pub(crate) async fn read(&self, request: Request) -> Result<Response, Error> {
        self.persist(&request, &Bytes::new(), true).await
    }

    /// Asks for a change: again only where it was certainly not carried out.
    pub(crate) async fn change(&self, request: Request, payload: Bytes) -> Result<Response, Error> {
        self.persist(&request, &payload, false).await
    }

    async fn persist(&self, request: &Request, payload: &Bytes, repeatable: bool) -> Result<Response, Error> {
        let after = self.request_timeout();
        let deadline = Instant::now() + after;
        let unanswered = Error::NoAnswer { request: name(request), after };
        let mut backoff = Backoff::default();
        let mut last = None;
        let mut first: Option<String> = None;
        loop {
            let mut addresses = self.addresses();
            if let Some(first) = first.take() {
                addresses.insert(0, first);
            }
            for address in addresses {
                let Ok(connection) = timeout_at(deadline, self.pool().get(&address)).await else {
                    return Err(last.unwrap_or(unanswered));
                };
                let connection = match connection {
                    Ok(connection) => connection,
                    // Not sent: safe to try elsewhere.
                    Err(error) => {
                        last = Some(error);
                        continue;
                    }
                };
                let Ok(answer) = timeout_at(deadline, exchange(&connection, request, payload.clone())).await
                else {
                    return Err(unanswered);
                };
                let error = match answer {
                    Ok(response) => return Ok(response),
                    Err(error) => error,
                };
                if !(is_refused_for_now(&error) || repeatable && error.is_retriable()) {
                    return Err(error);
                }
                if let Error::Refused(refusal) = &error {
                    first = refusal.leader.and_then(|leader| self.metadata().broker(leader));
                }
                last = Some(error);
                if first.is_some() {
                    break;
                }
            }
            let error = last.get_or_insert_with(|| Error::Transport(Arc::new(bus_transport::Error::Silent)));
            if !error.is_retriable() {
                return Err(error.clone());
            }
            tracing::debug!(request = name(request), %error, "it is asked again");
            let wake = Instant::now() + backoff.next();
            if wake >= deadline {
                return Err(last.unwrap_or(unanswered));
            }
            tokio::time::sleep_until(wake).await;
        }
    }
}
