//! openapi.yaml says what the code does: its codes, statuses, headers and schemas are held against
//! real answers, and its examples are written from them. After a change: `UPDATE_DOCS=1 cargo test
//! openapi::`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::rc::Rc;

use crate::properties::cases;
use core_testbed::fixtures::{FIXTURES, Fixture, TOKEN, head};
use core_testbed::gateway::{Asked, Gateway, KEY, SETTLE_MS, fixture};
use core_testbed::golden::Golden;
use core_testbed::{
    FailingSigner, NOW, Out, StubSigner, call_headers, call_reply, golden_cases, look_up,
    look_up_headers, open, send_with,
};
use jsonschema::{Draft, Registry, Validator};
use proptest::prelude::*;
use refund_filter::clock::Resend;
use refund_filter::config::Config;
use refund_filter::exchange::{
    Answer, Dispatch, LocalReply, Opening, Reading, ReplyHead, Step, open_list,
};
use refund_filter::guard::{Claim, Digest, Open, OpenRefunds, OpenState, Standing, StoredAnswer};
use refund_filter::headers::Headers;
use refund_filter::idempotency::IdempotencyKey;
use refund_filter::problem::Code;
use refund_filter::token::{Failure, FailureKind};
use serde_json::{Map, Value, json};

// ---- the document

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.yaml");
/// What stands before the examples, which are the rest of the file.
const EXAMPLES: &str = "\n  examples:\n";

/// An operation: its path and its method.
type Operation = (&'static str, &'static str);

const POST: Operation = ("/v1/refunds", "post");
const GET: Operation = ("/v1/refunds", "get");
const PREVIEW: Operation = ("/v1/refunds/preview", "post");
const PREVIEW_LOOK_UP: Operation = ("/v1/refunds/preview", "get");
const OPERATIONS: [Operation; 4] = [POST, GET, PREVIEW, PREVIEW_LOOK_UP];

/// Where the call stands.
const CALL: &str = "/components/requestBodies/Call/content/application~1json";

struct Api {
    document: Value,
    /// Where nothing may stand that the document does not name: callers must bear more members,
    /// this code gives none.
    strict: Registry<'static>,
}

fn text() -> String {
    std::fs::read_to_string(FILE).unwrap()
}

impl Api {
    fn read() -> Self {
        let document: Value = serde_saphyr::from_str(&text()).unwrap();
        let mut strict = document.clone();
        for schema in strict["components"]["schemas"]
            .as_object_mut()
            .unwrap()
            .values_mut()
        {
            let schema = schema.as_object_mut().unwrap();
            if schema.contains_key("properties") {
                schema.insert("additionalProperties".into(), false.into());
            }
        }
        let strict = Registry::new()
            .draft(Draft::Draft202012)
            .add("urn:openapi", strict)
            .unwrap()
            .prepare()
            .unwrap();
        Api { document, strict }
    }

    /// The schema at a pointer into the document.
    fn schema(&self, pointer: &str) -> Validator {
        assert!(self.document.pointer(pointer).is_some(), "no {pointer}");
        jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            .with_registry(&self.strict)
            .build(&json!({"$ref": format!("urn:openapi#{pointer}")}))
            .unwrap()
    }

    /// Where a value stands that may be a reference.
    fn resolved(&self, pointer: String) -> String {
        let value = self.document.pointer(&pointer);
        let value = value.unwrap_or_else(|| panic!("no {pointer}"));
        match value["$ref"].as_str() {
            Some(reference) => reference.trim_start_matches('#').to_owned(),
            None => pointer,
        }
    }

    fn at(&self, pointer: &str) -> &Value {
        self.document.pointer(pointer).unwrap()
    }

    /// Where an operation's responses stand, by their statuses.
    fn responses(&self, (path, method): Operation) -> BTreeMap<String, String> {
        let responses = format!("/paths/{}/{method}/responses", path.replace('/', "~1"));
        let statuses = self.at(&responses).as_object().unwrap().keys();
        statuses
            .map(|status| {
                (
                    status.clone(),
                    self.resolved(format!("{responses}/{status}")),
                )
            })
            .collect()
    }

    /// Where the schemas of a look-up's query stand, by the parameters' names.
    fn query(&self) -> BTreeMap<&str, String> {
        let (path, method) = GET;
        let parameters = format!("/paths/{}/{method}/parameters", path.replace('/', "~1"));
        let count = self.at(&parameters).as_array().unwrap().len();
        (0..count)
            .map(|nth| self.resolved(format!("{parameters}/{nth}")))
            .filter(|parameter| self.at(parameter)["in"] == "query")
            .map(|parameter| {
                let name = self.at(&parameter)["name"].as_str().unwrap();
                (name, format!("{parameter}/schema"))
            })
            .collect()
    }
}

/// All responses' schemas, built once.
struct Checker {
    api: Api,
    bodies: BTreeMap<(Operation, u16), (String, Validator)>,
    headers: BTreeMap<(Operation, u16), BTreeMap<String, (bool, Validator)>>,
    /// The codes that were seen.
    seen: BTreeSet<(Operation, u16, String)>,
    faults: BTreeSet<String>,
    answers: usize,
    /// Answers that were checked: many a reply ends in the same one.
    checked: BTreeSet<String>,
}

impl Checker {
    fn new() -> Self {
        let api = Api::read();
        let (mut bodies, mut headers) = (BTreeMap::new(), BTreeMap::new());
        for operation in OPERATIONS {
            for (status, response) in api.responses(operation) {
                let at = (operation, status.parse().unwrap());
                let content = api.at(&response)["content"].as_object().unwrap();
                assert_eq!(content.len(), 1, "{operation:?} {status}");
                let media = content.keys().next().unwrap();
                let pointer = format!("{response}/content/{}/schema", media.replace('/', "~1"));
                bodies.insert(at, (media.clone(), api.schema(&pointer)));
                let declared = api.at(&response)["headers"].as_object().unwrap();
                let declared = declared.keys().map(|name| {
                    let header = api.resolved(format!("{response}/headers/{name}"));
                    let required = api.at(&header)["required"] == true;
                    let schema = api.schema(&format!("{header}/schema"));
                    (name.clone(), (required, schema))
                });
                headers.insert(at, declared.collect());
            }
        }
        Checker {
            api,
            bodies,
            headers,
            seen: BTreeSet::new(),
            faults: BTreeSet::new(),
            answers: 0,
            checked: BTreeSet::new(),
        }
    }

    /// Holds an answer against the response that the document has for it.
    fn check(&mut self, what: &str, operation: Operation, answer: &Answer) {
        let headers: Vec<(String, String)> = answer
            .headers
            .iter()
            .map(|(name, value)| {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                (text(name), text(value))
            })
            .collect();
        let body = serde_json::from_str(&answer.body).unwrap();
        self.check_parts(what, operation, answer.status, &headers, &body);
    }

    fn check_parts(
        &mut self,
        what: &str,
        operation: Operation,
        status: u16,
        headers: &[(String, String)],
        body: &Value,
    ) {
        self.answers += 1;
        if !self
            .checked
            .insert(format!("{operation:?} {status} {headers:?} {body}"))
        {
            return;
        }
        let at = (operation, status);
        let Some((media, schema)) = self.bodies.get(&at) else {
            self.faults.insert(format!(
                "{what}: {operation:?} has no response {status}: {body}"
            ));
            return;
        };
        let declared = &self.headers[&at];
        let mut faults: Vec<String> = schema
            .iter_errors(body)
            .map(|error| format!("{} {error}", error.instance_path()))
            .collect();
        for (name, value) in headers {
            match (name.as_str(), declared.get(name)) {
                ("content-type", _) if value == media => {}
                ("content-type", _) => faults.push(format!("it is {value}, not {media}")),
                (_, Some((_, schema))) if schema.is_valid(&json!(value)) => {}
                (_, Some(_)) => faults.push(format!("{name} cannot be {value}")),
                (_, None) => faults.push(format!("{name} is not declared")),
            }
        }
        for (name, (required, _)) in declared {
            if *required && !headers.iter().any(|(known, _)| known == name) {
                faults.push(format!("{name} is missing"));
            }
        }
        if let Some(code) = body["code"].as_str() {
            let known = Code::of(code);
            if known.is_none_or(|code| body["title"] != code.title())
                || body["type"] != format!("urn:refund-filter:{code}")
            {
                faults.push(format!("{code} is not what the code has"));
            }
            self.seen.insert((operation, status, code.to_owned()));
        }
        for fault in faults {
            self.faults.insert(format!(
                "{what}: {operation:?} {status}: {fault}\n    {body}"
            ));
        }
    }

    fn passed(&self) {
        let faults: Vec<&str> = self.faults.iter().map(String::as_str).take(20).collect();
        assert!(
            faults.is_empty(),
            "{} faults in {} answers, among them:\n{}",
            self.faults.len(),
            self.answers,
            faults.join("\n")
        );
    }
}

// ---- calls

fn reading(config: &Rc<Config>, headers: &Headers<'_>) -> Reading {
    match open(config, headers, NOW) {
        Opening::Read(reading) => reading,
        other => panic!("{other:?}"),
    }
}

/// A call that is answered before its body counts.
fn at_once(headers: &Headers<'_>) -> Answer {
    match open(&fixture("bog").config(), headers, NOW) {
        Opening::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

/// The headers of a sound call but for these; without a value they are left out.
fn headers_with(changes: &[(&str, Option<&str>)]) -> Headers<'static> {
    let mut headers = Headers::default();
    let sound = call_headers("return-4711");
    for (name, value) in sound.iter() {
        if !changes
            .iter()
            .any(|(changed, _)| changed.as_bytes() == name)
        {
            headers.push(name.to_vec(), value.to_vec());
        }
    }
    for (name, value) in changes {
        if let Some(value) = value {
            headers.push(name.as_bytes().to_vec(), value.as_bytes().to_vec());
        }
    }
    headers
}

fn dispatched(fixture: &Fixture, call: &Value) -> Box<Dispatch> {
    let config = fixture.config_once();
    let headers = call_headers("return-4711");
    let body = call.to_string();
    send_with(
        &config,
        &headers,
        body.as_bytes(),
        TOKEN,
        NOW,
        &mut StubSigner,
    )
    .unwrap()
}

/// A sound refund, and the provider's reply to it.
fn replied(fixture: &Fixture, head: &ReplyHead, body: &str, attempts: u64) -> Answer {
    let dispatch = dispatched(fixture, &fixture.call());
    dispatch.sent.reply(head, body.as_bytes(), attempts)
}

/// What becomes of a sound refund of which the guard says this.
fn claimed(fixture: &Fixture, headers: &Headers<'_>, claim: Claim) -> Step {
    let reading = reading(&fixture.config_once(), headers);
    let body = fixture.call().to_string();
    let accepted = reading.accept(body.as_bytes(), &|_| None).unwrap();
    accepted.proceed(claim, NOW, &mut StubSigner, &|_| None)
}

/// What becomes of a look-up of which the guard says this.
fn asked(fixture: &Fixture, headers: &Headers<'_>, claim: Claim) -> Step {
    let accepted = reading(&fixture.config_once(), headers).accept(b"", &|_| None);
    accepted
        .unwrap()
        .proceed(claim, NOW, &mut StubSigner, &|_| None)
}

/// The same call to the path that shows it.
fn preview_headers(headers: &Headers<'_>) -> Headers<'static> {
    let mut preview = Headers::default();
    for (name, value) in headers.iter() {
        let text = String::from_utf8(value.to_vec()).unwrap();
        let value = match name {
            b":path" => text.replacen("/v1/refunds", "/v1/refunds/preview", 1),
            _ => text,
        };
        preview.push(name.to_vec(), value.into_bytes());
    }
    preview
}

fn answered(step: Step) -> Answer {
    match step {
        Step::Answered(answer) => answer,
        other => panic!("{other:?}"),
    }
}

/// The query of a sound look-up.
fn query(fixture: &Fixture) -> String {
    let payment: Value = serde_json::from_str(fixture.payment).unwrap();
    let payment = payment["id"].as_str().unwrap();
    format!(
        "provider={}&payment_id={payment}&key=return-4711&id={}",
        fixture.name(),
        if fixture.by_id_alone { "r-1" } else { "" }
    )
    .trim_end_matches("&id=")
    .to_owned()
}

fn looking_up(fixture: &Fixture) -> Out {
    let query = query(fixture);
    look_up(&fixture.config_once(), &query, TOKEN, NOW).unwrap_or_else(|answer| {
        panic!("{query}: {}", answer.body);
    })
}

fn looked_up(fixture: &Fixture, head: &ReplyHead, body: &str) -> Answer {
    looking_up(fixture).reply(head, body.as_bytes(), NOW)
}

fn local(status: u16, details: &str, connected: bool) -> LocalReply<'_> {
    LocalReply {
        status,
        details,
        connected,
        attempts: 1,
    }
}

/// Runs a golden file. Its answer, and whether it is a look-up.
fn golden(case: &Value) -> Option<(Operation, Answer)> {
    let operation = if case["look_up"].is_null() { POST } else { GET };
    let golden = Golden::new(case);
    Some((operation, golden.answer(golden.ask())?))
}

fn golden_named(path: &str) -> Answer {
    let case = serde_json::from_str(core_testbed::golden_file(path)).unwrap();
    golden(&case).unwrap().1
}

// ---- what Envoy writes itself

/// The headers that stand on each of them.
fn envoys_headers() -> Vec<(String, String)> {
    vec![
        ("x-request-id".into(), "r".into()),
        ("cache-control".into(), "no-store".into()),
    ]
}

/// The problems of envoy.yaml's `local_reply_config`, filled in with everything that Envoy can put
/// there.
fn envoys_own() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../envoy/envoy.yaml");
    let envoy: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let connection_manager =
        &envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
    let mappers = connection_manager["typed_config"]["local_reply_config"]["mappers"]
        .as_array()
        .unwrap();
    let mut problems = Vec::new();
    for mapper in mappers {
        let written = mapper["body_format_override"]["json_format"].to_string();
        let code = &mapper["body_format_override"]["json_format"]["code"];
        let statuses: &[u16] = match code.as_str().unwrap() {
            "bad-request" => &[400, 403, 426, 431, 501],
            "access-denied" => &[401, 403],
            "too-many-requests" => &[429],
            _ => &[0],
        };
        for status in statuses {
            for (retry, until) in [
                ("same_key", Some("2026-11-23T08:00:00Z")),
                ("same_key", None),
                ("look_up", None),
            ] {
                let filled = written
                    .replace("\"%RESPONSE_CODE%\"", &status.to_string())
                    .replace("%FILTER_STATE(wasm.refund_retry:PLAIN)%", retry)
                    .replace("%FILTER_STATE(wasm.refund_provider:PLAIN)%", "bog")
                    .replace(
                        "%FILTER_STATE(wasm.refund_retry_until:PLAIN)%",
                        until.unwrap_or("-"),
                    );
                assert!(!filled.contains('%'), "{filled}");
                let mut problem: Map<String, Value> = serde_json::from_str(&filled).unwrap();
                // Empty values are left out, as the mapper says.
                problem.retain(|_, value| value != "-");
                problems.push(Value::Object(problem));
            }
        }
    }
    assert!(problems.len() > 20);
    problems
}

/// What a refund's caller gets, and what a look-up's.
fn envoys(code: &str, operation: Operation, status: u16) -> Value {
    let outcome = if operation == POST {
        "not_refunded"
    } else {
        "unknown"
    };
    let mut problems = envoys_own().into_iter();
    problems
        .find(|problem| {
            let ours = problem["outcome"] == outcome;
            ours && problem["code"] == code && problem["status"] == status
        })
        .unwrap()
}

// ---- examples

struct Example {
    name: &'static str,
    /// What it shows.
    summary: &'static str,
    operations: &'static [Operation],
    status: u16,
    body: Value,
}

const ONLY_POST: &[Operation] = &[POST];
const ONLY_GET: &[Operation] = &[GET];
/// What is answered before it counts whether a provider is asked.
const TO_POST: &[Operation] = &[POST, PREVIEW];
const TO_GET: &[Operation] = &[GET, PREVIEW_LOOK_UP];

fn example(
    name: &'static str,
    operations: &'static [Operation],
    summary: &'static str,
    answer: &Answer,
) -> Example {
    Example {
        name,
        summary,
        operations,
        status: answer.status,
        body: serde_json::from_str(&answer.body).unwrap(),
    }
}

fn examples() -> Vec<Example> {
    let mut examples = successes();
    examples.extend(bad_requests());
    examples.extend(faults_of_a_call());
    examples.extend(faults_at_a_provider());
    examples.extend(faults_of_a_look_up());
    examples
}

fn successes() -> Vec<Example> {
    let begateway = fixture("begateway");
    let preview = preview_headers(&headers_with(&[]));
    let shown = answered(claimed(fixture("bbmsl"), &preview, Claim::Unguarded));
    let preview = preview_headers(&look_up_headers(&query(begateway)));
    let asked = answered(asked(begateway, &preview, Claim::Unguarded));
    vec![
        example(
            "succeeded",
            ONLY_POST,
            "The money goes back (BBMSL)",
            &golden_named("bbmsl/contract-example.json"),
        ),
        example(
            "pending",
            ONLY_POST,
            "Accepted, not final (BOG)",
            &golden_named("bog/page-example-partial-refund.json"),
        ),
        example("preview", &[PREVIEW], "What would be sent (BBMSL)", &shown),
        example(
            "looked-up-succeeded",
            ONLY_GET,
            "The money has gone back (BOG)",
            &golden_named("bog/lookup-completed.json"),
        ),
        example(
            "looked-up-pending",
            ONLY_GET,
            "Not final yet (BOG)",
            &golden_named("bog/lookup-requested-without-actions-is-pending.json"),
        ),
        example(
            "looked-up-failed",
            ONLY_GET,
            "Final, and no money has moved (BOG)",
            &golden_named("bog/lookup-rejected.json"),
        ),
        example(
            "look-up-preview",
            &[PREVIEW_LOOK_UP],
            "What would be asked (beGateway)",
            &asked,
        ),
    ]
}

/// Envoy's own, from envoy.yaml: none of these calls comes to the filter.
fn bad_requests() -> Vec<Example> {
    let mut examples = Vec::new();
    for (code, post, get, summary, status) in [
        (
            "bad-request",
            "bad-request",
            "look-up-bad-request",
            "A call that breaks HTTP's own rules",
            400,
        ),
        (
            "bad-request",
            "bad-request-upgrade",
            "look-up-bad-request-upgrade",
            "A call with `Upgrade`",
            403,
        ),
        (
            "bad-request",
            "bad-request-version",
            "look-up-bad-request-version",
            "A call in HTTP/1.0",
            426,
        ),
        (
            "bad-request",
            "bad-request-headers",
            "look-up-bad-request-headers",
            "A call with 101 headers",
            431,
        ),
        (
            "bad-request",
            "bad-request-coding",
            "look-up-bad-request-coding",
            "A call with an unknown `Transfer-Encoding`",
            501,
        ),
        (
            "access-denied",
            "access-denied-no-credential",
            "look-up-access-denied-no-credential",
            "A call without a token, where the gateway asks for one",
            401,
        ),
        (
            "access-denied",
            "access-denied",
            "look-up-access-denied",
            "A caller whom the gateway's own rules do not let in",
            403,
        ),
        (
            "too-many-requests",
            "too-many-requests",
            "look-up-too-many-requests",
            "More calls than the gateway's rate limit takes",
            429,
        ),
    ] {
        for (name, operations, operation) in [(post, TO_POST, POST), (get, TO_GET, GET)] {
            examples.push(Example {
                name,
                summary,
                operations,
                status,
                body: envoys(code, operation, status),
            });
        }
    }
    examples
}

/// BOG's fixture with these members more, and callers told apart.
fn controlled(more: &Value) -> Rc<Config> {
    let mut provider = fixture("bog").provider_config();
    for (name, value) in more.as_object().into_iter().flatten() {
        provider[name] = value.clone();
    }
    let config = json!({"caller": {"filter_state": "corp.caller"}, "providers": {"bog": provider}});
    Rc::new(Config::read(config.to_string().as_bytes(), &|_| None).unwrap())
}

/// The answer to a caller who cannot be told.
fn not_let_in(headers: &Headers<'_>) -> Answer {
    match open(&controlled(&json!({})), headers, NOW) {
        Opening::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

/// The answer to a sound call of a known caller, with these members more.
fn limited(more: &Value) -> Answer {
    let property = |_: &[&str]| Some(b"shop".to_vec());
    let config = controlled(more);
    let headers = headers_with(&[]);
    let Opening::Read(reading) =
        refund_filter::exchange::open(&config, &headers, NOW, &|_| None, &property)
    else {
        panic!("not read")
    };
    let body = fixture("bog").call().to_string();
    match reading.accept(body.as_bytes(), &|_| None) {
        Err(answer) => answer,
        Ok(accepted) => match accepted.proceed(Claim::Unguarded, NOW, &mut StubSigner, &|_| None) {
            Step::Answered(answer) => answer,
            other => panic!("{other:?}"),
        },
    }
}

fn faults_of_a_call() -> Vec<Example> {
    let (bog, bbmsl) = (fixture("bog"), fixture("bbmsl"));
    let config = bog.config_once();
    let sound = headers_with(&[]);
    let taken = |body: &str| {
        reading(&config, &sound)
            .accept(body.as_bytes(), &|_| None)
            .unwrap_err()
    };
    let key = |value| at_once(&headers_with(&[("idempotency-key", value)]));
    let faulty = r#"{"provider": "bog", "payment": {}, "amount": {"value": "10.505", "currency": "GEL"}, "note": "x"}"#;
    vec![
        example(
            "method-not-allowed",
            &OPERATIONS,
            "PUT",
            &at_once(&headers_with(&[(":method", Some("PUT"))])),
        ),
        example(
            "unsupported-media-type",
            TO_POST,
            "A form",
            &at_once(&headers_with(&[(
                "content-type",
                Some("application/x-www-form-urlencoded"),
            )])),
        ),
        example(
            "body-too-large",
            TO_POST,
            "A body over 64 KiB",
            &reading(&config, &sound).too_large(&|_| None),
        ),
        example(
            "request-timeout",
            TO_POST,
            "A body that stopped coming",
            &reading(&config, &sound).stalled(&|_| None),
        ),
        example(
            "malformed-json",
            TO_POST,
            "A body that is cut off",
            &taken("{\"provider\": \"bog\""),
        ),
        example(
            "idempotency-key-missing",
            TO_POST,
            "A call without a key",
            &key(None),
        ),
        example(
            "idempotency-key-invalid",
            TO_POST,
            "A key with a space in it",
            &key(Some("return 4711")),
        ),
        example(
            "caller-not-allowed",
            TO_POST,
            "A caller who cannot be told, where `caller` is configured",
            &not_let_in(&headers_with(&[])),
        ),
        example(
            "look-up-caller-not-allowed",
            TO_GET,
            "A caller who cannot be told, where `caller` is configured",
            &not_let_in(&look_up_headers(&query(bog))),
        ),
        example(
            "amount-over-limit",
            TO_POST,
            "More than `max_amount`",
            &limited(&json!({"max_amount": {"GEL": "5.00"}})),
        ),
        example(
            "provider-off",
            TO_POST,
            "`refunds` is `off`",
            &limited(&json!({"refunds": "off"})),
        ),
        example(
            "idempotency-key-reused",
            ONLY_POST,
            "A key of another refund",
            &answered(claimed(bog, &sound, Claim::Reused)),
        ),
        example(
            "invalid-request",
            TO_POST,
            "A call with three faults",
            &taken(faulty),
        ),
        example(
            "refund-in-progress",
            ONLY_POST,
            "The same call, while the first is in flight",
            &answered(claimed(bog, &sound, in_flight(Resend::Always))),
        ),
        example(
            "payment-has-refund",
            ONLY_POST,
            "Another key has refunded the payment (BBMSL)",
            &answered(claimed(
                bbmsl,
                &sound,
                Claim::PaymentTaken { is_open: false },
            )),
        ),
        example(
            "payment-has-refund-open",
            ONLY_POST,
            "Another key's refund of the payment has not ended (BBMSL)",
            &answered(claimed(
                bbmsl,
                &sound,
                Claim::PaymentTaken { is_open: true },
            )),
        ),
    ]
}

fn standing(resend: Resend) -> Standing {
    Standing { resend }
}

fn in_flight(resend: Resend) -> Claim {
    Claim::InFlight(standing(resend))
}

/// A payment that is looked at before it is refunded, and does not fit.
fn looked_at() -> Answer {
    let mut provider = fixture("bbmsl").provider_config();
    provider["query_first"] = json!(true);
    let gateway = Gateway::with("bbmsl", &provider);
    let Asked::Sent(Out::Callout(callout)) = gateway.send() else {
        panic!("not looked at")
    };
    let shown = r#"{"responseCode": "0000", "order": {"id": 4922, "merchantReference": "1655817171", "currency": "USD",
        "amount": 15.00, "netAmount": 15.00, "status": "SUCCESS"}}"#;
    answered(call_reply(
        callout,
        &head(200, &[]),
        shown.as_bytes(),
        gateway.now(),
        &|_| None,
        Some(&gateway.memory.guard()),
    ))
}

fn faults_at_a_provider() -> Vec<Example> {
    let (bog, begateway, bbmsl) = (fixture("bog"), fixture("begateway"), fixture("bbmsl"));
    let call = bbmsl.call().to_string();
    let unsigned = send_with(
        &bbmsl.config_once(),
        &headers_with(&[]),
        call.as_bytes(),
        TOKEN,
        NOW,
        &mut FailingSigner,
    );
    let sent = |reply| {
        dispatched(begateway, &begateway.call())
            .sent
            .local_reply(reply)
    };
    vec![
        example(
            "refund-declined",
            ONLY_POST,
            "The issuer said no (beGateway)",
            &golden_named("begateway/failed-is-declined.json"),
        ),
        example(
            "provider-rejected",
            ONLY_POST,
            "The provider found the request wrong (beGateway)",
            &golden_named("begateway/422-f-0105-contract-example.json"),
        ),
        example(
            "provider-rejected-unknown",
            ONLY_POST,
            "A refusal that can mean that the refund is there already (BOG)",
            &golden_named("bog/409-already-refunded.json"),
        ),
        example(
            "payment-not-found",
            ONLY_POST,
            "No such payment (BOG)",
            &golden_named("bog/404-unknown-order.json"),
        ),
        example(
            "payment-not-refundable",
            ONLY_POST,
            "Another currency than the payment's (BBMSL)",
            &looked_at(),
        ),
        example(
            "provider-auth-failed",
            ONLY_POST,
            "The gateway's key was refused (Moyasar)",
            &golden_named("moyasar/page-example-401.json"),
        ),
        example(
            "provider-rate-limited",
            ONLY_POST,
            "Too many calls (BOG)",
            &golden_named("bog/429-with-retry-after.json"),
        ),
        example(
            "provider-unreachable",
            ONLY_POST,
            "No connection",
            &sent(local(503, "upstream_reset_before_response_started", false)),
        ),
        example(
            "provider-timeout",
            ONLY_POST,
            "No answer in time (beGateway)",
            &sent(local(504, "upstream_response_timeout", true)),
        ),
        example(
            "provider-error",
            ONLY_POST,
            "The provider answered 500 (BOG)",
            &golden_named("bog/500-may-have-refunded.json"),
        ),
        example(
            "provider-reply-unreadable",
            ONLY_POST,
            "200 with a page in it (BBMSL)",
            &golden_named("bbmsl/html-page-with-200.json"),
        ),
        example(
            "provider-reply-mismatch",
            ONLY_POST,
            "An answer about another amount (Moyasar)",
            &golden_named("moyasar/amount-mismatch.json"),
        ),
        example(
            "signing-unavailable",
            TO_POST,
            "The signer failed (BBMSL)",
            &unsigned.unwrap_err(),
        ),
        example(
            "memory-unavailable",
            ONLY_POST,
            "The memory that gateways share cannot be asked (BBMSL)",
            &answered(claimed(
                fixture("bbmsl"),
                &headers_with(&[]),
                Claim::Unavailable,
            )),
        ),
        example(
            "gateway-error",
            ONLY_POST,
            "The gateway failed on the way",
            &sent(local(500, "strange", true)),
        ),
        example(
            "gateway-error-no-route",
            TO_POST,
            "No route to this provider",
            &dispatched(bog, &bog.call())
                .sent
                .local_reply(local(404, "route_not_found", false)),
        ),
    ]
}

fn faults_of_a_look_up() -> Vec<Example> {
    let (bog, bbmsl) = (fixture("bog"), fixture("bbmsl"));
    let asked = look_up_headers(&query(bog));
    let config = bog.config_once();
    let reading = || reading(&config, &asked);
    let Err(faulty) = look_up(&config, "provider=bog&payment_id=..&since=1", TOKEN, NOW) else {
        panic!("a faulty look-up was sent")
    };
    let unsigned = {
        let config = bbmsl.config_once();
        let asked = look_up_headers(&query(bbmsl));
        let Opening::Read(reading) = open(&config, &asked, NOW) else {
            panic!("not read")
        };
        let accepted = reading.accept(b"", &|_| None).unwrap();
        answered(accepted.proceed(Claim::Unguarded, NOW, &mut FailingSigner, &|_| None))
    };
    let sent = |reply| match looking_up(bog) {
        Out::Routed(dispatch) => dispatch.sent.local_reply(reply),
        Out::Callout(_) => panic!("not routed"),
    };
    let (begateway, one) = (Gateway::of("begateway"), Gateway::of("bbmsl"));
    begateway.lost();
    let found = |gateway: &Gateway| {
        let none = fixture("begateway").absent.unwrap();
        gateway.look_up(&format!("&key={KEY}"), none)
    };
    let unsettled = found(&begateway);
    begateway.later(SETTLE_MS + 60_000);
    let Asked::Sent(_) = one.send() else {
        panic!("not sent")
    };
    let in_flight = one.look_up(&format!("&key={KEY}"), &one.shows_it());
    let mut examples = vec![
        example(
            "refund-not-found",
            ONLY_GET,
            "It does not show, and may be there all the same (BOG)",
            &golden_named("bog/lookup-by-key-alone-without-actions.json"),
        ),
        example(
            "refund-not-found-unsettled",
            ONLY_GET,
            "It does not show, and a send may still be on its way (beGateway)",
            &unsettled,
        ),
        example(
            "refund-not-found-proven",
            ONLY_GET,
            "There is none: the same call with the same key refunds (beGateway)",
            &found(&begateway),
        ),
        example(
            "look-up-refund-in-progress",
            ONLY_GET,
            "The refund is in flight (BBMSL)",
            &in_flight,
        ),
        example(
            "refund-ambiguous",
            ONLY_GET,
            "Refunded, and nothing says by whom (BBMSL)",
            &one.look_up("", &one.shows_it()),
        ),
        example(
            "look-up-request-timeout",
            TO_GET,
            "A call that stopped coming",
            &reading().stalled(&|_| None),
        ),
        example(
            "look-up-body-too-large",
            TO_GET,
            "A body over 64 KiB",
            &reading().too_large(&|_| None),
        ),
        example(
            "look-up-invalid-request",
            TO_GET,
            "A query with three faults",
            &faulty,
        ),
        example(
            "look-up-signing-unavailable",
            TO_GET,
            "The signer failed (BBMSL)",
            &unsigned,
        ),
        example(
            "look-up-refund-declined",
            ONLY_GET,
            "The provider answered 402",
            &looked_up(bog, &head(402, &[]), ""),
        ),
    ];
    for (name, summary, path) in [
        (
            "look-up-payment-not-found",
            "No such payment (BOG)",
            "bog/lookup-status-404-payment-not-found.json",
        ),
        (
            "look-up-provider-rejected",
            "The provider found the question wrong (BOG)",
            "bog/lookup-status-422-provider-rejected.json",
        ),
        (
            "look-up-provider-auth-failed",
            "The gateway's key was refused (Moyasar)",
            "moyasar/lookup-page-example-401.json",
        ),
        (
            "look-up-provider-rate-limited",
            "Too many calls (Moyasar)",
            "moyasar/lookup-status-429-provider-rate-limited.json",
        ),
        (
            "look-up-provider-error",
            "The provider answered 500 (BOG)",
            "bog/lookup-status-500-provider-error.json",
        ),
        (
            "look-up-provider-reply-unreadable",
            "200 with nothing in it that is documented (BOG)",
            "bog/lookup-garbage.json",
        ),
        (
            "look-up-provider-reply-mismatch",
            "An answer about another payment (Moyasar)",
            "moyasar/lookup-another-order-is-a-mismatch.json",
        ),
    ] {
        examples.push(example(name, ONLY_GET, summary, &golden_named(path)));
    }
    for (name, summary, reply) in [
        (
            "look-up-provider-unreachable",
            "No connection",
            local(503, "upstream_reset_before_response_started", false),
        ),
        (
            "look-up-provider-timeout",
            "No answer in time",
            local(504, "upstream_response_timeout", true),
        ),
        (
            "look-up-gateway-error",
            "The gateway failed on the way",
            local(500, "strange", true),
        ),
        (
            "look-up-gateway-error-no-route",
            "No route to this provider",
            local(404, "route_not_found", false),
        ),
    ] {
        let operations = match name {
            "look-up-gateway-error-no-route" => TO_GET,
            _ => ONLY_GET,
        };
        examples.push(example(name, operations, summary, &sent(reply)));
    }
    examples
}

/// The members of a body in the order in which the code writes them.
fn in_order(members: &Map<String, Value>) -> Vec<(&String, &Value)> {
    const PROBLEM: &str =
        "type title status detail code outcome retry retry_until errors provider name message";
    const REFUND: &str = "preview id provider status payment amount reason reference provider_code provider_message created_at method url \
        headers body pointer detail value currency";
    const WORD: &str = "name status code message errors";
    let order = match (members.contains_key("type"), members.contains_key("name")) {
        (true, _) => PROBLEM,
        (_, true) => WORD,
        _ => REFUND,
    };
    let place = |name: &str| order.split(' ').position(|known| known == name);
    let mut sorted: Vec<_> = members.iter().collect();
    sorted.sort_by_key(|(name, _)| (place(name).is_none(), place(name)));
    sorted
}

/// A value in YAML's block style; texts as JSON has them, which YAML reads, too.
fn write_yaml(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in in_order(members) {
                write!(out, "\n{:indent$}{name}:", "").unwrap();
                write_yaml(out, value, indent + 2);
            }
        }
        Value::Array(items) => {
            for item in items {
                write!(out, "\n{:indent$}- {item}", "").unwrap();
            }
        }
        scalar => write!(out, " {scalar}").unwrap(),
    }
}

fn written(examples: &[Example]) -> String {
    let mut out = String::new();
    for example in examples {
        write!(
            out,
            "    {}:\n      summary: {}\n      value:",
            example.name,
            json!(example.summary)
        )
        .unwrap();
        write_yaml(&mut out, &example.body, 8);
        out.push('\n');
    }
    out
}

#[test]
fn the_examples_are_what_the_code_answers() {
    let text = text();
    let (by_hand, examples_there) = text.split_once(EXAMPLES).unwrap();
    let examples = examples();
    let written = written(&examples);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(FILE, format!("{by_hand}{EXAMPLES}{written}")).unwrap();
    } else if examples_there != written {
        let stale = examples_there
            .lines()
            .zip(written.lines())
            .find(|(there, due)| there != due);
        panic!(
            "openapi.yaml's examples are not what the code answers; UPDATE_DOCS=1 writes them. The first that differs: {stale:#?}"
        );
    }
    // Each stands at its response, and none else.
    let api = Api::read();
    let mut faults = Vec::new();
    let mut shown = BTreeSet::new();
    for operation in OPERATIONS {
        for (status, response) in api.responses(operation) {
            let due: BTreeSet<&str> = examples
                .iter()
                .filter(|example| {
                    example.operations.contains(&operation) && example.status.to_string() == status
                })
                .map(|example| example.name)
                .collect();
            let content = api.at(&response)["content"].as_object().unwrap();
            let there = content.values().next().unwrap()["examples"].as_object();
            let there: BTreeSet<&str> = there
                .into_iter()
                .flatten()
                .inspect(|(name, example)| {
                    assert_eq!(example["$ref"], format!("#/components/examples/{name}"));
                })
                .map(|(name, _)| name.as_str())
                .collect();
            if due != there {
                faults.push(format!("{operation:?} {status} has {there:?}, due {due:?}"));
            }
            shown.extend(due);
        }
    }
    for example in &examples {
        if !shown.contains(example.name) {
            faults.push(format!(
                "{} of {} has no response",
                example.name, example.status
            ));
        }
    }
    for code in Code::ALL {
        if !examples
            .iter()
            .any(|example| example.body["code"] == code.as_str())
        {
            faults.push(format!("{} has no example", code.as_str()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let mut checker = Checker::new();
    for example in &examples {
        for operation in example.operations {
            let mut headers = envoys_headers();
            if example.status == 405 {
                headers.push(("allow".into(), "GET, POST".into()));
            }
            checker.check_parts(
                example.name,
                *operation,
                example.status,
                &headers,
                &example.body,
            );
        }
    }
    checker.passed();
}

#[test]
fn the_codes_are_the_catalogue() {
    let api = Api::read();
    let codes: Vec<&str> = api.document["components"]["schemas"]["ProblemCode"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .map(|code| code.as_str().unwrap())
        .collect();
    assert_eq!(codes, Code::ALL.map(Code::as_str));
    assert_eq!(api.document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

// ---- real answers

/// Replies that a provider could give, whatever they mean.
fn bodies(fixture: &Fixture) -> Vec<String> {
    let call = fixture.call();
    let (success, _) = fixture.success_reply(&call, &dispatched(fixture, &call));
    let mut bodies = vec![
        success.clone(),
        fixture.refusal_reply(
            "F.0108",
            "It \"was\" refunded.\nBefore: 4111 1111 1111 1111",
        ),
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        "<html>".to_owned(),
        "Refused".to_owned(),
    ];
    let value: Value = serde_json::from_str(&success).unwrap();
    for word in fixture.pending.iter().chain(fixture.declined) {
        let mut value = value.clone();
        fixture.say(&mut value, &json!(word));
        bodies.push(value.to_string());
    }
    for (pointer, other) in fixture.echoes {
        let mut value = value.clone();
        *value.pointer_mut(pointer).unwrap() = serde_json::from_str(other).unwrap();
        bodies.push(value.to_string());
    }
    for pointer in fixture.needed {
        for other in [json!(null), json!({}), json!("another"), json!(1)] {
            let mut value = value.clone();
            *value.pointer_mut(pointer).unwrap() = other;
            bodies.push(value.to_string());
        }
    }
    bodies
}

const RETRY_AFTER: &[&[(&str, &str)]] = &[
    &[],
    &[("retry-after", "30")],
    &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")],
    &[("retry-after", "soon")],
    &[("content-encoding", "br")],
];

fn statuses() -> impl Iterator<Item = u16> {
    [0, 100, 200, 202, 204, 302]
        .into_iter()
        .chain(400..=418)
        .chain([422, 425, 426, 429, 431, 451, 499, 500, 503, 504, 599])
}

/// Every status with every body, to a refund and to a look-up; to a refund that the route has sent
/// twice, some.
fn check_replies(checker: &mut Checker) {
    for fixture in FIXTURES {
        let bodies = bodies(fixture);
        for (nth, status) in statuses().enumerate() {
            for (mth, body) in bodies.iter().enumerate() {
                let head = head(status, RETRY_AFTER[(nth + mth) % RETRY_AFTER.len()]);
                let what = format!("{} {status} {body}", fixture.name());
                checker.check(&what, POST, &replied(fixture, &head, body, 1));
                if (nth + mth) % 3 == 0 {
                    checker.check(&what, POST, &replied(fixture, &head, body, 2));
                }
                checker.check(&what, GET, &looked_up(fixture, &head, body));
            }
        }
    }
}

/// Every answer of Envoy's own, at every stage of a call.
fn check_local_replies(checker: &mut Checker) {
    let details = [
        "",
        "strange",
        "route_not_found",
        "cluster_not_found",
        "no_healthy_upstream",
        "overflow",
        "upstream_reset_before_response_started{remote_refused_stream_reset}",
        "upstream_reset_after_response_started{connection_termination}",
        "upstream_response_timeout",
        "response_payload_too_large",
        "failed_to_inject_credential",
        "http1.codec_error",
        "request_payload_too_large",
    ];
    let earlier = |_: &Digest| Some(standing(Resend::Until(NOW.plus(1_000))));
    for fixture in FIXTURES {
        let config = fixture.config_once();
        for details in details {
            for (status, connected) in [
                (400, false),
                (408, false),
                (413, false),
                (500, true),
                (503, false),
                (504, true),
            ] {
                let reply = local(status, details, connected);
                let what = format!("{} {reply:?}", fixture.name());
                let sent = dispatched(fixture, &fixture.call()).sent;
                checker.check(&what, POST, &sent.local_reply(reply));
                for (method, headers) in [
                    (POST, headers_with(&[])),
                    (GET, look_up_headers(&query(fixture))),
                ] {
                    let reading = reading(&config, &headers);
                    checker.check(&what, method, &reading.local_reply(reply, &|_| None));
                    checker.check(&what, method, &reading.local_reply(reply, &earlier));
                }
                let asked = match looking_up(fixture) {
                    Out::Routed(dispatch) => dispatch.sent.local_reply(reply),
                    Out::Callout(callout) => callout.local_reply(reply),
                };
                checker.check(&what, GET, &asked);
            }
        }
    }
}

/// Where there is no token, no signature, no secret, no room and no first call.
fn check_what_else(checker: &mut Checker) {
    let sound = headers_with(&[]);
    for fixture in FIXTURES {
        let name = fixture.name();
        let stored = |status, body: &str| Claim::Answered {
            answer: Some(StoredAnswer {
                status,
                id: None,
                body: body.to_owned(),
            }),
            standing: standing(Resend::Never),
        };
        let mut claims = vec![
            Claim::Reused,
            in_flight(Resend::Always),
            in_flight(Resend::Until(NOW.plus(1_000))),
            in_flight(Resend::Never),
            Claim::Answered {
                answer: None,
                standing: standing(Resend::Never),
            },
        ];
        if fixture.by_key == "look_up" {
            claims.push(Claim::NoRoom);
            for is_open in [false, true] {
                claims.push(Claim::PaymentTaken { is_open });
            }
        }
        for body in bodies(fixture) {
            for status in statuses() {
                let first = replied(fixture, &head(status, &[]), &body, 1);
                claims.push(stored(first.status, &first.body));
            }
        }
        for claim in claims {
            let what = format!("{name} {claim:?}");
            checker.check(&what, POST, &answered(claimed(fixture, &sound, claim)));
        }
        for (operation, headers) in [
            (PREVIEW, headers_with(&[])),
            (PREVIEW_LOOK_UP, look_up_headers(&query(fixture))),
        ] {
            let headers = preview_headers(&headers);
            let shown = match operation {
                PREVIEW => claimed(fixture, &headers, Claim::Unguarded),
                _ => asked(fixture, &headers, Claim::Unguarded),
            };
            checker.check(name, operation, &answered(shown));
        }
    }
    let bog = fixture("bog");
    for kind in [
        FailureKind::Refused,
        FailureKind::RateLimited,
        FailureKind::Unreachable,
    ] {
        for (status, retry_after) in [(None, None), (Some(429), Some("5".to_owned()))] {
            let failure = Failure {
                kind,
                status,
                retry_after,
                code: Some("invalid_client".into()),
                message: Some("No".into()),
            };
            for method in [POST, GET] {
                let prepared = match method {
                    POST => claimed(bog, &sound, Claim::Unguarded),
                    _ => asked(bog, &look_up_headers(&query(bog)), Claim::Unguarded),
                };
                let Step::Waiting(waiting) = prepared else {
                    panic!("no token is needed")
                };
                checker.check("no token", method, &waiting.without_token(&failure));
            }
        }
    }
}

#[test]
fn every_answer_fits_and_no_code_is_declared_in_vain() {
    let mut checker = Checker::new();
    for (path, case) in golden_cases() {
        if let Some((method, answer)) = golden(&case) {
            checker.check(&path, method, &answer);
        }
    }
    check_replies(&mut checker);
    check_local_replies(&mut checker);
    check_what_else(&mut checker);
    for problem in envoys_own() {
        let status = u16::try_from(problem["status"].as_u64().unwrap()).unwrap();
        // Of what breaks once the provider is asked, a preview has nothing.
        let is_sent = problem["code"].as_str().unwrap().starts_with("provider-") || status == 500;
        for operation in OPERATIONS {
            if !is_sent || [POST, GET].contains(&operation) {
                checker.check_parts("envoy.yaml", operation, status, &envoys_headers(), &problem);
            }
        }
    }
    for example in examples() {
        for operation in example.operations {
            if let Some(code) = example.body["code"].as_str() {
                checker
                    .seen
                    .insert((*operation, example.status, code.to_owned()));
            }
        }
    }
    checker.passed();
    assert!(checker.answers > 9_000, "{}", checker.answers);
    let mut declared = BTreeSet::new();
    for operation in OPERATIONS {
        for (status, response) in checker.api.responses(operation) {
            let content = &checker.api.at(&response)["content"]["application/problem+json"];
            let codes = &content["schema"]["properties"]["code"]["enum"];
            for code in codes.as_array().into_iter().flatten() {
                let code = code.as_str().unwrap().to_owned();
                declared.insert((operation, status.parse().unwrap(), code));
            }
        }
    }
    assert_eq!(declared, checker.seen, "declared, and seen");
}

// ---- calls by the schema, and by the code

/// What is refused by the code and cannot be said in JSON Schema, or depends on the configured
/// provider: the beginning of each fault's sentence.
const BEYOND_THE_SCHEMA: &[&str] = &[
    "No provider is configured under this name.",
    // ISO 4217, its decimals, and 64 bits.
    "The currency must be an ISO 4217 code in upper case.",
    "The value is too large.",
    // What a provider can take.
    "This provider",
];

fn is_beyond_the_schema(fault: &Value) -> bool {
    let detail = fault["detail"].as_str().unwrap();
    let decimals = detail.contains(" has ") && detail.ends_with(" decimals.");
    decimals
        || BEYOND_THE_SCHEMA
            .iter()
            .any(|known| detail.starts_with(known))
}

/// Whether the code takes a call; else its faults.
fn taken(fixture: &Fixture, headers: &Headers<'_>, body: &[u8]) -> Result<(), Value> {
    match reading(&fixture.config_once(), headers).accept(body, &|_| None) {
        Ok(_) => Ok(()),
        Err(answer) => Err(serde_json::from_str(&answer.body).unwrap()),
    }
}

/// The schema refuses nothing that the code takes, and takes only what is refused for a reason that
/// it cannot express.
fn compare(what: &str, by_schema: bool, by_code: &Result<(), Value>) -> Result<(), String> {
    match (by_schema, by_code) {
        (true, Ok(())) | (false, Err(_)) => Ok(()),
        (false, Ok(())) => Err(format!("the code takes what the schema refuses: {what}")),
        (true, Err(problem)) => {
            let faults = problem["errors"].as_array();
            if faults.is_some_and(|faults| faults.iter().all(is_beyond_the_schema)) {
                Ok(())
            } else {
                Err(format!(
                    "the schema takes what the code refuses: {what}: {problem}"
                ))
            }
        }
    }
}

/// Calls that differ from a sound one in one place: right and wrong.
fn variants(fixture: &Fixture) -> Vec<Value> {
    let sound = fixture.call();
    let mut variants = vec![json!([]), json!("x"), json!(null), json!({})];
    let texts = [
        "",
        ".",
        "..",
        "...",
        "a",
        "Ä €\u{1f600}",
        "ord/1 x",
        "0",
        "01",
        "4923",
        "\u{0}",
    ];
    let mut values: Vec<Value> = texts.iter().map(|text| json!(text)).collect();
    values.extend([64, 65, 128, 129, 255, 256, 300].map(|length| json!("ü".repeat(length))));
    const AMOUNTS: &str = "10 10.5 10.50 10.505 10.00000 0 0.00 0.01 00.1 -1 +1 1e2 1. .5 ١ 18446744073709551615 \
        18446744073709551616 184467440737095516.15 1844674407370955.1615 1111111111111111111111";
    const WORDS: &str = "GEL gel XXX GE GELL JPY KWD CLF full FULL bog nosuch a-b_C9";
    values.extend(AMOUNTS.split(' ').chain(WORDS.split(' ')).map(Value::from));
    values.extend([
        json!(null),
        json!(1),
        json!(true),
        json!([]),
        json!({}),
        json!({"id": "1"}),
        json!({"reference": "1"}),
        json!({"id": "4923", "reference": "1"}),
        json!({"value": "1", "currency": "GEL"}),
        json!({"value": "1"}),
        json!({"currency": "GEL"}),
        json!({"value": "1", "currency": "GEL", "more": 1}),
    ]);
    let pointers = [
        "/provider",
        "/payment",
        "/payment/id",
        "/payment/reference",
        "/payment/more",
        "/amount",
        "/amount/value",
        "/amount/currency",
        "/amount/more",
        "/reason",
        "/reference",
        "/note",
        "/",
        "/a\nb~c",
    ];
    for pointer in pointers {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let mut without = sound.clone();
        without
            .pointer_mut(parent)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(name);
        variants.push(without);
        for value in &values {
            let mut with = sound.clone();
            with.pointer_mut(parent).unwrap()[name] = value.clone();
            variants.push(with);
        }
    }
    variants
}

#[test]
fn a_call_that_the_schema_refuses_is_refused() {
    let api = Api::read();
    let schema = api.schema(&format!("{CALL}/schema"));
    let answers = api.schema("/components/schemas/Problem");
    let mut faults = Vec::new();
    let (mut calls, mut both) = (0, 0);
    let headers = headers_with(&[]);
    let mut compare = |fixture: &Fixture, call: &Value| {
        let by_schema = schema.is_valid(call);
        let by_code = taken(fixture, &headers, call.to_string().as_bytes());
        if let Err(problem) = &by_code
            && let Err(fault) = answers.validate(problem)
        {
            faults.push(format!("{fault}: {problem}"));
        }
        calls += 1;
        both += usize::from(by_schema && by_code.is_ok());
        faults.extend(compare(&call.to_string(), by_schema, &by_code).err());
    };
    for fixture in FIXTURES {
        for call in variants(fixture) {
            compare(fixture, &call);
        }
    }
    for (_, case) in golden_cases() {
        let call = &case["call"]["body"];
        if !call.is_null() && case["configured_as"] == case["provider"]["kind"] {
            compare(fixture(case["configured_as"].as_str().unwrap()), call);
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    assert!(
        calls > 2_000 && both > 300,
        "{calls} calls, {both} taken by both"
    );
}

#[test]
fn the_examples_of_calls_are_sent() {
    let api = Api::read();
    let content = api.at(CALL);
    for (name, example) in content["examples"].as_object().unwrap() {
        let call = &example["value"];
        let fixture = fixture(call["provider"].as_str().unwrap());
        taken(fixture, &headers_with(&[]), call.to_string().as_bytes())
            .unwrap_or_else(|problem| panic!("{name}: {problem}"));
    }
}

#[test]
fn a_look_up_that_the_schema_refuses_is_refused() {
    let api = Api::read();
    let schemas: BTreeMap<&str, Validator> = api
        .query()
        .into_iter()
        .map(|(name, pointer)| (name, api.schema(&pointer)))
        .collect();
    let mut faults = Vec::new();
    for fixture in FIXTURES {
        let payment: Value = serde_json::from_str(fixture.payment).unwrap();
        for (name, schema) in &schemas {
            let texts = [
                "",
                ".",
                "..",
                "a",
                "0",
                "4923",
                "Ä €",
                "a b",
                "\"a\"",
                "\"a",
                "a\"b",
                "bog",
                "\"a\\\"b\"",
                "\"a\\b\"",
            ];
            let mut texts: Vec<String> = texts.map(String::from).to_vec();
            texts.extend([64, 65, 128, 129, 255, 256].map(|length| "x".repeat(length)));
            for text in texts {
                let mut query = BTreeMap::from([
                    ("provider", fixture.name().to_owned()),
                    ("payment_id", payment["id"].as_str().unwrap().to_owned()),
                    ("key", "k-1".to_owned()),
                ]);
                query.insert(name, text.clone());
                let pairs = query.iter().map(|(name, value)| {
                    let value = percent_encoding::utf8_percent_encode(
                        value,
                        percent_encoding::NON_ALPHANUMERIC,
                    );
                    format!("{name}={value}")
                });
                let headers = look_up_headers(&pairs.collect::<Vec<_>>().join("&"));
                let by_schema = schema.is_valid(&json!(text));
                let by_code = taken(fixture, &headers, b"");
                faults.extend(compare(&format!("{name}={text}"), by_schema, &by_code).err());
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The names in a sentence such as "…; a, b and c are."
fn names(problem: &Value) -> BTreeSet<String> {
    let errors = problem["errors"].as_array().unwrap();
    let sentence = errors.iter().find_map(|fault| {
        let (_, names) = fault["detail"].as_str()?.split_once(" is not known; ")?;
        names
            .strip_suffix(" are.")
            .map(|names| names.replace(" and ", ", "))
    });
    sentence.unwrap().split(", ").map(str::to_owned).collect()
}

#[test]
fn no_member_and_no_parameter_is_forgotten() {
    let api = Api::read();
    let members = |name: &str| -> BTreeSet<String> {
        let schema = &api.document["components"]["schemas"][name]["properties"];
        schema.as_object().unwrap().keys().cloned().collect()
    };
    let bog = fixture("bog");
    let told = |pointer: &str| {
        let mut call = bog.call();
        call.pointer_mut(pointer).unwrap()["unheard-of"] = json!(1);
        names(&taken(bog, &headers_with(&[]), call.to_string().as_bytes()).unwrap_err())
    };
    assert_eq!(members("RefundCall"), told(""));
    assert_eq!(members("Payment"), told("/payment"));
    assert_eq!(members("Money"), told("/amount"));
    let asked = look_up_headers("provider=bog&unheard-of=1");
    let known = names(&taken(bog, &asked, b"").unwrap_err());
    let declared: BTreeSet<String> = api.query().into_keys().map(str::to_owned).collect();
    assert_eq!(declared, known);
    let bare = taken(bog, &look_up_headers("payment_id=a&key=k"), b"").unwrap_err();
    assert_eq!(
        bare["errors"].as_array().unwrap().len(),
        1,
        "only provider is required: {bare}"
    );
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn a_key_is_one_by_the_schema_where_it_is_one_by_the_code(
        key in prop_oneof!["[ -~]{0,6}", "\"[\"\\\\a]{0,6}\"?", "[!-~]{250,260}", "\"[#-~]{250,258}\"", "\\PC{0,4}"]
    ) {
        thread_local! {
            static SCHEMA: Validator = Api::read().schema("/components/schemas/Key");
        }
        let by_code = IdempotencyKey::from_header([key.as_bytes()].into_iter()).is_ok();
        prop_assert_eq!(SCHEMA.with(|schema| schema.is_valid(&json!(key))), by_code);
    }
}

#[test]
fn the_list_of_open_refunds_is_what_the_document_says() {
    let config = Config::read(br#"{"open_list": true}"#, &|_| None).unwrap();
    let noted = |note: Value| Open {
        key: Digest::of([&b"k-1"[..]]),
        state: OpenState::Pending,
        note: Some((NOW.steady_ms, note.to_string())),
    };
    let payment = json!({"id": "4922", "reference": "1655817171"});
    let amount = json!({"value": "10.00", "currency": "HKD"});
    let bare = Open {
        state: OpenState::Unknown,
        note: None,
        ..noted(Value::Null)
    };
    let refunds = OpenRefunds {
        total: 3,
        oldest: vec![
            bare,
            noted(json!({"provider": "bbmsl", "payment": payment, "amount": amount})),
            noted(json!({"provider": "bog", "payment": {"id": "1"}, "amount": "full"})),
        ],
    };
    let api = Api::read();
    let responses = api.responses(("/v1/refunds/open", "get"));
    let mut seen = BTreeSet::new();
    for (query, refunds) in [
        ("", refunds),
        ("", OpenRefunds::default()),
        ("?all", OpenRefunds::default()),
    ] {
        let mut headers = Headers::default();
        headers.fixed(":method", "GET");
        headers.text(":path", format!("/v1/refunds/open{query}"));
        headers.fixed("x-request-id", "r-1");
        let answer = open_list(&config, &headers, NOW, || refunds);
        let response = &responses[&answer.status.to_string()];
        let content = api.at(response)["content"].as_object().unwrap();
        let media = content.keys().next().unwrap();
        let schema = format!("{response}/content/{}/schema", media.replace('/', "~1"));
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        let faults: Vec<_> = api
            .schema(&schema)
            .iter_errors(&body)
            .map(|error| error.to_string())
            .collect();
        assert!(faults.is_empty(), "{faults:?}: {body}");
        assert_eq!(answer.headers.first("content-type"), Some(media.as_bytes()));
        for name in api.at(response)["headers"].as_object().unwrap().keys() {
            assert!(answer.headers.first(name).is_some(), "{name}");
        }
        seen.insert(answer.status.to_string());
    }
    assert_eq!(seen, responses.into_keys().collect());
}
