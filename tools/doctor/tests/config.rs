//! The configurations for chosen providers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

use std::process::Command;

use refund_doctor::start::{Variant, write};
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
        let text = write(&chosen, PATH, Variant::default()).unwrap();
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

/// The variants that this choice can have: the usual one, and what goes together.
fn variants(chosen: &[&str]) -> Vec<Variant> {
    let has = |name| chosen.contains(&name);
    let injected = has("moyasar") || has("begateway");
    let by_header = Variant {
        by_header: true,
        injected,
        ..Variant::default()
    };
    let listing = Variant {
        transit: has("bbmsl"),
        injected,
        open_list: true,
        ..Variant::default()
    };
    let alone = Variant {
        injected: false,
        ..by_header
    };
    let shared = Variant {
        memory: true,
        ..Variant::default()
    };
    let all = Variant {
        memory: true,
        ..listing
    };
    vec![Variant::default(), by_header, alone, listing, shared, all]
}

#[test]
fn every_variant_of_every_choice_is_whole_and_has_what_it_uses_alone() {
    for chosen in choices() {
        for variant in variants(&chosen) {
            // The doctor has nothing to say of it, or it were not made.
            let text = write(&chosen, "/pay/back", variant).unwrap();
            let case = format!("{chosen:?}, {variant:?}");
            assert!(!text.contains(PATH), "{case}");
            let others = ALL.into_iter().filter(|name| !chosen.contains(name));
            for name in others {
                assert!(!text.to_lowercase().contains(name), "{case}: {name}");
            }
            let tree = tree(&text);
            let used = |wanted: &str| text.contains(wanted);
            assert_eq!(used("openbao"), variant.transit, "{case}");
            assert_eq!(used("memory-password"), variant.memory, "{case}");
            assert_eq!(
                used("bbmsl-key"),
                chosen.contains(&"bbmsl") && !variant.transit,
                "{case}"
            );
            assert_eq!(
                used("\"credentials\": \"injected\""),
                variant.injected,
                "{case}"
            );
            for (name, secret) in [
                ("moyasar", "moyasar-api-key"),
                ("begateway", "begateway-secret-key"),
            ] {
                let brought = chosen.contains(&name) && !variant.injected;
                assert_eq!(used(secret), brought, "{case}: {secret}");
            }
            let is_brought = chosen
                .iter()
                .any(|name| !(variant.injected && ["moyasar", "begateway"].contains(name)));
            assert_eq!(
                used("set_filter_state\n"),
                (is_brought && !variant.by_header) || variant.memory,
                "{case}"
            );
            assert_eq!(used("x-refund-"), is_brought && variant.by_header, "{case}");
            let listeners = tree["static_resources"]["listeners"].as_array().unwrap();
            assert_eq!(
                listeners.len(),
                1 + usize::from(variant.open_list),
                "{case}"
            );
        }
    }
}

#[test]
fn all_four_are_envoy_yaml_itself() {
    assert_eq!(
        tree(&write(&ALL, PATH, Variant::default()).unwrap()),
        tree(ENVOY_YAML)
    );
}

#[test]
fn another_path_stands_wherever_the_first_one_stood() {
    let text = write(&ALL, "/pay/back", Variant::default()).unwrap();
    assert!(!text.contains(PATH));
    assert_eq!(tree(&text), tree(&ENVOY_YAML.replace(PATH, "/pay/back")));
}

/// A part that a team cuts out repeats nothing that is spelled out in another.
#[test]
fn every_part_stands_for_itself() {
    let with_variants = |chosen: Vec<&'static str>| {
        let variants = variants(&chosen).into_iter();
        variants.map(move |variant| (chosen.clone(), variant))
    };
    for (chosen, variant) in choices().flat_map(with_variants) {
        let text = write(&chosen, PATH, variant).unwrap();
        let parts: Vec<_> = text.split("# --8<-- ").skip(1).collect();
        assert_eq!(
            parts.len(),
            9 + usize::from(variant.open_list),
            "{chosen:?}"
        );
        for (number, part) in (1..).zip(parts) {
            assert!(part.starts_with(&format!("{number}: into ")), "{part}");
            let end = format!("# -->8-- {number}\n");
            let Some((part, _)) = part.split_once(&end) else {
                panic!("{number} does not end");
            };
            assert!(part.lines().count() > 1, "{number} is empty");
            for alias in part.split(": *").skip(1) {
                let name = alias.split([' ', ',', '}', '\n']).next().unwrap();
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
fn a_variant_that_means_nothing_is_refused_with_a_sentence() {
    for (providers, options, expected) in [
        ("moyasar", &["--transit"][..], "only bbmsl signs"),
        (
            "bbmsl",
            &["--transit", "--secrets-by-header"],
            "token is not brought by header",
        ),
        (
            "bbmsl",
            &["--memory", "--secrets-by-header"],
            "password is not brought by header",
        ),
        (
            "bog,bbmsl",
            &["--credentials-injected"],
            "moyasar and begateway alone",
        ),
    ] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_doctor"));
        let output = run
            .args(["config", providers])
            .args(options)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {said}");
        assert!(said.contains(expected), "{options:?}: {said}");
        assert!(output.stdout.is_empty(), "{options:?}");
    }
}

/// What a team copies for two providers.
#[test]
fn two_providers_take_no_more_lines_than_they_did() {
    let text = write(&["moyasar", "bbmsl"], PATH, Variant::default()).unwrap();
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    let lines = text.lines().count();
    let comments = text.lines().filter(is_comment).count();
    assert!(
        lines <= 500 && lines - comments <= 410,
        "{lines}, of them {comments} comments"
    );
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
