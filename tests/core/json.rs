//! The reader of JSON against `serde_json`'s: whatever the text, both find the same values in it.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use refund_filter::json::{Json, Kind, Node};
use serde_json::{Value, json};

/// Texts with what could be taken for an end: quotes, backslashes, brackets, white space.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{0,4}",
        "[\"\\\\{}\\[\\],: \t\n\r/u0é退\u{7f}\u{1}]{0,8}"
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(json!(1.5)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(text(), inner, 0..6).prop_map(|members| json!(members)),
        ]
    })
}

/// The value that a node stands for.
fn read(node: Node<'_>) -> Value {
    match node.kind() {
        Kind::Null | Kind::Bool | Kind::Number => serde_json::from_str(node.raw()).unwrap(),
        Kind::String => node.text().unwrap().into_owned().into(),
        Kind::Array => node.items().unwrap().into_iter().map(read).collect(),
        Kind::Object => {
            let members = node.members().unwrap().unwrap();
            let read =
                |(name, node): (std::borrow::Cow<'_, str>, _)| (name.into_owned(), read(node));
            members.into_iter().map(read).collect()
        }
    }
}

/// The same text with white space wherever JSON allows it, between quotes nowhere.
fn spaced(text: &str) -> String {
    let (mut out, mut quoted, mut escaped) = (String::new(), false, false);
    for c in text.chars() {
        if !quoted && "{}[],:".contains(c) {
            out.push_str(&format!(" \r\n{c}\t"));
        } else {
            out.push(c);
        }
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
    }
    out
}

proptest! {
    #![proptest_config(crate::properties::cases(4_000))]

    #[test]
    fn every_value_is_found_as_serde_json_finds_it(value in value()) {
        for text in [value.to_string(), spaced(&value.to_string())] {
            let json = Json::parse(text.as_bytes()).unwrap();
            let node = json.root();
            prop_assert_eq!(read(node), value.clone(), "{}", text);
            prop_assert_eq!(node.is_plain_object(), value.is_object());
            for (name, member) in value.as_object().into_iter().flatten() {
                let found = node.get(name).map(read);
                prop_assert_eq!(found, (!member.is_null()).then(|| member.clone()), "{}", text);
            }
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_seen_however_many_there_are_and_however_it_is_written(
        count in 1usize..80, at in 0usize..80, written in 0u8..3,
    ) {
        let at = at % count;
        let mut members: Vec<_> = (0..count).map(|nth| format!("\"name{nth}\":1")).collect();
        let object = |members: &[String]| format!("{{{}}}", members.join(","));
        let plain = |text: &str| Json::parse(text.as_bytes()).map(|json| json.root().is_plain_object());
        prop_assert_eq!(plain(&object(&members)), Ok(true));
        members.push(match written {
            0 => format!("\"name{at}\":2"),
            1 => format!("\"n\\u0061me{at}\":2"),
            _ => "\"another\":2".to_owned(),
        });
        prop_assert_eq!(plain(&object(&members)), Ok(written == 2));
    }

    #[test]
    fn what_serde_json_does_not_take_is_malformed(text in "[\\[\\]{}\",:\\\\ 0-9.eE+\\-truefalsn\n]{0,24}") {
        let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        prop_assert_eq!(Json::parse(text.as_bytes()).is_ok(), theirs, "{:?}", text);
    }
}
