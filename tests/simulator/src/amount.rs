//! Money as integers of minor units, to and from decimal text. No float anywhere.

/// Minor units of a plain decimal (`10`, `10.5`, `10.50`) of a currency with `exponent` decimals.
///
/// `None` for an exponent (`1e1`), a sign, more than `decimals` places written, or a non-zero place
/// below the minor unit. The pages print plain decimals only; whether `1e1` passes, none of them
/// says.
pub(crate) fn minor_units(text: &str, exponent: u8, decimals: u8) -> Option<u64> {
    let (whole, fraction) = match text.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (text, ""),
    };
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > decimals.into() {
        return None;
    }
    let (kept, lost) = fraction.split_at(fraction.len().min(exponent.into()));
    if lost.bytes().any(|byte| byte != b'0') {
        return None;
    }
    let padding = "0".repeat(usize::from(exponent) - kept.len());
    format!("{whole}{kept}{padding}").parse().ok()
}

/// The decimal text of minor units, with all of the currency's decimals.
pub(crate) fn decimal(minor: u64, exponent: u8) -> String {
    let exponent = usize::from(exponent);
    let digits = format!("{minor:0>width$}", width = exponent + 1);
    match exponent {
        0 => digits,
        _ => {
            let (whole, fraction) = digits.split_at(digits.len() - exponent);
            format!("{whole}.{fraction}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{decimal, minor_units};

    #[test]
    fn decimals_become_minor_units() {
        assert_eq!(minor_units("10.5", 2, 2), Some(1050));
        assert_eq!(minor_units("10", 2, 2), Some(1000));
        assert_eq!(minor_units("1.005", 3, 3), Some(1005));
        assert_eq!(minor_units("10.00", 0, 2), Some(10));
        for text in [
            "10.5",
            "1e1",
            "-1",
            "+1",
            ".5",
            "1.",
            "1.2.3",
            "",
            " 1",
            "18446744073709551616",
        ] {
            assert_eq!(minor_units(text, 0, 2), None, "{text}");
        }
        assert_eq!(minor_units("1.000", 3, 2), None);
    }

    #[test]
    fn minor_units_become_decimals() {
        assert_eq!(decimal(1500, 2), "15.00");
        assert_eq!(decimal(5, 3), "0.005");
        assert_eq!(decimal(7, 0), "7");
    }
}
