//! Requests about functions.

use std::sync::Arc;

use bus_function::Interface;
use bus_metadata::{Applied, Command, Deployment};
use bus_protocol::request::{Answer, Response};
use bus_protocol::{Attachment, ErrorCode, FunctionSpec, TopicName, WireError};
use bytes::Bytes;

use super::topics::ensure;
use crate::groups::Groups;
use crate::modules;
use crate::node::Node;
use crate::refusal::Refusal as _;

pub(super) async fn deploy(node: &Arc<Node>, mut spec: FunctionSpec, component: Bytes) -> Answer {
    let invalid = |why: String| WireError::new(ErrorCode::InvalidFunction, why);
    spec.validate().map_err(invalid)?;
    let host = Arc::clone(&node.functions.host);
    let bytes = component.clone();
    let module = node.blocking(move || host.inspect(&bytes)).await?;
    module.check(&spec).map_err(|error| error.refusal())?;
    if let Attachment::Transform { topic } = &spec.attachment
        && topic.is_internal()
    {
        return Err(invalid(format!("topic {topic} is the cluster's own: no transform stands on it")));
    }
    if matches!(spec.attachment, Attachment::Consumer { .. }) {
        let dead_letter = match spec.dead_letter.take() {
            Some(topic) => topic,
            None => TopicName::new(&format!("{}.dead-letter", spec.name))
                .map_err(|error| WireError::new(ErrorCode::InvalidRequest, error.to_string()))?,
        };
        ensure(node, &dead_letter, 1).await?;
        Groups::ensure_topic(node).await?;
        spec.dead_letter = Some(dead_letter);
    }
    modules::spread(node, &component).await?;
    let blobs = node.blobs.clone();
    let module_id = node.blocking(move || blobs.put(&component)).await?;
    let deployment = Deployment {
        spec,
        module: module_id,
        interface: match module.interface {
            Interface::Typed => "typed".to_owned(),
            Interface::Flat => "flat".to_owned(),
        },
        timestamp: node.clock.timestamp(),
    };
    match node.change_everywhere(Command::DeployFunction(deployment)).await? {
        Applied::Function { version } => Ok(Response::Deployed { version }),
        other => {
            Err(WireError::new(ErrorCode::Internal, format!("a deployment was answered with {other:?}")))
        }
    }
}

pub(super) fn list(node: &Node, name: Option<&str>) -> Answer {
    match name {
        None => Ok(Response::Functions(node.functions.list())),
        Some(name) => {
            let function = node.functions.get(name).ok_or_else(|| unknown(name))?;
            Ok(Response::Functions(vec![function]))
        }
    }
}

pub(super) fn logs(node: &Node, name: &str, after: u64) -> Answer {
    node.functions.logs(name, after).map(Response::FunctionLogs).ok_or_else(|| unknown(name))
}

pub(super) async fn delete(node: &Arc<Node>, name: String) -> Answer {
    node.change_everywhere(Command::DeleteFunction { name }).await.map(|_| Response::Done)
}

fn unknown(name: &str) -> WireError {
    WireError::new(
        ErrorCode::UnknownFunction,
        format!("function {name} does not exist: `bus function list` shows those that do"),
    )
}
