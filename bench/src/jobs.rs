//! What a lane is asked to do, call by call.

/// A call, as the load generator writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// The canonical call to Moyasar, padded with white space to so many bytes of body.
    Moyasar(usize),
    /// The canonical call to BBMSL.
    Bbmsl,
    /// What becomes of the canonical call to Moyasar, ready made.
    MoyasarMade,
    /// What becomes of the canonical call to BBMSL, ready made. The signature is none, and none is verified.
    BbmslMade,
    /// Another application's call, which is none of the filter's.
    Other,
}

/// A key like no other: a UUID of version 4, which reaches Moyasar as it is.
fn key(nth: u64) -> String {
    format!(
        "{:08x}-{:04x}-4000-8000-{nth:012x}",
        std::process::id(),
        nth & 0xffff
    )
}

impl Job {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Job::Moyasar(_) => "a refund at Moyasar",
            Job::Bbmsl => "a refund at BBMSL",
            Job::MoyasarMade => "a ready-made request to Moyasar",
            Job::BbmslMade => "a ready-made request to BBMSL",
            Job::Other => "another application's call",
        }
    }

    /// What must stand in the body of the answer.
    pub fn expected(self) -> &'static str {
        match self {
            Job::Moyasar(_) | Job::Bbmsl => "\"status\":\"succeeded\"",
            Job::MoyasarMade => "\"APPROVED\"",
            Job::BbmslMade => "\"SUCCESS\"",
            Job::Other => "other",
        }
    }

    /// Writes the call of this number.
    pub fn write(self, nth: u64, out: &mut Vec<u8>) {
        let key = key(nth);
        let order = 1_000_000_000 + nth;
        match self {
            Job::Moyasar(size) => {
                let body = format!(
                    r#"{{"provider":"moyasar","payment":{{"id":"{key}"}},"amount":{{"value":"2623.46","currency":"SAR"}},"reason":"returned goods","reference":"refund-77"}}"#
                );
                canonical(&key, &body, size, out);
            }
            Job::Bbmsl => {
                let body = format!(
                    r#"{{"provider":"bbmsl","payment":{{"id":"{order}"}},"amount":{{"value":"10.00","currency":"HKD"}},"reason":"returned goods","reference":"refund-77"}}"#
                );
                canonical(&key, &body, 0, out);
            }
            Job::MoyasarMade => made(
                &format!("/v1/orders/{key}/refund"),
                "pg.moyasar.com",
                "authorization: Bearer canary-moyasar-api-key\r\n",
                &format!(r#"{{"amount":262346,"transaction_id":"{key}"}}"#),
                out,
            ),
            Job::BbmslMade => made(
                "/hosted-checkout/refund",
                "payapi.prod.bbmsl.com",
                "",
                &format!(
                    r#"{{"request":"{{\"merchantId\":3,\"orderId\":{order},\"amount\":10}}","signature":"{}"}}"#,
                    "A".repeat(344)
                ),
                out,
            ),
            Job::Other => out.extend_from_slice(b"GET /other HTTP/1.1\r\nhost: gateway\r\n\r\n"),
        }
    }
}

fn canonical(key: &str, body: &str, size: usize, out: &mut Vec<u8>) {
    let padding = size.saturating_sub(body.len());
    let head = format!(
        "POST /v1/refunds HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\nidempotency-key: {key}\r\n\
         content-length: {}\r\n\r\n",
        body.len() + padding
    );
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(body.as_bytes());
    out.resize(out.len() + padding, b' ');
}

fn made(path: &str, host: &str, headers: &str, body: &str, out: &mut Vec<u8>) {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\naccept: application/json\r\n\
         accept-encoding: identity\r\nuser-agent: refund-filter\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(body.as_bytes());
}
