//! A Kubernetes API without nodes, the control planes on it, and Envoys that they configure, in
//! front of the simulated providers. What nodes would do (start pods, mount Secrets) is done here.
//!
//! It runs in the namespace that `inside.sh` makes, in which the providers' host names are
//! addresses of loopback and `/etc` is a copy: what ships is applied as it is.

pub mod envoy_gateway;
pub mod istio;
pub mod registry;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gateway_testbed::{Answer, PATH, Secrets, sds_file};
use provider_simulator::{Options, Provider, Simulators};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// How long anything may take to come up. No test measures time; this only ends one that would
/// hang.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Where what is mounted into a gateway's pod stands, as `deploy/` has it.
pub const MOUNTS: &str = "/etc/refund-filter";

/// The namespace of Kubernetes in which all of it is applied.
pub const NAMESPACE: &str = "refunds";

/// The callers' host name, as the examples have it.
pub const HOST: &str = "refunds.corp.example";

/// The program of this name, which `./build.sh mesh` has put there.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder =
        std::env::var_os("MESH").context("MESH names no folder: run this by ./build.sh mesh")?;
    let path = PathBuf::from(folder).join(name);
    ensure!(path.exists(), "there is no {}", path.display());
    Ok(path)
}

/// A file of a Go module, by the environment variable that names the module's folder.
pub fn module_file(variable: &str, path: &str) -> Result<PathBuf> {
    let folder = std::env::var_os(variable)
        .with_context(|| format!("{variable} names no folder: run this by ./build.sh mesh"))?;
    Ok(PathBuf::from(folder).join(path))
}

/// Completes when `ready` says so.
pub async fn wait_for<F: Future<Output = bool>>(what: &str, ready: impl Fn() -> F) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !ready().await {
        ensure!(Instant::now() < deadline, "in vain waited for: {what}");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A process of this run with its log. Killed when it is dropped.
pub struct Running {
    process: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it. What it writes goes into one file.
    pub fn start(command: &mut Command, log: &Path) -> Result<Running> {
        let file = File::create(log)?;
        let process = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{command:?} did not start"))?;
        Ok(Running {
            process,
            log: log.to_owned(),
        })
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks it to end, as a kubelet does, and waits for it.
    pub async fn terminate(mut self) -> Result<()> {
        let id = self.process.id().context("it has ended before")?;
        let kill = Command::new("kill").arg(id.to_string()).status().await?;
        ensure!(kill.success(), "no signal could be sent");
        tokio::time::timeout(PATIENCE, self.process.wait()).await??;
        Ok(())
    }
}

/// The API, `kubectl`, and the simulated providers.
pub struct Cluster {
    /// The simulated providers, at their real host names.
    pub simulators: Simulators,
    /// What they accept, and after it what a rotation goes to.
    pub secrets: [Secrets; 2],
    folder: tempfile::TempDir,
    _etcd: Running,
    _api: Running,
}

impl Cluster {
    /// Starts all of it, with the definitions of these files applied.
    pub async fn start(definitions: &[PathBuf]) -> Result<Cluster> {
        let folder = tempfile::Builder::new().prefix("refund-mesh-").tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let etcd = Running::start(
            Command::new(program("etcd")?)
                .args(["--name", "k", "--unsafe-no-fsync", "--data-dir"])
                .arg(at("etcd"))
                .args(["--listen-client-urls", "http://127.0.0.1:2379"])
                .args(["--advertise-client-urls", "http://127.0.0.1:2379"])
                .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
                .args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"])
                .args(["--initial-cluster", "k=http://127.0.0.1:2380"]),
            &at("etcd.log"),
        )?;
        let (token, port) = (uuid::Uuid::new_v4(), 6443);
        std::fs::write(
            at("tokens.csv"),
            format!("{token},admin,admin,system:masters\n"),
        )?;
        let key = provider_simulator::SigningKeys::generate()?;
        std::fs::write(at("accounts.key"), key.private_key)?;
        let api = Running::start(
            Command::new(program("kube-apiserver")?)
                .args(["--etcd-servers", "http://127.0.0.1:2379"])
                .args([
                    "--bind-address",
                    "127.0.0.1",
                    "--advertise-address",
                    "127.0.0.1",
                ])
                .args([
                    "--secure-port",
                    &port.to_string(),
                    "--authorization-mode",
                    "RBAC",
                ])
                .arg("--cert-dir")
                .arg(at("certificates"))
                .arg("--token-auth-file")
                .arg(at("tokens.csv"))
                .args(["--service-account-issuer", "https://kubernetes.default.svc"])
                .arg("--service-account-key-file")
                .arg(at("accounts.key"))
                .arg("--service-account-signing-key-file")
                .arg(at("accounts.key"))
                .args([
                    "--service-cluster-ip-range",
                    "10.96.0.0/16",
                    "--allow-privileged=true",
                ])
                // Nobody makes the tokens of service accounts.
                .args(["--disable-admission-plugins", "ServiceAccount"]),
            &at("api.log"),
        )?;
        let authority = at("certificates/apiserver.crt");
        let server = format!("https://127.0.0.1:{port}");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": authority}}],
            "users": [{"name": "lab", "user": {"token": token.to_string()}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        });
        std::fs::write(at("kubeconfig"), kubeconfig.to_string())?;
        let secrets = [Secrets::new()?, Secrets::ending_in("-next")?];
        let cluster = Cluster {
            simulators: simulators(&secrets).await?,
            secrets,
            folder,
            _etcd: etcd,
            _api: api,
        };
        let ready = || async { cluster.kubectl(&["get", "--raw", "/readyz"]).await.is_ok() };
        let up = wait_for("the Kubernetes API", ready).await;
        up.with_context(|| cluster._api.log())?;
        for file in definitions {
            cluster.apply(&["-f", &file.display().to_string()]).await?;
        }
        cluster
            .kubectl(&[
                "wait",
                "--for=condition=Established",
                "--timeout=300s",
                "customresourcedefinition",
                "--all",
            ])
            .await?;
        cluster.kubectl(&["create", "namespace", NAMESPACE]).await?;
        Ok(cluster)
    }

    /// This run's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A file or folder of this run's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `kubectl` and gives what it prints. The error has what it complains of.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(program("kubectl")?)
            .arg("--kubeconfig")
            .arg(self.file("kubeconfig"))
            .args(arguments)
            .kill_on_drop(true)
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Applies as the pages say.
    pub async fn apply(&self, arguments: &[&str]) -> Result<String> {
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--validate=strict",
        ];
        self.kubectl(&[&apply, arguments].concat()).await
    }

    /// Applies objects as they are.
    pub async fn apply_objects(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let mut kubectl = Command::new(program("kubectl")?)
            .arg("--kubeconfig")
            .arg(self.file("kubeconfig"))
            .args(["apply", "--server-side", "--force-conflicts", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = kubectl.stdin.take().context("no stdin")?;
        stdin.write_all(list.to_string().as_bytes()).await?;
        drop(stdin);
        let output = kubectl.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl apply: {said}");
        Ok(())
    }

    /// Takes an object away.
    pub async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let delete = ["--namespace", NAMESPACE, "delete", kind, name];
        self.kubectl(&delete).await.map(drop)
    }

    /// Changes an object by a JSON patch.
    pub async fn patch(&self, kind: &str, name: &str, patch: &str) -> Result<()> {
        let namespace = ["--namespace", NAMESPACE];
        let patch = ["patch", kind, name, "--type", "json", "--patch", patch];
        self.kubectl(&[&namespace[..], &patch].concat())
            .await
            .map(drop)
    }

    /// Reads an object.
    pub async fn object(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self
            .kubectl(&[
                "--namespace",
                NAMESPACE,
                "get",
                kind,
                name,
                "--output",
                "json",
            ])
            .await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Puts the Secrets of the providers there, one each, as the pages say.
    pub async fn put_secrets(&self, secrets: &Secrets) -> Result<()> {
        let objects: Vec<_> = secrets
            .by_name()
            .map(|(name, value)| {
                let provider = name.split('-').next().unwrap_or(name);
                let files = json!({format!("{name}.yaml"): sds_file(name, &value)});
                json!({"apiVersion": "v1", "kind": "Secret", "stringData": files,
                    "metadata": {"name": format!("refund-{provider}"), "namespace": NAMESPACE}})
            })
            .collect();
        self.apply_objects(&objects).await
    }

    /// The way from a folder of this run's to one of the checkout: kustomize takes no absolute path.
    fn way_to(&self, path: &Path) -> Result<String> {
        let up = "../".repeat(self.file("x").components().count() - 1);
        let project = gateway_testbed::project().canonicalize()?;
        let path = project.join(path).canonicalize()?;
        Ok(format!("{up}{}", path.strip_prefix("/")?.display()))
    }
}

/// A team's overlay: an example of `deploy/`, copied as the pages say, with values of its own.
pub struct Overlay {
    /// The values, by which the components are filled in.
    pub values: Vec<Value>,
    /// Who may call.
    pub access: Vec<Value>,
    /// More objects.
    pub more: Vec<Value>,
    /// The components, by their names in `deploy/MESH`.
    pub components: Vec<String>,
    mesh: &'static str,
    kustomization: Value,
}

impl Overlay {
    /// The example of a mesh, as it ships.
    pub fn example(mesh: &'static str) -> Result<Overlay> {
        let read = |name: &str| -> Result<Vec<Value>> {
            let path =
                gateway_testbed::project().join(format!("deploy/{mesh}/example/{name}.yaml"));
            Ok(serde_saphyr::from_multiple(&std::fs::read_to_string(
                path,
            )?)?)
        };
        let mut kustomization = read("kustomization")?.pop().context("no kustomization")?;
        let components = kustomization["components"].take();
        let components = components.as_array().into_iter().flatten();
        let name = |path: &Value| path.as_str()?.strip_prefix("../").map(str::to_owned);
        Ok(Overlay {
            values: read("values")?,
            access: read("access")?,
            more: Vec::new(),
            components: components.filter_map(name).collect(),
            mesh,
            kustomization,
        })
    }

    /// What the team says of a provider.
    pub fn provider(&mut self, name: &str) -> Result<&mut Value> {
        let mut values = self.values.iter_mut();
        let found = values
            .find(|value| value["kind"] == "RefundProvider" && value["metadata"]["name"] == name);
        Ok(&mut found.with_context(|| format!("no values of {name}"))?["spec"])
    }

    /// Writes it and gives its folder.
    pub fn write(mut self, cluster: &Cluster) -> Result<String> {
        let folder = cluster.file("overlay");
        std::fs::create_dir_all(&folder)?;
        let put = |name: &str, objects: &[Value]| {
            let texts: Vec<_> = objects.iter().map(Value::to_string).collect();
            std::fs::write(folder.join(name), texts.join("\n---\n"))
        };
        put("values.yaml", &self.values)?;
        put("access.yaml", &self.access)?;
        put("more.yaml", &self.more)?;
        let resources: Vec<_> = ["values", "access", "more"]
            .map(|name| format!("{name}.yaml"))
            .into();
        self.kustomization["resources"] = json!(resources);
        let components: Result<Vec<_>> = self
            .components
            .iter()
            .map(|name| cluster.way_to(&Path::new("deploy").join(self.mesh).join(name)))
            .collect();
        self.kustomization["components"] = json!(components?);
        put("kustomization.yaml", &[self.kustomization])?;
        Ok(folder.display().to_string())
    }
}

/// The simulators at the addresses that `inside.sh` gives their host names, port 443, and their
/// authority among those that the machine trusts.
async fn simulators(secrets: &[Secrets; 2]) -> Result<Simulators> {
    let [first, others @ ..] = secrets;
    let addresses = Provider::ALL
        .into_iter()
        .zip(1..)
        .map(|(provider, n)| (provider, IpAddr::V4(Ipv4Addr::new(127, 0, 1, n))));
    let simulators = Simulators::start(Options {
        addresses: addresses.collect(),
        ports: Provider::ALL
            .into_iter()
            .map(|provider| (provider, 443))
            .collect(),
        credentials: first.accepted(others),
        ..Options::default()
    })
    .await
    .context("the simulators need the namespace that inside.sh makes")?;
    std::fs::create_dir_all("/etc/ssl/certs")?;
    std::fs::write("/etc/ssl/certs/ca-certificates.crt", simulators.ca_pem())?;
    Ok(simulators)
}

/// Swaps the files of a mounted volume as a kubelet does: a new folder, and one rename of the link
/// to it.
pub fn mount(volume: &str, files: &[(String, Vec<u8>)]) -> Result<()> {
    let folder = Path::new(MOUNTS).join(volume);
    std::fs::create_dir_all(&folder)?;
    let version = format!("..{}", uuid::Uuid::new_v4());
    std::fs::create_dir(folder.join(&version))?;
    for (name, content) in files {
        std::fs::write(folder.join(&version).join(name), content)?;
    }
    let former = std::fs::read_link(folder.join("..data")).ok();
    let draft = folder.join("..data_tmp");
    std::os::unix::fs::symlink(&version, &draft)?;
    std::fs::rename(draft, folder.join("..data"))?;
    for entry in std::fs::read_dir(&folder)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if !name.starts_with("..") && !files.iter().any(|(known, _)| *known == name) {
            std::fs::remove_file(folder.join(name))?;
        }
    }
    for (name, _) in files {
        let link = folder.join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link)?;
        }
    }
    if let Some(former) = former {
        std::fs::remove_dir_all(folder.join(former))?;
    }
    Ok(())
}

/// Another application of the gateway, at every host that no other route has. It answers 404, and
/// keeps what it gets.
pub struct Stranger(Arc<Mutex<Vec<u8>>>);

impl Stranger {
    /// An address of this machine's that endpoints may have.
    pub const ADDRESS: &str = "10.254.0.1";
    const PORT: u16 = 9999;

    /// Starts it.
    pub async fn start() -> Result<Stranger> {
        let listener = TcpListener::bind((Self::ADDRESS, Self::PORT)).await?;
        let got = Arc::new(Mutex::new(Vec::new()));
        let stranger = Stranger(got.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Self::answer(stream, got.clone()));
            }
        });
        Ok(stranger)
    }

    async fn answer(mut stream: TcpStream, got: Arc<Mutex<Vec<u8>>>) -> Result<()> {
        let mut part = [0; 4096];
        let mut read = stream.read(&mut part).await?;
        let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        keep(&got, &part[..read]);
        stream.write_all(answer).await?;
        while read > 0 {
            read = stream.read(&mut part).await?;
            keep(&got, &part[..read]);
        }
        Ok(())
    }

    /// All that has come to it.
    pub fn got(&self) -> String {
        let got = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&got).into_owned()
    }

    /// Its objects.
    pub fn objects() -> [Value; 3] {
        let (api, name) = ("gateway.networking.k8s.io/v1", "stranger");
        [
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"ports": [{"name": "http", "port": 80, "targetPort": Self::PORT}]}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "endpoints": [{"addresses": [Self::ADDRESS], "conditions": {"ready": true}}],
                "ports": [{"name": "http", "port": Self::PORT}]}),
            json!({"apiVersion": api, "kind": "HTTPRoute", "metadata": {"name": name},
                "spec": {"parentRefs": [{"name": "refunds"}], "rules": [{"backendRefs": [{"name": name, "port": 80}]}]}}),
        ]
    }
}

fn keep(got: &Mutex<Vec<u8>>, part: &[u8]) {
    let mut got = got.lock().unwrap_or_else(PoisonError::into_inner);
    got.extend_from_slice(part);
}

/// A call to a gateway, as a caller writes it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The HTTP method.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// The `Host` header.
    pub host: String,
    /// The bearer token.
    pub token: Option<&'static str>,
    /// The `Idempotency-Key`.
    pub key: String,
    /// The `x-request-id`.
    pub request_id: Option<&'static str>,
    /// The body.
    pub body: String,
}

impl Call {
    /// A refund with a key of its own.
    pub fn refund(token: &'static str, body: &Value) -> Call {
        Call {
            method: "POST",
            target: PATH.to_owned(),
            host: HOST.to_owned(),
            token: Some(token),
            key: uuid::Uuid::new_v4().to_string(),
            request_id: None,
            body: body.to_string(),
        }
    }

    /// The look-up of what this call has refunded.
    pub fn look_up(&self) -> Call {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let text = |pointer: &str| {
            body.pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        Call {
            method: "GET",
            target: format!(
                "{PATH}?provider={}&payment_id={}&key={}",
                text("/provider"),
                text("/payment/id"),
                self.key
            ),
            body: String::new(),
            ..self.clone()
        }
    }

    /// Sends it to this port of the gateway, on a connection of its own.
    pub async fn send(&self, port: u16) -> Result<Answer> {
        let mut request = reqwest::Client::new()
            .request(
                self.method.parse()?,
                format!("http://127.0.0.1:{port}{}", self.target),
            )
            .header("host", &self.host)
            .header("idempotency-key", &self.key)
            .header("content-type", "application/json");
        if let Some(token) = self.token {
            request = request.bearer_auth(token);
        }
        if let Some(id) = self.request_id {
            request = request.header("x-request-id", id);
        }
        if !self.body.is_empty() {
            request = request.body(self.body.clone());
        }
        let response = tokio::time::timeout(PATIENCE, request.send()).await;
        match response.context("no answer in time")? {
            Ok(response) => Answer::read(response).await,
            Err(error) => bail!("{error:#}"),
        }
    }
}

/// The status of a refund call whose path and `Host` go out exactly so.
pub async fn raw(
    port: u16,
    method: &str,
    path: &str,
    host: &str,
    token: Option<&str>,
) -> Result<u16> {
    let body = r#"{"provider":"moyasar","payment":{"id":"00000000-0000-4000-8000-00000000ffff"},"amount":{"value":"1.00","currency":"SAR"}}"#;
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n"));
    let text = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{}idempotency-key: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        token.unwrap_or_default(),
        uuid::Uuid::new_v4(),
        body.len()
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(text.as_bytes()).await?;
    // No further than the first line: after an answer that came before the body was read, Envoy
    // keeps the connection for a second.
    let mut answer = String::new();
    let mut lines = tokio::io::BufReader::new(stream);
    tokio::time::timeout(PATIENCE, lines.read_line(&mut answer)).await??;
    let status = answer.split(' ').nth(1).context("no status")?;
    Ok(status.parse()?)
}
