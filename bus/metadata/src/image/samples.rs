//! Images and commands that the tests start from.

use std::collections::BTreeMap;

use bus_protocol::request::CreateTopic;
use bus_protocol::{Attachment, BlobId, FunctionSpec, TopicName};

use super::MetadataImage;
use crate::{Applied, Command, Deployment, DirectoryId, Registration, Rejected};

pub(crate) fn topic(number: u8) -> TopicName {
    TopicName::new(&format!("topic-{number}")).unwrap()
}

pub(crate) fn function(name: u8, on: u8, consumer: bool) -> Command {
    let attachment = if consumer {
        Attachment::Consumer { topics: vec![topic(on)], group: format!("group-{on}") }
    } else {
        Attachment::Transform { topic: topic(on) }
    };
    let spec = FunctionSpec {
        name: format!("function-{name}"),
        attachment,
        outputs: Vec::new(),
        config: BTreeMap::new(),
        memory_bytes: FunctionSpec::DEFAULT_MEMORY_BYTES,
        fuel: FunctionSpec::DEFAULT_FUEL,
        timeout_ms: FunctionSpec::DEFAULT_TIMEOUT_MS,
        retries: FunctionSpec::DEFAULT_RETRIES,
        dead_letter: None,
    };
    Command::DeployFunction(Deployment {
        spec,
        module: BlobId([name; 32]),
        interface: "flat".into(),
        timestamp: 1,
    })
}

pub(crate) fn registration(node: u64) -> Registration {
    Registration {
        node,
        address: format!("host-{node}:9440"),
        rack: None,
        directory: DirectoryId([0; 16]),
        clean: true,
        renewed: true,
    }
}

pub(crate) fn register(image: &MetadataImage, broker: Registration) -> Command {
    let follows = image.broker(broker.node).map(|before| before.epoch);
    Command::RegisterBroker { broker, follows }
}

pub(crate) fn create(topic: TopicName, partitions: u32, replicas: u32) -> Command {
    let config = BTreeMap::new();
    Command::CreateTopic(CreateTopic { topic, partitions, replicas, config, if_not_exists: false })
}

/// Brokers 1 to `brokers`, registered and up.
pub(crate) fn cluster(brokers: u64) -> MetadataImage {
    let mut image = MetadataImage::default();
    for node in 1..=brokers {
        let epoch = 2 * node - 1;
        image.apply(epoch, register(&image, registration(node))).unwrap();
        image.apply(epoch + 1, Command::UnfenceBroker { node, epoch }).unwrap();
    }
    image
}

pub(crate) fn apply(image: &mut MetadataImage, command: Command) -> Result<Applied, Rejected> {
    image.apply(image.index() + 1, command)
}
