//! No reply but the provider's own word becomes a success, and none but its plain refusal a certain
//! "no": properties over replies that are cut, bent, doubled and made up.

use std::collections::BTreeMap;

use crate::properties::cases;
use core_testbed::NOW;
use core_testbed::fixtures::{FIXTURES, Fixture, checked, head, sent};
use proptest::prelude::*;
use proptest::sample::select;
use refund_filter::token;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

fn fixture() -> impl Strategy<Value = &'static Fixture> {
    (0..FIXTURES.len()).prop_map(|at| &FIXTURES[at])
}

/// The answer to this reply to the fixture's sound call.
fn answered(fixture: &Fixture, status: u16, body: &[u8]) -> Value {
    let dispatch = sent(&fixture.config_once(), "k-1", &fixture.call()).unwrap();
    checked(&dispatch.sent.reply(&head(status, &[]), body, 1))
}

fn success(fixture: &Fixture) -> Value {
    let call = fixture.call();
    let dispatch = sent(&fixture.config_once(), "k-1", &call).unwrap();
    serde_json::from_str(&fixture.success_reply(&call, &dispatch).0).unwrap()
}

fn is_good(answer: &Value) -> bool {
    answer["status"] == "succeeded" || answer["status"] == "pending"
}

/// All values at a pointer; a number in it stands for any item.
fn at<'v>(value: &'v Value, pointer: &str) -> Vec<&'v Value> {
    pointer
        .split('/')
        .skip(1)
        .fold(vec![value], |values, token| {
            values
                .into_iter()
                .flat_map(|value| match value {
                    Value::Array(items) if token.parse::<usize>().is_ok() => items.iter().collect(),
                    Value::Object(members) => members.get(token).into_iter().collect(),
                    _ => Vec::new(),
                })
                .collect()
        })
}

/// Any JSON as `serde_json` reads it, also numbers that are too large for it: of those it keeps the
/// text.
fn read(body: &[u8]) -> Option<Value> {
    fn value_of(raw: &RawValue) -> Value {
        let text = raw.get();
        match text.as_bytes()[0] {
            b'{' => {
                let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap();
                let read = |(name, raw)| (name, value_of(raw));
                members.into_iter().map(read).collect()
            }
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
                items.into_iter().map(value_of).collect()
            }
            _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        }
    }
    Some(value_of(serde_json::from_slice(body).ok()?))
}

/// A number that no float holds is JSON, and the word beside it counts.
#[test]
fn a_number_beyond_all_floats_is_read() {
    for fixture in FIXTURES
        .iter()
        .filter(|fixture| fixture.means == "succeeded")
    {
        let success = success(fixture).to_string();
        let body = format!(
            r#"{},"beyond":2E2346}}"#,
            success.strip_suffix('}').unwrap()
        );
        let answer = answered(fixture, 200, body.as_bytes());
        assert_eq!(answer["status"], "succeeded", "{answer}");
        let words = words(fixture, body.as_bytes());
        assert!(words.contains(&success_word(fixture)), "{words:?}");
        holds(fixture, body.as_bytes(), &answer).unwrap();
    }
}

/// What the oracle allows of a 2xx: the words that stand where the deciding one does.
fn words(fixture: &Fixture, body: &[u8]) -> Vec<String> {
    let Some(body) = read(body) else {
        return Vec::new();
    };
    let body = match &body {
        Value::Array(items) => items.first().cloned().unwrap_or_default(),
        other => other.clone(),
    };
    let word = at(&body, fixture.word).into_iter();
    word.filter_map(|word| word.as_str().map(str::to_owned))
        .collect()
}

fn success_word(fixture: &Fixture) -> String {
    success(fixture)
        .pointer(fixture.word)
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned()
}

/// Holds an answer to a 2xx against the oracle.
fn holds(fixture: &Fixture, body: &[u8], answer: &Value) -> Result<(), TestCaseError> {
    let words = words(fixture, body);
    let said = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    let good = success_word(fixture);
    if answer["status"] == "succeeded" {
        prop_assert!(fixture.means == "succeeded" && said(&[&good]), "{}", answer);
    }
    if answer["status"] == "pending" {
        let by_page = fixture.means == "pending" && said(&[&good]);
        prop_assert!(by_page || said(fixture.pending), "{}", answer);
    }
    if answer["outcome"] == "not_refunded" {
        let text = String::from_utf8_lossy(body);
        let mut codes = fixture.declined_codes.iter();
        let by_code = codes.any(|code| text.contains(code));
        prop_assert!(said(fixture.declined) || by_code, "{}", answer);
    }
    // What it echoes of another refund is never a success.
    if is_good(answer) {
        let body = read(body).unwrap();
        let body = body
            .as_array()
            .map_or(body.clone(), |items| items[0].clone());
        let sound = success(fixture);
        for (pointer, _) in fixture.echoes {
            // Of several transactions only ours counts.
            if !pointer.contains("/1/") {
                for echo in at(&body, pointer) {
                    let wanted = sound.pointer(pointer).unwrap();
                    let text = |value: &Value| match value {
                        Value::String(text) => text.clone(),
                        other => other
                            .as_f64()
                            .map_or(other.to_string(), |number| number.to_string()),
                    };
                    prop_assert!(
                        echo.is_null() || text(echo) == text(wanted),
                        "{} {}",
                        pointer,
                        body
                    );
                }
            }
        }
        prop_assert_eq!(&answer["amount"], &fixture.call()["amount"]);
    }
    Ok(())
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z_0-9]{0,12}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        select(vec![
            "approved",
            "successful",
            "SUCCESS",
            "request_received",
            "0000",
            "2002",
            "failed",
            "DECLINED",
            "pending",
            "initiated",
            "incomplete",
            "refund",
            "REFUND",
            "capture",
            "timeout",
            "error",
            "already_refunded",
            "F.0108",
            "full",
            "1000",
            "10",
            "0",
        ])
        .prop_map(Value::from),
        select(vec![0, 1, 10, 1000, 999, 4922, 3758]).prop_map(Value::from),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 24, 5, |inner| {
        let name = prop_oneof![
            select(vec![
                "key",
                "status",
                "transaction",
                "transactions",
                "amount",
                "id",
                "uid",
                "type",
                "currency",
                "responseCode",
                "order",
                "message",
                "code",
                "error",
                "response",
                "action_id",
                "parent_uid",
            ])
            .prop_map(str::to_owned),
            "[a-z]{0,5}",
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..6)
                .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// All pointers into a value.
fn pointers(value: &Value, prefix: &str, found: &mut Vec<String>) {
    found.push(prefix.to_owned());
    match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(at, item)| pointers(item, &format!("{prefix}/{at}"), found)),
        Value::Object(members) => members
            .iter()
            .for_each(|(name, member)| pointers(member, &format!("{prefix}/{name}"), found)),
        _ => {}
    }
}

#[derive(Debug, Clone)]
enum Bend {
    Remove,
    Replace(Value),
    Wrap,
    Nest,
    Twin,
    Text,
}

fn bend() -> impl Strategy<Value = Bend> {
    prop_oneof![
        Just(Bend::Remove),
        any_json().prop_map(Bend::Replace),
        scalar().prop_map(Bend::Replace),
        Just(Bend::Wrap),
        Just(Bend::Nest),
        Just(Bend::Twin),
        Just(Bend::Text),
    ]
}

fn apply(reply: &mut Value, at: usize, bend: &Bend) {
    let mut found = Vec::new();
    pointers(reply, "", &mut found);
    let pointer = &found[at % found.len()];
    if matches!(bend, Bend::Remove) {
        let Some((parent, name)) = pointer.rsplit_once('/') else {
            return;
        };
        match reply.pointer_mut(parent) {
            Some(Value::Object(members)) => drop(members.remove(name)),
            Some(Value::Array(items)) => drop(items.remove(name.parse().unwrap())),
            _ => {}
        }
        return;
    }
    let Some(place) = reply.pointer_mut(pointer) else {
        return;
    };
    let old = place.take();
    *place = match bend {
        Bend::Remove => old,
        Bend::Replace(new) => new.clone(),
        Bend::Wrap => json!([old]),
        Bend::Nest => json!({"transaction": old.clone(), "status": old}),
        Bend::Twin => json!([old.clone(), old]),
        Bend::Text => json!(
            old.as_str()
                .map_or_else(|| old.to_string(), str::to_uppercase)
        ),
    };
}

/// JSON text in which one member stands twice: as it is and with another value, in this order or
/// the other.
fn doubled(value: &Value, pointer: &str, other: &str, other_first: bool) -> String {
    match value {
        Value::Object(members) => {
            let mut texts = Vec::new();
            for (name, member) in members {
                let quoted = json!(name).to_string();
                let rest = pointer.strip_prefix(&format!("/{name}"));
                match rest {
                    Some("") => {
                        let mut pair = [format!("{quoted}:{member}"), format!("{quoted}:{other}")];
                        if other_first {
                            pair.reverse();
                        }
                        texts.extend(pair);
                    }
                    Some(rest) if rest.starts_with('/') => {
                        texts.push(format!(
                            "{quoted}:{}",
                            doubled(member, rest, other, other_first)
                        ));
                    }
                    _ => texts.push(format!("{quoted}:{member}")),
                }
            }
            format!("{{{}}}", texts.join(","))
        }
        Value::Array(items) => {
            let texts: Vec<String> = items
                .iter()
                .enumerate()
                .map(|(at, item)| match pointer.strip_prefix(&format!("/{at}")) {
                    Some(rest) => doubled(item, rest, other, other_first),
                    None => item.to_string(),
                })
                .collect();
            format!("[{}]", texts.join(","))
        }
        other => other.to_string(),
    }
}

/// The pointer and all that lead to it.
fn way(pointer: &str) -> Vec<String> {
    let ends = pointer
        .match_indices('/')
        .map(|(at, _)| at)
        .skip(1)
        .chain([pointer.len()]);
    ends.map(|end| pointer[..end].to_owned())
        .filter(|pointer| {
            !pointer
                .rsplit('/')
                .next()
                .unwrap()
                .bytes()
                .all(|b| b.is_ascii_digit())
        })
        .collect()
}

#[test]
fn a_deciding_member_that_stands_twice_decides_nothing() {
    for fixture in FIXTURES {
        let sound = success(fixture);
        for pointer in fixture.needed.iter().flat_map(|pointer| way(pointer)) {
            let same = sound.pointer(&pointer).unwrap().to_string();
            for other in [same.as_str(), "null", "\"failed\"", "{}", "0"] {
                for first in [false, true] {
                    let text = doubled(&sound, &pointer, other, first);
                    let answer = answered(fixture, 200, text.as_bytes());
                    assert_eq!(
                        answer["outcome"],
                        "unknown",
                        "{} {text}: {answer}",
                        fixture.name()
                    );
                }
            }
        }
    }
}

#[test]
fn an_echo_that_stands_twice_with_another_value_is_no_success() {
    let mut faults = Vec::new();
    for fixture in FIXTURES {
        let sound = success(fixture);
        for (pointer, other) in fixture.echoes {
            for first in [false, true] {
                let text = doubled(&sound, pointer, other, first);
                let answer = answered(fixture, 200, text.as_bytes());
                if answer["outcome"] != "unknown" {
                    faults.push(format!("{} {text}: {answer}", fixture.name()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Statuses that are a verdict on the refund (contract, "Errors").
const VERDICTS: [u16; 12] = [400, 402, 404, 405, 406, 410, 411, 413, 414, 415, 422, 431];

/// A refusal and a success in one reply contradict each other: it is not known which of the two
/// holds.
#[test]
fn a_refusal_by_status_around_a_success_is_not_certain() {
    let mut faults = Vec::new();
    for fixture in FIXTURES {
        let sound = success(fixture).to_string();
        // A member that stands twice makes a reply unreadable, and not a plain refusal.
        const DOUBLED: &str = r#"{"x":1,"x":2,"#;
        let (before, after) = sound.rsplit_once('{').unwrap();
        let texts = [
            sound.replacen('{', DOUBLED, 1),
            format!("{before}{DOUBLED}{after}"),
            sound.clone(),
            // Cut off behind its word, written twice, in a list, in a page.
            sound.strip_suffix('}').unwrap().to_owned(),
            format!("{sound}{sound}"),
            format!("[{sound},{sound}]"),
            format!("<html>{sound}</html>"),
        ];
        for status in VERDICTS {
            for text in &texts {
                let answer = answered(fixture, status, text.as_bytes());
                if answer["outcome"] != "unknown" {
                    faults.push(format!("{} {status} {text}: {answer}", fixture.name()));
                }
            }
        }
    }
    let few: Vec<_> = faults.iter().map(String::as_str).step_by(12).collect();
    assert!(
        faults.is_empty(),
        "{} faults, among them\n{}",
        faults.len(),
        few.join("\n")
    );
}

/// The same where the refusal is a code that the platform team lists as one.
#[test]
fn a_listed_code_around_a_success_is_not_certain() {
    let fixture = FIXTURES
        .iter()
        .find(|fixture| fixture.name() == "bbmsl")
        .unwrap();
    let mut reply = success(fixture);
    reply["responseCode"] = json!("2002");
    for status in VERDICTS.into_iter().chain([200]) {
        let answer = answered(fixture, status, reply.to_string().as_bytes());
        assert_eq!(answer["outcome"], "unknown", "{status} {reply}: {answer}");
    }
}

/// RFC 8259, 7: any character may be written as an escape. A word is the same word.
#[test]
fn a_word_that_counts_wherever_it_stands_counts_however_it_is_written() {
    let mut faults = Vec::new();
    for (name, status, body) in [
        ("bog", 400, r#"{"message": "already\u005frefunded"}"#),
        (
            "bog",
            200,
            r#"{"key": "request_received", "action_id": "a", "message": "already\u005frefunded"}"#,
        ),
        ("begateway", 422, r#"{"response": {"code": "F\u002e0108"}}"#),
        ("begateway", 422, r#"{"response": {"code": "\u0046.0108"}}"#),
        ("moyasar", 400, r#"{"message": "still\u0020processing"}"#),
        ("bbmsl", 400, r#"{"respons\u0065Code": "9999"}"#),
    ] {
        let fixture = FIXTURES
            .iter()
            .find(|fixture| fixture.name() == name)
            .unwrap();
        let answer = answered(fixture, status, body.as_bytes());
        if answer["outcome"] != "unknown" {
            faults.push(format!("{name} {status} {body}: {answer}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What is not read whole is read as less, never as more.
#[test]
fn a_token_is_never_used_for_longer_than_it_lives() {
    for (expires_in, seconds) in [("300.5e-2", 3), ("3600.0e-3", 3), ("\"300.5e-2\"", 3)] {
        let body = format!(r#"{{"access_token": "t", "expires_in": {expires_in}}}"#);
        if let Ok(token) = token::read_reply(200, None, body.as_bytes(), NOW) {
            let used = token.use_until_ms - NOW.steady_ms;
            assert!(used <= seconds * 1_000 + 5, "{expires_in}: {used} ms");
        }
    }
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn a_bent_success_is_one_only_by_its_word(
        fixture in fixture(), bends in proptest::collection::vec((any::<usize>(), bend()), 1..4),
    ) {
        let mut reply = success(fixture);
        for (at, bend) in &bends {
            apply(&mut reply, *at, bend);
        }
        let body = reply.to_string();
        let answer = answered(fixture, 200, body.as_bytes());
        holds(fixture, body.as_bytes(), &answer)?;
    }

    #[test]
    fn made_up_json_is_a_success_only_by_its_word(fixture in fixture(), body in any_json(), status in 200u16..300) {
        let body = body.to_string();
        let answer = answered(fixture, status, body.as_bytes());
        holds(fixture, body.as_bytes(), &answer)?;
    }

    #[test]
    fn bytes_turned_over_in_a_success_are_never_a_success_with_another_word(
        fixture in fixture(), flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4), drop in any::<bool>(),
    ) {
        let mut body = success(fixture).to_string().into_bytes();
        for (at, byte) in flips {
            let at = at % body.len();
            if drop {
                body.remove(at);
            } else {
                body[at] = byte;
            }
        }
        let answer = answered(fixture, 200, &body);
        // An id or an amount may have become another: the word, and what is echoed, may not.
        holds(fixture, &body, &answer)?;
    }

    #[test]
    fn random_bytes_say_nothing(fixture in fixture(), status in any::<u16>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let answer = answered(fixture, status, &body);
        prop_assert!(!is_good(&answer), "{}", answer);
        let refusal = matches!(
            status,
            400 | 401 | 402 | 403 | 404 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 429 | 431
        );
        let certain = refusal && (fixture.by_key == "same_key" || matches!(status, 401 | 403 | 429));
        prop_assert_eq!(answer["outcome"] == "not_refunded", certain, "{} {}", status, answer);
    }

    #[test]
    fn a_certain_no_is_in_the_table_or_in_the_providers_words(
        fixture in fixture(), status in 300u16..600, body in any_json(), bends in proptest::collection::vec((any::<usize>(), bend()), 0..3),
        made_up in any::<bool>(),
    ) {
        let mut reply = if made_up { body } else { success(fixture) };
        for (at, bend) in &bends {
            apply(&mut reply, *at, bend);
        }
        let answer = answered(fixture, status, reply.to_string().as_bytes());
        prop_assert!(!is_good(&answer), "{} {}", status, answer);
        let named = matches!(
            status,
            400 | 401 | 402 | 403 | 404 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 429 | 431
        );
        prop_assert!(named || answer["outcome"] == "unknown", "{} {}", status, answer);
        let certain = fixture.by_key == "same_key" || matches!(status, 401 | 403 | 429) || answer["code"] == "refund-declined";
        prop_assert!(certain || answer["outcome"] == "unknown", "{} {}", status, answer);
    }

    #[test]
    fn a_token_endpoint_that_says_anything_makes_a_clean_token_or_none(
        status in any::<u16>(), body in any_json(), token in any::<String>(), life in scalar(), sound in any::<bool>(),
    ) {
        let body = if sound {
            json!({"access_token": token, "token_type": "Bearer", "expires_in": life})
        } else {
            body
        };
        if let Ok(token) = token::read_reply(status, None, body.to_string().as_bytes(), NOW) {
            prop_assert!((200..300).contains(&status));
            let text = token.value.expose();
            prop_assert!(!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert!(token.use_until_ms > NOW.steady_ms && token.use_until_ms <= NOW.steady_ms + 3_600_000);
        }
    }
}
