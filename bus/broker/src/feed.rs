//! What a reader is fed: batches from memory, or from the disk, a push ahead of what is asked for where there is memory
//! for that.

use std::sync::Arc;

use bus_log::{Error, Read};
use bus_protocol::Offset;
#[cfg(doc)]
use bus_protocol::limits;
use bus_replica::Partition;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use crate::node::Node;

/// One reader's way through a partition. While what was read from the disk is on its way to the reader, what comes next
/// is read: one push is held so, at most, of [`limits::PUSHES_READ_AHEAD`] on the node.
#[derive(Default)]
pub(crate) struct Feed {
    ahead: Option<Ahead>,
}

struct Ahead {
    from: Offset,
    reading: JoinHandle<Result<Read, Error>>,
    _place: OwnedSemaphorePermit,
}

impl Feed {
    /// Reads from `from` on, as [`read`] does. With `more`, as much again will be asked for next, and may be read
    /// meanwhile.
    pub(crate) async fn next(
        &mut self,
        node: &Node,
        partition: &Partition,
        from: Offset,
        (most, more): (usize, bool),
        below: Offset,
    ) -> Result<Read, Error> {
        let reading = match self.ahead.take().filter(|ahead| ahead.from == from) {
            Some(ahead) => ahead.reading,
            None => match partition.reader().read_hot(from, most, below)? {
                Some(read) => return Ok(read),
                None => start(node, partition, from, most, below).await,
            },
        };
        let read = finish(partition, reading).await?;
        let from = read.next_offset;
        if more
            && from < below
            && let Ok(place) = Arc::clone(&node.read_ahead).try_acquire_owned()
            && let Ok(turn) = Arc::clone(&node.cold_reads).try_acquire_owned()
            && partition.reader().read_hot(from, most, below)?.is_none()
        {
            let reading = start_with(turn, node, partition, (from, most, below));
            self.ahead = Some(Ahead { from, reading, _place: place });
        }
        Ok(read)
    }
}

/// Reads from memory at once, from the disk on a thread that may wait for it. A replica that proves damaged takes
/// nothing any more, and is repaired from another.
pub(crate) async fn read(
    node: &Node,
    partition: &Partition,
    from: Offset,
    most: usize,
    below: Offset,
) -> Result<Read, Error> {
    match partition.reader().read_hot(from, most, below)? {
        Some(read) => Ok(read),
        None => finish(partition, start(node, partition, from, most, below).await).await,
    }
}

/// Begins a read from the disk once it has its turn: the threads that wait for disks are not all for readers.
async fn start(
    node: &Node,
    partition: &Partition,
    from: Offset,
    most: usize,
    below: Offset,
) -> JoinHandle<Result<Read, Error>> {
    let turn = Arc::clone(&node.cold_reads).acquire_owned().await;
    let turn = turn.unwrap_or_else(|_| unreachable!("it is never closed"));
    start_with(turn, node, partition, (from, most, below))
}

fn start_with(
    turn: OwnedSemaphorePermit,
    node: &Node,
    partition: &Partition,
    (from, most, below): (Offset, usize, Offset),
) -> JoinHandle<Result<Read, Error>> {
    let reader = partition.reader().clone();
    node.runtime.disk.spawn_blocking(move || {
        let _turn = turn;
        reader.read(from, most, below)
    })
}

async fn finish(partition: &Partition, reading: JoinHandle<Result<Read, Error>>) -> Result<Read, Error> {
    match reading.await {
        Ok(read) => {
            if let Err(error @ Error::Damaged { .. }) = &read {
                partition.damaged(error).await;
            }
            read
        }
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Deleted(Default::default())),
        },
    }
}
