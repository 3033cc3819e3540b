//! Functions, which run on every broker: what each says of them, put together.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bus_protocol::NodeId;
use bus_protocol::request::{FunctionInfo, LogLine, Request, Response};
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Admin, unexpected};
use crate::Error;

/// How long is waited for the other brokers once one has answered.
const OTHERS: Duration = Duration::from_secs(2);

impl Admin {
    /// What is deployed, and how it does, by name; only the one named, if one is. Counters are the sums over all
    /// brokers; one that is down is left out.
    pub async fn list_functions(&self, name: Option<String>) -> Result<Vec<FunctionInfo>, Error> {
        let mut functions = BTreeMap::new();
        for (_, response) in self.ask_brokers(|_| Request::ListFunctions { name: name.clone() }).await? {
            let Response::Functions(theirs) = response else { return Err(unexpected(&response)) };
            for function in theirs {
                match functions.get_mut(&function.spec.name) {
                    Some(sum) => add(sum, function),
                    None => drop(functions.insert(function.spec.name.clone(), function)),
                }
            }
        }
        Ok(functions.into_values().collect())
    }

    /// Lines of a function's log, of all brokers (one that is down is left out), by time. Each broker numbers its lines
    /// for itself: of each, those after sequence number `after`; 0 for all that are kept. To follow a log see
    /// [`Admin::function_log`].
    pub async fn function_logs(&self, name: &str, after: u64) -> Result<Vec<LogLine>, Error> {
        let logs = self.ask_brokers(|_| Request::FunctionLogs { name: name.to_owned(), after }).await?;
        Ok(merge(logs)?.into_iter().map(|(_, line)| line).collect())
    }

    /// A function's log, to be followed.
    pub fn function_log(&self, name: &str) -> FunctionLog {
        FunctionLog { admin: self.clone(), name: name.to_owned(), after: HashMap::new() }
    }

    /// Asks every broker that is up. Fails where none answers, or all refuse; those that do not answer within 2 s of
    /// the first are left out.
    async fn ask_brokers(
        &self,
        request: impl Fn(NodeId) -> Request,
    ) -> Result<Vec<(NodeId, Response)>, Error> {
        let cluster = self.cluster().await?;
        let after = self.client.request_timeout();
        let mut asked = JoinSet::new();
        for broker in cluster.brokers.into_iter().filter(|broker| !broker.fenced) {
            let (client, request) = (self.client.clone(), request(broker.node));
            asked.spawn(async move {
                let connection = client.pool().get(&broker.address).await?;
                let answer = client.asked(&broker.address, &connection, &request, Bytes::new()).await?;
                Ok::<_, Error>((broker.node, answer))
            });
        }
        let mut deadline = Instant::now() + after;
        let mut answers = Vec::new();
        let mut last = Error::NoAnswer { request: "the request to all brokers", after };
        while let Ok(Some(result)) =
            timeout(deadline.saturating_duration_since(Instant::now()), asked.join_next()).await
        {
            match result {
                Ok(Ok(answer)) => {
                    answers.push(answer);
                    deadline = deadline.min(Instant::now() + OTHERS);
                }
                // What a broker said tells more than that another one is out of reach.
                Ok(Err(error)) if last.code().is_none() => last = error,
                Ok(Err(_)) => {}
                Err(error) => last = Error::Protocol(error.to_string()),
            }
        }
        answers.sort_by_key(|(node, _)| *node);
        if answers.is_empty() { Err(last) } else { Ok(answers) }
    }
}

/// A function's log, as all brokers that run it write it. See [`Admin::function_log`].
#[derive(Clone, Debug)]
pub struct FunctionLog {
    admin: Admin,
    name: String,
    /// The last line read of each broker.
    after: HashMap<NodeId, u64>,
}

impl FunctionLog {
    /// The lines since the last call, of all that are kept at first; of all brokers, by time. Does not wait for any. A
    /// broker that is down is left out, and heard when it is back.
    pub async fn more(&mut self) -> Result<Vec<LogLine>, Error> {
        let request = |node| Request::FunctionLogs {
            name: self.name.clone(),
            after: self.after.get(&node).copied().unwrap_or_default(),
        };
        let lines = merge(self.admin.ask_brokers(request).await?)?;
        for (node, line) in &lines {
            let after = self.after.entry(*node).or_default();
            *after = line.sequence.max(*after);
        }
        Ok(lines.into_iter().map(|(_, line)| line).collect())
    }
}

/// The lines of all brokers by time; those of one broker keep their order.
fn merge(logs: Vec<(NodeId, Response)>) -> Result<Vec<(NodeId, LogLine)>, Error> {
    let mut lines = Vec::new();
    for (node, response) in logs {
        let Response::FunctionLogs(theirs) = response else { return Err(unexpected(&response)) };
        lines.extend(theirs.into_iter().map(|line| (node, line)));
    }
    lines.sort_by_key(|(_, line)| line.timestamp);
    Ok(lines)
}

/// The states that matter most first.
const STATES: [&str; 4] = ["failing", "running", "idle", "paused"];

/// Adds what another broker says of the same function.
fn add(sum: &mut FunctionInfo, other: FunctionInfo) {
    let weight = |state: &str| STATES.iter().position(|known| *known == state).unwrap_or(STATES.len());
    let mut counts = other.clone();
    if other.version > sum.version {
        // It has heard of the next version already.
        std::mem::swap(sum, &mut counts);
    }
    sum.records_in += counts.records_in;
    sum.records_out += counts.records_out;
    sum.failed += counts.failed;
    sum.lag += counts.lag;
    sum.instances += counts.instances;
    sum.memory_bytes += counts.memory_bytes;
    sum.fuel += counts.fuel;
    if weight(&counts.state) < weight(&sum.state) {
        sum.state = counts.state;
    }
    let time = |error: &Option<(_, String)>| error.as_ref().map(|(time, _)| *time);
    if time(&counts.last_error) > time(&sum.last_error) {
        sum.last_error = counts.last_error;
    }
}
