//! What a newcomer sees first: one call, translated for every provider.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use gateway_testbed::{Answer, Gateway, Options, cluster};
use provider_simulator::{Exchange, Place, Provider};
use serde_json::Value;

/// In minor units, of every payment of the demo.
const AMOUNT: u64 = 1_050;

/// One refund of the demo: at this provider.
pub struct Case(Provider);

/// One refund at every provider.
pub fn cases() -> impl Iterator<Item = Case> {
    Provider::REFUNDING.into_iter().map(Case)
}

impl Case {
    fn title(&self) -> &'static str {
        self.0.declared().title
    }

    fn payment(&self) -> &'static str {
        self.0.declared().demo
    }

    fn currency(&self) -> &'static str {
        self.0.declared().currency.0
    }

    fn key(&self) -> String {
        format!("demo-{}", cluster(self.0))
    }

    fn value(&self) -> String {
        let exponent = usize::from(self.0.declared().currency.1);
        let digits = format!("{AMOUNT:0width$}", width = exponent + 1);
        let (whole, fraction) = digits.split_at(digits.len() - exponent);
        match exponent {
            0 => whole.to_owned(),
            _ => format!("{whole}.{fraction}"),
        }
    }

    /// As text, so that its members stand in the order in which one thinks of them.
    fn call(&self) -> String {
        let (name, payment) = (cluster(self.0), self.payment());
        let (value, currency) = (self.value(), self.currency());
        format!(
            r#"{{"provider":"{name}","payment":{{"id":"{payment}"}},"amount":{{"value":"{value}","currency":"{currency}"}},"reason":"returned goods"}}"#
        )
    }

    /// The call as a line for a shell.
    pub fn curl(&self, gateway: SocketAddr) -> String {
        format!(
            "curl -i http://{gateway}/v1/refunds -H 'Content-Type: application/json' -H 'Idempotency-Key: {}' \\\n  \
             -d '{}'",
            self.key(),
            self.call()
        )
    }
}

/// Runs the demo. An error where anything was not as it should be.
pub async fn run() -> Result<()> {
    let mut gateway = Gateway::start(Options::alone()).await?;
    println!(
        "\nOne refund call, through a real Envoy, to {} providers (simulated, strict, over TLS).\n",
        cases().count()
    );
    let mut faults = Vec::new();
    let mut pending = Vec::new();
    let mut table = vec![
        [
            "",
            "asked with",
            "amount",
            "authorization",
            "idempotency",
            "answer",
        ]
        .map(String::from),
    ];
    for case in cases() {
        let case = &case;
        let answer = gateway.refund(&case.key(), &case.call()).await?;
        let exchange = gateway.simulators.requests(case.0).pop().with_context(|| {
            format!(
                "nothing reached {}; the answer was {}",
                case.title(),
                answer.text
            )
        })?;
        show(case, &exchange, &answer);
        if case.0.declared().answers == "pending" {
            let id = answer.body["id"].as_str().unwrap_or_default();
            pending.push((Case(case.0), id.to_owned()));
        }
        table.push(row(case, &exchange, &answer));
        faults.extend(check(case, &gateway, &answer));
    }
    println!("\nSide by side:\n");
    print_table(&table);
    for (case, id) in &pending {
        faults.extend(look_up(&gateway, case, id).await?);
    }
    let signer = signer(&gateway).await?;
    gateway.stop().await?;

    println!("\n{signer}");
    if !faults.is_empty() {
        bail!("not as it should be: {}", faults.join("; "));
    }
    let count = cases().count();
    println!(
        "{count} calls, {count} refunds in the providers' books, none twice: {} succeeded at once, {} was \
         looked up. All as it should be.",
        count - pending.len(),
        pending.len(),
    );
    Ok(())
}

/// A provider that answers a refund with "accepted" and no more: how it ended is asked for, before
/// its end and after it.
async fn look_up(gateway: &Gateway, case: &Case, id: &str) -> Result<Vec<String>> {
    let (name, payment) = (cluster(case.0), case.payment());
    println!("\n{}'s refund, looked up:\n", case.title());
    let key = case.key();
    let parameters = [
        ("provider", name),
        ("payment_id", payment),
        ("id", id),
        ("key", &*key),
    ];
    let mut faults = Vec::new();
    for expected in ["pending", "succeeded"] {
        if expected == "succeeded" {
            println!("  … the provider completes it …\n");
            gateway.simulators.settle(case.0, Some(id), true);
        }
        let answer = gateway.look_up(&parameters).await?;
        println!(
            "  call      GET /v1/refunds?provider={name}&payment_id={payment}&id={id}&key={key}"
        );
        if let Some(request) = gateway.simulators.last_request(case.0) {
            println!(
                "  provider  {} https://{}{}",
                request.method,
                request.authority.as_deref().unwrap_or_default(),
                request.path
            );
        }
        println!("  answer    {} {}\n", answer.status, answer.text);
        if answer.status != 200 || answer.body["status"] != expected {
            faults.push(format!(
                "looked up, it was not {expected}: {} {}",
                answer.status, answer.text
            ));
        }
    }
    let again = gateway.refund(&key, &case.call()).await?;
    println!(
        "  The refund call with its key, once more, is told the same and sends nothing:\n  answer    {} {}",
        again.status, again.text
    );
    if again.body["status"] != "succeeded" || again.header("idempotency-replayed") != "true" {
        faults.push(format!(
            "again, it was told {} {}",
            again.status, again.text
        ));
    }
    Ok(faults)
}

/// Who made BBMSL's signature, as the filter's own metric says.
async fn signer(gateway: &Gateway) -> Result<&'static str> {
    let stats = gateway
        .admin("/stats?filter=refund.signatures_total")
        .await?;
    Ok(if stats.contains(".signer.host.result.ok: 1") {
        "BBMSL's text was signed by the host: Envoy's own `sign`, some twenty times faster than signing in the module."
    } else if stats.contains(".signer.vm.result.ok: 1") {
        "BBMSL's text was signed in the module: this Envoy has no `sign` (1.37 and later have it)."
    } else {
        bail!("no signature was counted")
    })
}

fn show(case: &Case, exchange: &Exchange, answer: &Answer) {
    let request = &exchange.request;
    println!(
        "\n── {} {}",
        case.title(),
        "─".repeat(90 - case.title().len())
    );
    println!("  call      {}", case.call());
    println!(
        "  provider  {} https://{}{}",
        request.method,
        request.authority.as_deref().unwrap_or_default(),
        request.path
    );
    let key = match case.0.declared().key.as_ref().map(|key| &key.place) {
        Some(Place::Header(name)) => Some(*name),
        Some(Place::Member(_)) | None => None,
    };
    for name in ["authorization"].into_iter().chain(key) {
        for value in request.headers_named(name) {
            println!(
                "            {name}: {}",
                shown(name, &String::from_utf8_lossy(value))
            );
        }
    }
    println!(
        "            {}",
        shorten(&String::from_utf8_lossy(&request.body))
    );
    if let Some(reply) = &exchange.reply {
        println!(
            "  reply     {} {}",
            reply.status,
            shorten(&reply_text(&reply.body))
        );
    }
    println!("  answer    {} {}", answer.status, answer.text);
}

fn row(case: &Case, exchange: &Exchange, answer: &Answer) -> [String; 6] {
    let request = &exchange.request;
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let inner: Value = body
        .get("request")
        .and_then(|inner| serde_json::from_str(inner.as_str()?).ok())
        .or_else(|| body.get("request").cloned())
        .unwrap_or_else(|| body.clone());
    let declared = case.0.declared();
    let key = declared
        .key
        .as_ref()
        .filter(|key| key.of(request).is_some());
    let key = key.map(|key| match key.place {
        Place::Header(name) => format!("header {name}"),
        Place::Member(name) => format!("body {name}"),
    });
    let authorization = request.headers_named("authorization").next().map(|value| {
        String::from_utf8_lossy(value)
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned()
    });
    [
        case.title().to_owned(),
        declared.names.to_owned(),
        inner
            .get("amount")
            .map(Value::to_string)
            .unwrap_or_default(),
        authorization.unwrap_or_else(|| "RSA signature".to_owned()),
        key.unwrap_or_else(|| "none: never sent twice".to_owned()),
        format!(
            "{} {}",
            answer.status,
            answer.body["status"].as_str().unwrap_or_default()
        ),
    ]
}

fn check(case: &Case, gateway: &Gateway, answer: &Answer) -> Vec<String> {
    let mut faults = Vec::new();
    let status = match case.0.declared().answers {
        "pending" => 202,
        _ => 200,
    };
    if answer.status != status {
        faults.push(format!(
            "{} answered {}: {}",
            case.title(),
            answer.status,
            answer.text
        ));
    }
    let ledger = gateway.simulators.ledger(case.0);
    let booked: Vec<_> = ledger
        .iter()
        .map(|refund| (refund.payment.as_str(), refund.minor_units, refund.currency))
        .collect();
    if booked != [(case.payment(), AMOUNT, case.currency())] {
        faults.push(format!("{} has in its book {booked:?}", case.title()));
    }
    faults
}

fn print_table(rows: &[[String; 6]]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    for row in rows {
        let cells = row
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("{cell:width$}", width = width(column)));
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Credentials are the platform team's: not even the demo's are shown.
fn shown(name: &str, value: &str) -> String {
    match (name, value.split_once(' ')) {
        ("authorization", Some((scheme, _))) => format!("{scheme} [redacted]"),
        _ => value.to_owned(),
    }
}

/// The reply as it came; of Moyasar's whole order only what the filter decides by.
fn reply_text(body: &[u8]) -> String {
    let order: Value = serde_json::from_slice(body).unwrap_or_default();
    match order.get("transactions").and_then(Value::as_array) {
        Some(transactions) => {
            let id = &order["id"];
            let refund = transactions.last().cloned().unwrap_or_default();
            format!(r#"{{"id":{id}, … "transactions":[ … {refund}]}}"#)
        }
        None => String::from_utf8_lossy(body).into_owned(),
    }
}

fn shorten(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let long = text.chars().count() > 320;
    let mut short: String = text.chars().take(320).collect();
    if long {
        short.push('…');
    }
    short
}
