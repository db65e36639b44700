//! The list of open refunds: all that a plugin with `open_list` answers.

use serde::Serialize;
use serde_json::value::RawValue;

use super::Answer;
use super::answer::answer;
use super::caller::Caller;
use super::sentences::invalid;
use crate::clock::Now;
use crate::config::Config;
use crate::guard::{Open, OpenRefunds, OpenState};
use crate::headers::Headers;
use crate::problem::{Code, Fault, Problem, Retry};

/// What stands after the configured path.
const PATH: &[u8] = b"/open";

/// The answer of such a plugin to any call. `refunds` reads what is open.
pub fn open_list(
    config: &Config,
    headers: &Headers<'_>,
    now: Now,
    refunds: impl FnOnce() -> OpenRefunds,
) -> Answer {
    let caller = Caller::of(headers, now);
    let called = headers.first(":path").unwrap_or_default();
    let mut parts = called.splitn(2, |b| *b == b'?');
    let (path, query) = (parts.next().unwrap_or_default(), parts.next());
    if path.strip_prefix(config.path.as_bytes()) != Some(PATH) {
        let sentence = "Nothing was sent: all that there is here is the list of open refunds, at the refunds' path with /open \
                        behind it.";
        return caller.problem_of_look_up(Problem {
            status: 404,
            ..Problem::not_refunded(Code::BadRequest, Retry::Corrected, sentence)
        });
    }
    if headers.first(":method") != Some(b"GET") {
        let sentence = "Nothing was sent. Read the list with GET.";
        let problem = Problem::not_refunded(Code::MethodNotAllowed, Retry::Corrected, sentence);
        let mut answer = caller.problem_of_look_up(problem);
        answer.headers.fixed("allow", "GET");
        return answer;
    }
    if query.is_some() {
        let fault = Fault::at("", "The list of open refunds takes no query string.");
        return caller.problem_of_look_up(invalid(vec![fault]));
    }
    caller.own_look_up(answer(200, "open_list", body(&refunds(), now)))
}

fn body(refunds: &OpenRefunds, now: Now) -> String {
    #[derive(Serialize)]
    struct List {
        total: u64,
        truncated: bool,
        refunds: Vec<Box<RawValue>>,
    }
    let listed: Vec<_> = refunds
        .oldest
        .iter()
        .filter_map(|open| RawValue::from_string(text(open, now)).ok())
        .collect();
    crate::json_text(&List {
        total: refunds.total,
        truncated: u64::try_from(listed.len()) != Ok(refunds.total),
        refunds: listed,
    })
}

/// One refund of the list: its note, and what the key's entry says.
fn text(open: &Open, now: Now) -> String {
    let state = match open.state {
        OpenState::Unknown => "unknown",
        OpenState::Pending => "pending",
    };
    let entry = format!(r#""state":"{state}","key_digest":"{}"}}"#, open.key.hex());
    let noted = open.note.as_ref().and_then(|(since_ms, note)| {
        let seconds = now.steady_ms.saturating_sub(*since_ms).div_euclid(1_000);
        Some((note.strip_suffix('}')?, seconds))
    });
    match noted {
        Some((note, seconds)) => format!(r#"{note},"age_seconds":{seconds},{entry}"#),
        None => format!("{{{entry}"),
    }
}
