//! Every golden file, both ways: the canonical call, or look-up, becomes exactly this provider
//! request, and the provider's reply exactly this answer. As WebAssembly the same files are played in
//! Chromium (`tests/playground`).

use std::collections::BTreeMap;

use core_testbed::Out;
use core_testbed::golden::Golden;
use refund_filter::exchange::Answer;
use refund_filter::headers::Headers;
use serde_json::{Value, json};

#[test]
fn every_golden_file_holds_in_both_directions() {
    let cases = core_testbed::golden_cases();
    let mut faults = Vec::new();
    for (path, case) in &cases {
        for fault in run(case) {
            faults.push(format!("{path}: {fault}"));
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults in {} golden files:\n{}",
        faults.len(),
        cases.len(),
        faults.join("\n")
    );
    let look_ups = cases.iter().filter(|(_, case)| !case["look_up"].is_null());
    assert!(
        look_ups.count() >= 250,
        "golden files of look-ups are missing"
    );
    assert!(cases.len() >= 550, "only {} golden files", cases.len());
}

fn run(case: &Value) -> Vec<String> {
    let golden = Golden::new(case);
    let mut faults = Vec::new();
    let asked = golden.ask();
    match &asked {
        Err(answer) => {
            if !case["provider_request"].is_null() {
                faults.push(format!("nothing was sent, but answered: {}", answer.body));
            }
        }
        Ok(out) => {
            let expected = &case["provider_request"];
            match out {
                Out::Routed(dispatch) => {
                    compare_request(&dispatch.headers, &dispatch.body, expected, &mut faults);
                }
                Out::Callout(callout) => {
                    let request = callout.request();
                    assert_eq!(request.cluster, case["configured_as"].as_str().unwrap());
                    let (headers, body) = (request.headers, request.body);
                    compare_request(&headers, &body, expected, &mut faults);
                }
            }
        }
    }
    if let Some(answer) = golden.answer(asked) {
        compare_answer(&answer, &case["answer"], &mut faults);
    }
    faults
}

fn compare_request(
    headers: &Headers<'_>,
    sent_body: &str,
    expected: &Value,
    faults: &mut Vec<String>,
) {
    if expected.is_null() {
        faults.push(format!("this was sent: {sent_body}"));
        return;
    }
    let body = expected["body"].as_str().unwrap();
    let mut wanted: BTreeMap<String, String> = expected["headers"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
        .collect();
    for (name, member) in [
        (":method", "method"),
        (":scheme", "scheme"),
        (":authority", "authority"),
        (":path", "path"),
    ] {
        wanted.insert(name.into(), expected[member].as_str().unwrap().into());
    }
    // What the contract gives for every provider; the golden files leave it out.
    if expected["method"] == "POST" {
        wanted.insert("content-length".into(), body.len().to_string());
    }
    for (name, value) in [
        ("accept-encoding", "identity".to_owned()),
        (
            "user-agent",
            format!("refund-filter/{}", env!("CARGO_PKG_VERSION")),
        ),
        ("x-request-id", "request-1".to_owned()),
    ] {
        wanted.insert(name.into(), value);
    }
    let sent: BTreeMap<String, String> = headers
        .iter()
        .map(|(name, value)| (text(name), text(value)))
        // For the router, which takes it away.
        .filter(|(name, _)| name != "x-envoy-max-retries")
        .collect();
    if sent != wanted {
        faults.push(format!("headers\n  sent   {sent:?}\n  wanted {wanted:?}"));
    }
    if sent_body != body {
        faults.push(format!("body\n  sent   {sent_body}\n  wanted {body}"));
    }
}

fn compare_answer(answer: &Answer, expected: &Value, faults: &mut Vec<String>) {
    let mut body: Value = serde_json::from_str(&answer.body).unwrap();
    let members = body.as_object_mut().unwrap();
    let mut wanted = expected["body"].clone();
    if members.contains_key("title") {
        // Free texts: there, but not compared.
        for member in ["title", "detail"] {
            if members
                .remove(member)
                .is_none_or(|text| text.as_str().unwrap().is_empty())
            {
                faults.push(format!("{member} is missing"));
            }
        }
        for errors in [members.get_mut("errors"), wanted.get_mut("errors")]
            .into_iter()
            .flatten()
        {
            let mut pointers: Vec<_> = errors
                .as_array()
                .unwrap()
                .iter()
                .map(|error| error["pointer"].as_str().unwrap().to_owned())
                .collect();
            pointers.sort();
            *errors = json!(pointers);
        }
    }
    if body != wanted {
        faults.push(format!("answer\n  is     {body}\n  wanted {wanted}"));
    }
    if json!(answer.status) != expected["status"] {
        faults.push(format!(
            "status {} instead of {}",
            answer.status, expected["status"]
        ));
    }
    let mut headers: BTreeMap<String, String> = answer
        .headers
        .iter()
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    // What every answer has; the golden files leave it out.
    for (name, value) in [("x-request-id", "request-1"), ("cache-control", "no-store")] {
        if headers.remove(name).as_deref() != Some(value) {
            faults.push(format!("{name} is missing"));
        }
    }
    if json!(headers) != expected["headers"] {
        faults.push(format!(
            "headers {headers:?} instead of {}",
            expected["headers"]
        ));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
