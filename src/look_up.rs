//! The canonical look-up: the query of `GET /v1/refunds`, checked.
//!
//! `provider` and the payment (`payment_id`, `payment_reference`) say where to ask; `id`, `key` and
//! `reference` say which refund, where a payment can have several.

use percent_encoding::percent_decode;

use crate::call::PaymentNames;
use crate::caller::CallerName;
use crate::config::{Config, ProviderEntry};
use crate::idempotency::{IdempotencyKey, ProviderKey};
use crate::problem::{Fault, MAX_TOLD};
use crate::provider::{Idempotency, Refunds, Wanted};
use crate::reader::Object;
use crate::refund::Payment;

/// The longest id of a refund that is taken, in characters: no provider gives one that is longer.
const MAX_ID: usize = 255;

/// A look-up without a fault, for a provider that can take it.
#[derive(Debug, Clone)]
pub struct LookUp {
    /// What is asked of the provider.
    pub wanted: Wanted,
    /// The caller's key of the refund.
    pub key: Option<IdempotencyKey>,
}

/// The parameters of a query, each once.
struct Query {
    parameters: Object<'static, String>,
    faults: Vec<Fault>,
}

impl Query {
    /// Takes a query apart as forms are written (`+` is a space).
    fn read(query: &[u8]) -> Self {
        let mut read = Query {
            parameters: Object::new("", "parameter"),
            faults: Vec::new(),
        };
        for pair in query.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.iter().position(|b| *b == b'=') {
                Some(at) => (pair.get(..at), pair.get(at.saturating_add(1)..)),
                None => (Some(pair), None),
            };
            let decode = |text: Option<&[u8]>| {
                let spaced: Vec<u8> = text
                    .unwrap_or_default()
                    .iter()
                    .map(|b| if *b == b'+' { b' ' } else { *b })
                    .collect();
                String::from_utf8(percent_decode(&spaced).collect())
            };
            match (decode(name), decode(value)) {
                (Ok(name), Ok(value)) => {
                    let twice = read.parameters.add(name.into(), value).err();
                    read.faults.extend(twice);
                }
                (Ok(name), Err(_)) => read.fault(&name, "This is not UTF-8."),
                (Err(_), _) => read.fault("", "A parameter's name is not UTF-8."),
            }
            // A query full of names is nobody's; what is wrong with it has been said.
            if read.faults.len() >= MAX_TOLD || read.parameters.members().len() >= MAX_TOLD {
                break;
            }
        }
        read
    }

    fn fault(&mut self, name: &str, sentence: &str) {
        let pointer = self.parameters.at(name);
        self.faults.push(Fault::at(pointer, sentence));
    }

    /// A parameter of 1 to `longest` characters, if it is there and right.
    fn text(&mut self, name: &'static str, longest: usize) -> Option<String> {
        let text = self.parameters.take(name)?;
        if (1..=longest).contains(&text.chars().count()) {
            return Some(text);
        }
        self.fault(name, &format!("This must have 1 to {longest} characters."));
        None
    }
}

/// The provider that a query (without its question mark) names, whatever else is wrong with it.
pub fn named_provider(query: &[u8]) -> Option<String> {
    Query::read(query).text("provider", MAX_ID)
}

impl LookUp {
    /// Reads a query (without its question mark), and finds all its faults at once. `caller`: whose
    /// keys are meant, where callers are told apart.
    pub fn read<'c>(
        query: &[u8],
        config: &'c Config,
        caller: Option<&CallerName>,
    ) -> Result<(LookUp, &'c ProviderEntry), Vec<Fault>> {
        let mut query = Query::read(query);
        let provider = query.text("provider", MAX_ID);
        let payment_id = query.text("payment_id", 128);
        let payment_reference = query.text("payment_reference", 64);
        let id = query.text("id", MAX_ID);
        let key_text = query.parameters.take("key");
        let reference = query.text("reference", 64);
        query.faults.extend(query.parameters.rest());
        if !query.parameters.had("provider") {
            query.fault("provider", "The provider's name is required.");
        }
        let entry = provider.and_then(|name| {
            let entry = config.provider(&name);
            if entry.is_none() {
                query.fault("provider", "No provider is configured under this name.");
            }
            entry
        });
        let key = key_text.and_then(|text| {
            let key = IdempotencyKey::from_header([text.as_bytes()].into_iter());
            if key.is_err() {
                query.fault(
                    "key",
                    "This must be the refund's Idempotency-Key: 1 to 255 visible ASCII characters.",
                );
            }
            key.ok().map(|key| key.of_caller(caller.cloned()))
        });
        for (name, text) in [("id", &id), ("reference", &reference)] {
            if matches!(text.as_deref(), Some("." | "..")) {
                query.fault(name, "This cannot be a dot segment.");
            }
        }
        let capabilities = entry.map(|entry| entry.dialect.capabilities());
        let had = |name| query.parameters.had(name);
        PaymentNames {
            id: payment_id.as_deref(),
            had_id: had("payment_id"),
            had_any: had("payment_id") || had("payment_reference"),
            pointers: ("/payment_id", "/payment_id"),
        }
        .check(
            capabilities.map(|capabilities| capabilities.payment),
            &mut query.faults,
        );
        if let Some(capabilities) = capabilities
            && capabilities.refunds != Refunds::One
            && !(had("id") || had("key") || had("reference") && capabilities.takes_reference)
        {
            query.fault(
                "key",
                if capabilities.takes_reference {
                    "A payment at this provider can have several refunds: say which by key, id or reference."
                } else {
                    "A payment at this provider can have several refunds, and it is sent no references: say which by key or id."
                },
            );
        }
        match entry {
            Some(entry) if query.faults.is_empty() => Ok((
                LookUp {
                    wanted: Wanted {
                        payment: Payment {
                            id: payment_id,
                            reference: payment_reference,
                        },
                        id,
                        key: key.as_ref().map(|key| provider_key(key, entry)),
                        referenced: reference.is_some(),
                        reference,
                    },
                    key,
                },
                entry,
            )),
            _ => Err(query.faults),
        }
    }
}

/// The key under which a refund goes to this provider.
pub fn provider_key(key: &IdempotencyKey, entry: &ProviderEntry) -> ProviderKey {
    let idempotency = entry.dialect.capabilities().idempotency;
    let takes_v7 = matches!(idempotency, Idempotency::Uuid { v7: true, .. });
    key.for_provider(&entry.name, takes_v7)
}
