//! What can go wrong on a refund's way, as a table: each fault at each provider, what the caller is told, and what the
//! provider's ledger says. The expectations are the contract's. `docs/failures.md` is made from the same table.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::common::{
    FOUR, Problem, assert_problem, by_key, currency, plugin, secrets, taken, until,
};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use gateway_testbed::openbao::OpenBao;
use gateway_testbed::{
    Answer, Gateway, Options, PATH, SecretsBy, cluster, project, route_mut, sign_by_transit,
};
use http::Request;
use hyper::body::{Body, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use provider_simulator::{
    self as simulator, Alpn, Certificate, Fault, Provider, Refunded, Replies, Reply, Simulators,
    orders,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use uuid::Uuid;

use Provider::{Bbmsl, Bog, BogToken, Moyasar};

/// No test measures time; this only ends one that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

// ---- the table

/// A row: what goes wrong, by which ways, and how it ends at each provider.
struct Case {
    fault: Cow<'static, str>,
    /// `None`: this provider has nothing of the kind.
    ends: fn(Provider) -> Option<End>,
    /// Whether the provider refunded. Where it can be both, every way is gone twice, and the caller must be told the same.
    refunded: &'static [bool],
    /// The protocols towards the provider.
    over: &'static [Alpn],
    /// How to cause it.
    ways: fn(Provider, bool) -> Vec<Way>,
}

const EITHER: &[bool] = &[false, true];
const NOT: &[bool] = &[false];
const ONCE: &[bool] = &[true];
const BOTH: &[Alpn] = &[Alpn::Http1, Alpn::Http2];
const HTTP_1: &[Alpn] = &[Alpn::Http1];
const HTTP_2: &[Alpn] = &[Alpn::Http2];

/// How a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// 200.
    Succeeded,
    /// 202.
    Pending,
    Problem(Problem),
    /// The caller has left; what it may do is what it may do after an `unknown`.
    Left {
        retry: &'static str,
    },
}

/// How to cause a fault.
#[derive(Clone, Debug)]
enum Way {
    /// The request meets this.
    Meets(Fault),
    /// The reply is this, in place of the provider's own. `%id%` and `%key%` in it are the payment's and the refund's.
    Says(u16, Vec<(&'static str, Vec<u8>)>, Vec<u8>),
    /// Nothing listens.
    Refuses,
    /// Another certificate.
    Shows(Certificate),
    /// A gateway that is configured like this; at the port, connections are taken and no word is said.
    Configured(fn(&mut Value, Provider, u16)),
    /// On a connection in use, the request's first bytes meet this before the provider has read any.
    Between(Mode),
    /// What the real OpenBao is told beforehand: arguments of its command line.
    OpenBao(&'static [&'static str]),
    /// The caller leaves at this stage.
    Leaves(Stage),
    /// Another configuration is pushed at this stage.
    Pushed(Stage),
}

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Half of its body is there.
    Body,
    /// It waits for BOG's token.
    Token,
    /// It waits for OpenBao's signature.
    Signature,
    /// The provider has it, and has not answered.
    Sent,
    /// The provider's reply has come in part.
    Reply,
}

/// A good answer: BOG never says more than that it took the refund.
fn good(provider: Provider) -> Option<End> {
    Some(match taken(provider).1 {
        "pending" => End::Pending,
        _ => End::Succeeded,
    })
}

const fn certain(code: &'static str, status: u16, retry: &'static str) -> Option<End> {
    Some(End::Problem(Problem {
        retry,
        ..Problem::certain(code, status)
    }))
}

fn unknown(provider: Provider, code: &'static str, status: u16) -> Option<End> {
    Some(End::Problem(Problem {
        code,
        status,
        outcome: "unknown",
        retry: by_key(provider),
    }))
}

const fn look_up(code: &'static str, status: u16) -> Option<End> {
    Some(End::Problem(Problem {
        code,
        status,
        outcome: "unknown",
        retry: "look_up",
    }))
}

fn unreachable(_: Provider) -> Option<End> {
    certain("provider-unreachable", 503, "same_key")
}

fn failed(provider: Provider) -> Option<End> {
    unknown(provider, "provider-error", 502)
}

fn timed_out(provider: Provider) -> Option<End> {
    unknown(provider, "provider-timeout", 504)
}

fn unreadable(provider: Provider) -> Option<End> {
    unknown(provider, "provider-reply-unreadable", 502)
}

fn maybe_there(provider: Provider) -> Option<End> {
    replies(provider).there.as_ref()?;
    look_up("provider-rejected", 422)
}

fn mismatch(provider: Provider) -> Option<End> {
    let echoes = !replies(provider).amounts.is_empty();
    look_up("provider-reply-mismatch", 502).filter(|_| echoes)
}

fn replies(provider: Provider) -> &'static Replies {
    &provider.declared().replies
}

/// The words of this kind that each provider has, by its name; and what else means the same.
fn naming(words: fn(&Replies) -> (&'static [&'static str], Option<&'static str>)) -> String {
    let named = FOUR.into_iter().filter_map(|provider| {
        let (words, otherwise) = words(replies(provider));
        let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
        let mut named = format!("{} {}", title(provider), words.join(", "));
        if let Some(otherwise) = otherwise {
            named += &format!(", or {otherwise}");
        }
        (!words.is_empty()).then_some(named)
    });
    named.collect::<Vec<_>>().join("; ")
}

/// At a provider whose page lists its refusals, or at one whose page does not.
fn listed(provider: Provider, wanted: bool, end: Option<End>) -> Option<End> {
    end.filter(|_| replies(provider).lists_refusals == wanted)
}

fn of(wanted: Provider, provider: Provider, end: Option<End>) -> Option<End> {
    end.filter(|_| provider == wanted)
}

fn meets(fault: Fault) -> Vec<Way> {
    vec![Way::Meets(fault)]
}

fn says(status: u16, body: impl Into<Vec<u8>>) -> Way {
    Way::Says(status, Vec::new(), body.into())
}

/// These statuses, each with each of the bodies that a provider's refusals have.
fn refusals(provider: Provider, statuses: &[u16]) -> Vec<Way> {
    statuses
        .iter()
        .flat_map(|status| {
            let bodies: &[&str] = match status {
                // HTTP allows them no body.
                204 | 205 | 304 => &[""],
                _ => provider.server().errors,
            };
            bodies.iter().map(|body| says(*status, *body))
        })
        .collect()
}

/// Where the status alone counts: each with one of these bodies, in turn.
fn statuses(provider: Provider, statuses: &[u16]) -> Vec<Way> {
    let turns = statuses.iter().enumerate().filter_map(|(nth, status)| {
        let ways = refusals(provider, &[*status]);
        let turn = nth % ways.len();
        ways.into_iter().nth(turn)
    });
    turns.collect()
}

const PAGE: &str = "<!doctype html><html><body><h1>Bad Gateway</h1></body></html>";

/// The reply of the vendor's page for a call of this file.
fn page(provider: Provider) -> &'static str {
    provider.server().success
}

/// The page's reply with another text at one place.
fn altered(provider: Provider, from: &str, to: &str) -> Way {
    let page = page(provider);
    assert!(page.contains(from), "{from} in {page}");
    says(200, page.replacen(from, to, 1))
}

/// The page's reply with one change at a time.
fn all_altered(provider: Provider, changes: &[(&str, &str)]) -> Vec<Way> {
    let changes = changes.iter();
    changes
        .map(|(from, to)| altered(provider, from, to))
        .collect()
}

/// The word by which a reply tells the outcome, as the page has it.
fn with_word(provider: Provider, word: &str) -> Way {
    let (member, known, after) = replies(provider).word;
    altered(
        provider,
        &format!(r#""{member}":"{known}"{after}"#),
        &format!(r#""{member}":"{word}"{after}"#),
    )
}

fn with_words(provider: Provider, words: &[&str]) -> Vec<Way> {
    words.iter().map(|word| with_word(provider, word)).collect()
}

/// Before anything is sent.
fn connecting() -> Vec<Case> {
    let case = |fault, ends, ways| Case {
        fault: Cow::Borrowed(fault),
        ends,
        refunded: NOT,
        over: BOTH,
        ways,
    };
    vec![
        case("the connection is refused", unreachable, |_, _| {
            vec![Way::Refuses]
        }),
        case(
            "TLS fails: a certificate of an unknown authority",
            unreachable,
            |_, _| vec![Way::Shows(Certificate::OtherAuthority)],
        ),
        case(
            "TLS fails: a certificate for another name",
            unreachable,
            |_, _| vec![Way::Shows(Certificate::WrongName)],
        ),
        case("TLS fails: an expired certificate", unreachable, |_, _| {
            vec![Way::Shows(Certificate::Expired)]
        }),
        case(
            "the connection does not come about in time",
            unreachable,
            |_, _| {
                vec![
                    // By the connection's own time, and by the route's.
                    Way::Configured(|config, provider, silent| {
                        set_port(config, provider, silent);
                        cluster_mut(config, provider)["connect_timeout"] = json!("1s");
                    }),
                    Way::Configured(|config, provider, silent| {
                        set_port(config, provider, silent);
                        set_route(config, provider, "timeout", json!("1s"));
                    }),
                ]
            },
        ),
        case("no connection is free", unreachable, |_, _| {
            vec![Way::Configured(|config, provider, _| {
                cluster_mut(config, provider)["circuit_breakers"] =
                    json!({"thresholds": [{"max_pending_requests": 0, "max_requests": 0}]});
            })]
        }),
        case("its name has no address", unreachable, |_, _| {
            vec![Way::Configured(|config, provider, _| {
                let cluster = cluster_mut(config, provider);
                cluster["type"] = json!("STATIC");
                cluster["load_assignment"]["endpoints"] = json!([]);
            })]
        }),
        case(
            "the gateway has no route for it",
            |_| certain("gateway-error", 503, "same_key"),
            |_, _| {
                vec![Way::Configured(|config, provider, _| {
                    let path = format!("{MANAGER}/route_config/virtual_hosts/0/routes");
                    let routes = config.pointer_mut(&path).and_then(Value::as_array_mut);
                    let routes = routes.expect("the routes");
                    routes.retain(|route| route["name"] != cluster(provider));
                })]
            },
        ),
    ]
}

/// The connection breaks once the request has gone.
fn breaking() -> Vec<Case> {
    let case = |fault, refunded, over, ways| Case {
        fault: Cow::Borrowed(fault),
        ends: failed,
        refunded,
        over,
        ways,
    };
    vec![
        case(
            "the connection is reset before the request is read",
            NOT,
            BOTH,
            |_, _| vec![Way::Between(Mode::Reset)],
        ),
        case(
            "the connection is closed before the request is read",
            NOT,
            BOTH,
            |_, _| vec![Way::Between(Mode::Close), Way::Meets(Fault::CloseBefore)],
        ),
        case(
            "the connection is reset after the request is read",
            EITHER,
            BOTH,
            |_, booked| meets(Fault::Reset { booked }),
        ),
        case(
            "the connection is closed after the request is read",
            EITHER,
            BOTH,
            |_, booked| meets(Fault::Close { booked }),
        ),
        case("the reply is cut in its head", EITHER, BOTH, |_, booked| {
            meets(Fault::CutHeaders { booked })
        }),
        case("the reply is cut in its body", EITHER, BOTH, |_, booked| {
            meets(Fault::CutBody { booked })
        }),
        case("the reply is garbage, not HTTP", EITHER, HTTP_1, |_, _| {
            let with = |name: &'static str, value: &[u8]| {
                Way::Says(200, vec![(name, value.to_vec())], b"{}".to_vec())
            };
            vec![
                with("", b"1"),
                with("x y", b"1"),
                with("x-nul", b"a\0b"),
                with("content-length", b"-1"),
                with("content-length", b"\xff\xfe"),
                with("transfer-encoding", b"\xff"),
            ]
        }),
        case(
            "HTTP/2: the stream is reset with INTERNAL_ERROR or CANCEL",
            EITHER,
            HTTP_2,
            |_, booked| {
                let reset = |code| Way::Meets(Fault::StreamReset { code, booked });
                vec![reset(2), reset(8)]
            },
        ),
        case(
            "HTTP/2: GOAWAY that counts the stream among the processed",
            EITHER,
            HTTP_2,
            |_, booked| {
                let go_away = |code| Way::Meets(Fault::GoAway { code, booked });
                vec![go_away(0), go_away(2)]
            },
        ),
        Case {
            // RFC 9113, 8.7: it was not processed. HTTP/1 has no such word.
            fault: "HTTP/2: the stream is refused with REFUSED_STREAM".into(),
            ends: unreachable,
            refunded: NOT,
            over: HTTP_2,
            ways: |_, _| meets(Fault::RefusedStream),
        },
    ]
}

/// No reply in time. The route's time is shortened for these.
fn waiting() -> Vec<Case> {
    let case = |fault, refunded, over, ways| Case {
        fault: Cow::Borrowed(fault),
        ends: timed_out,
        refunded,
        over,
        ways,
    };
    vec![
        case("no reply in time", EITHER, BOTH, |_, booked| {
            meets(Fault::Hang { booked })
        }),
        case("the reply stalls in its head", ONCE, HTTP_1, |_, _| {
            meets(Fault::Pieces {
                size: 20,
                pause: Duration::from_secs(5),
            })
        }),
        case("the reply stalls in its body", EITHER, BOTH, |_, booked| {
            meets(Fault::StallBody { booked })
        }),
    ]
}

const REJECTING: &[u16] = &[400, 405, 406, 410, 411, 413, 414, 415, 422, 431];
const REDIRECTING: &[u16] = &[300, 301, 302, 303, 304, 305, 307, 308];
const OTHER_4XX: &[u16] = &[
    407, 412, 416, 417, 418, 419, 420, 421, 423, 424, 426, 428, 430, 432, 440, 449, 450, 451, 460,
];
const FAILING: &[u16] = &[
    500, 501, 502, 503, 504, 505, 507, 508, 510, 511, 520, 529, 599,
];

/// The reply's status is no 2xx.
fn answering() -> Vec<Case> {
    let case = |fault, ends, refunded, ways| Case {
        fault: Cow::Borrowed(fault),
        ends,
        refunded,
        over: BOTH,
        ways,
    };
    vec![
        case(
            "400, 405, 406, 410, 411, 413, 414, 415, 422, 431, in each of the provider's shapes",
            |provider| listed(provider, true, certain("provider-rejected", 422, "no")),
            NOT,
            |provider, _| refusals(provider, REJECTING),
        ),
        case(
            "402",
            |provider| listed(provider, true, certain("refund-declined", 422, "no")),
            NOT,
            |provider, _| refusals(provider, &[402]),
        ),
        case(
            "404",
            |provider| listed(provider, true, certain("payment-not-found", 404, "no")),
            NOT,
            |provider, _| refusals(provider, &[404]),
        ),
        case(
            "all these at a provider whose refusals nobody has listed",
            |provider| listed(provider, false, look_up("provider-rejected", 422)),
            EITHER,
            |provider, _| refusals(provider, &[REJECTING, &[402, 404]].concat()),
        ),
        case(
            "401, 403",
            |_| certain("provider-auth-failed", 502, "same_key"),
            NOT,
            |provider, _| refusals(provider, &[401, 403]),
        ),
        case(
            "429",
            |_| certain("provider-rate-limited", 503, "same_key"),
            NOT,
            |provider, _| {
                let mut ways = refusals(provider, &[429]);
                let after = vec![("retry-after", b"7".to_vec())];
                ways.push(Way::Says(429, after, b"{}".to_vec()));
                ways
            },
        ),
        case(
            "409",
            |provider| match replies(provider).conflict_is_there {
                true => look_up("provider-rejected", 422),
                false => failed(provider),
            },
            EITHER,
            |provider, _| refusals(provider, &[409]),
        ),
        Case {
            fault: format!(
                "a refusal that can mean that a refund is there already: {}",
                FOUR.into_iter()
                    .filter_map(|provider| Some(replies(provider).there?.0))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
            .into(),
            ends: maybe_there,
            refunded: EITHER,
            over: BOTH,
            ways: |provider, _| {
                let there = replies(provider).there;
                let bodies = there.map(|(_, bodies)| bodies).unwrap_or_default();
                bodies
                    .iter()
                    .map(|(status, body)| says(*status, *body))
                    .collect()
            },
        },
        case(
            "Moyasar's 400 `Initial request is still processing.`",
            |provider| {
                of(
                    Moyasar,
                    provider,
                    unknown(provider, "refund-in-progress", 409),
                )
            },
            EITHER,
            |_, _| {
                vec![
                    says(400, r#"{"message":"Initial request is still processing."}"#),
                    says(400, r#"{"message":"The request is Still Processing"}"#),
                ]
            },
        ),
        case("300 to 308", failed, EITHER, |provider, _| {
            let mut ways = statuses(provider, REDIRECTING);
            let elsewhere = vec![("location", b"https://elsewhere.example/".to_vec())];
            ways.push(Way::Says(307, elsewhere, Vec::new()));
            ways
        }),
        case("408, 425, 499", failed, EITHER, |provider, _| {
            refusals(provider, &[408, 425, 499])
        }),
        case(
            "any other 4xx (407, 412, 416 to 421, 423, 424, 426, 428, 430, 432, 440, 449 to 451, 460)",
            failed,
            EITHER,
            |provider, _| statuses(provider, OTHER_4XX),
        ),
        case(
            "500 and up, in each of the provider's shapes",
            failed,
            EITHER,
            |provider, _| {
                let mut ways = refusals(provider, &[500, 502, 503]);
                ways.extend(statuses(provider, FAILING));
                ways
            },
        ),
        case("a 5xx that is only a head", failed, EITHER, |_, booked| {
            [500, 503]
                .map(|status| Way::Meets(Fault::HeaderOnly { status, booked }))
                .to_vec()
        }),
    ]
}

/// 2xx with a word that the provider documents.
fn documented() -> Vec<Case> {
    let case = |fault: String, ends, refunded, ways| Case {
        fault: fault.into(),
        ends,
        refunded,
        over: BOTH,
        ways,
    };
    vec![
        case(
            format!(
                "it declines: {}",
                naming(|replies| {
                    let otherwise = replies.declined_else;
                    (replies.declined, otherwise.map(|(words, ..)| words))
                })
            ),
            |provider| match replies(provider).declined {
                [] => None,
                _ => certain("refund-declined", 422, "no"),
            },
            NOT,
            |provider, _| {
                let replies = replies(provider);
                let mut ways = with_words(provider, replies.declined);
                let otherwise = replies.declined_else;
                ways.extend(otherwise.map(|(_, status, body)| says(status, body)));
                ways
            },
        ),
        case(
            format!(
                "it has not finished: {}",
                naming(|replies| (replies.pending, None))
            ),
            |provider| match replies(provider).pending {
                [] => None,
                _ => Some(End::Pending),
            },
            ONCE,
            |provider, _| with_words(provider, replies(provider).pending),
        ),
        case(
            format!(
                "it does not know itself: {}",
                naming(|replies| (replies.unsure, None))
            ),
            |provider| match replies(provider).unsure {
                [] => None,
                _ => failed(provider),
            },
            EITHER,
            |provider, _| with_words(provider, replies(provider).unsure),
        ),
    ]
}

/// 2xx, and not what the provider documents.
fn undocumented() -> Vec<Case> {
    let case = |fault, ways| Case {
        fault: Cow::Borrowed(fault),
        ends: unreadable,
        refunded: EITHER,
        over: BOTH,
        ways,
    };
    let other = |fault, ways| Case {
        fault: Cow::Borrowed(fault),
        ends: mismatch,
        refunded: EITHER,
        over: BOTH,
        ways,
    };
    vec![
        case("an empty body", |_, _| vec![says(200, ""), says(201, "")]),
        case("a head without a body (200, 204)", |_, booked| {
            [200, 204]
                .map(|status| Way::Meets(Fault::HeaderOnly { status, booked }))
                .to_vec()
        }),
        case("a page of HTML", |_, _| vec![says(200, PAGE)]),
        case("text, or bytes that are no UTF-8", |provider, _| {
            let mut bytes = page(provider).replacen('{', r#"{"x":"~","#, 1).into_bytes();
            for byte in &mut bytes {
                if *byte == b'~' {
                    *byte = 0xff;
                }
            }
            vec![
                says(200, "refunded"),
                says(200, b"\xff\xfe\x00".to_vec()),
                says(200, bytes),
            ]
        }),
        case(
            "JSON that is no such answer (`{}`, `[]`, `null`, `1`)",
            |_, _| {
                ["{}", "[]", "null", "1", r#"{"status":"ok"}"#]
                    .map(|body| says(200, body))
                    .to_vec()
            },
        ),
        case("truncated JSON", |provider, _| {
            let page = page(provider);
            vec![
                says(200, &page[..page.len() - 1]),
                says(200, &page[..page.len() / 2]),
            ]
        }),
        case("doubled JSON (two documents)", |provider, _| {
            let page = page(provider);
            vec![
                says(200, page.repeat(2)),
                says(200, format!("{page}\n{page}")),
                says(200, format!("{page} ok")),
            ]
        }),
        case("a word that the provider does not list", |provider, _| {
            with_words(provider, replies(provider).unlisted)
        }),
        case(
            "the deciding member twice, with two words",
            |provider, _| {
                let Replies { word, declined, .. } = replies(provider);
                let (member, known, after) = word;
                let other = declined.first().unwrap_or(&"other");
                let from = format!(r#""{member}":"{known}"{after}"#);
                let to = format!(r#""{member}":"{known}","{member}":"{other}"{after}"#);
                vec![altered(provider, &from, &to)]
            },
        ),
        case(
            "gzip, although the filter asked for `identity`",
            |_, booked| {
                if booked {
                    return meets(Fault::Gzip);
                }
                let coded = vec![("content-encoding", b"gzip".to_vec())];
                vec![Way::Says(
                    200,
                    coded,
                    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03".to_vec(),
                )]
            },
        ),
        case("a reply over the gateway's buffer (1 MiB)", |_, booked| {
            if booked {
                return meets(Fault::Oversize { bytes: 3_000_000 });
            }
            vec![says(
                200,
                format!(r#"{{"padding":"{}"}}"#, "x".repeat(3_000_000)),
            )]
        }),
        other("a word of success with another amount", |provider, _| {
            all_altered(provider, replies(provider).amounts)
        }),
        other("a word of success with another currency", |provider, _| {
            all_altered(provider, replies(provider).currencies)
        }),
        other("a word of success about another payment", |provider, _| {
            all_altered(provider, replies(provider).payments)
        }),
    ]
}

/// Unusual, and well.
fn unusual() -> Vec<Case> {
    let case = |fault, over, ways| Case {
        fault: Cow::Borrowed(fault),
        ends: good,
        refunded: ONCE,
        over,
        ways,
    };
    vec![
        case("a very slow reply, in pieces", BOTH, |_, _| {
            vec![
                Way::Meets(Fault::Pieces {
                    size: 1,
                    pause: Duration::ZERO,
                }),
                Way::Meets(Fault::Pieces {
                    size: 40,
                    pause: Duration::from_millis(20),
                }),
                Way::Meets(Fault::DelayReply(Duration::from_millis(200))),
            ]
        }),
        case("reply trailers", BOTH, |_, _| {
            let trailers = vec![
                (b"x-trailer".to_vec(), b"1".to_vec()),
                (b"x-bytes".to_vec(), b"\xff\xfe".to_vec()),
            ];
            meets(Fault::Trailers(trailers))
        }),
        case("`100 Continue` before the reply", BOTH, |_, _| {
            meets(Fault::Continue100)
        }),
        case(
            "reply headers of bytes that are no UTF-8",
            BOTH,
            |provider, _| {
                let headers = ["x-anything", "set-cookie", "retry-after", "server"]
                    .map(|name| (name, b"a\xff\xfe\x80z".to_vec()));
                vec![Way::Says(200, headers.to_vec(), page(provider).into())]
            },
        ),
        case("a large reply that fits into the buffer", BOTH, |_, _| {
            meets(Fault::Oversize { bytes: 300_000 })
        }),
        case(
            "the reply is the connection's last: `connection: close`",
            HTTP_1,
            |_, _| meets(Fault::Drain),
        ),
        case(
            "HTTP/2: a graceful GOAWAY beside the reply",
            HTTP_2,
            |_, _| meets(Fault::Drain),
        ),
    ]
}

/// BOG's token endpoint: nothing has been sent to BOG.
fn fetching() -> Vec<Case> {
    let case = |fault, ends, over, ways| Case {
        fault: Cow::Borrowed(fault),
        ends,
        refunded: NOT,
        over,
        ways,
    };
    let unreachable = |provider| of(Bog, provider, unreachable(provider));
    let good = |fault, ways| Case {
        fault: Cow::Borrowed(fault),
        ends: |provider| of(Bog, provider, good(provider)),
        refunded: ONCE,
        over: BOTH,
        ways,
    };
    vec![
        case("the connection is refused", unreachable, BOTH, |_, _| {
            vec![Way::Refuses]
        }),
        case(
            "TLS fails: an unknown authority, another name, an expired certificate",
            unreachable,
            BOTH,
            |_, _| {
                vec![
                    Way::Shows(Certificate::OtherAuthority),
                    Way::Shows(Certificate::WrongName),
                    Way::Shows(Certificate::Expired),
                ]
            },
        ),
        case(
            "the connection is closed or reset",
            unreachable,
            BOTH,
            |_, _| {
                vec![
                    Way::Meets(Fault::CloseBefore),
                    Way::Meets(Fault::Close { booked: false }),
                    Way::Meets(Fault::Close { booked: true }),
                    Way::Meets(Fault::Reset { booked: false }),
                    Way::Meets(Fault::Reset { booked: true }),
                ]
            },
        ),
        case(
            "the reply is cut in its head or body",
            unreachable,
            BOTH,
            |_, _| {
                vec![
                    Way::Meets(Fault::CutHeaders { booked: true }),
                    Way::Meets(Fault::CutBody { booked: true }),
                ]
            },
        ),
        case("no reply in time", unreachable, BOTH, |_, _| {
            meets(Fault::Hang { booked: true })
        }),
        case("the reply stalls in its body", unreachable, BOTH, |_, _| {
            meets(Fault::StallBody { booked: true })
        }),
        case(
            "HTTP/2: a stream reset or refused, GOAWAY",
            unreachable,
            HTTP_2,
            |_, _| {
                vec![
                    Way::Meets(Fault::RefusedStream),
                    Way::Meets(Fault::StreamReset {
                        code: 2,
                        booked: true,
                    }),
                    Way::Meets(Fault::StreamReset {
                        code: 8,
                        booked: true,
                    }),
                    Way::Meets(Fault::GoAway {
                        code: 0,
                        booked: true,
                    }),
                ]
            },
        ),
        case(
            "4xx but 429, in each of its shapes",
            |provider| {
                of(
                    Bog,
                    provider,
                    certain("provider-auth-failed", 502, "same_key"),
                )
            },
            BOTH,
            |_, _| {
                refusals(
                    BogToken,
                    &[400, 401, 403, 404, 405, 408, 409, 415, 422, 499],
                )
            },
        ),
        case(
            "429",
            |provider| {
                of(
                    Bog,
                    provider,
                    certain("provider-rate-limited", 503, "same_key"),
                )
            },
            BOTH,
            |_, _| refusals(BogToken, &[429]),
        ),
        case("5xx, 3xx", unreachable, BOTH, |_, _| {
            let mut ways = statuses(BogToken, FAILING);
            ways.extend(statuses(BogToken, REDIRECTING));
            ways
        }),
        case(
            "nonsense: an empty body, HTML, truncated or doubled JSON, no token in it, gzip, 204",
            unreachable,
            BOTH,
            |_, _| {
                let page = page(BogToken);
                let mut ways: Vec<_> = [
                    "",
                    PAGE,
                    "{}",
                    "[]",
                    &page[..page.len() - 1],
                    &page.repeat(2),
                    r#"{"access_token":"","expires_in":300}"#,
                    r#"{"access_token":"two words","expires_in":300}"#,
                    r#"{"access_token":17,"expires_in":300}"#,
                    r#"{"expires_in":300}"#,
                    r#"{"error":"invalid_client"}"#,
                ]
                .map(|body| says(200, body))
                .into();
                ways.extend([
                    says(200, b"\xff\xfe".to_vec()),
                    Way::Meets(Fault::Gzip),
                    Way::Meets(Fault::HeaderOnly {
                        status: 200,
                        booked: true,
                    }),
                    Way::Meets(Fault::HeaderOnly {
                        status: 204,
                        booked: true,
                    }),
                ]);
                ways
            },
        ),
        good(
            "a slow reply in pieces, a large one, trailers, `100 Continue`, the connection's last",
            |_, _| {
                vec![
                    Way::Meets(Fault::Pieces {
                        size: 1,
                        pause: Duration::ZERO,
                    }),
                    Way::Meets(Fault::Pieces {
                        size: 40,
                        pause: Duration::from_millis(20),
                    }),
                    Way::Meets(Fault::Trailers(vec![(
                        b"x-trailer".to_vec(),
                        b"\xff".to_vec(),
                    )])),
                    Way::Meets(Fault::Oversize { bytes: 3_000_000 }),
                    Way::Meets(Fault::Continue100),
                    Way::Meets(Fault::Drain),
                ]
            },
        ),
    ]
}

fn unsigned(provider: Provider) -> Option<End> {
    of(
        Bbmsl,
        provider,
        certain("signing-unavailable", 503, "same_key"),
    )
}

/// OpenBao, which signs for BBMSL where it is configured so: nothing has been sent to BBMSL.
fn signing() -> Vec<Case> {
    let case = |fault, over, ways| Case {
        fault: Cow::Borrowed(fault),
        ends: unsigned,
        refunded: NOT,
        over,
        ways,
    };
    vec![
        case("the connection is refused", HTTP_1, |_, _| {
            vec![Way::Refuses]
        }),
        case(
            "TLS fails: an unknown authority, another name, an expired certificate",
            HTTP_1,
            |_, _| {
                vec![
                    Way::Shows(Certificate::OtherAuthority),
                    Way::Shows(Certificate::WrongName),
                    Way::Shows(Certificate::Expired),
                ]
            },
        ),
        case("the connection is closed or reset", HTTP_1, |_, _| {
            vec![
                Way::Meets(Fault::CloseBefore),
                Way::Meets(Fault::Close { booked: false }),
                Way::Meets(Fault::Reset { booked: false }),
            ]
        }),
        case("the reply is cut in its head or body", HTTP_1, |_, _| {
            vec![
                Way::Meets(Fault::CutHeaders { booked: false }),
                Way::Meets(Fault::CutBody { booked: false }),
            ]
        }),
        case("no reply in time", HTTP_1, |_, _| {
            meets(Fault::Hang { booked: false })
        }),
        case("the reply stalls in its body", HTTP_1, |_, _| {
            meets(Fault::StallBody { booked: false })
        }),
        case(
            "any status but 200, in each of its shapes",
            HTTP_1,
            |_, _| {
                let statuses = REJECTING
                    .iter()
                    .chain(&[401, 402, 403, 404, 408, 409, 412, 429, 472, 473, 499])
                    .chain(REDIRECTING)
                    .chain(FAILING);
                let bodies = [
                    r#"{"errors":["permission denied"]}"#,
                    r#"{"errors":[]}"#,
                    "",
                    PAGE,
                ];
                statuses
                    .zip(bodies.into_iter().cycle())
                    .map(|(status, body)| match status {
                        304 => says(*status, ""),
                        _ => says(*status, body),
                    })
                    .collect()
            },
        ),
        case(
            "nonsense: an empty body, HTML, truncated or doubled JSON, no signature in it, gzip, 204",
            HTTP_1,
            |_, _| {
                let signature = format!("vault:v1:{}", "WlpaWlpa".repeat(43));
                let signed = json!({"data": {"signature": signature}}).to_string();
                let mut ways: Vec<_> = [
                    "",
                    PAGE,
                    "{}",
                    "[]",
                    r#"{"data":null}"#,
                    r#"{"data":{"signature":"AAAA"}}"#,
                    r#"{"data":{"signature":"vault:v1:AAAA"}}"#,
                    r#"{"data":{"signature":17}}"#,
                    &signed[..signed.len() - 1],
                    &signed.repeat(2),
                ]
                .map(|body| says(200, body))
                .into();
                ways.extend([
                    says(200, b"\xff\xfe".to_vec()),
                    Way::Meets(Fault::Gzip),
                    Way::Meets(Fault::Oversize { bytes: 3_000_000 }),
                    Way::Meets(Fault::HeaderOnly {
                        status: 200,
                        booked: false,
                    }),
                    Way::Meets(Fault::HeaderOnly {
                        status: 204,
                        booked: false,
                    }),
                ]);
                ways
            },
        ),
        case(
            "OpenBao has lost the key, is sealed, or is gone",
            HTTP_1,
            |_, _| {
                vec![
                    Way::OpenBao(&["secrets", "disable", "transit"]),
                    Way::OpenBao(&["operator", "seal"]),
                    // Its end.
                    Way::OpenBao(&[]),
                ]
            },
        ),
        Case {
            fault: "a slow reply".into(),
            ends: |provider| of(Bbmsl, provider, good(provider)),
            refunded: ONCE,
            over: HTTP_1,
            ways: |_, _| vec![Way::Between(Mode::Drip)],
        },
    ]
}

fn left(provider: Provider) -> Option<End> {
    Some(End::Left {
        retry: by_key(provider),
    })
}

/// The caller leaves.
fn leaving() -> Vec<Case> {
    let case = |fault, ends, refunded, ways| Case {
        fault: Cow::Borrowed(fault),
        ends,
        refunded,
        over: HTTP_1,
        ways,
    };
    vec![
        case("while its body is being sent", left, NOT, |_, _| {
            vec![Way::Leaves(Stage::Body)]
        }),
        case(
            "while BOG's token is being fetched",
            |provider| of(Bog, provider, left(provider)),
            NOT,
            |_, _| vec![Way::Leaves(Stage::Token)],
        ),
        case(
            "while OpenBao is being asked for the signature",
            |provider| of(Bbmsl, provider, left(provider)),
            NOT,
            |_, _| vec![Way::Leaves(Stage::Signature)],
        ),
        case("after the request was sent", left, EITHER, |_, _| {
            vec![Way::Leaves(Stage::Sent)]
        }),
        case("during the reply", left, EITHER, |_, _| {
            vec![Way::Leaves(Stage::Reply)]
        }),
    ]
}

/// The gateway gets another configuration.
fn pushing() -> Vec<Case> {
    let case = |fault, ends, ways| Case {
        fault: Cow::Borrowed(fault),
        ends,
        refunded: ONCE,
        over: HTTP_1,
        ways,
    };
    vec![
        case("while its body is being sent", good, |_, _| {
            vec![Way::Pushed(Stage::Body)]
        }),
        case(
            "while BOG's token is being fetched",
            |provider| of(Bog, provider, good(provider)),
            |_, _| vec![Way::Pushed(Stage::Token)],
        ),
        case(
            "while OpenBao is being asked for the signature",
            |provider| of(Bbmsl, provider, good(provider)),
            |_, _| vec![Way::Pushed(Stage::Signature)],
        ),
        case("after the request was sent", good, |_, _| {
            vec![Way::Pushed(Stage::Sent)]
        }),
        case("during the reply", good, |_, _| {
            vec![Way::Pushed(Stage::Reply)]
        }),
    ]
}

// ---- calls

/// A refund of 10.00 of an order of its own, under a key of its own.
struct Call {
    provider: Provider,
    payment: String,
    key: String,
    body: Value,
}

impl Call {
    fn new(provider: Provider) -> Call {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let payment = orders::fresh(provider, NEXT.fetch_add(1, Ordering::Relaxed));
        let mut body = json!({
            "provider": cluster(provider),
            "payment": {"id": payment},
            "amount": {"value": "10.00", "currency": currency(provider)},
        });
        let reference = (provider.declared().fresh.reference)(&payment);
        if !reference.is_empty() {
            body["payment"]["reference"] = json!(reference);
        }
        Call {
            provider,
            payment,
            key: Uuid::new_v4().to_string(),
            body,
        }
    }

    async fn make(&self, gateway: &Gateway) -> Result<Answer> {
        timeout(PATIENCE, gateway.refund(&self.key, &self.body)).await?
    }

    /// The same, in a task that can be aborted: then the caller has left.
    fn begin(&self, gateway: &Gateway, http2: bool) -> Result<JoinHandle<Result<Answer>>> {
        let client = reqwest::Client::builder().pool_max_idle_per_host(0);
        let client = match http2 {
            true => client.http2_prior_knowledge(),
            false => client.http1_only(),
        }
        .build()?;
        let call = client
            .post(gateway.url())
            .header("content-type", "application/json")
            .header("idempotency-key", &self.key)
            .body(self.body.to_string());
        Ok(tokio::spawn(async move {
            Answer::read(call.send().await?).await
        }))
    }

    /// The provider's reply to this call, from a text with its places for the payment and the key.
    fn fill(&self, text: &[u8]) -> Vec<u8> {
        let mut filled = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some((first, tail)) = rest.split_first() {
            if let Some(tail) = rest.strip_prefix(b"%id%") {
                filled.extend_from_slice(self.payment.as_bytes());
                rest = tail;
            } else if let Some(tail) = rest.strip_prefix(b"%key%") {
                filled.extend_from_slice(self.key.as_bytes());
                rest = tail;
            } else {
                filled.push(*first);
                rest = tail;
            }
        }
        filled
    }

    /// What the provider has refunded of this payment.
    fn ledger(&self, gateway: &Gateway) -> Vec<Refunded> {
        let mut ledger = gateway.simulators.ledger(self.provider);
        ledger.retain(|entry| entry.payment == self.payment);
        ledger
    }

    /// What an answer says, and whether it is true.
    fn check(&self, gateway: &Gateway, answer: &Answer, end: End, refunded: bool) -> Result<()> {
        let said = |name: &str| answer.body[name].as_str().unwrap_or_default();
        let text = &answer.text;
        let ledger = self.ledger(gateway);
        ensure!(
            ledger.len() == usize::from(refunded),
            "refunded {} times; {text}",
            ledger.len()
        );
        for entry in &ledger {
            ensure!(entry.minor_units == 1_000, "{entry:?}");
            let key = self.provider.has_keys().then_some(&self.key);
            ensure!(entry.key.as_ref() == key, "{entry:?}");
        }
        // Whatever the table says.
        let true_of = match (answer.status, said("status"), said("outcome")) {
            (200, "succeeded", "") | (202, "pending", "") => ledger.len() == 1,
            (400.., _, "not_refunded") => ledger.is_empty(),
            (400.., _, "unknown") => true,
            _ => false,
        };
        ensure!(true_of, "refunded {} times, and {text}", ledger.len());
        let expected = match end {
            End::Problem(problem) => {
                let found = (said("code"), answer.status, said("outcome"), said("retry"));
                let Problem {
                    code,
                    status,
                    outcome,
                    retry,
                } = problem;
                ensure!(
                    found == (code, status, outcome, retry),
                    "expected {problem:?}, got {text}"
                );
                assert_problem("a detail", answer, problem);
                let until = answer.body.get("retry_until").is_some_and(Value::is_string);
                let keeps_keys = self.provider.declared().keeps_keys;
                let is_kept = keeps_keys && outcome == "unknown" && retry == "same_key";
                ensure!(until || !is_kept, "no retry_until: {text}");
                return Ok(());
            }
            End::Succeeded => (200, "succeeded"),
            End::Pending => (202, "pending"),
            End::Left { .. } => bail!("nobody was to be there: {text}"),
        };
        ensure!(
            (answer.status, said("status")) == expected,
            "expected {end:?}, got {text}"
        );
        ensure!(
            answer.body["amount"] == self.body["amount"] && !said("id").is_empty(),
            "{text}"
        );
        Ok(())
    }

    /// Does what `retry` says, now that nothing is wrong any more: it always ends in exactly one refund.
    async fn follow(&self, gateway: &Gateway, end: End) -> Result<()> {
        let problem = match end {
            End::Problem(problem) => problem,
            _ => return Ok(()),
        };
        let again = match problem.retry {
            "same_key" => Call {
                key: self.key.clone(),
                ..self.anew()
            },
            "no" => self.anew(),
            // BBMSL has nothing to be asked.
            _ => return Ok(()),
        };
        let end = good(self.provider).context("a provider")?;
        let answer = again.make(gateway).await?;
        again
            .check(gateway, &answer, end, true)
            .with_context(|| format!("after {}, with {}", problem.code, problem.retry))
    }

    /// The same refund under another key.
    fn anew(&self) -> Call {
        Call {
            provider: self.provider,
            payment: self.payment.clone(),
            key: Uuid::new_v4().to_string(),
            body: self.body.clone(),
        }
    }
}

/// What was found to be otherwise than in the table. All of it is shown at once.
#[derive(Default)]
struct Findings {
    gone: usize,
    wrong: Vec<String>,
}

impl Findings {
    fn add(&mut self, case: &Case, provider: Provider, way: &Way, found: Result<()>) {
        self.gone += 1;
        if let Err(error) = found {
            let way = format!("{way:?}");
            let way: String = way.chars().take(200).collect();
            let fault = &case.fault;
            self.wrong
                .push(format!("{provider:?}, {fault}, {way}: {error:#}"));
        }
    }

    fn end(self) -> Result<()> {
        ensure!(self.gone > 0, "no way was gone");
        let (count, text) = (self.wrong.len(), self.wrong.join("\n"));
        ensure!(self.wrong.is_empty(), "{count} of {}:\n{text}", self.gone);
        Ok(())
    }

    fn join(mut self, other: Findings) -> Findings {
        self.gone += other.gone;
        self.wrong.extend(other.wrong);
        self
    }
}

/// All ways of these cases at a provider, over this protocol.
fn ways_at(
    cases: &[Case],
    provider: Provider,
    alpn: Alpn,
) -> impl Iterator<Item = (&Case, End, bool, Way)> {
    cases
        .iter()
        .filter(move |case| case.over.contains(&alpn))
        .filter_map(move |case| Some((case, (case.ends)(provider)?)))
        .flat_map(move |(case, end)| {
            case.refunded.iter().flat_map(move |refunded| {
                let ways = (case.ways)(provider, *refunded);
                ways.into_iter().map(move |way| (case, end, *refunded, way))
            })
        })
}

// ---- gateways

const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

fn cluster_mut(config: &mut Value, provider: Provider) -> &mut Value {
    let clusters = config["static_resources"]["clusters"].as_array_mut();
    clusters
        .into_iter()
        .flatten()
        .find(|known| known["name"] == cluster(provider))
        .expect("a cluster")
}

fn set_port(config: &mut Value, provider: Provider, port: u16) {
    let address = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
    let cluster = cluster_mut(config, provider);
    cluster.pointer_mut(address).expect("an address")["port_value"] = json!(port);
}

fn set_route(config: &mut Value, provider: Provider, name: &str, value: Value) {
    route_mut(config, cluster(provider)).expect("a route")["route"][name] = value;
}

fn options(alpn: Alpn, change: impl FnOnce(&mut Value) + Send + 'static) -> Options {
    Options {
        simulators: simulator::Options {
            alpn,
            ..simulator::Options::default()
        },
        secrets: Some(secrets()),
        ..Options::changed(|config| {
            // A code that this merchant knows to be a plain refusal.
            plugin(config, |plugin| {
                plugin["providers"]["bbmsl"]["declined_codes"] = json!(["9007"]);
            });
            change(config);
        })
    }
}

/// An Envoy before 1.38 has no secret in filter state (`SECRETS_BY` tells so), and transit.yaml needs one.
fn has_filter_state() -> bool {
    Options::default().secrets_by == SecretsBy::FilterState
}

/// One of Envoy's numbers, by a pattern of its name.
async fn stat(gateway: &Gateway, name: &str) -> Result<u64> {
    let page = format!("/stats?filter=^{name}$");
    let text = gateway.admin(&page).await?;
    let number = text.trim().rsplit(' ').next().unwrap_or_default();
    Ok(number.parse().unwrap_or_default())
}

/// Until so many calls are in the gateway.
async fn until_active(gateway: &Gateway, count: u64) -> Result<()> {
    until("so many calls in the gateway", async || {
        Ok(stat(gateway, "http.refunds.downstream_rq_active").await? == count)
    })
    .await
}

/// Prepares a way at one of the simulators. `name` is its cluster in Envoy.
async fn arrange(
    gateway: &Gateway,
    (simulators, at, name): (&Simulators, Provider, &str),
    call: &Call,
    way: &Way,
    booked: bool,
) -> Result<()> {
    match way {
        Way::Meets(fault) => simulators.next_fault(at, fault.clone()),
        Way::Says(status, headers, body) => {
            let mut reply = Reply::json(*status, call.fill(body));
            for (name, value) in headers {
                reply
                    .headers
                    .push((name.as_bytes().to_vec(), value.clone()));
            }
            simulators.next_fault(at, Fault::Reply { reply, booked });
        }
        Way::Refuses | Way::Shows(_) => {
            match way {
                Way::Shows(certificate) => simulators.set_certificate(at, *certificate).await?,
                _ => simulators.close(at).await,
            }
            // A connection that is still there would be used once more.
            until("no connection", async || {
                Ok(stat(gateway, &format!("cluster.{name}.upstream_cx_active")).await? == 0)
            })
            .await?;
        }
        _ => bail!("not at a simulator: {way:?}"),
    }
    Ok(())
}

/// Puts the simulator back into order; every fault must have been met.
async fn restore(simulators: &Simulators, at: Provider, way: &Way) -> Result<()> {
    match way {
        Way::Refuses => simulators.open(at).await?,
        Way::Shows(_) => simulators.set_certificate(at, Certificate::Valid).await?,
        _ => ensure!(simulators.clear_faults(at) == 0, "the fault was not met"),
    }
    Ok(())
}

/// Goes every way that a provider's own simulator can show, all providers beside each other.
async fn at_the_providers(gateway: &Gateway, cases: &[Case], alpn: Alpn) -> Result<()> {
    let all = FOUR.map(async |provider| {
        let mut findings = Findings::default();
        for (case, end, refunded, way) in ways_at(cases, provider, alpn) {
            if matches!(way, Way::Between(_) | Way::Configured(_)) {
                continue;
            }
            let call = Call::new(provider);
            let found = async {
                let at = (&*gateway.simulators, provider, cluster(provider));
                arrange(gateway, at, &call, &way, refunded).await?;
                let answer = call.make(gateway).await;
                restore(&gateway.simulators, provider, &way).await?;
                call.check(gateway, &answer?, end, refunded)?;
                call.follow(gateway, end).await
            };
            let found = found.await;
            findings.add(case, provider, &way, found);
        }
        findings
    });
    let all = join_all(all).await.into_iter();
    all.fold(Findings::default(), Findings::join).end()
}

// ---- a line that is cut

/// What stands between Envoy and another server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Passes all bytes on.
    Pass,
    /// Passes no bytes back.
    Hold,
    /// Passes bytes back one by one.
    Drip,
    /// Resets the connection at the next request, and passes nothing on.
    Reset,
    /// Closes it so.
    Close,
}

struct Between {
    address: SocketAddr,
    target: watch::Sender<Option<SocketAddr>>,
    mode: watch::Sender<Mode>,
}

impl Between {
    async fn start() -> Result<Between> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (target, its_target) = watch::channel(None);
        let (mode, its_mode) = watch::channel(Mode::Pass);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let target = *its_target.borrow();
                let mode = its_mode.clone();
                tokio::spawn(async move {
                    if let Some(target) = target
                        && let Ok(far) = TcpStream::connect(target).await
                    {
                        let _ = Between::pass(near, far, mode).await;
                    }
                });
            }
        });
        Ok(Between {
            address,
            target,
            mode,
        })
    }

    async fn pass(
        mut near: TcpStream,
        mut far: TcpStream,
        mut mode: watch::Receiver<Mode>,
    ) -> Result<()> {
        near.set_nodelay(true)?;
        let (mut out, mut back) = (vec![0; 16_384], vec![0; 16_384]);
        loop {
            let now = *mode.borrow_and_update();
            tokio::select! {
                read = near.read(&mut out) => {
                    let read = read?;
                    // It may have changed while both were ready.
                    let now = *mode.borrow();
                    // Less is no request: HTTP/2 acknowledges settings, for one.
                    if read > 100 && matches!(now, Mode::Reset | Mode::Close) {
                        if now == Mode::Reset {
                            near.set_zero_linger()?;
                        }
                        return Ok(());
                    }
                    if read == 0 {
                        return Ok(());
                    }
                    far.write_all(&out[..read]).await?;
                }
                read = far.read(&mut back), if now != Mode::Hold => {
                    let read = read?;
                    if read == 0 {
                        return Ok(());
                    }
                    let size = if now == Mode::Drip { 1 } else { read };
                    for piece in back[..read].chunks(size) {
                        near.write_all(piece).await?;
                        tokio::task::yield_now().await;
                    }
                }
                changed = mode.changed() => changed?,
            }
        }
    }
}

// ---- the tests

#[tokio::test(flavor = "multi_thread")]
async fn where_no_connection_comes_about_nothing_is_sent() -> Result<()> {
    let cases = connecting();
    let over = BOTH.iter().map(async |alpn| {
        let gateway = Gateway::start(options(*alpn, |_| {})).await?;
        at_the_providers(&gateway, &cases, *alpn).await
    });
    let [one, two] = over.collect::<Vec<_>>().try_into().ok().context("two")?;
    tokio::try_join!(one, two)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_cannot_reach_a_provider_has_sent_nothing() -> Result<()> {
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = silent.local_addr()?.port();
    // The change is the same for all providers, so each way is gone by all of them at once; and all ways beside each other.
    let mut running = JoinSet::new();
    for (nth, (_, end, refunded, way)) in ways_at(&connecting(), Bog, Alpn::Http1).enumerate() {
        let Way::Configured(change) = way else {
            continue;
        };
        running.spawn(async move {
            let gateway = Gateway::start(options(Alpn::Both, move |config| {
                for provider in FOUR {
                    change(config, provider, port);
                }
            }))
            .await?;
            let all = FOUR.map(async |provider| {
                let call = Call::new(provider);
                let answer = call.make(&gateway).await?;
                ensure!(gateway.simulators.received(provider) == 0, "it was sent");
                call.check(&gateway, &answer, end, refunded)
            });
            anyhow::Ok((nth, join_all(all).await))
        });
    }
    let mut findings = Findings::default();
    for ended in running.join_all().await {
        let (nth, found) = ended?;
        for (provider, found) in FOUR.into_iter().zip(found) {
            let cases = connecting();
            let (case, _, _, way) = ways_at(&cases, provider, Alpn::Http1)
                .nth(nth)
                .context("the case")?;
            findings.add(case, provider, &way, found);
        }
    }
    findings.end()
}

async fn breaks_and_replies(alpn: Alpn) -> Result<()> {
    let gateway = Gateway::start(options(alpn, |_| {})).await?;
    let cases = [
        breaking(),
        answering(),
        documented(),
        undocumented(),
        unusual(),
    ];
    let cases: Vec<_> = cases.into_iter().flatten().collect();
    at_the_providers(&gateway, &cases, alpn).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_break_and_reply_over_http_1_ends_as_the_table_says() -> Result<()> {
    breaks_and_replies(Alpn::Http1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_break_and_reply_over_http_2_ends_as_the_table_says() -> Result<()> {
    breaks_and_replies(Alpn::Http2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reply_in_time_leaves_the_refund_unknown() -> Result<()> {
    let over = [Alpn::Http1, Alpn::Http2].map(async |alpn| {
        let gateway = Gateway::start(options(alpn, |config| {
            for provider in FOUR {
                set_route(config, provider, "timeout", json!("1s"));
            }
        }))
        .await?;
        at_the_providers(&gateway, &waiting(), alpn).await
    });
    let [one, two] = over;
    tokio::try_join!(one, two)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_in_use_that_breaks_before_the_request_is_read_leaves_it_unknown() -> Result<()>
{
    let mut findings = Findings::default();
    let cases = breaking();
    for alpn in BOTH {
        let lines = [
            Between::start().await?,
            Between::start().await?,
            Between::start().await?,
            Between::start().await?,
        ];
        let ports = lines.each_ref().map(|line| line.address.port());
        // One worker, so that the connection in use is there for the next call.
        let gateway = Gateway::start(Options {
            concurrency: 1,
            ..options(*alpn, move |config| {
                for (provider, port) in FOUR.into_iter().zip(ports) {
                    set_port(config, provider, port);
                }
            })
        })
        .await?;
        for (provider, line) in FOUR.into_iter().zip(&lines) {
            line.target
                .send_replace(Some(gateway.simulators.address(provider)));
            for (case, end, refunded, way) in ways_at(&cases, provider, *alpn) {
                let Way::Between(mode) = way else { continue };
                let found = async {
                    let first = Call::new(provider);
                    let answer = first.make(&gateway).await?;
                    let well = good(provider).context("a provider")?;
                    first.check(&gateway, &answer, well, true)?;
                    let received = gateway.simulators.received(provider);
                    line.mode.send_replace(mode);
                    let call = Call::new(provider);
                    let answer = call.make(&gateway).await?;
                    line.mode.send_replace(Mode::Pass);
                    ensure!(gateway.simulators.received(provider) == received);
                    call.check(&gateway, &answer, end, refunded)?;
                    call.follow(&gateway, end).await
                };
                let found = found.await;
                findings.add(case, provider, &way, found);
            }
        }
    }
    findings.end()
}

/// The next call has to fetch a token.
async fn drop_token(gateway: &Gateway) -> Result<()> {
    gateway.simulators.revoke_tokens();
    let call = Call::new(Bog);
    let answer = call.make(gateway).await?;
    let refused = certain("provider-auth-failed", 502, "same_key").context("a problem")?;
    call.check(gateway, &answer, refused, false)
        .context("the token that was revoked")
}

/// The ways that last until the filter's own patience ends have gateways of their own.
fn is_slow(way: &Way) -> bool {
    matches!(
        way,
        Way::Meets(Fault::Hang { .. } | Fault::StallBody { .. })
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_be_had_means_that_nothing_was_sent() -> Result<()> {
    let cases = fetching();
    let by_gateway = |alpn: Alpn, mine: fn(&Way) -> bool| {
        let cases = &cases;
        async move {
            let gateway = Gateway::start(options(alpn, |_| {})).await?;
            let simulators = &gateway.simulators;
            let mut findings = Findings::default();
            for (case, end, refunded, way) in ways_at(cases, Bog, alpn) {
                if !mine(&way) {
                    continue;
                }
                let found = async {
                    let call = Call::new(Bog);
                    let received = simulators.received(Bog);
                    let at = (&**simulators, BogToken, cluster(BogToken));
                    arrange(&gateway, at, &call, &way, true).await?;
                    let answer = call.make(&gateway).await;
                    restore(simulators, BogToken, &way).await?;
                    call.check(&gateway, &answer?, end, refunded)?;
                    let sent = simulators.received(Bog) - received;
                    ensure!(sent == u64::from(refunded), "sent {sent} times");
                    call.follow(&gateway, end).await?;
                    drop_token(&gateway).await
                };
                let found = found.await;
                findings.add(case, Bog, &way, found);
            }
            findings.end()
        }
    };
    tokio::try_join!(
        by_gateway(Alpn::Http1, |way| !is_slow(way)),
        by_gateway(Alpn::Http2, |way| !is_slow(way)),
        by_gateway(Alpn::Http1, |way| {
            matches!(way, Way::Meets(Fault::Hang { .. }))
        }),
        by_gateway(Alpn::Http2, |way| {
            matches!(way, Way::Meets(Fault::StallBody { .. }))
        }),
    )?;
    Ok(())
}

/// A simulator in OpenBao's place, which says what it is told; and signatures for it to say.
struct Signer {
    /// Its Moyasar is the one that plays OpenBao.
    fake: Simulators,
    ca: PathBuf,
    /// Signs by itself, with the same key.
    other: Arc<Gateway>,
    _folder: tempfile::TempDir,
}

impl Signer {
    async fn start() -> Result<Signer> {
        let other = Gateway::start(options(Alpn::Both, |_| {})).await?;
        Signer::beside(Arc::new(other)).await
    }

    async fn beside(other: Arc<Gateway>) -> Result<Signer> {
        let mut options = simulator::Options {
            any_host: true,
            alpn: Alpn::Http1,
            ..simulator::Options::default()
        };
        // The name on OpenBao's certificate in the testbed.
        options.hosts.insert(Moyasar, "localhost".to_owned());
        let fake = Simulators::start(options).await?;
        let folder = tempfile::tempdir()?;
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, fake.ca_pem())?;
        Ok(Signer {
            fake,
            ca,
            other,
            _folder: folder,
        })
    }

    /// A gateway whose BBMSL is signed for by what is at this address.
    fn options(&self, address: SocketAddr) -> Options {
        by_transit(address, self.ca.clone(), "a-token".to_owned())
    }

    /// The signature of this call will be the next answer.
    async fn will_sign(&self, call: &Call) -> Result<()> {
        // Whatever becomes of it there: the second time, this payment was refunded before.
        call.anew().make(&self.other).await?;
        let requests = self.other.simulators.requests(Bbmsl);
        // Others may call it, too.
        let body = requests.iter().rev().find_map(|exchange| {
            let text = str::from_utf8(&exchange.request.body).ok()?;
            text.contains(&format!(r#"\"orderId\":{},"#, call.payment))
                .then(|| serde_json::from_str::<Value>(text).ok())?
        });
        let body = body.context("it did not sign")?;
        let signature = format!("vault:v1:{}", body["signature"].as_str().context("none")?);
        let body = json!({"data": {"key_version": 1, "signature": signature}});
        let reply = Reply::json(200, body.to_string());
        let booked = false;
        self.fake
            .next_fault(Moyasar, Fault::Reply { reply, booked });
        Ok(())
    }
}

fn by_transit(address: SocketAddr, ca: PathBuf, token: String) -> Options {
    Options {
        secrets: Some(secrets()),
        more_secrets: vec![("openbao-token", token)],
        change: Box::new(move |config, folder| {
            sign_by_transit(config, address, &ca, folder).expect("a cluster");
        }),
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_cannot_be_had_means_that_nothing_was_sent() -> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    let cases = signing();
    let other = Arc::new(Gateway::start(options(Alpn::Both, |_| {})).await?);
    let by_gateway = |is_behind_a_line: bool, mine: fn(&Way) -> bool| {
        let (cases, other) = (&cases, other.clone());
        async move {
            let signer = Signer::beside(other).await?;
            let line = Between::start().await?;
            let address = signer.fake.address(Moyasar);
            line.target.send_replace(Some(address));
            let address = match is_behind_a_line {
                true => line.address,
                false => address,
            };
            let gateway = &Gateway::start(signer.options(address)).await?;
            let mut findings = Findings::default();
            for (case, end, refunded, way) in ways_at(cases, Bbmsl, Alpn::Http1) {
                if !mine(&way) {
                    continue;
                }
                let found = async {
                    let call = Call::new(Bbmsl);
                    let received = gateway.simulators.received(Bbmsl);
                    if let Way::Between(mode) = way {
                        signer.will_sign(&call).await?;
                        line.mode.send_replace(mode);
                    } else {
                        let at = (&signer.fake, Moyasar, "openbao");
                        arrange(gateway, at, &call, &way, false).await?;
                    }
                    let answer = call.make(gateway).await;
                    restore(&signer.fake, Moyasar, &way).await?;
                    call.check(gateway, &answer?, end, refunded)?;
                    let sent = gateway.simulators.received(Bbmsl) - received;
                    ensure!(sent == u64::from(refunded), "sent {sent} times");
                    if !refunded {
                        signer.will_sign(&call).await?;
                    }
                    call.follow(gateway, end).await
                };
                let found = found.await;
                findings.add(case, Bbmsl, &way, found);
            }
            findings.end()
        }
    };
    tokio::try_join!(
        by_gateway(false, |way| {
            !is_slow(way) && !matches!(way, Way::OpenBao(_) | Way::Between(_))
        }),
        by_gateway(true, |way| matches!(way, Way::Between(_))),
        by_gateway(false, |way| matches!(way, Way::Meets(Fault::Hang { .. }))),
        by_gateway(false, |way| matches!(
            way,
            Way::Meets(Fault::StallBody { .. })
        )),
    )?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openbao_without_the_key_or_sealed_or_gone_means_that_nothing_was_sent() -> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    let openbao = OpenBao::start(secrets().of(Bbmsl)).await?;
    let options = by_transit(openbao.address, openbao.ca(), openbao.token.clone());
    let gateway = Gateway::start(options).await?;
    let call = Call::new(Bbmsl);
    let answer = call.make(&gateway).await?;
    call.check(&gateway, &answer, End::Succeeded, true)?;
    let mut findings = Findings::default();
    let mut openbao = Some(openbao);
    let cases = signing();
    for (case, end, refunded, way) in ways_at(&cases, Bbmsl, Alpn::Http1) {
        let Way::OpenBao(arguments) = way else {
            continue;
        };
        match &openbao {
            Some(openbao) if !arguments.is_empty() => {
                openbao.run(arguments).await?;
            }
            _ => drop(openbao.take()),
        }
        let call = Call::new(Bbmsl);
        let answer = call.make(&gateway).await?;
        let found = call.check(&gateway, &answer, end, refunded);
        findings.add(case, Bbmsl, &way, found);
    }
    ensure!(gateway.simulators.received(Bbmsl) == 1, "it was sent");
    findings.end()
}

// ---- stages

/// Half of a request's body, and then nothing for as long as it is there.
struct Half(VecDeque<Bytes>);

impl Body for Half {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.pop_front() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            // Nobody wakes it: the whole call is dropped.
            None => Poll::Pending,
        }
    }
}

/// A call over HTTP/1.1 with half of its body; the rest, too.
async fn half(gateway: &Gateway, call: &Call) -> Result<(TcpStream, String)> {
    let body = call.body.to_string();
    let (begin, rest) = body.split_at(body.len() / 2);
    let mut socket = TcpStream::connect(gateway.address).await?;
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\nidempotency-key: {}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{begin}",
        call.key,
        body.len()
    );
    socket.write_all(head.as_bytes()).await?;
    Ok((socket, rest.to_owned()))
}

async fn half_over_http_2(gateway: &Gateway, call: &Call) -> Result<JoinHandle<Result<()>>> {
    let body = call.body.to_string();
    let (begin, _) = body.split_at(body.len() / 2);
    let socket = TcpStream::connect(gateway.address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
    let request = Request::post(gateway.url())
        .header("content-type", "application/json")
        .header("idempotency-key", &call.key)
        .body(Half([Bytes::copy_from_slice(begin.as_bytes())].into()))?;
    // Both end with the task.
    Ok(tokio::spawn(async move {
        tokio::select! {
            ended = connection => ended?,
            answer = sender.send_request(request) => bail!("{answer:?}"),
        }
        Ok(())
    }))
}

/// Until the provider has a request more than before, and has refunded it if it is to.
async fn until_sent(gateway: &Gateway, call: &Call, before: u64, refunded: bool) -> Result<()> {
    until("the request at the provider", async || {
        let ledger = call.ledger(gateway).len();
        Ok(gateway.simulators.received(call.provider) > before && ledger == usize::from(refunded))
    })
    .await
}

async fn bytes_from(gateway: &Gateway, provider: Provider) -> Result<u64> {
    let name = format!("cluster.{}.upstream_cx_rx_bytes_total", cluster(provider));
    stat(gateway, &name).await
}

/// The caller leaves at this stage; then the same call again ends in one refund, or says that it is not known.
async fn leave(
    gateway: &Gateway,
    signer: Option<(&Signer, &Between)>,
    (provider, stage): (Provider, Stage),
    refunded: bool,
    http2: bool,
) -> Result<()> {
    let simulators = &gateway.simulators;
    let call = Call::new(provider);
    if stage == Stage::Token {
        drop_token_if_any(gateway).await?;
    }
    let received = simulators.received(provider);
    match stage {
        Stage::Body if http2 => {
            let caller = half_over_http_2(gateway, &call).await?;
            until_active(gateway, 1).await?;
            caller.abort();
        }
        Stage::Body => {
            let (socket, _) = half(gateway, &call).await?;
            until_active(gateway, 1).await?;
            drop(socket);
        }
        Stage::Token => {
            let fetches = simulators.token_fetches();
            simulators.next_fault(BogToken, Fault::DelayReply(Duration::from_secs(1)));
            let caller = call.begin(gateway, http2)?;
            until("a fetch", async || Ok(simulators.token_fetches() > fetches)).await?;
            caller.abort();
        }
        Stage::Signature => {
            let (signer, line) = signer.context("a signer")?;
            signer.will_sign(&call).await?;
            let asked = signer.fake.received(Moyasar);
            line.mode.send_replace(Mode::Hold);
            let caller = call.begin(gateway, http2)?;
            until("OpenBao is asked", async || {
                Ok(signer.fake.received(Moyasar) > asked)
            })
            .await?;
            caller.abort();
        }
        Stage::Sent => {
            let booked = refunded;
            simulators.next_fault(provider, Fault::Hang { booked });
            let caller = call.begin(gateway, http2)?;
            until_sent(gateway, &call, received, refunded).await?;
            caller.abort();
        }
        Stage::Reply => {
            let booked = refunded;
            let bytes = bytes_from(gateway, provider).await?;
            simulators.next_fault(provider, Fault::StallBody { booked });
            let caller = call.begin(gateway, http2)?;
            until("a part of the reply", async || {
                Ok(bytes_from(gateway, provider).await? > bytes)
            })
            .await?;
            caller.abort();
        }
    }
    until_active(gateway, 0).await?;
    let ledger = call.ledger(gateway).len();
    ensure!(ledger == usize::from(refunded), "refunded {ledger} times");
    if let (Stage::Signature, Some((signer, line))) = (stage, signer) {
        line.mode.send_replace(Mode::Pass);
        signer.will_sign(&call).await?;
    }
    let was_sent = matches!(stage, Stage::Sent | Stage::Reply);
    let answer = match (was_sent && !provider.has_keys(), refunded) {
        // It has no key: who does not know must not repeat.
        (true, false) => return Ok(()),
        (true, true) => {
            let answer = call.make(gateway).await?;
            let text = &answer.text;
            ensure!(answer.body["outcome"] == "unknown", "{text}");
            ensure!(call.ledger(gateway).len() == 1, "{text}");
            return Ok(());
        }
        (false, _) => call.make(gateway).await?,
    };
    call.check(gateway, &answer, good(provider).context("none")?, true)
        .context("the same call again")?;
    // What the caller left behind would have been sent before the second call was.
    let sent = simulators.received(provider) - received;
    let expected = 1 + u64::from(was_sent);
    ensure!(sent == expected, "sent {sent} times");
    Ok(())
}

/// The filter may hold a token already, or not.
async fn drop_token_if_any(gateway: &Gateway) -> Result<()> {
    let call = Call::new(Bog);
    let answer = call.make(gateway).await?;
    call.check(gateway, &answer, End::Pending, true)?;
    drop_token(gateway).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_is_refunded_at_most_once() -> Result<()> {
    let cases = leaving();
    let by_gateway = async |http2: bool| {
        let gateway = Gateway::start(options(Alpn::Http1, |_| {})).await?;
        let mut findings = Findings::default();
        for provider in FOUR {
            for (case, _, refunded, way) in ways_at(&cases, provider, Alpn::Http1) {
                let Way::Leaves(stage) = way else { continue };
                if stage == Stage::Signature {
                    continue;
                }
                let found = leave(&gateway, None, (provider, stage), refunded, http2).await;
                findings.add(case, provider, &way, found);
            }
        }
        findings.end()
    };
    tokio::try_join!(by_gateway(false), by_gateway(true))?;
    Ok(())
}

/// A gateway behind a line to a signer, with a connection in use.
async fn signed_for(ecds: bool) -> Result<(Signer, Between, Gateway)> {
    let (signer, line) = (Signer::start().await?, Between::start().await?);
    let address = signer.fake.address(Moyasar);
    line.target.send_replace(Some(address));
    // One worker, so that there is one connection to OpenBao.
    let gateway = Gateway::start(Options {
        concurrency: 1,
        ecds,
        ..signer.options(line.address)
    })
    .await?;
    let call = Call::new(Bbmsl);
    signer.will_sign(&call).await?;
    let answer = call.make(&gateway).await?;
    call.check(&gateway, &answer, End::Succeeded, true)?;
    Ok((signer, line, gateway))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_while_openbao_is_asked_is_not_refunded() -> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    let (signer, line, gateway) = signed_for(false).await?;
    let mut findings = Findings::default();
    let cases = leaving();
    for http2 in [false, true] {
        for (case, _, refunded, way) in ways_at(&cases, Bbmsl, Alpn::Http1) {
            let Way::Leaves(Stage::Signature) = way else {
                continue;
            };
            let signer = Some((&signer, &line));
            let at = (Bbmsl, Stage::Signature);
            let found = leave(&gateway, signer, at, refunded, http2).await;
            findings.add(case, Bbmsl, &way, found);
        }
    }
    findings.end()
}

/// Pushes a configuration and waits until Envoy has taken it.
async fn push(gateway: &Gateway, plugin: &Value) -> Result<()> {
    const TAKEN: &str = "extension_config_discovery.http_filter.[^:]*.update_success";
    let before = stat(gateway, TAKEN).await?;
    gateway.push(plugin)?;
    until("the configuration is taken", async || {
        Ok(stat(gateway, TAKEN).await? > before)
    })
    .await
}

/// Configurations that a call in flight could meet: one with another provider beside its own, and one without its own.
fn pushed(plugin: &Value) -> [Value; 2] {
    let mut more = plugin.clone();
    more["providers"]["another"] = plugin["providers"]["moyasar"].clone();
    let mut none = more.clone();
    if let Some(providers) = none["providers"].as_object_mut() {
        providers.retain(|name, _| name == "another");
    }
    [more, none]
}

/// A call that has come to its stage.
enum UnderWay {
    Half(TcpStream, String),
    Whole(JoinHandle<Result<Answer>>),
}

impl UnderWay {
    async fn to(gateway: &Gateway, call: &Call, stage: Stage) -> Result<UnderWay> {
        let simulators = &gateway.simulators;
        let received = simulators.received(call.provider);
        if stage == Stage::Body {
            let (socket, rest) = half(gateway, call).await?;
            return Ok(UnderWay::Half(socket, rest));
        }
        match stage {
            Stage::Sent => {
                let fault = Fault::DelayReply(Duration::from_secs(1));
                simulators.next_fault(call.provider, fault);
            }
            Stage::Reply => {
                let fault = Fault::Pieces {
                    size: 100,
                    pause: Duration::from_millis(100),
                };
                simulators.next_fault(call.provider, fault);
            }
            _ => {}
        }
        let bytes = bytes_from(gateway, call.provider).await?;
        let answer = call.begin(gateway, false)?;
        match stage {
            Stage::Sent => until_sent(gateway, call, received, true).await?,
            Stage::Reply => {
                until("a part of the reply", async || {
                    Ok(bytes_from(gateway, call.provider).await? > bytes)
                })
                .await?;
            }
            _ => {}
        }
        Ok(UnderWay::Whole(answer))
    }

    async fn end(self, gateway: &Gateway, call: &Call, end: End) -> Result<()> {
        match self {
            UnderWay::Whole(answer) => {
                let answer = timeout(PATIENCE, answer).await???;
                call.check(gateway, &answer, end, true)
            }
            UnderWay::Half(mut socket, rest) => {
                socket.write_all(rest.as_bytes()).await?;
                let mut text = String::new();
                timeout(PATIENCE, socket.read_to_string(&mut text)).await??;
                let status = match end {
                    End::Pending => "HTTP/1.1 202 ",
                    _ => "HTTP/1.1 200 ",
                };
                ensure!(text.starts_with(status), "{text}");
                ensure!(call.ledger(gateway).len() == 1, "{text}");
                Ok(())
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_pushed_meanwhile_ends_in_one_refund() -> Result<()> {
    let gateway = Gateway::start(Options {
        ecds: true,
        ..options(Alpn::Http1, |_| {})
    })
    .await?;
    let plugin = gateway.plugin()?;
    let cases = pushing();
    let mut findings = Findings::default();
    for case in &cases {
        let ways = (case.ways)(Bog, true);
        let Some(way @ Way::Pushed(stage)) = ways.first() else {
            bail!("{ways:?}");
        };
        if *stage == Stage::Signature {
            continue;
        }
        for next in pushed(&plugin) {
            if *stage == Stage::Token {
                drop_token_if_any(&gateway).await?;
                gateway
                    .simulators
                    .next_fault(BogToken, Fault::DelayReply(Duration::from_secs(1)));
            }
            let fetches = gateway.simulators.token_fetches();
            let mut calls = Vec::new();
            for provider in FOUR {
                if let Some(end) = (case.ends)(provider) {
                    let call = Call::new(provider);
                    let under_way = UnderWay::to(&gateway, &call, *stage).await?;
                    calls.push((call, under_way, end));
                }
            }
            match stage {
                Stage::Token => {
                    until("a fetch", async || {
                        Ok(gateway.simulators.token_fetches() > fetches)
                    })
                    .await?;
                }
                Stage::Body => until_active(&gateway, calls.len() as u64).await?,
                _ => {}
            }
            push(&gateway, &next).await?;
            for (call, under_way, end) in calls {
                let found = under_way.end(&gateway, &call, end).await;
                findings.add(case, call.provider, way, found);
            }
            push(&gateway, &plugin).await?;
        }
    }
    findings.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_pushed_while_openbao_is_asked_ends_in_one_refund() -> Result<()> {
    if !has_filter_state() {
        return Ok(());
    }
    let (signer, line, gateway) = signed_for(true).await?;
    let plugin = gateway.plugin()?;
    let mut findings = Findings::default();
    let cases = pushing();
    for (case, end, _, way) in ways_at(&cases, Bbmsl, Alpn::Http1) {
        let Way::Pushed(Stage::Signature) = way else {
            continue;
        };
        for next in pushed(&plugin) {
            let call = Call::new(Bbmsl);
            signer.will_sign(&call).await?;
            let asked = signer.fake.received(Moyasar);
            line.mode.send_replace(Mode::Hold);
            let under_way = UnderWay::to(&gateway, &call, Stage::Signature).await?;
            until("OpenBao is asked", async || {
                Ok(signer.fake.received(Moyasar) > asked)
            })
            .await?;
            push(&gateway, &next).await?;
            line.mode.send_replace(Mode::Pass);
            let found = under_way.end(&gateway, &call, end).await;
            findings.add(case, Bbmsl, &way, found);
            push(&gateway, &plugin).await?;
        }
    }
    findings.end()
}

// ---- the documentation

/// A part of the table: its title, a sentence, its rows.
type Part = (&'static str, &'static str, Vec<Case>);

fn parts() -> Vec<Part> {
    vec![
        (
            "Before anything is sent",
            "No connection to the provider came about, so nothing went out.",
            connecting(),
        ),
        (
            "The connection breaks after sending",
            "The request had left. Whether the provider read it, and what it made of it, nobody can tell from here.",
            breaking(),
        ),
        (
            "The provider takes too long",
            "The route's timeout ended the wait (30 s in envoy.yaml, one second in these tests).",
            waiting(),
        ),
        (
            "The reply's status is no 2xx",
            "The status decides, save for the words that are named here.",
            answering(),
        ),
        (
            "A 2xx with a word that the provider documents",
            "HTTP 200 alone means at no provider that the money went back.",
            documented(),
        ),
        (
            "A 2xx that is not what the provider documents",
            "What is not understood is never taken for a refund, nor for a refusal.",
            undocumented(),
        ),
        (
            "Unusual, and all is well",
            "None of these is a fault to a caller.",
            unusual(),
        ),
        (
            "BOG's token endpoint",
            "Without a token nothing is sent to BOG.",
            fetching(),
        ),
        (
            "OpenBao, where it signs for BBMSL",
            "Without a signature nothing is sent to BBMSL.",
            signing(),
        ),
        (
            "The caller leaves",
            "No answer reaches it, so to the caller the outcome is `unknown` whatever the ledger says; it does as after any \
             `unknown`. The same call with the same key ends in one refund at BOG, Moyasar and beGateway. At BBMSL, once the \
             request was sent, it must be looked up.",
            leaving(),
        ),
        (
            "Another configuration is pushed (ECDS)",
            "A call ends on the configuration with which it began.",
            pushing(),
        ),
    ]
}

fn title(provider: Provider) -> &'static str {
    provider.declared().short
}

fn cell(end: Option<End>) -> String {
    match end {
        None => "–".to_owned(),
        Some(End::Succeeded) => "200 `succeeded`".to_owned(),
        Some(End::Pending) => "202 `pending`".to_owned(),
        Some(End::Left { retry }) => format!("(no answer) as **unknown**, `{retry}`"),
        Some(End::Problem(problem)) => {
            let outcome = match problem.outcome {
                "unknown" => "**unknown**",
                certain => certain,
            };
            let Problem {
                code,
                status,
                retry,
                ..
            } = problem;
            format!("{status} `{code}`<br>{outcome}, `{retry}`")
        }
    }
}

fn refunds(refunded: &[bool]) -> &'static str {
    match refunded {
        [false] => "0",
        [true] => "1",
        _ => "0 or 1",
    }
}

const HEAD: &str = "# What can go wrong, and what the caller is told

For application developers, who decide what to do next, and for those on call, who want to know what happened.

Each line is a fault; each column, what the caller gets when it happens at that provider: status, `code`, `outcome`, `retry`.
The last column is what was in the provider's own ledger: how often it had refunded. `0 or 1` means that both were tried, and
that the caller is told the same, as nothing tells them apart from outside.

- `not_refunded` is said only where it is certain. `succeeded` and `pending` are said only where the provider said so.
- **`unknown`** is all the rest: the money may have moved. Do what `retry` says, and never use a new key.
- `same_key`: make the same call again, with the same key. The tests do so once the fault is over, and it ends in exactly one
  refund, whether the first call had refunded or not.
- `look_up`: do not repeat. `GET /v1/refunds` asks the provider [how the refund stands](api.md#look-it-up).
- `no`: nothing was refunded. Fix the cause, and use a new key; the tests do that, too, and it ends in exactly one refund.

On call: `refund_status` in the access log is the `code`, `details` and `upstream_failure` are Envoy's own reason, and a line
without `upstream_local` had no connection, so nothing was sent.

This page is made from the table of the end-to-end tests (`tests/gateway/tests/faults.rs`), which runs every line against a
real Envoy with this project's `envoy.yaml`; the routes send once, without retries. Where a line has more than one way to
happen, all of them were gone, over HTTP/1.1 and HTTP/2 where it is not said otherwise.
";

/// A line of a case in which nothing was refunded and the outcome is unknown.
fn doubtful(case: &Case) -> Option<String> {
    let is_unknown = |provider: &Provider| match (case.ends)(*provider) {
        Some(End::Problem(problem)) => problem.outcome == "unknown",
        _ => false,
    };
    let at: Vec<_> = FOUR.into_iter().filter(is_unknown).map(title).collect();
    if !case.refunded.contains(&false) || at.is_empty() {
        return None;
    }
    let at = match at.len() {
        all if all == FOUR.len() => "all".to_owned(),
        _ => at.join(", "),
    };
    Some(format!("- {} ({at})\n", case.fault))
}

fn document(parts: &[Part]) -> String {
    let mut text = HEAD.to_owned();
    for (name, sentence, cases) in parts {
        let columns = FOUR.map(|provider| cases.iter().any(|case| (case.ends)(provider).is_some()));
        let shown = || {
            FOUR.into_iter()
                .zip(columns)
                .filter_map(|(provider, shown)| shown.then_some(provider))
        };
        text += &format!("\n## {name}\n\n{sentence}\n\n| fault |");
        for provider in shown() {
            text += &format!(" {} |", title(provider));
        }
        text += " refunds |\n|---|";
        text += &"---|".repeat(shown().count());
        text += "---|\n";
        for case in cases {
            text += &format!("| {} |", case.fault);
            for provider in shown() {
                text += &format!(" {} |", cell((case.ends)(provider)));
            }
            text += &format!(" {} |\n", refunds(case.refunded));
        }
    }
    text += "\n## Where nothing was refunded and only `unknown` can be said

Here the provider had refunded nothing, or both were tried, and the caller cannot be told more than `unknown`: from the gateway,
a request that was processed and one that was not look the same.
";
    for (name, _, cases) in parts {
        let lines: String = cases.iter().filter_map(doubtful).collect();
        if !lines.is_empty() {
            text += &format!("\n{name}:\n\n{lines}");
        }
    }
    text +=
        "\nAnd a caller that leaves before its answer never learns the outcome, at any stage.\n";
    text
}

#[test]
fn the_page_of_failures_is_the_table_of_these_tests() -> Result<()> {
    let path = project().join("docs/failures.md");
    let made = document(&parts());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made)?;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    ensure!(
        found == made,
        "docs/failures.md is not the table of tests/gateway/tests/faults.rs: run `UPDATE_DOCS=1 cargo test --package \
         gateway-testbed the_page_of_failures` and commit it"
    );
    Ok(())
}

#[test]
fn every_line_of_the_table_has_a_way_and_none_is_there_twice() {
    for (name, _, cases) in parts() {
        for (nth, case) in cases.iter().enumerate() {
            let before = &cases[..nth];
            let fault = &case.fault;
            assert!(
                before.iter().all(|other| other.fault != *fault),
                "{name}: {fault}"
            );
            let mut at = 0;
            for provider in FOUR.into_iter().filter(|of| (case.ends)(*of).is_some()) {
                at += 1;
                for refunded in case.refunded {
                    assert!(
                        !(case.ways)(provider, *refunded).is_empty(),
                        "{name}: {fault}"
                    );
                }
            }
            assert!(at > 0 && !case.over.is_empty(), "{name}: {fault}");
        }
    }
}
