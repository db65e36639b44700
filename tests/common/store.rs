//! A store that gateways share, without a server: what the script does, by Redis's own words for its commands.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// What stands under a name, and until when by the store's clock.
type Value = (Vec<u8>, i64);

pub struct MockStore {
    pub values: RefCell<BTreeMap<String, Value>>,
    pub now_ms: Cell<i64>,
    /// The user and the password that it asks for.
    pub login: Option<(&'static str, &'static str)>,
    pub calls: Cell<usize>,
}

impl MockStore {
    pub fn new(now_ms: i64) -> Self {
        MockStore {
            values: RefCell::default(),
            now_ms: Cell::new(now_ms),
            login: None,
            calls: Cell::default(),
        }
    }

    /// What it answers to all commands of a connection.
    pub fn call(&self, request: &[u8]) -> Vec<u8> {
        self.calls.set(self.calls.get() + 1);
        let mut is_in = self.login.is_none();
        let mut out = Vec::new();
        for command in commands(request) {
            match command[0] {
                b"AUTH" => {
                    let said: Vec<_> = command[1..].to_vec();
                    let wanted = self
                        .login
                        .map(|(user, password)| [user.as_bytes(), password.as_bytes()]);
                    is_in = wanted.is_some_and(|wanted| said == wanted);
                    out.extend(if is_in {
                        &b"+OK\r\n"[..]
                    } else {
                        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
                    });
                }
                b"EVAL" if is_in => out.extend(self.eval(&command)),
                b"EVAL" => out.extend(b"-NOAUTH Authentication required.\r\n"),
                other => panic!("{}", String::from_utf8_lossy(other)),
            }
        }
        out
    }

    fn eval(&self, command: &[&[u8]]) -> Vec<u8> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let number = |bytes: &[u8]| text(bytes).parse::<i64>().unwrap();
        let count = usize::try_from(number(command[2])).unwrap();
        let (keys, rest) = command[3..].split_at(count);
        let (word, deadline_ms, swaps) = (rest[0], number(rest[1]), &rest[2..]);
        assert_eq!(swaps.len(), 3 * count);
        let now_ms = self.now_ms.get();
        let mut values = self.values.borrow_mut();
        values.retain(|_, (_, until_ms)| now_ms < *until_ms);
        let holds = |values: &BTreeMap<String, Value>, key: &[u8]| {
            let value = values.get(&text(key));
            value.map(|(bytes, _)| bytes.clone()).unwrap_or_default()
        };
        let same = keys
            .iter()
            .zip(swaps.chunks(3))
            .all(|(key, swap)| holds(&values, key) == swap[0]);
        if same && swaps.chunks(3).any(|swap| !swap[1].is_empty()) {
            if now_ms > deadline_ms {
                return format!("-LATE {now_ms}\r\n").into_bytes();
            }
            for (key, swap) in keys.iter().zip(swaps.chunks(3)) {
                if !swap[1].is_empty() {
                    let until_ms = now_ms + number(swap[2]);
                    values.insert(text(key), (swap[1].to_vec(), until_ms));
                }
            }
        }
        let mut out = format!("*{}\r\n", count + 2).into_bytes();
        let now = now_ms.to_string();
        let mut bulk = |bytes: &[u8]| {
            out.extend(format!("${}\r\n", bytes.len()).into_bytes());
            out.extend(bytes);
            out.extend(b"\r\n");
        };
        bulk(word);
        bulk(now.as_bytes());
        for key in keys {
            bulk(&holds(&values, key));
        }
        out
    }

    /// All that it holds.
    #[allow(
        dead_code,
        reason = "the gateway's tests take their share of this file"
    )]
    pub fn bytes(&self) -> Vec<u8> {
        let values = self.values.borrow();
        values
            .iter()
            .flat_map(|(key, (value, _))| [key.as_bytes(), value].concat())
            .collect()
    }
}

/// Takes arrays of bulk strings apart.
pub fn commands(mut rest: &[u8]) -> Vec<Vec<&[u8]>> {
    fn head(rest: &mut &[u8], kind: u8) -> usize {
        let end = rest.windows(2).position(|two| two == b"\r\n").unwrap();
        let (line, after) = rest.split_at(end);
        *rest = &after[2..];
        assert_eq!(line[0], kind);
        std::str::from_utf8(&line[1..]).unwrap().parse().unwrap()
    }
    let mut commands = Vec::new();
    while !rest.is_empty() {
        let words = head(&mut rest, b'*');
        let words = (0..words).map(|_| {
            let length = head(&mut rest, b'$');
            let (word, after) = rest.split_at(length);
            rest = after.strip_prefix(b"\r\n").unwrap();
            word
        });
        commands.push(words.collect());
    }
    commands
}
