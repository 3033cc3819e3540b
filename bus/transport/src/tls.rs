//! TLS: what rustls needs to know. TLS 1.3 only, ALPN `bus/1` only.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::{Error, Identity, Trust};

const ALPN: &[u8] = b"bus/1";

/// ring's, with AES-128-GCM as the first choice of both sides: nobody breaks it, and every byte between brokers pays for
/// the rounds that AES-256 adds. A peer that wants another suite of TLS 1.3 gets it.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != TLS13_AES_128_GCM_SHA256.suite());
    Arc::new(provider)
}

fn tls(error: impl std::fmt::Display) -> Error {
    Error::Tls(error.to_string())
}

/// A server that shows `identity` and asks for a certificate of the same CA, but takes clients that have none.
pub(crate) fn server(identity: &Identity) -> Result<Arc<QuicServerConfig>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca.clone()).map_err(tls)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(tls)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .map_err(tls)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Clients keep their connections and resume none.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config).map_err(tls)?))
}

/// What a client believes, resolved for one server.
pub(crate) struct Believed {
    roots: Option<RootCertStore>,
    /// Where the CA came from, for the error when it does not fit.
    pub(crate) origin: String,
}

impl Believed {
    /// Any server.
    pub(crate) fn anybody() -> Self {
        Self { roots: None, origin: String::new() }
    }

    /// Whether a server has to show a certificate of a CA.
    pub(crate) fn is_checked(&self) -> bool {
        self.roots.is_some()
    }
}

/// Finds the CA for the server at `address`.
pub(crate) fn believe(trust: &Trust, address: &str) -> Result<Believed, Error> {
    let (pem, origin) = match trust {
        Trust::Insecure => return Ok(Believed::anybody()),
        Trust::Pem(pem) => (pem.clone(), "the CA given".to_owned()),
        Trust::File(file) => {
            let pem = std::fs::read_to_string(file)
                .map_err(|error| Error::Tls(format!("CA file {}: {error}", file.display())))?;
            (pem, format!("the CA in {}", file.display()))
        }
        Trust::Store(store) => {
            let file = store.path(address);
            let found = store
                .lookup(address)
                .map_err(|error| Error::Tls(format!("CA file {}: {error}", file.display())))?;
            let pem = found.ok_or_else(|| Error::Untrusted {
                address: address.to_owned(),
                why: format!(
                    "no broker on this machine left its CA for this address ({} does not exist): start one there, or pass --ca FILE, \
                     the ca.pem in the broker's data directory",
                    file.display()
                ),
            })?;
            (pem, format!("the CA in {}", file.display()))
        }
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| Error::Tls(format!("{origin}: {error}")))?;
        roots.add(certificate).map_err(|error| Error::Tls(format!("{origin}: {error}")))?;
    }
    if roots.is_empty() {
        return Err(Error::Tls(format!("{origin} is not a certificate in PEM")));
    }
    Ok(Believed { roots: Some(roots), origin })
}

/// A client that believes so, and shows `identity` when it has one.
pub(crate) fn client(
    believed: &Believed,
    identity: Option<&Identity>,
) -> Result<Arc<QuicClientConfig>, Error> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?;
    let config = match &believed.roots {
        Some(roots) => config.with_root_certificates(roots.clone()),
        None => config.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(
            provider().signature_verification_algorithms,
        ))),
    };
    let mut config = match identity {
        Some(identity) => config
            .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
            .map_err(tls)?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(tls)?))
}

/// Takes any certificate, as long as the server has its key. For [`Believed::anybody`] only.
#[derive(Debug)]
struct AnyServer(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
