use std::io::{ErrorKind, Read as _};
use std::time::{Duration, Instant};

use provider_simulator::{Fault, Provider, Reply, Simulators};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::begateway::refund;
use crate::client::{Answer, Call, connect, start};

const HERE: Provider = Provider::Begateway;

fn both() -> [Call; 2] {
    [refund("page", Some(1)), refund("page", Some(1)).h2()]
}

async fn answer(simulators: &Simulators, call: &Call, fault: Fault) -> Answer {
    simulators.next_fault(HERE, fault);
    call.send(simulators).await
}

/// Sends the request by hand and reads to the end, whatever comes.
async fn raw(simulators: &Simulators, fault: Fault) -> (String, std::io::Result<()>) {
    simulators.next_fault(HERE, fault);
    let call = refund("page", Some(1));
    let mut tls = connect(simulators, HERE, &[b"http/1.1"])
        .await
        .expect("connected");
    let mut request = format!("POST {} HTTP/1.1\r\nhost: {}\r\n", call.path, call.host);
    for (name, value) in &call.headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n{}", call.body.len(), call.body);
    tls.write_all(request.as_bytes()).await.expect("sent");
    let mut bytes = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(1), tls.read_to_end(&mut bytes)).await;
    let end = match end {
        Ok(end) => end.map(drop),
        Err(_) => Err(ErrorKind::TimedOut.into()),
    };
    (String::from_utf8_lossy(&bytes).into_owned(), end)
}

#[tokio::test]
async fn without_a_reply_the_call_fails_and_books_only_if_it_says_so() {
    for call in both() {
        let simulators = start().await;
        let mut expected = 0;
        for (fault, booked) in [
            (Fault::CloseBefore, false),
            (Fault::Close { booked: false }, false),
            (Fault::Close { booked: true }, true),
            (Fault::Reset { booked: false }, false),
            (Fault::Reset { booked: true }, true),
            (Fault::CutHeaders { booked: false }, false),
            (Fault::CutHeaders { booked: true }, true),
            (Fault::CutBody { booked: false }, false),
            (Fault::CutBody { booked: true }, true),
            (Fault::RefusedStream, false),
            (
                Fault::StreamReset {
                    code: 2,
                    booked: false,
                },
                false,
            ),
            (
                Fault::StreamReset {
                    code: 2,
                    booked: true,
                },
                true,
            ),
            (
                Fault::GoAway {
                    code: 0,
                    booked: true,
                },
                true,
            ),
        ] {
            let what = format!("{fault:?} {:?}", call.version);
            simulators.next_fault(HERE, fault);
            assert!(call.try_send(&simulators).await.is_err(), "{what}");
            expected += usize::from(booked);
            assert_eq!(simulators.ledger(HERE).len(), expected, "{what}");
        }
        assert_eq!(call.status(&simulators).await, 200);
    }
}

#[tokio::test]
async fn hanging_and_stalling_never_end() {
    for call in both() {
        let simulators = start().await;
        for fault in [
            Fault::Hang { booked: false },
            Fault::Hang { booked: true },
            Fault::StallBody { booked: true },
        ] {
            simulators.next_fault(HERE, fault.clone());
            let waited =
                tokio::time::timeout(Duration::from_millis(400), call.try_send(&simulators));
            assert!(waited.await.is_err(), "{fault:?}");
        }
        assert_eq!(simulators.ledger(HERE).len(), 2);
    }
}

#[tokio::test]
async fn cuts_are_seen_where_they_are_made() {
    let simulators = start().await;
    let (text, end) = raw(&simulators, Fault::CutHeaders { booked: true }).await;
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && !text.contains("\r\n\r\n"),
        "{text}"
    );
    assert!(end.is_ok());
    let (text, end) = raw(&simulators, Fault::CutBody { booked: true }).await;
    assert!(
        text.contains("\r\n\r\n{\"transaction\"") && !text.ends_with('}'),
        "{text}"
    );
    assert!(end.is_ok());
    let (text, end) = raw(&simulators, Fault::StallBody { booked: true }).await;
    assert!(text.contains("\r\n\r\n{\"transaction\""), "{text}");
    assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::TimedOut));
    let (text, end) = raw(&simulators, Fault::Close { booked: true }).await;
    assert_eq!((text.as_str(), end.is_ok()), ("", true));
    let (text, end) = raw(&simulators, Fault::Reset { booked: true }).await;
    assert_eq!(text, "");
    assert_eq!(
        end.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionReset)
    );
    assert_eq!(simulators.ledger(HERE).len(), 5);
}

#[tokio::test]
async fn an_interim_100_goes_before_the_reply() {
    let simulators = start().await;
    let (text, end) = raw(&simulators, Fault::Continue100).await;
    assert!(
        text.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{text}"
    );
    // The connection is kept.
    assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::TimedOut));
    for call in both() {
        let answer = answer(&simulators, &call, Fault::Continue100).await;
        assert_eq!(answer.json()["transaction"]["status"], "successful");
    }
}

#[tokio::test]
async fn a_canned_reply_is_sent_as_it_is() {
    let simulators = start().await;
    for (booked, call) in [true, false].into_iter().zip(both()) {
        let reply = Reply {
            status: 503,
            headers: vec![
                (b"x-odd".to_vec(), b"\xff\xfe".to_vec()),
                (b"retry-after".to_vec(), b"7".to_vec()),
            ],
            body: b"<html>".to_vec(),
            trailers: Vec::new(),
        };
        let answer = answer(
            &simulators,
            &call,
            Fault::Reply {
                reply: reply.clone(),
                booked,
            },
        )
        .await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.headers["x-odd"].as_bytes(), b"\xff\xfe");
        assert_eq!(answer.text(), "<html>");
        assert_eq!(simulators.ledger(HERE).len(), 1);
        let exchange = simulators.requests(HERE).pop().expect("recorded");
        assert_eq!(exchange.reply, Some(reply));
        assert!(matches!(exchange.fault, Some(Fault::Reply { .. })));
    }
}

#[tokio::test]
async fn the_normal_reply_can_come_in_other_ways() {
    for call in both() {
        let simulators = start().await;
        let pieces = Fault::Pieces {
            size: 50,
            pause: Duration::from_millis(1),
        };
        let reply = answer(&simulators, &call, pieces).await;
        assert_eq!(reply.json()["transaction"]["status"], "successful");

        let trailers = vec![(b"x-end".to_vec(), b"here".to_vec())];
        let reply = answer(&simulators, &call, Fault::Trailers(trailers)).await;
        assert_eq!(reply.json()["transaction"]["status"], "successful");
        assert_eq!(reply.trailers["x-end"], "here");

        let reply = answer(
            &simulators,
            &call,
            Fault::HeaderOnly {
                status: 502,
                booked: false,
            },
        )
        .await;
        assert_eq!((reply.status, reply.body.len()), (502, 0));

        let reply = answer(&simulators, &call, Fault::Oversize { bytes: 3_000_000 }).await;
        assert!(reply.body.len() > 3_000_000);
        assert_eq!(reply.json()["transaction"]["status"], "successful");

        let reply = answer(&simulators, &call, Fault::Gzip).await;
        assert_eq!(reply.headers["content-encoding"], "gzip");
        let mut text = String::new();
        flate2::read::GzDecoder::new(&reply.body[..])
            .read_to_string(&mut text)
            .expect("gzip");
        assert!(text.contains("successful"));

        let pointer = "/transaction/amount".to_owned();
        let fault = Fault::Altered {
            pointer: pointer.clone(),
            value: Some("2.50".into()),
        };
        let reply = answer(&simulators, &call, fault).await;
        assert!(reply.text().contains(r#""amount":2.50"#));
        let reply = answer(
            &simulators,
            &call,
            Fault::Altered {
                pointer,
                value: None,
            },
        )
        .await;
        assert_eq!(reply.json()["transaction"].get("amount"), None::<&Value>);

        let reply = answer(&simulators, &call, Fault::Drain).await;
        assert_eq!(reply.status, 200);
        assert_eq!(simulators.ledger(HERE).len(), 7);
    }
}

#[tokio::test]
async fn a_delay_is_before_or_after_the_booking() {
    let simulators = start().await;
    let delay = Duration::from_millis(400);
    for (fault, booked) in [(Fault::Delay(delay), 0), (Fault::DelayReply(delay), 2)] {
        simulators.next_fault(HERE, fault);
        let started = Instant::now();
        let call = refund("page", Some(1));
        let look = async {
            tokio::time::sleep(delay / 2).await;
            simulators.ledger(HERE).len()
        };
        let (reply, seen) = tokio::join!(call.send(&simulators), look);
        assert_eq!((reply.status, seen), (200, booked));
        assert!(started.elapsed() >= delay);
    }
}

#[tokio::test]
async fn a_provider_goes_on_when_its_caller_is_gone() {
    for call in both() {
        let simulators = start().await;
        simulators.next_fault(HERE, Fault::Delay(Duration::from_millis(600)));
        let gone = tokio::time::timeout(Duration::from_millis(300), call.try_send(&simulators));
        assert!(gone.await.is_err());
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(simulators.ledger(HERE).len(), 1);
    }
}

#[tokio::test]
async fn each_request_takes_one_fault() {
    let simulators = start().await;
    let call = refund("page", Some(1));
    for status in [500, 502] {
        simulators.next_fault(
            HERE,
            Fault::HeaderOnly {
                status,
                booked: false,
            },
        );
    }
    assert_eq!(call.status(&simulators).await, 500);
    assert_eq!(call.status(&simulators).await, 502);
    assert_eq!(call.status(&simulators).await, 200);
    simulators.next_fault(HERE, Fault::Gzip);
    assert_eq!(simulators.clear_faults(HERE), 1);
}

#[tokio::test]
async fn a_look_up_takes_its_fault_from_the_one_queue() {
    let simulators = start().await;
    let look = Call::get(HERE, "/beyag/transactions/tracking_id/a").header(
        "authorization",
        "Basic MzYxOmJlZ2F0ZXdheS1kZW1vLXNlY3JldA==",
    );
    for look in [look.clone(), look.h2()] {
        simulators.next_fault(HERE, Fault::Close { booked: true });
        assert!(look.try_send(&simulators).await.is_err());
        simulators.next_fault(
            HERE,
            Fault::HeaderOnly {
                status: 503,
                booked: true,
            },
        );
        assert_eq!(look.status(&simulators).await, 503);
        simulators.next_fault(
            HERE,
            Fault::Altered {
                pointer: "/transactions/0".into(),
                value: None,
            },
        );
        let fault = Fault::Altered {
            pointer: "/transactions".into(),
            value: Some("[1]".into()),
        };
        simulators.next_fault(HERE, fault);
        assert_eq!(
            look.send(&simulators).await.text(),
            r#"{"transactions":[]}"#
        );
        assert_eq!(
            look.send(&simulators).await.text(),
            r#"{"transactions":[1]}"#
        );
    }
    assert_eq!(simulators.ledger(HERE), []);
}
