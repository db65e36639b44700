//! beGateway.
//!
//! Source: the vendor's page "Refund" (`POST https://api.begateway.com/beyag/transactions/refunds`), and its page of the query
//! by `uid` (`GET /beyag/transactions/{uid}`) and by tracking id (`GET
//! /beyag/transactions/tracking_id/{tracking_id}`). The `RequestID` header, kept for 24 hours, is
//! on its page of idempotency; the shapes of errors are those seen in public clients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::credentials::{Accepted, Uses};
use crate::json::Json;
use crate::ledger::Ledger;
use crate::orders::{self, Behaviour, ErrorShape, JPY, KWD, Order, USD, answers, order};
use crate::provider::HTML;
use crate::sandbox::{Ending, Sandbox};
use crate::server::Application;
use crate::{
    Credential, Declaration, Ends, Error, Fresh, Key, Options, Place, Provider, Received, Refunded,
    Refusal, Replies, Reply, Secret, Server, Text, lock, segment,
};

const REFUNDS: &str = "/beyag/transactions/refunds";
const BY_UID: &str = "/beyag/transactions/";
const BY_TRACKING: &str = "/beyag/transactions/tracking_id/";
/// A query by tracking id answers no more.
const MOST_FOUND: usize = 100;
const LONGEST_REASON: usize = 255;
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

struct Begateway {
    shops: Accepted<Credential>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// By `RequestID`.
    replies: HashMap<String, (Instant, Reply)>,
    /// The refunds, also those that failed, oldest first, in the page's shape.
    transactions: Vec<Json>,
}

impl Begateway {
    fn new(shops: Vec<Credential>) -> Begateway {
        Begateway {
            shops: Accepted::new(shops),
            state: Mutex::default(),
        }
    }

    fn refund(&self, state: &mut State, request: &Received, key: Option<&str>) -> Reply {
        if !request.content_type_is("application/json") {
            return self.refusal(415, "The content type is not application/json.");
        }
        let Some(body) = Json::parse(&request.body) else {
            return self.refusal(400, "The body is not JSON.");
        };
        let call = match read(&body) {
            Ok(call) => call,
            Err((field, text)) => return errors(ErrorShape::Errors, "F.0001", field, text),
        };
        let Some(order) = orders::by_id(Provider::Begateway, call.parent) else {
            return self.refusal(404, "Not found.");
        };
        if let Behaviour::Errors(shape) = order.behaviour {
            return errors(shape, "F.0114", "amount", "exceeds the available balance");
        }
        let left = state.ledger.left(&order);
        if left == 0 {
            return errors(
                ErrorShape::Code,
                "F.0108",
                "parent_uid",
                "is refunded already",
            );
        }
        let amount = call.amount.unwrap_or(left);
        if amount > left {
            return errors(
                ErrorShape::Errors,
                "F.0001",
                "amount",
                "is more than is left",
            );
        }
        let uid = new_uid();
        if !matches!(order.behaviour, Behaviour::Answers { booked: false, .. }) {
            let request = Some(request);
            state.ledger.book(request, &order, amount, key, &uid);
        }
        let status = match order.behaviour {
            Behaviour::Answers { status, .. } => status,
            _ => "successful",
        };
        let transaction = transaction(&order, call.tracking, amount, &uid, status);
        state.transactions.push(transaction.clone());
        Reply::of(200, &Json::object([("transaction", transaction)]))
    }

    fn look_up(&self, state: &State, path: &str) -> Reply {
        if let Some(wanted) = segment(path, BY_TRACKING) {
            // The page does not say what a search for several values at once finds: here nothing,
            // as each is one.
            let found = |transaction: &&Json| {
                let tracking = transaction.text("tracking_id");
                tracking.is_some_and(|values| values.split(';').any(|value| value == wanted))
            };
            let newest = state.transactions.iter().rev().filter(found);
            let newest = newest.take(MOST_FOUND).cloned().collect();
            return Reply::of(200, &Json::object([("transactions", Json::Array(newest))]));
        }
        let uid = segment(path, BY_UID).unwrap_or_default();
        let known = |transaction: &&Json| transaction.text("uid") == Some(uid.as_str());
        let found = match state.transactions.iter().find(known) {
            Some(transaction) => Some(transaction.clone()),
            None => orders::by_id(Provider::Begateway, &uid).map(|order| payment(&order)),
        };
        match found {
            Some(transaction) => Reply::of(200, &Json::object([("transaction", transaction)])),
            None => self.refusal(404, "Not found."),
        }
    }
}

struct Call<'a> {
    parent: &'a str,
    amount: Option<u64>,
    tracking: Option<&'a str>,
}

/// The member at fault and what is wrong with it. The page gives types; how a wrong one is refused
/// it does not say.
fn read(body: &Json) -> Result<Call<'_>, (&str, &'static str)> {
    if let Some(name) = body.stranger(&["request"]) {
        return Err((name, "is unknown"));
    }
    let request = match body.member("request") {
        Some(request @ Json::Object(_)) => request,
        Some(_) => return Err(("request", "is not an object")),
        None => return Err(("request", "is missing")),
    };
    if let Some(name) = request.stranger(&["parent_uid", "reason", "amount", "tracking_id"]) {
        return Err((name, "is unknown"));
    }
    let text = |name| match request.member(name) {
        None => Ok(None),
        Some(Json::Text(text)) => Ok(Some(text.as_str())),
        Some(_) => Err((name, "is not a string")),
    };
    let parent = match text("parent_uid")? {
        None | Some("") => return Err(("parent_uid", "is missing")),
        Some(parent) => parent,
    };
    match text("reason")?.map(str::trim) {
        None | Some("") => return Err(("reason", "is missing")),
        Some(reason) if reason.chars().count() > LONGEST_REASON => {
            return Err(("reason", "is too long"));
        }
        Some(_) => {}
    }
    let amount = match request.member("amount") {
        None => None,
        Some(Json::Number(text)) => match text.parse::<u64>() {
            Ok(0) => return Err(("amount", "is not positive")),
            Ok(amount) => Some(amount),
            Err(_) => return Err(("amount", "is not an integer")),
        },
        Some(_) => return Err(("amount", "is not an integer")),
    };
    Ok(Call {
        parent,
        amount,
        tracking: text("tracking_id")?,
    })
}

impl Application for Begateway {
    fn method(&self, path: &str) -> Option<&'static str> {
        if path == REFUNDS {
            return Some("POST");
        }
        let query = segment(path, BY_UID).or_else(|| segment(path, BY_TRACKING));
        query.is_some().then_some("GET")
    }

    fn refusal(&self, status: u16, text: &str) -> Reply {
        Reply::of(status, &Json::object([("message", text.into())]))
    }

    fn answer(&self, request: &Received) -> Reply {
        let shop = request.basic().and_then(|(id, secret)| {
            self.shops
                .find(|shop| shop.account == id && shop.secret == secret)
        });
        let Some(shop) = shop else {
            return self
                .refusal(401, "Unauthorized")
                .with("www-authenticate", "Basic");
        };
        self.shops.count(shop);
        let mut state = lock(&self.state);
        if request.path != REFUNDS {
            return self.look_up(&state, &request.path);
        }
        // No page gives the header a format.
        let key = match request.only("requestid") {
            Ok(None) => return self.refund(&mut state, request, None),
            Ok(Some(key)) if (1..=255).contains(&key.len()) => key.to_owned(),
            Ok(Some(_)) | Err(()) => return self.refusal(400, "RequestID is not one identifier"),
        };
        match state.replies.get(&key) {
            Some((at, reply)) if at.elapsed() < KEPT => reply.clone(),
            _ => {
                let reply = self.refund(&mut state, request, Some(&key));
                state.replies.insert(key, (Instant::now(), reply.clone()));
                reply
            }
        }
    }

    fn ledger(&self) -> Vec<Refunded> {
        lock(&self.state).ledger.entries()
    }

    fn credentials(&self) -> &dyn Uses {
        &self.shops
    }

    fn settle(&self, refund: Option<&str>, succeeded: bool) -> usize {
        let State {
            ledger,
            transactions,
            ..
        } = &mut *lock(&self.state);
        let mut settled = 0;
        for transaction in transactions {
            let uid = transaction.text("uid").unwrap_or_default().to_owned();
            let open = matches!(transaction.text("status"), Some("pending" | "incomplete"));
            if !open || refund.is_some_and(|refund| refund != uid) {
                continue;
            }
            let status = if succeeded { "successful" } else { "failed" };
            for (pointer, value) in [
                ("/status", status.into()),
                ("/message", message(status)),
                ("/updated_at", now().into()),
                ("/refund/status", status.into()),
                ("/refund/message", message(status)),
            ] {
                transaction.alter(pointer, Some(value));
            }
            if succeeded {
                transaction.add("paid_at", now());
            } else {
                ledger.reject(&uid);
            }
            settled += 1;
        }
        settled
    }

    fn refund_by_hand(&self, payment: &str, minor_units: u64, tracking: &str) -> Option<String> {
        let mut state = lock(&self.state);
        let order = orders::by_id(Provider::Begateway, payment)?;
        if !(1..=state.ledger.left(&order)).contains(&minor_units) {
            return None;
        }
        let uid = new_uid();
        state.ledger.book(None, &order, minor_units, None, &uid);
        let tracking = Some(tracking).filter(|tracking| !tracking.is_empty());
        let transaction = transaction(&order, tracking, minor_units, &uid, "successful");
        state.transactions.push(transaction);
        Some(uid)
    }
}

/// 422 in one of the shapes seen.
fn errors(shape: ErrorShape, code: &str, field: &str, text: &str) -> Reply {
    let message = format!("{field} {text}");
    let list = Json::Object(vec![(field.to_owned(), Json::Array(vec![text.into()]))]);
    let pair = |errors| Json::object([("message", message.as_str().into()), ("errors", errors)]);
    let body = match shape {
        ErrorShape::Errors => pair(Json::object([("request", list)])),
        ErrorShape::Response => Json::object([("response", pair(list))]),
        ErrorShape::Error => Json::object([("error", pair(list))]),
        ErrorShape::Code => Json::object([
            ("code", code.into()),
            ("friendly_message", "The refund was not made.".into()),
            ("message", message.as_str().into()),
            ("errors", list),
        ]),
        ErrorShape::Objects => {
            let single = || Json::Object(vec![(field.to_owned(), text.into())]);
            Json::object([("message", single()), ("errors", single())])
        }
    };
    Reply::of(422, &body)
}

/// `2014-06-11T12:04:59+03:00`
fn now() -> String {
    let now = OffsetDateTime::now_utc() + time::Duration::hours(3);
    let (hour, minute, second) = now.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}+03:00", now.date())
}

fn new_uid() -> String {
    format!("2-{:.10}", Uuid::new_v4().simple())
}

fn message(status: &str) -> Json {
    match status {
        "successful" => "The operation was successfully processed",
        "pending" | "incomplete" => "The operation is being processed",
        _ => "The operation was not processed",
    }
    .into()
}

/// The transaction that was paid. Its page is another one: here it is like a refund's, as far as
/// that goes.
fn payment(order: &Order) -> Json {
    let mut payment = transaction(order, None, order.amount, &order.id, "successful");
    payment.alter("/parent_uid", None);
    payment.alter("/type", Some("payment".into()));
    payment.alter("/refund", None);
    payment
}

/// Every member of the page's table, but that `tracking_id` needs one in the request, and `paid_at`
/// a payment.
fn transaction(
    order: &Order,
    tracking: Option<&str>,
    amount: u64,
    uid: &str,
    status: &str,
) -> Json {
    let older = order.behaviour == Behaviour::Older;
    let message = if older { Json::Null } else { message(status) };
    let hex = || Uuid::new_v4().simple();
    let receipt = format!(
        "https://demo-backoffice.begateway.com/customer/transactions/{uid}/{}{}",
        hex(),
        hex()
    );
    let reference = if older { Json::Null } else { "8889999".into() };
    let now = now();
    let mut transaction = Json::object([
        ("uid", uid.into()),
        ("parent_uid", (&*order.id).into()),
        ("type", "refund".into()),
        ("status", status.into()),
        ("message", message.clone()),
        ("created_at", now.as_str().into()),
        ("updated_at", now.as_str().into()),
        ("amount", amount.into()),
    ]);
    if !older {
        transaction.add("currency", order.currency);
    }
    if let Some(tracking) = tracking {
        transaction.add("tracking_id", tracking);
    }
    transaction.add("test", Json::Bool(false));
    transaction.add("language", "en");
    if status == "successful" {
        transaction.add("paid_at", now);
    }
    transaction.add("method_type", ":method_name");
    transaction.add("receipt_url", receipt);
    let refund = [
        ("message", message),
        ("ref_id", reference),
        ("status", status.into()),
    ];
    transaction.add("refund", Json::object(refund));
    transaction
}

fn start(options: &Options) -> Result<Vec<Arc<dyn Application>>, Error> {
    let shops = options.credentials.of(Provider::Begateway);
    Ok(vec![Arc::new(Begateway::new(shops))])
}

#[rustfmt::skip]
const ORDERS: &[Order] = &[
    order(Provider::Begateway, "page", "1-310b0da80b", 10_000, USD, Behaviour::Succeeds),
    order(Provider::Begateway, "kwd", "1-kwd", 12_345, KWD, Behaviour::Succeeds),
    order(Provider::Begateway, "jpy", "1-jpy", 1_500, JPY, Behaviour::Succeeds),
    order(Provider::Begateway, "older", "1-older", 10_000, USD, Behaviour::Older),
    order(Provider::Begateway, "declined", "1-failed", 10_000, USD, answers("failed", false)),
    order(Provider::Begateway, "expired", "1-expired", 10_000, USD, answers("expired", false)),
    order(Provider::Begateway, "deleted", "1-deleted", 10_000, USD, answers("deleted", false)),
    order(Provider::Begateway, "pending", "1-pending", 10_000, USD, answers("pending", true)),
    order(Provider::Begateway, "incomplete", "1-incomplete", 10_000, USD, answers("incomplete", true)),
    order(Provider::Begateway, "error", "1-error", 10_000, USD, answers("error", false)),
    order(Provider::Begateway, "strange", "1-strange", 10_000, USD, answers("queued", true)),
    order(Provider::Begateway, "already-refunded", "1-already-refunded", 10_000, USD, Behaviour::AlreadyRefunded),
    order(Provider::Begateway, "errors", "1-shape-errors", 10_000, USD, Behaviour::Errors(ErrorShape::Errors)),
    order(Provider::Begateway, "errors-response", "1-shape-response", 10_000, USD, Behaviour::Errors(ErrorShape::Response)),
    order(Provider::Begateway, "errors-error", "1-shape-error", 10_000, USD, Behaviour::Errors(ErrorShape::Error)),
    order(Provider::Begateway, "errors-code", "1-shape-code", 10_000, USD, Behaviour::Errors(ErrorShape::Code)),
    order(Provider::Begateway, "errors-objects", "1-shape-objects", 10_000, USD, Behaviour::Errors(ErrorShape::Objects)),
];

fn ends(name: &str) -> Option<Ends> {
    let unprocessed = Some("The operation was not processed");
    let exceeds = Some("amount exceeds the available balance");
    Some(match name {
        "page" | "kwd" | "jpy" | "older" => Ends::Succeeded,
        "pending" | "incomplete" => Ends::Pending,
        "declined" | "expired" | "deleted" => {
            Ends::Refused(Refusal::Declined, 200, None, unprocessed)
        }
        "error" => Ends::Refused(Refusal::Failed, 200, None, unprocessed),
        "strange" => Ends::Refused(Refusal::Unreadable, 200, None, unprocessed),
        "already-refunded" => {
            let text = "parent_uid is refunded already";
            Ends::Refused(Refusal::There, 422, Some("F.0108"), Some(text))
        }
        "errors" | "errors-response" | "errors-error" => {
            Ends::Refused(Refusal::Rejected, 422, None, exceeds)
        }
        "errors-code" => Ends::Refused(Refusal::Rejected, 422, Some("F.0114"), exceeds),
        "errors-objects" => Ends::Refused(Refusal::Rejected, 422, None, None),
        _ => return None,
    })
}

const REPLIES: Replies = Replies {
    word: ("status", "successful", ""),
    declined: &["failed", "expired", "deleted"],
    declined_else: None,
    pending: &["pending", "incomplete"],
    unsure: &["error"],
    unlisted: &["queued", "Successful", ""],
    there: Some((
        "beGateway `F.0108`",
        &[
            (
                422,
                r#"{"code":"F.0108","friendly_message":"Duplicate","message":"is refunded already","errors":{}}"#,
            ),
            (
                400,
                r#"{"response":{"code":"F.0108","message":"is refunded already"}}"#,
            ),
            (
                422,
                r#"{"error":{"code":"F.0108","message":"is refunded already"}}"#,
            ),
        ],
    )),
    conflict_is_there: false,
    lists_refusals: true,
    amounts: &[
        (r#""amount":1000"#, r#""amount":999"#),
        (r#""amount":1000"#, r#""amount":10"#),
    ],
    currencies: &[(r#""currency":"USD""#, r#""currency":"EUR""#)],
    payments: &[("%id%", "1-310b0da80b")],
    said: (None, "The operation was successfully processed"),
    time: Some("/transaction/created_at"),
    words: &["/transaction/message", "/transaction/code"],
    with,
};

/// Where it puts words.
fn with(said: &str) -> Vec<(u16, Value, bool)> {
    vec![
        (
            422,
            json!({"message": said, "errors": {"amount": [said]}}),
            true,
        ),
        (422, json!({"code": said, "message": "bad"}), true),
        (
            422,
            json!({"code": "F.0108", "friendly_message": said}),
            true,
        ),
        (
            400,
            json!({"response": {"message": said, "code": said, "errors": {"x": said}}}),
            true,
        ),
        (
            400,
            json!({"error": {"message": said, "friendly_message": said}}),
            true,
        ),
        (500, json!({"error": {"message": said}}), true),
        (
            200,
            json!({"transaction": {"type": "refund", "status": "failed", "message": said, "code": said}}),
            true,
        ),
        (
            200,
            json!({"transaction": {"type": "refund", "status": "error", "friendly_message": said}}),
            true,
        ),
        (422, json!({"message": {"card": said}}), false),
    ]
}

fn sandbox(ending: Ending) -> Behaviour {
    match ending {
        Ending::Declined => answers("failed", false),
        Ending::Pending => answers("pending", true),
        Ending::AlreadyRefunded => Behaviour::AlreadyRefunded,
        _ => Behaviour::Succeeds,
    }
}

pub(super) const DECLARATION: Declaration = Declaration {
    title: "beGateway",
    short: "beGateway",
    servers: &[Server {
        cluster: "begateway",
        host: "api.begateway.com",
        success: r#"{"transaction":{"uid":"2-310b0da80b","parent_uid":"%id%","type":"refund","status":"successful","message":"The operation was successfully processed","amount":1000,"currency":"USD"}}"#,
        errors: &[
            r#"{"message":"is missing","errors":{"request":{"amount":["is missing"]}}}"#,
            r#"{"response":{"message":"amount is invalid","errors":{"amount":["is invalid"]}}}"#,
            r#"{"error":{"message":"amount is invalid","errors":{"amount":"is invalid"}}}"#,
            r#"{"code":"F.0114","friendly_message":"No funds","message":"Insufficient funds","errors":{}}"#,
            r#"{"code":"F.0117","message":{"amount":["is invalid"]},"errors":{"amount":"is invalid"}}"#,
            r#"{"message":"Not found."}"#,
            "",
            HTML,
        ],
        altered: &[
            ("/transaction/parent_uid", Some("\"another\"")),
            ("/transaction/currency", Some("\"EUR\"")),
            ("/transaction/amount", Some("999999")),
            ("/transaction/amount", Some("\"1\"")),
            ("/transaction/status", Some("\"error\"")),
            ("/transaction/status", None),
            ("/transaction/uid", None),
        ],
    }],
    secret: Secret {
        account: "361",
        name: "begateway-secret-key",
        at: "/secret_key",
        scheme: Some("Basic"),
    },
    accepts: &[("361", "begateway-demo-secret")],
    key: Some(Key {
        place: Place::Header("requestid"),
        versions: &[4],
    }),
    keeps_keys: true,
    path: (REFUNDS, ""),
    names: "parent_uid in the body",
    answers: "succeeded",
    nameless: &[],
    texts: &[
        Text {
            of: "/reason",
            at: "/request/reason",
            divider: "",
            names: false,
        },
        Text {
            of: "/reference",
            at: "/request/tracking_id",
            divider: ";",
            names: false,
        },
    ],
    replies: REPLIES,
    by_id_alone: false,
    by_key_alone: true,
    proves_absence: true,
    leaves_open: None,
    currency: USD,
    fresh: Fresh {
        id: |nth| format!("order-{nth}"),
        is: |id| id.starts_with("order-"),
        reference: |_| String::new(),
    },
    orders: ORDERS,
    ends,
    sandbox: Sandbox {
        is_reference: false,
        behaviour: sandbox,
        pending: None,
    },
    demo: "1-310b0da80b",
    start,
};
