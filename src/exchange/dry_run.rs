//! A dry run: the provider's request is made and shown, and nothing is sent, claimed or fetched.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Answer, Call};
use crate::guard::End;
use crate::headers::Headers;
use crate::problem::Fault;

/// What stands in place of secrets and signatures.
pub(super) const REDACTED: &str = "[redacted]";

/// Whether `Refund-Dry-Run` asks for a dry run. What is neither `true` nor `false` is a fault: who writes it must not move money
/// by a slip.
pub(super) fn asked_for(headers: &Headers<'_>) -> Result<bool, Fault> {
    let mut values = headers.all("refund-dry-run");
    match (values.next(), values.next()) {
        (None, _) | (Some(b"false"), None) => Ok(false),
        (Some(b"true"), None) => Ok(true),
        _ => Err(Fault::at(
            "",
            "The header Refund-Dry-Run must stand here once, as true or false.",
        )),
    }
}

impl Call {
    /// The answer that shows a provider's request. `body`: without a signature.
    pub(super) fn show(&self, headers: &Headers<'_>, body: Option<&str>) -> Answer {
        #[derive(Serialize)]
        struct Shown<'a> {
            provider: &'a str,
            method: String,
            url: String,
            headers: BTreeMap<String, String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            body: Option<&'a str>,
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let pseudo = |name| text(headers.first(name).unwrap_or_default());
        let shown = headers
            .iter()
            .filter(|(name, _)| !name.starts_with(b":") && *name != b"x-forwarded-proto")
            .map(|(name, value)| match name {
                b"authorization" => (text(name), redacted(&text(value))),
                _ => (text(name), text(value)),
            });
        let body = crate::json_text(&Shown {
            provider: &self.entry.name,
            method: pseudo(":method"),
            url: format!(
                "{}://{}{}",
                pseudo(":scheme"),
                pseudo(":authority"),
                pseudo(":path")
            ),
            headers: shown.collect(),
            body,
        });
        self.caller.answer(200, "dry-run", body, End::Free)
    }
}

/// Credentials, of which only the scheme is left.
fn redacted(authorization: &str) -> String {
    match authorization.split_once(' ') {
        Some((scheme, _)) => format!("{scheme} {REDACTED}"),
        None => REDACTED.to_owned(),
    }
}
