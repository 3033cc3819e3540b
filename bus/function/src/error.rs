//! What goes wrong with the host itself, as opposed to one call.

use bus_protocol::BlobId;

/// Why the host, or a function, could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options make no sense.
    #[error("function options are not valid: {0}")]
    Options(String),
    /// wasmtime refuses its configuration, or the machine does not support it.
    #[error("cannot set up the function engine: {0}")]
    Engine(String),
    /// A thread could not be started.
    #[error("cannot start a function thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The function's settings are not valid.
    #[error("{0}")]
    Spec(String),
    /// The module could not be read.
    #[error("cannot read module {id}: {source}")]
    Module {
        /// The module.
        id: BlobId,
        /// Why.
        source: std::io::Error,
    },
}
