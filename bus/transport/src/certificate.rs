//! Certificates: made with rcgen, read back with x509-parser.

use std::net::IpAddr;
use std::time::Duration;

use bus_protocol::{NodeId, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use x509_parser::extensions::GeneralName;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
const NODE_LIFE: Duration = Duration::from_secs(5 * 365 * 24 * 60 * 60);

/// A certificate and its key, in PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// The name that a broker's certificate bears for its id.
pub(crate) fn node_name(node: NodeId) -> String {
    format!("node-{node}.bus")
}

fn validity(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(u64::try_from(now).unwrap_or(0));
    // A day back, for peers whose clocks are behind.
    params.not_before = now - DAY;
    params.not_after = now + life;
}

/// A CA of its own, for one cluster.
pub(crate) fn make_ca(now: Timestamp) -> Result<Pair, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "bus cluster CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now, CA_LIFE);
    let certificate = params.self_signed(&key)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A broker's certificate: good as a server's and as a client's.
pub(crate) fn make_node(
    ca: &Pair,
    node: NodeId,
    names: &[String],
    now: Timestamp,
) -> Result<Pair, rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, format!("bus node {node}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, NODE_LIFE);
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// What a certificate says.
pub(crate) struct Facts {
    /// DNS names and IP addresses, as text.
    pub(crate) names: Vec<String>,
    /// When it ends, in milliseconds since the Unix epoch.
    pub(crate) not_after: Timestamp,
}

/// Reads a certificate; `None` where it is none.
pub(crate) fn read(der: &[u8]) -> Option<Facts> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let mut names = Vec::new();
    if let Some(alternatives) = certificate.subject_alternative_name().ok()? {
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.extend(ip(bytes).map(|ip| ip.to_string())),
                _ => {}
            }
        }
    }
    let not_after = certificate.validity().not_after.timestamp().saturating_mul(1000);
    Some(Facts { names, not_after })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// The broker that a certificate was made for.
pub(crate) fn node_of(der: &[u8]) -> Option<NodeId> {
    let names = read(der)?.names;
    names.iter().find_map(|name| name.strip_prefix("node-")?.strip_suffix(".bus")?.parse().ok())
}
