//! Currencies and exact amounts. An amount is an integer of minor units; no float is made anywhere.

use std::fmt;

/// ISO 4217's active currencies with their number of decimals (list one, without the entries that
/// have none: metals, funds' units of account, test codes), and the few withdrawn of late in which
/// a payment can still be refunded.
const CURRENCIES: &[(u8, &str)] = &[
    (
        0,
        "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    ),
    (3, "BHD IQD JOD KWD LYD OMR TND"),
    (4, "CLF UYW"),
    (
        2,
        "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF \
         CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF \
         IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN \
         MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS \
         SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW \
         ZWG",
    ),
];

/// A currency of ISO 4217 and its number of decimals.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Currency {
    code: &'static str,
    digits: u8,
}

impl Currency {
    /// The currency with this upper-case three-letter code.
    pub fn from_code(code: &str) -> Option<Self> {
        let code = <&[u8; 3]>::try_from(code.as_bytes()).ok()?;
        CURRENCIES.iter().find_map(|(digits, codes)| {
            // Three letters and a space each; splitting at the spaces took a sixth of a call's
            // instructions.
            let mut each = codes.as_bytes().chunks(4);
            let start = each
                .position(|known| known.starts_with(code))?
                .checked_mul(4)?;
            Some(Currency {
                code: codes.get(start..start.checked_add(3)?)?,
                digits: *digits,
            })
        })
    }

    /// All currencies, for tables and tests.
    pub fn all() -> impl Iterator<Item = Self> {
        CURRENCIES.iter().flat_map(|(digits, codes)| {
            codes.split(' ').map(|code| Currency {
                code,
                digits: *digits,
            })
        })
    }

    /// The three-letter code.
    pub fn code(self) -> &'static str {
        self.code
    }

    /// The number of decimals (ISO 4217's minor unit): 0, 2, 3 or 4.
    pub fn digits(self) -> u8 {
        self.digits
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

/// Why a decimal text is no amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AmountFault {
    /// Not `(0|[1-9][0-9]*)(\.[0-9]+)?`.
    Form,
    /// Nought.
    Zero,
    /// More decimals than the currency has.
    Decimals,
    /// More minor units than 64 bits hold.
    TooLarge,
}

/// An exact amount: minor units of a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Money {
    /// Minor units, as ISO 4217 counts them: 1.00 EUR is 100, 1.000 KWD is 1000, 1 JPY is 1.
    pub minor: u64,
    /// The currency.
    pub currency: Currency,
}

impl Money {
    /// Reads the contract's `value`: `(0|[1-9][0-9]*)(\.[0-9]+)?`, above zero, no more decimals
    /// than the currency has.
    pub fn from_value(value: &str, currency: Currency) -> Result<Self, AmountFault> {
        let (whole, decimals) = match value.split_once('.') {
            Some((whole, decimals)) => (whole, Some(decimals)),
            None => (value, None),
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let leading_zero = whole.len() > 1 && whole.starts_with('0');
        if !digits(whole) || leading_zero || decimals.is_some_and(|text| !digits(text)) {
            return Err(AmountFault::Form);
        }
        let decimals = decimals.unwrap_or_default();
        if decimals.len() > usize::from(currency.digits) {
            return Err(AmountFault::Decimals);
        }
        let minor = Decimal::read(value)
            .and_then(|decimal| decimal.units(currency.digits))
            .ok_or(AmountFault::TooLarge)?;
        if minor == 0 {
            return Err(AmountFault::Zero);
        }
        Ok(Money { minor, currency })
    }

    /// Reads a provider's amount in major units from JSON number text (`10`, `15.00`, `1.5e1`),
    /// exactly.
    pub fn from_major(number: &str, currency: Currency) -> Option<Self> {
        let minor = Decimal::read(number)?.units(currency.digits)?;
        Some(Money { minor, currency })
    }

    /// Reads a provider's integer of minor units from JSON number text; `digits` is the number of
    /// decimals that this provider takes the currency to have.
    pub fn from_minor(number: &str, digits: u8, currency: Currency) -> Option<Self> {
        let units = Decimal::read(number)?.units(0)?;
        let minor = Decimal {
            coefficient: units,
            scale: i32::from(digits),
        }
        .units(currency.digits)?;
        Some(Money { minor, currency })
    }

    /// Minor units where the currency is taken to have `digits` decimals; none if that cannot be
    /// exact.
    pub fn minor_units(self, digits: u8) -> Option<u64> {
        self.decimal().units(digits)
    }

    /// Decimal text with all the currency's decimals: `10.00`, `1.500`, `10`.
    pub fn value(self) -> String {
        let digits = usize::from(self.currency.digits);
        let text = format!("{:0width$}", self.minor, width = digits.saturating_add(1));
        let (whole, decimals) = text.split_at(text.len().saturating_sub(digits));
        if decimals.is_empty() {
            whole.to_owned()
        } else {
            format!("{whole}.{decimals}")
        }
    }

    /// Decimal text without trailing zeros, as a JSON number in major units: `10`, `10.5`, `1.005`.
    pub fn major_number(self) -> String {
        let value = self.value();
        if value.contains('.') {
            value.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            value
        }
    }

    fn decimal(self) -> Decimal {
        Decimal {
            coefficient: self.minor,
            scale: i32::from(self.currency.digits),
        }
    }
}

/// `coefficient` × 10^-`scale`.
struct Decimal {
    coefficient: u64,
    scale: i32,
}

impl Decimal {
    /// Reads a JSON number that is not negative, without loss; none if it is more than 64 bits
    /// hold.
    fn read(number: &str) -> Option<Self> {
        let (mantissa, exponent) = match number.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (number, 0),
        };
        let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        // Zeros at the end carry nothing and would only make the coefficient overflow:
        // `15.00000000000000000000`.
        let decimals = decimals.trim_end_matches('0');
        let mut coefficient = 0u64;
        for digit in whole.bytes().chain(decimals.bytes()) {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
            coefficient = coefficient.checked_mul(10)?.checked_add(u64::from(digit))?;
        }
        let scale = i32::try_from(decimals.len()).ok()?.checked_sub(exponent)?;
        Some(Decimal { coefficient, scale })
    }

    /// The integer of units of which 10^`digits` make one; none if it is not a whole number or too
    /// large.
    fn units(&self, digits: u8) -> Option<u64> {
        if self.coefficient == 0 {
            return Some(0);
        }
        let shift = i32::from(digits).checked_sub(self.scale)?;
        let factor = 10u64.checked_pow(shift.unsigned_abs());
        if shift >= 0 {
            self.coefficient.checked_mul(factor?)
        } else {
            let factor = factor?;
            (self.coefficient.checked_rem(factor)? == 0)
                .then(|| self.coefficient.checked_div(factor))
                .flatten()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn money(value: &str, code: &str) -> Result<Money, AmountFault> {
        Money::from_value(value, Currency::from_code(code).unwrap())
    }

    #[test]
    fn text_becomes_minor_units_by_the_currency() {
        assert_eq!(money("10.50", "USD").unwrap().minor, 1050);
        assert_eq!(money("10.5", "USD").unwrap().minor, 1050);
        assert_eq!(money("1", "KWD").unwrap().minor, 1000);
        assert_eq!(money("1", "JPY").unwrap().minor, 1);
        assert_eq!(money("0.0001", "CLF").unwrap().minor, 1);
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in [
            "", ".5", "5.", "01", "-1", "+1", "1e2", " 1", "1 ", "1,0", "١", "0x1", "1.2.3", "NaN",
        ] {
            assert_eq!(money(text, "USD"), Err(AmountFault::Form), "{text:?}");
        }
        assert_eq!(money("0.00", "USD"), Err(AmountFault::Zero));
        assert_eq!(money("1.000", "USD"), Err(AmountFault::Decimals));
        assert_eq!(money("1.0", "JPY"), Err(AmountFault::Decimals));
        assert_eq!(
            money("99999999999999999999", "USD"),
            Err(AmountFault::TooLarge)
        );
    }

    #[test]
    fn values_carry_the_currencys_decimals_and_numbers_no_idle_zeros() {
        let cases = [
            ("10", "USD", "10.00", "10"),
            ("10.5", "USD", "10.50", "10.5"),
            ("0.01", "USD", "0.01", "0.01"),
            ("100", "JPY", "100", "100"),
            ("1.005", "KWD", "1.005", "1.005"),
        ];
        for (text, code, value, number) in cases {
            let money = money(text, code).unwrap();
            assert_eq!(money.value(), value);
            assert_eq!(money.major_number(), number);
        }
    }

    #[test]
    fn provider_numbers_are_read_exactly() {
        let usd = Currency::from_code("USD").unwrap();
        let minor = |text| Money::from_major(text, usd).map(|money| money.minor);
        assert_eq!(minor("15.00"), Some(1500));
        assert_eq!(minor("15.000000000000000000000000"), Some(1500));
        assert_eq!(minor("10"), Some(1000));
        assert_eq!(minor("1.5e1"), Some(1500));
        assert_eq!(minor("1500E-2"), Some(1500));
        assert_eq!(minor("0e999"), Some(0));
        for text in [
            "1.001",
            "-1",
            "1e400",
            "1e2147483647",
            "1e99999999999",
            "1e-2147483648",
        ] {
            assert_eq!(minor(text), None, "{text}");
        }
    }

    #[test]
    fn a_provider_may_count_other_minor_units() {
        let idr = Currency::from_code("IDR").unwrap();
        assert_eq!(
            money("10000.00", "IDR").unwrap().minor_units(0),
            Some(10_000)
        );
        assert_eq!(money("10000.50", "IDR").unwrap().minor_units(0), None);
        assert_eq!(
            Money::from_minor("10000", 0, idr).unwrap().value(),
            "10000.00"
        );
    }
}
