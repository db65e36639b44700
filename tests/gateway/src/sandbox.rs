//! What `./build.sh serve` has beside the gateway: open refunds that end by themselves, and a page
//! of what the providers saw and booked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use provider_simulator::{Exchange, Provider, Simulators};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::cluster;

/// How many exchanges of each provider are shown.
const EXCHANGES: usize = 10;
/// How long a refund stays open.
const OPEN_FOR: Duration = Duration::from_secs(3);

/// Ends open refunds some seconds after they were accepted, for ever.
pub async fn settle(simulators: Arc<Simulators>) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for provider in Provider::REFUNDING {
            for refund in simulators.ledger(provider) {
                let age = SystemTime::now().duration_since(refund.at);
                if age.is_ok_and(|age| age >= OPEN_FOR) {
                    simulators.settle(provider, Some(&refund.refund), true);
                }
            }
        }
    }
}

/// Serves the page on a port of 127.0.0.1 (0: any free one), for ever. Returns where it is.
pub async fn serve_page(port: u16, simulators: Arc<Simulators>) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .with_context(|| format!("the page of the ledgers cannot listen on 127.0.0.1:{port}"))?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let simulators = Arc::clone(&simulators);
            let service = service_fn(move |request| {
                let response = answer(&request, &simulators);
                async move { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(tcp), service));
        }
    });
    Ok(address)
}

fn answer(request: &Request<Incoming>, simulators: &Simulators) -> Response<Full<Bytes>> {
    let (kind, body) = match request.uri().path() {
        "/state.json" => ("application/json", state(simulators).to_string()),
        _ => (
            "text/html; charset=utf-8",
            include_str!("sandbox.html").to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    headers.insert(
        CACHE_CONTROL,
        hyper::header::HeaderValue::from_static("no-store"),
    );
    response
}

/// What the page shows.
fn state(simulators: &Simulators) -> Value {
    // Without the token endpoint: what goes there and comes back is secret.
    let providers = Provider::REFUNDING.map(|provider| {
        let ledger: Vec<Value> = simulators
            .ledger(provider)
            .iter()
            .rev()
            .map(|refund| {
                json!({
                    "payment": refund.payment, "minor_units": refund.minor_units, "currency": refund.currency,
                    "refund": refund.refund, "key": refund.key, "rejected": refund.rejected,
                })
            })
            .collect();
        let exchanges = simulators.requests(provider);
        let exchanges: Vec<Value> = exchanges.iter().rev().take(EXCHANGES).map(shown).collect();
        json!({"name": cluster(provider), "ledger": ledger, "exchanges": exchanges})
    });
    json!({ "providers": providers })
}

/// An exchange without credentials.
fn shown(exchange: &Exchange) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let request = &exchange.request;
    let headers: Vec<String> = request
        .headers
        .iter()
        .map(|(name, value)| match name.as_str() {
            "authorization" => {
                let scheme = text(value).split(' ').next().unwrap_or_default().to_owned();
                format!("{name}: {scheme} [redacted]")
            }
            _ => format!("{name}: {}", text(value)),
        })
        .collect();
    let mut body = text(&request.body);
    if let Ok(Value::Object(mut members)) = serde_json::from_str::<Value>(&body)
        && members.contains_key("signature")
    {
        members.insert("signature".to_owned(), "[redacted]".into());
        body = Value::Object(members).to_string();
    }
    json!({
        "request": format!("{} {}\n{}\n\n{body}", request.method, request.path, headers.join("\n")),
        "reply": exchange.reply.as_ref().map(|reply| format!("{}\n\n{}", reply.status, text(&reply.body))),
        "fault": exchange.fault.as_ref().map(|fault| format!("{fault:?}")),
    })
}
