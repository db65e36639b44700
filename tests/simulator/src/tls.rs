//! Certificates of a test authority, and the TLS of each provider.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use tokio_rustls::TlsAcceptor;

use crate::simulators::Error;

/// The HTTP versions offered in the TLS handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alpn {
    /// `http/1.1`; also for a client that offers nothing.
    Http1,
    /// `h2`; also spoken with a client that offers nothing.
    Http2,
    /// Both, `h2` preferred; HTTP/1.1 with a client that offers nothing.
    #[default]
    Both,
}

/// The certificate a provider shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Certificate {
    /// For the provider's host name, from the authority of [`crate::Simulators::ca_pem`].
    #[default]
    Valid,
    /// For `wrong.example`.
    WrongName,
    /// Ended yesterday.
    Expired,
    /// From another authority, of the same name.
    OtherAuthority,
}

/// The test authority, and another one that nobody trusts.
pub(crate) struct Authorities {
    trusted: Issuer<'static, KeyPair>,
    other: Issuer<'static, KeyPair>,
    /// PEM of the trusted one.
    pub pem: String,
}

impl Authorities {
    pub fn new() -> Result<Authorities, Error> {
        let (trusted, pem) = authority()?;
        let (other, _) = authority()?;
        Ok(Authorities {
            trusted,
            other,
            pem,
        })
    }

    /// A TLS acceptor (1.2 and 1.3) with a new leaf.
    pub fn acceptor(
        &self,
        host: &str,
        certificate: Certificate,
        alpn: Alpn,
    ) -> Result<TlsAcceptor, Error> {
        let name = match certificate {
            Certificate::WrongName => "wrong.example",
            _ => host,
        };
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages.push(KeyUsagePurpose::DigitalSignature);
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::days(3);
        params.not_after = match certificate {
            Certificate::Expired => now - Duration::days(1),
            _ => now + Duration::days(7),
        };
        let issuer = match certificate {
            Certificate::OtherAuthority => &self.other,
            _ => &self.trusted,
        };
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, issuer)?;

        let crypto = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(crypto)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;
        config.alpn_protocols = match alpn {
            Alpn::Http1 => vec![b"http/1.1".to_vec()],
            Alpn::Http2 => vec![b"h2".to_vec()],
            Alpn::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn authority() -> Result<(Issuer<'static, KeyPair>, String), Error> {
    let mut params = CertificateParams::new([])?;
    params
        .distinguished_name
        .push(DnType::CommonName, "provider-simulator test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(3);
    params.not_after = now + Duration::days(7);
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    Ok((Issuer::new(params, key), pem))
}
