//! Why a broker does not start, or does not go on.

use std::net::SocketAddr;

use crate::data_dir::DataDirError;

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of range.
    #[error("setting is not valid: {0}")]
    Options(String),
    /// The data folder cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The socket, or what belongs to TLS.
    #[error(transparent)]
    Transport(#[from] bus_transport::Error),
    /// This node's keys and certificate.
    #[error(transparent)]
    Identity(#[from] bus_transport::IdentityError),
    /// The metrics port.
    #[error("cannot listen on http://{address} for metrics: {error}: choose another with --http")]
    Http {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The metadata.
    #[error(transparent)]
    Metadata(#[from] bus_metadata::Error),
    /// The broker could not enter its cluster.
    #[error(transparent)]
    Enter(#[from] bus_metadata::EnterError),
    /// The broker could not say that it is up.
    #[error("the broker cannot say that it is up: {0}")]
    Ready(#[from] bus_metadata::ProposeError),
    /// The function host.
    #[error("the function host does not start: {0}")]
    Functions(#[from] bus_function::Error),
    /// A part of it ended before all of it ran.
    #[error("the broker has stopped while it started: {0}")]
    Failed(#[from] Failure),
    /// The operating system refused something else.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: std::io::Error,
    },
}

/// Why a broker that has started cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The disk is full, or fails.
    #[error("its metadata cannot be stored any more: {0}: see to the disk (is it full?), and start it again")]
    Storage(bus_metadata::Error),
    /// The metadata's own doing.
    #[error("{0}, by a mistake in the program: start it again, and report what it said before")]
    Metadata(bus_metadata::Error),
    /// A part of it that runs as long as it does is gone.
    #[error("its {0} has ended, by a mistake in the program: start it again, and report what it said before")]
    Task(&'static str),
}

impl From<bus_metadata::Error> for Failure {
    fn from(error: bus_metadata::Error) -> Self {
        match error {
            error @ bus_metadata::Error::Storage { .. } => Self::Storage(error),
            error => Self::Metadata(error),
        }
    }
}
