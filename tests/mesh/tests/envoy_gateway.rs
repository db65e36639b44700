//! `deploy/envoy-gateway` through `kubectl apply -k`, Envoy Gateway and Envoy.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_testbed::redis::PASSWORD;
use gateway_testbed::{PATH, module, other_module};
use mesh_testbed::envoy_gateway::{EnvoyGateway, PORT, Pod, definitions, put_keys};
use mesh_testbed::registry::Registry;
use mesh_testbed::{Call, Cluster, NAMESPACE, Overlay, Stranger, raw, wait_for};
use provider_simulator::Fault;
use provider_simulator::Provider::{self, Bbmsl, Begateway, Bog, Moyasar};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::calls::{
    FORGED, FOUR, JWKS, RETURNS, Sign, assert_nothing_leaks, assert_true, at_once, booked, doctor,
    fresh, has_found_the_store, has_series, received, remembers_over_a_rollout_and_an_outage, sent,
    share_memory, store, under_load, user_agent,
};

/// The mesh that all tests share, one after the other.
struct Mesh {
    cluster: Cluster,
    stranger: Stranger,
    /// None only while it is replaced.
    control: Option<EnvoyGateway>,
    registry: Option<Registry>,
    /// The image of the module that ships.
    image: String,
    pod: Pod,
    pods: u16,
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
        let mesh = mesh.as_mut().context("no mesh")?;
        let result = test(mesh).await;
        if result.is_err() {
            mesh.keep().await?;
        }
        result
    })
}

/// The example with these tests' issuer and image, and other applications on the same gateway.
fn example(image: &str) -> Result<Overlay> {
    let mut overlay = Overlay::example("envoy-gateway")?;
    let issuer = &mut overlay.access[0]["spec"]["jwt"]["providers"][0];
    ensure!(
        issuer["remoteJWKS"].is_object(),
        "the example's access has changed"
    );
    issuer
        .as_object_mut()
        .context("an issuer")?
        .remove("remoteJWKS");
    issuer["localJWKS"] = json!({"type": "Inline", "inline": JWKS});
    overlay.values[0]["spec"]["image"] = json!(image);
    overlay.more.push(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "application"},
        "spec": {"parentRefs": [{"name": "refunds"}], "hostnames": ["app.corp.example"],
            "rules": [{"filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "elsewhere.example", "statusCode": 302}}]}]},
    }));
    overlay.more.extend(Stranger::objects());
    Ok(overlay)
}

impl Mesh {
    async fn start() -> Result<Mesh> {
        let cluster = Cluster::start(&definitions()?).await?;
        let control = EnvoyGateway::start(&cluster, &[]).await?;
        let registry = Registry::start(&cluster).await?;
        let image = registry.push(&cluster, &module()?).await?;
        put_keys(&cluster, &cluster.secrets[0]).await?;
        let overlay = example(&image)?.write(&cluster)?;
        cluster.apply(&["-k", &overlay]).await?;
        let pod = Pod::start(&cluster, 1).await?;
        let mesh = Mesh {
            cluster,
            stranger: Stranger::start().await?,
            control: Some(control),
            registry: Some(registry),
            image,
            pod,
            pods: 1,
        };
        let works = mesh.works().await;
        if works.is_err() {
            mesh.keep().await?;
        }
        works?;
        Ok(mesh)
    }

    /// Leaves what tells why a test has failed in the folder that `MESH_KEEP` names.
    async fn keep(&self) -> Result<()> {
        if let Some(folder) = std::env::var_os("MESH_KEEP") {
            let folder = std::path::PathBuf::from(folder);
            std::fs::write(folder.join("dump.json"), self.pod.dump().await?)?;
            std::fs::write(folder.join("pod.log"), self.pod.log())?;
            std::fs::write(folder.join("envoy-gateway.log"), self.control_log())?;
            let policies = self
                .cluster
                .kubectl(&[
                    "get",
                    "envoypatchpolicy,envoyextensionpolicy,httproute,securitypolicy",
                    "-A",
                    "-o",
                    "yaml",
                ])
                .await?;
            std::fs::write(folder.join("policies.yaml"), policies)?;
        }
        Ok(())
    }

    /// Applies an overlay.
    async fn apply(&self, overlay: Overlay) -> Result<()> {
        let folder = overlay.write(&self.cluster)?;
        self.cluster.apply(&["-k", &folder]).await?;
        Ok(())
    }

    /// What Envoy Gateway has written.
    fn control_log(&self) -> String {
        self.control
            .as_ref()
            .map(EnvoyGateway::log)
            .unwrap_or_default()
    }

    /// Another Envoy Gateway, with these runtime flags.
    async fn replace_control(&mut self, flags: &[&str]) -> Result<()> {
        let former = self.control.take().context("no Envoy Gateway")?;
        former.terminate().await?;
        self.control = Some(EnvoyGateway::start(&self.cluster, flags).await?);
        Ok(())
    }

    /// The example as it ships.
    fn example(&self) -> Result<Overlay> {
        example(&self.image)
    }

    /// Completes when a refund is made at every provider.
    async fn works(&self) -> Result<()> {
        for provider in FOUR {
            let made = || async {
                let answer = fresh(provider).send(PORT).await;
                answer.is_ok_and(|answer| answer.status < 300)
            };
            let works = wait_for("a refund", made).await;
            if works.is_err() {
                let answer = fresh(provider).send(PORT).await?;
                works.with_context(|| format!("{provider:?}: {answer:?}"))?;
            }
        }
        Ok(())
    }

    /// What the doctor says of the gateway.
    async fn doctor(&self) -> Result<Vec<String>> {
        doctor(&self.pod.dump().await?)
    }

    /// Completes when what is gone or wrong is seen, nothing is open, and no certain word is false;
    /// and when all is as it ships again.
    async fn is_safe(&mut self, case: &str, provider: Provider, sign: &Sign) -> Result<()> {
        let seen = || async {
            let dump = self.pod.dump().await.unwrap_or_default();
            sign.is_there(&self.cluster, &dump, &self.control_log())
                .await
                .unwrap_or_default()
        };
        let said = wait_for(case, seen).await;
        let findings = self.doctor().await?;
        let call = fresh(provider);
        let answer = call.send(PORT).await?;
        println!("{case}: {} {} {findings:?}", answer.status, answer.text);
        said?;
        assert_true(case, &answer, booked(&self.cluster, provider, &call));
        for token in [None, Some(FORGED)] {
            let call = Call {
                token,
                ..fresh(provider)
            };
            let answer = call.send(PORT).await?;
            assert!(answer.status >= 300, "{case}: {answer:#?}");
            assert_eq!(sent(&self.cluster, provider, &call), 0, "{case}");
        }
        let before = received(&self.cluster);
        for host in ["pg.moyasar.com", "api.bog.ge", "other.example"] {
            let status = raw(PORT, "POST", "/v1/orders/1/refund", host, Some(RETURNS)).await?;
            assert_eq!(status, 404, "{case}: {host}");
        }
        assert_eq!(received(&self.cluster), before, "{case}");
        assert_nothing_leaks(case, &self.cluster, &self.stranger);
        self.application_answers().await?;
        // The later keys, which another test does not revoke.
        put_keys(&self.cluster, &self.cluster.secrets[1]).await?;
        self.restore().await
    }

    /// Whether the applications beside the refunds answer.
    async fn application_answers(&self) -> Result<()> {
        let former = self.stranger.got().len();
        raw(PORT, "GET", "/anything", "other.example", None).await?;
        ensure!(
            self.stranger.got().len() > former,
            "nothing comes to another application"
        );
        let status = raw(PORT, "GET", "/anything", "app.corp.example", None).await?;
        ensure!(status == 302, "the application beside it: {status}");
        Ok(())
    }

    /// Back to what ships.
    async fn restore(&mut self) -> Result<()> {
        if self.registry.is_none() {
            self.registry = Some(Registry::start(&self.cluster).await?);
        }
        self.apply(self.example()?).await?;
        self.works().await
    }
}

#[test]
fn all_four_providers_refund_and_are_looked_up() -> Result<()> {
    on_mesh(async |mesh| {
        assert_eq!(mesh.doctor().await?, [""; 0]);
        for provider in FOUR {
            let call = fresh(provider);
            let answer = call.send(PORT).await?;
            let status = if provider == Bog { 202 } else { 200 };
            assert_eq!(answer.status, status, "{provider:?}: {answer:#?}");
            assert_eq!(booked(&mesh.cluster, provider, &call), 1, "{provider:?}");
            let found = call.look_up().send(PORT).await?;
            assert_eq!(found.status, 200, "{provider:?}: {found:#?}");
            assert_eq!(
                found.body["payment"], answer.body["payment"],
                "{provider:?}: {found:#?}"
            );
            let status = found.body["status"].as_str();
            assert!(
                matches!(status, Some("succeeded" | "pending")),
                "{found:#?}"
            );
        }
        let figures = mesh.pod.figures().await?;
        let by_host = |line: &str| {
            line.starts_with("refund_signatures_total{")
                && line.contains(r#"signer="host""#)
                && !line.ends_with(" 0")
        };
        assert!(figures.lines().any(by_host), "{figures}");
        Ok(())
    })
}

#[test]
fn without_a_token_nothing_is_sent_for_any_host_and_path() -> Result<()> {
    on_mesh(async |mesh| {
        let strange = mesh.stranger.got().len();
        let before = received(&mesh.cluster);
        let hosts = [
            "refunds.corp.example",
            "refunds.corp.example:80",
            "REFUNDS.corp.example",
            "app.corp.example",
            "other.example",
            "*",
            "api.bog.ge",
            "oauth2.bog.ge",
            "pg.moyasar.com",
            "pg.moyasar.com:443",
            "api.begateway.com",
            "payapi.prod.bbmsl.com",
        ];
        let paths = [
            PATH,
            "/v1/refunds/preview",
            "//v1/refunds",
            "/./v1/refunds",
            "/v1/refunds/",
            "/v1//refunds",
            "/V1/refunds",
            "/%761/refunds",
            "/v1/refunds?x=1",
            "/v1/refunds;x",
            "/v1/refunds%00",
            "/x/../v1/refunds",
            "/v1/orders/1/refund",
            "/",
            "/hosted-checkout/refund",
            "/payments/v1/payment/refund/1",
            "/beyag/transactions/refunds",
            "/.refund-keys/bog",
            "/.refund-keys/moyasar",
            "/.refund-keys/begateway",
            "/.refund-keys/bbmsl",
            "http://refunds.corp.example/v1/refunds",
            "http://pg.moyasar.com/v1/refunds",
        ];
        for host in hosts {
            for path in paths {
                for token in [None, Some(FORGED)] {
                    let status = raw(PORT, "POST", path, host, token).await?;
                    assert!(status >= 300, "{host} {path}: {status}");
                }
            }
        }
        // With one, on any host but ours, too: the filter is not on there.
        for host in &hosts[3..] {
            for path in ["/", PATH, "/v1/orders/1/refund", "/.refund-keys/bbmsl"] {
                let status = raw(PORT, "POST", path, host, Some(RETURNS)).await?;
                let expected = if host.starts_with("app") { 302 } else { 404 };
                assert_eq!(status, expected, "{host} {path}");
            }
        }
        assert_eq!(received(&mesh.cluster), before);
        let got = mesh.stranger.got().split_off(strange);
        for host in [
            "api.bog.ge",
            "pg.moyasar.com",
            "api.begateway.com",
            "payapi.prod.bbmsl.com",
        ] {
            assert!(
                !got.contains(&format!("host: {host}")),
                "{host} leads to another application"
            );
        }

        let mut overlay = mesh.example()?;
        overlay.provider("moyasar")?["callers"] = json!(["shop"]);
        overlay.provider("begateway")?["callers"] = json!(["returns"]);
        mesh.apply(overlay).await?;
        let refused = || async {
            let answer = fresh(Moyasar).send(PORT).await;
            answer.is_ok_and(|answer| answer.body["code"] == "caller-not-allowed")
        };
        wait_for("callers", refused).await?;
        let call = fresh(Begateway);
        assert_eq!(call.send(PORT).await?.status, 200);
        assert_eq!(booked(&mesh.cluster, Begateway, &call), 1);
        let logged = || async { mesh.pod.log().contains(r#""caller":"returns""#) };
        wait_for("the caller's name in the access log", logged).await?;

        // What a team asks of callers beyond a token counts in front of the filter.
        let mut overlay = mesh.example()?;
        overlay.access[0]["spec"]["authorization"] = json!({"defaultAction": "Deny", "rules": []});
        mesh.apply(overlay).await?;
        let refused = || async {
            let answer = fresh(Moyasar).send(PORT).await;
            answer.is_ok_and(|answer| answer.body["code"] == "access-denied")
        };
        wait_for("the authorization", refused).await?;
        let before = received(&mesh.cluster);
        for provider in FOUR {
            assert_eq!(fresh(provider).send(PORT).await?.status, 403);
        }
        assert_eq!(received(&mesh.cluster), before);
        mesh.restore().await
    })
}

/// Each object that ships: its kind and name, the provider that is called, and how one sees that it
/// is gone.
const OBJECTS: [(&str, &str, Provider, Sign); 18] = [
    (
        "httproute",
        "refunds",
        Moyasar,
        Sign::Says("the refund filter is in no chain"),
    ),
    (
        "httproutefilter",
        "refund-without-filter",
        Moyasar,
        Sign::Status("httproute/refunds"),
    ),
    (
        "httproutefilter",
        "refund-nowhere",
        Moyasar,
        Sign::Status("httproute/refund-moyasar-key"),
    ),
    (
        "envoyextensionpolicy",
        "refund",
        Moyasar,
        Sign::Says("the refund filter is in no chain"),
    ),
    (
        "envoypatchpolicy",
        "refund-filter",
        Moyasar,
        Sign::Says("allow_on_headers_stop_iteration"),
    ),
    (
        "envoypatchpolicy",
        "refund-connection",
        Moyasar,
        Sign::Says("local_reply_config"),
    ),
    (
        "envoypatchpolicy",
        "refund-limits",
        Moyasar,
        Sign::FromDump("\"request_timeout\":\"15s\""),
    ),
    (
        "envoypatchpolicy",
        "refund-bog",
        Bog,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "httproute",
        "refund-bog-key",
        Bog,
        Sign::FromDump("httproute/refunds/refund-bog-key"),
    ),
    (
        "envoypatchpolicy",
        "refund-moyasar",
        Moyasar,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "httproute",
        "refund-moyasar-key",
        Moyasar,
        Sign::FromDump("httproute/refunds/refund-moyasar-key"),
    ),
    (
        "envoypatchpolicy",
        "refund-begateway",
        Begateway,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "httproute",
        "refund-begateway-key",
        Begateway,
        Sign::FromDump("httproute/refunds/refund-begateway-key"),
    ),
    (
        "envoypatchpolicy",
        "refund-bbmsl",
        Bbmsl,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "httproute",
        "refund-bbmsl-key",
        Bbmsl,
        Sign::FromDump("httproute/refunds/refund-bbmsl-key"),
    ),
    (
        "httproutefilter",
        "refund-moyasar-key",
        Moyasar,
        Sign::Status("httproute/refund-moyasar-key"),
    ),
    (
        "secret",
        "refund-moyasar",
        Moyasar,
        Sign::Status("httproute/refund-moyasar-key"),
    ),
    (
        "securitypolicy",
        "refunds",
        Moyasar,
        Sign::Says("jwt_authn"),
    ),
];

/// What can be wrong in them: kind and name, the provider that is called, what is wrong, by which
/// JSON patch, and how one sees it.
const BROKEN: [(&str, &str, Provider, &str, &str, Sign); 13] = [
    (
        "httproute",
        "refunds",
        Moyasar,
        "on another gateway",
        r#"[{"op": "replace", "path": "/spec/parentRefs/0/name", "value": "refund"}]"#,
        Sign::Says("the refund filter is in no chain"),
    ),
    (
        "envoyextensionpolicy",
        "refund",
        Moyasar,
        "for another route",
        r#"[{"op": "replace", "path": "/spec/targetRefs/0/name", "value": "refund"}]"#,
        Sign::Says("the refund filter is in no chain"),
    ),
    (
        "envoyextensionpolicy",
        "refund",
        Moyasar,
        "no provider",
        r#"[{"op": "replace", "path": "/spec/wasm/0/config/providers", "value": {}}]"#,
        Sign::Says("Envoy has refused its newest configuration"),
    ),
    (
        "envoypatchpolicy",
        "refund-filter",
        Moyasar,
        "for another plugin",
        r#"[{"op": "replace", "path": "/spec/jsonPatches/0/operation/jsonPath",
            "value": "$..http_filters[?(@.name =~ '^envoy.filters.http.wasm/.*/refunds/refund_fitler/wasm/0$')].typed_config.config"}]"#,
        Sign::Says("allow_on_headers_stop_iteration"),
    ),
    (
        "envoypatchpolicy",
        "refund-filter",
        Moyasar,
        "no route guard",
        r#"[{"op": "remove", "path": "/spec/jsonPatches/3"}]"#,
        Sign::Says("no route guard"),
    ),
    (
        "envoypatchpolicy",
        "refund-connection",
        Moyasar,
        "answers that are a text",
        r#"[{"op": "replace", "path": "/spec/jsonPatches/12/operation/value", "value": "none"}]"#,
        Sign::Says("local_reply_config"),
    ),
    (
        "envoypatchpolicy",
        "refund-limits",
        Moyasar,
        "a time that is none",
        r#"[{"op": "replace", "path": "/spec/jsonPatches/1/operation/value", "value": "soon"}]"#,
        Sign::FromDump("\"request_timeout\":\"15s\""),
    ),
    (
        "envoypatchpolicy",
        "refund-bog",
        Bog,
        "no virtual host",
        r#"[{"op": "remove", "path": "/spec/jsonPatches/0"}]"#,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "envoypatchpolicy",
        "refund-moyasar",
        Moyasar,
        "no cluster",
        r#"[{"op": "remove", "path": "/spec/jsonPatches/3"}]"#,
        Sign::Says("there is no cluster `moyasar`"),
    ),
    (
        "envoypatchpolicy",
        "refund-begateway",
        Begateway,
        "a cluster with an unknown member",
        r#"[{"op": "add", "path": "/spec/jsonPatches/3/operation/value/conect_timeout", "value": "5s"}]"#,
        Sign::Says("there is no cluster `begateway`"),
    ),
    (
        "envoypatchpolicy",
        "refund-bbmsl",
        Bbmsl,
        "its key in another state",
        r#"[{"op": "replace", "path": "/spec/jsonPatches/2/operation/value/typed_config/on_request_headers/0/object_key", "value": "refund.bbmsl_kye"}]"#,
        Sign::Says("nothing gives providers.bbmsl.signing.keys"),
    ),
    (
        "httproutefilter",
        "refund-moyasar-key",
        Moyasar,
        "another Secret",
        r#"[{"op": "replace", "path": "/spec/credentialInjection/credential/valueRef/name", "value": "refund-mayosar"}]"#,
        Sign::Status("httproute/refund-moyasar-key"),
    ),
    (
        "securitypolicy",
        "refunds",
        Moyasar,
        "another name of the issuer",
        r#"[{"op": "replace", "path": "/spec/jwt/providers/0/name", "value": "corporate"}]"#,
        Sign::Says("the token's payload `corp`"),
    ),
];

#[test]
fn with_any_one_object_gone_or_broken_nothing_is_open_and_no_certain_word_is_false() -> Result<()> {
    on_mesh(async |mesh| {
        for (kind, name, provider, sign) in &OBJECTS {
            mesh.cluster.delete(kind, name).await?;
            let case = format!("without {kind} {name}");
            mesh.is_safe(&case, *provider, sign).await?;
        }
        for (kind, name, provider, what, patch, sign) in &BROKEN {
            mesh.cluster.patch(kind, name, patch).await?;
            let case = format!("{kind} {name}: {what}");
            mesh.is_safe(&case, *provider, sign).await?;
        }
        Ok(())
    })
}

#[test]
fn a_configuration_a_key_and_an_image_are_changed_under_calls() -> Result<()> {
    on_mesh(async |mesh| {
        let cluster = &mesh.cluster;
        let remembered = fresh(Begateway);
        assert_eq!(remembered.send(PORT).await?.status, 200);
        let remembers = async |what: &str| -> Result<()> {
            let again = remembered.send(PORT).await?;
            assert_eq!(again.status, 200, "{again:#?}");
            let count = sent(cluster, Begateway, &remembered);
            assert_eq!(count, 1, "the guard forgot with {what}");
            Ok(())
        };
        let mut counts = Vec::new();

        let configuration = async || {
            let mut overlay = mesh.example()?;
            overlay.provider("begateway")?["default_reason"] = json!("changed");
            mesh.apply(overlay).await?;
            wait_for("the new configuration", || async {
                let last = cluster.simulators.last_request(Begateway);
                last.is_some_and(|last| String::from_utf8_lossy(&last.body).contains("changed"))
            })
            .await
        };
        counts.push(under_load(cluster, PORT, configuration).await?);
        remembers("a configuration").await?;

        let uses = cluster.simulators.uses(Begateway)[1];
        let key = async || {
            put_keys(cluster, &cluster.secrets[1]).await?;
            wait_for("the new key", || async {
                cluster.simulators.uses(Begateway)[1] > uses
            })
            .await
        };
        counts.push(under_load(cluster, PORT, key).await?);
        cluster.simulators.revoke(Begateway, 0);
        mesh.works().await?;
        remembers("a key").await?;

        let registry = mesh.registry.as_ref().context("no registry")?;
        for version in ["9.9.8", "9.9.9"] {
            let other = registry
                .push(cluster, &other_module(cluster.folder(), version)?)
                .await?;
            let image = async || {
                mesh.apply(example(&other)?).await?;
                wait_for("the new image", || async {
                    user_agent(cluster, Begateway) == format!("refund-filter/{version}")
                })
                .await
            };
            counts.push(under_load(cluster, PORT, image).await?);
            remembers("an image").await?;
        }
        println!("booked once each: {counts:?} calls (configuration, key, image, image)");
        mesh.restore().await
    })
}

#[test]
fn an_image_that_cannot_be_had_stops_refunds_alone() -> Result<()> {
    on_mesh(async |mesh| {
        let remembered = fresh(Begateway);
        assert_eq!(remembered.send(PORT).await?.status, 200);
        // The registry is gone, and an image is asked for that was never pulled.
        mesh.registry = None;
        let image = &mesh.image;
        let gone = format!("{}{}", &image[..image.len() - 8], "00000000");
        mesh.apply(example(&gone)?).await?;
        let shut = || async {
            let answer = fresh(Begateway).send(PORT).await;
            answer.is_ok_and(|answer| answer.status == 500)
        };
        wait_for("the refusal", shut).await?;
        let before = received(&mesh.cluster);
        for provider in FOUR {
            let answer = fresh(provider).send(PORT).await?;
            assert_eq!(
                [&answer.body["code"], &answer.body["outcome"]],
                ["gateway-error", "unknown"],
                "{answer:#?}"
            );
            let look = fresh(provider).look_up().send(PORT).await?;
            assert_eq!(look.body["outcome"], "unknown", "{look:#?}");
        }
        assert_eq!(received(&mesh.cluster), before);
        mesh.application_answers().await?;
        let findings = mesh.doctor().await?;
        let word = "the refund filter is in no chain";
        assert!(
            findings.iter().any(|line| line.contains(word)),
            "{findings:#?}"
        );
        // A line tells where to look.
        let policy = mesh
            .cluster
            .object("envoyextensionpolicy", "refund")
            .await?;
        let status = policy["status"].to_string();
        assert!(status.contains("Wasm"), "{status}");

        // The registry comes back, and the values name an image that is there.
        mesh.restore().await?;
        let again = remembered.send(PORT).await?;
        assert_eq!(again.status, 200, "{again:#?}");
        assert_eq!(again.header("idempotency-replayed"), "true");
        assert_eq!(sent(&mesh.cluster, Begateway, &remembered), 1);
        Ok(())
    })
}

#[test]
fn a_call_in_flight_ends_in_its_answer_while_its_pod_goes() -> Result<()> {
    on_mesh(async |mesh| {
        mesh.pods += 1;
        let delay = Fault::DelayReply(Duration::from_secs(2));
        mesh.cluster.simulators.next_fault(Begateway, delay);
        let call = fresh(Begateway);
        let in_flight = call.clone();
        let answer = tokio::spawn(async move { in_flight.send(PORT).await });
        let arrived = || async { sent(&mesh.cluster, Begateway, &call) == 1 };
        wait_for("the call at the provider", arrived).await?;
        let new = Pod::start(&mesh.cluster, mesh.pods).await?;
        std::mem::replace(&mut mesh.pod, new).terminate().await?;
        let answer = answer.await??;
        assert_eq!(answer.status, 200, "{answer:#?}");
        assert_eq!(booked(&mesh.cluster, Begateway, &call), 1);
        mesh.works().await
    })
}

#[test]
fn figures_log_and_problems_are_as_the_contract_says() -> Result<()> {
    on_mesh(async |mesh| {
        // The largest body that the contract takes, nearly.
        let mut call = fresh(Begateway);
        call.body.insert_str(1, &" ".repeat(60_000));
        // A UUID of version 7, of which Envoy makes one of version 4 by itself.
        call.request_id = Some("019ad0a2-9f3c-7c5e-8a41-3d2f6b7c8d90");
        let answer = call.send(PORT).await?;
        assert_eq!(answer.status, 200, "{answer:#?}");
        assert_eq!(Some(answer.header("x-request-id")), call.request_id);
        let wrong = Call {
            body: "{".into(),
            ..fresh(Begateway)
        };
        let answer = wrong.send(PORT).await?;
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(
            [&answer.body["outcome"], &answer.body["retry"]],
            ["not_refunded", "corrected"],
            "{answer:#?}"
        );
        // Envoy's own answer, in front of the filter.
        let refused = Call {
            token: Some(FORGED),
            ..fresh(Begateway)
        };
        let refused = refused.send(PORT).await?;
        assert_eq!(refused.body["code"], "access-denied", "{refused:#?}");
        assert_ne!(refused.header("x-request-id"), "");

        let figures = mesh.pod.figures().await?;
        assert!(has_series(&figures), "{figures}");
        let logged = || async {
            mesh.pod.log().lines().any(|line| {
                let line: Value = serde_json::from_str(line).unwrap_or_default();
                line["provider"] == "begateway"
                    && line["refund_status"] == "succeeded"
                    && line["amount"] == "1.00 USD"
                    && line["key_id"] != Value::Null
            })
        };
        wait_for("the access log", logged).await?;
        for secret in &mesh.cluster.secrets {
            for (name, value) in secret.by_name() {
                for text in [
                    mesh.pod.log(),
                    mesh.control_log(),
                    mesh.pod.dump().await?,
                    figures.clone(),
                ] {
                    assert!(!text.contains(&value), "{name} leaks");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn two_pods_and_a_rollout_have_one_memory() -> Result<()> {
    on_mesh(async |mesh| {
        let mut redis = store().await?;
        mesh.cluster
            .apply_objects(&[json!({
                "apiVersion": "v1", "kind": "Secret", "stringData": {"credential": PASSWORD},
                "metadata": {"name": "refund-memory", "namespace": NAMESPACE},
            })])
            .await?;
        let mut overlay = mesh.example()?;
        let password = json!({"filter_state": "refund.memory_password"});
        share_memory(&mut overlay, &redis, &password)?;
        mesh.apply(overlay).await?;
        let first = mesh.sharing().await?;
        let second = mesh.sharing().await?;
        std::mem::replace(&mut mesh.pod, first).terminate().await?;
        assert_eq!(mesh.doctor().await?, [""; 0]);
        for pod in [&mesh.pod, &second] {
            let called = || async {
                let works = mesh.works().await.is_ok();
                works && pod.log().contains(r#""refund_status":"succeeded""#)
            };
            wait_for("a refund by each pod", called).await?;
        }
        let made = at_once(&mesh.cluster, PORT).await?;
        for pod in [&mesh.pod, &second] {
            assert!(!pod.log().contains(PASSWORD), "the password leaks");
        }

        // Both go, under calls.
        let new = mesh.sharing().await?;
        let first = std::mem::replace(&mut mesh.pod, new);
        let end_old_pods = async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            first.terminate().await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            second.terminate().await
        };
        let (cluster, redis) = (&mesh.cluster, &mut redis);
        remembers_over_a_rollout_and_an_outage(cluster, PORT, redis, &made, end_old_pods).await?;
        for (kind, name) in [
            ("envoypatchpolicy", "refund-memory"),
            ("httproute", "refund-memory-key"),
            ("httproutefilter", "refund-memory-key"),
            ("secret", "refund-memory"),
        ] {
            mesh.cluster.delete(kind, name).await?;
        }
        mesh.restore().await
    })
}

impl Mesh {
    /// A further pod, which has found the store.
    async fn sharing(&mut self) -> Result<Pod> {
        self.pods += 1;
        let pod = Pod::start(&self.cluster, self.pods).await?;
        let found = || async {
            let clusters = pod.admin("/clusters").await;
            clusters.is_ok_and(|clusters| has_found_the_store(&clusters))
        };
        wait_for("the store", found).await?;
        Ok(pod)
    }
}

/// Names of listeners and routes as Envoy Gateway makes them from 1.10 on. The wrong ones are no open
/// door.
#[test]
fn the_later_names_of_listeners_do_as_well() -> Result<()> {
    on_mesh(async |mesh| {
        mesh.replace_control(&["XDSNameSchemeV2"]).await?;
        let shut = || async {
            let answer = fresh(Moyasar).send(PORT).await;
            answer.is_ok_and(|answer| answer.status >= 500)
        };
        wait_for("the refusal", shut).await?;
        let before = received(&mesh.cluster);
        for provider in FOUR {
            let answer = fresh(provider).send(PORT).await?;
            assert!(answer.status >= 500, "{answer:#?}");
        }
        assert_eq!(received(&mesh.cluster), before);
        let mut overlay = mesh.example()?;
        overlay.values[0]["spec"]["listener"] = json!("tcp-80");
        overlay.values[0]["spec"]["routes"] = json!("http-80");
        mesh.apply(overlay).await?;
        mesh.works().await?;
        assert_eq!(mesh.doctor().await?, [""; 0]);
        mesh.replace_control(&[]).await?;
        mesh.restore().await
    })
}
