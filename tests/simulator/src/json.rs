//! JSON that keeps the order of members and the text of numbers.
//!
//! The pages print `15.00` and `10` in one answer (BBMSL), and an amount must never pass through a
//! float; `serde_json`'s own value loses both. A member given twice is malformed.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Deeper than anything a page shows, and far from the end of the stack.
const DEEPEST: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// As written.
    Number(String),
    Text(String),
    Array(Vec<Json>),
    /// In the order written.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads one whole JSON text. Malformed, not UTF-8, a repeated member: `None`.
    pub fn parse(bytes: &[u8]) -> Option<Json> {
        let text = std::str::from_utf8(bytes).ok()?;
        let raw: &RawValue = serde_json::from_str(text).ok()?;
        Json::from_raw(raw, DEEPEST)
    }

    fn from_raw(raw: &RawValue, depth: usize) -> Option<Json> {
        let depth = depth.checked_sub(1)?;
        let text = raw.get().trim();
        Some(match text.as_bytes().first()? {
            b'{' => {
                let Members(members) = serde_json::Deserializer::from_str(text)
                    .deserialize_map(MembersOnce)
                    .ok()?;
                let mut object = Vec::with_capacity(members.len());
                for (name, value) in members {
                    object.push((name, Json::from_raw(value, depth)?));
                }
                Json::Object(object)
            }
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
                Json::Array(
                    items
                        .into_iter()
                        .map(|item| Json::from_raw(item, depth))
                        .collect::<Option<_>>()?,
                )
            }
            b'"' => Json::Text(serde_json::from_str(text).ok()?),
            b't' => Json::Bool(true),
            b'f' => Json::Bool(false),
            b'n' => Json::Null,
            _ => Json::Number(text.to_owned()),
        })
    }

    /// An object of these members.
    pub fn object<const N: usize>(members: [(&str, Json); N]) -> Json {
        Json::Object(members.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// A number of exactly this text.
    pub fn number(text: impl Into<String>) -> Json {
        Json::Number(text.into())
    }

    /// Adds a member at the end; nothing, where this is no object.
    pub fn add(&mut self, name: &str, value: impl Into<Json>) {
        if let Json::Object(members) = self {
            members.push((name.to_owned(), value.into()));
        }
    }

    /// The member of that name, where this is an object.
    pub fn member(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.iter().find(|(n, _)| n == name).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text of the member of that name, where it is one.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.member(name) {
            Some(Json::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The first member that is not one of `known`.
    pub fn stranger(&self, known: &[&str]) -> Option<&str> {
        match self {
            Json::Object(members) => members
                .iter()
                .map(|(name, _)| name.as_str())
                .find(|name| !known.contains(name)),
            _ => None,
        }
    }

    /// Replaces what the JSON Pointer (RFC 6901) names, adds it where only its parent is there, or
    /// removes it (`None`).
    pub fn alter(&mut self, pointer: &str, value: Option<Json>) {
        let Some((parent, last)) = pointer.rsplit_once('/') else {
            if let Some(value) = value {
                *self = value;
            }
            return;
        };
        let mut at = self;
        for name in parent.split('/').skip(1) {
            match at.step(&unescaped(name)) {
                Some(next) => at = next,
                None => return,
            }
        }
        let last = unescaped(last);
        match (value, at) {
            (Some(value), at) => match at.step(&last) {
                Some(found) => *found = value,
                None => at.add(&last, value),
            },
            (None, Json::Object(members)) => members.retain(|(name, _)| *name != last),
            (None, Json::Array(items)) => {
                if let Some(index) = last.parse().ok().filter(|index| *index < items.len()) {
                    items.remove(index);
                }
            }
            (None, _) => {}
        }
    }

    fn step(&mut self, name: &str) -> Option<&mut Json> {
        match self {
            Json::Object(members) => members.iter_mut().find(|(n, _)| n == name).map(|(_, v)| v),
            Json::Array(items) => items.get_mut(name.parse::<usize>().ok()?),
            _ => None,
        }
    }
}

fn unescaped(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Json {
        Json::Text(text)
    }
}

impl From<u64> for Json {
    fn from(number: u64) -> Json {
        Json::Number(number.to_string())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &String| serde_json::to_string(text).map_err(|_| fmt::Error);
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Number(text) => f.write_str(text),
            Json::Text(text) => f.write_str(&quoted(text)?),
            Json::Array(items) => {
                f.write_str("[")?;
                for (nth, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if nth == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
            Json::Object(members) => {
                f.write_str("{")?;
                for (nth, (name, value)) in members.iter().enumerate() {
                    let comma = if nth == 0 { "" } else { "," };
                    write!(f, "{comma}{}:{value}", quoted(name)?)?;
                }
                f.write_str("}")
            }
        }
    }
}

struct Members<'a>(Vec<(String, &'a RawValue)>);

struct MembersOnce;

impl<'de> Visitor<'de> for MembersOnce {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object whose members have names of their own")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<(String, &RawValue)> = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            if members.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom("a member is there twice"));
            }
            members.push((name, value));
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::Json;

    #[test]
    fn numbers_and_order_survive() {
        let text = r#"{"b":15.00,"a":[10,-1e3,null,true,"\"é"],"o":{}}"#;
        assert_eq!(
            Json::parse(text.as_bytes()).expect("JSON").to_string(),
            text
        );
    }

    #[test]
    fn a_member_given_twice_is_malformed() {
        assert_eq!(Json::parse(br#"{"a":1,"a":1}"#), None);
        assert_eq!(Json::parse(br#"{"x":{"a":1,"\u0061":1}}"#), None);
    }

    #[test]
    fn depth_has_an_end() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(Json::parse(deep.as_bytes()), None);
    }

    #[test]
    fn members_are_altered_added_and_removed() {
        let mut json = Json::parse(br#"{"a":{"b":1.50},"c":[1,2]}"#).expect("JSON");
        json.alter("/a/b", Some(Json::number("2.50")));
        json.alter("/a/new", Some(Json::Null));
        json.alter("/c/0", None);
        assert_eq!(json.to_string(), r#"{"a":{"b":2.50,"new":null},"c":[2]}"#);
        json.alter("/a", None);
        assert_eq!(json.to_string(), r#"{"c":[2]}"#);
    }
}
