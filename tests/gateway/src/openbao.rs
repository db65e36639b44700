//! A real OpenBao server for signing: in its dev mode, over TLS, with a token that may do nothing
//! but sign.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// The transit key's name.
pub const KEY: &str = "bbmsl";

const ROOT_TOKEN: &str = "canary-openbao-root-token";

/// A running OpenBao. Dropping it ends it.
pub struct OpenBao {
    /// Where it listens.
    pub address: SocketAddr,
    /// The token that may sign, and nothing else.
    pub token: String,
    folder: tempfile::TempDir,
    // Killed when it is dropped.
    server: Child,
}

impl OpenBao {
    /// Starts a server and brings `private_key` (PKCS#8 PEM) into its transit engine.
    pub async fn start(private_key: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("refund-openbao-")
            .tempdir()?;
        // Dev mode takes no port 0, so a free one is found first.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let server = Command::new(program()?)
            .args(["server", "-dev", "-dev-tls", "-dev-no-store-token"])
            .arg(format!("-dev-tls-cert-dir={}", folder.path().display()))
            .arg(format!("-dev-listen-address={address}"))
            .arg(format!("-dev-root-token-id={ROOT_TOKEN}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("OpenBao did not start")?;
        let mut openbao = OpenBao {
            address,
            token: String::new(),
            folder,
            server,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = openbao.run(&["status"]).await {
            if let Some(status) = openbao.server.try_wait()? {
                bail!("OpenBao ended with {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "OpenBao was not ready in time: {error:#}"
            );
            // Its command line is a large program.
            sleep(Duration::from_millis(200)).await;
        }
        openbao.prepare(private_key).await?;
        Ok(openbao)
    }

    async fn prepare(&mut self, private_key: &str) -> Result<()> {
        let der: String = private_key
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        let key = self.folder.path().join("key");
        std::fs::write(&key, der)?;
        self.run(&["secrets", "enable", "transit"]).await?;
        let path = format!("transit/keys/{KEY}");
        let file = format!("@{}", key.display());
        self.run(&[
            "transit",
            "import",
            &path,
            &file,
            "type=rsa-2048",
            "allow_rotation=true",
        ])
        .await?;
        let policy = self.folder.path().join("policy.hcl");
        std::fs::write(
            &policy,
            format!("path \"transit/sign/{KEY}/sha2-256\" {{ capabilities = [\"update\"] }}"),
        )?;
        self.run(&["policy", "write", "sign", &policy.display().to_string()])
            .await?;
        let text = self
            .run(&["token", "create", "-policy=sign", "-field=token"])
            .await?;
        self.token = text.trim().to_owned();
        Ok(())
    }

    /// Runs OpenBao's command line as root; gives what it prints.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(program()?)
            .args(arguments)
            .env("BAO_ADDR", format!("https://{}", self.address))
            .env("BAO_CACERT", self.ca())
            .env("BAO_TOKEN", ROOT_TOKEN)
            .stdin(Stdio::null())
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "bao {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The authority of its certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("vault-ca.pem")
    }

    /// Rotates the transit key; gives the new version's public key (SPKI PEM).
    pub async fn rotate(&self) -> Result<String> {
        self.run(&["write", "-f", &format!("transit/keys/{KEY}/rotate")])
            .await?;
        let text = self
            .run(&["read", "-format=json", &format!("transit/keys/{KEY}")])
            .await?;
        let key: Value = serde_json::from_str(&text)?;
        let latest = key["data"]["latest_version"].to_string();
        let public = key["data"]["keys"][&latest]["public_key"].as_str();
        Ok(public.context("OpenBao shows no public key")?.to_owned())
    }
}

fn program() -> Result<PathBuf> {
    let path = std::env::var_os("OPENBAO")
        .map(PathBuf::from)
        .context("OPENBAO names no OpenBao binary: run this by ./build.sh")?;
    ensure!(
        path.exists(),
        "there is no OpenBao at {}",
        Path::new(&path).display()
    );
    Ok(path)
}
