//! BBMSL.
//!
//! Source: the vendor's pages "Refund an order" (`/hosted-checkout/refund`) and "Query an order"
//! (`/hosted-checkout/query`), and its page of signatures: SHA256withRSA over the text of
//! `request`. `0000` is the only response code it publishes; the others are this simulator's own,
//! and so is the choice of HTTP status: 400 for what is not a request at all, 401 for a signature,
//! 200 for the rest.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rsa::RsaPublicKey;
use rsa::pkcs1v15::{Signature, VerifyingKey};
use rsa::pkcs8::DecodePublicKey as _;
use rsa::sha2::Sha256;
use rsa::signature::Verifier as _;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::amount::{decimal, minor_units};
use crate::credentials::{Accepted, Uses};
use crate::json::Json;
use crate::ledger::Ledger;
use crate::orders::{self, Behaviour, FRESH_NUMBER, HKD, JPY, KWD, Order, USD, answers};
use crate::provider::HTML;
use crate::sandbox::{Ending, Sandbox};
use crate::server::Application;
use crate::{
    Declaration, Ends, Error, Fault, Fresh, Options, Provider, Received, Refunded, Refusal,
    Replies, Reply, Secret, Server, Text, lock,
};

const REFUND: &str = "/hosted-checkout/refund";
const QUERY: &str = "/hosted-checkout/query";

const MALFORMED: &str = "9001";
const SIGNATURE: &str = "9002";
const PARAMETER: &str = "9003";
const NOT_FOUND: &str = "9004";
const REFUNDED_BEFORE: &str = "9005";
const TOO_MUCH: &str = "9006";
const NO_BALANCE: &str = "9007";

struct Bbmsl {
    /// `merchantId` and the public key registered for it.
    merchants: Accepted<(String, RsaPublicKey)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    next: u64,
}

struct Call {
    named: Named,
    /// As written in the request.
    written: String,
    amount: u64,
}

/// The part that is the same in both requests.
struct Named {
    merchant: String,
    order: Order,
}

impl Bbmsl {
    fn new(merchants: Vec<(String, RsaPublicKey)>) -> Bbmsl {
        Bbmsl {
            merchants: Accepted::new(merchants),
            state: Mutex::default(),
        }
    }

    /// The text that was signed, and the place of the key that signed it.
    fn verified(&self, request: &Received) -> Result<(Json, usize), Reply> {
        let malformed = |text| refused(400, MALFORMED, text);
        let Some(outer) = Json::parse(&request.body) else {
            return Err(malformed("The body is not JSON"));
        };
        if outer.stranger(&["request", "signature"]).is_some() {
            return Err(malformed("Unknown parameter beside request and signature"));
        }
        let (Some(Json::Text(text)), Some(Json::Text(signature))) =
            (outer.member("request"), outer.member("signature"))
        else {
            return Err(malformed("request and signature are not two strings"));
        };
        let signature = BASE64_STANDARD
            .decode(signature)
            .ok()
            .and_then(|bytes| Signature::try_from(bytes.as_slice()).ok());
        let Some(signature) = signature else {
            return Err(refused(401, SIGNATURE, "Invalid signature"));
        };
        // The bytes as they came, before anyone reads them as JSON. Which merchant it is stands in
        // the text, so that a key of another merchant is found out below.
        let inner = Json::parse(text.as_bytes());
        let claimed = inner.as_ref().and_then(|inner| merchant(inner));
        let key = self.merchants.find(|(merchant, key)| {
            claimed.is_none_or(|claimed| claimed == merchant)
                && VerifyingKey::<Sha256>::new(key.clone())
                    .verify(text.as_bytes(), &signature)
                    .is_ok()
        });
        let Some(key) = key else {
            return Err(refused(401, SIGNATURE, "Invalid signature"));
        };
        match inner {
            Some(inner @ Json::Object(_)) => Ok((inner, key)),
            _ => Err(malformed("request is not the text of a JSON object")),
        }
    }
}

/// The table says String, the example has a number.
fn merchant(inner: &Json) -> Option<&str> {
    match inner.member("merchantId") {
        Some(Json::Number(id) | Json::Text(id)) => Some(id),
        _ => None,
    }
}

fn wrong(text: &str) -> Reply {
    refused(200, PARAMETER, text)
}

/// Checks that only these parameters are there.
fn only(inner: &Json, known: &[&str]) -> Result<(), Reply> {
    match inner.stranger(known) {
        Some(name) => Err(wrong(&format!("Unknown parameter {name}"))),
        None => Ok(()),
    }
}

/// Checks the parameters that name an order one by one against the page's table.
fn named(inner: &Json) -> Result<Named, Reply> {
    let Some(merchant) = merchant(inner) else {
        return Err(wrong("merchantId is missing"));
    };
    let by_id = match inner.member("orderId") {
        None => None,
        Some(Json::Number(id)) if id.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(orders::by_id(Provider::Bbmsl, id))
        }
        Some(_) => return Err(wrong("orderId is not a number")),
    };
    let by_reference = match inner.member("merchantReference") {
        None => None,
        Some(Json::Text(reference)) if (1..=64).contains(&reference.chars().count()) => {
            Some(by_reference(reference))
        }
        Some(_) => return Err(wrong("merchantReference is not a String(64)")),
    };
    let order = match (by_id, by_reference) {
        (None, None) => return Err(wrong("Neither orderId nor merchantReference is there")),
        (Some(order), None) | (None, Some(order)) => order,
        // The page does not say what two different orders are.
        (Some(one), Some(other)) => one.filter(|one| other.is_some_and(|other| other.id == one.id)),
    };
    let Some(order) = order else {
        return Err(refused(200, NOT_FOUND, "Order not found"));
    };
    Ok(Named {
        merchant: merchant.to_owned(),
        order,
    })
}

/// A query: the page's parameters, in the page's order.
fn read_query(inner: &Json) -> Result<Named, Reply> {
    let known = ["merchantId", "orderId", "merchantReference"];
    only(inner, &known)?;
    if let Json::Object(members) = inner {
        let place = |(name, _): &(String, Json)| known.iter().position(|known| known == name);
        if !members.is_sorted_by_key(place) {
            return Err(wrong("The parameters are not in order"));
        }
    }
    named(inner)
}

/// A refund.
fn read(inner: &Json) -> Result<Call, Reply> {
    only(
        inner,
        &["merchantId", "orderId", "merchantReference", "amount"],
    )?;
    let named = named(inner)?;
    let order = &named.order;
    let Some(Json::Number(written)) = inner.member("amount") else {
        return Err(wrong("amount is not a number"));
    };
    let amount = number_9_2(written)
        .then(|| minor_units(written, order.exponent, 2))
        .flatten()
        .filter(|amount| *amount > 0);
    let Some(amount) = amount else {
        return Err(wrong("amount is not a positive Number(9,2)"));
    };
    Ok(Call {
        written: written.clone(),
        amount,
        named,
    })
}

/// Nine digits, two of them decimals.
fn number_9_2(text: &str) -> bool {
    text.split('.').next().is_some_and(|whole| whole.len() <= 7)
        && minor_units(text, 2, 2).is_some()
}

fn refused(status: u16, code: &str, text: &str) -> Reply {
    let body = Json::object([("responseCode", code.into()), ("message", text.into())]);
    Reply::of(status, &body)
}

impl Application for Bbmsl {
    fn method(&self, path: &str) -> Option<&'static str> {
        [REFUND, QUERY].contains(&path).then_some("POST")
    }

    fn refusal(&self, status: u16, text: &str) -> Reply {
        refused(status, MALFORMED, text)
    }

    fn answer(&self, request: &Received) -> Reply {
        if !request.content_type_is("application/json") {
            return self.refusal(415, "The content type is not application/json.");
        }
        let (inner, key) = match self.verified(request) {
            Ok(verified) => verified,
            Err(refusal) => return refusal,
        };
        self.merchants.count(key);
        if request.path == QUERY {
            return match read_query(&inner) {
                Ok(named) => found(&named, lock(&self.state).ledger.refunded(&named.order)),
                Err(refusal) => refusal,
            };
        }
        let call = match read(&inner) {
            Ok(call) => call,
            Err(refusal) => return refusal,
        };
        let mut state = lock(&self.state);
        let Call { named, amount, .. } = &call;
        let order = &named.order;
        // "Refund supports both full and partial amounts but can only be performed once per order."
        if state.ledger.refunded(order) > 0 {
            return refused(200, REFUNDED_BEFORE, "The order was refunded before");
        }
        if *amount > order.amount {
            return refused(200, TOO_MUCH, "The amount exceeds the order's");
        }
        // "BBMSL approves the refund only when your merchant account has sufficient unsettled
        // balance."
        if order.behaviour == Behaviour::Refuses {
            return refused(200, NO_BALANCE, "Insufficient unsettled balance");
        }
        let id = state.next_id();
        if !matches!(order.behaviour, Behaviour::Answers { booked: false, .. }) {
            let request = Some(request);
            let refund = id.to_string();
            state.ledger.book(request, order, *amount, None, &refund);
        }
        Reply::of(200, &answer(&call, state.ledger.refunded(order), id))
    }

    fn ledger(&self) -> Vec<Refunded> {
        lock(&self.state).ledger.entries()
    }

    fn credentials(&self) -> &dyn Uses {
        &self.merchants
    }

    fn refund_by_hand(&self, payment: &str, minor_units: u64, _tracking: &str) -> Option<String> {
        let mut state = lock(&self.state);
        let order = orders::by_id(Provider::Bbmsl, payment)?;
        if state.ledger.refunded(&order) > 0 || !(1..=order.amount).contains(&minor_units) {
            return None;
        }
        let id = state.next_id().to_string();
        state.ledger.book(None, &order, minor_units, None, &id);
        Some(id)
    }
}

impl State {
    /// Of a transaction.
    fn next_id(&mut self) -> u64 {
        self.next += 1;
        3757 + self.next
    }
}

/// `2022-06-21T19:00:12.000+00:00`
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let (hour, minute, second, milli) = now.to_hms_milli();
    format!(
        "{}T{hour:02}:{minute:02}:{second:02}.{milli:03}+00:00",
        now.date()
    )
}

/// The page's example, with this order's own values. `message` is mandatory in the table and
/// missing from the example: it is missing here for the example's own order. `transaction.currency`
/// is in the example alone.
fn answer(call: &Call, refunded: u64, id: u64) -> Json {
    let Named { order, merchant } = &call.named;
    let status = match order.behaviour {
        Behaviour::Answers { status, .. } => status,
        _ => "SUCCESS",
    };
    let mut answer = Json::object([("responseCode", "0000".into())]);
    if order.name != "page" {
        answer.add("message", "Success");
    }
    let refund = Json::object([
        ("id", id.into()),
        ("merchantId", id_or_text(merchant)),
        ("type", "REFUND".into()),
        // As it came: the example has 10, not 10.00.
        ("amount", Json::number(&call.written)),
        ("currency", order.currency.into()),
        ("status", status.into()),
        ("maskedPan", "400000XXXXXX0028".into()),
        ("stan", format!("S{}", id - 616).into()),
    ]);
    answer.add("order", paid(&call.named, refunded));
    answer.add("transaction", refund);
    answer
}

/// The answer of a query: the order as in a refund's answer, and no transaction.
fn found(named: &Named, refunded: u64) -> Reply {
    let answer = Json::object([
        ("responseCode", "0000".into()),
        ("message", "Success".into()),
        ("order", paid(named, refunded)),
    ]);
    Reply::of(200, &answer)
}

fn id_or_text(text: &str) -> Json {
    match text.parse::<u64>() {
        Ok(number) => number.into(),
        Err(_) => text.into(),
    }
}

fn paid(Named { order, merchant }: &Named, refunded: u64) -> Json {
    let state = match order.behaviour {
        Behaviour::Answers { .. } => "SUCCESS",
        _ if refunded == 0 => "SUCCESS",
        _ => "REFUNDED",
    };
    let amount = |minor| Json::number(two_decimals(minor, order.exponent));
    Json::object([
        ("id", Json::number(&*order.id)),
        ("merchantId", id_or_text(merchant)),
        ("merchantReference", (&*order.reference).into()),
        ("currency", order.currency.into()),
        ("amount", amount(order.amount)),
        ("netAmount", amount(order.amount - refunded)),
        ("cardType", "VISA".into()),
        ("email", "".into()),
        ("createTime", "2022-06-21T13:13:10.000+00:00".into()),
        ("updateTime", now().into()),
        ("status", state.into()),
        ("recurring", Json::Bool(false)),
    ])
}

/// `15.00`, whatever the currency: the page knows two decimals. A third one is never there, as the
/// orders have none.
fn two_decimals(minor: u64, exponent: u8) -> String {
    match exponent {
        0 => format!("{minor}.00"),
        3 => decimal(minor / 10, 2),
        _ => decimal(minor, 2),
    }
}

/// The fresh orders' references.
const FRESH: &str = "order-";

fn by_reference(reference: &str) -> Option<Order> {
    orders::by_reference(Provider::Bbmsl, reference, |fresh| {
        fresh.strip_prefix(FRESH)
    })
}

/// Nothing starts with a key that cannot be read.
fn start(options: &Options) -> Result<Vec<Arc<dyn Application>>, Error> {
    let merchants = options.credentials.of(Provider::Bbmsl).into_iter();
    let merchants = merchants.map(|merchant| {
        let key = RsaPublicKey::from_public_key_pem(&merchant.secret);
        let key = key.map_err(|_| Error::Credential(Provider::Bbmsl))?;
        Ok((merchant.account, key))
    });
    let merchants = merchants.collect::<Result<_, Error>>()?;
    Ok(vec![Arc::new(Bbmsl::new(merchants))])
}

const fn bbmsl(
    name: &'static str,
    id: &'static str,
    reference: &'static str,
    amount: u64,
    (currency, exponent): (&'static str, u8),
    behaviour: Behaviour,
) -> Order {
    Order {
        provider: Provider::Bbmsl,
        name,
        id: Cow::Borrowed(id),
        reference: Cow::Borrowed(reference),
        amount,
        currency,
        exponent,
        behaviour,
    }
}

#[rustfmt::skip]
const ORDERS: &[Order] = &[
    bbmsl("page", "4922", "1655817171", 1_500, USD, Behaviour::Succeeds),
    bbmsl("hkd", "4923", "ref-hkd", 10_000, HKD, Behaviour::Succeeds),
    // Number(9,2) has no third decimal: only tens of fils can be refunded.
    bbmsl("kwd", "4924", "ref-kwd", 12_340, KWD, Behaviour::Succeeds),
    bbmsl("jpy", "4925", "ref-jpy", 1_500, JPY, Behaviour::Succeeds),
    bbmsl("declined", "4926", "ref-declined", 10_000, HKD, answers("DECLINED", false)),
    bbmsl("strange", "4927", "ref-strange", 10_000, HKD, answers("PROCESSING", true)),
    bbmsl("refused", "4928", "ref-no-balance", 10_000, HKD, Behaviour::Refuses),
    bbmsl("already-refunded", "4929", "ref-already-refunded", 10_000, HKD, Behaviour::AlreadyRefunded),
];

fn ends(name: &str) -> Option<Ends> {
    Some(match name {
        "page" | "hkd" | "kwd" | "jpy" => Ends::Succeeded,
        "declined" => Ends::Refused(Refusal::Declined, 200, Some("0000"), Some("Success")),
        "strange" => Ends::Refused(Refusal::Unreadable, 200, Some("0000"), Some("Success")),
        "refused" => {
            let text = "Insufficient unsettled balance";
            Ends::Refused(Refusal::There, 200, Some("9007"), Some(text))
        }
        "already-refunded" => {
            let text = "The order was refunded before";
            Ends::Refused(Refusal::There, 200, Some("9005"), Some(text))
        }
        _ => return None,
    })
}

const REPLIES: Replies = Replies {
    word: ("status", "SUCCESS", ""),
    declined: &["DECLINED"],
    declined_else: Some((
        "a `responseCode` that is configured as declined",
        200,
        r#"{"responseCode":"9007","message":"Insufficient unsettled balance"}"#,
    )),
    pending: &[],
    unsure: &[],
    unlisted: &["PROCESSING", "Success", ""],
    there: Some((
        "a BBMSL `responseCode` that is not configured as declined",
        &[
            (200, r#"{"responseCode":"9001","message":"Refused"}"#),
            (200, r#"{"responseCode":"9005","message":"Refused"}"#),
            (200, r#"{"responseCode":"9999","message":"Refused"}"#),
            (400, r#"{"responseCode":"9001","message":"Refused"}"#),
            (400, r#"{"responseCode":"9005","message":"Refused"}"#),
            (400, r#"{"responseCode":"9999","message":"Refused"}"#),
            (422, r#"{"responseCode":"9001","message":"Refused"}"#),
            (422, r#"{"responseCode":"9005","message":"Refused"}"#),
            (422, r#"{"responseCode":"9999","message":"Refused"}"#),
        ],
    )),
    conflict_is_there: false,
    lists_refusals: false,
    amounts: &[
        (r#""REFUND","amount":10"#, r#""REFUND","amount":10.01"#),
        (r#""REFUND","amount":10"#, r#""REFUND","amount":1000"#),
    ],
    currencies: &[(
        r#""amount":10,"currency":"HKD""#,
        r#""amount":10,"currency":"USD""#,
    )],
    payments: &[
        (r#""id":%id%"#, r#""id":4922"#),
        ("order-%id%", "1655817171"),
    ],
    said: (Some("0000"), "Success"),
    time: None,
    words: &["/message"],
    with,
};

/// Where it puts words.
fn with(said: &str) -> Vec<(u16, Value, bool)> {
    vec![
        (200, json!({"responseCode": "9999", "message": said}), true),
        (200, json!({"responseCode": said, "message": "bad"}), true),
        (400, json!({"message": said}), true),
        (500, json!({"message": said}), true),
        (200, json!({"message": said}), true),
        (
            200,
            json!({"responseCode": "9999", "error": said, "order": {"status": said}}),
            false,
        ),
    ]
}

fn sandbox(ending: Ending) -> Behaviour {
    match ending {
        Ending::Declined => answers("DECLINED", false),
        Ending::AlreadyRefunded => Behaviour::AlreadyRefunded,
        _ => Behaviour::Succeeds,
    }
}

/// BBMSL has no word for a refund that is pending: one that nobody knows.
fn unknown_word() -> Fault {
    Fault::Altered {
        pointer: "/transaction/status".to_owned(),
        value: Some("\"PROCESSING\"".to_owned()),
    }
}

pub(super) const DECLARATION: Declaration = Declaration {
    title: "BBMSL",
    short: "BBMSL",
    servers: &[Server {
        cluster: "bbmsl",
        host: "payapi.prod.bbmsl.com",
        success: r#"{"responseCode":"0000","message":"Success","order":{"id":%id%,"merchantReference":"order-%id%","currency":"HKD","amount":100.00,"status":"REFUNDED"},"transaction":{"id":3758,"merchantId":3,"type":"REFUND","amount":10,"currency":"HKD","status":"SUCCESS"}}"#,
        errors: &["{}", r#"{"message":"Refused"}"#, "Refused", "", HTML],
        altered: &[
            ("/order/id", Some("1")),
            ("/transaction/amount", Some("999999")),
            ("/transaction/currency", Some("\"USD\"")),
            ("/transaction/status", Some("\"PROCESSING\"")),
            ("/transaction", None),
            ("/responseCode", Some("\"9999\"")),
            ("/responseCode", None),
        ],
    }],
    secret: Secret {
        account: "3",
        name: "bbmsl-key",
        at: "/signing/keys/0/private_key",
        scheme: None,
    },
    // None, so that every signature is refused: a private key in the repository would be one too
    // many.
    accepts: &[],
    key: None,
    keeps_keys: false,
    path: (REFUND, ""),
    names: "orderId in the signed text",
    answers: "succeeded",
    // Its order does not show its transactions.
    nameless: &["succeeded"],
    texts: &[Text {
        of: "/payment/reference",
        at: "/merchantReference",
        divider: "",
        names: true,
    }],
    replies: REPLIES,
    by_id_alone: false,
    by_key_alone: false,
    proves_absence: true,
    leaves_open: Some(("refund-ambiguous", true)),
    currency: HKD,
    fresh: Fresh {
        id: |nth| (FRESH_NUMBER + nth).to_string(),
        is: |_| false,
        reference: |id| format!("{FRESH}{id}"),
    },
    orders: ORDERS,
    ends,
    sandbox: Sandbox {
        is_reference: true,
        behaviour: sandbox,
        pending: Some(unknown_word),
    },
    demo: "4923",
    start,
};
