//! Gateways that share one memory of keys, in a real Redis over TLS: its user may do nothing but what the filter does.

#[path = "../../common/store.rs"]
mod store;

use std::sync::Arc;
use std::time::Duration;

use crate::common::{
    FOUR, Problem, assert_problem, booked, final_at_once, keyed, of, plugin, unknown,
};
use anyhow::{Context as _, Result, ensure};
use gateway_testbed::redis::{HOST, PASSWORD, Redis, Store, USER};
use gateway_testbed::{Answer, Beside, Gateway, Options, cluster, share_memory};
use provider_simulator::{Fault, Provider};
use refund_filter::redis::{Fault as RedisFault, Login, Swap, Swaps};
use refund_filter::secret::Secret;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep};

use Provider::{Bbmsl, Moyasar};

/// 1.00 of a provider's nth fresh order.
fn one(provider: Provider, nth: u64) -> Value {
    of(provider, nth, "1.00")
}

/// A gateway with this memory: the first, or another one beside it.
async fn sharing(stores: &[Store], beside: Option<Beside>) -> Result<Gateway> {
    let stores = stores.to_vec();
    let gateway = Gateway::start(Options {
        more_secrets: vec![("memory-password", PASSWORD.to_owned())],
        change: Box::new(move |config, folder| {
            share_memory(config, &stores, folder).expect("memory.yaml");
            // A busy machine is no fault of the store's.
            plugin(config, |plugin| {
                plugin["memory"]["redis"]["timeout_ms"] = json!(2_000)
            });
        }),
        beside,
        ..Options::default()
    })
    .await?;
    sees_the_store(&gateway).await?;
    Ok(gateway)
}

/// What the filter has said in a gateway's log.
fn lines_of(gateway: &Gateway) -> Vec<String> {
    let log = gateway.log();
    let lines = log.lines().filter(|line| line.contains("refund-filter"));
    lines.map(str::to_owned).collect()
}

/// Waits until Envoy has found a primary.
async fn sees_the_store(gateway: &Gateway) -> Result<()> {
    let healthy = "cluster.memory.membership_healthy";
    let deadline = Instant::now() + Duration::from_secs(20);
    while gateway.stats(healthy).await?.get(healthy) != Some(&1) {
        ensure!(Instant::now() < deadline, "no store was found");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn fleet<const N: usize>(stores: &[Store]) -> Result<[Gateway; N]> {
    let first = sharing(stores, None).await?;
    let mut gateways = Vec::new();
    for _ in 1..N {
        gateways.push(sharing(stores, Some(first.beside())).await?);
    }
    gateways.insert(0, first);
    let gateways: Result<[Gateway; N], _> = gateways.try_into();
    gateways.ok().context("gateways")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_one_refund_at_every_gateway_and_after_restarts() -> Result<()> {
    let mut redis = Redis::start().await?;
    let [mut first, second] = fleet::<2>(&[redis.store()]).await?;
    for provider in FOUR {
        let (case, call) = (format!("{provider:?}"), one(provider, 1));
        let made = first.refund(&case, &call).await?;
        assert!(made.status < 300, "{case}: {made:?}");
        let again = second.refund(&case, &call).await?;
        assert_eq!(again.body["id"], made.body["id"], "{case}: {again:?}");
        if made.status == 200 {
            assert_eq!(again.body, made.body, "{case}");
            assert_eq!(again.header("idempotency-replayed"), "true", "{case}");
        }
        assert_eq!(booked(&first, provider, 1), 1, "{case}");
    }
    // Also where one call follows another at once, each has its answer.
    let unanswered = r"refund\.memory_calls_total\..*\.result\.(unanswered|garbled)";
    for gateway in [&first, &second] {
        let counts = gateway.stats(unanswered).await?;
        assert!(!counts.is_empty());
        assert!(counts.values().all(|count| *count == 0), "{counts:?}");
    }
    // The store crashes, too: what it has acknowledged it still knows, and nobody else is left who does.
    redis.kill().await?;
    redis.restart().await?;
    first.restart().await?;
    sees_the_store(&first).await?;
    for provider in final_at_once() {
        let case = format!("{provider:?}");
        let again = first.refund(&case, &one(provider, 1)).await?;
        assert_eq!(
            again.header("idempotency-replayed"),
            "true",
            "{case}: {again:?}"
        );
        assert_eq!(booked(&first, provider, 1), 1, "{case}");
    }
    // The payment is another key's, everywhere.
    for gateway in [&first, &second] {
        sees_the_store(gateway).await?;
        let other = gateway.refund("other", &one(Bbmsl, 1)).await?;
        assert_problem("other", &other, Problem::certain("payment-has-refund", 409));
    }
    // All of it with these rights, and no others.
    for refused in [
        &["DEL", "refund.guard:x"][..],
        &["GET", "another"],
        &["KEYS", "*"],
    ] {
        let said = redis.command_as(USER, PASSWORD, refused).await?;
        assert!(said.starts_with("NOPERM"), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_away_nothing_false_is_said_and_what_was_not_told_is_told_later() -> Result<()> {
    let mut redis = Redis::start().await?;
    let [first, second] = fleet::<2>(&[redis.store()]).await?;
    let unavailable = Problem {
        outcome: "unknown",
        retry: "same_key",
        ..Problem::certain("memory-unavailable", 503)
    };
    let warm = first.refund("warm", &one(Bbmsl, 9)).await?;
    assert_eq!(warm.status, 200, "{warm:?}");
    for (nth, away) in ["hung", "killed"].into_iter().enumerate() {
        let nth = 1 + u64::try_from(nth)?;
        if away == "hung" {
            redis.signal("STOP").await?;
        } else {
            redis.kill().await?;
        }
        let case = format!("Bbmsl-{away}");
        let refused = first.refund(&case, &one(Bbmsl, nth)).await?;
        assert_problem(&case, &refused, unavailable);
        assert_eq!(booked(&first, Bbmsl, nth), 0, "{case}");
        for provider in keyed() {
            let case = format!("{provider:?}-{away}");
            let made = first.refund(&case, &one(provider, nth)).await?;
            assert!(made.status < 300, "{case}: {made:?}");
        }
        // A refusal may hide a peer's send.
        let says_no = Fault::Reply {
            reply: provider_simulator::Reply::json(401, "{}"),
            booked: false,
        };
        first.simulators.next_fault(Moyasar, says_no);
        let case = format!("refused-{away}");
        let answer = first.refund(&case, &one(Moyasar, 20 + nth)).await?;
        assert_eq!(answer.body["outcome"], "unknown", "{answer:?}");
        if away == "hung" {
            redis.signal("CONT").await?;
        } else {
            redis.restart().await?;
        }
        // It is known at the other gateway soon, and was sent once.
        for provider in keyed() {
            let case = format!("{provider:?}-{away}");
            let call = one(provider, nth);
            let deadline = Instant::now() + Duration::from_secs(20);
            while second.refund(&case, &call).await?.status >= 300 && Instant::now() < deadline {
                sleep(Duration::from_millis(100)).await;
            }
            let known = second.refund(&case, &call).await?;
            assert!(known.status < 300, "{case}: {known:?}");
            assert_eq!(booked(&first, provider, nth), 1, "{case}");
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let case = format!("Bbmsl-{away}");
        while first.refund(&case, &one(Bbmsl, nth)).await?.status >= 300 {
            assert!(Instant::now() < deadline, "{case}");
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(booked(&first, Bbmsl, nth), 1, "{case}");
    }
    // Whoever is on call finds the calls that the store did not know of.
    let words = |log: &str, kind: &str| {
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines = lines.filter(|line| line["refund_status"] == *kind);
        lines.map(|line| line["memory"].clone()).collect::<Vec<_>>()
    };
    let log = first.access_log();
    let unavailable = words(&log, "memory-unavailable");
    assert!(!unavailable.is_empty(), "{log}");
    assert!(
        unavailable.iter().all(|word| *word == "unavailable"),
        "{log}"
    );
    let succeeded = words(&log, "succeeded");
    assert_eq!(succeeded.first(), Some(&Value::Null), "{log}");
    assert!(succeeded.contains(&json!("alone")), "{log}");
    Ok(())
}

/// The provider does not answer in time, a connection breaks, the caller leaves: at every gateway the same is known.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_at_one_gateway_is_unknown_at_all() -> Result<()> {
    let redis = Redis::start().await?;
    let [first, second] = fleet::<2>(&[redis.store()]).await?;
    for provider in final_at_once() {
        let case = format!("{provider:?}");
        first
            .simulators
            .next_fault(provider, Fault::Reset { booked: true });
        let lost = first.refund(&case, &one(provider, 1)).await?;
        assert_problem(&case, &lost, unknown(provider, "provider-error", 502));
        let again = second.refund(&case, &one(provider, 1)).await?;
        if provider.has_keys() {
            assert_eq!(again.status, 200, "{case}: {again:?}");
        } else {
            assert_problem(&case, &again, unknown(provider, "provider-error", 502));
        }
        assert_eq!(booked(&first, provider, 1), 1, "{case}");
        let order = provider_simulator::orders::fresh(provider, 1).to_string();
        let query = [
            ("provider", cluster(provider)),
            ("payment_id", &*order),
            ("key", &*case),
        ];
        let found = second.look_up(&query).await?;
        assert_eq!(found.body["status"], "succeeded", "{case}: {found:?}");
        let told = first.refund(&case, &one(provider, 1)).await?;
        assert_eq!(told.body["status"], "succeeded", "{case}: {told:?}");
        assert_eq!(booked(&first, provider, 1), 1, "{case}");
    }
    Ok(())
}

/// A call is refused for its type or its size while its body is still on its way: whether another gateway has sent its key is asked
/// first, over HTTP/1.1 and HTTP/2.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_before_the_body_says_nothing_of_anothers_send() -> Result<()> {
    let redis = Redis::start().await?;
    let [first, second] = fleet::<2>(&[redis.store()]).await?;
    first
        .simulators
        .next_fault(Bbmsl, Fault::Reset { booked: true });
    let lost = first.refund("sent", &one(Bbmsl, 1)).await?;
    assert_problem("sent", &lost, unknown(Bbmsl, "provider-error", 502));
    // Where the password comes with a header, a call has brought it by now.
    assert_eq!(second.refund("other", &one(Bbmsl, 2)).await?.status, 200);
    let http_1 = reqwest::Client::new();
    let http_2 = reqwest::Client::builder().http2_prior_knowledge().build()?;
    for (key, outcome) in [("sent", "unknown"), ("nobody's", "not_refunded")] {
        for client in [&http_1, &http_2] {
            for (content_type, size, code) in [
                ("text/plain", 10, "unsupported-media-type"),
                ("application/json", 70 * 1024, "body-too-large"),
            ] {
                let call = client.post(second.url()).header("idempotency-key", key);
                let call = call
                    .header("content-type", content_type)
                    .body(" ".repeat(size));
                let told = Answer::read(call.send().await?).await?.body;
                let said = [&told["code"], &told["outcome"], &told["retry"]];
                assert_eq!(said, [code, outcome, "corrected"], "{key}: {told}");
            }
        }
    }
    assert_eq!(booked(&first, Bbmsl, 1), 1);
    Ok(())
}

/// What Redis does is what the core's tests take it for: the same calls, word for word, to both.
#[tokio::test(flavor = "multi_thread")]
async fn redis_says_what_the_cores_store_says() -> Result<()> {
    let redis = Redis::start().await?;
    let time = redis.command(&["TIME"]).await?;
    let now_ms: i64 = time.lines().next().context("a time")?.parse::<i64>()? * 1_000;
    let mock = store::MockStore {
        login: Some((USER, PASSWORD)),
        ..store::MockStore::new(now_ms)
    };
    let far = now_ms + 60_000;
    let swap = |key: &str, was: &str, new: &str| Swap {
        key: format!("refund.guard:{key}"),
        was: was.into(),
        new: new.into(),
    };
    let binary = Swap {
        new: vec![0, 13, 10, 255, b'$'],
        ..swap("binary", "", "")
    };
    let cases: Vec<(Vec<Swap>, i64)> = vec![
        // Nothing is there; it is written; it is so already; it is another's.
        (vec![swap("a", "", "")], far),
        (vec![swap("a", "", "1")], far),
        (vec![swap("a", "", "1")], far),
        (vec![swap("a", "", "2")], far),
        (vec![swap("a", "1", "2")], far),
        (vec![swap("a", "1", "")], far),
        (vec![binary.clone()], far),
        (
            vec![Swap {
                was: binary.new,
                new: b"3".to_vec(),
                ..swap("binary", "", "")
            }],
            far,
        ),
        // All or nothing, what is only read included.
        (vec![swap("b", "", "1"), swap("a", "1", "9")], far),
        (vec![swap("b", "", "1"), swap("a", "1", "")], far),
        (
            vec![swap("b", "", "1"), swap("a", "2", ""), swap("c", "", "1")],
            far,
        ),
        // Too late, and not too late to be told what stands.
        (vec![swap("d", "", "1")], now_ms - 60_000),
        (
            vec![swap("a", "2", ""), swap("b", "", "7")],
            now_ms - 60_000,
        ),
        (vec![swap("d", "", "")], far),
        // Not its own.
    ];
    for (nth, (swaps, deadline_ms)) in cases.into_iter().enumerate() {
        let swaps = Swaps {
            swaps: &swaps,
            word: 0x0123_4567_89ab_cdef + u64::try_from(nth)?,
            deadline_ms,
            ttl_ms: 60_000,
        };
        let secret = Secret::new(PASSWORD.to_owned());
        let login = Login {
            username: Some(USER),
            password: &secret,
        };
        let request = swaps.request(Some(login));
        let said = spoken(&redis.store(), &request).await?;
        let (theirs, ours) = (
            swaps.answer(true, &said),
            swaps.answer(true, &mock.call(&request)),
        );
        match (theirs, ours) {
            (Ok(theirs), Ok(ours)) => assert_eq!(theirs.values, ours.values, "case {nth}"),
            (Err(RedisFault::Late(_)), Err(RedisFault::Late(_))) => {}
            (theirs, ours) => panic!("case {nth}: {theirs:?}, {ours:?}"),
        }
    }
    // What they say where nobody is let in.
    let swaps = [swap("a", "", "")];
    let swaps = Swaps {
        swaps: &swaps,
        word: 1,
        deadline_ms: far,
        ttl_ms: 1,
    };
    let wrong = Secret::new("wrong".to_owned());
    for login in [
        None,
        Some(Login {
            username: Some(USER),
            password: &wrong,
        }),
    ] {
        let request = swaps.request(login);
        let said = spoken(&redis.store(), &request).await?;
        let theirs = swaps.answer(login.is_some(), &said);
        let wanted = if login.is_some() {
            "WRONGPASS"
        } else {
            "NOAUTH"
        };
        assert_eq!(theirs, Err(RedisFault::Refused(wanted)));
        if login.is_some() {
            assert_eq!(theirs, swaps.answer(true, &mock.call(&request)));
        }
    }
    let other = [Swap {
        key: "another:a".into(),
        ..swap("a", "", "")
    }];
    let swaps = Swaps {
        swaps: &other,
        ..swaps
    };
    let right = Secret::new(PASSWORD.to_owned());
    let request = swaps.request(Some(Login {
        username: Some(USER),
        password: &right,
    }));
    let said = spoken(&redis.store(), &request).await?;
    let refused = swaps.answer(true, &said);
    assert!(
        matches!(refused, Err(RedisFault::Refused("NOPERM" | "ERR"))),
        "{refused:?}"
    );
    Ok(())
}

/// Sends bytes over a connection of their own, closes that half, and gives all that comes.
async fn spoken(store: &Store, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&store.ca)?)?;
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()?
    .with_root_certificates(roots)
    .with_client_auth_cert(
        vec![CertificateDer::from_pem_file(&store.certificate)?],
        PrivateKeyDer::from_pem_file(&store.key)?,
    )?;
    let tcp = tokio::net::TcpStream::connect(store.address).await?;
    let host = rustls::pki_types::ServerName::try_from(HOST)?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(host, tcp)
        .await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut said = Vec::new();
    // Redis ends its half without a farewell.
    if let Err(error) = stream.read_to_end(&mut said).await {
        ensure!(error.kind() == std::io::ErrorKind::UnexpectedEof, error);
    }
    Ok(said)
}

/// The same key at three gateways with two workers each, all at once, thousands of times.
#[tokio::test(flavor = "multi_thread")]
async fn of_all_who_call_at_once_one_is_sent() -> Result<()> {
    const KEYS: u64 = 1_000;
    let redis = Redis::start().await?;
    let gateways = Arc::new(fleet::<3>(&[redis.store()]).await?);
    let mut all = tokio::task::JoinSet::new();
    for provider in FOUR {
        let gateways = Arc::clone(&gateways);
        all.spawn(async move {
            for nth in 0..KEYS / 4 {
                // One at each gateway, and more than each has workers in some.
                let callers = if nth % 10 == 0 { 9 } else { 3 };
                let refunded = all_at_once(&gateways, provider, nth, callers).await?;
                ensure!(refunded > 0, "{provider:?} {nth}: nobody was told of it");
                ensure!(
                    booked(&gateways[0], provider, nth) == 1,
                    "{provider:?} {nth}: not booked once"
                );
            }
            Ok(())
        });
    }
    while let Some(of_provider) = all.join_next().await {
        of_provider??;
    }
    Ok(())
}

/// One key in so many calls at the same moment. Gives how many were told that it was refunded; all others that it is in progress.
async fn all_at_once(
    gateways: &Arc<[Gateway; 3]>,
    provider: Provider,
    nth: u64,
    callers: usize,
) -> Result<usize> {
    let mut calls = tokio::task::JoinSet::new();
    for call in 0..callers {
        let gateways = Arc::clone(gateways);
        calls.spawn(async move {
            let key = format!("{provider:?}-{nth}");
            gateways[call % 3].refund(&key, &one(provider, nth)).await
        });
    }
    let mut refunded = 0;
    while let Some(answer) = calls.join_next().await {
        let answer = answer??;
        if answer.status < 300 {
            refunded += 1;
        } else {
            ensure!(
                answer.body["code"] == "refund-in-progress",
                "{}: {:#?}",
                answer.body,
                gateways.iter().flat_map(lines_of).collect::<Vec<_>>()
            );
        }
    }
    Ok(refunded)
}

/// What the real server says in each state that it can be in.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_write_is_no_memory() -> Result<()> {
    let mut primary = Redis::start().await?;
    let replica = primary.replica().await?;
    let [gateway] = fleet::<1>(&[primary.store(), replica.store()]).await?;
    let made = gateway.refund("first", &one(Bbmsl, 1)).await?;
    assert_eq!(made.status, 200, "{made:?}");
    let unavailable = Problem {
        outcome: "unknown",
        retry: "same_key",
        ..Problem::certain("memory-unavailable", 503)
    };
    let config = |name: &'static str, value: &'static str| ["CONFIG", "SET", name, value];
    let states = [
        ("OOM", config("maxmemory", "1"), config("maxmemory", "0")),
        (
            "NOREPLICAS",
            config("min-replicas-to-write", "9"),
            config("min-replicas-to-write", "0"),
        ),
        (
            "NOPERM",
            ["ACL", "SETUSER", USER, "-eval"],
            ["ACL", "SETUSER", USER, "+eval"],
        ),
        (
            "ERR",
            ["ACL", "SETUSER", USER, "-set"],
            ["ACL", "SETUSER", USER, "+set"],
        ),
        (
            "WRONGPASS",
            ["ACL", "SETUSER", USER, "off"],
            ["ACL", "SETUSER", USER, "on"],
        ),
    ];
    for (nth, (word, begin, end)) in states.into_iter().enumerate() {
        let nth = 10 + u64::try_from(nth)?;
        primary.command(&begin).await?;
        let refused = gateway.refund(word, &one(Bbmsl, nth)).await?;
        assert_problem(word, &refused, unavailable);
        let lines = lines_of(&gateway);
        let said = format!("it said {word}");
        assert!(lines.iter().any(|line| line.contains(&said)), "{lines:#?}");
        primary.command(&end).await?;
        // At once, since nothing stands in the store of it.
        let made = gateway.refund(word, &one(Bbmsl, nth)).await?;
        assert_eq!(made.status, 200, "{word}: {made:?}");
        assert_eq!(booked(&gateway, Bbmsl, nth), 1, "{word}");
    }
    // The replica takes over, and Envoy finds it by its health check.
    let all = primary.command(&["DBSIZE"]).await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while replica.command(&["DBSIZE"]).await? != all {
        ensure!(Instant::now() < deadline, "nothing is replicated");
        sleep(Duration::from_millis(50)).await;
    }
    primary.kill().await?;
    replica.command(&["REPLICAOF", "NO", "ONE"]).await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let again = loop {
        let again = gateway.refund("first", &one(Bbmsl, 1)).await?;
        if again.status == 200 || Instant::now() > deadline {
            break again;
        }
        assert_problem("failover", &again, unavailable);
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(again.header("idempotency-replayed"), "true", "{again:?}");
    assert_eq!(booked(&gateway, Bbmsl, 1), 1);
    Ok(())
}

/// The limit: a primary that dies before its replica has a claim takes the claim with it. A provider's own keys hold even then;
/// without keys the second send is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_no_replica_has_is_lost_with_its_primary() -> Result<()> {
    let mut primary = Redis::start().await?;
    let mut replica = primary.replica().await?;
    let [first, second] = fleet::<2>(&[primary.store(), replica.store()]).await?;
    // Nothing is replicated any more.
    replica.kill().await?;
    for provider in final_at_once() {
        let made = first
            .refund(&format!("{provider:?}"), &one(provider, 1))
            .await?;
        assert_eq!(made.status, 200, "{provider:?}: {made:?}");
    }
    primary.kill().await?;
    replica.restart().await?;
    replica.command(&["REPLICAOF", "NO", "ONE"]).await?;
    sees_the_store(&second).await?;
    for provider in final_at_once() {
        let again = second
            .refund(&format!("{provider:?}"), &one(provider, 1))
            .await?;
        let sent = second.simulators.received(provider);
        assert_eq!(sent, 2, "{provider:?}: {again:?}");
        if provider.has_keys() {
            assert_eq!(again.status, 200, "{provider:?}: {again:?}");
        } else {
            // Here the order's own state saves it: another amount of another order would be refunded twice.
            assert_eq!(again.body["outcome"], "unknown", "{provider:?}: {again:?}");
        }
        assert_eq!(booked(&first, provider, 1), 1, "{provider:?}: {again:?}");
    }
    Ok(())
}
