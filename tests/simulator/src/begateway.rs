//! beGateway.
//!
//! Source: the vendor's page "Refund" (`POST https://api.begateway.com/beyag/transactions/refunds`). The `RequestID` header,
//! kept for 24 hours, is on its page of idempotency; the shapes of errors are those seen in public clients.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::credentials::{Accepted, Uses};
use crate::json::Json;
use crate::ledger::Ledger;
use crate::orders::{self, Behaviour, ErrorShape, Order};
use crate::server::Application;
use crate::{Provider, Received, Refunded, Reply, Shop, lock};

const LONGEST_REASON: usize = 255;
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Begateway {
    shops: Accepted<Shop>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// By `RequestID`.
    replies: HashMap<String, (Instant, Reply)>,
}

impl Begateway {
    pub fn new(shops: Vec<Shop>) -> Begateway {
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
        let hex = || Uuid::new_v4().simple().to_string();
        let uid = format!("2-{:.10}", hex());
        if !matches!(order.behaviour, Behaviour::Answers { booked: false, .. }) {
            state.ledger.book(request, &order, amount, key, &uid);
        }
        let receipt = format!(
            "https://demo-backoffice.begateway.com/customer/transactions/{uid}/{}{}",
            hex(),
            hex()
        );
        Reply::of(200, &transaction(&order, &call, amount, &uid, receipt))
    }
}

struct Call<'a> {
    parent: &'a str,
    amount: Option<u64>,
    tracking: Option<&'a str>,
}

/// The member at fault and what is wrong with it. The page gives types; how a wrong one is refused it does not say.
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
    fn serves(&self, path: &str) -> bool {
        path == "/beyag/transactions/refunds"
    }

    fn refusal(&self, status: u16, text: &str) -> Reply {
        Reply::of(status, &Json::object([("message", text.into())]))
    }

    fn answer(&self, request: &Received) -> Reply {
        let shop = request.basic().and_then(|(id, secret)| {
            self.shops
                .find(|shop| shop.id == id && shop.secret == secret)
        });
        let Some(shop) = shop else {
            return self
                .refusal(401, "Unauthorized")
                .with("www-authenticate", "Basic");
        };
        self.shops.count(shop);
        let mut state = lock(&self.state);
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

/// Every member of the page's table, but that `tracking_id` needs one in the request, and `paid_at` a payment.
fn transaction(order: &Order, call: &Call<'_>, amount: u64, uid: &str, receipt: String) -> Json {
    let status = match order.behaviour {
        Behaviour::Answers { status, .. } => status,
        _ => "successful",
    };
    let older = order.behaviour == Behaviour::Older;
    let message: Json = match status {
        _ if older => Json::Null,
        "successful" => "The operation was successfully processed".into(),
        "pending" | "incomplete" => "The operation is being processed".into(),
        _ => "The operation was not processed".into(),
    };
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
    if let Some(tracking) = call.tracking {
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
    Json::object([("transaction", transaction)])
}
