//! A whole configuration for chosen providers, made of the text of `envoy/envoy.yaml`: the others'
//! blocks go, comments stay.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::chain::Chain;
use crate::reading::Envoy;
use crate::{ENVOY_YAML, PATH, examine, text};

/// What a team takes over into an Envoy of its own: the line with which a part begins, the one
/// before which it ends (none: its block's end), and where it goes. A part begins with the comments
/// in front of its first line; with what is inside where that is a list's name.
const PARTS: [(&str, Option<&str>, &str); 9] = [
    (
        "node:",
        None,
        "the top of your bootstrap, unless it has a node",
    ),
    (
        "stats_config:",
        None,
        "the top of your bootstrap: stats_tags beside your own",
    ),
    ("per_connection_buffer_limit_bytes:", None, "your listener"),
    (
        "use_remote_address:",
        Some("local_reply_config:"),
        "your connection manager, in place of what it says of the same",
    ),
    (
        "local_reply_config:",
        None,
        "your connection manager: these mappers in front of your own",
    ),
    (
        "- name: envoy.filters.http.lua",
        Some("- name: envoy.filters.http.set_filter_state"),
        "http_filters: in front of all others",
    ),
    (
        "- name: envoy.filters.http.set_filter_state",
        Some("- name: envoy.filters.http.router"),
        "http_filters: behind your authentication, directly in front of the router, which has suppress_envoy_headers",
    ),
    (
        "routes:",
        Some("- name: other"),
        "the virtual host that the providers' hosts match, in front of your own routes (the refunds' two: into your callers' host)",
    ),
    ("clusters:", None, "your clusters"),
];

/// The text of a configuration for these providers, with this path. The doctor has nothing to say
/// of it.
pub fn write(providers: &[&str], path: &str) -> Result<String> {
    let known = known_providers()?;
    for (index, name) in providers.iter().enumerate() {
        ensure!(
            known.iter().any(|known| known == name),
            "`{name}` is none of the providers: they are {}, with commas and no spaces between them",
            known.join(", ")
        );
        ensure!(
            providers.iter().position(|other| other == name) == Some(index),
            "`{name}` stands there twice"
        );
    }
    check_path(path)?;
    let mut lines: Vec<String> = ENVOY_YAML.lines().map(str::to_owned).collect();
    for other in known
        .iter()
        .filter(|name| !providers.contains(&name.as_str()))
    {
        while let Some(start) = lines.iter().position(|line| is_of(line, other)) {
            remove(&mut lines, start);
        }
    }
    let lines = without_idle_anchors(without_last_comma(lines));
    let body = with_marks(lines)?.join("\n").replace(PATH, path);
    let option = if path == PATH {
        String::new()
    } else {
        format!(" --path {path}")
    };
    let made = format!(
        "# Made from envoy/envoy.yaml by `./build.sh config {}{option}`.\n\
         # It is whole, for an Envoy of its own. Into an Envoy that you have, take each part from `--8<--` to `-->8--`, to the place that it\n\
         # names; each stands for itself. Then have `./build.sh doctor FILE` look at yours.\n#\n{body}\n",
        providers.join(",")
    );
    match examine(&made)?.first() {
        None => Ok(made),
        Some(finding) => bail!("what was made of envoy.yaml has a fault: {finding}"),
    }
}

fn known_providers() -> Result<Vec<String>> {
    let chains = Chain::all(Envoy::reference()?);
    let chain = chains.first().context("envoy.yaml has no refund filter")?;
    let plugin: Value =
        serde_json::from_str(text(chain.filter.config, "/config/configuration/value"))?;
    let providers = plugin.get("providers").and_then(Value::as_object);
    let providers = providers.context("envoy.yaml has no providers")?;
    Ok(providers.keys().cloned().collect())
}

/// A path that means the same in YAML, JSON, CEL and Lua, and to Envoy, which normalises paths.
fn check_path(path: &str) -> Result<()> {
    let sound = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    };
    ensure!(
        path.strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(sound)),
        "the path must be like {PATH}: a slash, then names of letters, digits, `-`, `.`, `_` and `~` with a slash between them"
    );
    Ok(())
}

/// Whether a line begins a block that belongs to a provider alone.
fn is_of(line: &str, provider: &str) -> bool {
    let line = line.trim_start();
    let rest = |start: &str| line.strip_prefix(start)?.strip_prefix(provider);
    rest("- name: ").is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        || rest("- object_key: refund.").is_some_and(|rest| rest.starts_with('_'))
        || rest("\"").is_some_and(|rest| rest == "\": {")
        || rest("").is_some_and(|rest| rest.starts_with('-') && rest.ends_with(':'))
}

fn indent(line: &str) -> usize {
    line.len().saturating_sub(line.trim_start().len())
}

/// The lines of the block that begins here: what is deeper, a list's items beside its name, and a
/// closing brace. Empty lines at its end are the next one's.
fn block(lines: &[String], start: usize) -> Range<usize> {
    let mut end = start.saturating_add(1);
    let Some(first) = lines.get(start) else {
        return start..start;
    };
    let is_item = |line: &str| line.trim_start().starts_with("- ");
    for (index, line) in lines.iter().enumerate().skip(end) {
        let beside = indent(line) == indent(first);
        if line.is_empty() {
            continue;
        }
        let closes = beside && line.trim_start().starts_with('}');
        if indent(line) > indent(first) || closes || (beside && !is_item(first) && is_item(line)) {
            end = index.saturating_add(1);
        } else {
            break;
        }
    }
    start..end
}

/// The name of the anchor (`key: &name`) or the alias (`key: *name`) in a line.
fn name_after<'a>(line: &'a str, sign: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(": {sign}"))?;
    rest.split([' ', ',', '}']).next()
}

/// Takes a block away. What it alone spelled out for others to repeat goes to the first of those.
fn remove(lines: &mut Vec<String>, start: usize) {
    let removed: Vec<_> = lines.drain(block(lines, start)).collect();
    let mut next = 0;
    for (index, line) in removed.iter().enumerate() {
        let Some(name) = name_after(line, "&").filter(|_| index >= next) else {
            continue;
        };
        let mut rest = lines.iter();
        let Some(alias) = rest.position(|line| name_after(line, "*") == Some(name)) else {
            continue;
        };
        let spelled = block(&removed, index);
        next = spelled.end;
        // Siblings stand equally deep, so that the lines fit as they are.
        let spelled = removed.get(spelled).unwrap_or_default().to_vec();
        lines.splice(alias..=alias, spelled);
    }
}

/// The comma of a JSON member that has become the last.
fn without_last_comma(mut lines: Vec<String>) -> Vec<String> {
    let closing: Vec<_> = lines
        .iter()
        .skip(1)
        .map(|line| line.trim() == "}")
        .collect();
    for (line, closing) in lines.iter_mut().zip(closing) {
        if closing && line.trim() == "}," {
            line.pop();
        }
    }
    lines
}

/// Anchors that nothing repeats any more.
fn without_idle_anchors(lines: Vec<String>) -> Vec<String> {
    let text = lines.join("\n");
    let mend = |line: String| match name_after(&line, "&") {
        Some(name) if !text.contains(&format!("*{name}")) => {
            line.replacen(&format!(" &{name}"), "", 1)
        }
        _ => line,
    };
    lines.into_iter().map(mend).collect()
}

fn with_marks(mut lines: Vec<String>) -> Result<Vec<String>> {
    let find = |lines: &[String], wanted: &str| {
        let mut lines = lines.iter();
        lines
            .position(|line| line.trim_start().starts_with(wanted))
            .with_context(|| format!("envoy.yaml has no line `{wanted}`"))
    };
    // From the end, so that no mark is taken for a comment of the next part.
    for (index, (first, until, place)) in PARTS.into_iter().enumerate().rev() {
        let at = find(&lines, first)?;
        let end = match until {
            Some(until) => {
                let end = in_front(&lines, find(&lines, until)?);
                let before = lines.iter().take(end).rev();
                end.saturating_sub(before.take_while(|line| line.is_empty()).count())
            }
            None => block(&lines, at).end,
        };
        let inside = first == "routes:" || first == "clusters:";
        let start = if inside {
            at.saturating_add(1)
        } else {
            in_front(&lines, at)
        };
        let depth = lines.get(start).map_or(0, |line| indent(line));
        let (number, depth) = (index.saturating_add(1), " ".repeat(depth));
        lines.insert(end, format!("{depth}# -->8-- {number}"));
        lines.insert(start, format!("{depth}# --8<-- {number}: into {place}"));
    }
    Ok(lines)
}

/// The place in front of a line's comments.
fn in_front(lines: &[String], line: usize) -> usize {
    let before = lines.iter().take(line).rev();
    let comments = before.take_while(|line| line.trim_start().starts_with("# "));
    line.saturating_sub(comments.count())
}
