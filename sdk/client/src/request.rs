//! Requests: one stream each, one answer each, of whichever broker can.

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::request::{Answer, Request, Response};
use bus_protocol::{ErrorCode, StreamKind, WireError};
use bus_transport::Connection;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::backoff::Backoff;
use crate::{Client, Error, NoMajority};

/// The head start of each broker that is asked over the next.
const HEDGE: Duration = Duration::from_millis(200);
/// How long is waited for brokers that may know better, once one has refused.
const DOUBT: Duration = Duration::from_millis(500);
/// How often it is looked whether the broker that owes an answer can be reached still.
const CHECK: Duration = Duration::from_secs(1);

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
        Request::InitProducer => "the request for a producer id",
        Request::DrainBroker { .. } => "the change of the broker",
        Request::Reassign { .. } => "the reassignment",
        Request::Rebalance { .. } => "the rebalance",
        _ => "the request",
    }
}

/// Whether a change that may have been carried out may be asked for again: once or twice makes no difference.
fn is_repeatable(request: &Request) -> bool {
    match request {
        Request::CommitOffsets { .. } | Request::DrainBroker { .. } | Request::Reassign { .. } => true,
        Request::CreateTopic(topic) => topic.if_not_exists,
        _ => false,
    }
}

/// Whether it is a change of the cluster's metadata, of which most voters must hear.
fn needs_majority(request: &Request) -> bool {
    !matches!(request, Request::CommitOffsets { .. } | Request::InitProducer)
}

/// Asks on a stream of its own.
pub(crate) async fn exchange(
    connection: &Connection,
    request: &Request,
    payload: Bytes,
) -> Result<Response, Error> {
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
fn is_refused_for_now(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NotLeader | ErrorCode::ShuttingDown | ErrorCode::Busy | ErrorCode::FencedEpoch)
}

/// Whether a broker says that it does not know what is asked about: another may have heard of it already.
fn is_doubtful(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::UnknownTopic | ErrorCode::UnknownPartition | ErrorCode::UnknownFunction)
    )
}

/// Whether another broker may answer where this one could not.
fn is_of_one_broker(error: &Error) -> bool {
    match error {
        Error::Closed(_) => false,
        Error::Refused(_) => error.is_retriable() || is_doubtful(error),
        _ => true,
    }
}

/// Whether a broker has said so.
fn is_an_answer(error: &Error) -> bool {
    error.code().is_some() || matches!(error, Error::NoMajority { .. })
}

impl Client {
    /// Asks one broker after the other, each with a head start of 200 ms over the next, or until it has failed; the
    /// first answer wins. What a broker refuses for good is not asked of another, unless that it knows no such thing.
    /// Takes as long as the last of them: to be called under a timeout.
    pub(crate) async fn first<T, F>(
        &self,
        addresses: Vec<String>,
        ask: impl Fn(Client, String) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut rest = addresses.into_iter();
        let mut asked = JoinSet::new();
        let mut newest = None;
        let mut last: Option<Error> = None;
        loop {
            if let Some(address) = rest.next() {
                newest = Some(address.clone());
                let asking = ask(self.clone(), address.clone());
                asked.spawn(async move { (address, asking.await) });
            }
            let all_are_asked = rest.len() == 0;
            let wait = match &last {
                // One that cannot be reached is not waited for for long, once another has answered.
                Some(error) if all_are_asked && is_an_answer(error) => DOUBT,
                _ if all_are_asked => Duration::MAX,
                _ => HEDGE,
            };
            match timeout(wait, asked.join_next()).await {
                Ok(Some(Ok((address, Ok(value))))) => {
                    self.pool().note(&address, true);
                    return Ok(value);
                }
                Ok(Some(Ok((_, Err(error))))) if !is_of_one_broker(&error) => return Err(error),
                // What a broker said tells more than that another one is out of reach.
                Ok(Some(Ok((_, Err(error))))) if last.is_none() || is_an_answer(&error) => {
                    last = Some(error);
                }
                Ok(Some(_)) => {}
                Ok(None) if all_are_asked => return Err(last.unwrap_or_else(no_server)),
                Ok(None) => {}
                Err(_) if all_are_asked => return Err(last.unwrap_or_else(no_server)),
                Err(_) => {
                    if let Some(newest) = newest.take() {
                        self.pool().note(&newest, false);
                    }
                }
            }
        }
    }

    /// Asks what changes nothing (or may be done twice): of any broker, again where one cannot answer, until the
    /// request timeout.
    pub(crate) async fn read(&self, request: Request) -> Result<Response, Error> {
        let after = self.request_timeout();
        let deadline = Instant::now() + after;
        let unanswered = Error::NoAnswer { request: name(&request), after };
        let mut backoff = Backoff::default();
        let mut last = None;
        loop {
            let asked = self.first(self.addresses(), |client, address| {
                let request = request.clone();
                async move {
                    let connection = client.pool().get(&address).await?;
                    exchange(&connection, &request, Bytes::new()).await
                }
            });
            let error = match timeout_at(deadline, asked).await {
                Ok(Ok(response)) => {
                    if let Response::Cluster(cluster) = &response {
                        self.learn(cluster);
                    }
                    return Ok(response);
                }
                Ok(Err(error)) => error,
                Err(_) => return Err(last.unwrap_or(unanswered)),
            };
            let wake = Instant::now() + backoff.next();
            if !error.is_retriable() || wake >= deadline {
                return Err(error);
            }
            tracing::debug!(request = name(&request), %error, "it is asked again");
            last = Some(error);
            sleep_until(wake).await;
        }
    }

    /// Asks for a change, of a broker that answers: again only where it was certainly not carried out, or where twice
    /// is as good as once. Where a majority is needed and none is there, it is waited for, and nothing is asked for.
    pub(crate) async fn change(&self, request: Request, payload: Bytes) -> Result<Response, Error> {
        let after = self.request_timeout();
        let deadline = Instant::now() + after;
        let unanswered = || Error::NoAnswer { request: name(&request), after };
        let mut backoff = Backoff::default();
        let mut hint: Option<String> = None;
        let mut last = None;
        // That an attempt changed nothing is no news where an earlier one may have.
        let mut unconfirmed = None;
        loop {
            let hinted = hint.take();
            let reached = self.reach(self.addresses_from(hinted.as_ref()), needs_majority(&request));
            let error = match timeout_at(deadline, reached).await {
                // Not sent: safe to try again.
                Ok(Err(error)) => error,
                Err(_) => {
                    let error = last.unwrap_or_else(unanswered);
                    return Err(unconfirmed.unwrap_or_else(|| self.majority_or(error)));
                }
                Ok(Ok((address, connection))) => {
                    let asked = self.asked(&address, &connection, &request, payload.clone());
                    match timeout_at(deadline, asked).await.unwrap_or_else(|_| Err(unanswered())) {
                        Ok(response) => return Ok(response),
                        Err(Error::Refused(refusal)) if is_refused_for_now(refusal.code) => {
                            hint = refusal.leader.and_then(|leader| self.metadata().broker(leader.node));
                            Error::Refused(refusal)
                        }
                        Err(Error::Refused(refusal)) if !refusal.code.is_retriable() => {
                            return Err(refused(&refusal, unconfirmed.as_ref()));
                        }
                        Err(error) => {
                            let error = self.unconfirmed(error);
                            if !is_repeatable(&request) {
                                return Err(error);
                            }
                            unconfirmed.insert(error).clone()
                        }
                    }
                }
            };
            tracing::debug!(request = name(&request), %error, "it is asked again");
            let wake = Instant::now() + backoff.next();
            if !error.is_retriable() || wake >= deadline {
                return Err(unconfirmed.unwrap_or_else(|| self.majority_or(error)));
            }
            last = Some(error);
            // The first hint is followed at once.
            if hint.is_none() || hinted.is_some() {
                sleep_until(wake).await;
            }
        }
    }

    /// The error of a change that was asked for, and of which nobody says what came of it. What a broker says is kept
    /// as it is.
    fn unconfirmed(&self, error: Error) -> Error {
        match error {
            Error::NoAnswer { .. } | Error::Transport(_) => {
                Error::Unconfirmed { why: self.majority_or(error).to_string() }
            }
            error => error,
        }
    }

    /// As [`Client::addresses`], but the one that was hinted at first.
    fn addresses_from(&self, hinted: Option<&String>) -> Vec<String> {
        let mut addresses = self.addresses();
        if let Some(first) = hinted {
            addresses.retain(|address| address != first);
            addresses.insert(0, first.clone());
        }
        addresses
    }

    /// A broker that answers now, and knows of a majority if one is needed; and the connection to it.
    async fn reach(&self, addresses: Vec<String>, majority: bool) -> Result<(String, Connection), Error> {
        self.first(addresses, move |client, address| async move {
            let connection = client.pool().get(&address).await?;
            if let Response::Cluster(cluster) = exchange(&connection, &Request::Cluster, Bytes::new()).await?
            {
                client.learn(&cluster);
                if let Some(missing) = NoMajority::of(&cluster).filter(|_| majority) {
                    return Err(Error::NoMajority { missing, last: "nothing was changed".to_owned() });
                }
            }
            Ok((address, connection))
        })
        .await
    }

    /// Asks one broker, and looks meanwhile whether it is there still; where it is not, the answer is an error.
    pub(crate) async fn asked(
        &self,
        address: &str,
        connection: &Connection,
        request: &Request,
        payload: Bytes,
    ) -> Result<Response, Error> {
        let checks = async {
            loop {
                sleep(CHECK).await;
                if let Some(cluster) = self.pool().check(address).await {
                    self.learn(&cluster);
                }
            }
        };
        tokio::select! {
            answer = exchange(connection, request, payload) => answer,
            () = checks => unreachable!("it is looked for ever"),
        }
    }
}

/// A final refusal of a change, of which an attempt before may have had its way.
fn refused(refusal: &Arc<WireError>, earlier: Option<&Error>) -> Error {
    if earlier.is_none() {
        return Error::Refused(Arc::clone(refusal));
    }
    let mut both = WireError::clone(refusal);
    both.message
        .push_str("; an attempt before this one was not answered, and may have made the change: look first");
    both.into()
}

fn no_server() -> Error {
    Error::Invalid("no server is given: say HOST:PORT[,HOST:PORT]".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_refusal_says_that_an_attempt_before_may_have_gone_through() {
        let refusal = Arc::new(WireError::new(ErrorCode::UnknownBroker, "no broker 9"));
        assert_eq!(refused(&refusal, None).to_string(), "no broker 9");
        let both = refused(&refusal, Some(&Error::Unconfirmed { why: "no answer".into() }));
        assert_eq!(both.code(), Some(ErrorCode::UnknownBroker));
        assert!(both.to_string().starts_with("no broker 9; an attempt before"), "{both}");
    }
}
