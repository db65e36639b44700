//! Text, minor units and providers' numbers: exact or nothing.
//!
//! An input is a currency (one byte), the decimals that a provider takes it to have (one byte), an
//! amount in minor units (eight bytes), and a text.

use std::sync::LazyLock;

use refund_filter::money::{Currency, Money};

use crate::json::{self, Json};
use core_testbed::fixtures::{Counts, FIXTURES};
use core_testbed::oracles::{is_u64, read_value, text_of, units};

static CURRENCIES: LazyLock<Vec<Currency>> = LazyLock::new(|| Currency::all().collect());

/// A JSON number's text times 10^`digits`, if that is whole and no longer than any amount.
pub fn whole(number: &str, digits: usize) -> Option<String> {
    // Beyond that no exponent leaves anything of a number that is short enough to be an input.
    let exponent = number
        .split_once(['e', 'E'])
        .map_or("", |(_, exponent)| exponent);
    if exponent.trim_start_matches(['+', '-', '0']).len() > 9 {
        let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
        return mantissa
            .bytes()
            .all(|b| !(b'1'..=b'9').contains(&b))
            .then(String::new);
    }
    units(number, digits)
}

/// The oracle's plain number as it is written.
fn written(units: Option<String>) -> Option<String> {
    let units = units.filter(|units| is_u64(units))?;
    Some(if units.is_empty() {
        "0".to_owned()
    } else {
        units
    })
}

pub fn check(data: &[u8]) {
    let Some(([which, own, minor @ ..], text)) = data.split_first_chunk::<10>() else {
        return;
    };
    let currency = CURRENCIES[usize::from(*which) % CURRENCIES.len()];
    let digits = usize::from(currency.digits());
    let minor = u64::from_le_bytes(*minor);
    there_and_back(minor, currency, digits, *own);
    for fixture in FIXTURES {
        goes_out(minor, currency, digits, fixture);
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let is = Money::from_value(text, currency).map(|money| money.minor.to_string());
    assert_eq!(is, read_value(text, digits), "{text:?} {currency:?}");
    match json::read(text.as_bytes()) {
        // White space around a number is no part of it.
        Ok(Json::Number(number)) => told(&number, currency, digits, *own),
        _ => {
            // Nobody asks this of what is no number: it must not panic.
            let _ = Money::from_major(text, currency);
            let _ = Money::from_minor(text, *own, currency);
        }
    }
}

fn there_and_back(minor: u64, currency: Currency, digits: usize, own: u8) {
    let money = Money { minor, currency };
    let text = text_of(minor, digits);
    assert_eq!(money.value(), text);
    let number = money.major_number();
    assert!(
        !(number.contains('.') && number.ends_with(['0', '.'])),
        "{number}"
    );
    assert_eq!(Money::from_major(&number, currency), Some(money));
    assert_eq!(written(units(&number, digits)), Some(minor.to_string()));
    if minor > 0 {
        assert_eq!(Money::from_value(&text, currency), Ok(money));
    }
    let counted = money.minor_units(own);
    let exactly = units(&format!("{minor}e-{digits}"), usize::from(own));
    assert_eq!(counted.map(|units| units.to_string()), written(exactly));
    if let Some(counted) = counted {
        let back = Money::from_minor(&counted.to_string(), own, currency);
        assert_eq!(back, Some(money));
    }
}

/// Of these nobody outside beGateway knows by how many decimals it counts them (facts, beGateway).
pub const DISPUTED: [&str; 8] = ["IRR", "KPW", "LAK", "LBP", "MMK", "MOP", "UGX", "UYW"];

/// A provider gets exactly this amount, or a sentence says why it cannot.
fn goes_out(
    minor: u64,
    currency: Currency,
    digits: usize,
    fixture: &core_testbed::fixtures::Fixture,
) {
    let own = fixture
        .own_digits
        .iter()
        .find(|(code, _)| *code == currency.code())
        .map_or(digits, |(_, digits)| *digits);
    let text = text_of(minor, digits);
    let config = fixture.config_once();
    let entry = config.provider(fixture.name()).expect("the fixture");
    match entry
        .dialect
        .counting()
        .wire_amount(Money { minor, currency })
    {
        Ok(number) => {
            let number = number.get();
            assert!(matches!(json::read(number.as_bytes()), Ok(Json::Number(_))));
            assert!(!number.contains(['e', 'E', '-', '+']), "{number}");
            match fixture.counts {
                Counts::Minor => assert_eq!(written(units(&text, own)).as_deref(), Some(number)),
                // Six places are more than any currency has.
                Counts::Major => assert_eq!(units(number, 6), units(&text, 6)),
            }
        }
        Err(sentence) => {
            assert!(sentence.ends_with('.'), "{sentence}");
            let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
            let fits = match fixture.name() {
                // Number(9,2).
                "bbmsl" => whole.len() <= 7 && decimals.trim_end_matches('0').len() <= 2,
                "moyasar" => minor <= 100_000_000,
                "begateway" if DISPUTED.contains(&currency.code()) => false,
                "bog" | "begateway" => written(units(&text, own)).is_some(),
                other => panic!("{other} is not described here"),
            };
            assert!(!fits, "{text} {currency:?} for {}", fixture.name());
        }
    }
}

/// A provider's number is read as the oracle reads it, or not at all where it is spelled in more
/// than 18 digits.
fn told(number: &str, currency: Currency, digits: usize, own: u8) {
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    let (whole_part, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let spelled = format!("{whole_part}{}", decimals.trim_end_matches('0'));
    let spelled = spelled.trim_start_matches(['-', '0']).len();
    let exponent = number
        .split_once(['e', 'E'])
        .map_or("", |(_, exponent)| exponent);
    let plain = spelled <= 18 && exponent.len() <= 6 && number.len() <= 100;
    let agrees = |is: Option<Money>, wanted: Option<String>| {
        let is = is.map(|money| money.minor.to_string());
        // `-0` may be nought or nothing.
        let may_be_none = number.starts_with('-') || !plain;
        assert!(
            is == wanted || is.is_none() && may_be_none,
            "{number} {currency:?} {own}: {is:?}, not {wanted:?}"
        );
    };
    agrees(
        Money::from_major(number, currency),
        written(whole(number, digits)),
    );
    let counted = written(whole(number, 0));
    let wanted = counted.and_then(|counted| written(units(&format!("{counted}e-{own}"), digits)));
    agrees(Money::from_minor(number, own, currency), wanted);
}
