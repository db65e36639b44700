//! A provider's reply, read: what all dialects need for it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Counting, Doubt, Outcome, ProviderMessage, Refusal};
use crate::json::{Json, Kind, Node};
use crate::money::{Currency, Money};
use crate::problem::FieldError;

/// A provider's whole reply.
#[derive(Debug)]
pub struct ProviderReply<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The body, whole.
    pub body: &'a [u8],
    json: Option<Json<'a>>,
}

impl<'a> ProviderReply<'a> {
    /// A reply with this status and body. A byte order mark in front of the body is none of its
    /// words (RFC 8259, 8.1: who reads JSON may ignore one).
    pub fn new(status: u16, body: &'a [u8]) -> Self {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        ProviderReply {
            status,
            body,
            json: Json::parse(body).ok(),
        }
    }

    /// The body's JSON.
    pub fn json(&self) -> Option<Node<'_>> {
        self.json.as_ref().map(Json::root)
    }

    /// The body's JSON, if it is a plain object.
    pub fn object(&self) -> Option<Node<'_>> {
        self.json().filter(|node| node.is_plain_object())
    }

    /// Whether these characters stand anywhere in the body, whatever the body is, in whatever case,
    /// and whether or not they are written as JSON's escapes (RFC 8259, 7).
    pub fn mentions(&self, word: &str) -> bool {
        let stands_in = |text: &[u8]| {
            text.windows(word.len().max(1))
                .any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
        };
        stands_in(self.body) || self.body.contains(&b'\\') && stands_in(&unescaped(self.body))
    }

    /// Whether one of these words stands anywhere in the body as a string of its own, be the body
    /// whole JSON or a part of it.
    pub fn says(&self, words: &[&str]) -> bool {
        words.iter().any(|word| match &self.json {
            Some(json) => json.says(word),
            None => self.mentions(&format!("\"{word}\"")),
        })
    }

    /// Whether the status is a 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// The text with its escapes taken for what they stand for, as far as that is ASCII.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let Some((escape, after)) = rest.split_first().filter(|_| *byte == b'\\') else {
            out.push(*byte);
            continue;
        };
        rest = after;
        let code = rest.split_first_chunk::<4>().filter(|_| *escape == b'u');
        match code.and_then(|(hex, after)| {
            let hex = std::str::from_utf8(hex).ok()?;
            Some((u8::try_from(u16::from_str_radix(hex, 16).ok()?), after))
        }) {
            Some((code, after)) => {
                out.push(code.unwrap_or(b'?'));
                rest = after;
            }
            None => out.push(*escape),
        }
    }
    out
}

/// The refusal that a status outside 2xx is where the body says nothing more: one table for all
/// providers (contract, "Errors"). What it does not name is a failure of which nothing is known.
pub fn refusal(status: u16) -> Option<Refusal> {
    match status {
        402 => Some(Refusal::Declined),
        400 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 431 => Some(Refusal::Rejected),
        404 => Some(Refusal::NotFound),
        401 | 403 => Some(Refusal::Credentials),
        429 => Some(Refusal::RateLimited),
        _ => None,
    }
}

/// What a status outside 2xx means for a refund where the body says nothing more.
pub fn by_status(status: u16, word: ProviderMessage) -> Outcome {
    match refusal(status) {
        Some(refusal) => Outcome::Refused(refusal, word),
        None => Outcome::Unknown(Doubt::Failed, word),
    }
}

/// Whether a status is one of those that refuse: after which the provider's words decide whether a
/// refund may be there already.
pub fn is_refusal(status: u16) -> bool {
    status == 409 || refusal(status).is_some()
}

/// RFC 3986's unreserved characters stand for themselves.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A value as one path segment.
pub fn path_segment(value: &str) -> String {
    utf8_percent_encode(value, PATH_SEGMENT).to_string()
}

/// The text of a string or a number: providers are not of one mind whether an id or a code is one
/// or the other.
pub fn scalar(node: Option<Node<'_>>) -> Option<String> {
    let node = node?;
    match node.number() {
        Some(number) => Some(number.to_owned()),
        None => node
            .text()
            .filter(|text| !text.is_empty())
            .map(std::borrow::Cow::into_owned),
    }
}

/// A refund's id at its provider, as text. What is absurdly long or holds control characters is
/// none.
pub fn identifier(node: Option<Node<'_>>) -> Option<String> {
    scalar(node).filter(|id| id.len() <= 255 && !id.chars().any(char::is_control))
}

/// A body that is no JSON as a message: plain text yes, a page of HTML no.
pub fn plain_text(reply: &ProviderReply<'_>) -> Option<String> {
    let text = std::str::from_utf8(reply.body).ok()?.trim();
    let speaks = !text.is_empty() && !text.starts_with(['<', '{', '[']);
    (speaks && reply.json().is_none()).then(|| text.to_owned())
}

/// Whether an echoed name is another than the one that was sent. What is not echoed proves nothing;
/// what is echoed as neither string nor number is another.
pub fn differs(echoed: Option<Node<'_>>, sent: Option<&str>) -> bool {
    match (echoed, sent) {
        (Some(echoed), Some(sent)) => scalar(Some(echoed)).as_deref() != Some(sent),
        _ => false,
    }
}

/// What a provider's amount and currency say beside those that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// The same, or nothing; with the amount where it is known.
    Same(Option<Money>),
    /// Another amount or currency.
    Other,
    /// Not an amount at all.
    Unreadable,
}

/// Reads an echoed amount as this provider counts, and compares it and its currency with the one
/// that was asked for, if one was.
pub fn echoed_amount(
    counting: &Counting,
    asked: Option<Money>,
    amount: Option<Node<'_>>,
    currency: Option<Node<'_>>,
) -> Echo {
    let named = match currency.map(|node| node.text()) {
        None => None,
        Some(None) => return Echo::Unreadable,
        Some(Some(code)) => match (Currency::from_code(&code), asked) {
            (Some(currency), _) => Some(currency),
            (None, Some(_)) => return Echo::Other,
            (None, None) => return Echo::Same(None),
        },
    };
    if let (Some(named), Some(asked)) = (named, asked)
        && named != asked.currency
    {
        return Echo::Other;
    }
    let Some(amount) = amount else {
        return Echo::Same(None);
    };
    if amount.kind() != Kind::Number {
        return Echo::Unreadable;
    }
    let Some(currency) = named.or(asked.map(|money| money.currency)) else {
        return Echo::Same(None);
    };
    // By how many decimals the provider counts this currency is in dispute: then its number means
    // nothing.
    if counting.digits(currency).is_none() {
        return Echo::Same(None);
    }
    match (
        amount
            .number()
            .and_then(|number| counting.read_amount(number, currency)),
        asked,
    ) {
        (Some(money), Some(asked)) if money != asked => Echo::Other,
        (Some(money), _) => Echo::Same(Some(money)),
        // A number that is no amount of this currency is not ours either.
        (None, Some(_)) => Echo::Other,
        (None, None) => Echo::Unreadable,
    }
}

/// The most errors of single fields that are passed on, and the most bytes that they may take
/// together: an answer must fit where the guard keeps it.
const MOST_ERRORS: usize = 16;
const MOST_ERROR_BYTES: usize = 4_096;
/// How deep errors may be nested.
const DEEPEST_ERROR: u8 = 8;

/// What a provider says of single fields: the texts in these values, each with the path to it.
///
/// Providers agree on no shape: `{"amount": ["is missing"]}`, `{"request": {"amount": "is
/// missing"}}`, a bare list of texts, or a list of objects that name their field.
pub fn field_errors<'a>(values: impl IntoIterator<Item = Option<Node<'a>>>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for value in values.into_iter().flatten() {
        add_errors(value, "", DEEPEST_ERROR, &mut errors);
    }
    let mut bytes = 0usize;
    errors.retain(|error: &FieldError| {
        let field = error.field.as_ref().map_or(0, String::len);
        bytes = bytes
            .saturating_add(field)
            .saturating_add(error.message.len());
        bytes <= MOST_ERROR_BYTES
    });
    errors
}

fn add_errors(value: Node<'_>, path: &str, deepest: u8, errors: &mut Vec<FieldError>) {
    let Some(deeper) = deepest.checked_sub(1) else {
        return;
    };
    if errors.len() >= MOST_ERRORS {
        return;
    }
    if let Some(items) = value.items() {
        for item in items {
            match self_named(item, path) {
                Some(error) if errors.len() < MOST_ERRORS => errors.push(error),
                _ => add_errors(item, path, deeper, errors),
            }
        }
    } else if value.kind() == Kind::Object {
        for (name, member) in value.members().and_then(Result::ok).unwrap_or_default() {
            add_errors(member, &joined(path, &name), deeper, errors);
        }
    } else if let Some(message) = scalar(Some(value)) {
        let field = (!path.is_empty()).then(|| path.to_owned());
        errors.push(FieldError { field, message });
    }
}

/// An item of a list that names its field itself.
fn self_named(item: Node<'_>, path: &str) -> Option<FieldError> {
    let one_of = |names: [&str; 4]| names.iter().find_map(|name| scalar(item.get(name)));
    let field = one_of(["field", "name", "parameter", "path"])?;
    let message = one_of(["message", "detail", "description", "error"])?;
    Some(FieldError {
        field: Some(joined(path, &field)),
        message,
    })
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// A message where it is a text, and errors of single fields where it is an object or a list:
/// providers are not of one mind.
pub fn message_of<'a>(node: Option<Node<'a>>) -> (Option<String>, Option<Node<'a>>) {
    let nested = node.filter(|node| matches!(node.kind(), Kind::Object | Kind::Array));
    (scalar(node), nested)
}
