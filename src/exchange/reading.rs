//! A call while its headers and its body are read.

use std::rc::Rc;

use super::call::Task;
use super::caller::Caller;
use super::sentences::{caller_not_allowed, gateway_error, invalid, nothing_left, over_limit};
use super::{Accepted, Answer, Earlier, LocalReply, Property, preview};
use crate::call::{Unacceptable, payment_digests};
use crate::caller::CallerName;
use crate::clock::Now;
use crate::config::{Config, ProviderEntry};
use crate::guard::{Asks, Digest, End, Question};
use crate::headers::Headers;
use crate::idempotency::{IdempotencyKey, KeyFault};
use crate::json::Json;
use crate::look_up::{LookUp, named_provider, provider_key};
use crate::problem::{Code, Fault, Problem, Retry};
use crate::provider::Refunds;
use crate::refund::{Amount, Refund};
use crate::secret::Secret;

/// The largest body of a canonical call, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// What becomes of a request at its headers.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "it is taken apart where it is made, once for each call"
)]
pub enum Opening {
    /// It is none of ours and passes untouched.
    NotOurs,
    /// It is answered at once.
    Answer(Answer),
    /// Its body is wanted.
    Read(Reading),
}

/// Looks at a request's headers.
pub fn open(
    config: &Rc<Config>,
    headers: &Headers<'_>,
    now: Now,
    earlier: Earlier<'_>,
    property: Property<'_>,
) -> Opening {
    let path = headers.first(":path").unwrap_or_default();
    let mut parts = path.splitn(2, |b| *b == b'?');
    let (path, query) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let Some(rest) = path.strip_prefix(config.path.as_bytes()) else {
        return Opening::NotOurs;
    };
    let preview = match rest {
        b"" => false,
        preview::PATH => true,
        _ => return Opening::NotOurs,
    };
    let mut caller = Caller::of(headers, now);
    let mut faults: Vec<Fault> = preview::old_header(headers).into_iter().collect();
    let method = headers.first(":method");
    if let Some(source) = &config.caller {
        caller.name = CallerName::from_property(property(&source.path()));
        if caller.name.is_none() {
            let problem = caller_not_allowed("The gateway cannot tell who calls.");
            return Opening::Answer(match method {
                Some(b"GET") => caller.problem_of_look_up(problem),
                _ => caller.problem_of_refund(problem, End::NotSent),
            });
        }
    }
    if method == Some(b"GET") {
        return Opening::Read(Reading {
            config: Rc::clone(config),
            purpose: Purpose::LookUp(query.to_vec()),
            preview,
            faults,
            secrets: secrets(config, headers),
            caller,
        });
    }
    let key = IdempotencyKey::from_header(headers.all("idempotency-key"))
        .map(|key| key.of_caller(caller.name.clone()))
        .map(|key| (key.digest(), key));
    if let Ok((digest, _)) = &key
        && !preview
    {
        caller.standing = earlier(digest);
    }
    let unclaimed = |mut answer: Answer| {
        let digest = key.as_ref().ok().map(|(digest, _)| *digest);
        answer.unclaimed = digest.filter(|_| !preview).map(Box::new);
        Opening::Answer(answer)
    };
    if method != Some(b"POST") {
        let mut answer = caller.refuse(
            Code::MethodNotAllowed,
            "Nothing was sent. Ask for a refund with POST, and look one up with GET.",
        );
        answer.headers.fixed("allow", "GET, POST");
        return unclaimed(answer);
    }
    if !is_json(headers) {
        return unclaimed(caller.refuse(
            Code::UnsupportedMediaType,
            "Nothing was sent. Send the refund as Content-Type: application/json, in UTF-8 and without a \
             Content-Encoding.",
        ));
    }
    let (digest, key) = match key {
        Ok(key) => key,
        Err(KeyFault::Missing) => {
            return Opening::Answer(caller.refuse(
                Code::IdempotencyKeyMissing,
                "Nothing was sent. Give every refund an Idempotency-Key of its own, and keep it when you repeat the call.",
            ));
        }
        Err(KeyFault::Invalid) => {
            return Opening::Answer(caller.refuse(
                Code::IdempotencyKeyInvalid,
                "Nothing was sent. Send one Idempotency-Key of 1 to 255 visible ASCII characters.",
            ));
        }
    };
    if !query.is_empty() {
        faults.push(Fault::at(
            "",
            "A refund call has no query string: everything stands in the body.",
        ));
    }
    // As many digits as one likes: what is no 64-bit number is too large, too, where it is a number at all.
    let announced = headers.first("content-length").unwrap_or_default();
    let too_large = announced.iter().all(u8::is_ascii_digit)
        && match std::str::from_utf8(announced).map(str::parse::<u64>) {
            Ok(Ok(length)) => length > MAX_BODY as u64,
            _ => !announced.is_empty(),
        };
    let reading = Reading {
        config: Rc::clone(config),
        purpose: Purpose::Refund(key, digest),
        preview,
        faults,
        secrets: secrets(config, headers),
        caller,
    };
    if too_large {
        return Opening::Answer(reading.too_large(earlier));
    }
    Opening::Read(reading)
}

/// What stands in the headers that carry secrets.
fn secrets(config: &Config, headers: &Headers<'_>) -> Vec<(String, Secret)> {
    let secrets = config.secret_headers.iter().filter_map(|name| {
        let value = headers.first(name)?.to_vec();
        Some((name.clone(), Secret::new(String::from_utf8(value).ok()?)))
    });
    secrets.collect()
}

/// `application/json`, with no other charset than UTF-8 and no coding.
fn is_json(headers: &Headers<'_>) -> bool {
    let mut types = headers.all("content-type");
    let (Some(value), None) = (types.next(), types.next()) else {
        return false;
    };
    let Ok(value) = std::str::from_utf8(value) else {
        return false;
    };
    let mut parts = value.split(';').map(str::trim);
    let is_json = parts
        .next()
        .is_some_and(|media| media.eq_ignore_ascii_case("application/json"));
    let charset_fits = parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    });
    let is_plain = headers
        .all("content-encoding")
        .all(|coding| coding.eq_ignore_ascii_case(b"identity"));
    is_json && charset_fits && is_plain
}

/// A call whose body is being read.
#[derive(Debug)]
pub struct Reading {
    config: Rc<Config>,
    caller: Caller,
    purpose: Purpose,
    /// Whether it is only to be shown what would be sent.
    preview: bool,
    /// What is wrong with its headers, to be told with what is wrong with its body.
    faults: Vec<Fault>,
    /// What stood in the headers that carry secrets.
    secrets: Vec<(String, Secret)>,
}

/// What a call asks for.
#[derive(Debug)]
enum Purpose {
    /// A refund under this key.
    Refund(IdempotencyKey, Digest),
    /// How a refund stands, by this query.
    LookUp(Vec<u8>),
}

impl Reading {
    /// Who calls, where callers are told apart.
    pub fn caller(&self) -> Option<&CallerName> {
        self.caller.name.as_ref()
    }

    /// What a caller must be told of the key if this call comes to nothing before it is claimed: for the answers that
    /// Envoy makes past the filter.
    pub fn standing(&self) -> Option<Retry> {
        match self.purpose {
            Purpose::LookUp(_) => Some(Retry::LookUp),
            Purpose::Refund(..) => {
                let standing = self.caller.standing?;
                Some(standing.retry(self.caller.came))
            }
        }
    }

    /// The name of a refund call's key in the guard.
    pub fn key(&self) -> Option<Digest> {
        match &self.purpose {
            Purpose::Refund(_, digest) => Some(*digest),
            Purpose::LookUp(_) => None,
        }
    }

    /// The configured provider that the call names, whatever else is wrong with it.
    pub fn provider(&self, body: &[u8]) -> Option<Rc<ProviderEntry>> {
        let name = match &self.purpose {
            Purpose::Refund(..) => {
                let body = Json::parse(body).ok()?;
                body.root().get("provider")?.text()?.into_owned()
            }
            Purpose::LookUp(query) => named_provider(query)?,
        };
        self.config.shared_provider(&name)
    }

    /// The answer to a call of which certainly nothing was sent, with what is known of its key now: another call with it may have
    /// been sent while this one's body came.
    fn not_sent(&self, problem: Problem, earlier: Earlier<'_>) -> Answer {
        match &self.purpose {
            Purpose::LookUp(_) => self.caller.problem_of_look_up(problem),
            Purpose::Refund(_, digest) => {
                let caller = Caller {
                    standing: if self.preview { None } else { earlier(digest) },
                    ..self.caller.clone()
                };
                let mut answer = caller.problem_of_refund(problem, End::NotSent);
                answer.unclaimed = (!self.preview).then(|| Box::new(*digest));
                answer
            }
        }
    }

    fn refuse(&self, code: Code, detail: &str, earlier: Earlier<'_>) -> Answer {
        self.not_sent(
            Problem::not_refunded(code, Retry::Corrected, detail),
            earlier,
        )
    }

    /// The answer to a body over [`MAX_BODY`].
    pub fn too_large(&self, earlier: Earlier<'_>) -> Answer {
        self.refuse(
            Code::BodyTooLarge,
            "Nothing was sent. A refund call has 64 KiB at most.",
            earlier,
        )
    }

    /// The answer where the body stopped coming. The caller cannot tell it from a gateway that lacks the option.
    pub fn stalled(&self, earlier: Earlier<'_>) -> Answer {
        self.not_sent(Problem::not_refunded(
            Code::RequestTimeout,
            Retry::SameKey,
            "Nothing was sent: the body did not come in time. If every call ends like this, the gateway's plugin \
             configuration lacks allow_on_headers_stop_iteration: true.",
        ), earlier)
    }

    /// The answer where bytes of the body have come and Envoy withholds them.
    pub fn withheld(&self, earlier: Earlier<'_>) -> Answer {
        self.not_sent(gateway_error(
            503,
            "Nothing was sent: the filter is not given the body. The gateway's plugin configuration lacks \
             allow_on_headers_stop_iteration: true (Envoy 1.35 and later).",
        ), earlier)
    }

    /// The answer in place of Envoy's own while the body is being read. Nothing was sent.
    pub fn local_reply(&self, reply: LocalReply<'_>, earlier: Earlier<'_>) -> Answer {
        match reply.status {
            413 => self.too_large(earlier),
            408 => self.stalled(earlier),
            // The body broke HTTP's own rules on its way in.
            status @ 400..=499 => self.not_sent(Problem {
                status,
                ..Problem::not_refunded(
                    Code::BadRequest,
                    Retry::Corrected,
                    "Nothing was sent: the gateway could not take the request as it was written.",
                )
            }, earlier),
            _ => self.not_sent(nothing_left(reply, None), earlier),
        }
    }

    /// Reads the whole body.
    pub fn accept(self, body: &[u8], earlier: Earlier<'_>) -> Result<Accepted, Answer> {
        if body.len() > MAX_BODY {
            return Err(self.too_large(earlier));
        }
        let read = match &self.purpose {
            Purpose::Refund(key, digest) => self.refund(body, key, *digest),
            Purpose::LookUp(query) => self.look_up(body, query),
        };
        let (name, task, asks) = match read {
            Ok(read) if self.faults.is_empty() => read,
            Err(Unacceptable::Malformed) => {
                return Err(self.refuse(
                    Code::MalformedJson,
                    "Nothing was sent. The body must be one JSON object in UTF-8 and nothing after it.", earlier));
            }
            read => {
                let mut faults = match read {
                    Err(Unacceptable::Invalid(faults)) => faults,
                    _ => Vec::new(),
                };
                faults.extend(self.faults.iter().cloned());
                return Err(self.not_sent(invalid(faults), earlier));
            }
        };
        let Some(entry) = self.config.shared_provider(&name) else {
            return Err(self.not_sent(
                gateway_error(500, "Nothing was sent. The gateway lost its configuration."),
                earlier,
            ));
        };
        if !entry.lets_in(self.caller.name.as_ref()) {
            let problem = caller_not_allowed("This caller may not use this provider.");
            return Err(self.not_sent(problem, earlier));
        }
        let over = match &task {
            Task::Refund(refund, _) => match refund.amount {
                Amount::Exactly(amount) => entry.over_limit(Some(amount)),
                // The look tells how much it is.
                Amount::Full if entry.query_first => None,
                Amount::Full => entry.over_limit(None),
            },
            Task::LookUp(..) => None,
        };
        if let Some(why) = over {
            return Err(self.not_sent(over_limit(&why), earlier));
        }
        Ok(Accepted {
            caller: self.caller,
            entry,
            task,
            asks: if self.preview { Asks::Nothing } else { asks },
            preview: self.preview,
            secrets: self.secrets,
        })
    }

    fn refund(
        &self,
        body: &[u8],
        key: &IdempotencyKey,
        digest: Digest,
    ) -> Result<(String, Task, Asks), Unacceptable> {
        let (refund, entry) = Refund::read(body, &self.config)?;
        let capabilities = entry.dialect.capabilities();
        let question = Question {
            key: digest,
            refund: refund.digest(entry),
            about: refund.about(entry),
            payment: match capabilities.refunds {
                Refunds::One => {
                    payment_digests(entry, &refund.payment.id, &refund.payment.reference)
                }
                Refunds::Many { .. } => Vec::new(),
            },
            referenced: refund.reference.is_some() && capabilities.takes_reference,
            resend: capabilities
                .idempotency
                .resend(self.caller.came, entry.settle_ms),
            note: refund.note(&entry.name),
        };
        let task = Task::Refund(refund, provider_key(key, entry));
        Ok((entry.name.clone(), task, Asks::Claim(question)))
    }

    fn look_up(&self, body: &[u8], query: &[u8]) -> Result<(String, Task, Asks), Unacceptable> {
        let read = LookUp::read(query, &self.config, self.caller.name.as_ref());
        let no_body = || Fault::at("", "A look-up has no body: everything stands in the query.");
        let (LookUp { wanted, key }, entry) = match read {
            Ok(read) if body.is_empty() => read,
            read => {
                let mut faults = read.err().unwrap_or_default();
                faults.extend((!body.is_empty()).then(no_body));
                return Err(Unacceptable::Invalid(faults));
            }
        };
        let digest = key.map(|key| key.digest());
        let asks = digest.map_or(Asks::Nothing, Asks::Recall);
        Ok((entry.name.clone(), Task::LookUp(wanted, digest), asks))
    }
}
