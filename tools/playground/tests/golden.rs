//! Every golden file through the playground: its own driver of the core says what the core's tests
//! say.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The files of the providers' folders, with their paths. `"@FILE"` is a key beside BBMSL's.
fn goldens() -> Vec<(String, Value)> {
    let providers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/providers");
    let folders = fs::read_dir(providers)
        .unwrap()
        .map(|folder| folder.unwrap().path().join("golden"));
    let files: Vec<_> = folders
        .flat_map(fs::read_dir)
        .flatten()
        .map(|file| file.unwrap().path())
        .collect();
    let is_golden = |path: &Path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    };
    let (goldens, keys): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| is_golden(path));
    let read = |path: PathBuf| {
        let mut text = fs::read_to_string(&path).unwrap();
        for key in &keys {
            let name = format!("\"@{}\"", key.file_name().unwrap().display());
            let key = fs::read_to_string(key).unwrap();
            text = text.replace(&name, &serde_json::to_string(&key).unwrap());
        }
        (
            path.display().to_string(),
            serde_json::from_str(&text).unwrap(),
        )
    };
    goldens.into_iter().map(read).collect()
}

fn played(golden: &Value) -> Value {
    let name = golden["configured_as"].as_str().unwrap();
    let call = match golden["look_up"]["query"].as_str() {
        Some(query) => json!({ "query": query }),
        None => json!({
            "key": golden["call"]["idempotency_key"], "body": golden["call"]["body"].to_string(),
        }),
    };
    let remembered = &golden["look_up"]["remembered"];
    let before = remembered.as_object().map(|remembered| {
        let reply = remembered
            .get("provider_reply")
            .filter(|reply| !reply.is_null());
        json!({
            "seconds_ago": remembered["seconds_ago"],
            "call": {"key": remembered["idempotency_key"], "body": remembered["body"].to_string()},
            "reply": reply.cloned().unwrap_or_else(|| json!({"fault": "timeout"})),
        })
    });
    let asked = json!({
        "configuration": json!({"providers": {name: golden["provider"]}}).to_string(),
        "now": golden["now"],
        "token": golden["token"].as_str().unwrap_or("golden-access-token"),
        "call": call,
        "before": Vec::from_iter(before),
        "reply": golden["provider_reply"],
    });
    playground::play(asked.to_string().as_bytes())
}

#[test]
fn every_golden_file_holds_in_the_playground() {
    let goldens = goldens();
    assert!(goldens.len() >= 550, "only {} golden files", goldens.len());
    for (path, golden) in goldens {
        let played = played(&golden);
        assert!(played["faults"].is_null(), "{path}: {played}");
        let request = &golden["provider_request"];
        if request.is_null() {
            assert_eq!(played["requests"], json!([]), "{path}");
        } else {
            let sent = &played["requests"][0];
            let url = ["scheme", "authority", "path"].map(|part| request[part].as_str().unwrap());
            let [scheme, authority, target] = url;
            assert_eq!(sent["method"], request["method"], "{path}");
            assert_eq!(
                sent["url"],
                format!("{scheme}://{authority}{target}"),
                "{path}"
            );
            assert_eq!(sent["body"], request["body"], "{path}");
            for (name, value) in request["headers"].as_object().unwrap() {
                let headers = sent["headers"].as_array().unwrap();
                assert!(headers.contains(&json!([name, value])), "{path}: {name}");
            }
        }
        let Some(expected) = golden["answer"].as_object() else {
            continue;
        };
        let answer = &played["answer"];
        assert_eq!(answer["status"], expected["status"], "{path}");
        let body = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        let is_problem = answer["status"].as_u64() >= Some(300);
        let body = if is_problem { comparable(body) } else { body };
        let said = expected["body"].clone();
        let said = if is_problem { comparable(said) } else { said };
        assert_eq!(body, said, "{path}");
    }
}

/// A problem without its words for people, which the files leave out, and with its errors in one
/// order: which member stands first depends on how a file was read.
fn comparable(mut problem: Value) -> Value {
    let members = problem.as_object_mut().unwrap();
    members.retain(|name, _| name != "title" && name != "detail");
    if let Some(errors) = members.get_mut("errors").and_then(Value::as_array_mut) {
        for error in errors.iter_mut() {
            error.as_object_mut().unwrap().remove("detail");
        }
        errors.sort_by_key(Value::to_string);
    }
    problem
}
