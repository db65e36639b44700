//! The URLs of the configuration.

use crate::reader::{Object, Reader};

/// An absolute `http` or `https` URL without query, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host, and port where one is given.
    pub authority: String,
    /// The path: empty, or with a slash in front and none at its end.
    pub path: String,
}

impl Url {
    /// The URL as text.
    pub fn text(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority, self.path)
    }

    /// Reads one.
    fn read(text: &str) -> Option<Self> {
        let (scheme, rest) = if let Some(rest) = text.strip_prefix("https://") {
            ("https", rest)
        } else {
            ("http", text.strip_prefix("http://")?)
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, String::new()),
        };
        let sound = |text: &str, more: &[u8]| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b) || more.contains(&b))
        };
        (!authority.is_empty() && sound(authority, b"") && sound(&path, b"/~%")).then(|| Url {
            scheme,
            authority: authority.to_owned(),
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

impl Reader<'_> {
    /// A URL that must be there.
    pub fn url(&mut self, object: &mut Object<'_>, name: &'static str) -> Option<Url> {
        let text = self.required_text(object, name)?;
        let url = Url::read(&text);
        if url.is_none() {
            self.fault(
                object.at(name),
                "This must be an absolute http or https URL without credentials, query and fragment.",
            );
        }
        url
    }
}
