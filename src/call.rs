//! A canonical refund call as it was written: read, checked, and told apart from others.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::value::RawValue;

use crate::config::{Config, ProviderEntry};
use crate::guard::{About, Digest};
use crate::json::{Json, Kind, Malformed, Members, Node};
use crate::money::{AmountFault, Currency, Money};
use crate::problem::{Fault, MAX_TOLD};
use crate::provider::{PaymentRule, Reason};
use crate::reader::Object;
use crate::refund::{Amount, Payment, Refund};

/// Why there is no refund call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unacceptable {
    /// The body is not JSON.
    Malformed,
    /// The body is JSON, with these faults.
    Invalid(Vec<Fault>),
}

impl From<Malformed> for Unacceptable {
    fn from(_: Malformed) -> Self {
        Unacceptable::Malformed
    }
}

impl Refund {
    /// The digest of the whole call as parsed and of whom it is for, for the guard: `10` and
    /// `10.00` are one amount.
    pub fn digest(&self, entry: &ProviderEntry) -> Digest {
        let (minor, currency) = match self.asked() {
            None => (0, ""),
            Some(money) => (money.minor, money.currency.code()),
        };
        let texts = [
            &self.payment.id,
            &self.payment.reference,
            &self.reason,
            &self.reference,
        ];
        // One that is left out is none of the texts that may stand there: those have a character at
        // least.
        let texts = texts.map(|text| text.as_deref().unwrap_or_default().as_bytes());
        let amount = minor.to_le_bytes();
        let parts = [
            entry.name.as_bytes(),
            &entry.merchant,
            &amount,
            currency.as_bytes(),
        ];
        Digest::of(parts.into_iter().chain(texts))
    }

    /// What the refund is about, for the guard.
    pub fn about(&self, entry: &ProviderEntry) -> About {
        About {
            amount: self.asked().map_or([0; 8], about_amount),
            ..about_payment(entry, &self.payment.id, &self.payment.reference)
        }
    }

    /// Reads a canonical call, and finds all its faults at once: the contract's rules, then those
    /// of the provider that it names.
    pub fn read<'c>(
        body: &[u8],
        config: &'c Config,
    ) -> Result<(Refund, &'c ProviderEntry), Unacceptable> {
        let mut faults = Vec::new();
        let json = Json::parse(body)?;
        let Some(members) = json.root().members().transpose()? else {
            return Err(Unacceptable::Invalid(vec![Fault::at(
                "",
                "The body must be a JSON object.",
            )]));
        };
        let mut call = object("", members, &mut faults);
        let provider = text(&mut call, "provider", None, &mut faults)?;
        let payment = call.take("payment");
        let amount = call.take("amount");
        let reason = text(&mut call, "reason", Some(255), &mut faults)?;
        let reference = text(&mut call, "reference", Some(64), &mut faults)?;
        if matches!(reference.as_deref(), Some("." | "..")) {
            faults.push(Fault::at(
                "/reference",
                "The reference cannot be a dot segment.",
            ));
        }
        let provider_named = provider.is_some() || call.had("provider");
        faults.extend(call.rest().take(MAX_TOLD));

        if !provider_named {
            faults.push(Fault::at("/provider", "The provider's name is required."));
        }
        let entry = provider.as_deref().and_then(|name| {
            let entry = config.provider(name);
            if entry.is_none() {
                faults.push(Fault::at(
                    "/provider",
                    "No provider is configured under this name.",
                ));
            }
            entry
        });
        let payment = read_payment(payment, entry, &mut faults)?;
        let amount = read_amount(amount, &mut faults)?;
        let wire_amount = match (entry, amount) {
            (Some(entry), Some(amount)) => check_amount(amount, entry, &mut faults),
            _ => None,
        };
        if let Some(entry) = entry
            && entry.dialect.capabilities().reason == Reason::Required
            && reason.is_none()
            && entry.default_reason.is_none()
            && !faults.iter().any(|fault| fault.pointer == "/reason")
        {
            faults.push(Fault::at(
                "/reason",
                "This provider needs a reason, and none is configured as its default.",
            ));
        }
        match (entry, payment, amount) {
            // An amount that lost its number on the way would become a refund of everything.
            (Some(entry), Some(payment), Some(amount))
                if faults.is_empty() && wire_amount.is_none() == (amount == Amount::Full) =>
            {
                Ok((
                    Refund {
                        payment,
                        amount,
                        wire_amount,
                        reason,
                        reference,
                    },
                    entry,
                ))
            }
            _ => Err(Unacceptable::Invalid(faults)),
        }
    }
}

/// A payment's names as a caller gave them, to be checked.
pub(crate) struct PaymentNames<'a> {
    /// The id, where it is sound by itself.
    pub id: Option<&'a str>,
    /// Whether one was given.
    pub had_id: bool,
    /// Whether any name was given.
    pub had_any: bool,
    /// Where faults of the whole and of the id are.
    pub pointers: (&'static str, &'static str),
}

impl PaymentNames<'_> {
    /// Checks them by the contract, and by the provider's rule where it is known which one it is.
    pub fn check(&self, rule: Option<PaymentRule>, faults: &mut Vec<Fault>) {
        let (whole, id) = self.pointers;
        if matches!(self.id, Some("." | "..")) {
            faults.push(Fault::at(id, "The id cannot be a dot segment."));
        }
        if !self.had_any {
            faults.push(Fault::at(whole, "The payment needs an id or a reference."));
            return;
        }
        match rule {
            Some(PaymentRule::Id) if !self.had_id => {
                faults.push(Fault::at(id, "This provider needs the payment's id."));
            }
            Some(PaymentRule::NumericIdOrReference) => {
                let numeric = |id: &str| {
                    id.len() <= 18 && !id.starts_with('0') && id.bytes().all(|b| b.is_ascii_digit())
                };
                if self.id.is_some_and(|id| !numeric(id)) {
                    faults.push(Fault::at(
                        id,
                        "This provider's ids are 1 to 18 digits without a leading zero.",
                    ));
                }
            }
            _ => {}
        }
    }
}

/// A payment by the names that are known of it, at a configured provider and its merchant.
pub fn about_payment(
    entry: &ProviderEntry,
    id: &Option<String>,
    reference: &Option<String>,
) -> About {
    let name = |kind: &str, name: &Option<String>| {
        name.as_ref()
            .map(|name| short_hash((&entry.name, &entry.merchant, kind, name)))
            .unwrap_or_default()
    };
    About {
        provider: about_provider(&entry.name),
        id: name("id", id),
        reference: name("reference", reference),
        amount: [0; 8],
    }
}

/// The names under which the guard keeps a payment of a merchant that can have one refund alone.
pub fn payment_digests(
    entry: &ProviderEntry,
    id: &Option<String>,
    reference: &Option<String>,
) -> Vec<Digest> {
    let name = |kind: &str, name: &Option<String>| {
        let name = name.as_ref()?;
        let parts = [
            b"payment",
            &entry.merchant[..],
            kind.as_bytes(),
            name.as_bytes(),
        ];
        Some(Digest::of(parts))
    };
    [name("id", id), name("reference", reference)]
        .into_iter()
        .flatten()
        .collect()
}

/// A configured provider by its name.
pub fn about_provider(name: &str) -> [u8; 8] {
    short_hash(name)
}

/// An amount: its minor units and currency.
pub fn about_amount(money: Money) -> [u8; 8] {
    short_hash((money.minor, money.currency.code()))
}

/// Enough to know something again, where a mistake would take chance and the same key; a fifth of a
/// digest's time.
fn short_hash(parts: impl Hash) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish().to_le_bytes()
}

fn read_payment(
    node: Option<Node<'_>>,
    entry: Option<&ProviderEntry>,
    faults: &mut Vec<Fault>,
) -> Result<Option<Payment>, Malformed> {
    let Some(node) = node else {
        faults.push(Fault::at(
            "/payment",
            "The payment is required: an object with id or reference.",
        ));
        return Ok(None);
    };
    let Some(members) = node.members().transpose()? else {
        faults.push(Fault::at(
            "/payment",
            "The payment must be an object with id or reference.",
        ));
        return Ok(None);
    };
    let before = faults.len();
    let mut payment = object("/payment", members, faults);
    let id = text(&mut payment, "id", Some(128), faults)?;
    let reference = text(&mut payment, "reference", Some(64), faults)?;
    let (had_id, had_any) = (
        payment.had("id"),
        payment.had("id") || payment.had("reference"),
    );
    faults.extend(payment.rest().take(MAX_TOLD));

    if had_any || faults.len() == before {
        PaymentNames {
            id: id.as_deref(),
            had_id,
            had_any,
            pointers: ("/payment", "/payment/id"),
        }
        .check(
            entry.map(|entry| entry.dialect.capabilities().payment),
            faults,
        );
    }
    Ok(Some(Payment { id, reference }))
}

fn read_amount(
    node: Option<Node<'_>>,
    faults: &mut Vec<Fault>,
) -> Result<Option<Amount>, Malformed> {
    const SHAPE: &str = "The amount must be \"full\" or an object with value and currency.";
    let Some(node) = node else {
        faults.push(Fault::at(
            "/amount",
            "The amount is required: \"full\", or an object with value and currency. It is never implied.",
        ));
        return Ok(None);
    };
    if node.string().transpose()?.as_deref() == Some("full") {
        return Ok(Some(Amount::Full));
    }
    let Some(members) = node.members().transpose()? else {
        faults.push(Fault::at("/amount", SHAPE));
        return Ok(None);
    };
    let mut amount = object("/amount", members, faults);
    let value = text(&mut amount, "value", None, faults)?;
    let code = text(&mut amount, "currency", None, faults)?;
    for (name, sentence) in [
        (
            "value",
            "The value is required: a decimal string such as \"10.00\".",
        ),
        (
            "currency",
            "The currency is required: an ISO 4217 code such as \"EUR\".",
        ),
    ] {
        if !amount.had(name) {
            faults.push(Fault::at(amount.at(name), sentence));
        }
    }
    faults.extend(amount.rest().take(MAX_TOLD));

    let currency = code.as_deref().and_then(|code| {
        let currency = Currency::from_code(code);
        if currency.is_none() {
            faults.push(Fault::at(
                "/amount/currency",
                "The currency must be an ISO 4217 code in upper case.",
            ));
        }
        currency
    });
    let Some(value) = value else { return Ok(None) };
    // Without a currency the number of decimals is not known, the form still is: four decimals are
    // the most there are.
    let widest = Currency::from_code("CLF");
    let Some(assumed) = currency.or(widest) else {
        return Ok(None);
    };
    match (Money::from_value(&value, assumed), currency) {
        (Ok(money), Some(_)) => Ok(Some(Amount::Exactly(money))),
        (Ok(_), None) => Ok(None),
        // How many decimals an unknown currency has is anybody's guess.
        (Err(AmountFault::Decimals), None) => Ok(None),
        (Err(fault), _) => {
            let sentence = match fault {
                AmountFault::Form => {
                    "The value must be a decimal string: digits, with a point and decimals where needed, and no sign, \
                     exponent, space or leading zero."
                        .to_owned()
                }
                AmountFault::Zero => "The value must be above zero.".to_owned(),
                AmountFault::TooLarge => "The value is too large.".to_owned(),
                AmountFault::Decimals => {
                    format!("{} has {} decimals.", assumed.code(), assumed.digits())
                }
            };
            faults.push(Fault::at("/amount/value", sentence));
            Ok(None)
        }
    }
}

/// What the provider, and the team that configured it, can take of a sound amount: the number to
/// send.
fn check_amount(
    amount: Amount,
    entry: &ProviderEntry,
    faults: &mut Vec<Fault>,
) -> Option<Box<RawValue>> {
    let Amount::Exactly(money) = amount else {
        if !entry.dialect.capabilities().full_refund {
            faults.push(Fault::at(
                "/amount",
                "This provider cannot refund \"full\": give value and currency.",
            ));
        } else if !entry.query_first
            && entry
                .currencies
                .as_ref()
                .is_some_and(|known| known.len() > 1)
        {
            faults.push(Fault::at(
                "/amount",
                "This provider is configured for several currencies, and which one the payment has is not known before it is \
                 refunded: give value and currency.",
            ));
        }
        return None;
    };
    if !entry.takes_currency(money.currency) {
        faults.push(Fault::at(
            "/amount/currency",
            "This provider is not configured for this currency.",
        ));
    }
    match entry.dialect.counting().wire_amount(money) {
        Ok(number) => Some(number),
        Err(sentence) => {
            faults.push(Fault::at("/amount/value", sentence));
            None
        }
    }
}

/// A member of an object: who wrote it may have made it as large as they liked, so not every fault
/// is told.
fn object<'a>(pointer: &'static str, members: Members<'a>, faults: &mut Vec<Fault>) -> Object<'a> {
    let mut object = Object::new(pointer, "member");
    let before = faults.len();
    for (name, node) in members {
        if let Err(fault) = object.add(name, node)
            && faults.len().saturating_sub(before) < MAX_TOLD
            && !faults.contains(&fault)
        {
            faults.push(fault);
        }
        // A body full of short names must not cost the square of their number.
        if object.members().len() > MAX_MEMBERS {
            faults.push(Fault::at(pointer, "This object has too many members."));
            break;
        }
    }
    object
}

/// A string member of 1 to `longest` characters, if it is there and right.
fn text(
    object: &mut Object<'_>,
    name: &'static str,
    longest: Option<usize>,
    faults: &mut Vec<Fault>,
) -> Result<Option<String>, Malformed> {
    let Some(node) = object.take(name) else {
        return Ok(None);
    };
    let pointer = object.at(name);
    let Some(text) = node.string().transpose()? else {
        let article = match node.kind() {
            Kind::Number => "a string, not a number",
            Kind::Null => "a string; leave the member out instead of null",
            _ => "a string",
        };
        faults.push(Fault::at(pointer, format!("This must be {article}.")));
        return Ok(None);
    };
    if let Some(longest) = longest
        && !(1..=longest).contains(&text.chars().count())
    {
        faults.push(Fault::at(
            pointer,
            format!("This must have 1 to {longest} characters."),
        ));
        return Ok(None);
    }
    Ok(Some(text.into_owned()))
}

/// No object of the contract has a tenth of this.
const MAX_MEMBERS: usize = 100;
