//! Envoy Gateway, and gateways as the Deployments that it makes start them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use gateway_testbed::Secrets;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{Cluster, NAMESPACE, Running, Stranger, module_file, program, wait_for};

/// The port on which pods of `deploy/envoy-gateway/gateway` listen: the Gateway's, 80, needs root.
pub const PORT: u16 = 10_080;

const SYSTEM: &str = "envoy-gateway-system";

/// The definitions of Envoy Gateway's and the Gateway API's objects.
pub fn definitions() -> Result<Vec<PathBuf>> {
    let folder = "charts/gateway-helm/charts/crds/crds";
    ["gatewayapi-crds.yaml", "generated"]
        .iter()
        .map(|name| module_file("ENVOY_GATEWAY", &format!("{folder}/{name}")))
        .collect()
}

/// A running Envoy Gateway.
pub struct EnvoyGateway(Running);

impl EnvoyGateway {
    /// Starts it on the API, with what its page asks for, and these runtime flags.
    pub async fn start(cluster: &Cluster, flags: &[&str]) -> Result<EnvoyGateway> {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}});
        cluster.apply_objects(&[namespace]).await?;
        let folder = cluster.file("envoy-gateway");
        std::fs::create_dir_all(&folder)?;
        let settings = json!({
            "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "EnvoyGateway",
            "gateway": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
            "provider": {"type": "Kubernetes", "kubernetes": {"leaderElection": {"disable": true}}},
            "extensionApis": {"enableEnvoyPatchPolicy": true},
            "runtimeFlags": {"enabled": flags},
        });
        let file = folder.join("settings.yaml");
        std::fs::write(&file, settings.to_string())?;
        let command = |arguments: &[&str]| -> Result<Command> {
            let mut command = Command::new(program("envoy-gateway")?);
            command
                .env_clear()
                .env("HOME", &folder)
                .env("TMPDIR", &folder)
                .env("KUBECONFIG", cluster.file("kubeconfig"))
                .env("ENVOY_GATEWAY_NAMESPACE", SYSTEM)
                .args(arguments);
            Ok(command)
        };
        let made = command(&["certgen", "--disable-topology-injector"])?
            .output()
            .await?;
        anyhow::ensure!(made.status.success(), "{made:?}");
        put_certificates(cluster, "envoy-gateway", "/certs").await?;
        let gateway = Running::start(
            command(&["server", "--config-path"])?.arg(file),
            &cluster.file("envoy-gateway.log"),
        )?;
        let ready = || async { reqwest::get("http://127.0.0.1:8081/readyz").await.is_ok() };
        let up = wait_for("Envoy Gateway", ready).await;
        up.with_context(|| gateway.log())?;
        Ok(EnvoyGateway(gateway))
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// Ends it.
    pub async fn terminate(self) -> Result<()> {
        self.0.terminate().await
    }
}

/// Puts the Secrets of the providers there, one each, as the page says.
pub async fn put_keys(cluster: &Cluster, secrets: &Secrets) -> Result<()> {
    let objects = secrets.by_name().map(|(name, value)| {
        let provider = name.split('-').next().unwrap_or(name);
        json!({"apiVersion": "v1", "kind": "Secret", "stringData": {"credential": value},
            "metadata": {"name": format!("refund-{provider}"), "namespace": NAMESPACE}})
    });
    cluster.apply_objects(&objects.collect::<Vec<_>>()).await
}

/// Writes the files of a Secret with a certificate.
async fn put_certificates(cluster: &Cluster, secret: &str, folder: &str) -> Result<()> {
    let text = cluster
        .kubectl(&[
            "--namespace",
            SYSTEM,
            "get",
            "secret",
            secret,
            "--output",
            "json",
        ])
        .await?;
    let secret: Value = serde_json::from_str(&text)?;
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        let data = secret["data"][name].as_str().context("no certificate")?;
        std::fs::write(Path::new(folder).join(name), BASE64_STANDARD.decode(data)?)?;
    }
    Ok(())
}

/// A pod of the gateway: the Envoy that its Deployment starts.
pub struct Pod {
    envoy: Running,
    admin: u16,
    figures: u16,
}

impl Pod {
    /// Starts the `nth` pod.
    pub async fn start(cluster: &Cluster, nth: u16) -> Result<Pod> {
        let selector = format!(
            "--selector=gateway.envoyproxy.io/owning-gateway-namespace={NAMESPACE},gateway.envoyproxy.io/owning-gateway-name=refunds"
        );
        let get = async |kind: &str| -> Result<Option<Value>> {
            let text = cluster
                .kubectl(&[
                    "--namespace",
                    SYSTEM,
                    "get",
                    kind,
                    &selector,
                    "--output",
                    "json",
                ])
                .await?;
            let mut list: Value = serde_json::from_str(&text)?;
            Ok(list["items"].as_array_mut().and_then(Vec::pop))
        };
        let made = || async { matches!(get("deployment").await, Ok(Some(_))) };
        wait_for("the gateway's Deployment", made).await?;
        let deployment = get("deployment").await?.context("no Deployment")?;
        let files = get("configmap").await?.context("no ConfigMap")?;
        // Nobody lists the pods of its Service here. Envoy asks for them, and is not ready for 15 s where it is told of none.
        let service = get("service").await?.context("no Service")?;
        let name = service["metadata"]["name"].clone();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": SYSTEM, "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [Stranger::ADDRESS], "conditions": {"ready": true}}],
            "ports": [{"name": service["spec"]["ports"][0]["name"], "port": PORT}],
        });
        cluster.apply_objects(&[slice]).await?;
        // Its certificate is not that of Envoy Gateway, which has /certs here.
        put_certificates(cluster, "envoy", "/sds").await?;
        for (name, text) in files["data"].as_object().context("an empty ConfigMap")? {
            let text = text.as_str().unwrap_or_default();
            std::fs::write(
                Path::new("/sds").join(name),
                text.replace("/certs/tls.", "/sds/tls."),
            )?;
        }
        let containers = deployment["spec"]["template"]["spec"]["containers"].as_array();
        let mut containers = containers.context("no containers")?.iter();
        let container = containers
            .find(|container| container["name"] == "envoy")
            .context("no Envoy")?;
        let (admin, figures) = (19_100 + nth, 19_200 + nth);
        let name = format!("refunds-{nth}");
        let arguments = container["args"].as_array().context("no arguments")?;
        let arguments = arguments.iter().map(|argument| {
            let argument = argument.as_str().unwrap_or_default();
            // What a kubelet fills in; ports, of which each pod has its own network's; and a name
            // that is in no DNS here, but in the file of hosts.
            argument
                .replace("$(ENVOY_POD_NAME)", &name)
                .replace("$(ENVOY_SERVICE_ZONE)", "zone")
                .replace("port_value: 19000", &format!("port_value: {admin}"))
                .replace("port_value: 19001", &format!("port_value: {figures}"))
                .replace(".cluster.local.\n", ".cluster.local\n")
        });
        let envoy = Running::start(
            Command::new(gateway_testbed::envoy()?)
                .env_clear()
                .env("ENVOY_POD_NAME", &name)
                .env("ENVOY_POD_NAMESPACE", SYSTEM)
                .envs(environment(cluster, container).await?)
                .args(arguments)
                .arg("--disable-hot-restart"),
            &cluster.file(&format!("pod-{nth}.log")),
        )?;
        let pod = Pod {
            envoy,
            admin,
            figures,
        };
        // A listener is listed before anything is taken there.
        let is_ready = || async {
            let listeners = pod.admin("/listeners").await.unwrap_or_default();
            let state = pod.admin("/ready").await.unwrap_or_default();
            listeners.contains(&format!(":{PORT}")) && state.starts_with("LIVE")
        };
        let up = wait_for("the gateway's pod", is_ready).await;
        up.with_context(|| pod.log())?;
        Ok(pod)
    }

    /// The body of an admin page.
    pub async fn admin(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.admin);
        Ok(reqwest::get(url).await?.text().await?)
    }

    /// Its configuration.
    pub async fn dump(&self) -> Result<String> {
        self.admin("/config_dump?include_eds").await
    }

    /// What Prometheus gets.
    pub async fn figures(&self) -> Result<String> {
        let url = format!("http://127.0.0.1:{}/stats/prometheus", self.figures);
        Ok(reqwest::get(url).await?.text().await?)
    }

    /// What Envoy has written so far.
    pub fn log(&self) -> String {
        self.envoy.log()
    }

    /// Ends it as its shutdown manager and a kubelet do: no longer healthy, its listeners drained,
    /// and, when no call is left, a signal.
    pub async fn terminate(self) -> Result<()> {
        for path in ["/healthcheck/fail", "/drain_listeners?graceful&skip_exit"] {
            let url = format!("http://127.0.0.1:{}{path}", self.admin);
            reqwest::Client::new().post(url).send().await?;
        }
        let idle = || async {
            let active = self.admin("/stats?filter=downstream_rq_active").await;
            active.is_ok_and(|active| {
                let mut lines = active.lines().filter(|line| !line.contains("admin"));
                lines.all(|line| line.ends_with(": 0"))
            })
        };
        wait_for("the last call of a pod", idle).await?;
        self.envoy.terminate().await
    }
}

/// The variables that a container has of Secrets.
async fn environment(cluster: &Cluster, container: &Value) -> Result<Vec<(String, String)>> {
    let mut environment = Vec::new();
    for source in container["envFrom"].as_array().into_iter().flatten() {
        let name = source["secretRef"]["name"].as_str().unwrap_or_default();
        let secret = cluster.object("secret", name).await?;
        for (name, value) in secret["data"].as_object().into_iter().flatten() {
            let value = BASE64_STANDARD.decode(value.as_str().unwrap_or_default())?;
            environment.push((name.clone(), String::from_utf8(value)?));
        }
    }
    Ok(environment)
}
