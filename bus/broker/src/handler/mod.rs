//! What the broker does on a stream of each kind: a file a kind, and one for what requests ask.

pub(crate) mod fetch;
mod functions;
pub(crate) mod metadata;
pub(crate) mod produce;
pub(crate) mod request;
pub(crate) mod topics;
