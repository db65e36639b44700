//! A JSON reader (RFC 8259) that shares nothing with the one under test: numbers keep their text,
//! members that stand twice stay visible, and so does a string that stands for no text.

/// How deep the reader goes. It recurses; the one under test does not.
const DEEPEST: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Json {
    Null,
    Bool(bool),
    /// As it was written.
    Number(String),
    Text(String),
    /// A string with half a surrogate pair in it, or an object with such a name.
    NoText,
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Why a text was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// It is not JSON.
    NotJson,
    /// It may be, and is too deep for this reader to say.
    TooDeep,
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'j> {
    Nothing,
    Twice,
    Once(&'j Json),
}

pub fn read(bytes: &[u8]) -> Result<Json, Unread> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unread::NotJson)?;
    let mut reader = Reader { rest: text };
    let json = reader.value(0)?;
    reader.space();
    match reader.rest {
        "" => Ok(json),
        _ => Err(Unread::NotJson),
    }
}

impl Json {
    pub fn members(&self) -> Option<&[(String, Json)]> {
        match self {
            Json::Object(members) => Some(members),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The text of a string or a number.
    pub fn scalar(&self) -> Option<&str> {
        match self {
            Json::Text(text) | Json::Number(text) => Some(text),
            _ => None,
        }
    }

    pub fn find(&self, name: &str) -> Found<'_> {
        let mut named = self
            .members()
            .unwrap_or_default()
            .iter()
            .filter(|(known, _)| known == name);
        match (named.next(), named.next()) {
            (None, _) => Found::Nothing,
            (Some((_, json)), None) => Found::Once(json),
            (Some(_), Some(_)) => Found::Twice,
        }
    }

    /// The one member of this name; `null` is none.
    pub fn get(&self, name: &str) -> Option<&Json> {
        match self.find(name) {
            Found::Once(json) if *json != Json::Null => Some(json),
            _ => None,
        }
    }

    /// The names that stand twice or more in this object.
    pub fn doubled(&self) -> Vec<&str> {
        let members = self.members().unwrap_or_default();
        let mut names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let mut doubled: Vec<&str> = names
            .windows(2)
            .filter(|pair| pair[0] == pair[1])
            .map(|pair| pair[0])
            .collect();
        doubled.dedup();
        doubled
    }

    /// This value and all in it, with the name under which each stands.
    pub fn walk<'j>(
        &'j self,
        name: Option<&'j str>,
        see: &mut impl FnMut(Option<&'j str>, &'j Json),
    ) {
        see(name, self);
        match self {
            Json::Array(items) => items.iter().for_each(|item| item.walk(None, see)),
            Json::Object(members) => members
                .iter()
                .for_each(|(name, member)| member.walk(Some(name), see)),
            _ => {}
        }
    }

    pub fn any(&self, mut test: impl FnMut(Option<&str>, &Json) -> bool) -> bool {
        let mut found = false;
        self.walk(None, &mut |name, json| found |= test(name, json));
        found
    }

    /// Whether a JSON pointer (RFC 6901) names something here, or something that could be added
    /// here. Where a name stands twice, either will do; names are told up to their 64th
    /// character.
    pub fn takes_pointer(&self, pointer: &str) -> bool {
        let Some(rest) = pointer.strip_prefix('/') else {
            return pointer.is_empty();
        };
        let (token, below) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let sound = token
            .split('~')
            .skip(1)
            .all(|after| after.starts_with(['0', '1']));
        let name = token.replace("~1", "/").replace("~0", "~");
        let fits = |known: &str| known.chars().take(64).eq(name.chars());
        match self {
            Json::Array(items) => token
                .parse::<usize>()
                .ok()
                .filter(|index| index.to_string() == token)
                .and_then(|index| items.get(index))
                .is_some_and(|item| item.takes_pointer(below)),
            Json::Object(members) => {
                let mut named = members.iter().filter(|(known, _)| fits(known)).peekable();
                sound
                    && match named.peek() {
                        Some(_) => named.any(|(_, member)| member.takes_pointer(below)),
                        None => below.is_empty(),
                    }
            }
            _ => false,
        }
    }
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn take(&mut self, prefix: &str) -> bool {
        let after = self.rest.strip_prefix(prefix);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn need(&mut self, prefix: &str) -> Result<(), Unread> {
        self.take(prefix).then_some(()).ok_or(Unread::NotJson)
    }

    fn value(&mut self, depth: usize) -> Result<Json, Unread> {
        if depth > DEEPEST {
            return Err(Unread::TooDeep);
        }
        self.space();
        match self.rest.chars().next() {
            Some('n') => self.need("null").map(|()| Json::Null),
            Some('t') => self.need("true").map(|()| Json::Bool(true)),
            Some('f') => self.need("false").map(|()| Json::Bool(false)),
            Some('"') => Ok(self.string()?.map_or(Json::NoText, Json::Text)),
            Some('[') => self.array(depth),
            Some('{') => self.object(depth),
            _ => self.number(),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Json, Unread> {
        self.need("[")?;
        let mut items = Vec::new();
        self.space();
        if self.take("]") {
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take("]") {
                return Ok(Json::Array(items));
            }
            self.need(",")?;
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, Unread> {
        self.need("{")?;
        let mut members = Vec::new();
        let mut sound = true;
        self.space();
        if self.take("}") {
            return Ok(Json::Object(members));
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            self.need(":")?;
            let value = self.value(depth + 1)?;
            match name {
                Some(name) => members.push((name, value)),
                None => sound = false,
            }
            self.space();
            if self.take("}") {
                return Ok(if sound {
                    Json::Object(members)
                } else {
                    Json::NoText
                });
            }
            self.need(",")?;
        }
    }

    fn number(&mut self) -> Result<Json, Unread> {
        let start = self.rest;
        self.take("-");
        let whole = self.digits();
        if whole.is_empty() || whole.len() > 1 && whole.starts_with('0') {
            return Err(Unread::NotJson);
        }
        if self.take(".") && self.digits().is_empty() {
            return Err(Unread::NotJson);
        }
        if self.take("e") || self.take("E") {
            let _signed = self.take("+") || self.take("-");
            if self.digits().is_empty() {
                return Err(Unread::NotJson);
            }
        }
        Ok(Json::Number(
            start[..start.len() - self.rest.len()].to_owned(),
        ))
    }

    fn digits(&mut self) -> &str {
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        digits
    }

    /// A string's text; none where half a surrogate pair stands in it.
    fn string(&mut self) -> Result<Option<String>, Unread> {
        self.need("\"")?;
        let mut units: Vec<u16> = Vec::new();
        loop {
            let c = self.rest.chars().next().ok_or(Unread::NotJson)?;
            self.rest = &self.rest[c.len_utf8()..];
            match c {
                '"' => return Ok(String::from_utf16(&units).ok()),
                '\0'..='\x1f' => return Err(Unread::NotJson),
                '\\' => units.push(self.escape()?),
                c => units.extend_from_slice(c.encode_utf16(&mut [0; 2])),
            }
        }
    }

    fn escape(&mut self) -> Result<u16, Unread> {
        let escaped = self.rest.chars().next().ok_or(Unread::NotJson)?;
        self.rest = &self.rest[escaped.len_utf8()..];
        let c = match escaped {
            '"' | '\\' | '/' => escaped,
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let hex = self.rest.get(..4).ok_or(Unread::NotJson)?;
                if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(Unread::NotJson);
                }
                self.rest = &self.rest[4..];
                return u16::from_str_radix(hex, 16).map_err(|_| Unread::NotJson);
            }
            _ => return Err(Unread::NotJson),
        };
        Ok(c as u16)
    }
}
