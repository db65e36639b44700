//! A provider's reply: only its own success word in its deciding place makes a success, and nothing
//! that contradicts it stands beside it.
//!
//! An input is one byte (the provider, and how the refund was asked for), one byte (the status),
//! and the body.

use std::rc::Rc;

use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Dispatch, ReplyHead};
use serde_json::{Value, json};

use crate::harness::no_line_ends;
use crate::json::{self, Found, Json, Unread};
use crate::money::whole;
use core_testbed::config;
use core_testbed::fixtures::{Counts, FIXTURES, Fixture, checked, header, sent_bytes};

/// The statuses of the second byte.
pub const STATUSES: [u16; 43] = [
    200, 201, 202, 203, 204, 206, 299, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 413,
    414, 415, 418, 422, 425, 429, 431, 499, 500, 501, 502, 503, 504, 599, 100, 199, 300, 301, 302,
    304, 399, 0, 600, 65_535,
];

/// What the first byte asks for besides a provider.
pub const FULL: u8 = 1;
pub const SENT_TWICE: u8 = 2;
pub const CODED: u8 = 4;
/// By how much the provider is shifted in it.
pub const PROVIDER: u32 = 3;

/// Words of a refusal that can mean that the refund is there already (contract, "Errors").
fn may_be_there(fixture: &Fixture) -> &'static [&'static str] {
    match fixture.name() {
        "bog" => &["already_refunded"],
        "begateway" => &["F.0108"],
        "moyasar" | "bbmsl" => &[],
        other => panic!("{other} is not described here"),
    }
}

/// A refund that was asked for, and what the vendor's page has for an answer.
struct Asked {
    fixture: &'static Fixture,
    config: Rc<Config>,
    full: bool,
    call: Value,
    text: String,
    success: Json,
    key: Option<String>,
    authorization: Option<String>,
}

impl Asked {
    fn of(fixture: &'static Fixture, full: bool) -> Self {
        let mut call = fixture.call();
        if full {
            call["amount"] = json!("full");
        }
        let text = call.to_string();
        // All of a payment is refunded where its currency can be but one.
        let mut provider = fixture.provider_config();
        if full {
            provider["currencies"] = json!([fixture.currency]);
        }
        let config = config(fixture.name(), &provider);
        let dispatch = sent_off(&config, &text);
        let (success, _) = fixture.success_reply(&call, &dispatch);
        Asked {
            fixture,
            full,
            config,
            text,
            success: json::read(success.as_bytes()).expect("the vendor's reply"),
            key: (fixture.sent_key)(&dispatch),
            authorization: header(&dispatch, "authorization"),
            call,
        }
    }
}

fn sent_off(config: &Rc<Config>, call: &str) -> Box<Dispatch> {
    sent_bytes(config, "k-1", call.as_bytes()).unwrap_or_else(|answer| panic!("{}", answer.body))
}

pub fn check(data: &[u8]) {
    thread_local! {
        static ASKED: Vec<Asked> = FIXTURES
            .iter()
            .flat_map(|fixture| [false, true].map(|full| Asked::of(fixture, full && fixture.takes_full)))
            .collect();
    }
    let [how, status, body @ ..] = data else {
        return;
    };
    let provider = usize::from(how >> PROVIDER) % FIXTURES.len();
    let at = 2 * provider + usize::from(how & FULL != 0);
    let head = ReplyHead {
        status: STATUSES[usize::from(*status) % STATUSES.len()],
        retry_after: Some("120".to_owned()),
        coded: how & CODED != 0,
    };
    let attempts = 1 + u64::from(how & SENT_TWICE != 0);
    ASKED.with(|asked| answered(&asked[at], &head, body, attempts));
}

fn answered(asked: &Asked, head: &ReplyHead, body: &[u8], attempts: u64) {
    let fixture = asked.fixture;
    let dispatch = sent_off(&asked.config, &asked.text);
    let answer = dispatch.sent.reply(head, body, attempts);
    let said = checked(&answer);
    in_proportion(&answer, &said, head.status);
    no_credential(asked, &said);
    assert_eq!(
        answer.refused_token.is_some(),
        fixture.name() == "bog" && head.status == 401
    );

    // A body in a coding that was not asked for is not read.
    let json = match head.coded {
        true => Err(Unread::NotJson),
        false => json::read(body),
    };
    if json == Err(Unread::TooDeep) {
        return;
    }
    let reply = Reply {
        status: head.status,
        attempts,
        coded: head.coded,
        json: json.ok(),
    };
    if said["status"] == "succeeded" || said["status"] == "pending" {
        reply.is_good(asked, &said);
    } else if said["outcome"] == "not_refunded" {
        reply.is_certain(asked, &said);
    }
}

/// Short, without control characters and card numbers, and told of this provider.
pub fn in_proportion(answer: &Answer, said: &Value, status: u16) {
    assert!(answer.body.len() < 16 * 1024, "{} bytes", answer.body.len());
    assert!(no_line_ends(&answer.headers));
    let words = [
        &said["provider_code"],
        &said["provider_message"],
        &said["provider"]["code"],
        &said["provider"]["message"],
    ];
    for words in words.into_iter().filter_map(Value::as_str) {
        assert!(words.chars().count() <= 500, "{words}");
        assert!(!words.chars().any(char::is_control), "{words:?}");
        assert!(!has_card_number(words), "{words}");
    }
    if said["provider"].is_object() {
        assert_eq!(said["provider"]["status"], status);
    }
    if let Some(time) = said["created_at"].as_str() {
        let day = time.get(..10).unwrap_or_default();
        assert_eq!(day.matches('-').count(), 2, "{time}");
        assert!(time.len() >= 20 && time.is_ascii(), "{time}");
    }
}

/// 13 digits or more, alone or in groups with one space or hyphen between them.
fn has_card_number(text: &str) -> bool {
    let mut digits = 0;
    let mut gap = true;
    text.chars().any(|c| {
        match c {
            '0'..='9' => (digits, gap) = (digits + 1, false),
            ' ' | '-' if !gap => gap = true,
            _ => (digits, gap) = (0, true),
        }
        digits >= 13
    })
}

/// What the provider was shown does not come back to the caller.
fn no_credential(asked: &Asked, said: &Value) {
    assert!(!asked.is_shown_in(&said.to_string()), "{said}");
}

/// The object that decides: Moyasar's page shows it in an array of one, too.
fn deciding<'j>(fixture: &Fixture, body: &'j Json) -> &'j Json {
    match body {
        Json::Array(items) if fixture.name() == "moyasar" && items.len() == 1 => &items[0],
        body => body,
    }
}

/// What stands at a pointer, in which a number stands for this item of the array there.
fn look<'j>(json: &'j Json, pointer: &str, item: usize) -> Found<'j> {
    let mut place = json;
    for token in pointer.split('/').skip(1) {
        place = if token.bytes().all(|b| b.is_ascii_digit()) {
            match place {
                Json::Array(items) if item < items.len() => &items[item],
                _ => return Found::Nothing,
            }
        } else {
            match place.find(token) {
                Found::Once(json) => json,
                other => return other,
            }
        };
    }
    match place {
        Json::Null => Found::Nothing,
        place => Found::Once(place),
    }
}

/// How many items the array on the way of a pointer has; one where there is none.
fn items(json: &Json, pointer: &str) -> usize {
    let mut place = json;
    for token in pointer.split('/').skip(1) {
        if token.bytes().all(|b| b.is_ascii_digit()) {
            return match place {
                Json::Array(items) => items.len(),
                _ => 0,
            };
        }
        match place.find(token) {
            Found::Once(json) => place = json,
            _ => return 1,
        }
    }
    1
}

fn scalar<'j>(found: Found<'j>) -> Option<&'j str> {
    match found {
        Found::Once(json) => json.scalar().filter(|text| !text.is_empty()),
        _ => None,
    }
}

/// The word in the deciding place.
fn word<'j>(fixture: &Fixture, json: &'j Json, item: usize) -> Option<&'j str> {
    match look(json, fixture.word, item) {
        Found::Once(json) => json.text(),
        _ => None,
    }
}

impl Asked {
    fn success_word(&self) -> &str {
        // Where the page has several transactions, the pointer says which is ours.
        word(self.fixture, &self.success, 1).expect("the vendor's word")
    }

    /// Whether a text has a credential in it that the provider, or the token endpoint, was shown.
    fn is_shown_in(&self, text: &str) -> bool {
        let authorization = self.authorization.as_deref();
        let pair = authorization.and_then(|value| value.split_once(' '));
        let sent = pair.map(|(_, credential)| credential).into_iter();
        let mut shown = sent.chain(self.fixture.secrets.iter().copied());
        shown.any(|secret| text.contains(secret))
    }

    /// What must stand beside the word does: the refund's id, ours where the id is, and the page's
    /// own words.
    fn has_what_is_needed(&self, json: &Json, item: usize, but: &[&str]) -> bool {
        let fixture = self.fixture;
        let others = fixture
            .needed
            .iter()
            .filter(|pointer| **pointer != fixture.word && !but.contains(pointer));
        others.into_iter().all(|pointer| {
            let is = scalar(look(json, pointer, item));
            let is_id = pointer.ends_with("id");
            match (is, &self.key) {
                (None, _) => false,
                (Some(id), Some(key)) if is_id && fixture.id == "@KEY@" => {
                    id.eq_ignore_ascii_case(key)
                }
                (Some(_), _) if is_id => true,
                (is, _) => is == scalar(look(&self.success, pointer, 1)),
            }
        })
    }

    /// Nothing that is echoed is of another refund. What is not echoed proves nothing.
    fn has_no_other_echo(&self, json: &Json, item: usize) -> bool {
        self.fixture.echoes.iter().all(|(pointer, _)| {
            let is = match look(json, pointer, item) {
                Found::Nothing => return true,
                Found::Twice => return false,
                Found::Once(json) => json,
            };
            let Found::Once(wanted) = look(&self.success, pointer, 1) else {
                panic!("{pointer} is not in the vendor's reply");
            };
            match (is, wanted) {
                // Of a full refund nobody knows how much it is, nor in what.
                _ if self.full
                    && (pointer.ends_with("amount") || pointer.ends_with("currency")) =>
                {
                    true
                }
                (Json::Number(is), Json::Number(wanted)) if pointer.ends_with("amount") => {
                    let same = |number: &str| whole(number, 20);
                    same(is).is_some() && same(is) == same(wanted)
                }
                _ if pointer.ends_with("amount") => false,
                (is, wanted) => is.scalar().is_some() && is.scalar() == wanted.scalar(),
            }
        })
    }
}

/// How much a full refund was is the provider's word, where it says both number and currency.
fn amount_of_all(asked: &Asked, json: &Json, item: usize, said: &Value) {
    if said["amount"] == "full" {
        return;
    }
    let fixture = asked.fixture;
    let at = |name: &str| {
        let pointer = fixture
            .echoes
            .iter()
            .find(|(pointer, _)| pointer.ends_with(name));
        scalar(look(json, pointer.expect("an echo").0, item)).expect("what is told")
    };
    let (number, code) = (at("amount"), at("currency"));
    let (value, currency) = (&said["amount"]["value"], &said["amount"]["currency"]);
    assert_eq!(currency, code);
    let own = fixture.own_digits.iter().find(|(known, _)| *known == code);
    let value = value.as_str().expect("a value");
    let decimals = value
        .split_once('.')
        .map_or(0, |(_, decimals)| decimals.len());
    let counted = match fixture.counts {
        Counts::Major => 0,
        Counts::Minor => own.map_or(decimals, |(_, digits)| *digits),
    };
    assert_eq!(
        whole(&format!("{value}e{counted}"), 20),
        whole(number, 20),
        "{said} of {json:?}"
    );
}

/// A reply as the oracle reads it.
struct Reply {
    status: u16,
    attempts: u64,
    coded: bool,
    json: Option<Json>,
}

impl Reply {
    /// Whether a word stands anywhere in a reply, however it is written.
    fn mentions(&self, json: &Json, word: &str) -> bool {
        let within = |text: &str| {
            let (text, word) = (text.to_ascii_lowercase(), word.to_ascii_lowercase());
            text.contains(&word)
        };
        json.any(|name, json| name.is_some_and(within) || json.scalar().is_some_and(within))
    }

    /// Only by the word in its place, and with nothing of another refund beside it.
    fn is_good(&self, asked: &Asked, said: &Value) {
        let fixture = asked.fixture;
        assert!((200..300).contains(&self.status), "{}: {said}", self.status);
        let Some(body) = &self.json else {
            panic!("of nothing: {said}");
        };
        let json = deciding(fixture, body);
        assert!(json.doubled().is_empty(), "{json:?}");
        let success = asked.success_word();
        let allowed: Vec<&str> = match said["status"].as_str() {
            Some("succeeded") if fixture.means == "succeeded" => vec![success],
            Some("pending") if fixture.means == "pending" => [&[success], fixture.pending].concat(),
            Some("pending") => fixture.pending.to_vec(),
            _ => panic!("{said} of {json:?}"),
        };
        let ours: Vec<usize> = (0..items(json, fixture.word))
            .filter(|item| asked.has_what_is_needed(json, *item, &[]))
            .collect();
        let [ours] = ours[..] else {
            panic!("{ours:?} are ours: {said} of {json:?}");
        };
        let word = word(fixture, json, ours).unwrap_or_default();
        assert!(allowed.contains(&word), "{word}: {said} of {json:?}");
        assert!(asked.has_no_other_echo(json, ours), "{said} of {json:?}");
        // BOG has no words but this one for a refusal, and sends it with a 200, too.
        if fixture.name() == "bog" {
            assert!(
                !self.mentions(body, "already_refunded"),
                "{said} of {json:?}"
            );
        }

        // What is told of the refund is what the provider said of it, or what was asked for.
        let id = fixture
            .needed
            .iter()
            .find(|pointer| pointer.ends_with("id"))
            // BOG's acceptance may come without one.
            .unwrap_or(&"/action_id");
        let id = scalar(look(json, id, ours));
        // What was shown to the token endpoint is as secret as what the provider was shown.
        let told = said["id"].as_str().unwrap_or_default();
        let is_secret = told.contains("[redacted]");
        assert!(is_secret || said["id"].as_str() == id, "{said} of {json:?}");
        assert_eq!(said["payment"], asked.call["payment"]);
        if asked.full {
            amount_of_all(asked, json, ours, said);
        } else {
            assert_eq!(said["amount"], asked.call["amount"]);
        }
    }

    /// Money has certainly not moved: by the table of statuses, or by the provider's words.
    fn is_certain(&self, asked: &Asked, said: &Value) {
        let fixture = asked.fixture;
        let of = || format!("{}: {said} of {:?}", self.status, self.json);
        let json = self.json.as_ref().map(|body| deciding(fixture, body));
        let declined = json.is_some_and(|json| {
            let by_code = fixture
                .declined_codes
                .iter()
                .any(|code| json.get("responseCode").and_then(Json::scalar) == Some(*code));
            by_code
                || (0..items(json, fixture.word)).any(|item| {
                    word(fixture, json, item).is_some_and(|word| fixture.declined.contains(&word))
                        && asked.has_no_other_echo(json, item)
                })
        });
        match self.status {
            // About these a body has nothing to say: nobody got as far as the refund.
            401 | 403 | 429 => {
                assert_eq!(self.attempts, 1, "{}", of());
                return;
            }
            200..300 => {
                assert!(declined && !self.coded, "{}", of());
                assert!(
                    self.attempts == 1 || fixture.by_key == "same_key",
                    "{}",
                    of()
                );
            }
            // A word that the platform team has listed means what they know it to mean.
            409 if fixture.name() == "bbmsl" => {
                assert!(declined && self.attempts == 1 && !self.coded, "{}", of());
            }
            400 | 402 | 404 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 431 => {
                assert!(self.attempts == 1 && !self.coded, "{}", of());
            }
            _ => panic!("{}", of()),
        }
        let Some(json) = json else { return };
        for maybe in may_be_there(fixture) {
            assert!(
                !self
                    .json
                    .as_ref()
                    .is_some_and(|body| self.mentions(body, maybe)),
                "{}",
                of()
            );
        }
        if fixture.name() == "bbmsl" && self.mentions(json, "responseCode") {
            assert!(declined, "{}", of());
        }
        if fixture.name() == "moyasar" && self.status >= 400 {
            assert!(!self.mentions(json, "still processing"), "{}", of());
        }
        // A refusal around a refund of ours that was made is no certain one, whatever the code
        // beside it.
        for item in 0..items(json, fixture.word) {
            let made = word(fixture, json, item) == Some(asked.success_word())
                && asked.has_what_is_needed(json, item, &["/responseCode"])
                && asked.has_no_other_echo(json, item);
            assert!(!made, "{}", of());
        }
    }
}
