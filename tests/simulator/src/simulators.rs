//! All of the endpoints together: starting, steering, looking in, stopping.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::server::{Endpoint, Log};
use crate::tls::Authorities;
use crate::{Alpn, Certificate, Credentials, Exchange, Fault, Provider, Received, Refunded, lock};

/// Why the simulators did not start. Nothing listens then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port is taken, or may not be used.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS was refused its certificate.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A public key is not the SPKI PEM of an RSA key.
    #[error("a credential of {0:?} cannot be read")]
    Credential(Provider),
    /// No key could be made.
    #[error("cannot make a key")]
    Key,
}

/// How long a token of Bank of Georgia is good for, and how the answer says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLifetime {
    /// The token is refused after that, to the millisecond. `expires_in` says the same, in whole
    /// units.
    pub lasts: Duration,
    /// The form of `expires_in`.
    pub shown: ExpiresIn,
}

impl Default for TokenLifetime {
    /// Five minutes, in seconds.
    fn default() -> Self {
        TokenLifetime {
            lasts: Duration::from_secs(300),
            shown: ExpiresIn::Seconds,
        }
    }
}

/// The form of `expires_in`: most material has seconds, one vendor example an epoch in
/// milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiresIn {
    /// `300`
    Seconds,
    /// `1700000300`
    EpochSeconds,
    /// `1700000300000`
    EpochMilliseconds,
}

/// How the simulators start.
#[derive(Clone)]
pub struct Options {
    /// The HTTP versions offered. Both, unless set.
    pub alpn: Alpn,
    /// The address listened on. 127.0.0.1, unless set.
    pub address: IpAddr,
    /// Addresses by provider; `address` where none is named.
    pub addresses: BTreeMap<Provider, IpAddr>,
    /// Ports by provider; any free one where none is named.
    pub ports: BTreeMap<Provider, u16>,
    /// Certificates by provider; a valid one where none is named.
    pub certificates: BTreeMap<Provider, Certificate>,
    /// Host names by provider, for beGateway's white labels; the vendor's own where none is named.
    /// In the certificate, and asked of each request.
    pub hosts: BTreeMap<Provider, String>,
    /// Whether a request for any other host is served too, and not refused with 421. No, unless
    /// set.
    pub any_host: bool,
    /// What a token is good for at the start.
    pub token_lifetime: TokenLifetime,
    /// What is accepted.
    pub credentials: Credentials,
    /// So many exchanges are kept for each provider, the latest ones. 20000, unless set.
    pub kept_exchanges: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            alpn: Alpn::default(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            addresses: BTreeMap::new(),
            ports: BTreeMap::new(),
            certificates: BTreeMap::new(),
            hosts: BTreeMap::new(),
            any_host: false,
            token_lifetime: TokenLifetime::default(),
            credentials: Credentials::default(),
            kept_exchanges: 20_000,
        }
    }
}

/// All servers, running. Dropping it stops all of it.
pub struct Simulators {
    authorities: Authorities,
    sites: BTreeMap<Provider, Site>,
}

struct Site {
    endpoint: Arc<Endpoint>,
    address: SocketAddr,
    tls: Mutex<TlsAcceptor>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Site {
    fn serve(&self, listener: TcpListener) {
        let endpoint = self.endpoint.clone();
        let task = tokio::spawn(endpoint.serve(listener, lock(&self.tls).clone()));
        if let Some(former) = lock(&self.task).replace(task) {
            former.abort();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

impl Simulators {
    /// Starts all. Needs a tokio runtime with I/O and time.
    pub async fn start(options: Options) -> Result<Simulators, Error> {
        let authorities = Authorities::new()?;
        let mut sites = BTreeMap::new();
        let mut applications = Vec::new();
        for provider in Provider::REFUNDING {
            applications.extend((provider.declared().start)(&options)?);
        }
        for (provider, application) in Provider::ALL.into_iter().zip(applications) {
            let host = match options.hosts.get(&provider) {
                Some(host) => host.clone(),
                None => provider.host().to_owned(),
            };
            let certificate = options
                .certificates
                .get(&provider)
                .copied()
                .unwrap_or_default();
            let tls = authorities.acceptor(&host, certificate, options.alpn)?;
            let port = options.ports.get(&provider).copied().unwrap_or(0);
            let address = options.addresses.get(&provider).copied();
            let listener = TcpListener::bind((address.unwrap_or(options.address), port)).await?;
            let site = Site {
                endpoint: Arc::new(Endpoint {
                    provider,
                    host,
                    any_host: options.any_host,
                    alpn: options.alpn,
                    application,
                    faults: Mutex::default(),
                    met: Mutex::default(),
                    log: Log::new(options.kept_exchanges),
                }),
                address: listener.local_addr()?,
                tls: Mutex::new(tls),
                task: Mutex::default(),
            };
            site.serve(listener);
            sites.insert(provider, site);
        }
        Ok(Simulators { authorities, sites })
    }

    fn site(&self, provider: Provider) -> &Site {
        &self.sites[&provider] // all are there
    }

    /// Where a provider listens. The same after [`Simulators::close`] and [`Simulators::open`].
    pub fn address(&self, provider: Provider) -> SocketAddr {
        self.site(provider).address
    }

    /// The host name that a provider's certificate is for, and that it asks of each request.
    pub fn host(&self, provider: Provider) -> &str {
        &self.site(provider).endpoint.host
    }

    /// The test authority, PEM. New with each start.
    pub fn ca_pem(&self) -> &str {
        &self.authorities.pem
    }

    /// What was refunded, in order.
    pub fn ledger(&self, provider: Provider) -> Vec<Refunded> {
        self.site(provider).endpoint.application.ledger()
    }

    /// The latest exchanges in the order of arrival, see [`Options::kept_exchanges`].
    pub fn requests(&self, provider: Provider) -> Vec<Exchange> {
        self.site(provider).endpoint.log.exchanges()
    }

    /// How many requests have arrived, also the ones no longer kept.
    pub fn received(&self, provider: Provider) -> u64 {
        self.site(provider).endpoint.log.received()
    }

    /// The latest request of a provider.
    pub fn last_request(&self, provider: Provider) -> Option<Received> {
        self.requests(provider)
            .pop()
            .map(|exchange| exchange.request)
    }

    /// Queues a fault: each request takes one, first in, first out, a look-up as well as a refund.
    pub fn next_fault(&self, provider: Provider, fault: Fault) {
        lock(&self.site(provider).endpoint.faults).push_back(fault);
    }

    /// Takes back the faults that no request has met; how many there were.
    pub fn clear_faults(&self, provider: Provider) -> usize {
        lock(&self.site(provider).endpoint.faults).drain(..).count()
    }

    /// Ends open refunds, the one of that [`Refunded::refund`] or all of a provider; how many there
    /// were. From then on a look-up shows them as done (`completed`, `approved`, `successful`),
    /// or as `rejected` or `failed`, with their money back. Open are BOG's accepted refunds,
    /// Moyasar's `initiated` and beGateway's `pending` and `incomplete` ones.
    pub fn settle(&self, provider: Provider, refund: Option<&str>, succeeded: bool) -> usize {
        self.site(provider)
            .endpoint
            .application
            .settle(refund, succeeded)
    }

    /// Lets the providers that only take a refund at first complete each by itself, after so many
    /// look-ups of its order that did not show it; with `None`, as at the start, only
    /// [`Simulators::settle`] does. For the refunds to come.
    pub fn complete_after(&self, look_ups: Option<u64>) {
        for site in self.sites.values() {
            site.endpoint.application.complete_after(look_ups);
        }
    }

    /// Refunds so much of a payment, by its [`Refunded::payment`], in a way that no call of the API
    /// made: at BOG by `business_manager`, at beGateway under this `tracking_id` (elsewhere
    /// `tracking` is not used). It is done at once. Answers [`Refunded::refund`]; `None` where
    /// the payment is not known, or has less left.
    pub fn refund_by_hand(
        &self,
        provider: Provider,
        payment: &str,
        minor_units: u64,
        tracking: &str,
    ) -> Option<String> {
        let application = &self.site(provider).endpoint.application;
        application.refund_by_hand(payment, minor_units, tracking)
    }

    /// How many requests the token endpoints have received, whatever they answered.
    pub fn token_fetches(&self) -> u64 {
        let beside = Provider::ALL.into_iter().filter(|server| !server.refunds());
        beside.map(|server| self.received(server)).sum()
    }

    /// Makes every token issued so far invalid.
    pub fn revoke_tokens(&self) {
        for site in self.sites.values() {
            site.endpoint.application.revoke_tokens();
        }
    }

    /// Sets what the next tokens are good for.
    pub fn set_token_lifetime(&self, lifetime: TokenLifetime) {
        for site in self.sites.values() {
            site.endpoint.application.set_token_lifetime(lifetime);
        }
    }

    /// How often each credential was accepted, by its place in [`Credentials`]. At
    /// [`Provider::BogToken`] the tokens issued to each client, at [`Provider::Bog`] the
    /// requests made with them.
    pub fn uses(&self, provider: Provider) -> Vec<usize> {
        self.site(provider)
            .endpoint
            .application
            .credentials()
            .uses()
    }

    /// Accepts a credential no more, by its place in [`Credentials`]. At [`Provider::BogToken`] no
    /// more tokens are issued to the client, at [`Provider::Bog`] its tokens are refused.
    pub fn revoke(&self, provider: Provider, nth: usize) {
        self.site(provider)
            .endpoint
            .application
            .credentials()
            .revoke(nth);
    }

    /// Shows another certificate from the next TLS handshake on; closes the connections there are.
    pub async fn set_certificate(
        &self,
        provider: Provider,
        certificate: Certificate,
    ) -> Result<(), Error> {
        let site = self.site(provider);
        let Endpoint { host, alpn, .. } = &*site.endpoint;
        let tls = self.authorities.acceptor(host, certificate, *alpn)?;
        *lock(&site.tls) = tls;
        self.close(provider).await;
        self.open(provider).await
    }

    /// Stops listening and drops every connection: the next one is refused. What was booked stays.
    pub async fn close(&self, provider: Provider) {
        let task = lock(&self.site(provider).task).take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    /// Listens again, at the same address.
    pub async fn open(&self, provider: Provider) -> Result<(), Error> {
        let site = self.site(provider);
        if lock(&site.task).is_some() {
            return Ok(());
        }
        // While it was closed, a connection of another program may have been given the port for a
        // moment.
        let patience = Duration::from_secs(10);
        let begin = Instant::now();
        loop {
            match TcpListener::bind(site.address).await {
                Ok(listener) => {
                    site.serve(listener);
                    return Ok(());
                }
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < patience =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
