//! Real Envoy with the filter, in front of the simulated providers.
//!
//! What runs is the project's own `envoy/envoy.yaml`, read, changed in the tree and handed to
//! Envoy: its ports, the providers' addresses, the certificate authority, the module's path and the
//! folder of the secrets. A test changes more only where it says so ([`Options::change`]).

pub mod ecds;
mod envoy;
mod envoy_yaml;
pub mod openbao;
pub mod play;
pub mod redis;
pub mod sandbox;
pub mod soak;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, ensure};
use provider_simulator as simulator;
use serde_json::{Value, json};
pub use simulator::Provider;
use simulator::{Credential, SigningKeys, Simulators};

use envoy::{Running, Start, get};

pub use envoy_yaml::{
    change_each, change_plugin, filter_mut, filter_state, inject_credentials, load, parse, parts,
    route_mut, set_secrets, share_memory, sign_by_transit, trace_to,
};

/// The path of the canonical call.
pub const PATH: &str = "/v1/refunds";

/// The secrets that the testbed gives to Envoy, and to the simulators as what they accept. Each has
/// the word `canary` in it, so that a test can look for them where they must not be.
#[derive(Clone)]
pub struct Secrets(BTreeMap<Provider, Secret>);

#[derive(Clone)]
struct Secret {
    proves: String,
    checks: String,
}

impl Secrets {
    /// Those of every gateway that is given no others: a key pair takes a good part of a second to
    /// make.
    pub fn of_this_process() -> Result<Self> {
        static MADE: OnceLock<Secrets> = OnceLock::new();
        if let Some(made) = MADE.get() {
            return Ok(made.clone());
        }
        let made = Secrets::new()?;
        Ok(MADE.get_or_init(|| made).clone())
    }

    /// New ones: the same texts, and other key pairs.
    pub fn new() -> Result<Self> {
        Secrets::ending_in("")
    }

    /// New ones: all of them others, the texts by this ending.
    pub fn ending_in(ending: &str) -> Result<Self> {
        let mut secrets = Secrets(BTreeMap::new());
        for provider in Provider::REFUNDING {
            let declared = &provider.declared().secret;
            secrets = if declared.signs() {
                let keys = SigningKeys::generate()?;
                secrets.with_keys(provider, &keys.private_key, &keys.public_key)
            } else {
                secrets.with(provider, &format!("canary-{}{ending}", declared.name))
            };
        }
        Ok(secrets)
    }

    /// The same, but for this provider's.
    pub fn with(self, provider: Provider, secret: &str) -> Self {
        self.with_keys(provider, secret, secret)
    }

    /// The same, but for this provider's key pair: PKCS#8 PEM and SPKI PEM.
    pub fn with_keys(mut self, provider: Provider, private: &str, public: &str) -> Self {
        let secret = Secret {
            proves: private.to_owned(),
            checks: public.to_owned(),
        };
        self.0.insert(provider.main(), secret);
        self
    }

    /// What the gateway proves itself with; where it signs, PKCS#8 PEM.
    pub fn of(&self, provider: Provider) -> &str {
        &self.0[&provider.main()].proves
    }

    /// What the provider checks it by: the same; where the gateway signs, SPKI PEM.
    pub fn checked_by(&self, provider: Provider) -> &str {
        &self.0[&provider.main()].checks
    }

    /// As Envoy gets it, in one line, so that it fits into a header, too: of a key pair the base64
    /// of PKCS#8 DER.
    pub fn line(&self, provider: Provider) -> String {
        let lines = self.of(provider).lines();
        lines.filter(|line| !line.starts_with("-----")).collect()
    }
}

/// By which way the secrets reach the filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecretsBy {
    /// As envoy.yaml has it: SDS files, through filter state (Envoy 1.38 and later).
    #[default]
    FilterState,
    /// As secrets-by-header.yaml has it: SDS files, through request headers.
    Header,
    /// Environment variables of Envoy.
    Environment,
}

/// A change to the configuration; it gets the folder of the secrets, too.
pub type Change = Box<dyn FnOnce(&mut Value, &Path) + Send>;

/// How a gateway starts.
pub struct Options {
    /// The simulators' options; their credentials are set by the testbed.
    pub simulators: simulator::Options,
    /// By which way the secrets come.
    pub secrets_by: SecretsBy,
    /// Another whole configuration than envoy.yaml, with some of its providers.
    pub base: Option<Value>,
    /// Worker threads of Envoy.
    pub concurrency: u32,
    /// The port to listen on; 0 is any free one.
    pub port: u16,
    /// What this run changes in the configuration beyond addresses, certificates and secrets.
    pub change: Change,
    /// More secrets than envoy.yaml's own: the names of their SDS files, and their values.
    pub more_secrets: Vec<(&'static str, String)>,
    /// The secrets to use; made on the spot where there are none.
    pub secrets: Option<Secrets>,
    /// Envoy's log level.
    pub log_level: &'static str,
    /// Secrets that the simulators accept, too, in the places after those in use: a rotation goes
    /// to them.
    pub also_accepted: Vec<Secrets>,
    /// Whether the filter is configured by ECDS, see [`Gateway::push`].
    pub ecds: bool,
    /// Whether Envoy is started for this gateway, with its configuration as it stands, and ends
    /// with it; else one may serve a test after another.
    pub alone: bool,
    /// The gateway whose simulators, secrets and folders of SDS and ECDS this one uses, too. It
    /// must stay.
    pub beside: Option<Beside>,
}

/// What the gateways of a fleet share.
#[derive(Clone)]
pub struct Beside {
    simulators: Arc<Simulators>,
    secrets: Secrets,
    /// Of the files of secrets, and of what is pushed; none where each gateway has its own.
    folder: Option<PathBuf>,
}

impl Beside {
    /// The same providers, and nothing that is pushed to the others.
    #[must_use]
    pub fn apart(self) -> Self {
        Beside {
            folder: None,
            ..self
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            simulators: simulator::Options::default(),
            secrets_by: SecretsBy::of_this_envoy(),
            base: None,
            concurrency: 2,
            port: 0,
            change: Box::new(|_, _| {}),
            more_secrets: Vec::new(),
            secrets: None,
            log_level: "info",
            also_accepted: Vec::new(),
            ecds: false,
            alone: false,
            beside: None,
        }
    }
}

impl Options {
    /// The default, with an Envoy of its own.
    pub fn alone() -> Self {
        Options {
            alone: true,
            ..Options::default()
        }
    }

    /// The default, with a change to the configuration.
    pub fn changed(change: impl FnOnce(&mut Value) + Send + 'static) -> Self {
        Options {
            change: Box::new(|config, _| change(config)),
            ..Options::default()
        }
    }
}

/// A running gateway with its simulators. Dropping it ends both.
pub struct Gateway {
    /// The simulated providers.
    pub simulators: Arc<Simulators>,
    /// Where the gateway listens.
    pub address: SocketAddr,
    /// Where Envoy's admin listens.
    pub admin: SocketAddr,
    /// The secrets in use.
    pub secrets: Secrets,
    folder: tempfile::TempDir,
    // The folders of SDS and ECDS are in it: the same folder, or another gateway's.
    shared: PathBuf,
    envoy: Running,
    config: Value,
    concurrency: u32,
    log_level: &'static str,
}

/// `envoy/fleet.yaml`, running in front of gateways. Dropping it ends it.
pub struct Front {
    envoy: Running,
    // Where it runs.
    _folder: tempfile::TempDir,
}

impl Front {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.envoy.address
    }

    /// Starts it in front of these.
    pub async fn start(gateways: &[SocketAddr]) -> Result<Front> {
        let folder = tempfile::Builder::new().prefix("refund-front-").tempdir()?;
        let config = envoy_yaml::fleet(gateways)?;
        let envoy = Running::start(Start {
            config: &config,
            folder: folder.path(),
            concurrency: 2,
            log_level: "info",
            environment: Vec::new(),
        })
        .await?;
        Ok(Front {
            envoy,
            _folder: folder,
        })
    }

    /// Makes a canonical call through it.
    pub async fn refund(&self, key: &str, body: &impl ToString) -> Result<Answer> {
        refund(self.envoy.address, key, body).await
    }

    /// Looks a refund up through it.
    pub async fn look_up(&self, parameters: &[(&str, &str)]) -> Result<Answer> {
        look_up(self.envoy.address, parameters).await
    }
}

/// Looks a refund up over HTTP/1.1, on a connection of its own.
async fn look_up(address: SocketAddr, parameters: &[(&str, &str)]) -> Result<Answer> {
    let response = reqwest::Client::new()
        .get(format!("http://{address}{PATH}"))
        .query(parameters)
        .send()
        .await?;
    Answer::read(response).await
}

/// Makes a canonical call over HTTP/1.1, on a connection of its own.
async fn refund(address: SocketAddr, key: &str, body: &impl ToString) -> Result<Answer> {
    let response = reqwest::Client::new()
        .post(format!("http://{address}{PATH}"))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(body.to_string())
        .send()
        .await?;
    Answer::read(response).await
}

impl Gateway {
    /// Starts the simulators, then Envoy, and waits until it takes calls.
    pub async fn start(options: Options) -> Result<Gateway> {
        let folder = tempfile::Builder::new()
            .prefix("refund-gateway-")
            .tempdir()?;
        let beside = match options.beside {
            Some(beside) => beside,
            None => {
                let secrets = match options.secrets {
                    Some(secrets) => secrets,
                    None => Secrets::of_this_process()?,
                };
                let mut simulator_options = options.simulators;
                simulator_options.credentials = secrets.accepted(&options.also_accepted);
                Beside {
                    simulators: Arc::new(Simulators::start(simulator_options).await?),
                    secrets,
                    folder: None,
                }
            }
        };
        let Beside {
            simulators,
            secrets,
            folder: shared,
        } = beside;
        let shared = shared.unwrap_or_else(|| folder.path().to_owned());
        let secret_folder = shared.join("secrets");
        if !secret_folder.exists() {
            std::fs::create_dir(&secret_folder)?;
            secrets.put(&secret_folder)?;
        }
        for (name, value) in &options.more_secrets {
            put_secret(&secret_folder, name, value)?;
        }
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, simulators.ca_pem())?;
        let mut config = match options.base {
            Some(base) => base,
            None => load()?,
        };
        envoy_yaml::set_listener_port(&mut config, options.port)?;
        envoy_yaml::set_module(&mut config, &module()?)?;
        envoy_yaml::set_secrets(&mut config, options.secrets_by, &secret_folder)?;
        for provider in Provider::ALL {
            let (cluster, address) = (cluster(provider), simulators.address(provider));
            if envoy_yaml::has_cluster(&config, cluster) {
                envoy_yaml::set_upstream(&mut config, cluster, address, &ca)?;
            }
        }
        (options.change)(&mut config, &secret_folder);
        // What an Envoy takes from its environment is there from its start.
        let alone = options.alone || config.to_string().contains("host_env_keys");
        if !alone {
            envoy_yaml::rename_memories(&mut config, folder.path());
        }
        if options.ecds {
            ecds::discover(&mut config, &shared.join("ecds"))?;
        }
        let environment = secrets.environment();
        let start = Start {
            config: &config,
            folder: folder.path(),
            concurrency: options.concurrency,
            log_level: options.log_level,
            environment,
        };
        let envoy = match alone {
            true => Running::start(start).await?,
            false => Running::take(start).await?,
        };
        Ok(Gateway {
            simulators,
            address: envoy.address,
            admin: envoy.admin()?,
            secrets,
            folder,
            shared,
            envoy,
            config,
            concurrency: options.concurrency,
            log_level: options.log_level,
        })
    }

    /// Kills Envoy and starts it again on the same port, as after a crash: what it remembered is
    /// gone.
    pub async fn restart(&mut self) -> Result<()> {
        self.envoy.kill();
        let folder = self.folder.path();
        let mut config = self.config.clone();
        envoy_yaml::set_listener_port(&mut config, self.address.port())?;
        self.envoy = Running::start(Start {
            config: &config,
            folder,
            concurrency: self.concurrency,
            log_level: self.log_level,
            environment: self.secrets.environment(),
        })
        .await?;
        self.admin = self.envoy.admin()?;
        Ok(())
    }

    /// Replaces one of the secrets in its SDS file, as an operator must: a new file, moved into
    /// place. `name` is the file's, without its ending.
    pub fn rotate(&self, name: &str, value: &str) -> Result<()> {
        put_secret(&self.shared.join("secrets"), name, value)
    }

    /// What another gateway needs to be of the same fleet.
    pub fn beside(&self) -> Beside {
        Beside {
            simulators: self.simulators.clone(),
            secrets: self.secrets.clone(),
            folder: Some(self.shared.clone()),
        }
    }

    fn ecds_folder(&self) -> PathBuf {
        self.shared.join("ecds")
    }

    /// A folder of this run's, for more files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The id of Envoy's process.
    pub fn process(&self) -> Option<u32> {
        self.envoy.id()
    }

    /// The body of an admin page.
    pub async fn admin(&self, path: &str) -> Result<String> {
        get(self.admin, path).await
    }

    /// The numbers of Envoy's statistics whose names match.
    pub async fn stats(&self, filter: &str) -> Result<BTreeMap<String, u64>> {
        let text = self.admin(&format!("/stats?filter={filter}")).await?;
        Ok(numbers(&text))
    }

    /// The URL of the canonical call.
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// Makes a canonical call over HTTP/1.1.
    pub async fn refund(&self, key: &str, body: &impl ToString) -> Result<Answer> {
        refund(self.address, key, body).await
    }

    /// Looks a refund up over HTTP/1.1: the parameters of the query, as they are.
    pub async fn look_up(&self, parameters: &[(&str, &str)]) -> Result<Answer> {
        look_up(self.address, parameters).await
    }

    /// Envoy's log so far.
    pub fn log(&self) -> String {
        self.envoy.log()
    }

    /// The access log so far, a JSON object a line. Envoy writes it with a delay.
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }

    /// Ends the gateway: nothing listens any more, and all of its logs are written.
    pub async fn stop(&mut self) -> Result<()> {
        self.envoy.stop().await
    }

    /// Sends a POST to an admin page.
    pub async fn admin_post(&self, path: &str) -> Result<()> {
        self.envoy.post(path).await
    }

    /// Completes when Envoy ends by itself.
    pub async fn ended(&mut self) -> String {
        let status = self.envoy.ended().await;
        format!("{status:?}\n{}", last_lines(&self.log(), 20))
    }
}

impl SecretsBy {
    /// Filter state, unless `SECRETS_BY` says `header` or `environment`: so the same tests run on
    /// an older Envoy.
    pub fn of_this_envoy() -> Self {
        match std::env::var("SECRETS_BY").as_deref() {
            Ok("header") => SecretsBy::Header,
            Ok("environment") => SecretsBy::Environment,
            _ => SecretsBy::FilterState,
        }
    }
}

impl Secrets {
    /// What the simulators accept: these, and others after them.
    pub fn accepted(&self, others: &[Secrets]) -> simulator::Credentials {
        let mut accepted = simulator::Credentials::none();
        for secrets in std::iter::once(self).chain(others) {
            for (provider, secret) in &secrets.0 {
                let account = provider.declared().secret.account;
                accepted.accept(*provider, Credential::new(account, &secret.checks));
            }
        }
        accepted
    }

    /// Writes the SDS files that envoy.yaml names.
    pub fn put(&self, folder: &Path) -> Result<()> {
        let mut secrets = self.by_name();
        secrets.try_for_each(|(name, value)| put_secret(folder, name, &value))
    }

    /// The secrets by the names of their SDS files in envoy.yaml.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, String)> {
        let providers = self.0.keys();
        providers.map(|provider| (provider.declared().secret.name, self.line(*provider)))
    }

    /// The secrets by the names of the environment variables that they can be taken from.
    pub fn environment(&self) -> Vec<(String, String)> {
        let secrets = self.by_name();
        let by_variable = secrets.map(|(name, value)| (envoy_yaml::variable(name), value));
        by_variable.collect()
    }
}

/// The text of an SDS file.
pub fn sds_file(name: &str, value: &str) -> String {
    let resource = json!({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": name,
        "generic_secret": {"secret": {"inline_string": value}},
    }]});
    resource.to_string()
}

/// Writes an SDS file and moves it into place.
fn put_secret(folder: &Path, name: &str, value: &str) -> Result<()> {
    let draft = folder.join(format!(".{name}.part"));
    std::fs::write(&draft, sds_file(name, value))?;
    Ok(std::fs::rename(draft, folder.join(format!("{name}.yaml")))?)
}

/// What an application gets.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body as text.
    pub text: String,
    /// The body as JSON; null where it is none.
    pub body: Value,
}

impl Answer {
    /// Reads a whole response.
    pub async fn read(response: reqwest::Response) -> Result<Answer> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or_default();
        Ok(Answer {
            status,
            headers,
            text,
            body,
        })
    }

    /// A header's text; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

/// The name of a provider's cluster in envoy.yaml.
pub fn cluster(provider: Provider) -> &'static str {
    provider.server().cluster
}

/// The checkout.
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The filter's module, as `./build.sh` leaves it.
pub fn module() -> Result<PathBuf> {
    let path = project().join("dist/refund_filter.wasm");
    ensure!(
        path.exists(),
        "dist/refund_filter.wasm is missing: run ./build.sh first"
    );
    Ok(path.canonicalize()?)
}

/// The module of another version, in this folder: its user agent alone is another.
pub fn other_module(folder: &Path, version: &str) -> Result<PathBuf> {
    let mut bytes = std::fs::read(module()?)?;
    let known = concat!("refund-filter/", env!("CARGO_PKG_VERSION")).as_bytes();
    let new = format!("refund-filter/{version}");
    ensure!(
        new.len() == known.len(),
        "{new} is not as long as this version"
    );
    let at = bytes.windows(known.len()).position(|part| part == known);
    let at = at.context("the module has no user agent")?;
    bytes[at..at + known.len()].copy_from_slice(new.as_bytes());
    let path = folder.join(format!("{version}.wasm"));
    std::fs::write(&path, bytes)?;
    Ok(path)
}

/// The Envoy binary that `./build.sh` names.
pub fn envoy() -> Result<PathBuf> {
    let path = std::env::var_os("ENVOY")
        .map(PathBuf::from)
        .context("ENVOY names no Envoy binary: run this by ./build.sh")?;
    ensure!(path.exists(), "there is no Envoy at {}", path.display());
    Ok(path)
}

/// The numbers on an admin page, by their names.
fn numbers(page: &str) -> BTreeMap<String, u64> {
    let number = |line: &str| {
        let (name, number) = line.rsplit_once(": ")?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    page.lines().filter_map(number).collect()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
