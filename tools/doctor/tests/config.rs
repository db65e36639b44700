//! The configurations for chosen providers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

use std::process::Command;

use refund_doctor::start::write;
use refund_doctor::{ENVOY_YAML, PATH, examine};
use serde_json::Value;

const ALL: [&str; 4] = ["bog", "moyasar", "begateway", "bbmsl"];

fn tree(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// Every choice of at least one.
fn choices() -> impl Iterator<Item = Vec<&'static str>> {
    (1..16u8).map(|bits| {
        let chosen = ALL.into_iter().enumerate();
        let chosen = chosen.filter(|(index, _)| bits & (1 << index) != 0);
        chosen.map(|(_, name)| name).collect()
    })
}

#[test]
fn every_choice_is_whole_and_names_no_other_provider() {
    for chosen in choices() {
        let text = write(&chosen, PATH).unwrap();
        assert_eq!(examine(&text).unwrap(), [], "{chosen:?}");
        let lower = text.to_lowercase();
        for name in ALL {
            let is_chosen = chosen.contains(&name);
            assert_eq!(lower.contains(name), is_chosen, "{chosen:?}: {name}");
            let cluster = format!("\n  - name: {name}\n");
            assert_eq!(text.contains(&cluster), is_chosen, "{chosen:?}: {name}");
            let state = format!("object_key: refund.{name}_");
            assert_eq!(text.contains(&state), is_chosen, "{chosen:?}: {name}");
        }
        let kept = tree(&text);
        let clusters = kept["static_resources"]["clusters"].as_array().unwrap();
        let tokens = usize::from(chosen.contains(&"bog"));
        assert_eq!(clusters.len(), chosen.len() + tokens, "{chosen:?}");
        // No comment of envoy.yaml is lost that stands alone.
        for comment in ENVOY_YAML
            .lines()
            .filter(|line| line.trim().starts_with("# "))
        {
            let moved = comment.replace("# ", "");
            assert!(text.contains(moved.trim()), "{chosen:?}: {comment}");
        }
    }
}

#[test]
fn all_four_are_envoy_yaml_itself() {
    assert_eq!(tree(&write(&ALL, PATH).unwrap()), tree(ENVOY_YAML));
}

#[test]
fn another_path_stands_wherever_the_first_one_stood() {
    let text = write(&ALL, "/pay/back").unwrap();
    assert!(!text.contains(PATH));
    assert_eq!(tree(&text), tree(&ENVOY_YAML.replace(PATH, "/pay/back")));
}

/// A part that a team cuts out repeats nothing that is spelled out in another.
#[test]
fn every_part_stands_for_itself() {
    for chosen in choices() {
        let text = write(&chosen, PATH).unwrap();
        let parts: Vec<_> = text.split("# --8<-- ").skip(1).collect();
        assert_eq!(parts.len(), 9, "{chosen:?}");
        for (number, part) in (1..).zip(parts) {
            assert!(part.starts_with(&format!("{number}: into ")), "{part}");
            let end = format!("# -->8-- {number}\n");
            let Some((part, _)) = part.split_once(&end) else {
                panic!("{number} does not end");
            };
            assert!(part.lines().count() > 1, "{number} is empty");
            for alias in part.split(": *").skip(1) {
                let name = alias.split([' ', ',', '\n']).next().unwrap();
                let anchor = part
                    .find(&format!(": &{name} "))
                    .or(part.find(&format!(": &{name}\n")));
                assert!(
                    anchor < part.find(&format!(": *{name}")) && anchor.is_some(),
                    "{chosen:?}: {name}"
                );
            }
        }
    }
}

#[test]
fn what_it_cannot_make_it_refuses_with_a_sentence() {
    for (arguments, expected) in [
        (
            ["", PATH],
            "`` is none of the providers: they are bbmsl, begateway, bog, moyasar",
        ),
        (["moyasar,stripe", PATH], "`stripe` is none"),
        (["moyasar, bog", PATH], "` bog` is none"),
        (["bog,bog", PATH], "`bog` stands there twice"),
        (["bog", "pay"], "the path must be like"),
        (["bog", "/"], "the path must be like"),
        (["bog", "/pay/"], "the path must be like"),
        (["bog", "/pay//back"], "the path must be like"),
        (["bog", "/pay/../back"], "the path must be like"),
        (["bog", "/pay?x"], "the path must be like"),
        (["bog", "/pay\"back"], "the path must be like"),
    ] {
        let [providers, path] = arguments;
        let mut run = Command::new(env!("CARGO_BIN_EXE_doctor"));
        let output = run
            .args(["config", providers, "--path", path])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(
            said.starts_with("error: ") && said.contains(expected),
            "{arguments:?}: {said}"
        );
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
