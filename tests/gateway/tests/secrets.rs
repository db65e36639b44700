//! Secrets by every way: where they come from, what happens where one is missing, how a new one
//! comes into use, and that none comes out anywhere.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use crate::common::{FOUR, Problem, assert_problem, of, secrets, taken};
use anyhow::{Context as _, Result, ensure};
use gateway_testbed::openbao::OpenBao;
use gateway_testbed::{
    Answer, Gateway, Options, Secrets, SecretsBy, change_plugin, cluster, filter_state,
    inject_credentials, route_mut, sign_by_transit,
};
use provider_simulator::{Fault, Provider, Received, Reply};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use Provider::{Bbmsl, Begateway, Bog, BogToken, Moyasar};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a provider's secret stands: in its SDS file, and from there in the filter state or a
/// request header.
struct Place {
    provider: Provider,
    /// The pointer to it in the plugin's configuration.
    pointer: String,
    file: &'static str,
    state: String,
    header: String,
}

static PLACES: LazyLock<[Place; FOUR.len()]> = LazyLock::new(|| {
    FOUR.map(|provider| {
        let secret = &provider.declared().secret;
        Place {
            provider,
            pointer: format!("/providers/{}{}", cluster(provider), secret.at),
            file: secret.name,
            state: filter_state(secret.name),
            header: format!("x-refund-{}", secret.name),
        }
    })
});

const HTTP_FILTERS: &str =
    "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters";

/// The gateway's own fault, before anything was sent.
const GATEWAY_ERROR: Problem = Problem {
    retry: "same_key",
    ..Problem::certain("gateway-error", 503)
};
const UNSIGNED: Problem = Problem {
    retry: "same_key",
    ..Problem::certain("signing-unavailable", 503)
};
const AUTH_FAILED: Problem = Problem {
    retry: "same_key",
    ..Problem::certain("provider-auth-failed", 502)
};

fn options() -> Options {
    Options {
        secrets: Some(secrets()),
        ..Options::default()
    }
}

fn changed(change: impl FnOnce(&mut Value) + Send + 'static) -> Options {
    Options {
        secrets: Some(secrets()),
        ..Options::changed(change)
    }
}

/// An Envoy before 1.38 has no secret in filter state (`SECRETS_BY` tells so).
fn has_filter_state() -> bool {
    Options::default().secrets_by == SecretsBy::FilterState
}

/// The ways by SDS that this Envoy has.
fn by_sds() -> Vec<SecretsBy> {
    let mut ways = vec![SecretsBy::Header];
    if has_filter_state() {
        ways.push(SecretsBy::FilterState);
    }
    ways
}

/// 1.00 of a provider's nth fresh order.
fn refund(provider: Provider, nth: u64) -> Value {
    of(provider, nth, "1.00")
}

async fn call(gateway: &Gateway, provider: Provider, nth: u64) -> Result<Answer> {
    let key = format!("key-{provider:?}-{nth}");
    gateway.refund(&key, &refund(provider, nth)).await
}

#[track_caller]
fn assert_refunded(case: &str, provider: Provider, answer: &Answer) {
    let expected = taken(provider).0;
    assert_eq!(answer.status, expected, "{case}: {}", answer.text);
}

fn received(gateway: &Gateway) -> u64 {
    let counts = Provider::ALL.map(|provider| gateway.simulators.received(provider));
    counts.iter().sum()
}

fn filters(config: &mut Value) -> &mut Vec<Value> {
    config
        .pointer_mut(HTTP_FILTERS)
        .and_then(Value::as_array_mut)
        .expect("filters")
}

fn values(request: &Received, name: &str) -> Vec<String> {
    let values = request.headers_named(name);
    values
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .collect()
}

/// Calls until it is so; Envoy takes a moved file in its own time.
async fn until(what: &str, so: impl AsyncFn(u64) -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for nth in 1.. {
        if so(nth).await? {
            break;
        }
        ensure!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// How often Envoy has taken a secret from its file.
async fn updates(gateway: &Gateway, file: &str) -> Result<u64> {
    let text = gateway
        .admin(&format!("/stats?filter=sds\\.{file}\\.update_success"))
        .await?;
    let line = text.lines().next().context("no such secret")?;
    let (_, count) = line.rsplit_once(": ").context(line.to_owned())?;
    Ok(count.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_giving_a_secret_serves_every_provider() -> Result<()> {
    let mut ways: Vec<(&str, Options)> = vec![
        (
            "environment",
            Options {
                secrets_by: SecretsBy::Environment,
                ..options()
            },
        ),
        ("inline", inline()?),
    ];
    for by in by_sds() {
        let options = Options {
            secrets_by: by,
            ..options()
        };
        ways.push((
            if by == SecretsBy::Header {
                "header"
            } else {
                "filter state"
            },
            options,
        ));
    }
    for (way, options) in ways {
        let gateway = Gateway::start(options).await.context(way)?;
        for provider in FOUR {
            for nth in 1..=2 {
                let answer = call(&gateway, provider, nth).await?;
                assert_refunded(way, provider, &answer);
            }
            assert_eq!(gateway.simulators.uses(provider), [2], "{way}");
            for exchange in gateway.simulators.requests(provider) {
                for (name, _) in exchange.request.headers {
                    assert!(!name.starts_with("x-refund"), "{way}: {name}");
                }
            }
        }
        assert_eq!(gateway.simulators.token_fetches(), 1, "{way}");
    }
    Ok(())
}

/// Everything in the plugin's configuration itself; the key in PEM of many lines.
fn inline() -> Result<Options> {
    let secrets = secrets();
    let texts = [
        secrets.of(Bog).to_owned(),
        secrets.of(Moyasar).to_owned(),
        secrets.of(Begateway).to_owned(),
        secrets.of(Bbmsl).to_owned(),
    ];
    Ok(Options {
        secrets: Some(secrets),
        // Whatever this Envoy has; nothing of it is left in the configuration.
        secrets_by: SecretsBy::Environment,
        ..changed(move |config| {
            change_plugin(config, |plugin| {
                for (place, text) in PLACES.iter().zip(texts) {
                    *plugin.pointer_mut(&place.pointer).expect("a secret") =
                        json!({"inline": text});
                }
            })
            .expect("a plugin");
        })
    })
}

// ---- where one is missing

/// Each provider's answer and one line in the log name the place; nothing is sent, and no value is
/// shown.
async fn assert_missing(case: &str, gateway: &Gateway, places: &[(&Place, String)]) -> Result<()> {
    let before = received(gateway);
    for (place, named) in places {
        let expected = if place.provider.declared().secret.signs() {
            UNSIGNED
        } else {
            GATEWAY_ERROR
        };
        for nth in 1..=2 {
            let answer = call(gateway, place.provider, nth).await?;
            assert_problem(case, &answer, expected);
            let detail = answer.body["detail"].as_str().unwrap_or_default();
            assert!(detail.contains(named.as_str()), "{case}: {detail}");
            assert!(detail.starts_with("Nothing was sent."), "{case}: {detail}");
            assert!(!answer.text.contains("canary"), "{case}: {}", answer.text);
        }
        // Said once, not with every call. (These gateways have one worker.)
        let log = gateway.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(named)).collect();
        assert_eq!(lines.len(), 1, "{case}: {log}");
        assert!(lines[0].contains("[error]"), "{case}: {}", lines[0]);
    }
    assert_eq!(received(gateway), before, "{case}");
    assert!(!gateway.log().contains("canary-"), "{case}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_missing_in_the_filter_state_is_named_and_nothing_is_sent() -> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    type Break = fn(&mut Value, &Path);
    let unset: Break = |config, _| {
        for filter in filters(config) {
            if filter["name"] == "envoy.filters.http.set_filter_state" {
                filter["typed_config"]["on_request_headers"]
                    .as_array_mut()
                    .expect("a list")
                    .retain(|state| state["object_key"] == "other");
            }
        }
    };
    let untouched: Break = |_, _| {};
    let without_resource: Break = |_, folder| {
        for place in PLACES.iter() {
            std::fs::write(
                folder.join(format!("{}.yaml", place.file)),
                r#"{"resources": []}"#,
            )
            .expect("a file");
        }
    };
    for (case, change, value) in [
        ("no state is set", unset, None),
        (
            "an empty or blank secret",
            untouched,
            Some(["", " \n", "", "\t"]),
        ),
        ("a file without the secret", without_resource, None),
    ] {
        let values = PLACES.iter().zip(value.into_iter().flatten());
        let values = values.map(|(place, value)| (place.file, value.to_owned()));
        let gateway = Gateway::start(Options {
            concurrency: 1,
            change: Box::new(change),
            more_secrets: values.collect(),
            ..options()
        })
        .await
        .context(case)?;
        let places: Vec<_> = PLACES
            .iter()
            .map(|place| {
                (
                    place,
                    format!("the filter state {} is missing", place.state),
                )
            })
            .collect();
        assert_missing(case, &gateway, &places).await?;
        // The secret comes after all: the next call has it.
        if case != "no state is set" {
            gateway.rotate("moyasar-api-key", gateway.secrets.of(Moyasar))?;
            until(case, async |nth| {
                Ok(call(&gateway, Moyasar, 100 + nth).await?.status == 200)
            })
            .await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_file_that_goes_away_changes_nothing() -> Result<()> {
    for by in by_sds() {
        let gateway = Gateway::start(Options {
            secrets_by: by,
            ..options()
        })
        .await?;
        for place in PLACES.iter() {
            std::fs::remove_file(
                gateway
                    .folder()
                    .join("secrets")
                    .join(format!("{}.yaml", place.file)),
            )?;
        }
        // Another file is taken, so Envoy has looked into the folder.
        gateway.rotate("begateway-secret-key", "canary-other")?;
        until("the other file", async |nth| {
            Ok(call(&gateway, Begateway, nth).await?.status == 502)
        })
        .await?;
        for provider in [Bog, Moyasar, Bbmsl] {
            let answer = call(&gateway, provider, 1).await?;
            assert_refunded(&format!("{by:?}"), provider, &answer);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_header_is_named_and_nothing_is_sent() -> Result<()> {
    let gateway = Gateway::start(Options {
        secrets_by: SecretsBy::Header,
        concurrency: 1,
        ..changed(|config| {
            filters(config).retain(|filter| {
                !filter["name"]
                    .as_str()
                    .unwrap_or_default()
                    .starts_with("refund.")
            });
        })
    })
    .await?;
    let places: Vec<_> = PLACES
        .iter()
        .map(|place| {
            let named = format!("the request header {} is missing", place.header);
            (place, named)
        })
        .collect();
    assert_missing("no injector", &gateway, &places).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_logged_and_counted_for_its_provider() -> Result<()> {
    let gateway = Gateway::start(Options {
        secrets_by: SecretsBy::Header,
        ..changed(|config| {
            filters(config).retain(|filter| {
                !filter["name"]
                    .as_str()
                    .unwrap_or_default()
                    .starts_with("refund.")
            });
        })
    })
    .await?;
    for place in PLACES.iter() {
        call(&gateway, place.provider, 1).await?;
    }
    let log = gateway.log();
    let stats = gateway.admin("/stats/prometheus").await?;
    let stats: Vec<_> = stats
        .lines()
        .filter(|line| line.starts_with("refund_calls_total"))
        .collect();
    for place in PLACES.iter() {
        let name = gateway_testbed::cluster(place.provider);
        let outcome = if place.provider.declared().secret.signs() {
            UNSIGNED.code
        } else {
            GATEWAY_ERROR.code
        };
        let counted = format!(
            "refund_calls_total{{provider=\"{name}\",kind=\"refund\",outcome=\"not_refunded\",code=\"{outcome}\",replayed=\"false\"}} 1"
        );
        assert!(stats.contains(&counted.as_str()), "{counted}: {stats:?}");
        let line = log.lines().find(|line| line.contains(&place.header));
        let line = line.context("no line")?;
        assert!(line.contains(&format!(" {name}: ")), "{line}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_injector_without_its_secret_lets_nothing_through() -> Result<()> {
    for place in [&PLACES[1], &PLACES[3]] {
        let gateway = Gateway::start(Options {
            secrets_by: SecretsBy::Header,
            more_secrets: vec![(place.file, String::new())],
            ..options()
        })
        .await?;
        let before = received(&gateway);
        for nth in 1..=2 {
            let answer = call(&gateway, place.provider, nth).await?;
            assert_problem(place.file, &answer, GATEWAY_ERROR);
            assert!(!answer.text.contains("canary"), "{}", answer.text);
        }
        // Nor does a caller's own take its place.
        let answer = with_header(&gateway, place, "canary-of-the-callers", 3).await?;
        assert_problem(place.file, &answer, GATEWAY_ERROR);
        assert_eq!(received(&gateway), before, "{}", place.file);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_environment_variable_stops_the_start_with_a_pointer() -> Result<()> {
    let secrets = secrets().with(Moyasar, "");
    let refused = Gateway::start(Options {
        secrets_by: SecretsBy::Environment,
        secrets: Some(secrets),
        ..options()
    })
    .await;
    let text = match refused {
        Ok(gateway) => panic!("it started: {}", gateway.log()),
        Err(error) => format!("{error:#}"),
    };
    assert!(
        text.contains(r#"configuration refused at "/providers/moyasar/api_key/env""#),
        "{text}"
    );
    assert!(!text.contains("canary-"), "{text}");
    Ok(())
}

// ---- headers that carry secrets

async fn with_header(gateway: &Gateway, place: &Place, value: &str, nth: u64) -> Result<Answer> {
    let response = reqwest::Client::new()
        .post(gateway.url())
        .header("content-type", "application/json")
        .header("idempotency-key", format!("callers-{}-{nth}", place.header))
        .header(&place.header, value)
        .body(refund(place.provider, nth).to_string())
        .send()
        .await?;
    Answer::read(response).await
}

/// What a caller may bring of its own for this provider: a sound secret of the wrong owner.
fn forged(place: &Place, other: &Secrets) -> String {
    match place.provider.declared().secret.signs() {
        true => other.line(place.provider),
        false => "canary-of-the-callers".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_own_secret_is_never_used() -> Result<()> {
    let other = Secrets::new()?;
    // Each of the two guards by itself: the one that strips, and the injector that overwrites.
    for case in ["as it is", "nothing stripped"] {
        let gateway = Gateway::start(Options {
            secrets_by: SecretsBy::Header,
            ..changed(move |config| {
                if case == "nothing stripped" {
                    strip_nothing(config);
                }
            })
        })
        .await?;
        for place in PLACES.iter() {
            let answer = with_header(&gateway, place, &forged(place, &other), 1).await?;
            assert_refunded(case, place.provider, &answer);
            assert_eq!(gateway.simulators.uses(place.provider), [1], "{case}");
            for exchange in gateway.simulators.requests(place.provider) {
                assert_no_secret_header(case, &exchange.request);
            }
        }
    }
    // Without an injector there is no secret, and the caller's, though it is the right one, is
    // none.
    let gateway = Gateway::start(Options {
        secrets_by: SecretsBy::Header,
        ..changed(|config| {
            filters(config).retain(|filter| {
                !filter["name"]
                    .as_str()
                    .unwrap_or_default()
                    .starts_with("refund.")
            });
        })
    })
    .await?;
    let secrets = gateway.secrets.clone();
    for place in PLACES.iter() {
        let right = secrets.line(place.provider);
        let answer = with_header(&gateway, place, &right, 1).await?;
        let expected = if place.provider.declared().secret.signs() {
            UNSIGNED
        } else {
            GATEWAY_ERROR
        };
        assert_problem(&place.header, &answer, expected);
    }
    assert_eq!(received(&gateway), 0);
    Ok(())
}

fn strip_nothing(config: &mut Value) {
    let manager = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
    config.pointer_mut(manager).expect("a manager")["early_header_mutation_extensions"] = json!([]);
}

#[track_caller]
fn assert_no_secret_header(case: &str, request: &Received) {
    for (name, value) in &request.headers {
        assert!(!name.starts_with("x-refund"), "{case}: {name}");
        let value = String::from_utf8_lossy(value);
        assert!(!value.contains("canary-of-the-callers"), "{case}: {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_reaches_other_applications() -> Result<()> {
    // As it is; without the injectors; without what strips as well, and the filter on every route,
    // so that it alone is left.
    for (strips, injects) in [(true, true), (true, false), (false, false)] {
        let case = format!("strips: {strips}, injects: {injects}");
        let gateway = Gateway::start(Options {
            secrets_by: SecretsBy::Header,
            ..changed(move |config| {
                if !strips {
                    strip_nothing(config);
                    let filters = filters(config).iter_mut();
                    let mut ours = filters.filter(|filter| filter["name"] == "refund_filter");
                    ours.next().expect("the filter")["disabled"] = json!(false);
                }
                if !injects {
                    filters(config).retain(|filter| {
                        !filter["name"]
                            .as_str()
                            .unwrap_or_default()
                            .starts_with("refund.")
                    });
                }
                let route = route_mut(config, "other").expect("a route");
                route
                    .as_object_mut()
                    .expect("an object")
                    .remove("direct_response");
                // The simulator plays another application: it records, and knows no such path.
                route["route"] =
                    json!({"cluster": "moyasar", "host_rewrite_literal": "pg.moyasar.com"});
            })
        })
        .await?;
        let mut sent = 0;
        for http2 in [false, true] {
            let client = reqwest::Client::builder();
            let client = if http2 {
                client.http2_prior_knowledge()
            } else {
                client
            }
            .build()?;
            for (method, path, body) in [
                ("GET", "/", None),
                ("GET", "/v1/refunds/", None),
                ("GET", "/v1/refundsx", None),
                ("POST", "/V1/refunds", Some("{}")),
                ("POST", "/other?path=/v1/refunds", Some("a body")),
                ("OPTIONS", "/other", None),
                ("DELETE", "/v1/refunds/x", None),
            ] {
                let mut request = client
                    .request(method.parse()?, format!("http://{}{path}", gateway.address))
                    .header("x-other", "kept");
                for place in PLACES.iter() {
                    // Two of a kind, in whatever case.
                    request = request
                        .header(&place.header, "canary-of-the-callers")
                        .header(place.header.to_uppercase(), "canary-of-the-callers-2");
                }
                if let Some(body) = body {
                    request = request.body(body);
                }
                let case = format!("{case}: {method} {path}, HTTP/2: {http2}");
                let response = request.send().await.context(case.clone())?;
                let answer = Answer::read(response).await?;
                assert!(!format!("{answer:?}").contains("canary"), "{case}");
                sent += 1;
                assert_eq!(gateway.simulators.received(Moyasar), sent, "{case}");
                let request = gateway.simulators.last_request(Moyasar).expect("a request");
                assert_eq!(
                    (request.method.as_str(), request.path.as_str()),
                    (method, path)
                );
                assert_eq!(values(&request, "x-other"), ["kept"], "{case}");
                assert_no_secret_header(&case, &request);
                for (name, value) in &request.headers {
                    let value = String::from_utf8_lossy(value);
                    assert!(!value.contains("canary"), "{case}: {name}: {value}");
                }
            }
        }
    }
    Ok(())
}

// ---- rotation

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_api_key_is_used_at_the_next_call() -> Result<()> {
    for by in by_sds() {
        let gateway = Gateway::start(Options {
            secrets_by: by,
            more_secrets: vec![
                ("moyasar-api-key", "canary-former".to_owned()),
                ("begateway-secret-key", "canary-former".to_owned()),
            ],
            ..options()
        })
        .await?;
        let secrets = &gateway.secrets;
        for (provider, file, right, former, next) in [
            (
                Moyasar,
                "moyasar-api-key",
                secrets.of(Moyasar),
                "Bearer canary-former",
                "Bearer canary-moyasar-api-key",
            ),
            (
                Begateway,
                "begateway-secret-key",
                secrets.of(Begateway),
                // 361:canary-former
                "Basic MzYxOmNhbmFyeS1mb3JtZXI=",
                // 361:canary-begateway-secret-key
                "Basic MzYxOmNhbmFyeS1iZWdhdGV3YXktc2VjcmV0LWtleQ==",
            ),
        ] {
            let case = format!("{by:?}, {file}");
            let shown = || {
                let request = gateway.simulators.last_request(provider);
                request.map(|request| values(&request, "authorization"))
            };
            assert_problem(&case, &call(&gateway, provider, 1).await?, AUTH_FAILED);
            assert_eq!(shown(), Some(vec![former.to_owned()]), "{case}");
            let before = updates(&gateway, file).await?;
            gateway.rotate(file, right)?;
            until("Envoy takes the file", async |_| {
                Ok(updates(&gateway, file).await? > before)
            })
            .await?;
            // Each of the two workers gets it from Envoy's main thread in its own moment.
            until("every worker has it", async |nth| {
                for again in 0..10 {
                    let answer = call(&gateway, provider, nth * 100 + again).await?;
                    if answer.status != 200 {
                        assert_problem(&case, &answer, AUTH_FAILED);
                        return Ok(false);
                    }
                    assert_eq!(shown(), Some(vec![next.to_owned()]), "{case}");
                }
                Ok(true)
            })
            .await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_client_secret_is_used_at_the_next_fetch_and_not_before() -> Result<()> {
    // 10001:canary-former, 10001:canary-bog-client-secret, 10001:canary-next
    const FORMER: &str = "Basic MTAwMDE6Y2FuYXJ5LWZvcm1lcg==";
    const RIGHT: &str = "Basic MTAwMDE6Y2FuYXJ5LWJvZy1jbGllbnQtc2VjcmV0";
    const NEXT: &str = "Basic MTAwMDE6Y2FuYXJ5LW5leHQ=";
    const FILE: &str = "bog-client-secret";
    for by in by_sds() {
        let case = format!("{by:?}");
        let gateway = Gateway::start(Options {
            secrets_by: by,
            more_secrets: vec![(FILE, "canary-former".to_owned())],
            ..options()
        })
        .await?;
        let simulators = &gateway.simulators;
        let shown = || {
            let request = simulators.last_request(BogToken).expect("a fetch");
            values(&request, "authorization").join(", ")
        };
        assert_problem(&case, &call(&gateway, Bog, 1).await?, AUTH_FAILED);
        assert_eq!(
            (simulators.token_fetches(), shown()),
            (1, FORMER.to_owned())
        );

        // A fetch that was refused leaves nothing behind: the next call fetches with what is there
        // then.
        gateway.rotate(FILE, gateway.secrets.of(Bog))?;
        until("the right one is used", async |nth| {
            Ok(call(&gateway, Bog, 100 + nth).await?.status == 202)
        })
        .await?;
        assert_eq!(shown(), RIGHT, "{case}");

        // A token lives on, whatever its client's secret is now.
        let (fetches, before) = (simulators.token_fetches(), updates(&gateway, FILE).await?);
        gateway.rotate(FILE, "canary-next")?;
        until("Envoy takes the file", async |_| {
            Ok(updates(&gateway, FILE).await? > before)
        })
        .await?;
        for nth in 200..220 {
            assert_refunded(&case, Bog, &call(&gateway, Bog, nth).await?);
        }
        assert_eq!(simulators.token_fetches(), fetches, "{case}");

        // Its end is the new one's beginning.
        simulators.revoke_tokens();
        assert_problem(&case, &call(&gateway, Bog, 300).await?, AUTH_FAILED);
        assert_eq!(simulators.token_fetches(), fetches, "{case}");
        until("the next one is used", async |nth| {
            let answer = call(&gateway, Bog, 300 + nth).await?;
            if answer.status == 202 {
                // A worker that has not heard of it yet. Once more.
                assert_eq!(shown(), RIGHT, "{case}");
                simulators.revoke_tokens();
                return Ok(false);
            }
            assert_problem(&case, &answer, AUTH_FAILED);
            Ok(shown() == NEXT)
        })
        .await?;
        assert!(simulators.token_fetches() > fetches, "{case}");
    }
    Ok(())
}

// ---- credentials that Envoy injects

const INJECTED: [(Provider, &str, &str); 2] = [
    (
        Moyasar,
        "moyasar-authorization",
        "Bearer canary-moyasar-api-key",
    ),
    (
        Begateway,
        "begateway-authorization",
        "Basic MzYxOmNhbmFyeS1iZWdhdGV3YXktc2VjcmV0LWtleQ==",
    ),
];

fn injected(values: [&str; 2], then: fn(&mut Value)) -> Options {
    let values = INJECTED.iter().zip(values);
    Options {
        more_secrets: values
            .map(|((_, file, _), value)| (*file, value.to_owned()))
            .collect(),
        change: Box::new(move |config, folder| {
            inject_credentials(config, folder).expect("two clusters");
            then(config);
        }),
        ..options()
    }
}

/// A call that brings credentials of its own.
async fn with_authorization(gateway: &Gateway, provider: Provider, nth: u64) -> Result<Answer> {
    let response = reqwest::Client::new()
        .post(gateway.url())
        .header("content-type", "application/json")
        .header("idempotency-key", format!("own-{provider:?}-{nth}"))
        .header("authorization", "Bearer callers")
        .header("proxy-authorization", "Bearer callers")
        .body(refund(provider, nth).to_string())
        .send()
        .await?;
    Answer::read(response).await
}

#[tokio::test(flavor = "multi_thread")]
async fn injected_credentials_are_envoys_and_the_callers_are_removed() -> Result<()> {
    let gateway = Gateway::start(injected(INJECTED.map(|(_, _, value)| value), |_| {})).await?;
    for (provider, _, value) in INJECTED {
        for nth in 1..=3 {
            let answer = with_authorization(&gateway, provider, nth).await?;
            assert_refunded(value, provider, &answer);
            let request = gateway
                .simulators
                .last_request(provider)
                .expect("a request");
            assert_eq!(values(&request, "authorization"), [value]);
            for (name, value) in &request.headers {
                let value = String::from_utf8_lossy(value);
                assert!(!value.contains("callers"), "{name}: {value}");
            }
        }
        assert_eq!(gateway.simulators.uses(provider), [3]);
    }
    // The others go on as they were.
    for provider in [Bog, Bbmsl] {
        assert_refunded("beside", provider, &call(&gateway, provider, 1).await?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_envoy_injects_the_filter_adds_no_credentials() -> Result<()> {
    let options = injected(INJECTED.map(|(_, _, value)| value), |config| {
        let clusters = config
            .pointer_mut("/static_resources/clusters")
            .and_then(Value::as_array_mut);
        for cluster in clusters.into_iter().flatten() {
            for options in cluster["typed_extension_protocol_options"]
                .as_object_mut()
                .into_iter()
                .flat_map(|options| options.values_mut())
            {
                options
                    .as_object_mut()
                    .expect("an object")
                    .remove("http_filters");
            }
        }
    });
    let gateway = Gateway::start(options).await?;
    for (provider, ..) in INJECTED {
        let answer = with_authorization(&gateway, provider, 1).await?;
        assert_problem("without an injector", &answer, AUTH_FAILED);
        let request = gateway
            .simulators
            .last_request(provider)
            .expect("a request");
        assert_eq!(values(&request, "authorization"), [""; 0]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_injected_credential_sends_nothing_and_a_new_one_is_used() -> Result<()> {
    let gateway = Gateway::start(injected(["", ""], |_| {})).await?;
    for (provider, file, right) in INJECTED {
        let simulators = &gateway.simulators;
        // On a cold connection, then on one that is warm by then.
        for nth in 1..=5 {
            let answer = with_authorization(&gateway, provider, nth).await?;
            assert_problem(file, &answer, GATEWAY_ERROR);
        }
        assert_eq!(simulators.received(provider), 0, "{file}");
        gateway.rotate(file, right)?;
        until("the credential is there", async |nth| {
            for again in 0..10 {
                let answer = call(&gateway, provider, nth * 100 + again).await?;
                if answer.status != 200 {
                    assert_problem(file, &answer, GATEWAY_ERROR);
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?;
        // Another one, which the provider does not accept.
        gateway.rotate(file, "Bearer canary-next")?;
        until("the next credential is there", async |nth| {
            let answer = call(&gateway, provider, 100_000 + nth).await?;
            if answer.status == 200 {
                return Ok(false);
            }
            assert_problem(file, &answer, AUTH_FAILED);
            Ok(true)
        })
        .await?;
        let request = simulators.last_request(provider).expect("a request");
        assert_eq!(values(&request, "authorization"), ["Bearer canary-next"]);
        // And none again: what is certain does not depend on the connection's being warm.
        gateway.rotate(file, "")?;
        until("the credential is gone", async |nth| {
            let before = simulators.received(provider);
            let answer = call(&gateway, provider, 200_000 + nth).await?;
            if answer.status == 502 {
                return Ok(false);
            }
            assert_problem(file, &answer, GATEWAY_ERROR);
            assert_eq!(simulators.received(provider), before, "{file}");
            Ok(true)
        })
        .await?;
    }
    Ok(())
}

// ---- canaries

/// Whatever may not be seen: the secrets, the key line by line and in one, and all credentials that
/// the providers were shown.
fn canaries(gateway: &Gateway, more: &[String]) -> BTreeSet<String> {
    let secrets = &gateway.secrets;
    let mut canaries = BTreeSet::from([
        secrets.of(Bog).to_owned(),
        secrets.of(Moyasar).to_owned(),
        secrets.of(Begateway).to_owned(),
    ]);
    canaries.extend(more.iter().cloned());
    let lines = secrets.of(Bbmsl).lines();
    canaries.extend(
        lines
            .filter(|line| !line.starts_with('-'))
            .map(str::to_owned),
    );
    let whole: String = forged(&PLACES[3], secrets);
    // However it were broken into lines.
    for start in (0..whole.len() - 32).step_by(40) {
        canaries.insert(whole[start..start + 32].to_owned());
    }
    for provider in Provider::ALL {
        for exchange in gateway.simulators.requests(provider) {
            for value in values(&exchange.request, "authorization") {
                let credentials = value.split(' ').next_back().unwrap_or_default();
                canaries.insert(credentials.to_owned());
            }
        }
    }
    canaries
}

/// Everything that can be seen of a gateway, after calls of every kind.
async fn seen(gateway: &Gateway, echoes: bool) -> Result<Vec<(String, String)>> {
    let levels = reqwest::Client::new()
        .post(format!("http://{}/logging?wasm=trace", gateway.admin))
        .send()
        .await?
        .text()
        .await?;
    assert!(levels.contains("wasm: trace"), "{levels}");
    let simulators = &gateway.simulators;
    let mut texts = Vec::new();
    let mut keep = |answer: &Answer| {
        let text = format!("{:?} {}", answer.headers, answer.text);
        texts.push(("an answer".to_owned(), text));
    };
    for provider in FOUR {
        keep(&call(gateway, provider, 1).await?);
        // The provider throws back what it was shown. (What Envoy's injector adds, the filter
        // cannot know.)
        let told = if echoes {
            let request = simulators.last_request(provider).expect("a request");
            let shown = values(&request, "authorization").join(" ");
            match provider.is_shown_the_secret() {
                true => format!("{shown} {}", gateway.secrets.of(provider)),
                false => shown,
            }
        } else {
            String::new()
        };
        // 401 last: it drops the token.
        for status in [400, 500, 401] {
            let body = json!({
                "message": told, "code": told, "response": {"message": told}, "responseCode": "9", "type": told,
            });
            simulators.next_fault(
                provider,
                Fault::Reply {
                    reply: Reply::json(status, body.to_string()),
                    booked: false,
                },
            );
            keep(&call(gateway, provider, 2).await?);
        }
        for fault in [
            Fault::Close { booked: false },
            Fault::CutBody { booked: false },
        ] {
            simulators.next_fault(provider, fault);
            keep(&call(gateway, provider, 3).await?);
        }
    }
    let answer = gateway
        .refund("faulty", &"{\"provider\":\"bbmsl\"}")
        .await?;
    keep(&answer);
    keep(&gateway.refund("malformed", &"{").await?);
    let other = reqwest::get(format!("http://{}/other", gateway.address)).await?;
    keep(&Answer::read(other).await?);
    simulators.revoke_tokens();
    for nth in 4..6 {
        keep(&call(gateway, Bog, nth).await?);
    }
    for page in [
        "/config_dump",
        "/config_dump?include_eds",
        "/stats",
        "/stats/prometheus",
        "/certs",
        "/clusters",
        "/listeners?format=json",
        "/server_info",
        "/init_dump",
        "/memory",
        "/runtime",
        "/contention",
    ] {
        texts.push((page.to_owned(), gateway.admin(page).await?));
    }
    Ok(texts)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_that_comes_by_sds_is_seen_anywhere() -> Result<()> {
    let mut gateways = Vec::new();
    for by in by_sds() {
        let options = Options {
            secrets_by: by,
            ..options()
        };
        gateways.push((format!("{by:?}"), options, Vec::new()));
    }
    let secrets = secrets();
    // Ends with the test.
    let openbao = OpenBao::start(secrets.of(Bbmsl)).await?;
    if has_filter_state() {
        let (address, ca) = (openbao.address, openbao.ca());
        let injects = injected(INJECTED.map(|(_, _, value)| value), |_| {});
        let change = injects.change;
        let mut more_secrets = injects.more_secrets;
        more_secrets.push(("openbao-token", openbao.token.clone()));
        let options = Options {
            secrets: Some(secrets),
            more_secrets,
            change: Box::new(move |config, folder| {
                change(config, folder);
                sign_by_transit(config, address, &ca, folder).expect("a cluster");
            }),
            ..options()
        };
        let tokens = vec![openbao.token.clone(), "canary-openbao".to_owned()];
        gateways.push(("transit and injected".to_owned(), options, tokens));
    }
    for (case, options, more) in gateways {
        let mut gateway = Gateway::start(options).await?;
        let mut texts = seen(&gateway, more.is_empty()).await?;
        let canaries = canaries(&gateway, &more);
        assert!(canaries.len() > 60, "{case}: {}", canaries.len());
        gateway.stop().await?;
        let log = gateway.log();
        assert!(log.contains("[trace][wasm]"), "{case}: no line at trace");
        texts.push(("the access log".to_owned(), gateway.access_log()));
        texts.push(("Envoy's log".to_owned(), log));
        for (place, text) in &texts {
            assert!(!text.is_empty(), "{case}: {place}");
            for canary in &canaries {
                assert!(
                    !text.contains(canary),
                    "{case}: {canary} in {place}: {text}"
                );
            }
        }
    }
    Ok(())
}
