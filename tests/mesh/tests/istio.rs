//! `deploy/istio` through `kubectl apply -k`, istiod, Istio's agent and Envoy.

use std::sync::LazyLock;

use anyhow::{Context as _, Result, ensure};
use gateway_testbed::{Answer, module};
use mesh_testbed::istio::{Istiod, PORT, Pod, definitions, mount_volumes};
use mesh_testbed::{Call, Cluster, HOST, NAMESPACE, wait_for};
use provider_simulator::Provider::{self, Bbmsl, Begateway, Bog, BogToken, Moyasar};
use provider_simulator::orders;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, MutexGuard};

/// Tokens of the example's issuer, signed by HS256 with the key of [`JWKS`]: of `returns`, and of
/// the same signed with another key.
const RETURNS: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2xvZ2luLmNvcnAuZXhhbXBsZSIsImF1ZCI6InJlZnVuZHMiLCJzdWIiOiJyZXR1cm5zIn0.cB3BrHxICNhY2YKz3aq7h7q7SAlN59eDMOQuDoNR9Og";
const FORGED: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2xvZ2luLmNvcnAuZXhhbXBsZSIsImF1ZCI6InJlZnVuZHMiLCJzdWIiOiJyZXR1cm5zIn0.j1ESLIGR70F-K7BVSRikNRTSqz7tXqewOSxjgCJqXKI";
const JWKS: &str = r#"{"keys": [{"kty": "oct", "alg": "HS256", "kid": "1", "k": "YSBrZXkgb2YgdGhlc2UgdGVzdHMsIDMyIGJ5dGVzIG9yIG1vcmU"}]}"#;

/// The providers, without BOG's token endpoint.
const FOUR: [Provider; 4] = [Bog, Moyasar, Begateway, Bbmsl];

/// The mesh that all tests share, one after the other.
struct Mesh {
    cluster: Cluster,
    istiod: Istiod,
    pod: Pod,
    orders: u64,
}

/// It outlives every test, so it cannot be on a test's own runtime.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
static MESH: LazyLock<Mutex<Option<Mesh>>> = LazyLock::new(Mutex::default);

/// Runs a test on the mesh, which is as it ships before it.
fn on_mesh(test: impl AsyncFnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    RUNTIME.block_on(async {
        let mut mesh = MESH.lock().await;
        if mesh.is_none() {
            *mesh = Some(Mesh::start().await?);
        }
        test(mesh.as_mut().context("no mesh")?).await
    })
}

impl Mesh {
    async fn start() -> Result<Mesh> {
        let cluster = Cluster::start(&definitions()?).await?;
        let istiod = Istiod::start(&cluster).await?;
        cluster.put_secrets(&cluster.secrets[0]).await?;
        apply(&cluster, json!({})).await?;
        let pod = Pod::start(&cluster, &module()?, 1).await?;
        let mesh = Mesh {
            cluster,
            istiod,
            pod,
            orders: 0,
        };
        Ok(mesh)
    }

    /// A refund of 1.00 of an order that no call was made for yet.
    fn fresh(&mut self, provider: Provider) -> Call {
        self.orders += 1;
        let currency = match provider {
            Bog | BogToken => "GEL",
            Moyasar => "SAR",
            Begateway => "USD",
            Bbmsl => "HKD",
        };
        let body = json!({
            "provider": gateway_testbed::cluster(provider),
            "payment": {"id": orders::fresh(provider, self.orders)},
            "amount": {"value": "1.00", "currency": currency},
        });
        Call::refund(RETURNS, &body)
    }

    fn booked(&self, provider: Provider) -> usize {
        self.cluster.simulators.ledger(provider).len()
    }
}

/// Applies the example as it ships, with the keys of these tests' issuer, and an application beside
/// it; `more` goes into the overlay's kustomization.
async fn apply(cluster: &Cluster, more: Value) -> Result<()> {
    let keys = json!([
        {"op": "remove", "path": "/spec/jwtRules/0/jwksUri"},
        {"op": "add", "path": "/spec/jwtRules/0/jwks", "value": JWKS},
    ]);
    let mut kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [cluster.shipped("istio/example")?],
        "patches": [{"target": {"kind": "RequestAuthentication"}, "patch": keys.to_string()}],
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        match (kustomization[name].as_array_mut(), value.as_array()) {
            (Some(known), Some(more)) => known.extend(more.clone()),
            _ => kustomization[name] = value.clone(),
        }
    }
    let overlay = cluster.overlay("overlay", kustomization)?;
    cluster.apply(&["-k", &overlay]).await?;
    let application = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "application", "namespace": NAMESPACE},
        "spec": {"parentRefs": [{"name": "refunds"}], "hostnames": ["app.corp.example"],
            "rules": [{"filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "elsewhere.example", "statusCode": 302}}]}]},
    });
    cluster.apply_objects(&[application]).await
}

#[test]
fn all_four_providers_refund_and_are_looked_up() -> Result<()> {
    on_mesh(async |mesh| {
        for provider in FOUR {
            let call = mesh.fresh(provider);
            let answer = call.send(PORT).await?;
            let wanted = if provider == Bog { 202 } else { 200 };
            if answer.status != wanted {
                println!(
                    "{provider:?} {answer:#?}\n{}\n{}",
                    mesh.pod.log(),
                    mesh.istiod.log()
                );
                std::fs::write("/tmp/g/dump.json", mesh.pod.dump().await?)?;
            }
            ensure!(answer.status == wanted, "{provider:?}: {answer:#?}");
        }
        Ok(())
    })
}
