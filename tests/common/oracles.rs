//! What is right, said once more without the code under test: the suites and the fuzz targets hold
//! it against these.

use std::cmp::Ordering;

use refund_filter::money::AmountFault;
use sha2::{Digest, Sha256};

/// A number written as digits without zeros in front; `0` is the empty text.
pub fn plain(digits: &str) -> &str {
    digits.trim_start_matches('0')
}

/// Compares two plain numbers.
fn compare(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

pub fn is_u64(digits: &str) -> bool {
    compare(digits, &u64::MAX.to_string()) != Ordering::Greater
}

/// A JSON number's text times 10^`digits` as a plain number; none where that is not whole or
/// negative.
pub fn units(number: &str, digits: usize) -> Option<String> {
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().unwrap()),
        None => (number, 0),
    };
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{decimals}");
    let all = plain(&all);
    if all.is_empty() {
        return Some(String::new());
    }
    if number.starts_with('-') {
        return None;
    }
    let significant = all.trim_end_matches('0');
    let zeros = i64::try_from(all.len() - significant.len()).unwrap();
    let shift =
        exponent - i64::try_from(decimals.len()).unwrap() + i64::try_from(digits).unwrap() + zeros;
    let shift = usize::try_from(shift).ok()?;
    // What is longer than this is no amount of anything.
    Some(format!("{significant}{}", "0".repeat(shift.min(10_000))))
}

/// The contract's `value` as minor units of a currency with so many decimals.
pub fn read_value(value: &str, digits: usize) -> Result<String, AmountFault> {
    let bytes = value.as_bytes();
    let mut parts = value.split('.');
    let (whole, decimals, more) = (parts.next().unwrap(), parts.next(), parts.next());
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let form = more.is_none()
        && all_digits(whole)
        && decimals.is_none_or(all_digits)
        && (bytes[0] != b'0' || whole.len() == 1);
    if !form {
        return Err(AmountFault::Form);
    }
    let decimals = decimals.unwrap_or("");
    if decimals.len() > digits {
        return Err(AmountFault::Decimals);
    }
    let text = format!("{whole}{decimals:0<digits$}");
    match plain(&text) {
        "" => Err(AmountFault::Zero),
        number if is_u64(number) => Ok(number.to_owned()),
        _ => Err(AmountFault::TooLarge),
    }
}

/// The contract's text of an amount, by moving digits about.
pub fn text_of(minor: u64, digits: usize) -> String {
    let padded = format!("{minor:0>width$}", width = digits + 1);
    let (whole, decimals) = padded.split_at(padded.len() - digits);
    match decimals {
        "" => whole.to_owned(),
        decimals => format!("{whole}.{decimals}"),
    }
}

/// The contract's formula of a provider's key that is made from the caller's, bit by bit.
pub fn derived_key(provider: &str, key: &str) -> String {
    let mut input = provider.as_bytes().to_vec();
    input.push(0);
    input.extend_from_slice(key.as_bytes());
    let digest = Sha256::digest(&input);
    let mut hex: Vec<char> = digest[..16]
        .iter()
        .flat_map(|byte| format!("{byte:02x}").chars().collect::<Vec<_>>())
        .collect();
    hex[12] = '4';
    hex[16] = match hex[16].to_digit(16).unwrap() % 4 {
        0 => '8',
        1 => '9',
        2 => 'a',
        _ => 'b',
    };
    for at in [20, 16, 12, 8] {
        hex.insert(at, '-');
    }
    hex.into_iter().collect()
}

/// A key as a quoted string.
pub fn quoted(key: &str) -> String {
    format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""))
}
