//! The world's time as people write it.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Unix time at the beginning of every world, in milliseconds: 2026-11-26.
pub const BEGINNING_MS: i64 = 1_795_651_200_000;

/// A moment of the world, to the second.
pub fn rfc3339(at: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp((BEGINNING_MS + at).div_euclid(1_000));
    at.ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// The world's time of a moment that somebody has written.
pub fn parse(text: &str) -> Option<i64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(at.unix_timestamp() * 1_000 - BEGINNING_MS)
}
