//! Texts of a provider, made fit to be shown.

use crate::secret::Secret;

/// The most characters of a provider's text that are passed on.
const MAX_CHARS: usize = 500;
/// The fewest digits of a card number.
const SHORTEST_CARD_NUMBER: usize = 13;
/// A secret shorter than this is not looked for: it would hit words that are none.
const MIN_SECRET: usize = 6;

/// A provider's text without the secrets that it was sent.
pub fn without_secrets(text: &str, secrets: &[Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().map(Secret::expose) {
        if secret.len() >= MIN_SECRET && text.contains(secret) {
            text = text.replace(secret, "[redacted]");
        }
    }
    text
}

/// A provider's text without the secrets that it was sent, without card numbers and control
/// characters, and not too long.
pub fn clean(text: &str, secrets: &[Secret]) -> String {
    let text: String = without_secrets(text, secrets)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    if digits < SHORTEST_CARD_NUMBER && text.len() <= MAX_CHARS {
        return text;
    }
    // Cut last: a number cut in two would no longer look like one.
    mask_card_numbers(&text).chars().take(MAX_CHARS).collect()
}

/// Masks all but the last four digits of what is shaped like a card number (ISO/IEC 7812): 13 to 19
/// digits, alone or in groups with one space or hyphen between them.
fn mask_card_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut run = String::new();
    for c in text.chars() {
        let continues = !run.is_empty() && !run.ends_with([' ', '-']);
        if c.is_ascii_digit() || (c == ' ' || c == '-') && continues {
            run.push(c);
        } else {
            flush(&mut run, &mut out);
            out.push(c);
        }
    }
    flush(&mut run, &mut out);
    out
}

fn flush(run: &mut String, out: &mut String) {
    let digits = run.bytes().filter(u8::is_ascii_digit).count();
    // Longer runs are masked, too: a card number may stand beside another number.
    let mut to_mask = if digits >= SHORTEST_CARD_NUMBER {
        digits.saturating_sub(4)
    } else {
        0
    };
    for c in run.drain(..) {
        if c.is_ascii_digit() && to_mask > 0 {
            to_mask = to_mask.saturating_sub(1);
            out.push('*');
        } else {
            out.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn card_numbers_are_masked_and_other_numbers_kept() {
        let clean = |text: &str| clean(text, &[]);
        assert_eq!(
            clean("card 4111111111111111 declined"),
            "card ************1111 declined"
        );
        assert_eq!(clean("4111 1111 1111 1111"), "**** **** **** 1111");
        assert_eq!(clean("4111-1111-1111-1111."), "****-****-****-1111.");
        assert_eq!(clean("order 123456789012"), "order 123456789012");
        assert_eq!(clean("400000XXXXXX0028"), "400000XXXXXX0028");
    }

    #[test]
    fn a_credential_that_comes_back_is_not_passed_on() {
        let secret = Secret::new("sk_live_canary".into());
        assert_eq!(
            clean("bad key sk_live_canary!", &[secret]),
            "bad key [redacted]!"
        );
    }

    #[test]
    fn control_characters_and_length_are_bounded() {
        assert_eq!(clean("a\r\nb\0", &[]), "a  b ");
        assert_eq!(clean(&"é".repeat(1000), &[]).chars().count(), 500);
    }
}
