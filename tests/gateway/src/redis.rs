//! A real Redis: over TLS with a client's certificate, with a user that may do nothing but what the filter does.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// The store's name in its certificate.
pub const HOST: &str = "redis.internal";

/// The filter's user.
pub const USER: &str = "refunds";

/// Its password.
pub const PASSWORD: &str = "canary-memory-password";

const ADMIN: &str = "canary-redis-admin";

/// A running Redis. Dropping it ends it.
pub struct Redis {
    /// Where it listens, over TLS.
    pub address: SocketAddr,
    folder: tempfile::TempDir,
    // Killed when it is dropped.
    server: Child,
    replica_of: Option<SocketAddr>,
    clients: Clients,
}

/// How its clients prove who they are, besides their password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// By a certificate.
    Certificate,
    /// By nothing.
    PasswordAlone,
}

impl Redis {
    /// A primary with nothing in it.
    pub async fn start() -> Result<Self> {
        Redis::for_clients(Clients::Certificate).await
    }

    /// A primary with nothing in it, for clients that prove who they are in this way.
    pub async fn for_clients(clients: Clients) -> Result<Self> {
        let certificates = certificates()?;
        Redis::with(None, clients, certificates).await
    }

    /// A replica of this one, with its certificates.
    pub async fn replica(&self) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("refund-redis-").tempdir()?;
        for name in CERTIFICATES {
            std::fs::copy(self.path(name), folder.path().join(name))?;
        }
        Redis::with(Some(self.address), self.clients, folder).await
    }

    async fn with(
        replica_of: Option<SocketAddr>,
        clients: Clients,
        folder: tempfile::TempDir,
    ) -> Result<Self> {
        // A free port: it takes no port 0 over TLS.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let server = run(folder.path(), address, replica_of, clients)?;
        let mut redis = Redis {
            address,
            folder,
            server,
            replica_of,
            clients,
        };
        redis.wait().await?;
        Ok(redis)
    }

    async fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.server.try_wait()? {
                let log = std::fs::read_to_string(self.path("redis.log"));
                bail!("Redis ended with {status}:\n{}", log.unwrap_or_default());
            }
            if self
                .command(&["PING"])
                .await
                .is_ok_and(|said| said == "PONG")
            {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "Redis was not ready in time");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a gateway needs to reach it.
    pub fn store(&self) -> Store {
        Store {
            address: self.address,
            ca: self.path("ca.pem"),
            certificate: self.path("client.pem"),
            key: self.path("client.key"),
        }
    }

    /// Says something to it as its administrator, and gives its answer.
    pub async fn command(&self, words: &[&str]) -> Result<String> {
        self.command_as("admin", ADMIN, words).await
    }

    /// The same as another user.
    pub async fn command_as(&self, user: &str, password: &str, words: &[&str]) -> Result<String> {
        let store = self.store();
        let output = Command::new(program("redis-cli")?)
            .args(["--tls", "--no-auth-warning", "-h", "127.0.0.1", "-p"])
            .arg(self.address.port().to_string())
            .arg("--cacert")
            .arg(store.ca)
            .arg("--cert")
            .arg(store.certificate)
            .arg("--key")
            .arg(store.key)
            .args(["--user", user, "--pass", password])
            .args(words)
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(10), output).await??;
        let said = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "Redis said {said}");
        Ok(said.trim().to_owned())
    }

    /// Kills it, as a crash does.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.server.kill().await?)
    }

    /// Starts it again after [`Redis::kill`], where it was.
    pub async fn restart(&mut self) -> Result<()> {
        let folder = self.folder.path();
        self.server = run(folder, self.address, self.replica_of, self.clients)?;
        self.wait().await
    }

    /// Has it hang (`STOP`), or go on (`CONT`).
    pub async fn signal(&self, signal: &str) -> Result<()> {
        let id = self.server.id().context("Redis is gone")?.to_string();
        let status = Command::new("kill").args(["-s", signal, &id]).status();
        ensure!(status.await?.success(), "kill failed");
        Ok(())
    }
}

/// What a gateway needs to reach a store.
#[derive(Debug, Clone)]
pub struct Store {
    /// Where it, or what stands in front of it, listens.
    pub address: SocketAddr,
    /// The authority of its certificate.
    pub ca: PathBuf,
    /// The client's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

const CERTIFICATES: [&str; 5] = [
    "ca.pem",
    "server.pem",
    "server.key",
    "client.pem",
    "client.key",
];

fn run(
    folder: &Path,
    address: SocketAddr,
    replica_of: Option<SocketAddr>,
    clients: Clients,
) -> Result<Child> {
    let certificates = match clients {
        Clients::Certificate => "yes",
        Clients::PasswordAlone => "no",
    };
    let mut command = Command::new(program("redis-server")?);
    command
        .current_dir(folder)
        .args(["--port", "0", "--bind", "127.0.0.1", "--tls-port"])
        .arg(address.port().to_string())
        .args(["--tls-ca-cert-file", "ca.pem"])
        .args(["--tls-cert-file", "server.pem"])
        .args(["--tls-key-file", "server.key"])
        .args([
            "--tls-auth-clients",
            certificates,
            "--tls-replication",
            "yes",
        ])
        .args([
            "--logfile",
            "redis.log",
            "--save",
            "",
            "--appendonly",
            "yes",
            // Acknowledged is written: a crash forgets nothing.
            "--appendfsync",
            "always",
        ])
        .args(["--maxmemory-policy", "noeviction"])
        .args(["--masteruser", "admin", "--masterauth", ADMIN])
        .args([
            "--user",
            "health",
            "on",
            "nopass",
            "resetkeys",
            "-@all",
            "+role",
        ])
        // It loads the file as this user, and drops what this one may not do.
        .args(["--user", "default", "off", "~*", "&*", "+@all"])
        .args([
            "--user",
            "admin",
            "on",
            &format!(">{ADMIN}"),
            "~*",
            "&*",
            "+@all",
        ])
        .args([
            "--user",
            USER,
            "on",
            &format!(">{PASSWORD}"),
            "~refund.guard:*",
        ])
        .args(["-@all", "+eval", "+get", "+set", "+time"]);
    if let Some(primary) = replica_of {
        let port = primary.port().to_string();
        command.args(["--replicaof", "127.0.0.1", &port]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("Redis did not start")
}

/// A program of the folder that `./build.sh` names.
fn program(name: &str) -> Result<PathBuf> {
    let folder =
        std::env::var_os("REDIS").context("REDIS names no folder: run this by ./build.sh")?;
    let path = Path::new(&folder).join(name);
    ensure!(path.exists(), "there is no {}", path.display());
    Ok(path)
}

/// An authority, and what it has signed for the store and for its clients.
fn certificates() -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("refund-redis-").tempdir()?;
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Another name than its leaves': else OpenSSL takes them for their own issuers.
    params
        .distinguished_name
        .push(DnType::CommonName, "redis authority");
    let key = KeyPair::generate()?;
    let ca = params.self_signed(&key)?.pem();
    std::fs::write(folder.path().join("ca.pem"), ca)?;
    let issuer = Issuer::new(params, key);
    for (name, host, usage) in [
        ("server", HOST, ExtendedKeyUsagePurpose::ServerAuth),
        (
            "client",
            "gateway.internal",
            ExtendedKeyUsagePurpose::ClientAuth,
        ),
    ] {
        let mut params = CertificateParams::new([host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host);
        params.extended_key_usages.push(usage);
        // Replicas are clients of their primary, with the server's.
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        std::fs::write(folder.path().join(format!("{name}.pem")), certificate)?;
        std::fs::write(
            folder.path().join(format!("{name}.key")),
            key.serialize_pem(),
        )?;
    }
    Ok(folder)
}
