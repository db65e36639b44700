//! JSON read one level at a time, from the text itself.
//!
//! Every value stays the text that was received until somebody asks for it. So numbers keep their
//! decimals (no float is ever made), nesting costs no stack however deep it is, and duplicate
//! members stay visible, where a map would silently keep one of them. `serde_json` says that the
//! text is JSON; after that, where each value begins and ends is noted once, by counting
//! brackets and looking for quotes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde_json::value::RawValue;

/// The text is not one JSON value in UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The most values that are noted of one text. It bounds memory; real replies have under 10,000
/// values.
const MOST_VALUES: usize = 100_000;

/// A JSON text, and where its values are.
pub struct Json<'t> {
    text: &'t str,
    spans: Vec<Span>,
}

/// Where a value begins and ends, the number of the value after it and all that is in it, and
/// whether it is a string with escapes.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
    after: u32,
    escaped: bool,
}

/// The text of an object with these members: their names, and their values as JSON.
pub fn object<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let members = members.into_iter();
    let members: Vec<String> = members
        .map(|(name, value)| format!("{}:{value}", crate::json_text(name)))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// One value of a JSON text.
#[derive(Clone, Copy)]
pub struct Node<'j> {
    json: &'j Json<'j>,
    at: u32,
    span: Span,
}

impl fmt::Debug for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.raw())
    }
}

/// Two values are the same if their texts are.
impl PartialEq for Node<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.raw() == other.raw()
    }
}

impl<'t> Json<'t> {
    /// Reads one JSON value (RFC 8259, UTF-8) with nothing but white space around it.
    pub fn parse(text: &'t [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
        let raw: &RawValue = serde_json::from_str(text).map_err(|_| Malformed)?;
        let text = raw.get();
        let spans = note(text.as_bytes()).ok_or(Malformed)?;
        Ok(Json { text, spans })
    }

    /// The value.
    pub fn root(&self) -> Node<'_> {
        let whole = Span {
            start: 0,
            end: u32::try_from(self.text.len()).unwrap_or(u32::MAX),
            after: u32::try_from(self.spans.len()).unwrap_or(u32::MAX),
            escaped: self.spans.first().is_some_and(|span| span.escaped),
        };
        Node {
            json: self,
            at: 0,
            span: whole,
        }
    }
}

impl Json<'_> {
    /// Whether a string in it, wherever it stands, is this word.
    pub fn says(&self, word: &str) -> bool {
        let is = |(at, span): (usize, &Span)| {
            let node = Node {
                json: self,
                at: u32::try_from(at).unwrap_or(u32::MAX),
                span: *span,
            };
            node.text().as_deref() == Some(word)
        };
        self.spans.iter().enumerate().any(is)
    }
}

/// Notes the values of what is known to be JSON, each before what is in it; none where there are
/// too many.
fn note(text: &[u8]) -> Option<Vec<Span>> {
    let mut spans: Vec<Span> = Vec::with_capacity(32);
    let mut open: Vec<usize> = Vec::new();
    let mut at = 0usize;
    while let Some(byte) = text.get(at) {
        let start = u32::try_from(at).ok()?;
        let count = u32::try_from(spans.len()).ok()?;
        let mut escaped = false;
        at = at.wrapping_add(1);
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' => continue,
            b'}' | b']' => {
                let span = spans.get_mut(open.pop()?)?;
                span.end = u32::try_from(at).ok()?;
                span.after = count;
                continue;
            }
            b'{' | b'[' => open.push(spans.len()),
            b'"' => loop {
                let rest = text.get(at..)?;
                let quote = rest.iter().position(|b| matches!(b, b'"' | b'\\'))?;
                let escape = rest.get(quote) == Some(&b'\\');
                at = at.wrapping_add(quote).wrapping_add(1);
                if !escape {
                    break;
                }
                escaped = true;
                at = at.wrapping_add(1);
            },
            // A number or a word, which ends where something else begins.
            _ => {
                let ends = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b',' | b']' | b'}');
                let rest = text.get(at..)?;
                at = at.wrapping_add(rest.iter().position(ends).unwrap_or(rest.len()));
            }
        }
        if spans.len() >= MOST_VALUES {
            return None;
        }
        spans.push(Span {
            start,
            end: u32::try_from(at).ok()?,
            after: count.wrapping_add(1),
            escaped,
        });
    }
    open.is_empty().then_some(spans)
}

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
    /// What this value is.
    pub fn kind(self) -> Kind {
        match self.raw().as_bytes().first() {
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
        let range =
            |from: u32, to: u32| Some(usize::try_from(from).ok()?..usize::try_from(to).ok()?);
        range(self.span.start, self.span.end)
            .and_then(|range| self.json.text.get(range))
            .unwrap_or_default()
    }

    /// The text of a string; an error if an escape in it stands for no character (a lone
    /// surrogate).
    pub fn string(self) -> Option<Result<Cow<'a, str>, Malformed>> {
        let inner = self.inner()?;
        Some(if self.span.escaped {
            serde_json::from_str(self.raw())
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
        (self.kind() == Kind::Number).then(|| self.raw())
    }

    /// What stands between the quotes of a string.
    fn inner(self) -> Option<&'a str> {
        self.raw().strip_prefix('"')?.strip_suffix('"')
    }

    /// The values right in this one; a member's name is one, too.
    fn values(self) -> impl Iterator<Item = Node<'a>> {
        let (json, end) = (self.json, self.span.after);
        let mut at = self.at.wrapping_add(1);
        std::iter::from_fn(move || {
            let span = *json.spans.get(usize::try_from(at).ok()?)?;
            let node = Node { json, at, span };
            (at < end).then(|| {
                at = span.after;
                node
            })
        })
    }

    fn pairs(self) -> Option<impl Iterator<Item = (Node<'a>, Node<'a>)>> {
        let mut values = self.values();
        (self.kind() == Kind::Object)
            .then(|| std::iter::from_fn(move || Some((values.next()?, values.next()?))))
    }

    /// The members of an object, duplicates included; an error if a name holds a lone surrogate.
    pub fn members(self) -> Option<Result<Members<'a>, Malformed>> {
        let members = self.pairs()?.map(|(name, value)| {
            let name = name.string().unwrap_or(Err(Malformed))?;
            Ok((name, value))
        });
        Some(members.collect())
    }

    /// The items of an array.
    pub fn items(self) -> Option<Vec<Node<'a>>> {
        (self.kind() == Kind::Array).then(|| self.values().collect())
    }

    /// The one member with this name of an object. `null` is as good as absent, and so is a name
    /// that stands there twice: which of the two would count is anybody's guess.
    pub fn get(self, name: &str) -> Option<Node<'a>> {
        let mut found = None;
        for (member, value) in self.pairs()? {
            let inner = member.inner()?;
            let is = inner == name || member.span.escaped && member.string()?.ok()? == name;
            if is && found.replace(value).is_some() {
                return None;
            }
        }
        found.filter(|node| node.kind() != Kind::Null)
    }

    /// Whether this is an object in which no name stands twice.
    pub fn is_plain_object(self) -> bool {
        // As many as any object of a provider's has: each against each is quicker than sorting.
        const FEW: usize = 32;
        let names = self.pairs().into_iter().flatten().map(|(name, _)| name);
        let plain: Option<Vec<&str>> = names
            .map(|name| name.inner().filter(|_| !name.span.escaped))
            .take(FEW.saturating_add(1))
            .collect();
        if let Some(names) = plain.filter(|names| names.len() <= FEW) {
            let mut rest = names.as_slice();
            let twice = std::iter::from_fn(|| {
                let (name, after) = rest.split_first()?;
                rest = after;
                Some(after.contains(name))
            })
            .any(|twice| twice);
            return self.kind() == Kind::Object && !twice;
        }
        let Some(Ok(mut members)) = self.members() else {
            return false;
        };
        members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        !members
            .windows(2)
            .any(|pair| matches!(pair, [(a, _), (b, _)] if a == b))
    }
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
        // As deep as any provider's reply goes. Each level is read anew: without a bound, nesting
        // would cost the square of its depth.
        const DEEPEST: u8 = 8;
        let mut out = String::with_capacity(self.raw().len());
        self.write_by(counts, DEEPEST, &mut out);
        out
    }

    fn write_by(self, counts: Counts, deepest: u8, out: &mut String) {
        let Some(deeper) = deepest.checked_sub(1) else {
            return out.push_str(self.raw());
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
            out.push_str(self.raw());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_text() {
        let json = Json::parse(br#" {"a": 15.00, "b": 1E2, "c": "x\u00e9"} "#).unwrap();
        let node = json.root();
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
            assert_eq!(Json::parse(text).err(), Some(Malformed), "{text:?}");
        }
    }

    #[test]
    fn a_member_that_stands_twice_is_none() {
        let json = Json::parse(br#"{"a":1,"\u0061":2,"b":null}"#).unwrap();
        let node = json.root();
        assert_eq!(node.get("a"), None);
        assert_eq!(node.get("b"), None);
        assert!(!node.is_plain_object());
    }

    #[test]
    fn nesting_costs_no_stack() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(90_000), "]".repeat(90_000));
        let json = Json::parse(deep.as_bytes()).unwrap();
        let node = json.root();
        assert_eq!(node.get("a").unwrap().kind(), Kind::Array);
    }

    #[test]
    fn a_text_full_of_values_takes_no_memory_for_them() {
        let full = format!("[{}1]", "1,".repeat(MOST_VALUES));
        assert_eq!(Json::parse(full.as_bytes()).err(), Some(Malformed));
    }

    #[test]
    fn a_lone_surrogate_is_malformed_where_it_is_read() {
        let json = Json::parse(br#"{"a":"\ud800"}"#).unwrap();
        let node = json.root();
        assert_eq!(node.get("a").unwrap().string(), Some(Err(Malformed)));
    }
}
