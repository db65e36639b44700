//! Real Envoy with the filter, in front of the simulated providers.
//!
//! What runs is the project's own `envoy/envoy.yaml`, read, changed in the tree and handed to Envoy: its ports, the
//! providers' addresses, the certificate authority and the module's path; secrets come as environment variables, as the file
//! says. A test changes more only where it says so ([`Options::change`]).

mod envoy_yaml;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use provider_simulator as simulator;
use serde_json::Value;
use simulator::{MerchantKey, OAuthClient, Provider, Shop, SigningKeys, Simulators};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

pub use envoy_yaml::{load, route_mut};

/// The path of the canonical call.
pub const PATH: &str = "/v1/refunds";

/// The secrets that the testbed gives to Envoy as environment variables, and to the simulators as what they accept. Each has
/// the word `canary` in it, so that a test can look for them where they must not be.
#[derive(Clone)]
pub struct Secrets {
    /// BOG's OAuth2 client secret.
    pub bog_client_secret: String,
    /// Moyasar's API key.
    pub moyasar_api_key: String,
    /// beGateway's secret key.
    pub begateway_secret_key: String,
    /// BBMSL's key pair.
    pub bbmsl: (String, String),
}

impl Secrets {
    fn new() -> Result<Self> {
        let keys = SigningKeys::generate()?;
        Ok(Secrets {
            bog_client_secret: "canary-bog-client-secret".into(),
            moyasar_api_key: "canary-moyasar-api-key".into(),
            begateway_secret_key: "canary-begateway-secret-key".into(),
            bbmsl: (keys.private_key, keys.public_key),
        })
    }
}

/// How a gateway starts.
pub struct Options {
    /// The simulators' options; their credentials are set by the testbed.
    pub simulators: simulator::Options,
    /// Worker threads of Envoy.
    pub concurrency: u32,
    /// The port to listen on; 0 is any free one.
    pub port: u16,
    /// What this run changes in the configuration beyond addresses, certificates and secrets.
    pub change: Box<dyn FnOnce(&mut Value) + Send>,
    /// Envoy's log level.
    pub log_level: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            simulators: simulator::Options::default(),
            concurrency: 2,
            port: 0,
            change: Box::new(|_| {}),
            log_level: "info",
        }
    }
}

impl Options {
    /// The default, with a change to the configuration.
    pub fn changed(change: impl FnOnce(&mut Value) + Send + 'static) -> Self {
        Options {
            change: Box::new(change),
            ..Options::default()
        }
    }
}

/// A running gateway with its simulators. Dropping it ends both.
pub struct Gateway {
    /// The simulated providers.
    pub simulators: Simulators,
    /// Where the gateway listens.
    pub address: SocketAddr,
    /// Where Envoy's admin listens.
    pub admin: SocketAddr,
    /// The secrets in use.
    pub secrets: Secrets,
    folder: tempfile::TempDir,
    // Killed when it is dropped.
    envoy: Child,
}

impl Gateway {
    /// Starts the simulators, then Envoy, and waits until it takes calls.
    pub async fn start(options: Options) -> Result<Gateway> {
        let secrets = Secrets::new()?;
        let mut simulator_options = options.simulators;
        simulator_options.credentials = simulator::Credentials {
            bog: vec![OAuthClient {
                id: "10001".into(),
                secret: secrets.bog_client_secret.clone(),
            }],
            moyasar: vec![secrets.moyasar_api_key.clone()],
            begateway: vec![Shop {
                id: "361".into(),
                secret: secrets.begateway_secret_key.clone(),
            }],
            bbmsl: vec![MerchantKey {
                merchant: "3".into(),
                public_key: secrets.bbmsl.1.clone(),
            }],
        };
        let simulators = Simulators::start(simulator_options).await?;

        let folder = tempfile::Builder::new()
            .prefix("refund-gateway-")
            .tempdir()?;
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, simulators.ca_pem())?;
        let mut config = load()?;
        envoy_yaml::set_listener_port(&mut config, options.port)?;
        envoy_yaml::set_module(&mut config, &module()?)?;
        for provider in Provider::ALL {
            envoy_yaml::set_upstream(
                &mut config,
                cluster(provider),
                simulators.address(provider),
                &ca,
            )?;
        }
        (options.change)(&mut config);
        let config_path = folder.path().join("envoy.json");
        std::fs::write(&config_path, serde_json::to_vec_pretty(&config)?)?;

        let admin_path = folder.path().join("admin");
        let envoy = Command::new(envoy()?)
            .arg("--config-path")
            .arg(&config_path)
            .arg("--admin-address-path")
            .arg(&admin_path)
            .args(["--concurrency", &options.concurrency.to_string()])
            .args(["--log-level", options.log_level])
            // Several run beside each other on one machine.
            .args(["--use-dynamic-base-id", "--drain-time-s", "1"])
            .env("BOG_CLIENT_SECRET", &secrets.bog_client_secret)
            .env("MOYASAR_API_KEY", &secrets.moyasar_api_key)
            .env("BEGATEWAY_SECRET_KEY", &secrets.begateway_secret_key)
            .env("BBMSL_PRIVATE_KEY", &secrets.bbmsl.0)
            .stdin(Stdio::null())
            .stdout(File::create(folder.path().join("access.log"))?)
            .stderr(File::create(folder.path().join("envoy.log"))?)
            .kill_on_drop(true)
            .spawn()
            .context("Envoy did not start")?;
        let mut gateway = Gateway {
            simulators,
            address: ([127, 0, 0, 1], options.port).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            secrets,
            folder,
            envoy,
        };
        gateway.wait_until_ready(&admin_path).await?;
        Ok(gateway)
    }

    async fn wait_until_ready(&mut self, admin_path: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.envoy.try_wait()? {
                bail!(
                    "Envoy ended with {status}:\n{}",
                    last_lines(&self.log(), 20)
                );
            }
            ensure!(
                Instant::now() < deadline,
                "Envoy was not ready in time:\n{}",
                last_lines(&self.log(), 20)
            );
            sleep(Duration::from_millis(20)).await;
            let Ok(text) = std::fs::read_to_string(admin_path) else {
                continue;
            };
            let Ok(address) = text.trim().parse() else {
                continue;
            };
            self.admin = address;
            let ready = self
                .admin("/ready")
                .await
                .is_ok_and(|text| text.trim() == "LIVE");
            if ready && let Some(address) = self.listening().await {
                self.address = address;
                return Ok(());
            }
        }
    }

    async fn listening(&self) -> Option<SocketAddr> {
        let text = self.admin("/listeners?format=json").await.ok()?;
        let listeners: Value = serde_json::from_str(&text).ok()?;
        let address = listeners.pointer("/listener_statuses/0/local_address/socket_address")?;
        let port = u16::try_from(address.get("port_value")?.as_u64()?).ok()?;
        Some(([127, 0, 0, 1], port).into())
    }

    /// The body of an admin page.
    pub async fn admin(&self, path: &str) -> Result<String> {
        let url = format!("http://{}{path}", self.admin);
        Ok(reqwest::get(url).await?.text().await?)
    }

    /// The URL of the canonical call.
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// Makes a canonical call over HTTP/1.1.
    pub async fn refund(&self, key: &str, body: &impl ToString) -> Result<Answer> {
        let response = reqwest::Client::new()
            .post(self.url())
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(body.to_string())
            .send()
            .await?;
        Answer::read(response).await
    }

    /// Envoy's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("envoy.log")).unwrap_or_default()
    }

    /// The access log so far, a JSON object a line. Envoy writes it with a delay.
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }

    /// Ends Envoy as an operator would and waits for it.
    pub async fn stop(mut self) -> Result<()> {
        let asked = self.admin_post("/quitquitquit").await;
        match tokio::time::timeout(Duration::from_secs(10), self.envoy.wait()).await {
            Ok(_) => asked,
            Err(_) => Ok(self.envoy.kill().await?),
        }
    }

    /// Sends a POST to an admin page.
    pub async fn admin_post(&self, path: &str) -> Result<()> {
        let url = format!("http://{}{path}", self.admin);
        reqwest::Client::new().post(url).send().await?;
        Ok(())
    }

    /// Completes when Envoy ends by itself.
    pub async fn ended(&mut self) -> String {
        let status = self.envoy.wait().await;
        format!("{status:?}\n{}", last_lines(&self.log(), 20))
    }
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
    match provider {
        Provider::Bog => "bog",
        Provider::BogToken => "bog-token",
        Provider::Moyasar => "moyasar",
        Provider::Begateway => "begateway",
        Provider::Bbmsl => "bbmsl",
    }
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

/// The Envoy binary that `./build.sh` names.
pub fn envoy() -> Result<PathBuf> {
    let path = std::env::var_os("ENVOY")
        .map(PathBuf::from)
        .context("ENVOY names no Envoy binary: run this by ./build.sh")?;
    ensure!(path.exists(), "there is no Envoy at {}", path.display());
    Ok(path)
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
