//! The filter in a team's own Envoy: where its route stands among others, who is let in, and what is missing.

use crate::common::{FOUR, Problem, asked, assert_problem, of, unknown};
use anyhow::Result;
use gateway_testbed::{
    Answer, Gateway, Options, PATH, SecretsBy, cluster, parse, project, route_mut,
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

/// A virtual host for the refunds, one for the providers' routes, and one for everything else. Only the first asks for a token,
/// by Envoy's rbac filter on its routes.
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
            // It would send the call to another provider's address: a stranger's as far as this one is concerned.
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
