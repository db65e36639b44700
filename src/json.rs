//! JSON read one level at a time, from the text itself.
//!
//! Every value stays the text that was received until somebody asks for it. So numbers keep their decimals (no float is
//! ever made), nesting costs no stack however deep it is, and duplicate members stay visible, where a map would silently keep
//! one of them. `serde_json` says once, of the whole text, that it is JSON; after that, finding where a value ends takes
//! counting brackets and looking for quotes, and no parser again for each member that is asked for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::value::RawValue;

/// The text is not one JSON value in UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// One JSON value, as the text that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node<'a>(&'a str);

/// The members of an object in their order, duplicates included.
pub type Members<'a> = Vec<(Cow<'a, str>, Node<'a>)>;

/// What a JSON value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number
    Number,
    /// A string
    String,
    /// An array
    Array,
    /// An object
    Object,
}

impl<'a> Node<'a> {
    /// Reads one JSON value (RFC 8259, UTF-8) with nothing but white space around it.
    pub fn parse(text: &'a [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
        let raw: &RawValue = serde_json::from_str(text).map_err(|_| Malformed)?;
        Ok(Node(raw.get()))
    }

    /// What this value is.
    pub fn kind(self) -> Kind {
        match self.0.as_bytes().first() {
            Some(b'n') => Kind::Null,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'"') => Kind::String,
            Some(b'[') => Kind::Array,
            Some(b'{') => Kind::Object,
            _ => Kind::Number,
        }
    }

    /// The value's own JSON text.
    pub fn raw(self) -> &'a str {
        self.0
    }

    /// The text of a string; an error if an escape in it stands for no character (a lone surrogate).
    pub fn string(self) -> Option<Result<Cow<'a, str>, Malformed>> {
        let inner = self.0.strip_prefix('"')?.strip_suffix('"')?;
        Some(if inner.contains('\\') {
            serde_json::from_str(self.0)
                .map(Cow::Owned)
                .map_err(|_| Malformed)
        } else {
            Ok(Cow::Borrowed(inner))
        })
    }

    /// The text of a string that is one.
    pub fn text(self) -> Option<Cow<'a, str>> {
        self.string()?.ok()
    }

    /// The decimal text of a number, as it was written.
    pub fn number(self) -> Option<&'a str> {
        (self.kind() == Kind::Number).then_some(self.0)
    }

    /// The members of an object, duplicates included; an error if a name holds a lone surrogate.
    pub fn members(self) -> Option<Result<Members<'a>, Malformed>> {
        let walk = Walk::into(self, '{')?;
        Some(walk.members().collect())
    }

    /// The items of an array.
    pub fn items(self) -> Option<Vec<Node<'a>>> {
        let mut walk = Walk::into(self, '[')?;
        Some(std::iter::from_fn(|| walk.value()).collect())
    }

    /// The one member with this name of an object. `null` is as good as absent, and so is a name that stands there
    /// twice: which of the two would count is anybody's guess.
    pub fn get(self, name: &str) -> Option<Node<'a>> {
        let mut found = None;
        for member in Walk::into(self, '{')?.members() {
            let (member, node) = member.ok()?;
            if member == name && found.replace(node).is_some() {
                return None;
            }
        }
        found.filter(|node| node.kind() != Kind::Null)
    }

    /// Whether this is an object in which no name stands twice.
    pub fn is_plain_object(self) -> bool {
        let Some(Ok(mut members)) = self.members() else {
            return false;
        };
        members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        !members
            .windows(2)
            .any(|pair| matches!(pair, [(a, _), (b, _)] if a == b))
    }
}

/// Goes through the values of an object or an array, of which it is known that it is JSON.
struct Walk<'a>(&'a str);

impl<'a> Walk<'a> {
    fn into(node: Node<'a>, bracket: char) -> Option<Self> {
        node.0.strip_prefix(bracket).map(Walk)
    }

    /// The next value; a member's name is one, too.
    fn value(&mut self) -> Option<Node<'a>> {
        let between = |b: u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b',' | b':');
        let start = self.0.bytes().position(|b| !between(b))?;
        let rest = self.0.get(start..)?;
        let (value, rest) = rest.split_at_checked(length(rest.as_bytes())?)?;
        self.0 = rest;
        Some(Node(value))
    }

    fn members(mut self) -> impl Iterator<Item = Result<(Cow<'a, str>, Node<'a>), Malformed>> {
        std::iter::from_fn(move || {
            let name = self.value()?.string()?;
            let value = self.value()?;
            Some(name.map(|name| (name, value)))
        })
    }
}

/// How many bytes the value has with which this JSON begins; none where no value begins.
fn length(text: &[u8]) -> Option<usize> {
    let mut bytes = text.iter().enumerate();
    let mut depth = 0usize;
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => loop {
                match bytes.next()?.1 {
                    b'"' => break,
                    b'\\' => drop(bytes.next()),
                    _ => {}
                }
            },
            b'{' | b'[' => depth = depth.saturating_add(1),
            b'}' | b']' => depth = depth.checked_sub(1)?,
            // A number or a word, which ends where something else begins.
            _ if depth == 0 => {
                let ends = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b',' | b']' | b'}');
                let more = bytes.position(|(_, b)| ends(b));
                return Some(
                    more.map_or(text.len(), |more| at.saturating_add(more).saturating_add(1)),
                );
            }
            _ => continue,
        }
        if depth == 0 {
            return Some(text.len().saturating_sub(bytes.len()));
        }
    }
    None
}

/// Which of the members of one name counts: readers of JSON are not of one mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// The first.
    First,
    /// The last.
    Last,
}

impl Node<'_> {
    /// The value's text as one reads it for whom one of several members of a name counts.
    pub fn read_by(self, counts: Counts) -> String {
        // As deep as any provider's reply goes. Each level is read anew: without a bound, nesting would cost the square of
        // its depth.
        const DEEPEST: u8 = 8;
        let mut out = String::with_capacity(self.0.len());
        self.write_by(counts, DEEPEST, &mut out);
        out
    }

    fn write_by(self, counts: Counts, deepest: u8, out: &mut String) {
        let Some(deeper) = deepest.checked_sub(1) else {
            return out.push_str(self.0);
        };
        if let Some(Ok(members)) = self.members() {
            // In the order of names: a reply full of them must not cost the square of their number.
            let mut kept = BTreeMap::new();
            for (name, node) in members {
                match (kept.entry(name), counts) {
                    (Entry::Occupied(mut known), Counts::Last) => drop(known.insert(node)),
                    (Entry::Occupied(_), Counts::First) => {}
                    (Entry::Vacant(place), _) => drop(place.insert(node)),
                }
            }
            out.push('{');
            for (index, (name, node)) in kept.into_iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                out.push_str(&crate::json_text(&name));
                out.push(':');
                node.write_by(counts, deeper, out);
            }
            out.push('}');
        } else if let Some(items) = self.items() {
            out.push('[');
            for (index, node) in items.into_iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                node.write_by(counts, deeper, out);
            }
            out.push(']');
        } else {
            out.push_str(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_text() {
        let node = Node::parse(br#" {"a": 15.00, "b": 1E2, "c": "x\u00e9"} "#).unwrap();
        assert_eq!(node.get("a").unwrap().number(), Some("15.00"));
        assert_eq!(node.get("b").unwrap().number(), Some("1E2"));
        assert_eq!(node.get("c").unwrap().text().unwrap(), "xé");
    }

    #[test]
    fn what_is_not_one_json_value_is_malformed() {
        for text in [
            &b""[..],
            b"{",
            b"{} {}",
            b"{}x",
            b"{'a':1}",
            b"{\"a\":01}",
            b"{\"a\":1,}",
            b"\xff",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":\"\n\"}",
            b"\xef\xbb\xbf{}",
            b"nul",
        ] {
            assert_eq!(Node::parse(text), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn a_member_that_stands_twice_is_none() {
        let node = Node::parse(br#"{"a":1,"\u0061":2,"b":null}"#).unwrap();
        assert_eq!(node.get("a"), None);
        assert_eq!(node.get("b"), None);
        assert!(!node.is_plain_object());
    }

    #[test]
    fn nesting_costs_no_stack() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        let node = Node::parse(deep.as_bytes()).unwrap();
        assert_eq!(node.get("a").unwrap().kind(), Kind::Array);
    }

    #[test]
    fn a_lone_surrogate_is_malformed_where_it_is_read() {
        let node = Node::parse(br#"{"a":"\ud800"}"#).unwrap();
        assert_eq!(node.get("a").unwrap().string(), Some(Err(Malformed)));
    }
}
