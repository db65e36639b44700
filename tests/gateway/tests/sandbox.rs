//! The sandbox's payments through the gateway: what their caller is told first, and how it ends
//! where the caller does what it is told. `docs/sandbox.md` is made from the same table.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use futures_util::future::join_all;
use gateway_testbed::{Answer, Gateway, Options, cluster, sandbox};
use provider_simulator::Provider::{self, Bbmsl};
use provider_simulator::sandbox::Ending;
use serde_json::json;

use crate::common::{FOUR, currency};

/// How a refund ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Refunded,
    NotRefunded,
    /// Nobody but the provider can tell.
    Open,
}
use End::{NotRefunded, Open, Refunded};

/// A status, the code or the status word, and `outcome` and `retry` of a problem.
type Told = (u16, &'static str, &'static str, &'static str);

const SUCCEEDED: Told = (200, "succeeded", "", "");
const PENDING: Told = (202, "pending", "", "");
const DECLINED: Told = (422, "refund-declined", "not_refunded", "no");
const REJECTED: Told = (422, "provider-rejected", "not_refunded", "no");
const THERE_ALREADY: Told = (422, "provider-rejected", "unknown", "look_up");

/// Where the provider has keys, and where it has none.
const fn by_key(status: u16, code: &'static str) -> [Told; 4] {
    let keyed = (status, code, "unknown", "same_key");
    [keyed, keyed, keyed, (status, code, "unknown", "look_up")]
}

struct Row {
    ending: Ending,
    happens: &'static str,
    /// At the [`FOUR`].
    told: [Told; 4],
    ends: [End; 4],
}

fn rows() -> Vec<Row> {
    let row = |ending, happens, told, ends| Row {
        ending,
        happens,
        told,
        ends,
    };
    let refunds = [PENDING, SUCCEEDED, SUCCEEDED, SUCCEEDED];
    let all = |told| [told; 4];
    vec![
        row(Ending::Succeeded, "It is refunded.", refunds, [Refunded; 4]),
        row(
            Ending::Declined,
            "The provider says no.",
            [REJECTED, DECLINED, DECLINED, DECLINED],
            [NotRefunded; 4],
        ),
        row(
            Ending::Pending,
            "It is accepted, and done three seconds later. BBMSL has no word for it, and says one that nobody knows.",
            [
                PENDING,
                PENDING,
                PENDING,
                (502, "provider-reply-unreadable", "unknown", "look_up"),
            ],
            [Refunded; 4],
        ),
        row(
            Ending::AlreadyRefunded,
            "It was refunded before.",
            [THERE_ALREADY, REJECTED, THERE_ALREADY, THERE_ALREADY],
            [Open, NotRefunded, Open, Open],
        ),
        row(
            Ending::Unknown,
            "Once: it is refunded, and no reply comes.",
            by_key(502, "provider-error"),
            [Refunded; 4],
        ),
        row(
            Ending::Cut,
            "Once: it is refunded, and the reply is cut. Other calls on that connection can be hit, too.",
            by_key(502, "provider-error"),
            [Refunded; 4],
        ),
        row(
            Ending::Nonsense,
            "Once: it is refunded, and the reply is a page in HTML.",
            by_key(502, "provider-reply-unreadable"),
            [Refunded; 4],
        ),
        row(
            Ending::Unavailable,
            "Once: it is refunded, and the reply is a 503.",
            by_key(502, "provider-error"),
            [Refunded; 4],
        ),
        row(
            Ending::Slow,
            "Once: the reply takes five seconds.",
            refunds,
            [Refunded; 4],
        ),
        row(
            Ending::RateLimited,
            "Once: 429 with `Retry-After`.",
            all((503, "provider-rate-limited", "not_refunded", "same_key")),
            [Refunded; 4],
        ),
        row(
            Ending::Unauthorized,
            "Once: 401.",
            all((502, "provider-auth-failed", "not_refunded", "same_key")),
            [Refunded; 4],
        ),
    ]
}

fn word(ending: Ending) -> &'static str {
    let mut all = Ending::ALL.into_iter();
    all.find(|(_, of)| *of == ending).expect("an ending").0
}

fn name(provider: Provider) -> (&'static str, &'static str) {
    (cluster(provider), currency(provider))
}

fn is(answer: &Answer, (status, code, outcome, retry): Told) -> bool {
    let member = |name: &str| answer.body[name].as_str().unwrap_or_default();
    let told = if member("code").is_empty() {
        member("status")
    } else {
        member("code")
    };
    (answer.status, told, member("outcome"), member("retry")) == (status, code, outcome, retry)
}

/// The member that names such a payment, and its name.
fn payments(provider: Provider, ending: Ending) -> Vec<(&'static str, String)> {
    let name = format!("sandbox-{}", word(ending));
    match provider {
        Bbmsl => vec![("reference", name), ("id", ending.number(1))],
        _ => vec![("id", name)],
    }
}

/// Makes the refund, and does what its answers say until it has ended.
async fn refund(
    gateway: &Gateway,
    provider: Provider,
    (by, payment): (&str, String),
    told: Told,
) -> Result<End> {
    let (name, currency) = name(provider);
    let key = format!("{name}-{payment}");
    let call = json!({
        "provider": name, "payment": {by: payment}, "amount": {"value": "10.50", "currency": currency}, "reason": "test",
    });
    let mut answer = gateway.refund(&key, &call).await?;
    ensure!(
        is(&answer, told),
        "{name}, {payment}: {} {}",
        answer.status,
        answer.text
    );
    let parameter = format!("payment_{by}");
    let mut id = None;
    for _ in 0..25 {
        let member = |name: &str| answer.body[name].as_str().unwrap_or_default().to_owned();
        if !member("id").is_empty() {
            id = Some(member("id"));
        }
        let again = match (&*member("status"), &*member("outcome"), &*member("retry")) {
            ("succeeded", ..) => return Ok(Refunded),
            ("failed", ..) | (_, "not_refunded", "no" | "corrected") => return Ok(NotRefunded),
            (_, "unknown", "no") => return Ok(Open),
            (.., "same_key") => true,
            _ => false,
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        answer = if again {
            gateway.refund(&key, &call).await?
        } else {
            let mut parameters = vec![("provider", name), (&parameter, &payment), ("key", &key)];
            parameters.extend(id.as_deref().map(|id| ("id", id)));
            gateway.look_up(&parameters).await?
        };
    }
    Ok(Open)
}

async fn expect(
    gateway: &Gateway,
    provider: Provider,
    ending: Ending,
    told: Told,
    end: End,
) -> Result<()> {
    for payment in payments(provider, ending) {
        let ended = refund(gateway, provider, payment, told).await?;
        ensure!(ended == end, "{provider:?}, {}: {ended:?}", word(ending));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_payment_of_the_sandbox_ends_as_its_table_says() -> Result<()> {
    let mut gateway = Gateway::start(Options::default()).await?;
    let settling = tokio::spawn(sandbox::settle(gateway.simulators.clone()));
    let page = sandbox::serve_page(0, gateway.simulators.clone()).await?;
    let rows = rows();
    assert_eq!(rows.len(), Ending::ALL.len());
    // A cut reply takes the connection with it, and what others wait for on it.
    let (alone, together): (Vec<_>, Vec<_>) =
        rows.iter().partition(|row| row.ending == Ending::Cut);
    let mut faults = Vec::new();
    for rows in [alone, together] {
        let cases = rows.into_iter().flat_map(|row| {
            let at = FOUR.into_iter().zip(row.told).zip(row.ends);
            at.map(|((provider, told), end)| expect(&gateway, provider, row.ending, told, end))
        });
        faults.extend(join_all(cases).await.into_iter().filter_map(Result::err));
    }
    if !faults.is_empty() {
        bail!("{faults:#?}");
    }
    for provider in FOUR {
        let ledger = gateway.simulators.ledger(provider);
        let mut booked: Vec<_> = ledger.iter().map(|refund| &refund.payment).collect();
        booked.sort();
        booked.dedup();
        assert_eq!(booked.len(), ledger.len(), "{provider:?} refunded twice");
        let at = FOUR
            .iter()
            .position(|of| *of == provider)
            .expect("one of the four");
        let refunded = rows.iter().filter(|row| row.ends[at] == Refunded);
        let expected = refunded
            .map(|row| payments(provider, row.ending).len())
            .sum::<usize>();
        assert_eq!(ledger.len(), expected, "{provider:?}");
    }
    the_page_shows_it(&gateway, page).await?;
    settling.abort();
    gateway.stop().await?;
    the_document_is_this_table(&rows)
}

/// What was booked and sent stands there, and no credential.
async fn the_page_shows_it(gateway: &Gateway, page: std::net::SocketAddr) -> Result<()> {
    let html = reqwest::get(format!("http://{page}/"))
        .await?
        .text()
        .await?;
    assert!(html.contains("What the providers have booked"), "{html}");
    let state = reqwest::get(format!("http://{page}/state.json"))
        .await?
        .text()
        .await?;
    for part in [
        "sandbox-pending",
        "\"minor_units\":1050",
        "hosted-checkout",
        "Bearer [redacted]",
    ] {
        assert!(state.contains(part), "{part} is not in {state}");
    }
    assert!(!state.contains("canary"), "{state}");
    let requests = gateway.simulators.requests(Bbmsl);
    let signed = requests.iter().find_map(|exchange| {
        let body: serde_json::Value = serde_json::from_slice(&exchange.request.body).ok()?;
        body["signature"].as_str().map(str::to_owned)
    });
    assert!(
        !state.contains(&signed.expect("a signature")),
        "a signature is shown"
    );
    Ok(())
}

fn the_document_is_this_table(rows: &[Row]) -> Result<()> {
    let mut text = String::from(INTRODUCTION);
    for row in rows {
        let number = row.ending.number(1);
        text += &format!(
            "| `sandbox-{}` | `{number}` | {} |",
            word(row.ending),
            row.happens
        );
        for ((status, code, outcome, retry), end) in row.told.into_iter().zip(row.ends) {
            let told = match outcome {
                "" => format!("{status} `{code}`"),
                _ => format!("{status} `{code}`<br>{outcome}, `{retry}`"),
            };
            let end = match end {
                Refunded => "refunded",
                NotRefunded => "not refunded",
                Open => "**open**",
            };
            text += &format!(" {told}<br>→ {end} |");
        }
        text.push('\n');
    }
    text += OTHERS;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/sandbox.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text)?;
    }
    ensure!(
        std::fs::read_to_string(&path).is_ok_and(|stands| stands == text),
        "docs/sandbox.md is not the table of tests/gateway/tests/sandbox.rs: run `UPDATE_DOCS=1 cargo test --package \
         gateway-testbed sandbox::`, and read what has changed"
    );
    Ok(())
}

const INTRODUCTION: &str = "# The sandbox

`./build.sh serve` keeps a real Envoy with the filter up on `http://127.0.0.1:10000`, in front of simulated providers. Point your
integration tests at it. `--port` and `--page-port` choose other ports. What a provider books is forgotten when it ends.

`http://127.0.0.1:10080` (80 above the gateway's port) shows each provider's ledger, and the last requests and replies, live.
Credentials and signatures are not shown.

## Payments

The payment's name says what its refund meets, the same at every provider:

```sh
curl http://127.0.0.1:10000/v1/refunds -H 'Content-Type: application/json' -H 'Idempotency-Key: slow-1' \\
  -d '{\"provider\": \"moyasar\", \"payment\": {\"id\": \"sandbox-slow\"}, \"amount\": {\"value\": \"10.50\", \"currency\": \"SAR\"}}'
```

At BBMSL, whose ids are numbers, the name is the `reference`, and the second column has an `id` of the kind. Each payment is one of
100.00, and *once* is over with its first refund call. Put anything behind the name for another payment of the kind
(`sandbox-slow-7`), or take the next number.

In each cell: what the first call is told, and how it ends for a caller who does what it is told.

| payment | id at BBMSL | what happens | BOG (GEL) | Moyasar (SAR) | beGateway (USD) | BBMSL (HKD) |
|---|---|---|---|---|---|---|
";

const OTHERS: &str = "
Open is what nobody but the provider can clear: its refusal may mean this very refund.

Other payments that can be refunded: `order-1`, `order-2` and so on at BOG and beGateway, `00000000-0000-4000-8000-000000000001` and so
on at Moyasar, 1000001 and so on at BBMSL. Any other is not found.

This page is made from the table of `tests/gateway/tests/sandbox.rs`, which makes every one of these refunds on a real Envoy.
";
