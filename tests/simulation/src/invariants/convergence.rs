//! Once all faults are over, everything comes back: each partition has a leader and a full ISR, no reassignment is
//! left, producers finish, and all replicas are equal.

use bus_metadata::MetadataImage;

/// What is not well in the metadata, if anything.
pub(crate) fn unsettled(image: &MetadataImage) -> Option<String> {
    for topic in image.topics() {
        for (number, partition) in topic.partitions.iter().enumerate() {
            let full = partition.replicas.iter().all(|node| partition.isr.contains(node));
            if partition.leader.is_none() || !full || partition.target.is_some() {
                return Some(format!("{}-{number} stands so: {partition:?}", topic.name));
            }
        }
    }
    let fenced = image.brokers().find(|broker| broker.fenced)?;
    Some(format!("broker {} is fenced", fenced.node))
}
