//! Signing through real Envoy: three signers that give the same bytes, keys that cannot sign, keys in time, and an OpenBao that
//! does not answer as it should.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::{Problem, assert_problem, secrets};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use gateway_testbed::openbao::OpenBao;
use gateway_testbed::{
    Answer, Gateway, Options, PATH, SecretsBy, change_plugin, route_mut, sign_by_transit,
};
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use provider_simulator::orders::fresh;
use provider_simulator::{self as simulator, Fault, Provider, Reply, SigningKeys, Simulators};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use Provider::Bbmsl;

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

const UNSIGNED: Problem = Problem {
    retry: "same_key",
    ..Problem::certain("signing-unavailable", 503)
};
/// BBMSL does not know the key: it says so by a code that nobody has published, which may mean anything.
const NOT_KNOWN: Problem = Problem {
    outcome: "unknown",
    retry: "look_up",
    ..Problem::certain("provider-rejected", 422)
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

/// An Envoy before 1.38 has no secret in filter state (`SECRETS_BY` tells so), and transit.yaml and PEM need one.
fn has_filter_state() -> bool {
    Options::default().secrets_by == SecretsBy::FilterState
}

/// Envoy has the function `sign` from 1.37 on.
async fn can_sign(gateway: &Gateway) -> Result<bool> {
    let info: Value = serde_json::from_str(&gateway.admin("/server_info").await?)?;
    let version = info["version"].as_str().unwrap_or_default();
    let minor = version.split('/').find_map(|part| {
        let mut numbers = part.split('.');
        (numbers.next() == Some("1")).then(|| numbers.next()?.parse::<u32>().ok())?
    });
    Ok(minor.with_context(|| version.to_owned())? >= 37)
}

/// 1.00 of BBMSL's nth fresh order.
fn refund(nth: u64) -> Value {
    json!({
        "provider": "bbmsl",
        "payment": {"id": fresh(Bbmsl, nth)},
        "amount": {"value": "1.00", "currency": "HKD"},
    })
}

async fn call(gateway: &Gateway, nth: u64) -> Result<Answer> {
    gateway.refund(&format!("key-{nth}"), &refund(nth)).await
}

#[track_caller]
fn assert_refunded(case: &str, answer: &Answer) {
    assert_eq!(answer.status, 200, "{case}: {}", answer.text);
    assert_eq!(
        answer.body["status"], "succeeded",
        "{case}: {}",
        answer.text
    );
}

fn without_armour(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with('-')).collect()
}

fn signing(config: &mut Value, change: impl FnOnce(&mut Value)) {
    change_plugin(config, |plugin| {
        change(&mut plugin["providers"]["bbmsl"]["signing"]);
    })
    .expect("a plugin");
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

/// The lines of a metric of the filter's.
async fn metric(gateway: &Gateway, name: &str) -> Result<Vec<String>> {
    let text = gateway.admin("/stats/prometheus").await?;
    let lines = text.lines().filter(|line| line.starts_with(name));
    Ok(lines.map(str::to_owned).collect())
}

/// Those that are not 0.
fn used(lines: Vec<String>) -> Vec<String> {
    let is_used = |line: &String| !line.ends_with(" 0");
    lines.into_iter().filter(is_used).collect()
}

/// Ends the gateway, so that its access log is whole; gives the key ids by request id.
async fn key_ids(mut gateway: Gateway, answers: &[Answer]) -> Result<Vec<Option<String>>> {
    gateway.stop().await?;
    let log = gateway.access_log();
    let lines = log
        .lines()
        .map(serde_json::from_str::<Value>)
        .collect::<Result<Vec<_>, _>>()?;
    answers
        .iter()
        .map(|answer| {
            let id = answer.header("x-request-id");
            let line = lines.iter().find(|line| line["request_id"] == id);
            let line = line.with_context(|| format!("no line for {id}: {log}"))?;
            // Behind the id of a key that the gateway holds stands its fingerprint.
            let key_id = line["key_id"].as_str().and_then(|id| id.split(' ').next());
            Ok(key_id.map(str::to_owned))
        })
        .collect()
}

/// A gateway whose BBMSL is signed for by what stands at this address. `change` is the plugin's `signing.transit`.
fn by_transit(
    address: SocketAddr,
    ca: PathBuf,
    token: &str,
    change: impl FnOnce(&mut Value) + Send + 'static,
) -> Options {
    Options {
        secrets: Some(secrets()),
        more_secrets: vec![("openbao-token", token.to_owned())],
        change: Box::new(move |config, folder| {
            sign_by_transit(config, address, &ca, folder).expect("a cluster");
            signing(config, |signing| change(&mut signing["transit"]));
        }),
        ..options()
    }
}

// ---- three signers

#[tokio::test(flavor = "multi_thread")]
async fn host_module_and_openbao_give_the_same_bytes() -> Result<()> {
    let secrets = secrets();
    let mut calls: Vec<Value> = (1..=3).map(refund).collect();
    calls.push(json!({
        "provider": "bbmsl",
        "payment": {"id": "4922", "reference": "1655817171"},
        "amount": {"value": "0.01", "currency": "USD"},
        "reason": "ä\"\\ €",
        "reference": "refund-77",
    }));
    calls.push(json!({
        "provider": "bbmsl",
        "payment": {"reference": "ref-jpy"},
        "amount": {"value": "1500", "currency": "JPY"},
    }));
    let mut bodies: Vec<(&str, Vec<String>)> = Vec::new();
    // Ends with the test.
    let mut openbao = None;
    for way in ["auto", "default", "vm", "host", "transit"] {
        let options = match way {
            "default" => options(),
            "transit" if !has_filter_state() => continue,
            "transit" => {
                let bao = OpenBao::start(secrets.of(Bbmsl)).await?;
                let options = by_transit(bao.address, bao.ca(), &bao.token, |_| {});
                openbao = Some(bao);
                options
            }
            _ => changed(move |config| {
                signing(config, |signing| signing["signer"] = json!(way));
            }),
        };
        let started = Gateway::start(Options {
            secrets: Some(secrets.clone()),
            ..options
        })
        .await;
        let gateway = match started {
            // An Envoy without `sign` takes no configuration that insists on it.
            Err(error) if way == "host" => {
                let error = format!("{error:#}");
                assert!(error.contains("/providers/bbmsl/signing/signer"), "{error}");
                continue;
            }
            started => started.context(way)?,
        };
        let host = can_sign(&gateway).await?;
        assert!(way != "host" || host, "it started without `sign`");
        let (signer, said, key_id) = match way {
            "transit" => ("transit", "signed by OpenBao", "bbmsl:v1"),
            "auto" | "default" | "host" if host => ("host", "signed by the host", "2026-11"),
            _ => ("vm", "signed in the module", "2026-11"),
        };
        let mut answers = Vec::new();
        for (nth, body) in calls.iter().enumerate() {
            let answer = gateway.refund(&format!("key-{nth}"), body).await?;
            assert_refunded(way, &answer);
            answers.push(answer);
        }
        let requests = gateway.simulators.requests(Bbmsl);
        let texts = requests
            .iter()
            .map(|exchange| String::from_utf8(exchange.request.body.clone()));
        bodies.push((way, texts.collect::<Result<_, _>>()?));
        let log = gateway.log();
        let configured = log.lines().filter(|line| line.contains("configured for"));
        for line in configured {
            assert!(
                line.contains(&format!("bbmsl (bbmsl, {said})")),
                "{way}: {line}"
            );
        }
        assert!(log.contains(said), "{way}: {log}");
        assert_eq!(
            used(metric(&gateway, "refund_signatures_total{").await?),
            [format!(
                "refund_signatures_total{{provider=\"bbmsl\",signer=\"{signer}\",result=\"ok\"}} 5"
            )],
            "{way}"
        );
        for found in key_ids(gateway, &answers).await? {
            assert_eq!(found.as_deref(), Some(key_id), "{way}");
        }
    }
    drop(openbao);
    let (_, expected) = bodies.first().context("no way")?;
    assert_eq!(expected.len(), 5);
    for (way, found) in &bodies {
        assert_eq!(found, expected, "{way}");
    }
    Ok(())
}

/// The forms in which a key of each size arrives.
fn forms() -> Vec<(&'static str, String, &'static str, &'static str)> {
    let mut forms = vec![
        ("3072", without_armour(KEY_3072), KEY_3072, PUBLIC_3072),
        ("4096", without_armour(KEY_4096), KEY_4096, PUBLIC_4096),
    ];
    if has_filter_state() {
        // Of many lines, so not by a header.
        forms.push((
            "3072 in PKCS#8 PEM",
            KEY_3072.to_owned(),
            KEY_3072,
            PUBLIC_3072,
        ));
        forms.push((
            "3072 in PKCS#1 PEM",
            KEY_3072_PKCS1.to_owned(),
            KEY_3072,
            PUBLIC_3072,
        ));
        let windows = KEY_4096.replace('\n', "\r\n");
        forms.push(("4096 in PEM with CRLF", windows, KEY_4096, PUBLIC_4096));
    }
    forms
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_size_and_form_sign_by_host_and_module() -> Result<()> {
    for (form, text, key, public) in forms() {
        let gateway = Gateway::start(Options {
            secrets: Some(secrets().with_keys(Bbmsl, key, public)),
            more_secrets: vec![("bbmsl-key", text)],
            // The same provider and key once more, signed for in the module.
            ..changed(|config| {
                change_plugin(config, |plugin| {
                    let mut second = plugin["providers"]["bbmsl"].clone();
                    second["signing"]["signer"] = json!("vm");
                    plugin["providers"]["in-the-module"] = second;
                })
                .expect("a plugin");
                let route = route_mut(config, "bbmsl").expect("a route");
                route["match"]["filter_state"][0]["string_match"] =
                    json!({"safe_regex": {"regex": "bbmsl|in-the-module"}});
            })
        })
        .await
        .context(form)?;
        for (nth, provider) in (1..).zip(["bbmsl", "in-the-module"]) {
            let mut body = refund(nth);
            body["provider"] = json!(provider);
            let answer = gateway.refund(provider, &body).await?;
            assert_refunded(&format!("{form}, {provider}"), &answer);
        }
        assert_eq!(gateway.simulators.uses(Bbmsl), [2], "{form}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn openbao_signs_with_keys_of_every_size() -> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    let openbao = OpenBao::start(secrets().of(Bbmsl)).await?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(
        path("policy"),
        "path \"transit/sign/*\" { capabilities = [\"update\"] }",
    )?;
    openbao
        .run(&["policy", "write", "sign", &path("policy")])
        .await?;
    for (size, key, public) in [
        ("rsa-3072", KEY_3072, PUBLIC_3072),
        ("rsa-4096", KEY_4096, PUBLIC_4096),
    ] {
        std::fs::write(path(size), without_armour(key))?;
        let (name, file) = (format!("transit/keys/{size}"), format!("@{}", path(size)));
        let kind = format!("type={size}");
        openbao
            .run(&["transit", "import", &name, &file, &kind])
            .await?;
        let secrets = secrets().with_keys(Bbmsl, key, public);
        let by_openbao = by_transit(
            openbao.address,
            openbao.ca(),
            &openbao.token,
            move |transit| transit["key"] = json!(size),
        );
        let gateway = Gateway::start(Options {
            secrets: Some(secrets.clone()),
            ..by_openbao
        })
        .await?;
        let answer = call(&gateway, 1).await?;
        assert_refunded(size, &answer);
        let request_by_openbao = gateway
            .simulators
            .last_request(Bbmsl)
            .context("a request")?;
        assert_eq!(
            key_ids(gateway, &[answer]).await?,
            [Some(format!("{size}:v1"))]
        );
        let gateway = Gateway::start(Options {
            secrets: Some(secrets),
            ..options()
        })
        .await?;
        assert_refunded(size, &call(&gateway, 1).await?);
        let by_host = gateway
            .simulators
            .last_request(Bbmsl)
            .context("a request")?;
        assert_eq!(request_by_openbao.body, by_host.body, "{size}");
    }
    Ok(())
}

// ---- keys that cannot sign

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_sign_is_refused_as_it_arrives_and_never_printed() -> Result<()> {
    let gateway = Gateway::start(options()).await?;
    let simulators = &gateway.simulators;
    assert_refunded("at first", &call(&gateway, 1).await?);
    let right = without_armour(gateway.secrets.of(Bbmsl));
    let public = gateway.secrets.checked_by(Bbmsl).to_owned();
    let other = SigningKeys::generate()?;
    let one_line = |pem: &str| without_armour(pem);
    let encrypted_pkcs1 = include_str!("../../common/keys/encrypted.pkcs1.pem");
    let mut cases = vec![
        ("a word", "canary-no-key".to_owned(), "must be PEM"),
        (
            "a 1024-bit key",
            one_line(include_str!("../../common/keys/short.pem")),
            "2048 bits",
        ),
        (
            "an EC key",
            one_line(include_str!("../../common/keys/ec.pem")),
            "no RSA private key",
        ),
        ("base64 of nothing", "Y2FuYXJ5*".to_owned(), "must be PEM"),
        ("a public key", one_line(&public), "no RSA private key"),
        ("half a key of 1024 bits", "####".repeat(200), "must be PEM"),
        (
            "half a key",
            right[..right.len() / 8 * 4].to_owned(),
            "no RSA private key",
        ),
        (
            "a short key again",
            one_line(include_str!("../../common/keys/short.pem")),
            "2048 bits",
        ),
        (
            "PKCS#1 without its armour",
            one_line(KEY_3072_PKCS1),
            "no RSA private key",
        ),
    ];
    if has_filter_state() {
        // Of many lines.
        let certificate = simulators.ca_pem().to_owned();
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE"));
        cases.extend([
            (
                "an encrypted key",
                include_str!("../../common/keys/encrypted.pem").to_owned(),
                "is encrypted",
            ),
            ("a public key in PEM", public.clone(), "no private RSA key"),
            (
                "an encrypted key in PKCS#1",
                encrypted_pkcs1.to_owned(),
                "is encrypted",
            ),
            ("a certificate", certificate, "no private RSA key"),
            (
                "a 1024-bit key in PKCS#1",
                include_str!("../../common/keys/short.pkcs1.pem").to_owned(),
                "2048 bits",
            ),
            (
                "an EC key in PEM",
                include_str!("../../common/keys/ec.pem").to_owned(),
                "no RSA private key in PKCS#8",
            ),
            (
                "an Ed25519 key",
                include_str!("../../common/keys/ed25519.pem").to_owned(),
                "no RSA private key in PKCS#8",
            ),
        ]);
    }
    let mut printed = vec![right.clone()];
    for (case, text, said) in cases {
        gateway.rotate("bbmsl-key", &text)?;
        printed.push(without_armour(&text));
        // The sentence of the one before differs.
        until(case, async |nth| {
            let before = simulators.received(Bbmsl);
            let answer = call(&gateway, 1_000 + nth).await?;
            if answer.status == 200 {
                return Ok(false);
            }
            assert_problem(case, &answer, UNSIGNED);
            assert_eq!(simulators.received(Bbmsl), before, "{case}");
            let detail = answer.body["detail"].as_str().unwrap_or_default();
            assert!(
                detail.contains("The signing key 2026-11 cannot be used."),
                "{detail}"
            );
            Ok(detail.contains(said))
        })
        .await?;
        // The platform team reads it too.
        let log = gateway.log();
        let told = log.lines().any(|line| {
            line.contains("[error][wasm]")
                && line.contains("The signing key 2026-11 cannot be used.")
                && line.contains(said)
        });
        assert!(told, "{case}: {log}");
    }
    gateway.rotate("bbmsl-key", &right)?;
    until("the right one is back", async |nth| {
        Ok(call(&gateway, 2_000 + nth).await?.status == 200)
    })
    .await?;
    // And then one that BBMSL does not know: what is told apart is a key that signs from one that is accepted.
    gateway.rotate("bbmsl-key", &without_armour(&other.private_key))?;
    until("the unknown one is there", async |nth| {
        let answer = call(&gateway, 3_000 + nth).await?;
        if answer.status == 200 {
            return Ok(false);
        }
        assert_problem("an unknown key", &answer, NOT_KNOWN);
        Ok(true)
    })
    .await?;
    let mut seen = gateway.log();
    for page in ["/config_dump", "/stats"] {
        seen.push_str(&gateway.admin(page).await?);
    }
    for text in printed {
        for start in (0..text.len().saturating_sub(24)).step_by(12) {
            let part = &text[start..start + 24];
            assert!(!seen.contains(part), "{part}");
        }
    }
    assert!(!seen.contains("canary-no-key"));
    Ok(())
}

// ---- keys in time

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// RFC 3339 from Unix time (the days' part after Howard Hinnant's `civil_from_days`).
fn rfc3339(time: i64) -> String {
    let (days, second) = (time.div_euclid(86_400), time.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[test]
fn times_are_written_as_rfc3339() {
    for (time, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_795_334_400, "2026-11-22T08:00:00Z"),
        (1_798_761_599, "2026-12-31T23:59:59Z"),
    ] {
        assert_eq!(rfc3339(time), text);
    }
}

/// How a staged ring looks, second by second, through real calls. Three stretches: BBMSL does not know the first key; the
/// second is the right one; then there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_staged_key_takes_over_at_its_second_and_ends_at_its_own_without_a_push() -> Result<()> {
    let first = SigningKeys::generate()?;
    let (sender, staged) = std::sync::mpsc::channel();
    let gateway = Gateway::start(Options {
        ..changed(move |config| {
            // Envoy's start is in it.
            let from = now() + 8;
            let until = from + 2;
            sender.send((from, until)).expect("somebody waits");
            signing(config, |signing| {
                let second = signing["keys"][0].clone();
                signing["keys"] = json!([
                    {"id": "next", "private_key": second["private_key"],
                     "not_before": rfc3339(from), "not_after": rfc3339(until)},
                    {"id": "former", "private_key": {"inline": first.private_key}, "not_after": rfc3339(from + 1)},
                    {"id": "past", "private_key": second["private_key"], "not_after": "2020-01-01T00:00:00Z"},
                    {"id": "far", "private_key": second["private_key"],
                     "not_before": "2999-01-01T00:00:00+08:00", "not_after": "2999-01-01T00:00:01+08:00"},
                ]);
            });
        })
    })
    .await?;
    let (from, until) = staged.recv()?;
    let mut answers = Vec::new();
    let (mut seen, mut nth) = ([0; 3], 0);
    while now() <= until + 1 {
        nth += 1;
        let before = now();
        let answer = call(&gateway, nth).await?;
        let after = now();
        let stretch = match answer.status {
            200 => 1,
            422 => 0,
            _ => 2,
        };
        // The clock may have moved on during the call, not more.
        let allowed = [
            before < from,
            after >= from && before < until,
            after >= until,
        ];
        assert!(
            allowed[stretch],
            "{before}..{after}, {from}, {until}: {}",
            answer.text
        );
        match stretch {
            0 => assert_problem("the former one", &answer, NOT_KNOWN),
            1 => assert_refunded("the next one", &answer),
            _ => {
                assert_problem("none", &answer, UNSIGNED);
                let detail = answer.body["detail"].as_str().unwrap_or_default();
                assert!(
                    detail.contains("No signing key of this provider is in its time."),
                    "{detail}"
                );
            }
        }
        seen[stretch] += 1;
        answers.push((stretch, answer));
        sleep(Duration::from_millis(25)).await;
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    let sent = gateway.simulators.received(Bbmsl);
    assert_eq!(sent, seen[0] + seen[1], "{seen:?}");
    assert!(
        gateway
            .log()
            .contains("No signing key of this provider is in its time.")
    );
    let (stretches, answers): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
    let ids = key_ids(gateway, &answers).await?;
    for (stretch, id) in stretches.into_iter().zip(ids) {
        let expected = [Some("former"), Some("next"), None][stretch];
        assert_eq!(id.as_deref(), expected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gauge_tells_when_the_last_key_ends() -> Result<()> {
    // Without a call; it must not take one for the gauge to be there.
    let end = now() + 1_000;
    let gateway = Gateway::start(changed(move |config| {
        change_plugin(config, |plugin| {
            let bbmsl = plugin["providers"]["bbmsl"].clone();
            for (name, ends) in [
                ("ends", json!([end - 500, end])),
                ("ended", json!([end - 2_000])),
                ("never", json!([end, null])),
            ] {
                let mut provider = bbmsl.clone();
                let key = provider["signing"]["keys"][0]["private_key"].clone();
                let keys = ends.as_array().into_iter().flatten().enumerate();
                let keys = keys.map(|(nth, end)| {
                    let mut key = json!({"id": format!("key-{nth}"), "private_key": key});
                    if let Some(end) = end.as_i64() {
                        key["not_after"] = json!(rfc3339(end));
                    }
                    key
                });
                provider["signing"]["keys"] = keys.collect();
                plugin["providers"][name] = provider;
            }
        })
        .expect("a plugin");
    }))
    .await?;
    let lines = metric(&gateway, "refund_signing_key_not_after_timestamp_seconds{").await?;
    let expected = [
        ("bbmsl", 0),
        ("ended", end - 2_000),
        ("ends", end),
        ("never", 0),
    ];
    let expected = expected.map(|(name, at)| {
        format!("refund_signing_key_not_after_timestamp_seconds{{provider=\"{name}\"}} {at}")
    });
    let mut lines = lines;
    lines.sort_unstable();
    assert_eq!(lines, expected);
    Ok(())
}

// ---- OpenBao fails

/// The refund is answered as one that was not signed; BBMSL hears nothing.
async fn assert_unsigned(case: &str, gateway: &Gateway, nth: u64) -> Result<Answer> {
    let before = gateway.simulators.received(Bbmsl);
    let answer = timeout(PATIENCE, call(gateway, nth))
        .await
        .context(case.to_owned())??;
    assert_problem(case, &answer, UNSIGNED);
    assert_eq!(gateway.simulators.received(Bbmsl), before, "{case}");
    assert!(!answer.text.contains("canary"), "{case}: {}", answer.text);
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openbao_that_refuses_is_sealed_or_gone_means_no_signature_and_nothing_sent()
-> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    let secrets = secrets();
    let openbao = OpenBao::start(secrets.of(Bbmsl)).await?;
    let (address, ca, token) = (openbao.address, openbao.ca(), openbao.token.clone());
    let options = by_transit(address, ca.clone(), "canary-wrong", |_| {});
    let gateway = Gateway::start(options).await?;
    let answer = assert_unsigned("a wrong token", &gateway, 1).await?;
    assert!(answer.text.contains("OpenBao"), "{}", answer.text);
    assert!(
        gateway.log().contains("OpenBao gave no signature"),
        "{}",
        gateway.log()
    );
    // A changed token is used at the next call.
    gateway.rotate("openbao-token", &token)?;
    until("the right token", async |nth| {
        Ok(call(&gateway, 100 + nth).await?.status == 200)
    })
    .await?;

    type Change = fn(&mut Value);
    let another_key: Change = |transit| transit["key"] = json!("unknown");
    let another_mount: Change = |transit| transit["mount"] = json!("unknown");
    let a_namespace: Change = |transit| transit["namespace"] = json!("unknown");
    let another_cluster: Change = |transit| transit["cluster"] = json!("unknown");
    // With a token that may do everything.
    let root = "canary-openbao-root-token";
    for (case, change) in [
        ("an unknown key", another_key),
        ("an unknown mount", another_mount),
        ("an unknown namespace", a_namespace),
        ("an unknown cluster", another_cluster),
    ] {
        let options = by_transit(address, ca.clone(), root, change);
        let gateway = Gateway::start(options).await.context(case)?;
        assert_unsigned(case, &gateway, 1).await?;
        assert!(!gateway.log().contains(root), "{case}");
    }
    let options = by_transit(address, ca.clone(), "", |_| {});
    let unarmed = Gateway::start(options).await?;
    let answer = assert_unsigned("no token", &unarmed, 1).await?;
    let said = "the filter state refund.openbao_token is missing";
    assert!(answer.text.contains(said), "{}", answer.text);
    drop(unarmed);
    // Another authority: somebody else in OpenBao's place gets no token.
    let foreign = Simulators::start(simulator::Options::default()).await?;
    let foreign_ca = gateway.folder().join("foreign.pem");
    std::fs::write(&foreign_ca, foreign.ca_pem())?;
    let options = by_transit(address, foreign_ca, root, |_| {});
    let misled = Gateway::start(options).await?;
    assert_unsigned("a certificate of somebody else's", &misled, 1).await?;
    drop(misled);

    openbao.run(&["operator", "seal"]).await?;
    for nth in 200..203 {
        assert_unsigned("sealed", &gateway, nth).await?;
    }
    drop(openbao);
    for nth in 300..303 {
        assert_unsigned("gone", &gateway, nth).await?;
    }
    assert!(!gateway.log().contains(&token));
    assert!(!gateway.log().contains("canary-"));
    Ok(())
}

/// Simulators in OpenBao's place: they record what they are asked, and answer as they are told.
async fn instead_of_openbao() -> Result<(Simulators, PathBuf, tempfile::TempDir)> {
    let mut options = simulator::Options {
        any_host: true,
        ..simulator::Options::default()
    };
    // The name on OpenBao's certificate in the testbed.
    options
        .hosts
        .insert(Provider::Moyasar, "localhost".to_owned());
    let simulators = Simulators::start(options).await?;
    let folder = tempfile::tempdir()?;
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, simulators.ca_pem())?;
    Ok((simulators, ca, folder))
}

fn signed(signature: &str) -> Vec<u8> {
    json!({"data": {"key_version": 1, "signature": signature}})
        .to_string()
        .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openbao_that_talks_nonsense_breaks_off_or_hangs_means_no_signature_and_nothing_sent()
-> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    let (fake, ca, _folder) = instead_of_openbao().await?;
    let options = by_transit(
        fake.address(Provider::Moyasar),
        ca,
        "canary-openbao-token",
        |transit| {
            transit["namespace"] = json!("payments/eu");
            transit["mount"] = json!("teams/pay/transit");
        },
    );
    let gateway = Gateway::start(options).await?;
    let reply = |status: u16, body: &[u8]| Fault::Reply {
        reply: Reply::json(status, body),
        booked: false,
    };
    let good = format!("vault:v1:{}", "WlpaWlpa".repeat(43));
    let mut faults = vec![
        ("as it is", None),
        ("a page", Some(reply(200, b"<html>canary-page</html>"))),
        ("nothing", Some(reply(200, b""))),
        ("an empty object", Some(reply(200, b"{}"))),
        ("no signature", Some(reply(200, b"{\"data\":null}"))),
        ("bytes that are no text", Some(reply(200, b"\xff\xfe{}"))),
        (
            "a signature that is none",
            Some(reply(200, &signed("canary-signature"))),
        ),
        (
            "one without a version",
            Some(reply(200, &signed("vault:AAAA"))),
        ),
        (
            "one that is too short",
            Some(reply(200, &signed("vault:v1:AAAA"))),
        ),
        ("a redirect", Some(reply(307, b""))),
        (
            "a wrapped answer",
            Some(reply(
                200,
                b"{\"wrap_info\":{\"token\":\"canary-token\"},\"data\":null}",
            )),
        ),
        (
            "a head alone",
            Some(Fault::HeaderOnly {
                status: 200,
                booked: false,
            }),
        ),
        (
            "204",
            Some(Fault::HeaderOnly {
                status: 204,
                booked: false,
            }),
        ),
        ("closed before", Some(Fault::CloseBefore)),
        ("closed", Some(Fault::Close { booked: false })),
        ("reset", Some(Fault::Reset { booked: false })),
        ("cut in its head", Some(Fault::CutHeaders { booked: false })),
        ("cut in its body", Some(Fault::CutBody { booked: false })),
        (
            "trailers",
            Some(Fault::Trailers(vec![(b"x-t".to_vec(), b"\xff".to_vec())])),
        ),
        (
            "pieces",
            Some(Fault::Pieces {
                size: 7,
                pause: Duration::from_millis(1),
            }),
        ),
        ("large", Some(Fault::Oversize { bytes: 2_000_000 })),
        ("compressed", Some(Fault::Gzip)),
    ];
    for status in [201, 400, 403, 404, 412, 429, 472, 473, 500, 502, 503] {
        faults.push(("a status", Some(reply(status, &signed(&good)))));
        faults.push((
            "a status with errors",
            Some(reply(status, b"{\"errors\":[\"canary-error\"]}")),
        ));
    }
    for (nth, (case, fault)) in (1..).zip(faults) {
        if let Some(fault) = fault {
            fake.next_fault(Provider::Moyasar, fault);
        }
        let case = format!("{case} ({nth})");
        assert_unsigned(&case, &gateway, nth).await?;
        assert_eq!(fake.received(Provider::Moyasar), nth, "asked once: {case}");
    }
    // Up to the filter's own limit of 5 s, both at once.
    let asked = fake.received(Provider::Moyasar);
    let (stalls, hangs) = (
        Fault::StallBody { booked: false },
        Fault::Hang { booked: false },
    );
    fake.next_fault(Provider::Moyasar, stalls);
    fake.next_fault(Provider::Moyasar, hangs);
    tokio::try_join!(
        assert_unsigned("stalled in its body, or silent", &gateway, 1_001),
        assert_unsigned("silent, or stalled in its body", &gateway, 1_002),
    )?;
    assert_eq!(fake.received(Provider::Moyasar), asked + 2);
    assert!(!gateway.log().contains("canary-"));

    // What it is asked.
    let asked = fake.requests(Provider::Moyasar).swap_remove(0).request;
    assert_eq!(asked.method, "POST");
    assert_eq!(asked.path, "/v1/teams/pay/transit/sign/bbmsl/sha2-256");
    let body: Value = serde_json::from_slice(&asked.body)?;
    assert_eq!(body["signature_algorithm"], "pkcs1v15");
    assert_eq!(body.as_object().map(|body| body.len()), Some(2), "{body}");
    let text = |name: &str| {
        let values: Vec<_> = asked
            .headers_named(name)
            .map(String::from_utf8_lossy)
            .collect();
        values.join(", ")
    };
    assert_eq!(text("x-vault-token"), "canary-openbao-token");
    assert_eq!(text("x-vault-namespace"), "payments/eu");
    assert_eq!(text("x-vault-request"), "true");
    assert!(!text("x-request-id").is_empty());
    for (name, _) in &asked.headers {
        let known = [
            "accept",
            "accept-encoding",
            "content-length",
            "content-type",
            "host",
            "user-agent",
            "x-envoy-expected-rq-timeout-ms",
            "x-envoy-internal",
            "transfer-encoding",
            "x-request-id",
            "x-vault-namespace",
            "x-vault-request",
            "x-vault-token",
        ];
        assert!(known.contains(&name.as_str()), "{name}");
    }
    Ok(())
}

// ---- OpenBao is slow

/// Passes bytes on to OpenBao, and OpenBao's back only while it is open.
struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
    /// How many bytes have gone to OpenBao.
    asked: watch::Receiver<usize>,
}

impl Gate {
    async fn before(target: SocketAddr) -> Result<Gate> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (open, is_open) = watch::channel(true);
        let (count, asked) = watch::channel(0);
        let count = Arc::new(count);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(target).await else {
                    continue;
                };
                let (mut near_read, mut near_write) = near.into_split();
                let (mut far_read, mut far_write) = far.into_split();
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let mut bytes = [0; 16_384];
                    while let Ok(read @ 1..) = near_read.read(&mut bytes).await {
                        if far_write.write_all(&bytes[..read]).await.is_err() {
                            break;
                        }
                        count.send_modify(|count| *count += read);
                    }
                });
                let mut is_open = is_open.clone();
                tokio::spawn(async move {
                    let mut bytes = [0; 16_384];
                    while let Ok(read @ 1..) = far_read.read(&mut bytes).await {
                        if is_open.wait_for(|open| *open).await.is_err()
                            || near_write.write_all(&bytes[..read]).await.is_err()
                        {
                            break;
                        }
                    }
                });
            }
        });
        Ok(Gate {
            address,
            open,
            asked,
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_while_openbao_is_asked_is_not_refunded_and_who_stays_is() -> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    let secrets = secrets();
    let openbao = OpenBao::start(secrets.of(Bbmsl)).await?;
    let mut gate = Gate::before(openbao.address).await?;
    let options = by_transit(gate.address, openbao.ca(), &openbao.token, |_| {});
    // One worker, so that its connection to OpenBao is warm, and what goes there is the question.
    let gateway = Gateway::start(Options {
        concurrency: 1,
        ..options
    })
    .await?;
    assert_refunded("at first", &call(&gateway, 1).await?);
    let mut sent = 1;
    for (nth, http2, leaves) in [
        (2, false, true),
        (3, true, true),
        (4, false, false),
        (5, true, false),
        (6, true, true),
    ] {
        let case = format!("HTTP/2: {http2}, leaves: {leaves}");
        let before = *gate.asked.borrow();
        gate.open.send_replace(false);
        let client = reqwest::Client::builder().pool_max_idle_per_host(0);
        let client = if http2 {
            client.http2_prior_knowledge()
        } else {
            client
        }
        .build()?;
        let pending = client
            .post(gateway.url())
            .header("content-type", "application/json")
            .header("idempotency-key", format!("key-{nth}"))
            .body(refund(nth).to_string())
            .send();
        let pending = tokio::spawn(pending);
        timeout(PATIENCE, gate.asked.wait_for(|count| *count > before + 200))
            .await
            .context(case.clone())??;
        // OpenBao has signed by the time its answer is let through.
        sleep(Duration::from_millis(200)).await;
        assert_eq!(gateway.simulators.received(Bbmsl), sent, "{case}");
        if leaves {
            pending.abort();
            assert!(pending.await.is_err());
            drop(client);
            sleep(Duration::from_millis(200)).await;
            gate.open.send_replace(true);
            sleep(Duration::from_millis(300)).await;
        } else {
            gate.open.send_replace(true);
            let answer = Answer::read(timeout(PATIENCE, pending).await???).await?;
            assert_refunded(&case, &answer);
            sent += 1;
        }
        assert_eq!(gateway.simulators.received(Bbmsl), sent, "{case}");
    }
    // And one that is never answered, with who waits for it: bounded.
    gate.open.send_replace(false);
    assert_unsigned("slow", &gateway, 100).await?;
    gate.open.send_replace(true);
    until("it is back", async |nth| {
        Ok(call(&gateway, 200 + nth).await?.status == 200)
    })
    .await?;
    let reloads = gateway
        .admin(r"/stats?filter=^wasm\.refund_filter\.vm_reload")
        .await?;
    for line in reloads.lines() {
        assert!(line.ends_with(": 0"), "{reloads}");
    }
    Ok(())
}

// ---- the shapes of a call that OpenBao signs

/// A request body in frames, exactly these.
struct Frames(VecDeque<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// Over HTTP/1.1, in these pieces; gives the status and the body.
async fn call1(address: SocketAddr, nth: u64, pieces: &[Vec<u8>]) -> Result<(u16, String)> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         idempotency-key: key-{nth}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await?;
    for piece in pieces {
        socket.write_all(piece).await?;
        tokio::task::yield_now().await;
    }
    let mut text = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut text)).await??;
    let status = text.get(9..12).context(text.clone())?.parse()?;
    let (_, body) = text.split_once("\r\n\r\n").context("no body")?;
    Ok((status, body.to_owned()))
}

async fn call2(address: SocketAddr, nth: u64, frames: Vec<Frame<Bytes>>) -> Result<(u16, String)> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let request = Request::post(format!("http://gateway.test{PATH}"))
        .header("content-type", "application/json")
        .header("idempotency-key", format!("key-{nth}"))
        .body(Frames(frames.into()))?;
    let response = timeout(PATIENCE, sender.send_request(request)).await??;
    let status = response.status().as_u16();
    let body = timeout(PATIENCE, response.into_body().collect()).await??;
    Ok((status, String::from_utf8(body.to_bytes().to_vec())?))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_shape_of_a_call_openbao_signs_it_once() -> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    let secrets = secrets();
    let openbao = OpenBao::start(secrets.of(Bbmsl)).await?;
    let options = by_transit(openbao.address, openbao.ca(), &openbao.token, |_| {});
    let gateway = Arc::new(Gateway::start(options).await?);
    let data = |bytes: &[u8]| Frame::data(Bytes::copy_from_slice(bytes));
    let trailers = || {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-trailer", HeaderValue::from_static("the caller's"));
        Frame::trailers(trailers)
    };
    for nth in 1..=9 {
        let text = refund(nth).to_string();
        let body = text.as_bytes();
        let (shape, (status, answer)) = match nth {
            1 => (
                "one chunk",
                call1(gateway.address, nth, &[[chunk(body), chunk(b"")].concat()]).await?,
            ),
            2 => {
                let mut pieces: Vec<_> = body.iter().map(|byte| chunk(&[*byte])).collect();
                pieces.push(chunk(b""));
                (
                    "one-byte chunks",
                    call1(gateway.address, nth, &pieces).await?,
                )
            }
            3 => {
                let end = b"0\r\nx-trailer: the caller's\r\n\r\n".to_vec();
                (
                    "chunks and trailers",
                    call1(gateway.address, nth, &[chunk(body), end]).await?,
                )
            }
            4 => {
                let end = b"0\r\nx-trailer: the caller's\r\n\r\n".to_vec();
                let mut pieces: Vec<_> = body.iter().map(|byte| chunk(&[*byte])).collect();
                pieces.push(end);
                (
                    "one-byte chunks and trailers",
                    call1(gateway.address, nth, &pieces).await?,
                )
            }
            5 => (
                "one frame",
                call2(gateway.address, nth, vec![data(body)]).await?,
            ),
            6 => {
                let frames = body.iter().map(|byte| data(&[*byte])).collect();
                (
                    "one-byte frames",
                    call2(gateway.address, nth, frames).await?,
                )
            }
            7 => (
                "a frame and trailers",
                call2(gateway.address, nth, vec![data(body), trailers()]).await?,
            ),
            8 => {
                let frames = body.iter().map(|byte| data(&[*byte]));
                let frames = frames.chain([trailers()]).collect();
                (
                    "one-byte frames and trailers",
                    call2(gateway.address, nth, frames).await?,
                )
            }
            _ => (
                "an empty frame at the end",
                call2(gateway.address, nth, vec![data(body), data(b"")]).await?,
            ),
        };
        assert_eq!(status, 200, "{shape}: {answer}");
        assert_eq!(gateway.simulators.received(Bbmsl), nth, "{shape}");
        let request = gateway
            .simulators
            .last_request(Bbmsl)
            .context("a request")?;
        assert_eq!(request.trailers, [], "{shape}");
        let length: Vec<_> = request.headers_named("content-length").collect();
        assert_eq!(
            length,
            [request.body.len().to_string().as_bytes()],
            "{shape}"
        );
    }
    // Many at once: each gets its own signature, or BBMSL would refuse it.
    let calls: Vec<_> = (100..140)
        .map(|nth| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { call(&gateway, nth).await })
        })
        .collect();
    for pending in calls {
        assert_refunded("many", &pending.await??);
    }
    assert_eq!(gateway.simulators.ledger(Bbmsl).len(), 49);
    Ok(())
}

// Keys made for these tests by openssl, never used elsewhere. The first two are one key in its two forms.
const KEY_3072: &str = "-----BEGIN PRIVATE KEY-----
MIIG/gIBADANBgkqhkiG9w0BAQEFAASCBugwggbkAgEAAoIBgQCli3lBKS0rUi4e
XcJr1M9bG/fXIcbvkpdVJ21LAo+Vj08RWpFCb5akA6LSAJcahpfwjKLau74++f0m
JrKAW6pjkU/yPFJM5gzXSDRr2zjE9HK6ATKrpawsT/DqCw9VxnYrC1GpdZPhlupv
BYBIjPj9vTThgPRcT3+xvReguIedDvV0XaQqHEQqb6WNGFcL2qWtLdARMj+0Rdnv
h+oBuQE1wRoUulaULvB2uf+ZwfN6oMgrCFlwuouj3+m3xr1qL5Nb3Dl5sOobdpUZ
SCIaZej5gVZLRD/CxuRjOzwAgSw0/I0hkr1c4IVZHAA5fyQl7wPHheAlnTyBcVSr
cS5J7IpK6xRULyRlzSBZhLL2vSYMc2w53KprA6ZIuUCL/aX1EF4F7T1LWAg9deW3
CZSjMHkskrQUVKii1JlvUA0UqJbyWLSqYcI9crwFxoYdiZ7VtRg03FsaSSHvhuak
d7m34RGwOnK4XZV+DCHNRb9wlXAq7wN2Ia+QYHCp0Rg9XHxmyZUCAwEAAQKCAYAJ
4/TZH0grE+xcdRaWEa9Xzqp2iHaVvqja9hGSDzOb6GV9cG9ITFlwMCVsrYtZktwG
C6j5L4lUwuPMgThd8dwSuc5QdyklngL7Y716Ci1wmvg1w7eOyMWqGhaXLRT793D8
7l6xJKyyqC0Wd/orm3yO0FyV8nnm//rtmBIO0KeNiyTAEI4r0+eAr43xCZi9xRDr
8VZCiMGEmD3GkVS6SJ7ZYtGXlnBwxwMn3MH4Ij3VQEDlTUjmssaAAnM4vx929iOb
jYyn49onLWp7seYWN2LI0nudFZJ3MV+lQnmkMCJlIs4g1/LLETzSb23fBGZf6NLP
JeLUDMIRBoK0TPKvq3lNpFD4HjzRq1jOEcdcQgKuNbrw9HW2PQs5ZAjPm07K1s6K
7adGphFromUGkOSwwkJdCJGWgWOZHQ7A76C4aZjFXEELP5cZ9liq98NXUO4wYTz/
iozjKHk6FNB+stpw4tpUNWcj2qJ7Sr3iR8rgvc90lmS3c2jwhtjowhZE/ClTifsC
gcEA24m3fVc5tOVytYkZ/mHPF3vG17qImzYXDIC9xNp7U5tqKgx/NwZ5HRJRGKxZ
aKvmGMMZxsGX94qfij2OqFjE+GCfQ4D3y2hh05XSfecanuRUi+giHmYiJQOhSye8
b3cJxQE0nos8s0wz+tlYjoUOtxtCl906DnJlrnGXeGSR2LPRT1c49DHAn6Vss2xu
p4kSTd2N8ksqsybiFvOhICXQYUOAOWiNIh9oIK+s3v3aKHSF5byDl9DnLDqOOhLS
l6urAoHBAMEKFZ7Scf4M9K5SOA8a4uqaE/EfgB50mcbqKZYe44h7Cv62F8Sgv5iz
AFXMEJQwmUmi1nVgSyTh2rQaa4PAwTqBZQ0SJWrRYHH0JQWT2aiSQOxFGpOinkvW
KzFEYVsgnEnNEAK4lng6UsWCsj9NKTB2D/cfhSss073WJVHXWCt1ddeNA6TCGfGw
n5qsqreTRJWocAHRi/l0aWcEM4v58QyODZRiXFiTXtNYgXxUuImhmeq+ZDxPPSay
W2Qv6lwfvwKBwBEiZ4LN2wAmZFSM1c2H3rzreTJ/KYhLqXLdXXJOxw9YcunDPe6S
f8NoGZI+aWAFApluKMXdeDnmxNrqQQccnorwJ54CI9TpWbFE4T/YWLiMA5lDzd3n
hMS0ytLt0AQ3GzkYBf5VybAIw4nRitrcwbBC3Wiy6IQWI5+A2ByaZNOv/ScfHJ/a
fjk3lQtP7DcBOL+BCkId4cBHyZ+W9j1nFiNxPEG+yj0ejGb4rxpcX7mGlqi+lNq1
gEVwcIdRzsPtrwKBwQCcG9KmMNu8rq+E9bqeBIkzXcz4txe+CV9+rElbPLmW2qJm
n82S1sh67W888x0JKlAca5JxM6ExP3DFK4R89PmOnauhqWYW/yG2pdD2tL1VhIj6
SVwXvm+zNoyReBIfRrz9NddXy/zrV4cucOZDKNxBc4ivuY7Q/pxxredaSwLjikb1
PPWQXOPsP4Ci7jXU5USWnrON1O8Umd7PT2d8MHGOTKaQtAaoHu2VjsKQUFc3/jbh
znxzBUWXsK8V02X8gDMCgcEAlqEGiTTjIhRRY7WSMwK9KgQXOlzoedcWDSKttVUo
BNCezyMIMQ/GTdUFhgAcwKuUl+9FC7Iaz7iJsdP3B/qE3RXmJKzZBJu6eb2jT6kz
EJ6eBoZBrvCSfnaVqn2gEb5tlJgUiVdHFFjxm3s7X/xWE/09peMRzXk2dbI1p5vX
cF2hJu1txPDqmMWIkpbIPLNKVB/XQKGr2mhCbTMx1jghy0NLPfcfrixGrBECUku0
icL8NZcwEeLqZuGIhMzY5dZG
-----END PRIVATE KEY-----
";
const KEY_3072_PKCS1: &str = "-----BEGIN RSA PRIVATE KEY-----
MIIG5AIBAAKCAYEApYt5QSktK1IuHl3Ca9TPWxv31yHG75KXVSdtSwKPlY9PEVqR
Qm+WpAOi0gCXGoaX8Iyi2ru+Pvn9JiaygFuqY5FP8jxSTOYM10g0a9s4xPRyugEy
q6WsLE/w6gsPVcZ2KwtRqXWT4ZbqbwWASIz4/b004YD0XE9/sb0XoLiHnQ71dF2k
KhxEKm+ljRhXC9qlrS3QETI/tEXZ74fqAbkBNcEaFLpWlC7wdrn/mcHzeqDIKwhZ
cLqLo9/pt8a9ai+TW9w5ebDqG3aVGUgiGmXo+YFWS0Q/wsbkYzs8AIEsNPyNIZK9
XOCFWRwAOX8kJe8Dx4XgJZ08gXFUq3EuSeyKSusUVC8kZc0gWYSy9r0mDHNsOdyq
awOmSLlAi/2l9RBeBe09S1gIPXXltwmUozB5LJK0FFSootSZb1ANFKiW8li0qmHC
PXK8BcaGHYme1bUYNNxbGkkh74bmpHe5t+ERsDpyuF2VfgwhzUW/cJVwKu8DdiGv
kGBwqdEYPVx8ZsmVAgMBAAECggGACeP02R9IKxPsXHUWlhGvV86qdoh2lb6o2vYR
kg8zm+hlfXBvSExZcDAlbK2LWZLcBguo+S+JVMLjzIE4XfHcErnOUHcpJZ4C+2O9
egotcJr4NcO3jsjFqhoWly0U+/dw/O5esSSssqgtFnf6K5t8jtBclfJ55v/67ZgS
DtCnjYskwBCOK9PngK+N8QmYvcUQ6/FWQojBhJg9xpFUukie2WLRl5ZwcMcDJ9zB
+CI91UBA5U1I5rLGgAJzOL8fdvYjm42Mp+PaJy1qe7HmFjdiyNJ7nRWSdzFfpUJ5
pDAiZSLOINfyyxE80m9t3wRmX+jSzyXi1AzCEQaCtEzyr6t5TaRQ+B480atYzhHH
XEICrjW68PR1tj0LOWQIz5tOytbOiu2nRqYRa6JlBpDksMJCXQiRloFjmR0OwO+g
uGmYxVxBCz+XGfZYqvfDV1DuMGE8/4qM4yh5OhTQfrLacOLaVDVnI9qie0q94kfK
4L3PdJZkt3No8IbY6MIWRPwpU4n7AoHBANuJt31XObTlcrWJGf5hzxd7xte6iJs2
FwyAvcTae1ObaioMfzcGeR0SURisWWir5hjDGcbBl/eKn4o9jqhYxPhgn0OA98to
YdOV0n3nGp7kVIvoIh5mIiUDoUsnvG93CcUBNJ6LPLNMM/rZWI6FDrcbQpfdOg5y
Za5xl3hkkdiz0U9XOPQxwJ+lbLNsbqeJEk3djfJLKrMm4hbzoSAl0GFDgDlojSIf
aCCvrN792ih0heW8g5fQ5yw6jjoS0perqwKBwQDBChWe0nH+DPSuUjgPGuLqmhPx
H4AedJnG6imWHuOIewr+thfEoL+YswBVzBCUMJlJotZ1YEsk4dq0GmuDwME6gWUN
EiVq0WBx9CUFk9mokkDsRRqTop5L1isxRGFbIJxJzRACuJZ4OlLFgrI/TSkwdg/3
H4UrLNO91iVR11grdXXXjQOkwhnxsJ+arKq3k0SVqHAB0Yv5dGlnBDOL+fEMjg2U
YlxYk17TWIF8VLiJoZnqvmQ8Tz0msltkL+pcH78CgcARImeCzdsAJmRUjNXNh968
63kyfymIS6ly3V1yTscPWHLpwz3ukn/DaBmSPmlgBQKZbijF3Xg55sTa6kEHHJ6K
8CeeAiPU6VmxROE/2Fi4jAOZQ83d54TEtMrS7dAENxs5GAX+VcmwCMOJ0Yra3MGw
Qt1osuiEFiOfgNgcmmTTr/0nHxyf2n45N5ULT+w3ATi/gQpCHeHAR8mflvY9ZxYj
cTxBvso9Hoxm+K8aXF+5hpaovpTatYBFcHCHUc7D7a8CgcEAnBvSpjDbvK6vhPW6
ngSJM13M+LcXvglffqxJWzy5ltqiZp/NktbIeu1vPPMdCSpQHGuScTOhMT9wxSuE
fPT5jp2roalmFv8htqXQ9rS9VYSI+klcF75vszaMkXgSH0a8/TXXV8v861eHLnDm
QyjcQXOIr7mO0P6cca3nWksC44pG9Tz1kFzj7D+Aou411OVElp6zjdTvFJnez09n
fDBxjkymkLQGqB7tlY7CkFBXN/424c58cwVFl7CvFdNl/IAzAoHBAJahBok04yIU
UWO1kjMCvSoEFzpc6HnXFg0irbVVKATQns8jCDEPxk3VBYYAHMCrlJfvRQuyGs+4
ibHT9wf6hN0V5iSs2QSbunm9o0+pMxCengaGQa7wkn52lap9oBG+bZSYFIlXRxRY
8Zt7O1/8VhP9PaXjEc15NnWyNaeb13BdoSbtbcTw6pjFiJKWyDyzSlQf10Chq9po
Qm0zMdY4IctDSz33H64sRqwRAlJLtInC/DWXMBHi6mbhiITM2OXWRg==
-----END RSA PRIVATE KEY-----
";
const PUBLIC_3072: &str = "-----BEGIN PUBLIC KEY-----
MIIBojANBgkqhkiG9w0BAQEFAAOCAY8AMIIBigKCAYEApYt5QSktK1IuHl3Ca9TP
Wxv31yHG75KXVSdtSwKPlY9PEVqRQm+WpAOi0gCXGoaX8Iyi2ru+Pvn9JiaygFuq
Y5FP8jxSTOYM10g0a9s4xPRyugEyq6WsLE/w6gsPVcZ2KwtRqXWT4ZbqbwWASIz4
/b004YD0XE9/sb0XoLiHnQ71dF2kKhxEKm+ljRhXC9qlrS3QETI/tEXZ74fqAbkB
NcEaFLpWlC7wdrn/mcHzeqDIKwhZcLqLo9/pt8a9ai+TW9w5ebDqG3aVGUgiGmXo
+YFWS0Q/wsbkYzs8AIEsNPyNIZK9XOCFWRwAOX8kJe8Dx4XgJZ08gXFUq3EuSeyK
SusUVC8kZc0gWYSy9r0mDHNsOdyqawOmSLlAi/2l9RBeBe09S1gIPXXltwmUozB5
LJK0FFSootSZb1ANFKiW8li0qmHCPXK8BcaGHYme1bUYNNxbGkkh74bmpHe5t+ER
sDpyuF2VfgwhzUW/cJVwKu8DdiGvkGBwqdEYPVx8ZsmVAgMBAAE=
-----END PUBLIC KEY-----
";
const KEY_4096: &str = "-----BEGIN PRIVATE KEY-----
MIIJQwIBADANBgkqhkiG9w0BAQEFAASCCS0wggkpAgEAAoICAQC+sZhTuzP3Bf6h
J7dJoqCpYoSe6IshKpIvLms0p7cpDVdYm/rSO7sLMtAIGr/7uj7KvofP1LY9Phg0
lk9sZL88velf9EPO+p0ru7XkGrxcAbGrVNPVwc0kuIXhnqygK9pIrgSPmT52TdPQ
WRi2XlcZ4xk6B0U/2w8FDENNO504FqUhONd3ujg6y2SqHghNE/Q71TJ/B61AdB2z
NiECOuoC1X1PW7TCQonhS8u0VstaIdvj1txAQc7Vw9zZH0gDXn0JVPI4kJeOubb8
KNBYJFqP99Bftgoa8HoCjbpRkGoZcbXMfLIREysl6U/iVlEiT4jPTmkqYSBTsGGk
4L2EIYFTmao97znYLUBw45vB/eGiRCjm6RKJvYqmwG0ShkrOwPYV8tQoIrtrWXSD
8JGDfAES6wRyE+i4rnMB2KwXKZ2aM7geIg9SUFSPg3S3omUXmp1/fZHKKj0qlkm+
ZLGSs9RKtMGQAnWZSkvKcl5tHoLeZdMXGZh1KJtyl8W59eO+/FZqF7u8/52VVFG9
p1VJQMoNzBkDX9HGUrwtN9Rt4SML/7yzTMvyjHqfwsyEuglVHYyMHr77SV05+qhM
+xxu4KSgogbvE132hnnxl8J/NcsGhYr1QuTAy5xyOGLC4/BbhYyk6qc+giDAsRiG
TXzW2WeJcsDeQTAd7qzYoRzWRz/q9QIDAQABAoICAALF10WSs3mYD/WAsrhAVnVW
7cWa5xQlVY/I7TK2/+L/+eaAIrNxmcJIf6CPTa7G/An+q6FcfX/8MBzF7Ws/Z/h4
Czu8DGQtIRuNsCVM912HgetihegfIX0Uui5nZWY+1WAysj6poU6xXIqJseIbEsmJ
9Sl4wHMfWLKowmrpddtm7joLuh32zYTL0XjOpFIp1maNqJdDs/qOCwRS8xL42LcD
vTetDF0nhlfTLAllvwZ2xm6dsWLBnmb8MGTEyia0rQZK2w9gQz6SheNlJg6Y5/dy
neO3J3HkEv2Ia5GGt9ydVGHjGbeOmwkPOz9HGIK7lzyJaEwp1uj5ACxhlGX71fnv
K9omSjz5or+aAHjI1gjSZbvxV1KPoxijs4QEr/Mvho9Kh/FTlEySmisx6vJeI1pr
mCF82XK9UJfMh5gTMDv+B6Ntwjq+awa/LPACAdymgEmWCMHCfq83ChUn7M06ntxL
03TIqZoaiEGgJueJf8HloQS75IWvsuLZHhd7xbcCQCobfwF+GqobnCCoYbaAQ+uQ
6PmuHJrfICogl1vzPUIBXLwFj5Oax4ZsKDmtZQGhQ/zcID5cpJxQC94D4fwt0tJV
2SY6kKSehEvCjMd2B0ITVnnDI41TXGY4cbda1ld+woEHb+6H8W6oUEzRLKpMRRhC
gFqYB6faoFlPLp+pOWTRAoIBAQDntaWrIpF6crCQVcrIvDHVt/V7xok6JjIQxvTX
XN9vHag/4c/PETEbNewZaAG4Iv4TG6116ObK5egq5WzgsR2be7dPbF2TevCmrGd+
Gmnd5dJ7VQnmkANtNMP5UICcwOMMC6PWRxZs8ObZ1gw+1sSccZwVoF8LWI3r0jXD
hyxoW7GLUdvcQ6CU6d+8Y7mWJZcx4ZE9UyEJHm8vQufnEj1rr8miYpX+k+pxF6jA
tnTQz+u6cUxRcmzOCYjuStYer2f6mwJVdJXF7rMiE+xcPX//51kUf14OUAMSH91N
fLxcYLnViYikh0ODkvuoX1COrhMj1wbUYYHDPQazGeHI6ZznAoIBAQDSrzZq7TUu
ZpGPRnH4Nr/iN0K6P4sAQsNmiZZwguw8pynPtHfsokFlHPPe7Wia+0BdPH9Tk/aN
JuxMDV9KbUuUjHKtTEsxgEXmy0uqntrFXnbcqeY6cuxqYjD9TMDi2+vgCj0+eTEP
YO+P5W/CB7PX2JT4K3IOrYLVwooXlczef9GCCMAXcBtH/XcVi3i5FkIIfpd6TSgY
9Q8JPmGdH+z8Qz2u3m5KilTzTd/WRKhF5/V0sC5lzECj8ycuVaXojVsqtPlNy7bX
BGpQl8ZW50y4QEA0pNAs8naMDdZK+09mI9bPRIfl5htvmvwZvcZpYm8zrharZZc1
DaS4QChEO4HDAoIBAHUQ0iW3bla2ETyrC6wFYQxAR/eEJBrL52mQi20vj/dcvX+g
/9P3NJ8xzBo98PhuPX278xRqWghSxcy+YxbWhUXj6IZpEpILgABFhHgysiAZGBGV
sk3ZntGS4hxZLtGDpnKUgu8ktVDPGWMfgMpSybzcrWZDwyFBWVq2ttEVvzrucLIZ
5oHPbRcvXgmZPM9+KHhcJXwdPsiTpsry+6VEEuIQS0gOlQetBbqjoG/U/wnssoVc
7pkLvasPKC50gt+38Ums/S3dnDoHUlu6QyWLMNtCsD/p5cRHanXCwZV/ms71U45u
USoG6PZV0W2M0m9zxVnLLrkoll3kvDjKr8dJOCsCggEBAJEEVVqoR/DWXN7XyF7n
oJBfJSj5z/2v9ru/fLOZCm59SYRUXi+dR5IHqb0KgPQceSM0HxgyQoTKA+AdXDfo
nxtyyQSL/T3nYzYHPOAGU+OCsCIXOAeHTz+ysrHHgQUmB2fA5IL5/FDvkjXj4VcW
4i1yQKfJj8qWl/X24AJ38/o61MTCrSX03nJg/vTveXs83Nrn9/AQ58a191GPhLUY
YpEI345cQGJCcVK/iZD81S65CPT2yBj9zIiNN6zm+znlApmU0/0+eW3q9hrfPYBX
2TEB2K/juf8WLY8dfyFBdleB17v3Geuexce+UESPoeCsBor2C1iSps+3wmeokY7V
vu0CggEBAN7Bek5KJ//HmTf4FfHElhH3jeTgDGllfGv/pEjzy+XcbVzhBKtL+jTO
JD/ViCWGuC6ssV2ER7tW3GMjsKqsznJC0hfkdO/Cstl+8h/nxu0BZWgjWfSF0zjX
0EGZrmXltULwPH9xZkTHhzV6NAt+3tBz0yJnvBDCP95T7DstC0MKe4JKbrYhuL1g
cZH3pfloWQoAHeApoutQNOwyh1qARjFahyRU3+kfXS7V10ansa0SNe4WwNF58aPM
qajhkB76VymGj9mOvwhK84Fq1+zxzwIBPoq7JvYBvxm5y4CJMivWr0Lmx13MR2id
x6xlnYv340oWuH4UjBRPJ5c/F+nnnKk=
-----END PRIVATE KEY-----
";
const PUBLIC_4096: &str = "-----BEGIN PUBLIC KEY-----
MIICIjANBgkqhkiG9w0BAQEFAAOCAg8AMIICCgKCAgEAvrGYU7sz9wX+oSe3SaKg
qWKEnuiLISqSLy5rNKe3KQ1XWJv60ju7CzLQCBq/+7o+yr6Hz9S2PT4YNJZPbGS/
PL3pX/RDzvqdK7u15Bq8XAGxq1TT1cHNJLiF4Z6soCvaSK4Ej5k+dk3T0FkYtl5X
GeMZOgdFP9sPBQxDTTudOBalITjXd7o4Ostkqh4ITRP0O9UyfwetQHQdszYhAjrq
AtV9T1u0wkKJ4UvLtFbLWiHb49bcQEHO1cPc2R9IA159CVTyOJCXjrm2/CjQWCRa
j/fQX7YKGvB6Ao26UZBqGXG1zHyyERMrJelP4lZRIk+Iz05pKmEgU7BhpOC9hCGB
U5mqPe852C1AcOObwf3hokQo5ukSib2KpsBtEoZKzsD2FfLUKCK7a1l0g/CRg3wB
EusEchPouK5zAdisFymdmjO4HiIPUlBUj4N0t6JlF5qdf32Ryio9KpZJvmSxkrPU
SrTBkAJ1mUpLynJebR6C3mXTFxmYdSibcpfFufXjvvxWahe7vP+dlVRRvadVSUDK
DcwZA1/RxlK8LTfUbeEjC/+8s0zL8ox6n8LMhLoJVR2MjB6++0ldOfqoTPscbuCk
oKIG7xNd9oZ58ZfCfzXLBoWK9ULkwMuccjhiwuPwW4WMpOqnPoIgwLEYhk181tln
iXLA3kEwHe6s2KEc1kc/6vUCAwEAAQ==
-----END PUBLIC KEY-----
";
