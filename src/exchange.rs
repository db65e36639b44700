//! One refund, or one look-up, from call to answer, without a host.
//!
//! Each step consumes the one before it, so none runs twice and nothing is sent twice:
//!
//! ```text
//! open ─► Reading ─► Accepted ─┬──────────────────► Dispatch ─► Sent ─► Answer
//!                    (claim)   ├► Waiting (a token) ────┤
//!                              ├► Unsigned (OpenBao) ───┤
//!                              └► Asking (an order) ────┘
//! ```
//!
//! Every step can end in an [`Answer`] of its own. Between [`Accepted`] and the rest stands the [`guard`](crate::guard): from
//! there on the key is this call's, and its answer settles it. A look-up goes the same way, claims nothing, and can settle a
//! key all the same: by the provider's own word.

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::authorization::{basic, basic_pair, bearer};
use crate::call::{Unacceptable, payment_digests};
use crate::clock::{Now, Resend};
use crate::config::{Auth, Config, ProviderEntry};
use crate::guard::{
    Asks, Claim, Concluded, Digest, End, Guard, Question, Recollection, Settled, Standing,
    StoredAnswer, Ticket,
};
use crate::headers::Headers;
use crate::idempotency::{IdempotencyKey, KeyFault, ProviderKey};
use crate::json::{Counts, Json, Node};
use crate::look_up::{LookUp, provider_key};
use crate::problem::{Code, Fault, FieldError, Moved, Problem, ProviderWord, Retry};
use crate::provider::{
    Attempt, Doubt, Idempotency, Names, Outcome, Payload, ProviderReply, ProviderRequest, Receipt,
    Refunds, Refusal, Wanted, Word,
};
use crate::refund::{Amount, Refund, Refunded, Status};
use crate::secret::{Carried, Secret};
use crate::signing::{KeyRing, Signer, SignerChoice, Signing};
use crate::text;
use crate::token::{Failure, FailureKind};

mod callout;
mod inquiry;
mod looked_up;
mod preview;
mod signing;

pub use callout::{Callout, CalloutRequest, Environment};
pub use inquiry::Inquiry;
pub use looked_up::Conclusion;
pub use signing::{Unsigned, Unverified};

/// The largest body of a canonical call, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// The longest time that a provider gives for a refund, in bytes: RFC 3339 with nanoseconds and an offset has 35.
const MAX_TIME: usize = 64;

/// The caller's headers that go on to the provider, besides `x-b3-*`.
const TRACING: [&str; 4] = ["x-request-id", "traceparent", "tracestate", "b3"];

/// What the application gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers, `x-request-id` among them.
    pub headers: Headers<'static>,
    /// The body: JSON.
    pub body: String,
    /// `succeeded`, `pending` or the problem's code, for logs and metrics.
    pub word: &'static str,
    /// The bearer token that the provider has just refused.
    pub refused_token: Option<Secret>,
    /// What the platform team must look at.
    pub alarm: Option<Box<Alarm>>,
    /// Whether it was given before, to the same call, and nothing was sent this time.
    pub replayed: bool,
    /// How the call ended for the guard, where the key is its own.
    pub settles: Option<Box<Settlement>>,
    /// What a look-up has found out for the guard.
    pub concludes: Option<Box<Conclusion>>,
    /// Whether it answers a look-up.
    pub look_up: bool,
}

/// What an answer means for its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// That the key is the call's.
    pub ticket: Ticket,
    /// How the call ended.
    pub end: End,
    /// The provider's id of the refund, where it has told one.
    pub id: Option<String>,
    /// Whether something was sent that could move money.
    pub sent: bool,
    /// Whether the provider refused the refund, for certain or not.
    pub refused: bool,
    /// What the provider has called the payment, besides the names that the caller knew.
    pub names: Vec<Digest>,
    /// What was said, where it was a problem.
    problem: Option<Problem>,
}

impl Answer {
    /// The head of the whole response that it is: with its status, and the length of its body.
    pub fn response_headers(&self) -> Headers<'static> {
        let mut headers = Headers::default();
        headers.text(":status", self.status.to_string());
        headers.extend(self.headers.clone());
        headers.text("content-length", self.body.len().to_string());
        headers
    }

    /// Tells the guard how the call ended, or what a look-up has found out, and says less where that no longer holds. `lease` is a
    /// random number, for a look-up. Returns a word for what is to be counted.
    pub fn settle(
        &mut self,
        guard: &Guard<'_>,
        lease: Option<u64>,
        now: Now,
    ) -> Option<&'static str> {
        if let Some(conclusion) = self.concludes.clone() {
            let concluded = conclusion.tell(guard, lease, now);
            if matches!(concluded, Concluded::Overtaken)
                && let Some(otherwise) = &conclusion.otherwise
            {
                self.become_problem(otherwise);
            }
            return match concluded {
                Concluded::Holds => None,
                Concluded::Settled => Some("concluded"),
                Concluded::Changed => Some("changed"),
                Concluded::Overtaken => Some("overtaken"),
            };
        }
        let settlement = self.settles.as_deref()?;
        let settled = Settled {
            end: settlement.end,
            answer: (self.status, &self.body),
            id: settlement.id.as_deref(),
            sent: settlement.sent,
            refused: settlement.refused,
            names: &settlement.names,
        };
        if guard.settle(&settlement.ticket, &settled, now) {
            return None;
        }
        self.disown(now);
        Some("late")
    }

    /// Says no more than is known where the key has become another call's in the meantime: what this call did not refund,
    /// that one may have.
    fn disown(&mut self, now: Now) {
        let Some(Settlement {
            ticket,
            problem: Some(problem),
            ..
        }) = self.settles.as_deref()
        else {
            return;
        };
        if problem.outcome == Moved::No {
            let standing = Standing {
                resend: ticket.resend,
            };
            let mut problem = problem.clone();
            problem.downgrade_to_unknown(standing, now);
            self.body = problem.body();
        }
    }

    /// Says this instead.
    fn become_problem(&mut self, problem: &Problem) {
        let fresh = problem_answer(problem);
        let request_id = self.headers.first("x-request-id").map(<[u8]>::to_vec);
        self.status = fresh.status;
        self.headers = fresh.headers;
        self.body = fresh.body;
        self.word = fresh.word;
        if let Some(id) = request_id {
            self.headers.push(&b"x-request-id"[..], id);
        }
    }
}

/// An answer, as far as it is the same for every caller.
fn answer(status: u16, word: &'static str, body: String) -> Answer {
    let mut headers = Headers::default();
    headers.fixed(
        "content-type",
        if status < 300 {
            "application/json"
        } else {
            "application/problem+json"
        },
    );
    headers.fixed("cache-control", "no-store");
    Answer {
        status,
        headers,
        body,
        word,
        refused_token: None,
        alarm: None,
        replayed: false,
        settles: None,
        concludes: None,
        look_up: false,
    }
}

/// The answer that a problem is.
fn problem_answer(problem: &Problem) -> Answer {
    let mut answer = answer(problem.status, problem.code.as_str(), problem.body());
    if let Some(retry_after) = &problem.retry_after {
        answer.headers.text("retry-after", retry_after.clone());
    }
    answer
}

/// What the platform team must look at: a line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// The provider's configured name.
    pub provider: String,
    /// What is wrong. Never a secret.
    pub sentence: String,
}

/// What becomes of a request at its headers.
#[derive(Debug)]
pub enum Opening {
    /// It is none of ours and passes untouched.
    NotOurs,
    /// It is answered at once.
    Answer(Answer),
    /// Its body is wanted.
    Read(Reading),
}

/// What is known of earlier sends under a key: the guard's word.
pub type Earlier<'a> = &'a dyn Fn(&Digest) -> Option<Standing>;

/// Looks at a request's headers.
pub fn open(config: &Rc<Config>, headers: &Headers<'_>, now: Now, earlier: Earlier<'_>) -> Opening {
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
    if method == Some(b"GET") {
        caller.look_up = true;
        return Opening::Read(Reading {
            config: Rc::clone(config),
            asked: Asked::LookUp(query.to_vec()),
            preview,
            faults,
            secrets: secrets(config, headers),
            caller,
        });
    }
    let key =
        IdempotencyKey::from_header(headers.all("idempotency-key")).map(|key| (key.digest(), key));
    if let Ok((digest, _)) = &key
        && !preview
    {
        caller.standing = earlier(digest);
    }
    if method != Some(b"POST") {
        let mut answer = caller.refuse(
            Code::MethodNotAllowed,
            "Nothing was sent. Ask for a refund with POST, and look one up with GET.",
        );
        answer.headers.fixed("allow", "GET, POST");
        return Opening::Answer(answer);
    }
    if !is_json(headers) {
        return Opening::Answer(caller.refuse(
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
        asked: Asked::Refund(key, digest),
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

/// The answer to a call whose headers the host does not show.
pub fn unreadable_call() -> Answer {
    let nobody = Caller {
        request_id: None,
        passed_on: Headers::default(),
        came: Now {
            unix_ms: 0,
            steady_ms: 0,
        },
        standing: None,
        unremembered: false,
        ticket: None,
        look_up: false,
    };
    let sentence = "Nothing was sent: the gateway cannot read the call.";
    nobody.not_sent(gateway_error(500, sentence))
}

/// Where a call stands after a step. What it holds makes the next step, and is consumed by it.
#[derive(Debug)]
pub enum Step {
    /// It is answered: nothing more is to be done.
    Answered(Answer),
    /// Its body is being read.
    Reading(Reading),
    /// It waits for a bearer token.
    Waiting(Box<Waiting>),
    /// It waits for the answer to a call of the gateway's own.
    Calling(Callout),
    /// The provider's request is to be handed over.
    Leaving(Box<Dispatch>),
    /// The provider's request may have left.
    Sent(Sent),
    /// The provider's reply is being read.
    Replying(Replying),
}

impl Step {
    /// The answer where Envoy answers in the filter's place, or the stream ends without an answer: it settles the key.
    pub fn local_reply(self, reply: LocalReply<'_>, earlier: Earlier<'_>) -> Answer {
        match self {
            Step::Answered(answer) => answer,
            Step::Reading(reading) => reading.local_reply(reply, earlier),
            Step::Waiting(waiting) => waiting.local_reply(reply),
            Step::Calling(callout) => callout.local_reply(reply),
            Step::Leaving(dispatch) => dispatch.sent.local_reply(reply),
            Step::Sent(sent) => sent.local_reply(reply),
            Step::Replying(replying) => replying.local_reply(reply),
        }
    }
}

/// What is kept of the caller's headers, and of its key.
#[derive(Debug, Clone)]
struct Caller {
    request_id: Option<Vec<u8>>,
    passed_on: Headers<'static>,
    came: Now,
    /// What is known of earlier sends under the key.
    standing: Option<Standing>,
    /// Whether the guard had no room for the key: then nobody knows of earlier sends under it.
    unremembered: bool,
    /// That the key is this call's.
    ticket: Option<Ticket>,
    /// Whether it asks how a refund stands: what fails then says nothing of the refund.
    look_up: bool,
}

impl Caller {
    fn of(headers: &Headers<'_>, came: Now) -> Self {
        let mut passed_on = Headers::default();
        for (name, value) in headers.iter() {
            let tracing =
                TRACING.iter().any(|known| known.as_bytes() == name) || name.starts_with(b"x-b3-");
            // Without this one Envoy matches no route; the route takes it away.
            if tracing || name == b"x-forwarded-proto" {
                passed_on.push(name.to_vec(), value.to_vec());
            }
        }
        Caller {
            request_id: headers.first("x-request-id").map(<[u8]>::to_vec),
            passed_on,
            came,
            standing: None,
            unremembered: false,
            ticket: None,
            look_up: false,
        }
    }

    /// Makes an answer this caller's. `end` is how the call ended by itself.
    fn own(&self, mut answer: Answer, end: End) -> Answer {
        answer.look_up = self.look_up;
        if let Some(id) = &self.request_id {
            answer.headers.push(&b"x-request-id"[..], id.clone());
        }
        answer.settles = self.ticket.as_ref().map(|ticket| {
            Box::new(Settlement {
                ticket: ticket.clone(),
                end,
                id: None,
                sent: end != End::NotSent,
                refused: false,
                names: Vec::new(),
                problem: None,
            })
        });
        answer
    }

    /// A problem that says what is true under the key: of this send, and of those before it. `end` is how this call ended by
    /// itself.
    fn problem(&self, mut problem: Problem, end: End) -> Answer {
        if let Some(standing) = self.standing {
            problem.downgrade_to_unknown(standing, self.came);
        }
        if self.look_up {
            problem.of_look_up();
        }
        let mut answer = self.own(problem_answer(&problem), end);
        if let Some(settlement) = answer.settles.as_deref_mut() {
            settlement.problem = Some(problem);
        }
        answer
    }

    /// The answer to a call of which certainly nothing was sent.
    fn not_sent(&self, problem: Problem) -> Answer {
        self.problem(problem, End::NotSent)
    }

    /// The answer to a call that must be corrected.
    fn refuse(&self, code: Code, detail: &str) -> Answer {
        self.not_sent(Problem::not_refunded(code, Retry::Corrected, detail))
    }
}

/// An answer of Envoy's own that passes the filter, and what Envoy tells about it.
#[derive(Debug, Clone, Copy)]
pub struct LocalReply<'a> {
    /// Its status.
    pub status: u16,
    /// `response.code_details`.
    pub details: &'a str,
    /// Whether `upstream.local_address` is set: a connection was handed out, so bytes may have left.
    pub connected: bool,
    /// `upstream.request_attempt_count`.
    pub attempts: u64,
}

/// A call whose body is being read.
#[derive(Debug)]
pub struct Reading {
    config: Rc<Config>,
    caller: Caller,
    asked: Asked,
    /// Whether it is only to be shown what would be sent.
    preview: bool,
    /// What is wrong with its headers, to be told with what is wrong with its body.
    faults: Vec<Fault>,
    /// What stood in the headers that carry secrets.
    secrets: Vec<(String, Secret)>,
}

/// What a call asks for.
#[derive(Debug)]
enum Asked {
    /// A refund under this key.
    Refund(IdempotencyKey, Digest),
    /// How a refund stands, by this query.
    LookUp(Vec<u8>),
}

/// A call without a fault, before anything is done for it.
#[derive(Debug)]
pub struct Accepted {
    caller: Caller,
    entry: Rc<ProviderEntry>,
    task: Task,
    asks: Asks,
    preview: bool,
    secrets: Vec<(String, Secret)>,
}

/// What is to be had from the provider.
#[derive(Debug)]
enum Task {
    /// A refund, under its key at the provider.
    Refund(Refund, ProviderKey),
    /// How a refund stands; with the caller's key of it.
    LookUp(Wanted, Option<Digest>),
}

impl Reading {
    /// What a caller must be told of the key if this call comes to nothing before it is claimed: for the answers that
    /// Envoy makes past the filter.
    pub fn standing(&self) -> Option<Retry> {
        if self.caller.look_up {
            return Some(Retry::LookUp);
        }
        self.caller
            .standing
            .map(|standing| standing.retry(self.caller.came))
    }

    /// The caller with what is known of its key now: another call with it may have been sent while this one's body came.
    fn caller_now(&self, earlier: Earlier<'_>) -> Caller {
        Caller {
            standing: match &self.asked {
                Asked::Refund(_, digest) if !self.preview => earlier(digest),
                Asked::Refund(..) | Asked::LookUp(_) => None,
            },
            ..self.caller.clone()
        }
    }

    /// The answer to a body over [`MAX_BODY`].
    pub fn too_large(&self, earlier: Earlier<'_>) -> Answer {
        self.caller_now(earlier).refuse(
            Code::BodyTooLarge,
            "Nothing was sent. A refund call has 64 KiB at most.",
        )
    }

    /// The answer where the body stopped coming. The caller cannot tell it from a gateway that lacks the option.
    pub fn stalled(&self, earlier: Earlier<'_>) -> Answer {
        self.caller_now(earlier).not_sent(Problem::not_refunded(
            Code::RequestTimeout,
            Retry::SameKey,
            "Nothing was sent: the body did not come in time. If every call ends like this, the gateway's plugin \
             configuration lacks allow_on_headers_stop_iteration: true.",
        ))
    }

    /// The answer where bytes of the body have come and Envoy withholds them.
    pub fn withheld(&self, earlier: Earlier<'_>) -> Answer {
        self.caller_now(earlier).not_sent(gateway_error(
            503,
            "Nothing was sent: the filter is not given the body. The gateway's plugin configuration lacks \
             allow_on_headers_stop_iteration: true (Envoy 1.35 and later).",
        ))
    }

    /// The answer in place of Envoy's own while the body is being read. Nothing was sent.
    pub fn local_reply(&self, reply: LocalReply<'_>, earlier: Earlier<'_>) -> Answer {
        match reply.status {
            413 => self.too_large(earlier),
            408 => self.stalled(earlier),
            // The body broke HTTP's own rules on its way in.
            status @ 400..=499 => self.caller_now(earlier).not_sent(Problem {
                status,
                ..Problem::not_refunded(
                    Code::BadRequest,
                    Retry::Corrected,
                    "Nothing was sent: the gateway could not take the request as it was written.",
                )
            }),
            _ => self.caller_now(earlier).not_sent(nothing_left(reply)),
        }
    }

    /// Reads the whole body.
    pub fn accept(self, body: &[u8], earlier: Earlier<'_>) -> Result<Accepted, Answer> {
        if body.len() > MAX_BODY {
            return Err(self.too_large(earlier));
        }
        let read = match &self.asked {
            Asked::Refund(key, digest) => self.refund(body, key, *digest),
            Asked::LookUp(query) => self.look_up(body, query),
        };
        let (name, task, asks) = match read {
            Ok(read) if self.faults.is_empty() => read,
            Err(Unacceptable::Malformed) => {
                return Err(self.caller_now(earlier).refuse(
                    Code::MalformedJson,
                    "Nothing was sent. The body must be one JSON object in UTF-8 and nothing after it.",
                ));
            }
            read => {
                let mut faults = match read {
                    Err(Unacceptable::Invalid(faults)) => faults,
                    _ => Vec::new(),
                };
                faults.extend(self.faults.iter().cloned());
                return Err(self.caller_now(earlier).not_sent(invalid(faults)));
            }
        };
        let Some(entry) = self.config.shared_provider(&name) else {
            return Err(self.caller.not_sent(gateway_error(
                500,
                "Nothing was sent. The gateway lost its configuration.",
            )));
        };
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
        };
        let task = Task::Refund(refund, provider_key(key, entry));
        Ok((entry.name.clone(), task, Asks::Claim(question)))
    }

    fn look_up(&self, body: &[u8], query: &[u8]) -> Result<(String, Task, Asks), Unacceptable> {
        let read = LookUp::read(query, &self.config);
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

impl Accepted {
    /// What the guard is asked.
    pub fn asks(&self) -> &Asks {
        &self.asks
    }

    /// Goes on by the guard's word. `filter_state` reads Envoy's.
    pub fn proceed(
        mut self,
        claim: Claim,
        now: Now,
        signer: &mut dyn Signer,
        filter_state: &dyn Fn(&str) -> Option<Vec<u8>>,
    ) -> Step {
        // What was known of the key when the headers came is out of date.
        self.caller.standing = None;
        let idempotency = self.entry.dialect.capabilities().idempotency;
        let mut resend = idempotency.resend(self.caller.came, self.entry.settle_ms);
        let mut past = None;
        match claim {
            Claim::Unguarded => {}
            Claim::Recalled(recollection) => {
                if let Task::LookUp(wanted, _) = &mut self.task {
                    recollection.add_to(wanted, &self.entry);
                }
                past = Some(recollection);
            }
            // The provider's own key holds; without one nothing would.
            Claim::NoRoom if resend != Resend::Never => {
                self.caller.unremembered = true;
                self.caller.standing = Some(Standing { resend });
            }
            Claim::NoRoom => {
                return Step::Answered(self.caller.not_sent(gateway_error(
                    503,
                    "Nothing was sent: this provider knows no keys, and the gateway can remember no more of them. The \
                     platform team must look at its guard.",
                )));
            }
            Claim::Taken {
                ticket, standing, ..
            } => {
                resend = ticket.resend;
                self.caller.ticket = Some(ticket);
                self.caller.standing = standing;
            }
            Claim::InFlight(standing) => {
                return self.held(
                    Code::RefundInProgress,
                    now,
                    standing,
                    "Nothing was sent: the same call is in flight.",
                );
            }
            Claim::Reused => {
                return Step::Answered(self.caller.not_sent(Problem::unknown(
                    Code::IdempotencyKeyReused,
                    Retry::No,
                    "Nothing was sent: this key was used with another refund.",
                )));
            }
            Claim::PaymentTaken { is_open } => {
                return Step::Answered(self.caller.not_sent(payment_has_refund(is_open)));
            }
            Claim::Answered {
                answer: Some(answer),
                ..
            } => return Step::Answered(self.caller.again(answer, &self.task)),
            Claim::Answered { standing, .. } => {
                return self.held(
                    Code::GatewayError,
                    now,
                    standing,
                    "Nothing was sent: an earlier call with this key left the gateway, and its end was not seen.",
                );
            }
        }
        let secrets = Rc::new(self.secrets);
        let carried = Carried {
            headers: &secrets,
            filter_state,
        };
        let call = Call {
            caller: self.caller,
            entry: self.entry,
            task: self.task,
            resend,
            past,
            preview: self.preview,
            secrets: Rc::clone(&secrets),
            token: None,
            names: Names::default(),
            shown: Vec::new(),
        };
        call.begin(now, signer, &carried)
    }

    /// The answer to a call that is not sent, since another under its key is open.
    fn held(self, code: Code, now: Now, standing: Standing, sentence: &str) -> Step {
        let retry = standing.retry(now);
        let mut problem = Problem::unknown(code, retry, sentence);
        if retry == Retry::SameKey {
            problem.retry_until = standing.resend.retry_until();
        }
        Step::Answered(self.caller.not_sent(problem))
    }
}

impl Caller {
    /// An answer that was given before, to the same call.
    fn again(&self, mut stored: StoredAnswer, task: &Task) -> Answer {
        if let Task::Refund(refund, _) = task {
            looked_up::complete(&mut stored, refund);
        }
        let json = Json::parse(stored.body.as_bytes()).ok();
        let word = json.as_ref().map(Json::root).and_then(|body| {
            let code = body.get("code").and_then(Node::text);
            match code.and_then(|code| Code::of(&code)) {
                Some(code) => Some(code.as_str()),
                None => Status::of(&body.get("status")?.text()?).map(Status::as_str),
            }
        });
        let stored = answer(stored.status, word.unwrap_or_default(), stored.body);
        let mut answer = self.own(stored, End::NotSent);
        answer.headers.fixed("idempotency-replayed", "true");
        answer.replayed = true;
        answer
    }
}

fn sign(
    ring: &KeyRing,
    choice: SignerChoice,
    text: &str,
    now: Now,
    signer: &mut dyn Signer,
    carried: &Carried<'_>,
) -> Result<(String, String), String> {
    let (active, key) = ring.usable(now.unix_ms.div_euclid(1_000), carried)?;
    let signature = signer
        .sign(choice, &key, text.as_bytes())
        .map_err(|_| format!("The signer failed with the key {}.", active.id))?;
    Ok((STANDARD.encode(signature), active.id.clone()))
}

/// A refund or a look-up on its way: what is needed to make an answer of whatever comes.
#[derive(Debug)]
struct Call {
    caller: Caller,
    entry: Rc<ProviderEntry>,
    task: Task,
    /// What the guard remembers of the refund that is looked up; none where none was named by its key.
    past: Option<Box<Recollection>>,
    /// Whether it is only to be shown what would be sent.
    preview: bool,
    /// Until when a second send cannot refund twice, counted from the first.
    resend: Resend,
    /// What stood in the headers that carry secrets.
    secrets: Rc<Vec<(String, Secret)>>,
    /// The bearer token, once it is there.
    token: Option<Secret>,
    /// What the provider calls the payment, where it was looked at.
    names: Names,
    /// What the provider, or the token endpoint, is shown: never to be passed on where it comes back.
    shown: Vec<Secret>,
}

/// A provider's request without what proves who calls.
#[derive(Debug)]
struct Draft {
    call: Call,
    path: String,
    headers: Vec<(&'static str, String)>,
    via: Via,
}

/// How a provider's request leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    /// In place of the caller's, by the route.
    Route,
    /// By a call of the gateway's own: before the refund itself, or where the caller's call has no body to be replaced.
    Callout,
}

impl Call {
    /// What goes to the provider first.
    fn begin(self, now: Now, signer: &mut dyn Signer, carried: &Carried<'_>) -> Step {
        match &self.task {
            Task::Refund(refund, _) if self.entry.query_first && !self.preview => {
                let question = self.entry.dialect.look(&refund.payment);
                self.draft(question, Via::Callout, now, signer, carried)
            }
            Task::Refund(..) => self.refund(now, signer, carried),
            Task::LookUp(wanted, _) => {
                let question = self.entry.dialect.look_up(wanted);
                let via = match question.body {
                    Payload::None => Via::Route,
                    Payload::Plain(_) | Payload::ToSign { .. } => Via::Callout,
                };
                self.draft(question, via, now, signer, carried)
            }
        }
    }

    /// The refund itself.
    fn refund(self, now: Now, signer: &mut dyn Signer, carried: &Carried<'_>) -> Step {
        let Task::Refund(refund, key) = &self.task else {
            return Step::Answered(self.caller.not_sent(gateway_error(
                500,
                "Nothing was sent. The gateway took a look-up for a refund.",
            )));
        };
        let attempt = Attempt {
            key: *key,
            default_reason: self.entry.default_reason.as_deref(),
        };
        let request = self.entry.dialect.request(refund, &attempt);
        self.draft(request, Via::Route, now, signer, carried)
    }

    fn draft(
        self,
        request: ProviderRequest,
        via: Via,
        now: Now,
        signer: &mut dyn Signer,
        carried: &Carried<'_>,
    ) -> Step {
        let entry = Rc::clone(&self.entry);
        let draft = Draft {
            call: self,
            path: request.path,
            headers: request.headers,
            via,
        };
        let (text, seal) = match request.body {
            Payload::None => return draft.authorize(None, &entry.auth, carried),
            Payload::Plain(body) => return draft.authorize(Some(body), &entry.auth, carried),
            Payload::ToSign { text, seal } => (text, seal),
        };
        match &entry.auth {
            Auth::Signature(signing) if draft.call.preview => {
                match signing.is_ready(now.unix_ms.div_euclid(1_000), carried) {
                    Ok(()) => draft.show(Some(seal(&text, preview::REDACTED)), None),
                    Err(sentence) => Step::Answered(draft.call.unsigned(sentence)),
                }
            }
            Auth::Signature(Signing::Keys {
                ring,
                signer: choice,
            }) => match sign(ring, *choice, &text, now, signer, carried) {
                Ok((signature, key_id)) => draft.signed(&text, seal, &signature, key_id),
                Err(sentence) => Step::Answered(draft.call.unsigned(sentence)),
            },
            Auth::Signature(Signing::Transit(transit)) => {
                match transit.token.resolve_for_header(carried) {
                    Ok(token) => {
                        let transit = Rc::clone(transit);
                        let unsigned = Unsigned::new(draft, transit, text, seal, token);
                        Step::Calling(Callout::Signature(Box::new(unsigned)))
                    }
                    Err(sentence) => Step::Answered(draft.call.unsigned(sentence)),
                }
            }
            Auth::Token(_) | Auth::Bearer(_) | Auth::Basic { .. } | Auth::Injected => {
                Step::Answered(
                    draft
                        .call
                        .unsigned("No signing key is configured for this provider."),
                )
            }
        }
    }
}

/// A call that waits for a bearer token. Nothing was sent.
#[derive(Debug)]
pub struct Waiting {
    draft: Draft,
    body: Option<String>,
    client_secret: Secret,
}

/// A provider's request, ready to leave.
#[derive(Debug)]
pub struct Dispatch {
    /// The provider's configured name: the routes match it.
    pub provider: String,
    /// All headers, pseudo-headers included. They hold credentials.
    pub headers: Headers<'static>,
    /// The body; empty for a look-up, whose call has none either.
    pub body: String,
    /// The signing key's id, for logs.
    pub key_id: Option<String>,
    /// What a caller may do if nothing more is heard.
    pub retry: Retry,
    /// Until when it may do so (RFC 3339), where the provider forgets keys.
    pub retry_until: Option<String>,
    /// What is left to be done once it has left.
    pub sent: Sent,
}

impl Waiting {
    /// The configured provider.
    pub fn entry(&self) -> &Rc<ProviderEntry> {
        &self.draft.call.entry
    }

    /// The client secret for the token endpoint, as this call brought it.
    pub fn client_secret(&self) -> &Secret {
        &self.client_secret
    }

    /// The body that will be sent: a filter replaces it while it still holds it.
    pub fn body(&self) -> Option<&str> {
        self.body.as_deref()
    }

    fn shown_to_the_endpoint(&self) -> Vec<Secret> {
        match &self.draft.call.entry.auth {
            Auth::Token(endpoint) => vec![
                basic_pair(&endpoint.client_id, &self.client_secret),
                self.client_secret.clone(),
            ],
            _ => Vec::new(),
        }
    }

    /// Goes on with a token.
    pub fn with_token(mut self, token: Secret) -> Step {
        let authorization = bearer(&token);
        // The token first: a 401 of the provider's drops it.
        let mut shown = vec![token.clone()];
        shown.append(&mut self.shown_to_the_endpoint());
        self.draft.call.shown = shown;
        self.draft.call.token = Some(token);
        self.draft.leave(self.body, Some(authorization), None)
    }

    /// The answer where there is no token.
    pub fn without_token(mut self, failure: &Failure) -> Answer {
        let (code, sentence) = match failure.kind {
            FailureKind::Refused => (
                Code::ProviderAuthFailed,
                "Nothing was sent: the token endpoint does not accept the gateway's credentials. The platform team must fix \
                 them.",
            ),
            FailureKind::RateLimited => (
                Code::ProviderRateLimited,
                "Nothing was sent: the token endpoint is rate limiting.",
            ),
            FailureKind::Unreachable => (
                Code::ProviderUnreachable,
                "Nothing was sent: the token endpoint gave no token.",
            ),
        };
        let mut problem = Problem::not_refunded(code, Retry::SameKey, sentence);
        problem.retry_after = failure
            .retry_after
            .clone()
            .filter(|_| failure.kind == FailureKind::RateLimited);
        self.draft.call.shown = self.shown_to_the_endpoint();
        let call = &self.draft.call;
        problem.provider = failure
            .status
            .map(|status| call.provider_word(status, failure.word()));
        call.caller.not_sent(problem)
    }

    /// The answer in place of Envoy's own while the token is awaited. Nothing was sent.
    pub fn local_reply(self, reply: LocalReply<'_>) -> Answer {
        self.draft.call.caller.not_sent(nothing_left(reply))
    }
}

impl Draft {
    /// Adds the credentials of a provider that wants them in a header.
    fn authorize(mut self, body: Option<String>, auth: &Auth, carried: &Carried<'_>) -> Step {
        let authorization = match auth {
            Auth::Token(endpoint) => match endpoint.client_secret.resolve_for_header(carried) {
                // A preview fetches no token; that it would have one is all that is to be seen.
                Ok(_) if self.call.preview => Ok(Some(bearer(&Secret::new(String::new())))),
                Ok(client_secret) => match &self.call.token {
                    Some(token) => Ok(Some(bearer(token))),
                    None => {
                        return Step::Waiting(Box::new(Waiting {
                            draft: self,
                            body,
                            client_secret,
                        }));
                    }
                },
                Err(sentence) => Err(sentence),
            },
            Auth::Bearer(key) => key.resolve_for_header(carried).map(|key| {
                let authorization = bearer(&key);
                self.call.shown = vec![key];
                Some(authorization)
            }),
            Auth::Basic { user, password } => {
                password.resolve_for_header(carried).map(|password| {
                    let authorization = basic(user, &password);
                    self.call.shown = vec![basic_pair(user, &password), password];
                    Some(authorization)
                })
            }
            Auth::Injected | Auth::Signature(_) => Ok(None),
        };
        match authorization {
            Ok(authorization) => self.leave(body, authorization, None),
            Err(sentence) => Step::Answered(self.call.alarm(503, Code::GatewayError, sentence)),
        }
    }

    /// Goes on with a signature.
    fn signed(
        self,
        text: &str,
        seal: fn(&str, &str) -> String,
        signature: &str,
        key_id: String,
    ) -> Step {
        self.leave(Some(seal(text, signature)), None, Some(key_id))
    }

    /// The request as it leaves, or is shown.
    fn leave(
        self,
        body: Option<String>,
        authorization: Option<Secret>,
        key_id: Option<String>,
    ) -> Step {
        if self.call.preview {
            return self.show(body, authorization);
        }
        let headers = self.request_headers(body.as_deref(), authorization.as_ref());
        let (call, body) = (self.call, body.unwrap_or_default());
        match self.via {
            Via::Route => Step::Leaving(Box::new(Dispatch {
                provider: call.entry.name.clone(),
                headers,
                body,
                key_id,
                retry: call.retry_when_unknown(),
                retry_until: call.retry_until(),
                sent: Sent { call },
            })),
            Via::Callout => Step::Calling(Callout::Inquiry(Box::new(Inquiry::new(
                call, headers, body, key_id,
            )))),
        }
    }

    /// The answer that shows the request. `body`: without a signature.
    fn show(self, body: Option<String>, authorization: Option<Secret>) -> Step {
        let headers = self.request_headers(body.as_deref(), authorization.as_ref());
        Step::Answered(self.call.show(&headers, body.as_deref()))
    }

    fn request_headers(
        &self,
        body: Option<&str>,
        authorization: Option<&Secret>,
    ) -> Headers<'static> {
        let call = &self.call;
        let base = &call.entry.base_url;
        let path = &self.path;
        let mut headers = Headers::default();
        let method = if body.is_some() { "POST" } else { "GET" };
        headers.fixed(":method", method);
        headers.fixed(":scheme", base.scheme);
        headers.text(":authority", base.authority.clone());
        headers.text(":path", format!("{}{path}", base.path));
        if let Some(body) = body {
            headers.fixed("content-type", "application/json");
            headers.text("content-length", body.len().to_string());
        }
        headers.fixed("accept", "application/json");
        headers.fixed("accept-encoding", "identity");
        headers.fixed("user-agent", crate::USER_AGENT);
        if let Some(authorization) = authorization {
            headers.text("authorization", authorization.expose().to_owned());
        }
        for (name, value) in &self.headers {
            headers.text(name, value.clone());
        }
        let routed = self.via == Via::Route && !call.preview;
        let keyless = call.entry.dialect.capabilities().idempotency == Idempotency::None;
        if routed && keyless {
            // Whatever the route's policy says: a second send could be a second refund. The router takes it away.
            headers.fixed("x-envoy-max-retries", "0");
        }
        for (name, value) in call.caller.passed_on.iter() {
            // Only a route needs that one, and takes it away.
            if routed || name != b"x-forwarded-proto" {
                headers.push(name.to_vec(), value.to_vec());
            }
        }
        headers
    }
}

/// A refund that may have left the gateway.
#[derive(Debug)]
pub struct Sent {
    call: Call,
}

/// A refund whose reply has begun.
#[derive(Debug)]
pub struct Replying {
    sent: Sent,
    head: ReplyHead,
}

impl Replying {
    /// The configured provider.
    pub fn entry(&self) -> Rc<ProviderEntry> {
        self.sent.entry()
    }

    /// Whether it counts, with this reply, how often the route has sent the request.
    pub fn counts_attempts(&self) -> bool {
        self.sent.counts_attempts(&self.head)
    }

    /// Turns the whole reply into the answer. `attempts` is `upstream.request_attempt_count`.
    pub fn reply(self, body: &[u8], attempts: u64) -> Answer {
        self.sent.reply(&self.head, body, attempts)
    }

    /// The answer in place of Envoy's own after the reply has begun.
    pub fn local_reply(self, reply: LocalReply<'_>) -> Answer {
        self.sent.local_reply(LocalReply {
            connected: true,
            // A reply that has begun is not one that was refused before.
            details: if reply.details.contains("refused_stream") {
                "upstream_reset"
            } else {
                reply.details
            },
            ..reply
        })
    }
}

/// The head of a provider's reply, as far as it counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyHead {
    /// The HTTP status.
    pub status: u16,
    /// `retry-after`, if it is one.
    pub retry_after: Option<String>,
    /// Whether the body is coded, although identity was asked for.
    pub coded: bool,
}

impl ReplyHead {
    /// Reads a reply's headers; a reply without a status that can be read is one with status 0, which nobody documents.
    pub fn of(headers: &Headers<'_>) -> Self {
        ReplyHead {
            status: headers
                .first(":status")
                .and_then(|status| std::str::from_utf8(status).ok()?.parse().ok())
                .unwrap_or_default(),
            retry_after: headers.first("retry-after").and_then(retry_after),
            coded: headers
                .all("content-encoding")
                .any(|coding| !coding.eq_ignore_ascii_case(b"identity")),
        }
    }

    /// The whole reply; nothing is read of a body that is coded.
    fn with<'a>(&self, body: &'a [u8]) -> ProviderReply<'a> {
        ProviderReply::new(self.status, if self.coded { &[] } else { body })
    }
}

/// A `Retry-After` that is one by its form (RFC 9110, 10.2.3): seconds, or a date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn retry_after(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let seconds = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let date = text.len() == 29
        && text.ends_with(" GMT")
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b" ,:".contains(&b));
    (seconds || date).then(|| text.to_owned())
}

/// Why a refusing status proves nothing: its body stands around a refund that was made or may have been, whichever of two members
/// of one name may count. None where the body leaves the refusal as it is.
fn contradiction(
    entry: &ProviderEntry,
    refund: &Refund,
    attempt: &Attempt<'_>,
    reply: &ProviderReply<'_>,
) -> Option<Doubt> {
    if reply.says(entry.dialect.capabilities().taken) {
        return Some(Doubt::Unreadable);
    }
    let body = reply.json()?;
    [Counts::First, Counts::Last]
        .into_iter()
        .find_map(|counts| {
            let body = body.read_by(counts);
            let accepted = ProviderReply::new(200, body.as_bytes());
            match entry.dialect.outcome(refund, attempt, &accepted) {
                Outcome::Refunded(_) | Outcome::Pending(_) => Some(Doubt::Unreadable),
                // What an error looks like where a refund is due.
                Outcome::Unknown(Doubt::Unreadable, _) | Outcome::Refused(..) => None,
                Outcome::Unknown(doubt, _) => Some(doubt),
            }
        })
}

impl Sent {
    /// The configured provider.
    pub fn entry(&self) -> Rc<ProviderEntry> {
        Rc::clone(&self.call.entry)
    }

    /// The answer where the request could not be handed to Envoy after all.
    pub fn not_sent(&self) -> Answer {
        self.call.caller.not_sent(gateway_error(
            500,
            "Nothing was sent: the gateway could not write the provider's request.",
        ))
    }

    /// Whether it counts, with this reply, how often the route has sent the request.
    ///
    /// A verdict in the body of a 2xx is about the refund under this key. A status is about one send, and where the provider
    /// has no key so is everything: after a retry by the route the send before it may have been the refund.
    fn counts_attempts(&self, head: &ReplyHead) -> bool {
        let keyed = self.call.entry.dialect.capabilities().idempotency != Idempotency::None;
        !(keyed && (200..300).contains(&head.status))
    }

    /// Turns the provider's whole reply into the answer. `attempts` is `upstream.request_attempt_count`.
    pub fn reply(self, head: &ReplyHead, body: &[u8], attempts: u64) -> Answer {
        let reply = head.with(body);
        let (refund, key) = match &self.call.task {
            Task::Refund(refund, key) => (refund, *key),
            Task::LookUp(wanted, _) => {
                let finding = self.call.entry.dialect.found(wanted, &reply);
                return self.call.looked_up(head, finding);
            }
        };
        let attempt = Attempt {
            key,
            default_reason: None,
        };
        let entry = &self.call.entry;
        let mut outcome = entry.dialect.outcome(refund, &attempt, &reply);
        if let Outcome::Refused(..) = outcome
            && !reply.is_success()
        {
            // Words that cannot be read may be some that mean that the refund is there.
            let doubt = match head.coded {
                true => Some(Doubt::Unreadable),
                false => contradiction(entry, refund, &attempt, &reply),
            };
            if let (Some(doubt), Outcome::Refused(_, word)) = (doubt, &outcome) {
                outcome = Outcome::Unknown(doubt, word.clone());
            }
        }
        match outcome {
            Outcome::Refunded(receipt) => self.refunded(Status::Succeeded, receipt),
            Outcome::Pending(receipt) => self.refunded(Status::Pending, receipt),
            Outcome::Refused(refusal, word) => self.refused(head, refusal, word, attempts),
            Outcome::Unknown(doubt, word) => self.doubtful(head, doubt, word),
        }
    }

    /// The answer in place of Envoy's own after the request may have left.
    ///
    /// Nothing was sent if no connection was handed out, unless the route sent more than once: what Envoy tells is about
    /// the last attempt alone.
    pub fn local_reply(self, reply: LocalReply<'_>) -> Answer {
        let once = reply.attempts <= 1;
        let details = reply.details;
        // The injector answers before a byte is written, on a connection that may be warm.
        let not_injected = details == "failed_to_inject_credential";
        let call = self.call;
        if once && (!reply.connected || not_injected) {
            return call.caller.not_sent(nothing_left(reply));
        }
        if once && details.contains("remote_refused_stream_reset") {
            // RFC 9113, 8.7: a refused stream was not processed.
            return call.caller.not_sent(unreachable_provider());
        }
        let problem = if details.contains("timeout") || reply.status == 504 {
            call.after_sending(Code::ProviderTimeout, "The provider did not answer in time")
        } else if details.starts_with("upstream_reset") || details.contains("protocol_error") {
            call.after_sending(Code::ProviderError, "The connection to the provider broke")
        } else if details == "response_payload_too_large" {
            call.after_sending(
                Code::ProviderReplyUnreadable,
                "The provider's answer is larger than the gateway takes",
            )
        } else {
            call.after_sending(
                Code::GatewayError,
                "The gateway failed after the request may have left",
            )
        };
        call.caller.problem(problem, End::Unknown)
    }

    /// Goes on when the head of the provider's reply is there.
    pub fn replying(self, head: ReplyHead) -> Replying {
        Replying { sent: self, head }
    }

    fn refunded(self, status: Status, receipt: Receipt) -> Answer {
        let names = self.call.payment_names(&receipt.payment);
        let id = self.call.clean_id(&receipt);
        let body = self.call.refund_body(status, receipt);
        let end = match status {
            Status::Succeeded => End::Refunded,
            Status::Pending => End::Pending,
            Status::Failed => End::Refused,
        };
        let told = answer(status.http(), status.as_str(), body);
        let mut answer = self.call.caller.own(told, end);
        if let Some(settlement) = answer.settles.as_deref_mut() {
            settlement.names = names;
            settlement.id = id;
        }
        answer
    }

    fn refused(mut self, head: &ReplyHead, refusal: Refusal, word: Word, attempts: u64) -> Answer {
        let (code, retry, sentence) = of_refusal(refusal);
        let is_verdict = !self.counts_attempts(head);
        let call = &mut self.call;
        let unknown = if call.caller.unremembered {
            Some(
                "The gateway has no room to remember this key, so it cannot tell whether an earlier send was the refund.",
            )
        } else if !is_verdict && (attempts > 1 || call.caller.standing.is_some()) {
            Some("It had been sent before, and that may have been the refund.")
        } else {
            None
        };
        let (mut problem, end) = match unknown {
            None => {
                let end = if retry == Retry::No {
                    End::Refused
                } else {
                    End::Free
                };
                (Problem::not_refunded(code, retry, sentence), end)
            }
            Some(why) => {
                let mut problem =
                    Problem::unknown(code, call.retry_when_unknown(), format!("{sentence} {why}"));
                problem.retry_until = call.retry_until();
                if retry == Retry::No {
                    // The same call would be refused again, and nothing learnt of the send before it.
                    problem.retry = Retry::LookUp;
                    problem.retry_until = None;
                    (problem, End::Unknown)
                } else {
                    // What this send did not move, an earlier one may have.
                    let end = if attempts > 1 {
                        End::Unknown
                    } else {
                        End::Free
                    };
                    (problem, end)
                }
            }
        };
        if retry == Retry::SameKey {
            problem.retry_after.clone_from(&head.retry_after);
        }
        if is_verdict && unknown.is_none() {
            // The provider's own word on this refund: whatever was not known of it before is known now.
            call.caller.standing = None;
        }
        let refused_token = call.refused_token(head);
        let mut answer = self.provider_problem(problem, head.status, word, end);
        if let Some(settlement) = answer.settles.as_deref_mut() {
            settlement.refused = retry == Retry::No;
        }
        answer.refused_token = refused_token;
        answer
    }

    fn doubtful(self, head: &ReplyHead, doubt: Doubt, word: Word) -> Answer {
        let problem = self.call.of_doubt(head, doubt);
        let refused_token = self.call.refused_token(head);
        let mut answer = self.provider_problem(problem, head.status, word, End::Unknown);
        if let Some(settlement) = answer.settles.as_deref_mut() {
            settlement.refused = doubt == Doubt::MaybeThere;
        }
        answer.refused_token = refused_token;
        answer
    }

    fn provider_problem(self, mut problem: Problem, status: u16, word: Word, end: End) -> Answer {
        if problem.retry == Retry::SameKey {
            problem.retry_until = self.call.retry_until();
        }
        problem.provider = Some(self.call.provider_word(status, word));
        self.call.caller.problem(problem, end)
    }
}

/// The problem of a refusal: its code, what a caller may do where nothing else was sent, and what happened.
fn of_refusal(refusal: Refusal) -> (Code, Retry, &'static str) {
    match refusal {
        Refusal::Declined => (
            Code::RefundDeclined,
            Retry::No,
            "The provider or the issuer said no.",
        ),
        Refusal::Rejected => (
            Code::ProviderRejected,
            Retry::No,
            "The provider found the request wrong.",
        ),
        Refusal::NotFound => (
            Code::PaymentNotFound,
            Retry::No,
            "The provider does not know this payment.",
        ),
        Refusal::Credentials => (
            Code::ProviderAuthFailed,
            Retry::SameKey,
            "The provider does not accept the gateway's credentials.",
        ),
        Refusal::RateLimited => (
            Code::ProviderRateLimited,
            Retry::SameKey,
            "The provider is rate limiting.",
        ),
    }
}

impl Call {
    /// The names under which the guard keeps this payment, where it can have one refund alone: those that the provider shows.
    fn payment_names(&self, shown: &Names) -> Vec<Digest> {
        match self.entry.dialect.capabilities().refunds {
            Refunds::Many { .. } => Vec::new(),
            Refunds::One => [shown, &self.names]
                .into_iter()
                .flat_map(|names| payment_digests(&self.entry, &names.id, &names.reference))
                .collect(),
        }
    }

    /// The body of the answer to a refund of which this is known.
    fn refund_body(&self, status: Status, receipt: Receipt) -> String {
        let id = self.clean_id(&receipt);
        let Word { code, message, .. } = self.clean(receipt.word);
        let (payment, asked, reason, reference) = match &self.task {
            Task::Refund(refund, _) => (
                &refund.payment,
                Some(refund.amount),
                &refund.reason,
                &refund.reference,
            ),
            Task::LookUp(wanted, _) => (&wanted.payment, None, &None, &wanted.reference),
        };
        Refunded {
            id: id.as_deref(),
            provider: &self.entry.name,
            status,
            payment,
            amount: receipt.amount.map(Amount::Exactly).or(asked),
            reason: reason.as_deref(),
            reference: reference.as_deref(),
            provider_code: code.as_deref(),
            provider_message: message.as_deref(),
            created_at: receipt.created_at.as_deref().filter(|time| {
                time.len() <= MAX_TIME && OffsetDateTime::parse(time, &Rfc3339).is_ok()
            }),
        }
        .body()
    }

    /// The token that a provider refuses with this reply, where one was fetched.
    fn refused_token(&self, head: &ReplyHead) -> Option<Secret> {
        let fetched = matches!(self.entry.auth, Auth::Token(_)) && head.status == 401;
        self.shown.first().cloned().filter(|_| fetched)
    }

    /// The problem of a reply that does not tell.
    fn of_doubt(&self, head: &ReplyHead, doubt: Doubt) -> Problem {
        let mut problem = match doubt {
            Doubt::InProgress => Problem {
                detail: "The provider is still at work on the first send of this refund."
                    .to_owned(),
                ..self.after_sending(Code::RefundInProgress, "")
            },
            Doubt::Failed => self.after_sending(Code::ProviderError, "The provider failed"),
            Doubt::Unreadable => self.after_sending(
                Code::ProviderReplyUnreadable,
                "The provider's answer is not what it documents",
            ),
            Doubt::MaybeThere => Problem::unknown(
                Code::ProviderRejected,
                Retry::LookUp,
                "The provider refused, and that can mean that the refund is there already.",
            ),
            Doubt::Mismatch => Problem::unknown(
                Code::ProviderReplyMismatch,
                Retry::LookUp,
                "The provider's answer names another amount, currency, payment or key than was asked for, so it is not known what \
                 was refunded.",
            ),
        };
        if head.status == 503 {
            problem.retry_after.clone_from(&head.retry_after);
        }
        problem
    }

    /// A problem after which money may have moved, with the advice that this provider allows. `happened`: without its full stop.
    fn after_sending(&self, code: Code, happened: &str) -> Problem {
        let meaning = match self.task {
            Task::Refund(..) => ", and the refund may have been made.",
            Task::LookUp(..) => ".",
        };
        let mut problem = Problem::unknown(
            code,
            self.retry_when_unknown(),
            format!("{happened}{meaning}"),
        );
        problem.retry_until = self.retry_until();
        problem
    }

    /// The refund's id: as it is, long numbers included, but for a credential in it.
    fn clean_id(&self, receipt: &Receipt) -> Option<String> {
        let id = receipt.id.as_ref()?;
        Some(text::without_secrets(id, &self.shown))
    }

    /// The provider's words, fit for an answer: short, without card numbers, and without the credentials that it was shown.
    fn clean(&self, word: Word) -> Word {
        let clean = |text: String| text::clean(&text, &self.shown);
        Word {
            code: word.code.map(clean),
            message: word.message.map(clean),
            errors: word
                .errors
                .into_iter()
                .map(|error| FieldError {
                    field: error.field.map(clean),
                    message: clean(error.message),
                })
                .collect(),
        }
    }

    fn provider_word(&self, status: u16, word: Word) -> ProviderWord {
        let Word {
            code,
            message,
            errors,
        } = self.clean(word);
        ProviderWord {
            name: self.entry.name.clone(),
            status: Some(status),
            code,
            message,
            errors,
        }
    }

    /// The answer where there is no signature. Nothing was sent.
    fn unsigned(&self, sentence: impl Into<String>) -> Answer {
        self.alarm(
            Code::SigningUnavailable.status(),
            Code::SigningUnavailable,
            sentence.into(),
        )
    }

    /// The answer where something of the platform team's is missing. Nothing was sent.
    fn alarm(&self, status: u16, code: Code, sentence: String) -> Answer {
        let mut answer = self.caller.not_sent(Problem {
            status,
            ..Problem::not_refunded(
                code,
                Retry::SameKey,
                format!("Nothing was sent. {sentence} The platform team must fix that."),
            )
        });
        answer.alarm = Some(Box::new(Alarm {
            provider: self.entry.name.clone(),
            sentence,
        }));
        answer
    }

    /// Until when the same call can be made again, where that has an end.
    fn retry_until(&self) -> Option<String> {
        let same_key = self.retry_when_unknown() == Retry::SameKey;
        same_key.then(|| self.resend.retry_until()).flatten()
    }

    /// What a caller may do of whose refund nothing more is known: the contract's "by key".
    fn retry_when_unknown(&self) -> Retry {
        match self.task {
            Task::Refund(..) => self.resend.retry(self.caller.came),
            Task::LookUp(..) => Retry::LookUp,
        }
    }
}

impl Problem {
    /// Makes it one of a key under which another send may have moved money, whatever became of this one.
    fn downgrade_to_unknown(&mut self, standing: Standing, now: Now) {
        self.after_another_send(standing.retry(now));
        if self.retry == Retry::SameKey && self.retry_until.is_none() {
            self.retry_until = standing.resend.retry_until();
        }
    }
}

/// The problem where another key has the payment, or a look shows that it was refunded.
fn payment_has_refund(is_open: bool) -> Problem {
    let (retry, sentence) = if is_open {
        (
            Retry::SameKey,
            "Nothing was sent: this provider refunds a payment once, and a refund of it under another key is open.",
        )
    } else {
        (
            Retry::No,
            "Nothing was sent: this provider refunds a payment once, and it has been refunded under another key.",
        )
    };
    Problem::not_refunded(Code::PaymentHasRefund, retry, sentence)
}

fn invalid(errors: Vec<Fault>) -> Problem {
    Problem {
        errors,
        ..Problem::not_refunded(
            Code::InvalidRequest,
            Retry::Corrected,
            "Nothing was sent. See `errors`.",
        )
    }
}

fn gateway_error(status: u16, sentence: &str) -> Problem {
    Problem {
        status,
        ..Problem::not_refunded(Code::GatewayError, Retry::SameKey, sentence)
    }
}

fn unreachable_provider() -> Problem {
    Problem::not_refunded(
        Code::ProviderUnreachable,
        Retry::SameKey,
        "Nothing was sent: the provider could not be reached.",
    )
}

/// What it means that Envoy answered before anything left the gateway.
fn nothing_left(reply: LocalReply<'_>) -> Problem {
    // `upstream_reset_before_response_started{…}` with its many reasons, and the pool's own limits.
    const UNREACHABLE: [&str; 4] = ["upstream_reset", "no_healthy", "overflow", "timeout"];
    let details = reply.details;
    if UNREACHABLE.iter().any(|reason| details.contains(reason)) {
        return unreachable_provider();
    }
    gateway_error(
        503,
        match details {
            "route_not_found" | "cluster_not_found" => {
                "Nothing was sent: the gateway has no route to this provider. The platform team must add one that matches the \
                 filter state wasm.refund_provider."
            }
            _ => "Nothing was sent: the gateway answered in the provider's place.",
        },
    )
}
