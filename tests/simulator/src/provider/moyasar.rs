//! Moyasar Payment Gateway.
//!
//! Source: the vendor's page "refund" (`POST /v1/orders/:id/refund`), its answers 200, 400, 401,
//! 403 and 422, and its page of the order itself (`GET /v1/orders/:id`), which is the same object.
//! The bound of 100000000 and the UUID in `transaction_id` stand in its pages of the sibling calls.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::credentials::{Accepted, Uses};
use crate::json::Json;
use crate::ledger::Ledger;
use crate::orders::{self, Behaviour, JPY, KWD, Order, SAR, answers, order};
use crate::provider::HTML;
use crate::sandbox::{Ending, Sandbox};
use crate::server::Application;
use crate::{
    Credential, Declaration, Ends, Error, Fresh, Key, Options, Place, Provider, Received, Refunded,
    Refusal, Replies, Reply, Secret, Server, lock, segment,
};

const ORDERS: &str = "/v1/orders/";
const LARGEST: u64 = 100_000_000;

struct Moyasar {
    keys: Accepted<Credential>,
    state: Mutex<State>,
    /// The `transaction_id` of each request whose reply is not ready.
    in_flight: Arc<Mutex<HashSet<String>>>,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// By `transaction_id` in lower case: the order it was for, and the reply.
    replies: HashMap<String, (String, Reply)>,
    /// By order: the refund transactions so far, in the page's shape.
    refunds: HashMap<String, Vec<Json>>,
}

/// A request that says what the page asks for.
struct Call {
    order: String,
    amount: u64,
    /// As sent.
    transaction: Option<String>,
}

/// Takes a `transaction_id` out of the set again.
struct InFlight(Arc<Mutex<HashSet<String>>>, String);

impl Drop for InFlight {
    fn drop(&mut self) {
        lock(&self.0).remove(&self.1);
    }
}

impl Moyasar {
    fn new(keys: Vec<Credential>) -> Moyasar {
        Moyasar {
            keys: Accepted::new(keys),
            state: Mutex::default(),
            in_flight: Arc::default(),
        }
    }

    fn key(&self, request: &Received) -> Result<usize, Reply> {
        let Some(key) = request.authorization("bearer") else {
            return Err(self.refusal(401, "Missing authentication information"));
        };
        // The page does not say what a wrong key meets; 403 is for one that is known and may not.
        self.keys
            .find(|known| known.secret == key)
            .ok_or_else(|| self.refusal(401, "Invalid authentication information"))
    }

    fn read(&self, request: &Received) -> Result<Call, Reply> {
        if !request.content_type_is("application/json") {
            return Err(self.refusal(415, "The content type is not application/json."));
        }
        let body = match Json::parse(&request.body) {
            Some(body @ Json::Object(_)) => body,
            _ => return Err(self.refusal(400, "The body is not a JSON object.")),
        };
        if let Some(name) = body.stranger(&["amount", "transaction_id"]) {
            return Err(invalid(name, "The parameter is not known."));
        }
        let transaction = match body.member("transaction_id") {
            None => None,
            Some(Json::Text(text)) if is_uuid(text) => Some(text.clone()),
            Some(_) => return Err(invalid("transaction_id", "The value must be a UUID.")),
        };
        let amount = match body.member("amount") {
            None => return Err(invalid("amount", "The value is required.")),
            Some(Json::Number(text)) => match text.parse::<u64>() {
                Ok(0) => Err("The value must be greater than or equal to 1.".into()),
                Ok(amount) if amount <= LARGEST => Ok(amount),
                Ok(_) => Err(format!(
                    "The value must be less than or equal to {LARGEST}."
                )),
                Err(_) if text.starts_with('-') => {
                    Err("The value must be greater than or equal to 1.".into())
                }
                Err(_) => Err("The value must be an integer.".into()),
            },
            Some(_) => Err("The value must be an integer.".to_owned()),
        };
        Ok(Call {
            order: path_id(&request.path).unwrap_or_default().to_owned(),
            amount: amount.map_err(|text| invalid("amount", &text))?,
            transaction,
        })
    }

    fn order(&self, id: &str) -> Result<Order, Reply> {
        let id = match Ending::of(id) {
            Some(_) => Some(id.to_owned()),
            None => Uuid::try_parse(id).ok().map(|id| id.to_string()),
        };
        let order = id.and_then(|id| orders::by_id(Provider::Moyasar, &id));
        match order {
            None => Err(self.refusal(404, "Order not found")),
            Some(order) if order.behaviour == Behaviour::Forbidden => {
                Err(self.refusal(403, "Unauthorized"))
            }
            Some(order) => Ok(order),
        }
    }

    fn refund(&self, state: &mut State, request: &Received, call: &Call) -> Reply {
        let order = match self.order(&call.order) {
            Ok(order) => order,
            Err(refusal) => return refusal,
        };
        let status = match order.behaviour {
            Behaviour::Refuses => return self.refusal(400, "The order has not been captured."),
            Behaviour::Answers { status, .. } => status,
            _ => "approved",
        };
        let left = state.ledger.left(&order);
        if call.amount > left {
            return invalid(
                "amount",
                &format!("The value must be less than or equal to {left}."),
            );
        }
        let id = match &call.transaction {
            Some(id) => id.clone(),
            None => Uuid::new_v4().to_string(),
        };
        if !matches!(order.behaviour, Behaviour::Answers { booked: false, .. }) {
            let key = call.transaction.as_deref();
            let request = Some(request);
            state.ledger.book(request, &order, call.amount, key, &id);
        }
        state.transact(&order, &id, status, call.amount);
        state.order_object(&order)
    }
}

impl State {
    fn transact(&mut self, order: &Order, id: &str, status: &str, amount: u64) {
        let refunds = self.refunds.entry(order.id.to_string()).or_default();
        refunds.push(refund_transaction(id, status, amount, refunds.len()));
    }

    fn order_object(&self, order: &Order) -> Reply {
        let refunds = self.refunds.get(&*order.id);
        let refunds = refunds.map(Vec::as_slice).unwrap_or_default();
        Reply::of(
            200,
            &order_object(order, self.ledger.refunded(order), refunds),
        )
    }
}

impl Application for Moyasar {
    fn method(&self, path: &str) -> Option<&'static str> {
        match (path_id(path), segment(path, ORDERS)) {
            (Some(_), _) => Some("POST"),
            (None, Some(_)) => Some("GET"),
            (None, None) => None,
        }
    }

    fn refusal(&self, status: u16, text: &str) -> Reply {
        Reply::of(status, &Json::object([("message", text.into())]))
    }

    fn enter(&self, request: &Received) -> Result<Option<Box<dyn Any + Send>>, Reply> {
        let (
            Ok(_),
            Ok(Call {
                transaction: Some(id),
                ..
            }),
        ) = (self.key(request), self.read(request))
        else {
            return Ok(None);
        };
        let id = id.to_ascii_lowercase();
        if lock(&self.state).replies.contains_key(&id) && !lock(&self.in_flight).contains(&id) {
            return Ok(None);
        }
        if !lock(&self.in_flight).insert(id.clone()) {
            return Err(self.refusal(400, "Initial request is still processing."));
        }
        Ok(Some(Box::new(InFlight(self.in_flight.clone(), id))))
    }

    fn answer(&self, request: &Received) -> Reply {
        let key = match self.key(request) {
            Ok(key) => key,
            Err(refusal) => return refusal,
        };
        self.keys.count(key);
        if let Some(id) = segment(&request.path, ORDERS) {
            return match self.order(&id) {
                Ok(order) => lock(&self.state).order_object(&order),
                Err(refusal) => refusal,
            };
        }
        let call = match self.read(request) {
            Ok(call) => call,
            Err(refusal) => return refusal,
        };
        let mut state = lock(&self.state);
        let Some(id) = call.transaction.as_ref().map(|id| id.to_ascii_lowercase()) else {
            return self.refund(&mut state, request, &call);
        };
        match state.replies.get(&id) {
            // The page does not say what another amount under the same id meets: it is the same
            // refund, with its first amount.
            Some((order, reply)) if *order == call.order => reply.clone(),
            Some(_) => invalid("transaction_id", "The value belongs to another order."),
            None => {
                let reply = self.refund(&mut state, request, &call);
                // A refusal made no transaction, so that the id is still free.
                if reply.status == 200 {
                    state.replies.insert(id, (call.order, reply.clone()));
                }
                reply
            }
        }
    }

    fn ledger(&self) -> Vec<Refunded> {
        lock(&self.state).ledger.entries()
    }

    fn credentials(&self) -> &dyn Uses {
        &self.keys
    }

    fn settle(&self, refund: Option<&str>, succeeded: bool) -> usize {
        let State {
            ledger, refunds, ..
        } = &mut *lock(&self.state);
        let mut settled = 0;
        for transaction in refunds.values_mut().flatten() {
            let id = transaction.text("id").unwrap_or_default().to_owned();
            if transaction.text("status") != Some("initiated")
                || refund.is_some_and(|refund| refund != id)
            {
                continue;
            }
            let status = if succeeded { "approved" } else { "failed" };
            set_status(transaction, status);
            if !succeeded {
                ledger.reject(&id);
            }
            settled += 1;
        }
        settled
    }

    fn refund_by_hand(&self, payment: &str, minor_units: u64, _tracking: &str) -> Option<String> {
        let mut state = lock(&self.state);
        let order = orders::by_id(Provider::Moyasar, payment)?;
        if !(1..=state.ledger.left(&order)).contains(&minor_units) {
            return None;
        }
        let id = Uuid::new_v4().to_string();
        state.ledger.book(None, &order, minor_units, None, &id);
        state.transact(&order, &id, "approved", minor_units);
        Some(id)
    }
}

fn path_id(path: &str) -> Option<&str> {
    let id = path.strip_prefix(ORDERS)?.strip_suffix("/refund")?;
    (!id.is_empty() && !id.contains(['/', '?'])).then_some(id)
}

fn is_uuid(text: &str) -> bool {
    text.len() == uuid::fmt::Hyphenated::LENGTH && Uuid::try_parse(text).is_ok()
}

/// 422, "returns unprocessable_entity".
fn invalid(field: &str, text: &str) -> Reply {
    let errors = Json::Object(vec![(field.to_owned(), Json::Array(vec![text.into()]))]);
    let body = Json::object([
        ("message", "Data validation failed".into()),
        ("errors", errors),
    ]);
    Reply::of(422, &body)
}

/// `2024-09-15T12:27:45Z`
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let (hour, minute, second) = now.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", now.date())
}

fn refund_transaction(id: &str, status: &str, amount: u64, nth: usize) -> Json {
    let stan = format!("{:06}", nth + 1);
    let mut transaction = transaction(id, status, "refund", amount);
    set_status(&mut transaction, status);
    transaction.alter("/retrieval_reference", Some(format!("242590{stan}").into()));
    transaction.alter("/stan", Some(stan.into()));
    transaction.alter("/auth_code", Some(Json::Null));
    transaction
}

/// The status of a refund, and the texts that go with it.
fn set_status(transaction: &mut Json, status: &str) {
    let (message, code) = match status {
        "approved" => ("APPROVED", "00"),
        _ => ("NOT APPROVED", "05"),
    };
    transaction.alter("/status", Some(status.into()));
    transaction.alter("/message", Some(message.into()));
    transaction.alter("/response_code", Some(code.into()));
}

/// As the page's example of a capture.
fn transaction(id: &str, status: &str, kind: &str, amount: u64) -> Json {
    Json::object([
        ("id", id.into()),
        ("status", status.into()),
        ("type", kind.into()),
        ("source_type", "merchant".into()),
        ("reverse_reason", Json::Null),
        ("justification", Json::Null),
        ("reversed_transaction_id", Json::Null),
        ("message", "APPROVED".into()),
        ("response_code", "00".into()),
        ("retrieval_reference", "886117264145".into()),
        ("stan", "912425".into()),
        ("auth_code", "663390".into()),
        ("amount", amount.into()),
        ("refunded_amount", 0.into()),
        ("created_at", now().into()),
    ])
}

/// The page's example, with this order's own values. Unlike in the example, `id` is the one in the
/// path.
fn order_object(order: &Order, refunded: u64, refunds: &[Json]) -> Json {
    let capture = transaction(
        "0191f5a7-44ab-7fbb-ab3c-1e1a98a5166e",
        "approved",
        "capture",
        order.amount,
    );
    let transactions = [&[capture], refunds].concat();
    Json::object([
        ("id", (&*order.id).into()),
        (
            "merchant",
            Json::object([
                ("id", "0191f5a7-44a5-7700-8c11-ffc3703a7990".into()),
                ("acquirer_id", "0191f5a7-44a2-73d5-9a9c-745f40f8db31".into()),
                ("name", "Merchant 52".into()),
                ("arabic_name", "الإسم العربي".into()),
                ("merchant_id", "60052".into()),
                ("rule_precedence", "mixed".into()),
            ]),
        ),
        ("currency", order.currency.into()),
        ("amount", order.amount.into()),
        ("captured_amount", order.amount.into()),
        ("refunded_amount", refunded.into()),
        ("voided_amount", 0.into()),
        ("description", "Voluptatum at consequatur ullam.".into()),
        ("created_at", "2024-09-15T12:27:45Z".into()),
        ("updated_at", now().into()),
        (
            "source",
            Json::object([
                ("type", "card".into()),
                ("issuer", Json::Null),
                ("card_type", Json::Null),
                ("category", Json::Null),
                ("country_alpha2", Json::Null),
                ("scheme", "mastercard".into()),
                ("first_digits", "55555555".into()),
                ("last_digits", "4444".into()),
                ("month", 12.into()),
                ("year", 2026.into()),
            ]),
        ),
        ("reauthorized_order_id", Json::Null),
        ("airline", Json::object([("reference", "576449881".into())])),
        (
            "sub_merchant",
            Json::object([
                ("id", "ecb0e32fd3d95b41cbf2ca9a9513a3".into()),
                ("registered_name", "Rolfson-Legros".into()),
                ("trading_name", "Hane-Jerde".into()),
                ("email", "herschel@kilback-hamill.test".into()),
            ]),
        ),
        ("agreement", Json::Null),
        ("transactions", Json::Array(transactions)),
    ])
}

fn start(options: &Options) -> Result<Vec<Arc<dyn Application>>, Error> {
    let keys = options.credentials.of(Provider::Moyasar);
    Ok(vec![Arc::new(Moyasar::new(keys))])
}

const FRESH: &str = "00000000-0000-4000-8000-";

#[rustfmt::skip]
const KNOWN: &[Order] = &[
    order(Provider::Moyasar, "page", "0191f5a7-44d3-7430-8739-2d80821416bf", 262_346, SAR, Behaviour::Succeeds),
    order(Provider::Moyasar, "kwd", "0191f5a7-0000-7000-8000-000000000001", 12_345, KWD, Behaviour::Succeeds),
    order(Provider::Moyasar, "jpy", "0191f5a7-0000-7000-8000-000000000002", 1_500, JPY, Behaviour::Succeeds),
    order(Provider::Moyasar, "declined", "0191f5a7-0000-7000-8000-000000000003", 10_000, SAR, answers("failed", false)),
    order(Provider::Moyasar, "pending", "0191f5a7-0000-7000-8000-000000000004", 10_000, SAR, answers("initiated", true)),
    order(Provider::Moyasar, "timeout", "0191f5a7-0000-7000-8000-000000000005", 10_000, SAR, answers("timeout", true)),
    order(Provider::Moyasar, "system-error", "0191f5a7-0000-7000-8000-000000000006", 10_000, SAR, answers("system_error", false)),
    order(Provider::Moyasar, "strange", "0191f5a7-0000-7000-8000-000000000007", 10_000, SAR, answers("queued", true)),
    order(Provider::Moyasar, "refused", "0191f5a7-0000-7000-8000-000000000008", 10_000, SAR, Behaviour::Refuses),
    order(Provider::Moyasar, "forbidden", "0191f5a7-0000-7000-8000-000000000009", 10_000, SAR, Behaviour::Forbidden),
    order(Provider::Moyasar, "already-refunded", "0191f5a7-0000-7000-8000-00000000000a", 10_000, SAR, Behaviour::AlreadyRefunded),
];

fn ends(name: &str) -> Option<Ends> {
    let not_approved = |refusal| Ends::Refused(refusal, 200, Some("05"), Some("NOT APPROVED"));
    Some(match name {
        "page" | "kwd" | "jpy" => Ends::Succeeded,
        "pending" => Ends::Pending,
        "declined" => not_approved(Refusal::Declined),
        "timeout" | "system-error" => not_approved(Refusal::Failed),
        "strange" => not_approved(Refusal::Unreadable),
        "refused" => Ends::Refused(
            Refusal::Rejected,
            400,
            None,
            Some("The order has not been captured."),
        ),
        "forbidden" => Ends::Refused(Refusal::Forbidden, 403, None, Some("Unauthorized")),
        "already-refunded" => {
            Ends::Refused(Refusal::Rejected, 422, None, Some("Data validation failed"))
        }
        _ => return None,
    })
}

const REPLIES: Replies = Replies {
    word: ("status", "approved", r#","type":"refund""#),
    declined: &["failed"],
    declined_else: None,
    pending: &["initiated"],
    unsure: &["timeout", "system_error"],
    unlisted: &["queued", "APPROVED", ""],
    there: None,
    conflict_is_there: false,
    lists_refusals: true,
    amounts: &[
        (r#""00","amount":1000"#, r#""00","amount":1001"#),
        (r#""00","amount":1000"#, r#""00","amount":100000"#),
    ],
    currencies: &[(r#""currency":"SAR""#, r#""currency":"USD""#)],
    payments: &[(
        r#""id":"%id%""#,
        r#""id":"0191f5a7-44d3-7430-8739-2d80821416bf""#,
    )],
    said: (Some("00"), "APPROVED"),
    time: Some("/transactions/1/created_at"),
    words: &["/transactions/1/message", "/transactions/1/response_code"],
    with,
};

/// Where it puts words.
fn with(said: &str) -> Vec<(u16, Value, bool)> {
    vec![
        (
            400,
            json!({"type": "invalid_request_error", "message": said}),
            true,
        ),
        (
            400,
            json!({"message": "bad", "errors": {"amount": [said]}}),
            false,
        ),
        (401, json!({"message": said}), true),
        (404, json!({"message": said}), true),
        (500, json!({"message": said}), true),
        (
            200,
            json!({"transactions": [{"type": "refund", "message": said}]}),
            false,
        ),
        (400, json!({"message": {"text": said}}), false),
    ]
}

fn sandbox(ending: Ending) -> Behaviour {
    match ending {
        Ending::Declined => answers("failed", false),
        Ending::Pending => answers("initiated", true),
        Ending::AlreadyRefunded => Behaviour::AlreadyRefunded,
        _ => Behaviour::Succeeds,
    }
}

pub(super) const DECLARATION: Declaration = Declaration {
    title: "Moyasar",
    short: "Moyasar",
    servers: &[Server {
        cluster: "moyasar",
        host: "pg.moyasar.com",
        success: r#"{"id":"%id%","currency":"SAR","amount":10000,"refunded_amount":1000,"transactions":[{"id":"0191f5a7-44ab-7fbb-ab3c-1e1a98a5166e","status":"approved","type":"capture","amount":10000},{"id":"%key%","status":"approved","type":"refund","message":"APPROVED","response_code":"00","amount":1000}]}"#,
        errors: &[
            r#"{"message":"Missing authentication information"}"#,
            r#"{"message":"Data validation failed","errors":{"amount":["The value must be greater than or equal to 1."]}}"#,
            "The order has not been captured",
            "",
            HTML,
        ],
        altered: &[
            ("/id", Some("\"00000000-0000-4000-8000-ffffffffffff\"")),
            ("/currency", Some("\"USD\"")),
            ("/transactions/1/amount", Some("999999")),
            ("/transactions/1/status", Some("\"queued\"")),
            ("/transactions/1/status", Some("\"timeout\"")),
            ("/transactions/1/id", None),
            ("/transactions", None),
        ],
    }],
    secret: Secret {
        account: "",
        name: "moyasar-api-key",
        at: "/api_key",
        scheme: Some("Bearer"),
    },
    accepts: &[("", "moyasar-demo-key")],
    key: Some(Key {
        place: Place::Member("transaction_id"),
        versions: &[4, 7],
    }),
    keeps_keys: false,
    path: (ORDERS, "/refund"),
    names: "id in the path",
    answers: "succeeded",
    nameless: &[],
    texts: &[],
    replies: REPLIES,
    by_id_alone: false,
    // That it shows none proves nothing.
    by_key_alone: false,
    proves_absence: false,
    leaves_open: Some(("refund-not-found", false)),
    currency: SAR,
    fresh: Fresh {
        id: |nth| format!("{FRESH}{nth:012x}"),
        is: |id| id.starts_with(FRESH),
        reference: |_| String::new(),
    },
    orders: KNOWN,
    ends,
    sandbox: Sandbox {
        is_reference: false,
        behaviour: sandbox,
        pending: None,
    },
    demo: "0191f5a7-44d3-7430-8739-2d80821416bf",
    start,
};
