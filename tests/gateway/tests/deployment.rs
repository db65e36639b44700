//! The filter in a team's own Envoy: where its route stands among others, who is let in, and what
//! is missing.

use crate::common::{FOUR, Problem, asked, assert_problem, of, unknown};
use anyhow::Result;
use gateway_testbed::{
    Answer, Gateway, Options, PATH, SecretsBy, change_plugin, cluster, parse, parts, project,
    route_mut,
};
use provider_simulator::Provider::{self, Moyasar};
use serde_json::{Value, json};

const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

/// The host that the team has given to its refunds.
const HOST: &str = "refunds.corp";

const DENIED: Problem = Problem {
    code: "access-denied",
    status: 403,
    outcome: "not_refunded",
    retry: "same_key",
};

fn manager(config: &mut Value) -> &mut Value {
    config.pointer_mut(MANAGER).expect("the manager")
}

/// Puts a filter in front of all others.
fn put_first(config: &mut Value, filter: Value) {
    let filters = manager(config)["http_filters"].as_array_mut();
    filters.expect("the filters").insert(0, filter);
}

/// A virtual host for the refunds, one for the providers' routes, and one for everything else. Only
/// the first asks for a token, by Envoy's rbac filter on its routes.
fn with_a_token_asked_for_by_route(config: &mut Value) {
    const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3";
    let empty = json!({"name": "team-rbac", "typed_config": {"@type": format!("{RBAC}.RBAC")}});
    put_first(config, empty);
    let has_token = json!({"header": {"name": "x-token", "string_match": {"exact": "right"}}});
    let asks = json!({"@type": format!("{RBAC}.RBACPerRoute"), "rbac": {"rules": {"action": "ALLOW", "policies": {
        "token": {"permissions": [has_token], "principals": [{"any": true}]},
    }}}});
    for route in ["refunds", "refunds-preview"] {
        let route = route_mut(config, route).expect("the route");
        route["typed_per_filter_config"]["team-rbac"] = asks.clone();
    }
    let hosts = &mut manager(config)["route_config"]["virtual_hosts"];
    let routes = hosts[0]["routes"].as_array().cloned().unwrap_or_default();
    let pick = |keep: fn(&str) -> bool| -> Vec<Value> {
        let picked = routes
            .iter()
            .filter(|route| keep(route["name"].as_str().expect("a name")));
        picked.cloned().collect()
    };
    *hosts = json!([
        {"name": "refunds", "domains": [HOST], "routes": pick(|name| name.starts_with("refunds"))},
        {"name": "providers", "domains": FOUR.map(Provider::host),
         "routes": pick(|name| FOUR.map(cluster).contains(&name))},
        {"name": "other", "domains": ["*"], "routes": pick(|name| name == "other")},
    ]);
}

/// A call with this host, and with a token where there is one.
async fn call(gateway: &Gateway, host: &str, token: Option<&str>, body: &Value) -> Result<Answer> {
    let mut call = reqwest::Client::new()
        .post(gateway.url())
        .header("host", host)
        .header("content-type", "application/json")
        .header("idempotency-key", uuid::Uuid::new_v4().to_string());
    if let Some(token) = token {
        call = call.header("x-token", token);
    }
    Answer::read(call.body(body.to_string()).send().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_host_passes_by_an_authentication_that_hangs_on_the_refunds_route() -> Result<()> {
    let gateway = Gateway::start(Options::changed(with_a_token_asked_for_by_route)).await?;
    for provider in FOUR {
        let body = of(provider, 1, "1.00");
        for token in [None, Some("wrong")] {
            let answer = call(&gateway, HOST, token, &body).await?;
            assert_problem(&format!("{provider:?}, {token:?}"), &answer, DENIED);
            for host in FOUR
                .map(Provider::host)
                .into_iter()
                .chain(["anything.example"])
            {
                let answer = call(&gateway, host, token, &body).await?;
                assert_eq!(
                    answer.status, 404,
                    "{provider:?}, {host}, {token:?}: {answer:?}"
                );
            }
        }
        assert_eq!(gateway.simulators.received(provider), 0, "{provider:?}");
        let answer = call(&gateway, HOST, Some("right"), &body).await?;
        assert!(answer.status < 300, "{provider:?}: {answer:?}");
        assert_eq!(gateway.simulators.received(provider), 1, "{provider:?}");
    }
    Ok(())
}

/// What the filter's `disabled` in the chain is for.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_is_on_everywhere_lets_another_host_pass_by() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        with_a_token_asked_for_by_route(config);
        let filters = manager(config)["http_filters"].as_array_mut();
        for filter in filters.into_iter().flatten() {
            filter["disabled"] = json!(false);
        }
    }))
    .await?;
    let answer = call(&gateway, "anything.example", None, &of(Moyasar, 1, "1.00")).await?;
    assert_eq!(answer.body["status"], "succeeded", "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_envoy_refuses_in_front_is_a_problem_of_the_contract() -> Result<()> {
    let limit = json!({"name": "team-limit", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "team",
        "token_bucket": {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "3600s"},
        "filter_enabled": {"default_value": {"numerator": 100}},
        "filter_enforced": {"default_value": {"numerator": 100}},
    }});
    let deny = json!({"name": "team-rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": "DENY", "policies": {"all": {
            "permissions": [{"any": true}], "principals": [{"any": true}]}}},
    }});
    let jwt = json!({"name": "team-jwt", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"team": {"issuer": "https://corp.example", "local_jwks": {"inline_string": r#"{"keys": [{"kty": "oct", "alg": "HS256", "kid": "1", "k": "Y29ycA"}]}"#}}},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "team"}}],
    }});
    for (case, filter, status, spent) in [
        ("rbac", deny, 403, false),
        ("jwt_authn", jwt, 401, false),
        ("local_ratelimit", limit, 429, true),
    ] {
        let gateway = Gateway::start(Options {
            // One worker: a bucket of its own each.
            concurrency: 1,
            ..Options::changed(move |config| put_first(config, filter))
        })
        .await?;
        if spent {
            gateway.refund("first", &of(Moyasar, 1, "1.00")).await?;
        }
        let received = gateway.simulators.received(Moyasar);
        let code = if status == 429 {
            "too-many-requests"
        } else {
            "access-denied"
        };
        let denied = Problem {
            code,
            status,
            ..DENIED
        };
        let body = of(Moyasar, 2, "1.00");
        let answer = gateway.refund("k-1", &body).await?;
        assert_problem(case, &answer, denied);
        let preview = reqwest::Client::new()
            .post(format!("{}/preview", gateway.url()))
            .header("content-type", "application/json")
            .header("idempotency-key", "k-1")
            .body(body.to_string());
        let answer = Answer::read(preview.send().await?).await?;
        assert_problem(&format!("{case}, preview"), &answer, denied);
        let answer = gateway
            .look_up(&[("provider", "moyasar"), ("payment_id", "x"), ("key", "k-1")])
            .await?;
        assert_problem(&format!("{case}, look-up"), &answer, asked(code, status));
        // Other applications' answers stay as they are.
        let url = gateway.url().replace(PATH, "/other");
        let other = Answer::read(reqwest::get(url).await?).await?;
        assert_eq!(other.status, status, "{case}: {other:?}");
        assert!(
            !other.text.contains("urn:refund-filter"),
            "{case}: {other:?}"
        );
        assert_eq!(gateway.simulators.received(Moyasar), received, "{case}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_is_no_providers_gets_neither_credentials_nor_refund() -> Result<()> {
    type Change = fn(&mut Value, &str);
    let changes: [(&str, Change); 2] = [
        ("the team's catch-all stands in front", |config, _| {
            let routes =
                manager(config)["route_config"]["virtual_hosts"][0]["routes"].as_array_mut();
            let routes = routes.expect("routes");
            let refunds = routes.iter().position(|route| route["name"] == "refunds");
            let refunds = routes.remove(refunds.expect("the refunds' own"));
            // It would send the call to another provider's address: a stranger's as far as this one
            // is concerned.
            let any =
                json!({"name": "any", "match": {"prefix": "/"}, "route": {"cluster": "moyasar"}});
            routes.splice(0..0, [refunds, any]);
        }),
        ("a provider's route is not marked", |config, provider| {
            let route = route_mut(config, provider).expect("its route");
            route.as_object_mut().expect("a route").remove("metadata");
        }),
    ];
    for (case, change) in changes {
        for provider in FOUR {
            let case = format!("{provider:?}: {case}");
            let changed = move |config: &mut Value| change(config, cluster(provider));
            let gateway = Gateway::start(Options::changed(changed)).await?;
            let answer = gateway.refund("k-1", &of(provider, 1, "1.00")).await?;
            let problem = Problem {
                outcome: "not_refunded",
                retry: "same_key",
                ..unknown(provider, "gateway-error", 503)
            };
            assert_problem(&case, &answer, problem);
            for each in FOUR {
                assert_eq!(gateway.simulators.received(each), 0, "{case}, at {each:?}");
            }
        }
    }
    Ok(())
}

/// A route that is marked as the provider's, and leads elsewhere: Envoy shows it at the reply alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_route_to_another_cluster_takes_one_refund_and_no_more() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        // Another name for the provider's own address: so the simulator refunds, and says so.
        for name in FOUR.map(cluster) {
            let clusters = &mut config["static_resources"]["clusters"];
            let clusters = clusters.as_array_mut().expect("clusters");
            let own = clusters.iter().find(|cluster| cluster["name"] == name);
            let mut other = own.expect("its own").clone();
            other["name"] = json!(format!("{name}-elsewhere"));
            clusters.push(other);
            let route = route_mut(config, name).expect("its route");
            route["route"]["cluster"] = json!(format!("{name}-elsewhere"));
        }
    }))
    .await?;
    for provider in FOUR {
        let case = format!("{provider:?}");
        let key = |nth: u64| format!("{provider:?}-{nth}");
        let answer = gateway.refund(&key(1), &of(provider, 1, "1.00")).await?;
        assert_problem(&case, &answer, unknown(provider, "gateway-error", 500));
        let received = gateway.simulators.received(provider);
        assert_eq!(received, 1, "{case}");
        // Whichever worker has them: each call has a connection of its own.
        for nth in 2..10 {
            let answer = gateway
                .refund(&key(nth), &of(provider, nth, "1.00"))
                .await?;
            let problem = Problem {
                outcome: "not_refunded",
                retry: "same_key",
                ..unknown(provider, "gateway-error", 503)
            };
            assert_problem(&case, &answer, problem);
        }
        assert_eq!(gateway.simulators.received(provider), received, "{case}");
        let alarm = format!(
            "{0}: its route led to the cluster {0}-elsewhere",
            cluster(provider)
        );
        assert_eq!(gateway.log().matches(&alarm).count(), 1, "{case}");
        let counted = format!(
            "wasmcustom.refund.misrouted_total.provider.{}",
            cluster(provider)
        );
        assert_eq!(
            gateway.stats(&counted).await?.get(&counted),
            Some(&1),
            "{case}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_the_filter_says_so() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| {
        let filters = manager(config)["http_filters"].as_array_mut();
        filters
            .expect("filters")
            .retain(|filter| filter["name"] != "refund_filter");
        for route in ["refunds", "refunds-preview"] {
            let route = route_mut(config, route).expect("the route");
            route
                .as_object_mut()
                .expect("a route")
                .remove("typed_per_filter_config");
        }
    }))
    .await?;
    let answer = gateway.refund("k-1", &of(Moyasar, 1, "1.00")).await?;
    let problem = Problem {
        retry: "same_key",
        ..unknown(Moyasar, "gateway-error", 500)
    };
    assert_problem("no filter", &answer, problem);
    assert!(
        answer.text.contains("not in this gateway's chain"),
        "{answer:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_small_start_refunds_looks_up_and_does_not_refund_twice() -> Result<()> {
    let text = std::fs::read_to_string(project().join("envoy/minimal.yaml"))?;
    assert!(
        text.lines().count() <= 120,
        "a reader understands it in five minutes"
    );
    let gateway = Gateway::start(Options {
        base: Some(parse(&text)?),
        secrets_by: SecretsBy::FilterState,
        ..Options::default()
    })
    .await?;
    let body = of(Moyasar, 1, "1.00");
    for replayed in ["", "true"] {
        let answer = gateway.refund("k-1", &body).await?;
        assert_eq!(answer.body["status"], "succeeded", "{answer:?}");
        assert_eq!(
            answer.header("idempotency-replayed"),
            replayed,
            "{answer:?}"
        );
    }
    let payment = body["payment"]["id"].as_str().expect("an id");
    let asked = [
        ("provider", "moyasar"),
        ("payment_id", payment),
        ("key", "k-1"),
    ];
    let answer = gateway.look_up(&asked).await?;
    assert_eq!(answer.body["status"], "succeeded", "{answer:?}");
    assert_eq!(gateway.simulators.ledger(Moyasar).len(), 1);
    Ok(())
}

// ---- who calls

const NOT_ALLOWED: Problem = Problem {
    code: "caller-not-allowed",
    status: 403,
    outcome: "not_refunded",
    retry: "corrected",
};

/// Tokens of `auth-jwt.yaml`'s issuer for `refunds`, signed with HS256 and the key of [`JWKS`]: of
/// the caller who is named, of another one, of one without a name, and of the first signed with
/// another key.
const RIGHT: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2xvZ2luLmNvcnAuZXhhbXBsZSIsImF1ZCI6InJlZnVuZHMiLCJzdWIiOiJyZXR1cm5zIn0.cB3BrHxICNhY2YKz3aq7h7q7SAlN59eDMOQuDoNR9Og";
const OTHER: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2xvZ2luLmNvcnAuZXhhbXBsZSIsImF1ZCI6InJlZnVuZHMiLCJzdWIiOiJzaG9wIn0.fHvnk1lAaihRf9Ikp4EOcG8sDvGZcsvipIBgIwSVm2w";
const NAMELESS: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2xvZ2luLmNvcnAuZXhhbXBsZSIsImF1ZCI6InJlZnVuZHMiLCJzdWIiOiIifQ.wnj4Sg8gEhK84P4DdjoMgc7Zm0P0z9y_uDgQw_AI-Po";
const FORGED: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2xvZ2luLmNvcnAuZXhhbXBsZSIsImF1ZCI6InJlZnVuZHMiLCJzdWIiOiJyZXR1cm5zIn0.j1ESLIGR70F-K7BVSRikNRTSqz7tXqewOSxjgCJqXKI";
const JWKS: &str = r#"{"keys": [{"kty": "oct", "alg": "HS256", "kid": "1", "k": "YSBrZXkgb2YgdGhlc2UgdGVzdHMsIDMyIGJ5dGVzIG9yIG1vcmU"}]}"#;

/// Tells the filter who calls, and who may use which provider, as the parts of an example have it.
fn tell_callers(config: &mut Value, parts: &Value) {
    let (caller, callers) = (parts["caller"].clone(), parts["callers"].clone());
    change_plugin(config, |plugin| {
        plugin["caller"] = caller;
        let providers = plugin["providers"].as_object_mut().expect("providers");
        for provider in providers.values_mut() {
            provider["callers"] = callers.clone();
        }
    })
    .expect("the plugin's configuration");
}

/// `auth-jwt.yaml` in envoy.yaml; `last`: behind the filter, where it does not belong.
fn with_tokens(config: &mut Value, last: bool) {
    let mut parts = parts("auth-jwt.yaml").expect("auth-jwt.yaml");
    let mut filter = parts["http_filter"].take();
    filter["typed_config"]["providers"]["corp"]["local_jwks"] = json!({"inline_string": JWKS});
    if last {
        let filters = manager(config)["http_filters"]
            .as_array_mut()
            .expect("filters");
        let ours = filters
            .iter()
            .position(|filter| filter["name"] == "refund_filter");
        filters.insert(ours.expect("the filter") + 1, filter);
    } else {
        put_first(config, filter);
    }
    tell_callers(config, &parts);
}

async fn with_token(gateway: &Gateway, token: Option<&str>, body: &Value) -> Result<Answer> {
    let mut call = reqwest::Client::new()
        .post(gateway.url())
        .header("content-type", "application/json")
        .header("idempotency-key", "0f8fad5b-d9cb-469f-a165-70867728950e");
    if let Some(token) = token {
        call = call.header("authorization", format!("Bearer {token}"));
    }
    Answer::read(call.body(body.to_string()).send().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_says_who_refunds() -> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| with_tokens(config, false))).await?;
    let denied = Problem {
        status: 401,
        ..DENIED
    };
    let body = of(Moyasar, 1, "1.00");
    for (case, token, problem) in [
        ("none", None, denied),
        ("forged", Some(FORGED), denied),
        ("another caller's", Some(OTHER), NOT_ALLOWED),
        ("without a name", Some(NAMELESS), NOT_ALLOWED),
    ] {
        assert_problem(case, &with_token(&gateway, token, &body).await?, problem);
    }
    assert_eq!(gateway.simulators.received(Moyasar), 0);
    let answer = with_token(&gateway, Some(RIGHT), &body).await?;
    assert_eq!(answer.body["status"], "succeeded", "{answer:?}");
    // The key is this caller's: what the provider got is not the UUID that another one could have
    // chosen, too.
    let request = gateway.simulators.last_request(Moyasar).expect("a request");
    let sent: Value = serde_json::from_slice(&request.body)?;
    assert_ne!(
        sent["transaction_id"],
        "0f8fad5b-d9cb-469f-a165-70867728950e"
    );
    assert!(
        gateway
            .log()
            .matches("whoever reaches the filter may refund")
            .count()
            == 0
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_in_front_of_the_authentication_refunds_nobody_where_it_asks_who_calls()
-> Result<()> {
    let gateway = Gateway::start(Options::changed(|config| with_tokens(config, true))).await?;
    for token in [None, Some(FORGED), Some(RIGHT)] {
        let answer = with_token(&gateway, token, &of(Moyasar, 1, "1.00")).await?;
        assert_problem("the wrong order", &answer, NOT_ALLOWED);
    }
    assert_eq!(gateway.simulators.received(Moyasar), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_callers_says_once_who_may_refund() -> Result<()> {
    let gateway = Gateway::start(Options::default()).await?;
    let said = gateway
        .log()
        .matches("whoever reaches the filter may refund")
        .count();
    assert_eq!(said, 1, "{}", gateway.log());
    Ok(())
}

/// An authority, and certificates of it: for a name, as PEM of the certificate and of its key.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: rcgen::Certificate,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = rcgen::CertificateParams::new([])?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate()?;
        let root = params.self_signed(&key)?;
        Ok(Authority {
            issuer: rcgen::Issuer::new(params, key),
            root,
        })
    }

    fn certificate(&self, name: rcgen::SanType) -> Result<(rcgen::Certificate, rcgen::KeyPair)> {
        let mut params = rcgen::CertificateParams::new([])?;
        params.subject_alt_names = vec![name];
        // Else it has its authority's name, and looks signed by itself.
        params.distinguished_name = rcgen::DistinguishedName::new();
        let key = rcgen::KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }
}

/// Makes a refund call over TLS with this certificate; none where the gateway does not let it in.
async fn over_tls(
    gateway: &Gateway,
    trusted: &rcgen::Certificate,
    own: Option<(rcgen::Certificate, rcgen::KeyPair)>,
    body: &Value,
) -> Result<Option<String>> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.der().clone())?;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match own {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
            config.with_client_auth_cert(vec![certificate.der().clone()], key.into())?
        }
    };
    let tcp = tokio::net::TcpStream::connect(gateway.address).await?;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    // With TLS 1.3 a client learns of a refused certificate at its first read.
    let Ok(mut stream) = connector.connect("gateway.corp".try_into()?, tcp).await else {
        return Ok(None);
    };
    let body = body.to_string();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: gateway.corp\r\nconnection: close\r\ncontent-type: application/json\r\n\
         idempotency-key: k-1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = Vec::new();
    // An end without close_notify is none of this test's business; what came before it is.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.read_to_end(&mut answer).await;
    Ok(Some(String::from_utf8(answer)?).filter(|answer| !answer.is_empty()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_says_who_refunds() -> Result<()> {
    let (gateways, callers, strangers) = (Authority::new()?, Authority::new()?, Authority::new()?);
    let (own, key) = gateways.certificate(rcgen::SanType::DnsName("gateway.corp".try_into()?))?;
    let (own_pem, key_pem, callers_pem) = (own.pem(), key.serialize_pem(), callers.root.pem());
    let gateway = Gateway::start(Options::changed(move |config| {
        let mut parts = parts("auth-mtls.yaml").expect("auth-mtls.yaml");
        let mut socket = parts["transport_socket"].take();
        let context = &mut socket["typed_config"]["common_tls_context"];
        context["tls_certificates"][0] = json!({
            "certificate_chain": {"inline_string": own_pem}, "private_key": {"inline_string": key_pem},
        });
        context["validation_context"]["trusted_ca"] = json!({"inline_string": callers_pem});
        config["static_resources"]["listeners"][0]["filter_chains"][0]["transport_socket"] = socket;
        tell_callers(config, &parts);
    }))
    .await?;
    let name = |text: &str| Ok::<_, anyhow::Error>(rcgen::SanType::URI(text.try_into()?));
    let named = "spiffe://corp.example/ns/shop/sa/returns";
    let body = of(Moyasar, 1, "1.00");
    let root = &gateways.root;
    for (case, own, code) in [
        ("none", None, None),
        (
            "of a stranger's authority",
            Some(strangers.certificate(name(named)?)?),
            None,
        ),
        (
            "another caller's",
            Some(callers.certificate(name("spiffe://corp.example/ns/shop/sa/other")?)?),
            Some("caller-not-allowed"),
        ),
        (
            "without a URI",
            Some(callers.certificate(rcgen::SanType::DnsName("returns".try_into()?))?),
            Some("caller-not-allowed"),
        ),
    ] {
        let answer = over_tls(&gateway, root, own, &body).await?;
        match code {
            None => assert_eq!(answer, None, "{case}"),
            Some(code) => assert!(
                answer.as_ref().is_some_and(|answer| answer.contains(code)),
                "{case}: {answer:?}"
            ),
        }
    }
    assert_eq!(gateway.simulators.received(Moyasar), 0);
    let answer = over_tls(
        &gateway,
        root,
        Some(callers.certificate(name(named)?)?),
        &body,
    )
    .await?;
    let answer = answer.expect("an answer");
    assert!(answer.contains("\"status\":\"succeeded\""), "{answer}");
    Ok(())
}
