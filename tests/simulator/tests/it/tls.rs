use std::collections::BTreeMap;
use std::io::ErrorKind;

use http::Version;
use provider_simulator::{Alpn, Certificate, Options, Provider};

use crate::begateway::refund;
use crate::client::{connect, start, start_with};

#[tokio::test]
async fn every_provider_shows_its_own_name() {
    let simulators = start().await;
    for provider in Provider::ALL {
        connect(&simulators, provider, &[b"h2"])
            .await
            .expect("trusted");
    }
}

#[tokio::test]
async fn bad_certificates_are_not_trusted() {
    let kinds = [
        (Provider::Bog, Certificate::WrongName),
        (Provider::Moyasar, Certificate::Expired),
        (Provider::Begateway, Certificate::OtherAuthority),
    ];
    let certificates = BTreeMap::from(kinds);
    let simulators = start_with(Options {
        certificates,
        ..Options::default()
    })
    .await;
    for (provider, kind) in kinds {
        assert!(
            connect(&simulators, provider, &[b"h2"]).await.is_err(),
            "{kind:?}"
        );
    }
    let renewed = simulators
        .set_certificate(Provider::Begateway, Certificate::Valid)
        .await;
    renewed.expect("open again");
    assert_eq!(refund("page", None).status(&simulators).await, 200);
}

#[tokio::test]
async fn only_the_offered_versions_are_spoken() {
    for (alpn, h1, h2) in [
        (Alpn::Http1, true, false),
        (Alpn::Http2, false, true),
        (Alpn::Both, true, true),
    ] {
        let simulators = start_with(Options {
            alpn,
            ..Options::default()
        })
        .await;
        let call = refund("page", Some(1));
        assert_eq!(call.try_send(&simulators).await.is_ok(), h1, "{alpn:?}");
        assert_eq!(
            call.h2().try_send(&simulators).await.is_ok(),
            h2,
            "{alpn:?}"
        );
        assert_eq!(
            simulators.ledger(Provider::Begateway).len(),
            usize::from(h1) + usize::from(h2)
        );
    }
}

#[tokio::test]
async fn a_request_is_recorded_as_it_came() {
    let simulators = start().await;
    let call = refund("page", Some(1)).header("requestid", "é");
    call.send(&simulators).await;
    call.clone().h2().send(&simulators).await;
    let requests = simulators.requests(Provider::Begateway);
    assert_eq!(requests.len(), 2);
    for (nth, exchange) in requests.iter().enumerate() {
        let request = &exchange.request;
        assert_eq!(request.sequence, nth as u64);
        assert_eq!(request.method, "POST");
        assert_eq!(request.path, "/beyag/transactions/refunds");
        assert_eq!(request.authority.as_deref(), Some("api.begateway.com"));
        assert_eq!(request.server_name.as_deref(), Some("api.begateway.com"));
        assert_eq!(request.body, call.body.as_bytes());
        let ids: Vec<&[u8]> = request.headers_named("requestid").collect();
        assert_eq!(ids, ["é".as_bytes()]);
        assert_eq!(exchange.reply.as_ref().expect("a reply").status, 200);
    }
    assert_eq!(requests[0].request.version, Version::HTTP_11);
    assert_eq!(requests[1].request.version, Version::HTTP_2);
}

#[tokio::test]
async fn only_the_latest_exchanges_are_kept() {
    let simulators = start_with(Options {
        kept_exchanges: 2,
        ..Options::default()
    })
    .await;
    for amount in 1..=3 {
        refund("page", Some(amount)).send(&simulators).await;
    }
    let kept: Vec<u64> = simulators
        .requests(Provider::Begateway)
        .iter()
        .map(|exchange| exchange.request.sequence)
        .collect();
    assert_eq!(kept, [1, 2]);
    assert_eq!(simulators.received(Provider::Begateway), 3);
    assert!(simulators.requests(Provider::Begateway)[0].reply.is_some());
}

#[tokio::test]
async fn a_closed_provider_refuses_connections_until_it_opens() {
    let simulators = start().await;
    let address = simulators.address(Provider::Begateway);
    simulators.close(Provider::Begateway).await;
    let refused = tokio::net::TcpStream::connect(address).await.map(drop);
    assert_eq!(
        refused.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionRefused)
    );
    simulators
        .open(Provider::Begateway)
        .await
        .expect("open again");
    assert_eq!(refund("page", None).status(&simulators).await, 200);
    drop(simulators);
    tokio::task::yield_now().await;
    let refused = tokio::net::TcpStream::connect(address).await.map(drop);
    assert_eq!(
        refused.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionRefused)
    );
}
