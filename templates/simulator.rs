//! NAME.
//!
//! TO BE WRITTEN: the vendor's pages, and what they leave open. Written from these, and not from the dialect.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::credentials::{Accepted, Uses};
use crate::json::Json;
use crate::ledger::Ledger;
use crate::orders::{self, Behaviour, JPY, KWD, Order, USD, order};
use crate::provider::HTML;
use crate::sandbox::Sandbox;
use crate::server::Application;
use crate::{
    Credential, Declaration, Ends, Error, Fresh, Key, Options, Place, Provider, Received, Refunded,
    Replies, Reply, Secret, Server, lock, segment,
};

const PAYMENTS: &str = "/payments/";

struct TYPE {
    keys: Accepted<Credential>,
    ledger: Mutex<Ledger>,
}

impl Application for TYPE {
    // TO BE WRITTEN: the page's paths, each with its method.
    fn method(&self, path: &str) -> Option<&'static str> {
        segment(path, PAYMENTS).map(|_| "GET")
    }

    fn refusal(&self, status: u16, text: &str) -> Reply {
        Reply::of(status, &Json::object([("message", text.into())]))
    }

    fn answer(&self, request: &Received) -> Reply {
        let key = request.authorization("bearer");
        let key = key.and_then(|key| self.keys.find(|known| known.secret == key));
        let Some(key) = key else {
            return self.refusal(401, "Unauthorized");
        };
        self.keys.count(key);
        // TO BE WRITTEN: every check of the page, the refund (`Ledger::book`), its replay under its key, and the look-up.
        let id = segment(&request.path, PAYMENTS);
        match id.and_then(|id| orders::by_id(Provider::TYPE, &id)) {
            Some(_) => self.refusal(501, "It is not written yet."),
            None => self.refusal(404, "Not found."),
        }
    }

    fn ledger(&self) -> Vec<Refunded> {
        lock(&self.ledger).entries()
    }

    fn credentials(&self) -> &dyn Uses {
        &self.keys
    }

    // TO BE WRITTEN: `refund_by_hand`, and `settle` where a refund can end later.
}

fn start(options: &Options) -> Result<Vec<Arc<dyn Application>>, Error> {
    Ok(vec![Arc::new(TYPE {
        keys: Accepted::new(options.credentials.of(Provider::TYPE)),
        ledger: Mutex::default(),
    })])
}

// TO BE WRITTEN: an order for each end that the page knows.
#[rustfmt::skip]
const ORDERS: &[Order] = &[
    order(Provider::TYPE, "page", "payment-1", 10_000, USD, Behaviour::Succeeds),
    order(Provider::TYPE, "kwd", "payment-kwd", 12_345, KWD, Behaviour::Succeeds),
    order(Provider::TYPE, "jpy", "payment-jpy", 1_500, JPY, Behaviour::Succeeds),
];

fn ends(name: &str) -> Option<Ends> {
    Some(match name {
        "page" | "kwd" | "jpy" => Ends::Succeeded,
        _ => return None,
    })
}

// TO BE WRITTEN: what the page says, for the suites. What the members mean stands in `provider.rs`.
const REPLIES: Replies = Replies {
    word: ("status", "succeeded", ""),
    declined: &[],
    declined_else: None,
    pending: &[],
    unsure: &[],
    unlisted: &["queued", "Succeeded", ""],
    there: None,
    conflict_is_there: false,
    lists_refusals: true,
    amounts: &[],
    currencies: &[],
    payments: &[],
    said: (None, "TO BE WRITTEN"),
    time: None,
    words: &[],
    with,
};

/// Where it puts words.
fn with(said: &str) -> Vec<(u16, Value, bool)> {
    vec![(400, json!({"message": said}), true)]
}

pub(super) const DECLARATION: Declaration = Declaration {
    title: "TYPE",
    short: "TYPE",
    servers: &[Server {
        cluster: "NAME",
        host: "NAME.invalid",
        success: r#"{"id":"refund-1","status":"succeeded","amount":1000,"currency":"USD"}"#,
        errors: &[r#"{"message":"The refund was declined"}"#, "", HTML],
        altered: &[("/status", Some("\"queued\"")), ("/status", None)],
    }],
    secret: Secret {
        account: "",
        name: "NAME-api-key",
        at: "/api_key",
        scheme: Some("Bearer"),
    },
    accepts: &[("", "NAME-demo-key")],
    key: Some(Key {
        place: Place::Header("idempotency-key"),
        versions: &[4],
    }),
    keeps_keys: false,
    path: (PAYMENTS, "/refunds"),
    names: "id in the path",
    answers: "succeeded",
    nameless: &[],
    texts: &[],
    replies: REPLIES,
    by_id_alone: false,
    by_key_alone: false,
    proves_absence: false,
    leaves_open: None,
    currency: USD,
    fresh: Fresh {
        id: |nth| format!("order-{nth}"),
        is: |id| id.starts_with("order-"),
        reference: |_| String::new(),
    },
    orders: ORDERS,
    ends,
    // What a refund meets whose payment is named `sandbox-…`: docs/sandbox.md.
    sandbox: Sandbox {
        is_reference: false,
        behaviour: |_| Behaviour::Succeeds,
        pending: None,
    },
    demo: "payment-1",
    start,
};
