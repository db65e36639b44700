//! Amounts are exact: properties over every currency and every provider, against an oracle that
//! only moves digits about.

use crate::properties::cases;
use core_testbed::config;
use core_testbed::fixtures::{Counts, FIXTURES, pointers, sent};
use core_testbed::oracles::{is_u64, read_value, text_of, units};
use proptest::prelude::*;
use proptest::sample::select;
use refund_filter::money::{AmountFault, Currency, Money};
use serde_json::json;

fn currencies() -> Vec<Currency> {
    Currency::all().collect()
}

fn currency() -> impl Strategy<Value = Currency> {
    // Half of the time one with decimals that are not two.
    let odd: Vec<Currency> = Currency::all()
        .filter(|currency| currency.digits() != 2)
        .collect();
    prop_oneof![select(currencies()), select(odd)]
}

/// Minor units of every magnitude.
fn minor() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64).prop_map(|(number, shift)| (number >> shift).max(1))
}

#[test]
fn the_table_of_currencies_is_iso_4217s() {
    let all = currencies();
    for currency in &all {
        let code = currency.code();
        assert_eq!(code.len(), 3, "{code}");
        assert!(code.bytes().all(|b| b.is_ascii_uppercase()), "{code}");
        assert_eq!(Currency::from_code(code), Some(*currency));
        assert_eq!(
            all.iter().filter(|other| other.code() == code).count(),
            1,
            "{code}"
        );
    }
    for (digits, codes) in [
        (
            0,
            "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
        ),
        (
            2,
            "AED AUD CHF CNY COU EGP EUR GBP GEL HKD IDR INR MGA MRU SAR SLE TWD USD VED ZAR ZWG CVE HUF",
        ),
        (3, "BHD IQD JOD KWD LYD OMR TND"),
        (4, "CLF UYW"),
    ] {
        for code in codes.split(' ') {
            assert_eq!(
                Currency::from_code(code).unwrap().digits(),
                digits,
                "{code}"
            );
        }
        if digits != 2 {
            let count = all
                .iter()
                .filter(|currency| currency.digits() == digits)
                .count();
            assert_eq!(count, codes.split(' ').count(), "{digits}");
        }
    }
    for code in [
        "XXX", "XTS", "XAU", "XDR", "usd", "", " USD", "USD EUR", "US", "USDEUR", "EU\u{0}",
    ] {
        assert_eq!(Currency::from_code(code), None, "{code:?}");
    }
}

#[test]
fn the_smallest_and_the_largest_amount_of_every_currency_are_exact() {
    for currency in currencies() {
        let digits = usize::from(currency.digits());
        for minor in [
            1,
            9,
            10,
            99,
            100,
            101,
            9_999,
            10_000,
            10_001,
            u64::MAX - 1,
            u64::MAX,
        ] {
            let money = Money::from_value(&text_of(minor, digits), currency).unwrap();
            assert_eq!(money.minor, minor, "{currency:?}");
            assert_eq!(money.value(), text_of(minor, digits));
        }
        // One minor unit over 64 bits.
        let over = "18446744073709551616";
        let over = format!("{}.{}", &over[..20 - digits], &over[20 - digits..]);
        assert_eq!(
            Money::from_value(over.trim_end_matches('.'), currency),
            Err(AmountFault::TooLarge),
            "{over} {currency:?}"
        );
        let nought = text_of(0, digits);
        assert_eq!(Money::from_value(&nought, currency), Err(AmountFault::Zero));
        assert_eq!(Money::from_value("0", currency), Err(AmountFault::Zero));
    }
}

#[test]
fn a_decimal_too_many_is_refused_even_if_it_is_nought() {
    for currency in currencies() {
        let digits = usize::from(currency.digits());
        for decimals in digits + 1..digits + 30 {
            for digit in ["0", "1", "9"] {
                let value = format!("1.{}", digit.repeat(decimals));
                assert_eq!(
                    Money::from_value(&value, currency),
                    Err(AmountFault::Decimals),
                    "{value} {currency:?}"
                );
            }
        }
    }
}

#[test]
fn numbers_of_absurd_length_cost_no_time_and_are_no_amount() {
    let usd = Currency::from_code("USD").unwrap();
    let nines = "9".repeat(100_000);
    assert_eq!(Money::from_value(&nines, usd), Err(AmountFault::TooLarge));
    assert_eq!(
        Money::from_value(&format!("0.{nines}"), usd),
        Err(AmountFault::Decimals)
    );
    for number in [
        nines.clone(),
        format!("0.{nines}"),
        format!("1e{nines}"),
        format!("1e-{nines}"),
        format!("{nines}e-100000"),
        format!("1.{}1", "0".repeat(100_000)),
    ] {
        assert_eq!(Money::from_major(&number, usd), None);
        assert_eq!(Money::from_minor(&number, 2, usd), None);
    }
    let noughts = format!("10.{}", "0".repeat(100_000));
    assert_eq!(Money::from_major(&noughts, usd).unwrap().minor, 1000);
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn text_and_minor_units_are_one(currency in currency(), minor in minor(), cut in 0usize..5) {
        let digits = usize::from(currency.digits());
        let full = text_of(minor, digits);
        let money = Money::from_value(&full, currency).unwrap();
        prop_assert_eq!(money.minor, minor);
        prop_assert_eq!(&money.value(), &full);
        prop_assert_eq!(Money::from_value(&money.value(), currency), Ok(money));
        // Zeros at the end may be left out.
        if full.contains('.') {
            let mut short = full.clone();
            for _ in 0..cut {
                if short.ends_with('0') && !short.ends_with(".0") {
                    short.pop();
                }
            }
            prop_assert_eq!(Money::from_value(&short, currency), Ok(money));
        }
        let number = money.major_number();
        prop_assert_eq!(Money::from_major(&number, currency), Some(money));
        let parsed: serde_json::Value = serde_json::from_str(&number).unwrap();
        prop_assert!(parsed.is_number());
        prop_assert!(!(number.contains('.') && number.ends_with(['0', '.'])), "{}", number);
        prop_assert_eq!(units(&number, digits).unwrap(), minor.to_string());
    }

    #[test]
    fn any_decimal_text_is_read_as_the_oracle_reads_it(
        currency in currency(),
        value in prop_oneof![
            "(0|[1-9][0-9]{0,21})(\\.[0-9]{1,6})?",
            "[0-9]{0,4}\\.?[0-9]{0,5}",
            "[-+ ]?[0-9.,eE]{0,8}",
            "[0-9]{18,22}(\\.[0-9]{1,4})?",
        ],
    ) {
        prop_assume!(!value.is_empty());
        let is = Money::from_value(&value, currency).map(|money| money.minor.to_string());
        prop_assert_eq!(is, read_value(&value, usize::from(currency.digits())));
    }

    #[test]
    fn a_providers_number_is_read_as_the_oracle_reads_it(
        currency in currency(),
        number in "-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,6}0{0,20})?([eE][-+]?[0-9]{1,3})?",
        own in 0u8..5,
    ) {
        let as_u64 = |digits: Option<String>| {
            digits.filter(|text| is_u64(text)).map(|text| if text.is_empty() { "0".into() } else { text })
        };
        let told = |money: Option<Money>| money.map(|money| money.minor.to_string());
        let negative = number.starts_with('-');
        let significant: usize = number
            .split(['e', 'E']).next().unwrap()
            .trim_start_matches(['-', '0', '.']).trim_end_matches('0')
            .bytes().filter(u8::is_ascii_digit).count();
        let digits = usize::from(currency.digits());
        let is = told(Money::from_major(&number, currency));
        let wanted = as_u64(units(&number, digits));
        // `-0` may be nought or nothing; a spelling of more than 19 digits may be none.
        if negative {
            prop_assert!(is.is_none() || is == wanted && wanted.as_deref() == Some("0"));
        } else if significant <= 18 {
            prop_assert_eq!(&is, &wanted, "{} {:?}", number, currency);
        } else {
            prop_assert!(is.is_none() || is == wanted, "{} {:?}", number, currency);
        }

        // An integer of units of which 10^own make one.
        let is = told(Money::from_minor(&number, own, currency));
        let wanted = units(&number, 0).and_then(|whole| {
            is_u64(&whole).then_some(())?;
            as_u64(units(&format!("{}e-{own}", if whole.is_empty() { "0" } else { &whole }), digits))
        });
        if negative {
            prop_assert!(is.is_none() || wanted.as_deref() == Some("0"));
        } else if significant <= 18 {
            prop_assert_eq!(&is, &wanted, "{} {} {:?}", number, own, currency);
        } else {
            prop_assert!(is.is_none() || is == wanted);
        }
    }

    #[test]
    fn every_spelling_of_an_amount_is_that_amount(
        currency in currency(),
        minor in (any::<u64>(), 5u32..64).prop_map(|(number, shift)| (number >> shift).max(1)),
        move_by in -12i64..12,
        zeros in 0usize..30,
        letter in select(vec!["e", "E", "e+"]),
    ) {
        // The digits with the point anywhere, and the exponent that puts it right.
        let digits = i64::from(currency.digits());
        let text = minor.to_string();
        let exponent = move_by - digits;
        let spelled = if move_by > 0 {
            let places = usize::try_from(move_by).unwrap();
            let padded = format!("{text:0>width$}", width = places + 1);
            let (whole, decimals) = padded.split_at(padded.len() - places);
            let letter = if exponent < 0 { "e" } else { letter };
            format!("{whole}.{decimals}{}{letter}{exponent}", "0".repeat(zeros))
        } else {
            format!("{text}e-{digits}")
        };
        let money = Money::from_major(&spelled, currency);
        prop_assert_eq!(money.map(|money| money.minor), Some(minor), "{}", spelled);
    }

    #[test]
    fn more_text_is_never_less_money(currency in currency(), a in minor(), b in minor()) {
        let digits = usize::from(currency.digits());
        let read = |minor| Money::from_value(&text_of(minor, digits), currency).unwrap().minor;
        prop_assert_eq!(read(a).cmp(&read(b)), a.cmp(&b));
    }

    #[test]
    fn another_count_of_decimals_is_exact_or_nothing(currency in currency(), minor in minor(), own in 0u8..6) {
        let money = Money { minor, currency };
        let digits = usize::from(currency.digits());
        let wanted = units(&format!("{minor}e-{digits}"), usize::from(own)).filter(|text| is_u64(text));
        let is = money.minor_units(own);
        prop_assert_eq!(is.map(|units| units.to_string()), wanted);
        if let Some(units) = is {
            prop_assert_eq!(Money::from_minor(&units.to_string(), own, currency), Some(money));
        }
    }

    #[test]
    fn no_text_makes_it_panic(value in any::<String>(), bytes in "[-+0-9.eE \\u{660}-\\u{669}]{0,40}", currency in currency(), own in any::<u8>()) {
        for text in [&value, &bytes] {
            if let Ok(money) = Money::from_value(text, currency) {
                prop_assert_eq!(money.minor.to_string(), read_value(text, usize::from(currency.digits())).unwrap());
            }
            if let Some(money) = Money::from_minor(text, own, currency) {
                let _ = money.value();
                let _ = money.minor_units(own);
            }
            let _ = Money::from_major(text, currency);
            let _ = Currency::from_code(text);
        }
    }
}

#[test]
fn every_currency_goes_out_to_every_provider_exactly_or_not_at_all() {
    for fixture in FIXTURES {
        let mut provider = fixture.provider_config();
        let codes: Vec<_> = Currency::all().map(|currency| currency.code()).collect();
        provider["currencies"] = json!(codes);
        // What nobody can look up is told by the platform team: here, what ISO 4217 says.
        for (code, digits) in fixture.disputed {
            provider["minor_units"][code] = json!(digits);
        }
        let config = config(fixture.name(), &provider);
        for currency in currencies() {
            let iso = usize::from(currency.digits());
            let own = fixture
                .own_digits
                .iter()
                .find(|(code, _)| *code == currency.code())
                .map_or(iso, |(_, digits)| *digits);
            for minor in [
                1,
                5,
                10,
                50,
                99,
                100,
                1000,
                1050,
                12_345,
                1_000_000,
                10_000_000,
                99_999_999,
                123_450_000,
            ] {
                let value = text_of(minor, iso);
                let wanted = match fixture.counts {
                    Counts::Minor => units(&value, own),
                    Counts::Major => Some(value.clone()),
                };
                match sent(&config, "k-1", &fixture.call_for(&value, currency.code())) {
                    Ok(dispatch) => {
                        let wire = fixture.wire_amount(&dispatch).unwrap();
                        let wanted = wanted
                            .unwrap_or_else(|| panic!("{value} {currency:?} went out as {wire}"));
                        match fixture.counts {
                            Counts::Minor => assert_eq!(wire, wanted, "{value} {currency:?}"),
                            // Six places are more than any currency has.
                            Counts::Major => assert_eq!(
                                units(&wire, 6),
                                units(&wanted, 6),
                                "{value} {currency:?}"
                            ),
                        }
                        assert!(!wire.contains(['e', 'E', '-', '+']), "{wire}");
                    }
                    Err(answer) => {
                        assert_eq!(pointers(&answer), ["/amount/value"]);
                        let fits = wanted.is_some() && (fixture.sends)(minor, &value);
                        assert!(
                            !fits,
                            "{value} {currency:?} is refused for {}",
                            fixture.name()
                        );
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn what_goes_out_comes_back_as_the_callers_amount(currency in currency(), minor in minor()) {
        for fixture in FIXTURES {
            let config = fixture.config_once();
            let digits = usize::from(currency.digits());
            let call = fixture.call_for(&text_of(minor, digits), currency.code());
            let Ok(dispatch) = sent(&config, "k-1", &call) else { continue };
            let (reply, _) = fixture.success_reply(&call, &dispatch);
            let answer = dispatch.sent.reply(&core_testbed::fixtures::head(200, &[]), reply.as_bytes(), 1);
            let body = core_testbed::fixtures::checked(&answer);
            prop_assert_eq!(&body["status"], fixture.means, "{}", &body);
            prop_assert_eq!(&body["amount"], &call["amount"]);
        }
    }
}
