//! An exception of the supply chain does not outlive its reason.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use toml::Table;

const MARVIN: &str = "RUSTSEC-2023-0071";
/// What stands before the day, as the last words of a reason.
const BY: &str = "Look at it again by ";

/// Each advisory that deny.toml ignores, with its reason.
fn ignored() -> Vec<(String, String)> {
    let deny: Table = include_str!("../../deny.toml").parse().unwrap();
    let list = deny["advisories"]["ignore"].as_array().unwrap();
    list.iter()
        .map(|entry| {
            let member = |name: &str| {
                let text = entry.get(name).and_then(|value| value.as_str());
                text.unwrap_or_else(|| panic!("deny.toml ignores {entry:?} without `{name}`"))
            };
            (member("id").to_owned(), member("reason").to_owned())
        })
        .collect()
}

/// The end of the day that a reason names.
fn day(id: &str, reason: &str) -> OffsetDateTime {
    let day = reason
        .rsplit_once(BY)
        .and_then(|(_, day)| day.strip_suffix('.'))
        .and_then(|day| OffsetDateTime::parse(&format!("{day}T23:59:59Z"), &Rfc3339).ok());
    day.unwrap_or_else(|| {
        panic!("deny.toml: the reason of {id} must end with \"{BY}YYYY-MM-DD.\": {reason}")
    })
}

#[test]
fn an_ignored_advisory_is_looked_at_again_in_time() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = OffsetDateTime::from_unix_timestamp(now.as_secs().try_into().unwrap()).unwrap();
    for (id, reason) in ignored() {
        assert!(
            now <= day(&id, &reason),
            "deny.toml ignores {id}, and the day by which that had to be looked at again has passed. See whether a release \
             mends it: if so, take it and remove the exception; if not, write down why it still holds, with a new day. \
             The reason was: {reason}"
        );
    }
}

#[test]
fn the_exception_for_rsa_holds_for_the_series_that_it_was_made_for() {
    let excepted = ignored().iter().any(|(id, _)| id == MARVIN);
    let lock: Table = include_str!("../../Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap().iter();
    let versions: Vec<&str> = packages
        .filter(|package| package["name"].as_str() == Some("rsa"))
        .map(|package| package["version"].as_str().unwrap())
        .collect();
    // The module's own is 0.10, which has no such advisory; the tests have 0.9 beside it.
    let is_excepted = |version: &&str| version.starts_with("0.9.");
    let is_sound = |version: &&str| version.starts_with("0.10.");
    let of_its_series = versions.iter().any(is_excepted)
        && versions
            .iter()
            .all(|version| is_excepted(version) || is_sound(version));
    assert!(
        !excepted || of_its_series,
        "deny.toml ignores {MARVIN} for rsa 0.9, and Cargo.lock has {versions:?}. Remove the exception, or write down why it \
         holds for that version, too."
    );
}
