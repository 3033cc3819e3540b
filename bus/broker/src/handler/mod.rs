//! What the broker does on a stream of each kind: a file a kind, and one for what requests ask.

mod cluster;
pub(crate) mod fetch;
mod functions;
pub(crate) mod metadata;
mod peers;
pub(crate) mod produce;
pub(crate) mod replicate;
pub(crate) mod request;
pub(crate) mod topics;
