//! `deploy/istio` through `kubectl apply -k`, istiod, Istio's agent and Envoy.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_testbed::redis::PASSWORD;
use gateway_testbed::{PATH, module, other_module};
use mesh_testbed::istio::{Istiod, PORT, Pod, definitions, mount_volumes};
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
    istiod: Istiod,
    pod: Pod,
    pods: u16,
}

/// It outlives every test, so it cannot be on a test's own runtime.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
static MESH: LazyLock<Mutex<Option<Mesh>>> = LazyLock::new(Mutex::default);

/// Runs a test on the mesh, which is as it ships before it. Of one that fails, the dump and the logs
/// go into the folder that `MESH_KEEP` names.
fn on_mesh(test: impl AsyncFnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    RUNTIME.block_on(async {
        let mut mesh = MESH.lock().await;
        if mesh.is_none() {
            *mesh = Some(Mesh::start().await?);
        }
        let mesh = mesh.as_mut().context("no mesh")?;
        let result = test(mesh).await;
        if result.is_err() {
            let dump = mesh.pod.dump().await.unwrap_or_default();
            if let Some(folder) = std::env::var_os("MESH_KEEP") {
                let folder = std::path::PathBuf::from(folder);
                std::fs::write(folder.join("dump.json"), dump)?;
                std::fs::write(folder.join("pod.log"), mesh.pod.log())?;
                std::fs::write(folder.join("istiod.log"), mesh.istiod.log())?;
            }
        }
        result
    })
}

/// The example with these tests' issuer, and other applications on the same gateway.
fn example() -> Result<Overlay> {
    let mut overlay = Overlay::example("istio")?;
    let rule = &mut overlay.access[0]["spec"]["jwtRules"][0];
    ensure!(
        rule["jwksUri"].is_string(),
        "the example's access has changed"
    );
    rule.as_object_mut().context("a rule")?.remove("jwksUri");
    rule["jwks"] = json!(JWKS);
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
        let istiod = Istiod::start(&cluster).await?;
        cluster.put_secrets(&cluster.secrets[0]).await?;
        let overlay = example()?.write(&cluster)?;
        cluster.apply(&["-k", &overlay]).await?;
        let pod = Pod::start(&cluster, &module()?, 1).await;
        let pod = pod.with_context(|| istiod.log())?;
        let mesh = Mesh {
            cluster,
            stranger: Stranger::start().await?,
            istiod,
            pod,
            pods: 1,
        };
        mesh.works().await?;
        Ok(mesh)
    }

    /// Applies an overlay.
    async fn apply(&self, overlay: Overlay) -> Result<()> {
        let folder = overlay.write(&self.cluster)?;
        self.cluster.apply(&["-k", &folder]).await?;
        Ok(())
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
    async fn is_safe(&self, case: &str, provider: Provider, sign: &Sign) -> Result<()> {
        let seen = || async {
            let dump = self.pod.dump().await.unwrap_or_default();
            sign.is_there(&self.cluster, &dump, &self.istiod.log())
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
        self.apply(example()?).await?;
        self.works().await
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
            let look = call.look_up();
            let found = look.send(PORT).await?;
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
            "refunds.corp.example:8080",
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
            for path in ["/", PATH, "/v1/orders/1/refund"] {
                let status = raw(PORT, "POST", path, host, Some(RETURNS)).await?;
                assert!(status >= 300, "{host} {path}: {status}");
                if !host.starts_with("app") {
                    assert_eq!(status, 404, "{host} {path}");
                }
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

        let mut overlay = example()?;
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
        mesh.apply(example()?).await?;
        mesh.works().await
    })
}

/// Each object that ships: its kind and name, the provider that is called, and how one sees that it
/// is gone.
const OBJECTS: [(&str, &str, Provider, Sign); 10] = [
    (
        "httproute",
        "refunds",
        Moyasar,
        Sign::Says("no route enables the refund filter"),
    ),
    (
        "envoyfilter",
        "refund",
        Moyasar,
        Sign::Says("the refund filter is in no chain"),
    ),
    (
        "envoyfilter",
        "refund-connection",
        Moyasar,
        Sign::Says("local_reply_config"),
    ),
    (
        "envoyfilter",
        "refund-limits",
        Moyasar,
        Sign::FromDump("\"request_timeout\":\"15s\""),
    ),
    (
        "envoyfilter",
        "refund-bog",
        Bog,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "envoyfilter",
        "refund-moyasar",
        Moyasar,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "envoyfilter",
        "refund-begateway",
        Begateway,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "envoyfilter",
        "refund-bbmsl",
        Bbmsl,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "requestauthentication",
        "refunds",
        Moyasar,
        Sign::Says("jwt_authn"),
    ),
    (
        "authorizationpolicy",
        "refunds",
        Moyasar,
        Sign::FromDump("ns[refunds]-policy[refunds]"),
    ),
];

/// What can be wrong in them: kind and name, the provider that is called, what is wrong, by which
/// JSON patch, and how one sees it.
const BROKEN: [(&str, &str, Provider, &str, &str, Sign); 15] = [
    (
        "httproute",
        "refunds",
        Moyasar,
        "its rules have other names",
        r#"[{"op": "replace", "path": "/spec/rules/0/name", "value": "refund"}]"#,
        Sign::Says("no route enables the refund filter for /v1/refunds,"),
    ),
    (
        "envoyfilter",
        "refund",
        Begateway,
        "the configuration is no JSON",
        r#"[{"op": "replace", "path": "/spec/configPatches/0/patch/value/typed_config/config/configuration/value", "value": "{\"path\": "}]"#,
        Sign::Says("the plugin's configuration is not JSON"),
    ),
    (
        "envoyfilter",
        "refund",
        Moyasar,
        "the plugin has another name in the chain",
        r#"[{"op": "replace", "path": "/spec/configPatches/1/patch/value/name", "value": "refund_fitler"}]"#,
        Sign::Says("the refund filter is in no chain"),
    ),
    (
        "envoyfilter",
        "refund",
        Moyasar,
        "no route guard",
        r#"[{"op": "remove", "path": "/spec/configPatches/2"}]"#,
        Sign::Says("no route guard"),
    ),
    (
        "envoyfilter",
        "refund",
        Moyasar,
        "another filter is switched on",
        r#"[{"op": "move", "from": "/spec/configPatches/3/patch/value/typed_per_filter_config/refund_filter",
            "path": "/spec/configPatches/3/patch/value/typed_per_filter_config/refund_fitler"}]"#,
        Sign::Says("no route enables the refund filter for /v1/refunds,"),
    ),
    (
        "envoyfilter",
        "refund",
        Moyasar,
        "on for every route",
        r#"[{"op": "remove", "path": "/spec/configPatches/1/patch/value/disabled"}]"#,
        Sign::Says("the refund filter is on for every route"),
    ),
    (
        "envoyfilter",
        "refund-connection",
        Moyasar,
        "an answer for no call, which Envoy refuses",
        r#"[{"op": "remove", "path": "/spec/configPatches/2/patch/value/typed_config/local_reply_config/mappers/0/filter"}]"#,
        Sign::Says("Envoy has refused its newest configuration"),
    ),
    (
        "envoyfilter",
        "refund-limits",
        Moyasar,
        "a time that is none",
        r#"[{"op": "replace", "path": "/spec/configPatches/0/patch/value/typed_config/request_timeout", "value": "soon"}]"#,
        Sign::FromDump("\"request_timeout\":\"15s\""),
    ),
    (
        "envoyfilter",
        "refund-bog",
        Bog,
        "no virtual host",
        r#"[{"op": "remove", "path": "/spec/configPatches/0"}]"#,
        Sign::Says("matches wasm.refund_provider with its name"),
    ),
    (
        "envoyfilter",
        "refund-moyasar",
        Moyasar,
        "no cluster",
        r#"[{"op": "remove", "path": "/spec/configPatches/1"}]"#,
        Sign::Says("there is no cluster `moyasar`"),
    ),
    (
        "envoyfilter",
        "refund-begateway",
        Begateway,
        "a cluster that Envoy refuses",
        r#"[{"op": "replace", "path": "/spec/configPatches/1/patch/value/connect_timeout", "value": "-1s"}]"#,
        Sign::Logged("ADS:CDS: ACK ERROR"),
    ),
    (
        "envoyfilter",
        "refund-bbmsl",
        Bbmsl,
        "its key in another header",
        r#"[{"op": "replace", "path": "/spec/configPatches/2/patch/value/typed_config/credential/typed_config/header", "value": "x-refund-bbmsl-kye"}]"#,
        Sign::Says("nothing gives providers.bbmsl.signing.keys"),
    ),
    (
        "envoyfilter",
        "refund-bbmsl",
        Bbmsl,
        "a route without the guard's mark",
        r#"[{"op": "remove", "path": "/spec/configPatches/0/patch/value/routes/0/metadata"}]"#,
        Sign::Says("it is not marked for the route guard"),
    ),
    (
        "requestauthentication",
        "refunds",
        Moyasar,
        "for another gateway",
        r#"[{"op": "replace", "path": "/spec/targetRefs/0/name", "value": "refund"}]"#,
        Sign::Says("jwt_authn"),
    ),
    (
        "authorizationpolicy",
        "refunds",
        Moyasar,
        "another path",
        r#"[{"op": "replace", "path": "/spec/rules/0/to/0/operation/paths", "value": ["/v1/refund"]}]"#,
        Sign::FromDump("\"exact\":\"/v1/refunds/preview\""),
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
        let remembered = fresh(Begateway);
        assert_eq!(remembered.send(PORT).await?.status, 200);
        let mut counts = Vec::new();

        let mesh_ref: &Mesh = mesh;
        counts.push(
            under_load(&mesh_ref.cluster, PORT, async || {
                let mut overlay = example()?;
                overlay.provider("begateway")?["default_reason"] = json!("changed");
                mesh_ref.apply(overlay).await?;
                wait_for("the new configuration", || async {
                    let last = mesh_ref.cluster.simulators.last_request(Begateway);
                    last.is_some_and(|last| String::from_utf8_lossy(&last.body).contains("changed"))
                })
                .await
            })
            .await?,
        );
        let again = remembered.send(PORT).await?;
        assert_eq!(again.status, 200, "{again:#?}");
        assert_eq!(
            sent(&mesh.cluster, Begateway, &remembered),
            1,
            "the guard forgot with a configuration"
        );

        let mesh_ref: &Mesh = mesh;
        let uses = mesh_ref.cluster.simulators.uses(Begateway)[1];
        counts.push(
            under_load(&mesh_ref.cluster, PORT, async || {
                mesh_ref
                    .cluster
                    .put_secrets(&mesh_ref.cluster.secrets[1])
                    .await?;
                mount_volumes(&mesh_ref.cluster, &module()?).await?;
                wait_for("the new key", || async {
                    mesh_ref.cluster.simulators.uses(Begateway)[1] > uses
                })
                .await
            })
            .await?,
        );
        assert_eq!(sent(&mesh.cluster, Begateway, &remembered), 1);
        mesh.cluster.simulators.revoke(Begateway, 0);
        mesh.works().await?;
        let again = remembered.send(PORT).await?;
        assert_eq!(again.status, 200, "{again:#?}");
        assert_eq!(
            sent(&mesh.cluster, Begateway, &remembered),
            1,
            "the guard forgot with a key"
        );

        // A new image is a rollout: a new pod, then the old one goes.
        let other = other_module(mesh.cluster.folder(), "9.9.9")?;
        mesh.pods += 1;
        let new = Pod::start(&mesh.cluster, &other, mesh.pods).await?;
        let old = std::mem::replace(&mut mesh.pod, new);
        let mesh_ref: &Mesh = mesh;
        counts.push(
            under_load(&mesh_ref.cluster, PORT, async || {
                old.terminate().await?;
                wait_for("the new image", || async {
                    user_agent(&mesh_ref.cluster, Begateway) == "refund-filter/9.9.9"
                })
                .await
            })
            .await?,
        );
        println!("booked once each: {counts:?} calls (configuration, key, image)");
        mesh.restore().await
    })
}

impl Mesh {
    /// Back to what ships, in a new pod.
    async fn restore(&mut self) -> Result<()> {
        self.apply(example()?).await?;
        self.pods += 1;
        let new = Pod::start(&self.cluster, &module()?, self.pods).await?;
        std::mem::replace(&mut self.pod, new).terminate().await?;
        self.works().await
    }
}

#[test]
fn a_call_in_flight_ends_in_its_answer_while_its_pod_goes() -> Result<()> {
    on_mesh(async |mesh| {
        mesh.pods += 1;
        mesh.cluster
            .simulators
            .next_fault(Begateway, Fault::DelayReply(Duration::from_secs(2)));
        let call = fresh(Begateway);
        let same = call.clone();
        let answer = tokio::spawn(async move { same.send(PORT).await });
        let arrived = || async { sent(&mesh.cluster, Begateway, &call) == 1 };
        wait_for("the call at the provider", arrived).await?;
        let new = Pod::start(&mesh.cluster, &module()?, mesh.pods).await?;
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
        }
        .send(PORT)
        .await?;
        assert_eq!(refused.body["code"], "access-denied", "{refused:#?}");
        assert_ne!(refused.header("x-request-id"), "");

        let figures = mesh.pod.figures().await?;
        assert!(has_series(&figures), "{figures}");
        let logged = || async {
            let log = mesh.pod.log();
            log.lines().any(|line| {
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
                    mesh.istiod.log(),
                    mesh.pod.dump().await?,
                    mesh.pod.figures().await?,
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
                "apiVersion": "v1", "kind": "Secret", "stringData": {"MEMORY_PASSWORD": PASSWORD},
                "metadata": {"name": "refund-environment", "namespace": NAMESPACE},
            })])
            .await?;
        let mut overlay = example()?;
        share_memory(&mut overlay, &redis, &json!({"env": "MEMORY_PASSWORD"}))?;
        mesh.apply(overlay).await?;
        let first = mesh.sharing(&module()?).await?;
        let second = mesh.sharing(&module()?).await?;
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

        // Both go, under calls, for one of another version.
        let other = other_module(mesh.cluster.folder(), "9.9.9")?;
        let new = mesh.sharing(&other).await?;
        let first = std::mem::replace(&mut mesh.pod, new);
        let end_old_pods = async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            first.terminate().await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            second.terminate().await
        };
        let (cluster, redis) = (&mesh.cluster, &mut redis);
        remembers_over_a_rollout_and_an_outage(cluster, PORT, redis, &made, end_old_pods).await?;
        mesh.cluster.delete("envoyfilter", "refund-memory").await?;
        mesh.cluster.delete("secret", "refund-environment").await?;
        mesh.restore().await
    })
}

impl Mesh {
    /// A further pod, which has found the store.
    async fn sharing(&mut self, module: &Path) -> Result<Pod> {
        self.pods += 1;
        let pod = Pod::start(&self.cluster, module, self.pods).await?;
        let found = || async {
            let clusters = pod.admin("/clusters").await;
            clusters.is_ok_and(|clusters| has_found_the_store(&clusters))
        };
        wait_for("the store", found).await?;
        Ok(pod)
    }
}

/// The example with the module pulled from a registry.
fn pulled(image: &str) -> Result<Overlay> {
    let mut overlay = example()?;
    overlay.components.push("oci".into());
    overlay.values[0]["spec"]["image"] = json!(image);
    Ok(overlay)
}

#[test]
fn a_pulled_image_is_changed_under_calls_and_one_that_cannot_be_had_stops_refunds_alone()
-> Result<()> {
    on_mesh(async |mesh| {
        let registry = Registry::start(&mesh.cluster).await?;
        let first = registry.push(&mesh.cluster, &module()?).await?;
        let second = registry
            .push(
                &mesh.cluster,
                &other_module(mesh.cluster.folder(), "9.9.9")?,
            )
            .await?;
        assert_ne!(first, second);
        mesh.apply(pulled(&first)?).await?;
        wait_for("the pulled module", || async {
            mesh.pod
                .dump()
                .await
                .is_ok_and(|dump| dump.contains("/var/lib/istio/data/"))
        })
        .await?;
        mesh.works().await?;
        let remembered = fresh(Begateway);
        assert_eq!(remembered.send(PORT).await?.status, 200);
        let mesh_ref: &Mesh = mesh;
        let count = under_load(&mesh_ref.cluster, PORT, async || {
            mesh_ref.apply(pulled(&second)?).await?;
            wait_for("the new image", || async {
                user_agent(&mesh_ref.cluster, Begateway) == "refund-filter/9.9.9"
            })
            .await
        })
        .await?;
        println!("booked once each: {count} calls (pulled image)");
        assert_eq!(remembered.send(PORT).await?.status, 200);
        assert_eq!(
            sent(&mesh.cluster, Begateway, &remembered),
            1,
            "the guard forgot with an image"
        );

        // The registry is gone, and an image is asked for that was never pulled.
        drop(registry);
        let gone = format!("{}{}", &second[..second.len() - 8], "00000000");
        mesh.apply(pulled(&gone)?).await?;
        let shut = || async {
            let answer = fresh(Begateway).send(PORT).await;
            answer.is_ok_and(|answer| answer.body["code"] == "access-denied")
        };
        wait_for("the refusal", shut).await?;
        let before = received(&mesh.cluster);
        for provider in FOUR {
            let answer = fresh(provider).send(PORT).await?;
            assert_eq!(
                [&answer.body["code"], &answer.body["outcome"]],
                ["access-denied", "not_refunded"],
                "{answer:#?}"
            );
        }
        assert_eq!(received(&mesh.cluster), before);
        mesh.application_answers().await?;
        let findings = mesh.doctor().await?;
        assert!(
            findings
                .iter()
                .any(|line| line.contains("could not be pulled")),
            "{findings:#?}"
        );
        assert!(
            mesh.pod.log().contains("refund-filter@sha256"),
            "{}",
            mesh.pod.log()
        );

        // The registry comes back: an image that is there is pulled once the values name it.
        let registry = Registry::start(&mesh.cluster).await?;
        mesh.apply(pulled(&first)?).await?;
        mesh.works().await?;
        drop(registry);
        mesh.restore().await
    })
}

/// A mistake, what the build says of it, and how it is made.
type Mistake = (&'static str, &'static str, fn(&mut Overlay));

/// What a team can get wrong in an overlay.
const MISTAKES: [Mistake; 6] = [
    (
        "no values of a provider",
        "nothing selected by RefundProvider",
        |overlay| {
            overlay
                .values
                .retain(|value| value["metadata"]["name"] != "moyasar");
        },
    ),
    (
        "no gateway",
        "nothing selected by RefundGateway",
        |overlay| {
            overlay
                .values
                .retain(|value| value["kind"] != "RefundGateway");
        },
    ),
    (
        "two gateways",
        "multiple matches for selector RefundGateway",
        |overlay| {
            let mut other = overlay.values[0].clone();
            other["metadata"]["name"] = json!("other");
            overlay.values.push(other);
        },
    ),
    ("no image", "`spec.image` is missing", |overlay| {
        let spec = overlay.values[0]["spec"].as_object_mut();
        spec.expect("a spec").remove("image");
    }),
    (
        "a provider before the filter",
        "nothing selected by EnvoyFilter",
        |overlay| {
            overlay.components.insert(0, "moyasar".into());
            overlay.components.remove(4);
        },
    ),
    (
        "values that are applied",
        "no matches for kind",
        |overlay| {
            for value in &mut overlay.values {
                value["metadata"]["annotations"] = json!({"x": "y"});
            }
        },
    ),
];

#[test]
fn a_mistake_in_an_overlay_is_told_before_anything_is_applied() -> Result<()> {
    on_mesh(async |mesh| {
        for (case, sentence, change) in MISTAKES {
            let mut overlay = example()?;
            change(&mut overlay);
            let said = format!("{:#}", mesh.apply(overlay).await.expect_err(case));
            assert!(said.contains(sentence), "{case}: {said}");
        }
        mesh.works().await
    })
}

/// By environment variables, as the simple way has it.
#[test]
fn keys_come_by_environment_variables_too() -> Result<()> {
    on_mesh(async |mesh| {
        let variables: Value = mesh.cluster.secrets[1]
            .by_name()
            .map(|(name, value)| (name.to_uppercase().replace('-', "_"), json!(value)))
            .collect();
        mesh.cluster
            .apply_objects(&[json!({
                "apiVersion": "v1", "kind": "Secret", "stringData": variables,
                "metadata": {"name": "refund-environment", "namespace": NAMESPACE},
            })])
            .await?;
        let mut overlay = example()?;
        overlay.components.push("environment".into());
        for value in &mut overlay.values {
            by_environment(value);
        }
        mesh.apply(overlay).await?;
        mesh.pods += 1;
        let new = Pod::start(&mesh.cluster, &module()?, mesh.pods).await?;
        std::mem::replace(&mut mesh.pod, new).terminate().await?;
        mesh.works().await?;
        assert_eq!(mesh.doctor().await?, [""; 0]);
        mesh.restore().await
    })
}

/// Puts the variable in place of every header.
fn by_environment(value: &mut Value) {
    if let Some(header) = value.get("header").and_then(Value::as_str) {
        let name = header.trim_start_matches("x-refund-");
        *value = json!({"env": name.to_uppercase().replace('-', "_")});
        return;
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(by_environment),
        Value::Object(members) => members.values_mut().for_each(by_environment),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
