//! A secret that cannot be printed by accident.

use std::fmt;

use zeroize::Zeroizing;

/// A credential or private key. Its `Debug` says `[redacted]`, it has no `Display`, and its memory is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a secret's text.
    pub fn new(text: String) -> Self {
        Secret(Zeroizing::new(text))
    }

    /// The secret itself: for the one place that needs it, never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_no_secret() {
        assert_eq!(format!("{:?}", Secret::new("canary".into())), "[redacted]");
        assert_eq!(
            format!("{:?}", Some(Secret::new("canary".into()))),
            "Some([redacted])"
        );
    }
}
