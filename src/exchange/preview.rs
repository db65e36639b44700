//! A preview: the provider's request is made and shown, and nothing is sent, claimed or fetched.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Answer;
use super::answer::answer;
use super::call::Call;
use crate::guard::End;
use crate::headers::Headers;
use crate::problem::Fault;

/// What stands after the configured path.
pub(super) const PATH: &[u8] = b"/preview";

/// What stands in place of secrets and signatures.
pub(super) const REDACTED: &str = "[redacted]";

/// The fault of a call with the header that once asked for a dry run, in any spelling: whoever
/// sends it must not move money.
pub(super) fn old_header(headers: &Headers<'_>) -> Option<Fault> {
    let is_old = |name: &[u8]| {
        let letters = name.iter().filter(|b| !b"-_".contains(b));
        letters
            .map(u8::to_ascii_lowercase)
            .eq(b"refunddryrun".iter().copied())
    };
    headers.iter().any(|(name, _)| is_old(name)).then(|| {
        Fault::at(
            "",
            "The header Refund-Dry-Run is no longer taken: make the same call to the path with /preview behind it.",
        )
    })
}

impl Call {
    /// The answer that shows a provider's request. `body`: without a signature.
    pub(super) fn show(&self, headers: &Headers<'_>, body: Option<&str>) -> Answer {
        #[derive(Serialize)]
        struct Shown<'a> {
            preview: bool,
            provider: &'a str,
            method: String,
            url: String,
            headers: BTreeMap<String, String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            body: Option<&'a str>,
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let pseudo = |name| text(headers.first(name).unwrap_or_default());
        // Without its signature a body has another length than it will have.
        let is_signed = body.is_some_and(|body| body.contains(REDACTED));
        let shown = headers
            .iter()
            .filter(|(name, _)| !name.starts_with(b":") && *name != b"x-forwarded-proto")
            .filter(|(name, _)| !(is_signed && *name == b"content-length"))
            .map(|(name, value)| match name {
                b"authorization" => (text(name), redacted(&text(value))),
                _ => (text(name), text(value)),
            });
        let body = crate::json_text(&Shown {
            preview: true,
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
        self.own(answer(200, "preview", body), End::NotSent)
    }
}

/// Credentials, of which only the scheme is left.
fn redacted(authorization: &str) -> String {
    match authorization.split_once(' ') {
        Some((scheme, _)) => format!("{scheme} {REDACTED}"),
        None => REDACTED.to_owned(),
    }
}
