//! Bank of Georgia: the refund, the payment details that tell how it ended, and the token that both
//! need.
//!
//! Source: the vendor's pages "Refund" and "Get payment details" (`GET
//! /payments/v1/receipt/:order_id`), and its "Authentication" page for the token. No vendor table
//! of errors exists: every refusal here but the 409 is `{"message"}` under the status that HTTP has
//! for it, and 400 for the details of an unknown order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::{Uuid, Variant};

use crate::Error;
use crate::amount::{decimal, minor_units};
use crate::credentials::{Accepted, Uses};
use crate::json::Json;
use crate::ledger::Ledger;
use crate::orders::{self, Behaviour, EUR, GEL, JPY, KWD, Order, order};
use crate::provider::HTML;
use crate::sandbox::{Ending, Sandbox};
use crate::server::Application;
use crate::{
    Credential, Declaration, Ends, ExpiresIn, Fresh, Key, Options, Place, Provider, Received,
    Refunded, Refusal, Replies, Reply, Secret, Server, TokenLifetime, lock, segment,
};

const REFUND: &str = "/payments/v1/payment/refund/";
const RECEIPT: &str = "/payments/v1/receipt/";
const TOKEN: &str = "/auth/realms/bog/protocol/openid-connect/token";

/// The tokens in force, shared by the two endpoints.
struct Tokens {
    clients: Accepted<Credential>,
    lifetime: Mutex<TokenLifetime>,
    /// By token: until when, and for which client.
    issued: Mutex<HashMap<String, (Instant, usize)>>,
    /// Refund requests by client, in the same order.
    spent: Accepted<()>,
}

impl Tokens {
    fn new(clients: Vec<Credential>, lifetime: TokenLifetime) -> Tokens {
        Tokens {
            spent: Accepted::new(clients.iter().map(|_| ())),
            clients: Accepted::new(clients),
            lifetime: Mutex::new(lifetime),
            issued: Mutex::default(),
        }
    }

    /// A new token, and what the answer says of its end.
    fn issue(&self, client: usize) -> (String, u64) {
        let TokenLifetime { lasts, shown } = *lock(&self.lifetime);
        // The page calls it a JWT; to a client it is opaque, and here it is random.
        let part = || {
            let random = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat();
            BASE64_URL_SAFE_NO_PAD.encode(random)
        };
        let token = format!("{}.{}.{}", part(), part(), part());
        let now = Instant::now();
        let mut issued = lock(&self.issued);
        issued.retain(|_, (until, _)| *until > now);
        issued.insert(token.clone(), (now + lasts, client));
        let end = SystemTime::now() + lasts;
        let since_epoch = end.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let expires_in = match shown {
            ExpiresIn::Seconds => lasts.as_secs(),
            ExpiresIn::EpochSeconds => since_epoch.as_secs(),
            ExpiresIn::EpochMilliseconds => {
                u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
            }
        };
        (token, expires_in)
    }

    /// The client whose token this is, while it is in force.
    fn holder(&self, token: &str) -> Option<usize> {
        let (until, client) = *lock(&self.issued).get(token)?;
        (until > Instant::now() && self.spent.is_accepted(client)).then_some(client)
    }
}

/// The token endpoint.
struct BogToken {
    tokens: Arc<Tokens>,
}

/// Keycloak's shape, inferred from the path.
fn oauth_error(status: u16, error: &str, description: &str) -> Reply {
    let body = Json::object([
        ("error", error.into()),
        ("error_description", description.into()),
    ]);
    Reply::of(status, &body).with("cache-control", "no-store")
}

impl Application for BogToken {
    fn method(&self, path: &str) -> Option<&'static str> {
        (path == TOKEN).then_some("POST")
    }

    fn refusal(&self, status: u16, text: &str) -> Reply {
        oauth_error(status, "invalid_request", text)
    }

    fn answer(&self, request: &Received) -> Reply {
        if !request.content_type_is("application/x-www-form-urlencoded") {
            return self.refusal(
                415,
                "The content type is not application/x-www-form-urlencoded.",
            );
        }
        let client = request.basic().and_then(|(id, secret)| {
            let clients = &self.tokens.clients;
            clients.find(|client| client.account == id && client.secret == secret)
        });
        let Some(client) = client else {
            return oauth_error(
                401,
                "unauthorized_client",
                "Invalid client or Invalid client credentials",
            );
        };
        match request.body.as_slice() {
            b"grant_type=client_credentials" => {}
            body if body.starts_with(b"grant_type=") && !body.contains(&b'&') => {
                return oauth_error(400, "unsupported_grant_type", "Unsupported grant_type");
            }
            _ => return self.refusal(400, "The form is not grant_type=client_credentials alone."),
        }
        self.tokens.clients.count(client);
        let (token, expires_in) = self.tokens.issue(client);
        let body = Json::object([
            ("access_token", token.into()),
            ("token_type", "Bearer".into()),
            ("expires_in", expires_in.into()),
        ]);
        // RFC 6749, section 5.1.
        Reply::of(200, &body).with("cache-control", "no-store")
    }

    fn ledger(&self) -> Vec<Refunded> {
        Vec::new()
    }

    fn credentials(&self) -> &dyn Uses {
        &self.tokens.clients
    }
}

/// The endpoints of the refund and of its end.
struct Bog {
    tokens: Arc<Tokens>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// By path and key: "subsequent requests to the same API endpoint with the same
    /// Idempotency-Key header will result in the server returning the same status code and
    /// response body". The page does not say whether another order is the same endpoint; here
    /// it is another one, as its path is.
    replies: HashMap<(String, String), Reply>,
    actions: Vec<Action>,
    /// By order: the status that its latest details had.
    shown: HashMap<String, &'static str>,
    /// For new actions, see [`Action::patience`].
    patience: Option<u64>,
}

/// One refund of an order, accepted.
struct Action {
    id: String,
    order: String,
    amount: u64,
    whole: bool,
    channel: &'static str,
    /// It completes by itself after so many details of its order that do not have it.
    patience: Option<u64>,
    /// Until then it is in no details: there is no pending.
    end: Option<End>,
}

struct End {
    completed: bool,
    at: OffsetDateTime,
}

impl Action {
    fn end(&mut self, completed: bool) {
        let at = OffsetDateTime::now_utc();
        self.end = Some(End { completed, at });
    }

    /// As in `actions`. The codes are this simulator's own.
    fn json(&self, end: &End, exponent: u8) -> Json {
        let (status, code, description) = if end.completed {
            ("completed", "100", "Successful payment")
        } else {
            ("rejected", "107", "The refund was rejected by the issuer")
        };
        let action = if self.whole {
            "refund"
        } else {
            "partial_refund"
        };
        Json::object([
            ("action_id", self.id.as_str().into()),
            ("action", action.into()),
            ("request_channel", self.channel.into()),
            ("status", status.into()),
            ("amount", decimal(self.amount, exponent).into()),
            ("code", code.into()),
            ("code_description", description.into()),
            ("zoned_action_date", georgian(end.at).into()),
        ])
    }
}

/// `2026-11-22T12:00:00+04:00`
fn georgian(at: OffsetDateTime) -> String {
    let at = at + time::Duration::hours(4);
    let (hour, minute, second) = at.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}+04:00", at.date())
}

impl Bog {
    fn new(tokens: Arc<Tokens>) -> Bog {
        Bog {
            tokens,
            state: Mutex::default(),
        }
    }

    fn details(&self, state: &mut State, id: &str) -> Reply {
        let Some(order) = orders::by_id(Provider::Bog, id) else {
            return self.refusal(400, "Order not found");
        };
        let Order { exponent, .. } = order;
        let mut open = 0;
        let mut actions = Vec::new();
        for action in &mut state.actions {
            if action.order != order.id {
                continue;
            }
            match &mut action.patience {
                _ if action.end.is_some() => {}
                Some(0) => action.end(true),
                Some(patience) => *patience -= 1,
                None => {}
            }
            match &action.end {
                Some(end) => actions.push(action.json(end, exponent)),
                None => open += action.amount,
            }
        }
        let refunded = state.ledger.refunded(&order) - open;
        let status = match refunded {
            _ if open > 0 => "refund_requested",
            0 => "completed",
            _ if refunded < order.amount => "refunded_partially",
            _ => "refunded",
        };
        // The order's status lags behind: the first details that have an action still have the
        // status from before it.
        let before = match order.behaviour {
            Behaviour::AlreadyRefunded => status,
            _ => "completed",
        };
        let before = state
            .shown
            .insert(order.id.to_string(), status)
            .unwrap_or(before);
        let status = if open > 0 { status } else { before };
        let value = match status {
            "refund_requested" => "Refund requested",
            "refunded_partially" => "Partially refunded",
            "refunded" => "Refunded",
            _ => "Completed",
        };
        let money = |minor| Json::from(decimal(minor, exponent));
        let units = Json::object([
            ("request_amount", money(order.amount)),
            ("transfer_amount", money(order.amount - refunded)),
            ("refund_amount", money(refunded)),
            ("currency_code", order.currency.into()),
        ]);
        let body = Json::object([
            ("order_id", (&*order.id).into()),
            (
                "order_status",
                Json::object([("key", status.into()), ("value", value.into())]),
            ),
            ("purchase_units", units),
            (
                "actions",
                match actions.is_empty() {
                    true => Json::Null,
                    false => Json::Array(actions),
                },
            ),
        ]);
        Reply::of(200, &body)
    }

    fn refund(&self, state: &mut State, request: &Received, key: Option<&str>) -> Reply {
        if !request.content_type_is("application/json") {
            return self.refusal(415, "The content type is not application/json.");
        }
        let body = match Json::parse(&request.body) {
            Some(body @ Json::Object(_)) => body,
            _ => return self.refusal(400, "The body is not a JSON object."),
        };
        if let Some(name) = body.stranger(&["amount"]) {
            return self.refusal(400, &format!("Unknown parameter: {name}"));
        }
        let order = segment(&request.path, REFUND).and_then(|id| orders::by_id(Provider::Bog, &id));
        let Some(order) = order else {
            return self.refusal(404, "Order not found");
        };
        let left = state.ledger.left(&order);
        let amount = match amount(&body, &order) {
            Ok(amount) => amount.unwrap_or(left),
            Err(text) => return self.refusal(400, text),
        };
        if left == 0 {
            let body = Json::object([
                ("key", "already_refunded".into()),
                ("message", "Order is already refunded".into()),
            ]);
            return Reply::of(409, &body);
        }
        if amount > left {
            return self.refusal(400, "The amount exceeds what is left of the order");
        }
        match order.behaviour {
            Behaviour::Refuses => return self.refusal(400, "The refund was declined"),
            // "Full refunds are possible for ... BOG authorization, while partial refunds are
            // applicable only for a card, Apple Pay and Google Pay."
            Behaviour::WholeOnly if amount < order.amount => {
                return self.refusal(
                    400,
                    "Partial refund is not possible for this payment method",
                );
            }
            _ => {}
        }
        let action = state.accept(Some(request), &order, amount, key);
        state.shown.insert(order.id.to_string(), "refund_requested");
        Reply::of(
            200,
            &Json::object([
                ("key", "request_received".into()),
                ("message", "Refund request received".into()),
                ("action_id", action.into()),
            ]),
        )
    }
}

impl State {
    /// Books a refund, and names its action.
    fn accept(
        &mut self,
        request: Option<&Received>,
        order: &Order,
        amount: u64,
        key: Option<&str>,
    ) -> String {
        let id = Uuid::new_v4().to_string();
        self.ledger.book(request, order, amount, key, &id);
        self.actions.push(Action {
            id: id.clone(),
            order: order.id.to_string(),
            amount,
            whole: amount == order.amount,
            channel: match request {
                Some(_) => "public_api",
                None => "business_manager",
            },
            patience: self.patience,
            end: None,
        });
        id
    }
}

/// Minor units. The page's table has a number and its example a string: both pass. `null` is
/// neither.
fn amount(body: &Json, order: &Order) -> Result<Option<u64>, &'static str> {
    let text = match body.member("amount") {
        None => return Ok(None),
        Some(Json::Number(text) | Json::Text(text)) => text,
        Some(_) => return Err("amount is not a number"),
    };
    match minor_units(text, order.exponent, order.exponent) {
        None => Err("amount is not an amount of the order's currency"),
        Some(0) => Err("amount is not positive"),
        Some(amount) => Ok(Some(amount)),
    }
}

impl Application for Bog {
    fn method(&self, path: &str) -> Option<&'static str> {
        match (segment(path, REFUND), segment(path, RECEIPT)) {
            (Some(_), _) => Some("POST"),
            (None, Some(_)) => Some("GET"),
            (None, None) => None,
        }
    }

    fn refusal(&self, status: u16, text: &str) -> Reply {
        Reply::of(status, &Json::object([("message", text.into())]))
    }

    fn answer(&self, request: &Received) -> Reply {
        // The page's header table says Basic, its text and its example Bearer.
        let client = request
            .authorization("bearer")
            .and_then(|token| self.tokens.holder(token));
        let Some(client) = client else {
            return self
                .refusal(401, "Unauthorized")
                .with("www-authenticate", r#"Bearer error="invalid_token""#);
        };
        self.tokens.spent.count(client);
        let mut state = lock(&self.state);
        if let Some(order) = segment(&request.path, RECEIPT) {
            return self.details(&mut state, &order);
        }
        let key = match request.only("idempotency-key") {
            Ok(None) => return self.refund(&mut state, request, None),
            Ok(Some(key)) if is_uuid_v4(key) => key.to_ascii_lowercase(),
            Ok(Some(_)) | Err(()) => return self.refusal(400, "Idempotency-Key is not a UUID v4"),
        };
        let place = (request.path.clone(), key.clone());
        if let Some(reply) = state.replies.get(&place) {
            return reply.clone();
        }
        let reply = self.refund(&mut state, request, Some(&key));
        state.replies.insert(place, reply.clone());
        reply
    }

    fn ledger(&self) -> Vec<Refunded> {
        lock(&self.state).ledger.entries()
    }

    fn credentials(&self) -> &dyn Uses {
        &self.tokens.spent
    }

    fn settle(&self, refund: Option<&str>, succeeded: bool) -> usize {
        let State {
            ledger, actions, ..
        } = &mut *lock(&self.state);
        let mut settled = 0;
        for action in actions {
            if action.end.is_some() || refund.is_some_and(|id| id != action.id) {
                continue;
            }
            action.end(succeeded);
            if !succeeded {
                ledger.reject(&action.id);
            }
            settled += 1;
        }
        settled
    }

    fn refund_by_hand(&self, payment: &str, minor_units: u64, _tracking: &str) -> Option<String> {
        let mut state = lock(&self.state);
        let order = orders::by_id(Provider::Bog, payment)?;
        if !(1..=state.ledger.left(&order)).contains(&minor_units) {
            return None;
        }
        let id = state.accept(None, &order, minor_units, None);
        if let Some(action) = state.actions.last_mut() {
            action.end(true);
        }
        Some(id)
    }

    fn complete_after(&self, look_ups: Option<u64>) {
        lock(&self.state).patience = look_ups;
    }

    fn revoke_tokens(&self) {
        lock(&self.tokens.issued).clear();
    }

    fn set_token_lifetime(&self, lifetime: TokenLifetime) {
        *lock(&self.tokens.lifetime) = lifetime;
    }
}

fn is_uuid_v4(text: &str) -> bool {
    text.len() == uuid::fmt::Hyphenated::LENGTH
        && Uuid::try_parse(text)
            .is_ok_and(|uuid| uuid.get_version_num() == 4 && uuid.get_variant() == Variant::RFC4122)
}

fn start(options: &Options) -> Result<Vec<Arc<dyn Application>>, Error> {
    let clients = options.credentials.of(Provider::Bog);
    let tokens = Arc::new(Tokens::new(clients, options.token_lifetime));
    Ok(vec![
        Arc::new(Bog::new(tokens.clone())),
        Arc::new(BogToken { tokens }),
    ])
}

#[rustfmt::skip]
const ORDERS: &[Order] = &[
    order(Provider::Bog, "page", "bog-card-gel", 10_000, GEL, Behaviour::Succeeds),
    order(Provider::Bog, "kwd", "bog-card-kwd", 12_345, KWD, Behaviour::Succeeds),
    order(Provider::Bog, "jpy", "bog-card-jpy", 1_500, JPY, Behaviour::Succeeds),
    order(Provider::Bog, "eur", "bog-card-eur", 2_050, EUR, Behaviour::Succeeds),
    // Percent-encoded in the path: `ord%2F1%20x`.
    order(Provider::Bog, "encoded", "ord/1 x", 10_000, GEL, Behaviour::Succeeds),
    order(Provider::Bog, "whole-only", "bog-authorization", 10_000, GEL, Behaviour::WholeOnly),
    order(Provider::Bog, "refused", "bog-refused", 10_000, GEL, Behaviour::Refuses),
    order(Provider::Bog, "already-refunded", "bog-already-refunded", 10_000, GEL, Behaviour::AlreadyRefunded),
];

const ALREADY: &str = r#"{"key":"already_refunded","message":"Order is already refunded"}"#;
const ALREADY_BY_OAUTH: &str =
    r#"{"error":"already_refunded","error_description":"Order is already refunded"}"#;

fn ends(name: &str) -> Option<Ends> {
    Some(match name {
        "page" | "kwd" | "jpy" | "eur" | "encoded" => Ends::Pending,
        "whole-only" => {
            let text = "Partial refund is not possible for this payment method";
            Ends::Refused(Refusal::Rejected, 400, None, Some(text))
        }
        "refused" => Ends::Refused(
            Refusal::Rejected,
            400,
            None,
            Some("The refund was declined"),
        ),
        "already-refunded" => {
            let text = "Order is already refunded";
            Ends::Refused(Refusal::There, 409, Some("already_refunded"), Some(text))
        }
        _ => return None,
    })
}

const REPLIES: Replies = Replies {
    word: ("key", "request_received", ""),
    declined: &[],
    declined_else: None,
    pending: &[],
    unsure: &[],
    unlisted: &["received", "REQUEST_RECEIVED", ""],
    there: Some((
        "BOG `already_refunded`",
        &[
            (400, ALREADY),
            (409, ALREADY),
            (422, ALREADY),
            (400, ALREADY_BY_OAUTH),
            (409, ALREADY_BY_OAUTH),
            (422, ALREADY_BY_OAUTH),
        ],
    )),
    conflict_is_there: true,
    lists_refusals: true,
    // It echoes nothing.
    amounts: &[],
    currencies: &[],
    payments: &[],
    said: (Some("request_received"), "Refund request received"),
    time: None,
    words: &["/message"],
    with,
};

/// Where it puts words.
fn with(said: &str) -> Vec<(u16, Value, bool)> {
    vec![
        (400, json!({"key": "bad", "message": said}), true),
        (400, json!({"key": said, "message": "bad"}), true),
        (422, json!({"error": said}), true),
        (
            404,
            json!({"error": "bad", "error_description": said}),
            true,
        ),
        (500, json!({"message": said}), true),
        (403, json!({"message": said}), true),
        (429, json!({"message": said}), true),
        (
            409,
            json!({"key": "already_refunded", "message": said}),
            true,
        ),
        (200, json!({"key": said, "message": said}), true),
        (
            200,
            json!({"key": "request_received", "message": said, "action_id": "a-1"}),
            true,
        ),
        (400, json!({"errors": [{"text": said}]}), false),
        (400, json!(said), false),
    ]
}

fn sandbox(ending: Ending) -> Behaviour {
    match ending {
        Ending::Declined => Behaviour::Refuses,
        Ending::AlreadyRefunded => Behaviour::AlreadyRefunded,
        _ => Behaviour::Succeeds,
    }
}

pub(super) const DECLARATION: Declaration = Declaration {
    title: "Bank of Georgia",
    short: "BOG",
    servers: &[
        Server {
            cluster: "bog",
            host: "api.bog.ge",
            success: r#"{"key":"request_received","message":"Refund request received","action_id":"5b666901-eb05-4f83-abeb-8311e175f337"}"#,
            errors: &[
                r#"{"message":"The refund was declined"}"#,
                r#"{"error":"invalid_request","error_description":"The refund was declined"}"#,
                r#"{"error":"invalid_request"}"#,
                "The refund was declined",
                "",
                HTML,
            ],
            altered: &[
                ("/key", Some("\"request_queued\"")),
                ("/key", Some("\"already_refunded\"")),
                ("/key", None),
                ("/action_id", None),
            ],
        },
        Server {
            cluster: "bog-token",
            host: "oauth2.bog.ge",
            success: r#"{"access_token":"a-token","token_type":"Bearer","expires_in":300}"#,
            errors: &[
                r#"{"error":"unauthorized_client","error_description":"Invalid client"}"#,
                r#"{"error":"invalid_request"}"#,
                "",
                HTML,
            ],
            altered: &[
                ("/access_token", None),
                ("/access_token", Some("\"\"")),
                ("/token_type", Some("\"mac\"")),
                ("/expires_in", Some("1")),
                ("/expires_in", None),
            ],
        },
    ],
    secret: Secret {
        account: "10001",
        name: "bog-client-secret",
        at: "/token/client_secret",
        scheme: Some("Bearer"),
    },
    accepts: &[("refund-demo", "bog-demo-secret")],
    key: Some(Key {
        place: Place::Header("idempotency-key"),
        versions: &[4],
    }),
    keeps_keys: false,
    path: (REFUND, ""),
    names: "id in the path",
    answers: "pending",
    nameless: &["pending"],
    texts: &[],
    replies: REPLIES,
    by_id_alone: true,
    by_key_alone: false,
    proves_absence: false,
    leaves_open: None,
    currency: GEL,
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
    demo: "bog-card-gel",
    start,
};
