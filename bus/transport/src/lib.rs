//! QUIC, and nothing above it: endpoints, TLS and who is who, connections, streams of frames.
//!
//! ```text
//!   Identity (ca, node certificate)      Trust (whose CA a client believes)
//!        \                                /
//!         Endpoint: one UDP socket, a server, a client, or both
//!             | accept / connect
//!         Connection: one peer, ALPN bus/1, TLS 1.3; peer_node() says which broker it proved to be
//!             | open / accept
//!         SendStream + RecvStream: preamble | frame | frame | ...     (bus_protocol says what the frames mean)
//! ```
//!
//! This is the only crate that names quinn and rustls. It does not know what a request is, retries nothing, and
//! keeps no connection that nobody holds.

mod certificate;
mod connection;
mod discard;
mod endpoint;
mod error;
mod identity;
mod options;
mod recv;
mod send;
mod tls;
mod trust;

pub use connection::{Close, Connection, LinkStats, Opening};
pub use discard::{Discarded, drain, measure};
pub use endpoint::{Endpoint, Incoming, Listener};
pub use error::Error;
pub use identity::{Identity, IdentityError};
pub use options::{InvalidOptions, Options};
pub use recv::RecvStream;
pub use send::SendStream;
pub use trust::{Trust, TrustStore};
