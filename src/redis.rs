//! The words that Redis and Valkey are spoken to in (RESP 2): one script that compares and swaps, and what its answers mean.
//!
//! A call goes over a connection of its own, so it begins with the password. The script is sent whole each time: to keep it in
//! the store would need more rights, and a store that has forgotten it would cost a second round trip.

use std::fmt;

use zeroize::Zeroizing;

use crate::secret::Secret;

/// Compares all keys with what they are thought to hold, and writes those that are to be written if every one of them does.
///
/// `KEYS`: what is asked about. `ARGV`: a word that comes back, the last moment in milliseconds at which anything may be written,
/// and for each key what it is thought to hold, what it is to hold (nothing: it is only read), and for how many milliseconds. The
/// answer: the word, the store's clock, and what each key holds now.
///
/// It needs no other rights than `+eval +get +set +time`, and runs on Redis 5 and later.
const SCRIPT: &str = "local t=redis.call('TIME') \
local now=string.format('%d',t[1]*1000+math.floor(t[2]/1000)) \
local stands,same,writes={ARGV[1],now},true,false \
for i,key in ipairs(KEYS) do \
local value=redis.call('GET',key) or '' \
stands[i+2]=value \
if value~=ARGV[3*i] then same=false end \
if ARGV[3*i+1]~='' then writes=true end \
end \
if same and writes then \
if tonumber(now)>tonumber(ARGV[2]) then return redis.error_reply('LATE '..now) end \
for i,key in ipairs(KEYS) do \
if ARGV[3*i+1]~='' then redis.call('SET',key,ARGV[3*i+1],'PX',ARGV[3*i+2]) stands[i+2]=ARGV[3*i+1] end \
end \
end \
return stands";

/// One key, what it is thought to hold, and what it is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// Its name in the store.
    pub key: String,
    /// What it is thought to hold; empty where there is nothing.
    pub was: Vec<u8>,
    /// What it is to hold; empty where it is only read.
    pub new: Vec<u8>,
}

/// All that one call of the script does: everything or nothing.
#[derive(Debug, Clone, Copy)]
pub struct Swaps<'a> {
    /// The keys.
    pub swaps: &'a [Swap],
    /// Comes back with the answer: so it is told from the answer to another call.
    pub word: u64,
    /// The last moment at which anything may be written, by the store's clock in milliseconds.
    pub deadline_ms: i64,
    /// For how long it is kept, in milliseconds.
    pub ttl_ms: i64,
}

/// Who speaks.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// The ACL user; none: the store's default one.
    pub username: Option<&'a str>,
    /// The password.
    pub password: &'a Secret,
}

impl Swaps<'_> {
    /// The bytes to be sent. They hold the password.
    pub fn request(&self, login: Option<Login<'_>>) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(2_048));
        if let Some(Login { username, password }) = login {
            let words = [Some("AUTH"), username, Some(password.expose())];
            let words: Vec<&[u8]> = words.iter().flatten().map(|word| word.as_bytes()).collect();
            command(&mut out, &words);
        }
        let count = self.swaps.len().to_string();
        let word = self.word();
        let (deadline, ttl) = (self.deadline_ms.to_string(), self.ttl_ms.to_string());
        let mut words: Vec<&[u8]> = vec![b"EVAL", SCRIPT.as_bytes(), count.as_bytes()];
        words.extend(self.swaps.iter().map(|swap| swap.key.as_bytes()));
        words.extend([word.as_bytes(), deadline.as_bytes()]);
        for swap in self.swaps {
            words.extend([&*swap.was, &*swap.new, ttl.as_bytes()]);
        }
        command(&mut out, &words);
        out
    }

    fn word(&self) -> String {
        format!("{:016x}", self.word)
    }

    /// Reads the whole answer.
    pub fn answer(&self, logged_in: bool, bytes: &[u8]) -> Result<Stands, Fault> {
        let mut rest = bytes;
        if logged_in && line(&mut rest)? != b"+OK" {
            return Err(Fault::Garbled);
        }
        let head = line(&mut rest)?;
        let count = self.swaps.len().checked_add(2).ok_or(Fault::Garbled)?;
        if head != format!("*{count}").as_bytes() {
            return Err(Fault::Garbled);
        }
        if bulk(&mut rest)? != self.word().as_bytes() {
            return Err(Fault::Garbled);
        }
        let now_ms = number(bulk(&mut rest)?).ok_or(Fault::Garbled)?;
        let values = (0..self.swaps.len()).map(|_| bulk(&mut rest).map(<[u8]>::to_vec));
        let values = values.collect::<Result<_, _>>()?;
        if !rest.is_empty() {
            return Err(Fault::Garbled);
        }
        Ok(Stands { now_ms, values })
    }
}

/// What the store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stands {
    /// Its clock, in milliseconds of Unix time.
    pub now_ms: i64,
    /// What each key holds now, in the order of the call; empty where there is nothing.
    pub values: Vec<Vec<u8>>,
}

/// Why the store has not done what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The deadline was over when it came to it; its clock in milliseconds.
    Late(i64),
    /// It cannot now, and may soon: it loads its data, is busy, has lost its primary or is none, or its replicas.
    Busy(&'static str),
    /// It will not before somebody has done something: memory, rights, password, slots.
    Refused(&'static str),
    /// What came is not an answer to this call, or not all of one.
    Garbled,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Late(_) => out.write_str("its clock was past the call's deadline"),
            Fault::Busy(word) | Fault::Refused(word) => write!(out, "it said {word}"),
            Fault::Garbled => out.write_str("its answer could not be read"),
        }
    }
}

/// The first words of errors, and whether they go by themselves. Nothing is written with any of them.
const BUSY: [&str; 7] = [
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "READONLY",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "TRYAGAIN",
];
const REFUSED: [&str; 9] = [
    "OOM",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "MOVED",
    "CROSSSLOT",
    "MISCONF",
    "WRONGTYPE",
    "ERR",
];

impl Fault {
    /// Of an error's line, without its `-`. What it says beyond its first word is the store's own, and is not passed on.
    fn of(line: &[u8]) -> Self {
        let text = String::from_utf8_lossy(line);
        let mut words = text.split(' ');
        let first = words.next().unwrap_or_default();
        if first == "LATE"
            && let Some(now_ms) = words.next().and_then(|word| word.parse().ok())
        {
            return Fault::Late(now_ms);
        }
        // Before 7 the script's own error stands inside of another one: `ERR Error running script …: -READONLY You can't …`.
        let inner = words.find_map(|word| word.strip_prefix('-'));
        let first = inner.filter(|_| first == "ERR").unwrap_or(first);
        let known = |list: &[&'static str]| list.iter().find(|word| **word == first).copied();
        match (known(&BUSY), known(&REFUSED)) {
            (Some(word), _) => Fault::Busy(word),
            (None, Some(word)) => Fault::Refused(word),
            (None, None) => Fault::Refused("an error that is not known"),
        }
    }
}

fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend(format!("${}\r\n", word.len()).as_bytes());
        out.extend(*word);
        out.extend(b"\r\n");
    }
}

/// Takes a line off. An error is one.
fn line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Fault> {
    let end = rest.windows(2).position(|two| two == b"\r\n");
    let (line, after) = end
        .and_then(|end| rest.split_at_checked(end))
        .ok_or(Fault::Garbled)?;
    *rest = after.get(2..).ok_or(Fault::Garbled)?;
    match line.strip_prefix(b"-") {
        Some(error) => Err(Fault::of(error)),
        None => Ok(line),
    }
}

/// Takes a bulk string off.
fn bulk<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Fault> {
    let head = line(rest)?.strip_prefix(b"$").and_then(number);
    let length = head.and_then(|length| usize::try_from(length).ok());
    let (value, after) = length
        .and_then(|length| rest.split_at_checked(length))
        .ok_or(Fault::Garbled)?;
    *rest = after.strip_prefix(b"\r\n").ok_or(Fault::Garbled)?;
    Ok(value)
}

/// A whole number without a sign.
fn number(digits: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}
