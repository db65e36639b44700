//! A client of one request: a TLS connection of its own, HTTP/1.1 or HTTP/2.

use std::error::Error;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use provider_simulator::{Credential, Options, Provider, SigningKeys, Simulators};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// One pair for all tests: making one takes a while.
pub static KEYS: LazyLock<SigningKeys> = LazyLock::new(|| SigningKeys::generate().expect("keys"));

/// Started with a key for BBMSL's merchant 3.
pub async fn start() -> Simulators {
    start_with(Options::default()).await
}

pub async fn start_with(mut options: Options) -> Simulators {
    let merchant = Credential::new("3", &KEYS.public_key);
    options.credentials.accept(Provider::Bbmsl, merchant);
    Simulators::start(options).await.expect("started")
}

#[derive(Clone)]
pub struct Call {
    pub provider: Provider,
    pub version: Version,
    pub method: Method,
    pub host: String,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

impl Call {
    /// POST with JSON.
    pub fn new(provider: Provider, path: &str, body: &str) -> Call {
        Call {
            provider,
            version: Version::HTTP_11,
            method: Method::POST,
            host: provider.host().into(),
            path: path.into(),
            headers: vec![("content-type", "application/json".into())],
            body: body.into(),
        }
    }

    /// GET, without a body.
    pub fn get(provider: Provider, path: &str) -> Call {
        Call {
            method: Method::GET,
            headers: vec![("accept", "application/json".into())],
            ..Call::new(provider, path, "")
        }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Call {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    pub fn without(mut self, name: &str) -> Call {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    pub fn path(mut self, path: &str) -> Call {
        self.path = path.into();
        self
    }

    pub fn h2(mut self) -> Call {
        self.version = Version::HTTP_2;
        self
    }

    pub async fn try_send(
        &self,
        simulators: &Simulators,
    ) -> Result<Answer, Box<dyn Error + Send + Sync>> {
        let h2 = self.version == Version::HTTP_2;
        let alpn: &[u8] = if h2 { b"h2" } else { b"http/1.1" };
        let tls = connect(simulators, self.provider, &[alpn]).await?;
        let uri = if h2 {
            format!("https://{}{}", self.host, self.path)
        } else {
            self.path.clone()
        };
        let mut request = Request::builder().method(self.method.clone()).uri(uri);
        if !h2 {
            request = request.header("host", &self.host);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(self.body.clone())))?;
        let response = if h2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
                    .await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            trailers: body.trailers().cloned().unwrap_or_default(),
            body: body.to_bytes().into(),
        })
    }

    pub async fn send(&self, simulators: &Simulators) -> Answer {
        self.try_send(simulators).await.expect("an answer")
    }

    /// Sends it; answers the status alone.
    pub async fn status(&self, simulators: &Simulators) -> u16 {
        self.send(simulators).await.status
    }
}

/// A TLS connection to the provider's real name, trusting only the simulators' authority.
pub async fn connect(
    simulators: &Simulators,
    provider: Provider,
    alpn: &[&[u8]],
) -> Result<TlsStream<TcpStream>, Box<dyn Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(
        simulators.ca_pem().as_bytes(),
    )?)?;
    let crypto = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let tcp = TcpStream::connect(simulators.address(provider)).await?;
    let name = ServerName::try_from(provider.host())?;
    Ok(TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await?)
}
