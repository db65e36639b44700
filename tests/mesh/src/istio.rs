//! istiod, and gateways as its agent starts them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{Cluster, MOUNTS, NAMESPACE, Running, module_file, mount, program, wait_for};

/// The port on which `deploy/istio/gateway` listens.
pub const PORT: u16 = 8080;

const READY: &str = "http://127.0.0.1:15080/ready";

/// The definitions of Istio's and the Gateway API's objects.
pub fn definitions() -> Result<Vec<PathBuf>> {
    Ok(vec![
        module_file("ISTIO", "manifests/charts/base/files/crd-all.gen.yaml")?,
        module_file("GATEWAY_API", "config/crd/standard")?,
    ])
}

/// A running istiod.
pub struct Istiod(Running);

impl Istiod {
    /// Starts it on the API: plain-text xDS, no authority and no webhooks.
    pub async fn start(cluster: &Cluster) -> Result<Istiod> {
        // Here its replicas agree on which of them makes the gateways' Deployments.
        cluster
            .kubectl(&["create", "namespace", "istio-system"])
            .await?;
        let folder = cluster.file("istiod");
        let inject = folder.join("var/lib/istio/inject");
        std::fs::create_dir_all(&inject)?;
        let chart = "manifests/charts/istio-control/istio-discovery";
        let file = |path: &str| -> Result<String> {
            let path = module_file("ISTIO", &format!("{chart}/{path}"))?;
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        // The template of which it makes a Gateway's Deployment.
        let templates = json!({"policy": "enabled", "templates": {"kube-gateway": file("files/kube-gateway.yaml")?}});
        std::fs::write(inject.join("config"), templates.to_string())?;
        let mut values: Value = serde_saphyr::from_str(&file("values.yaml")?)?;
        let values = values["_internal_defaults_do_not_set"].take();
        std::fs::write(inject.join("values"), values.to_string())?;
        // No figures of Istio's own, for which a stock Envoy has no filter, and no mutual TLS, for
        // which there is no authority.
        let mesh = json!({"accessLogFile": "/dev/stdout", "defaultProviders": {"metrics": []}, "enableAutoMtls": false});
        std::fs::write(folder.join("mesh.yaml"), mesh.to_string())?;
        let istiod = Running::start(
            Command::new(program("pilot-discovery")?)
                .current_dir(&folder)
                .env_clear()
                .envs([
                    ("HOME", "/tmp"),
                    ("POD_NAME", "istiod-0"),
                    ("POD_NAMESPACE", "istio-system"),
                    ("ENABLE_CA_SERVER", "false"),
                    ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
                    ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
                    // A stock Envoy has neither.
                    ("PILOT_ENABLE_ALPN_FILTER", "false"),
                    ("PILOT_ENABLE_METADATA_EXCHANGE", "false"),
                ])
                .args([
                    "discovery",
                    "--registries",
                    "Kubernetes",
                    "--domain",
                    "cluster.local",
                ])
                .arg("--kubeconfig")
                .arg(cluster.file("kubeconfig"))
                .args(["--meshConfig", "mesh.yaml", "--ctrlz_port", "0"])
                .args([
                    "--httpAddr",
                    "127.0.0.1:15080",
                    "--grpcAddr",
                    "127.0.0.1:15010",
                ])
                .args([
                    "--monitoringAddr",
                    "127.0.0.1:15014",
                    "--secureGRPCAddr",
                    "",
                    "--httpsAddr",
                    "",
                ]),
            &cluster.file("istiod.log"),
        )?;
        let ready = || async {
            reqwest::get(READY)
                .await
                .is_ok_and(|answer| answer.status() == 200)
        };
        let up = wait_for("istiod", ready).await;
        up.with_context(|| istiod.log())?;
        Ok(Istiod(istiod))
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        self.0.log()
    }
}

/// A pod of the gateway: Istio's agent and the Envoy that it starts.
pub struct Pod {
    agent: Running,
    status: u16,
    admin: u16,
}

impl Pod {
    /// Mounts what the gateway's Deployment says, with `module` as the content of the image, and
    /// starts the `nth` pod.
    pub async fn start(cluster: &Cluster, module: &Path, nth: u16) -> Result<Pod> {
        let environment = mount_volumes(cluster, module).await?;
        let folder = cluster.file(&format!("pod-{nth}"));
        std::fs::create_dir_all(&folder)?;
        let (status, admin) = (15_100 + nth, 15_200 + nth);
        let proxy = json!({
            "discoveryAddress": "127.0.0.1:15010", "controlPlaneAuthPolicy": "NONE", "binaryPath": gateway_testbed::envoy()?,
            "statusPort": status, "proxyAdminPort": admin, "configPath": folder, "concurrency": 2, "terminationDrainDuration": "3s",
        });
        let labels = json!({"gateway.networking.k8s.io/gateway-name": "refunds"});
        let agent = Running::start(
            Command::new(program("pilot-agent")?)
                .current_dir(&folder)
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .env("HOME", "/tmp")
                .env("POD_NAME", format!("refunds-istio-{nth}"))
                .env("POD_NAMESPACE", NAMESPACE)
                .env("INSTANCE_IP", format!("10.255.0.{nth}"))
                .env("SERVICE_ACCOUNT", "refunds-istio")
                .env("ISTIO_META_CLUSTER_ID", "Kubernetes")
                .env("ISTIO_META_WORKLOAD_NAME", "refunds-istio")
                .env("ISTIO_METAJSON_LABELS", labels.to_string())
                .env("PROXY_CONFIG", proxy.to_string())
                .env("FILE_MOUNTED_CERTS", "true")
                .env("JWT_POLICY", "none")
                .env("ENVOY_STATUS_PORT", (15_300 + nth).to_string())
                .env("ENVOY_PROMETHEUS_PORT", (15_400 + nth).to_string())
                .env("WASM_INSECURE_REGISTRIES", "127.0.0.1:5000")
                .envs(environment)
                .args(["proxy", "router", "--domain", "refunds.svc.cluster.local"])
                .args([
                    "--proxyLogLevel",
                    "warning",
                    "--profiling=false",
                    "--templateFile",
                ])
                .arg(module_file(
                    "ISTIO",
                    "tools/packaging/common/envoy_bootstrap.json",
                )?),
            &cluster.file(&format!("pod-{nth}.log")),
        )?;
        let pod = Pod {
            agent,
            status,
            admin,
        };
        let up = wait_for("the gateway's pod", || pod.is_ready()).await;
        up.with_context(|| pod.log())?;
        Ok(pod)
    }

    /// Whether a kubelet would send it calls.
    pub async fn is_ready(&self) -> bool {
        let url = format!("http://127.0.0.1:{}/healthz/ready", self.status);
        reqwest::get(url)
            .await
            .is_ok_and(|answer| answer.status() == 200)
    }

    /// The body of an admin page.
    pub async fn admin(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.admin);
        Ok(reqwest::get(url).await?.text().await?)
    }

    /// What the doctor says of it, a line each.
    pub async fn dump(&self) -> Result<String> {
        self.admin("/config_dump").await
    }

    /// What Prometheus gets from the agent.
    pub async fn figures(&self) -> Result<String> {
        let url = format!("http://127.0.0.1:{}/stats/prometheus", self.status);
        Ok(reqwest::get(url).await?.text().await?)
    }

    /// What agent and Envoy have written so far.
    pub fn log(&self) -> String {
        self.agent.log()
    }

    /// Ends it as a kubelet does.
    pub async fn terminate(self) -> Result<()> {
        self.agent.terminate().await
    }
}

/// Mounts what the Deployment that Istio has made of the Gateway says, below [`MOUNTS`], and gives
/// the environment that it asks for beyond Istio's own.
pub async fn mount_volumes(cluster: &Cluster, module: &Path) -> Result<BTreeMap<String, String>> {
    let made = || async { cluster.object("deployment", "refunds-istio").await.is_ok() };
    wait_for("the gateway's Deployment", made).await?;
    let deployment = cluster.object("deployment", "refunds-istio").await?;
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    for volume_mount in list(&container["volumeMounts"]) {
        let path = volume_mount["mountPath"].as_str().unwrap_or_default();
        let Some(name) = path.strip_prefix(&format!("{MOUNTS}/")) else {
            continue;
        };
        let volume = list(&pod["volumes"]).find(|volume| volume["name"] == volume_mount["name"]);
        let volume = volume.with_context(|| format!("no volume for {path}"))?;
        mount(name, &files(cluster, volume, module).await?)?;
    }
    let mut environment = BTreeMap::new();
    for variable in list(&container["env"]) {
        let name = variable["name"].as_str().unwrap_or_default();
        if let (true, Some(value)) = (
            name == "ISTIO_BOOTSTRAP_OVERRIDE",
            variable["value"].as_str(),
        ) {
            environment.insert(name.to_owned(), value.to_owned());
        }
    }
    for source in list(&container["envFrom"]) {
        let secret = source["secretRef"]["name"].as_str().unwrap_or_default();
        for (name, value) in secret_files(cluster, secret).await {
            environment.insert(name, String::from_utf8(value)?);
        }
    }
    Ok(environment)
}

async fn files(cluster: &Cluster, volume: &Value, module: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    if volume.get("image").is_some() {
        files.push(("plugin.wasm".to_owned(), std::fs::read(module)?));
    } else if let Some(name) = volume["configMap"]["name"].as_str() {
        let map = cluster.object("configmap", name).await?;
        let data = map["data"].as_object().context("an empty ConfigMap")?;
        files.extend(data.iter().map(|(name, text)| {
            let text = text.as_str().unwrap_or_default();
            (name.clone(), text.as_bytes().to_owned())
        }));
    } else {
        let sources: Vec<_> = list(&volume["projected"]["sources"]).collect();
        ensure!(
            !sources.is_empty(),
            "{volume} is no volume that is known here"
        );
        for source in sources {
            let secret = source["secret"]["name"].as_str().unwrap_or_default();
            files.extend(secret_files(cluster, secret).await);
        }
    }
    Ok(files)
}

/// The members of a Secret; none where there is no such Secret, since all that we name are optional.
async fn secret_files(cluster: &Cluster, name: &str) -> Vec<(String, Vec<u8>)> {
    let template = r#"{{range $name, $value := .data}}{{$name}} {{$value}}{{"\n"}}{{end}}"#;
    let template = format!("go-template={template}");
    let arguments = [
        "--namespace",
        NAMESPACE,
        "get",
        "secret",
        name,
        "--output",
        &template,
    ];
    let Ok(text) = cluster.kubectl(&arguments).await else {
        return Vec::new();
    };
    let decode = |text: &str| base64::Engine::decode(&base64::prelude::BASE64_STANDARD, text);
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), decode(value).ok()?))
        })
        .collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
