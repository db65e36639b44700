//! Bank of Georgia: the refund, and the token that it needs.
//!
//! Source: the vendor's page "Refund" (api.bog.ge), and its "Authentication" page for the token. No vendor table of errors
//! exists: every refusal here but the 409 is `{"message"}` under the status that HTTP has for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use percent_encoding::percent_decode_str;
use uuid::{Uuid, Variant};

use crate::amount::minor_units;
use crate::credentials::{Accepted, Uses};
use crate::json::Json;
use crate::ledger::Ledger;
use crate::orders::{self, Behaviour, Order};
use crate::server::Application;
use crate::{ExpiresIn, OAuthClient, Provider, Received, Refunded, Reply, TokenLifetime, lock};

const REFUND: &str = "/payments/v1/payment/refund/";
const TOKEN: &str = "/auth/realms/bog/protocol/openid-connect/token";

/// The tokens in force, shared by the two endpoints.
pub(crate) struct Tokens {
    clients: Accepted<OAuthClient>,
    lifetime: Mutex<TokenLifetime>,
    /// By token: until when, and for which client.
    issued: Mutex<HashMap<String, (Instant, usize)>>,
    /// Refund requests by client, in the same order.
    spent: Accepted<()>,
}

impl Tokens {
    pub fn new(clients: Vec<OAuthClient>, lifetime: TokenLifetime) -> Tokens {
        Tokens {
            spent: Accepted::new(clients.iter().map(|_| ())),
            clients: Accepted::new(clients),
            lifetime: Mutex::new(lifetime),
            issued: Mutex::default(),
        }
    }

    pub fn set_lifetime(&self, lifetime: TokenLifetime) {
        *lock(&self.lifetime) = lifetime;
    }

    pub fn revoke_all(&self) {
        lock(&self.issued).clear();
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
pub(crate) struct BogToken {
    pub tokens: Arc<Tokens>,
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
    fn serves(&self, path: &str) -> bool {
        path == TOKEN
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
            clients.find(|client| client.id == id && client.secret == secret)
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

/// The refund endpoint.
pub(crate) struct Bog {
    pub tokens: Arc<Tokens>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// By path and key: "subsequent requests to the same API endpoint with the same Idempotency-Key header will result in the
    /// server returning the same status code and response body". The page does not say whether another order is the same
    /// endpoint; here it is another one, as its path is.
    replies: HashMap<(String, String), Reply>,
}

impl Bog {
    pub fn new(tokens: Arc<Tokens>) -> Bog {
        Bog {
            tokens,
            state: Mutex::default(),
        }
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
        let id = request.path.strip_prefix(REFUND).unwrap_or_default();
        let order = percent_decode_str(id)
            .decode_utf8()
            .ok()
            .and_then(|id| orders::by_id(Provider::Bog, &id));
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
            // "Full refunds are possible for ... BOG authorization, while partial refunds are applicable only for a card, Apple
            // Pay and Google Pay."
            Behaviour::WholeOnly if amount < order.amount => {
                return self.refusal(
                    400,
                    "Partial refund is not possible for this payment method",
                );
            }
            _ => {}
        }
        let action = Uuid::new_v4().to_string();
        state.ledger.book(request, &order, amount, key, &action);
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

/// Minor units. The page's table has a number and its example a string: both pass. `null` is neither.
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
    fn serves(&self, path: &str) -> bool {
        path.strip_prefix(REFUND)
            .is_some_and(|id| !id.is_empty() && !id.contains(['/', '?']))
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
}

fn is_uuid_v4(text: &str) -> bool {
    text.len() == uuid::fmt::Hyphenated::LENGTH
        && Uuid::try_parse(text)
            .is_ok_and(|uuid| uuid.get_version_num() == 4 && uuid.get_variant() == Variant::RFC4122)
}
