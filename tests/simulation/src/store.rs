//! The store that gateways share, as Redis does what the filter's script asks of it: compare all keys, and
//! write all or none.
//!
//! The script's text is not run. `tests/gateway` has it in a real Redis.

use std::collections::HashMap;

use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::encode::encode;
use redis_protocol::resp2::types::{OwnedFrame as Frame, Resp2Frame as _};

use crate::time::BEGINNING_MS;

/// A store that forgets loses the writes of so long.
const LOST_MS: i64 = 1_000;

/// The first byte of a value tells its form: today's, and that of a version to come, which reads both.
const FORM: u8 = 1;
const NEWER_FORM: u8 = 2;

/// What it cannot do now, or will not: nothing is written.
pub const ERRORS: [&str; 8] = [
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica.",
    "NOREPLICAS Not enough good replicas to write.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "BUSY Redis is busy running a script.",
    "MASTERDOWN Link with MASTER is down",
    "CLUSTERDOWN The cluster is down",
    "ERR something else",
];

/// A value, and when it is over.
type Value = (Vec<u8>, i64);
/// When something was written, its key, and what stood there before.
type Written = (i64, Vec<u8>, Option<Value>);
/// One command's words.
type Words = Vec<Vec<u8>>;

/// See the module.
#[derive(Default)]
pub struct Store {
    values: HashMap<Vec<u8>, Value>,
    /// What its clock shows more than the world's.
    ahead_ms: i64,
    /// An older gateway takes what it cannot read for nothing.
    hides_newer: bool,
    /// What was written lately, and what stood there before.
    newest: Vec<Written>,
}

impl Store {
    /// An empty one, whose clock shows so much more than the world's. `hides_newer`: older gateways take what they cannot read for
    /// nothing.
    pub fn new(ahead_ms: i64, hides_newer: bool) -> Self {
        Store {
            ahead_ms,
            hides_newer,
            ..Store::default()
        }
    }

    /// Does what a connection brings, and gives what it sends back. What a newer gateway writes it keeps in another form, and gives
    /// it back to that one alone in the form in which it came.
    pub fn serve(&mut self, now: i64, is_newer: bool, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = bytes;
        while let Ok(Some((frame, size))) = decode(rest) {
            rest = &rest[size..];
            let reply = match words(frame) {
                Some(words) => self.command(now, is_newer, &words),
                None => Frame::Error("ERR Protocol error".to_owned()),
            };
            write(&reply, &mut out);
        }
        out
    }

    fn command(&mut self, now: i64, is_newer: bool, words: &[Vec<u8>]) -> Frame {
        match words.split_first() {
            Some((name, _)) if name == b"AUTH" => Frame::SimpleString(b"OK".to_vec()),
            Some((name, [_script, count, rest @ ..])) if name == b"EVAL" => {
                let reply = self.swap(now, is_newer, count, rest);
                reply.unwrap_or_else(|| Frame::Error("ERR of the script".to_owned()))
            }
            _ => Frame::Error("ERR unknown command".to_owned()),
        }
    }

    fn swap(&mut self, now: i64, is_newer: bool, count: &[u8], rest: &[Vec<u8>]) -> Option<Frame> {
        let count: usize = text(count)?.parse().ok()?;
        let (keys, arguments) = rest.split_at_checked(count)?;
        let (word, arguments) = arguments.split_first()?;
        let (deadline, swaps) = arguments.split_first()?;
        let deadline: i64 = text(deadline)?.parse().ok()?;
        let swaps: Vec<&[Vec<u8>]> = swaps.chunks_exact(3).collect();
        if swaps.len() != keys.len() {
            return None;
        }
        let clock_ms = BEGINNING_MS + now + self.ahead_ms;
        let mut stands: Vec<Vec<u8>> = keys.iter().map(|key| self.get(key, now)).collect();
        let hides = self.hides_newer && !is_newer;
        for value in &mut stands {
            match value.first_mut() {
                Some(form) if *form == NEWER_FORM && is_newer => *form = FORM,
                Some(form) if *form == NEWER_FORM && hides => value.clear(),
                _ => {}
            }
        }
        let same = stands
            .iter()
            .zip(&swaps)
            .all(|(stands, swap)| *stands == swap[0]);
        let writes = swaps.iter().any(|swap| !swap[1].is_empty());
        if same && writes {
            if clock_ms > deadline {
                return Some(Frame::Error(format!("LATE {clock_ms}")));
            }
            for ((key, swap), stands) in keys.iter().zip(&swaps).zip(&mut stands) {
                if !swap[1].is_empty() {
                    let ttl_ms: i64 = text(&swap[2])?.parse().ok()?;
                    let mut new = swap[1].clone();
                    // What says that nothing is known has one form in all versions.
                    if is_newer && let Some(form) = new.first_mut().filter(|form| **form == FORM) {
                        *form = NEWER_FORM;
                    }
                    self.set(key, new, now, now + ttl_ms);
                    stands.clone_from(&swap[1]);
                }
            }
        }
        let clock = clock_ms.to_string().into_bytes();
        let all = [word.clone(), clock].into_iter().chain(stands);
        Some(Frame::Array(all.map(Frame::BulkString).collect()))
    }

    fn get(&self, key: &[u8], now: i64) -> Vec<u8> {
        match self.values.get(key) {
            Some((value, until)) if *until > now => value.clone(),
            _ => Vec::new(),
        }
    }

    fn set(&mut self, key: &[u8], value: Vec<u8>, now: i64, until: i64) {
        let before = self.values.insert(key.to_vec(), (value, until));
        self.newest.retain(|(at, ..)| *at > now - LOST_MS);
        self.newest.push((now, key.to_vec(), before));
    }

    /// A replica takes over to which the newest writes had not come. Gives how many are lost.
    pub fn forgets(&mut self, now: i64) -> usize {
        let lost = std::mem::take(&mut self.newest).into_iter().rev();
        let lost = lost.filter(|(at, ..)| *at > now - LOST_MS);
        lost.map(|(_, key, before)| match before {
            Some(before) => drop(self.values.insert(key, before)),
            None => drop(self.values.remove(&key)),
        })
        .count()
    }
}

/// Whether this is a whole answer of a store's to the script, and no error.
pub fn is_answer(bytes: &[u8]) -> bool {
    let (mut rest, mut last) = (bytes, None);
    while let Ok(Some((frame, size))) = decode(rest) {
        rest = &rest[size..];
        last = Some(frame);
    }
    matches!(last, Some(Frame::Array(_)))
}

/// An error's bytes, after the answer to the password where there is one.
pub fn error(logged_in: bool, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    if logged_in {
        write(&Frame::SimpleString(b"OK".to_vec()), &mut out);
    }
    write(&Frame::Error(text.to_owned()), &mut out);
    out
}

fn words(frame: Frame) -> Option<Words> {
    let Frame::Array(frames) = frame else {
        return None;
    };
    let words = frames.into_iter().map(|frame| match frame {
        Frame::BulkString(word) => Some(word),
        _ => None,
    });
    words.collect()
}

fn write(frame: &Frame, out: &mut Vec<u8>) {
    let begin = out.len();
    out.resize(begin + frame.encode_len(false), 0);
    let size = encode(&mut out[begin..], frame, false);
    out.truncate(begin + size.unwrap_or_default());
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(deadline: i64, swaps: &[(&str, &str, &str)]) -> Vec<u8> {
        let mut words = vec![
            "EVAL".to_owned(),
            "script".to_owned(),
            swaps.len().to_string(),
        ];
        words.extend(swaps.iter().map(|(key, ..)| (*key).to_owned()));
        words.extend(["w".to_owned(), (BEGINNING_MS + deadline).to_string()]);
        for (_, was, new) in swaps {
            words.extend([(*was).to_owned(), (*new).to_owned(), "100".to_owned()]);
        }
        let words = words.into_iter().map(|word| Frame::BulkString(word.into()));
        let mut out = Vec::new();
        write(&Frame::Array(words.collect()), &mut out);
        out
    }

    fn says(reply: &[u8]) -> String {
        String::from_utf8(reply.to_vec())
            .unwrap()
            .replace("\r\n", " ")
    }

    #[test]
    fn all_is_written_or_nothing() {
        let mut store = Store::default();
        store.serve(0, false, &call(5, &[("a", "", "1")]));
        // One of two is not as it was thought to be.
        let reply = store.serve(1, false, &call(5, &[("a", "1", "2"), ("b", "x", "3")]));
        assert!(says(&reply).ends_with("$1 1 $0  "), "{}", says(&reply));
        let reply = store.serve(2, false, &call(5, &[("a", "1", "2"), ("b", "", "3")]));
        assert!(says(&reply).ends_with("$1 2 $1 3 "), "{}", says(&reply));
    }

    #[test]
    fn nothing_is_written_after_the_deadline_and_all_is_gone_after_its_time() {
        let mut store = Store::default();
        let reply = store.serve(6, false, &call(5, &[("a", "", "1")]));
        assert!(says(&reply).starts_with("-LATE "), "{}", says(&reply));
        store.serve(5, false, &call(5, &[("a", "", "1")]));
        assert_eq!(store.get(b"a", 104), b"1");
        assert_eq!(store.get(b"a", 105), b"");
    }

    #[test]
    fn a_newer_gateway_reads_both_forms_and_an_older_one_its_own() {
        let mut store = Store::default();
        let (first, second) = ("\u{1}x", "\u{1}y");
        store.serve(0, false, &call(9_000, &[("a", "", first)]));
        let reply = store.serve(1, true, &call(9_000, &[("a", first, second)]));
        assert!(says(&reply).ends_with("$2 \u{1}y "), "{:?}", says(&reply));
        let reply = store.serve(2, false, &call(9_000, &[("a", second, first)]));
        assert!(says(&reply).ends_with("$2 \u{2}y "), "{:?}", says(&reply));
        let reply = store.serve(2, true, &call(9_000, &[("a", second, first)]));
        assert!(says(&reply).ends_with("$2 \u{1}x "), "{:?}", says(&reply));
    }

    #[test]
    fn a_replica_that_takes_over_has_not_the_newest_writes() {
        let mut store = Store::default();
        store.serve(0, false, &call(9_000, &[("a", "", "1")]));
        store.serve(2_000, false, &call(9_000, &[("b", "", "2")]));
        assert_eq!(store.forgets(2_500), 1);
        assert_eq!(store.get(b"b", 2_500), b"");
    }
}
