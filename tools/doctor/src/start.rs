//! A whole configuration for chosen providers, made of the text of `envoy/envoy.yaml`: the others'
//! blocks go, comments stay. What the files beside it change is put in as text, too.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::chain::Chain;
use crate::reading::Envoy;
use crate::{ENVOY_YAML, PATH, examine, text};

/// What a team takes over into an Envoy of its own: the line with which a part begins, the one
/// before which it ends (none: its block's end), and where it goes. A part begins with the comments
/// in front of its first line; with what is inside where that is a list's name.
const PARTS: [(&str, Option<&str>, &str); 10] = [
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
        Some(SECRETS),
        "http_filters: in front of all others",
    ),
    (
        SECRETS,
        Some("- name: envoy.filters.http.router"),
        "http_filters: behind your authentication, directly in front of the router, which has suppress_envoy_headers",
    ),
    (
        "routes:",
        Some("- name: other"),
        "the virtual host that the providers' hosts match, in front of your own routes (the refunds' two: into your callers' host)",
    ),
    (OPEN_LIST, None, "your listeners, beside the refunds'"),
    ("clusters:", None, "your clusters"),
];

/// Where the filters begin that bring the secrets, by whichever way they come; where none is needed, the refund filter.
const SECRETS: &str =
    "- name: envoy.filters.http.set_filter_state|- name: refund.|- name: refund_filter";

/// The listener that is there where it is asked for alone.
const OPEN_LIST: &str = "- name: refunds-open";

const BY_HEADER: &str = include_str!("../../../envoy/secrets-by-header.yaml");
const TRANSIT: &str = include_str!("../../../envoy/transit.yaml");
const INJECTED: &str = include_str!("../../../envoy/credentials-injected.yaml");
const LIST: &str = include_str!("../../../envoy/open-list.yaml");
const MEMORY: &str = include_str!("../../../envoy/memory.yaml");

/// What is otherwise than in envoy.yaml, by the files beside it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Variant {
    /// secrets-by-header.yaml.
    pub by_header: bool,
    /// transit.yaml.
    pub transit: bool,
    /// credentials-injected.yaml.
    pub injected: bool,
    /// open-list.yaml.
    pub open_list: bool,
    /// memory.yaml.
    pub memory: bool,
}

impl Variant {
    fn options(self) -> String {
        [
            (self.by_header, " --secrets-by-header"),
            (self.transit, " --transit"),
            (self.injected, " --credentials-injected"),
            (self.open_list, " --open-list"),
            (self.memory, " --memory"),
        ]
        .into_iter()
        .filter_map(|(is, option)| is.then_some(option))
        .collect()
    }

    fn check(self, providers: &[&str]) -> Result<()> {
        let has = |names: &[&str]| names.iter().any(|name| providers.contains(name));
        ensure!(
            !self.transit || has(&["bbmsl"]),
            "only bbmsl signs, and it is not chosen: leave --transit out"
        );
        ensure!(
            !(self.transit && self.by_header),
            "OpenBao's token is not brought by header: leave --transit or --secrets-by-header out"
        );
        ensure!(
            !(self.memory && self.by_header),
            "the store's password is not brought by header: leave --memory or --secrets-by-header out"
        );
        ensure!(
            !self.injected || has(&INJECTABLE),
            "Envoy can add the credentials of {} alone: leave --credentials-injected out",
            INJECTABLE.join(" and ")
        );
        Ok(())
    }

    fn apply(self, lines: &mut Vec<String>) -> Result<()> {
        if self.by_header {
            bring_by_header(lines)?;
        }
        if self.transit {
            sign_by_transit(lines)?;
        }
        if self.injected {
            inject(lines)?;
        }
        if self.memory {
            share_memory(lines)?;
        }
        if self.open_list {
            let listener = LIST.lines().skip_while(|line| line.trim() != OPEN_LIST);
            let end = find(lines, "clusters:")?;
            let end = in_front(lines, end);
            let before = lines.iter().take(end).rev();
            let end = end.saturating_sub(before.take_while(|line| line.is_empty()).count());
            let listener: Vec<_> = listener.map(str::to_owned).collect();
            lines.splice(end..end, listener);
        }
        Ok(())
    }
}

/// The providers whose credentials Envoy can add by itself.
const INJECTABLE: [&str; 2] = ["moyasar", "begateway"];

/// What stands under a member of a file, without its depth: what is deeper, or a list's items beside it.
fn section<'a>(text: &'a str, members: &[&str]) -> Result<Vec<&'a str>> {
    let mut lines: Vec<&str> = text.lines().collect();
    for member in members {
        let name = format!("{member}:");
        let at = lines.iter().position(|line| *line == name);
        let at = at.with_context(|| format!("there is no {member}"))?;
        let rest = lines.split_off(at.saturating_add(1));
        let inside = |line: &&str| line.starts_with([' ', '-']);
        lines = rest.into_iter().take_while(inside).collect();
        let depth = lines.first().map_or(0, |line| indent(line));
        lines = lines
            .into_iter()
            .map(|line| line.get(depth..).unwrap_or_default())
            .collect();
    }
    Ok(lines)
}

/// These lines so deep.
fn deep(lines: &[&str], depth: usize) -> Vec<String> {
    let space = " ".repeat(depth);
    lines.iter().map(|line| format!("{space}{line}")).collect()
}

/// A mapping as an item of a list that begins so deep.
fn item(lines: &[&str], depth: usize) -> Vec<String> {
    let mut lines = deep(lines, depth.saturating_add(2));
    if let Some(first) = lines.first_mut() {
        *first = format!("{}- {}", " ".repeat(depth), first.trim_start());
    }
    lines
}

/// Puts one text in the place of another that stands there once and no more.
fn replace(lines: &mut [String], old: &str, new: &str) -> Result<()> {
    let mut found = lines.iter_mut().filter(|line| line.contains(old));
    let (Some(line), None) = (found.next(), found.next()) else {
        bail!("envoy.yaml does not have `{old}` once");
    };
    *line = line.replace(old, new).trim_end().to_owned();
    Ok(())
}

fn bring_by_header(lines: &mut Vec<String>) -> Result<()> {
    for name in [
        "bog_client_secret",
        "moyasar_api_key",
        "begateway_secret_key",
        "bbmsl_key",
    ] {
        let header = name.replace('_', "-");
        let old = format!("{{\"filter_state\": \"refund.{name}\"}}");
        replace(
            lines,
            &old,
            &format!("{{\"header\": \"x-refund-{header}\"}}"),
        )?;
    }
    let at = find(lines, "refund_filter: {\"@type\"")?.saturating_add(1);
    let enabled = deep(&section(BY_HEADER, &["typed_per_filter_config"])?, 18);
    lines.splice(at..at, enabled);
    let at = find(lines, SECRETS)?;
    let old = in_front(lines, at)..block(lines, at).end;
    let mut filters = deep(&[SECRETS_BY_HEADER], 10);
    filters.extend(deep(&section(BY_HEADER, &["http_filters"])?, 10));
    lines.splice(old, filters);
    let at = find(lines, "normalize_path:")?;
    let at = in_front(lines, at);
    let mut mutations = deep(
        &[NO_SECRET_OF_A_CALLER, "early_header_mutation_extensions:"],
        10,
    );
    mutations.extend(deep(
        &section(BY_HEADER, &["early_header_mutation_extensions"])?,
        10,
    ));
    lines.splice(at..at, mutations);
    Ok(())
}

const SECRETS_BY_HEADER: &str = "# Puts each secret into a request header, which the refund filter takes away: see secrets-by-header.yaml.";
const NO_SECRET_OF_A_CALLER: &str = "# Nobody brings a secret of their own.";

fn sign_by_transit(lines: &mut Vec<String>) -> Result<()> {
    let parts: Value = serde_saphyr::from_str(TRANSIT)?;
    let signing = parts
        .get("signing")
        .context("transit.yaml has no signing")?;
    let at = find(lines, "\"signing\": ")?;
    if let Some(line) = lines.get_mut(at) {
        *line = format!("{}\"signing\": {signing}", " ".repeat(indent(line)));
    }
    // The token comes in the key's place.
    for line in lines.iter_mut() {
        *line = line
            .replace("refund.bbmsl_key", "refund.openbao_token")
            .replace("bbmsl-key", "openbao-token");
    }
    lines.extend(item(&section(TRANSIT, &["cluster"])?, 2));
    Ok(())
}

fn share_memory(lines: &mut Vec<String>) -> Result<()> {
    let parts: Value = serde_saphyr::from_str(MEMORY)?;
    let memory = parts.get("memory").context("memory.yaml has no memory")?;
    let at = find(lines, "\"providers\": {")?;
    let depth = lines.get(at).map_or(0, |line| indent(line));
    let member = format!("{}\"memory\": {memory},", " ".repeat(depth));
    lines.insert(at, member);
    let states = find(lines, "on_request_headers:")?;
    let depth = lines.get(states).map_or(0, |line| indent(line));
    // The filter ends with its list.
    let end = block(lines, find(lines, SECRETS)?).end;
    let state = item(&section(MEMORY, &["set_filter_state"])?, depth);
    lines.splice(end..end, state);
    lines.extend(item(&section(MEMORY, &["cluster"])?, 2));
    Ok(())
}

fn inject(lines: &mut Vec<String>) -> Result<()> {
    replace(lines, "\"shop_id\": \"361\",", "")?;
    let at = find(
        lines,
        "typed_extension_protocol_options: &provider_protocol",
    )?;
    let shared: Vec<String> = lines
        .get(block(lines, at))
        .unwrap_or_default()
        .iter()
        .map(|line| line.replace(" &provider_protocol", ""))
        .collect();
    for (name, member) in INJECTABLE.into_iter().zip(["api_key", "secret_key"]) {
        let secret = format!("\"{member}\": {{\"filter_state\": \"refund.{name}_{member}\"}}");
        let header = secret.replace("filter_state", "header").replace(
            &format!("refund.{name}_{member}"),
            &format!("x-refund-{name}-{}", member.replace('_', "-")),
        );
        replace(lines, &secret, "\"credentials\": \"injected\"")
            .or_else(|_| replace(lines, &header, "\"credentials\": \"injected\""))?;
        while let Some(start) = lines.iter().position(|line| is_secret_of(line, name)) {
            remove(lines, start);
        }
        let mut own = shared.clone();
        let codec = find(&own, "- name: envoy.filters.http.upstream_codec")?;
        let depth = own.get(codec).map_or(0, |line| indent(line));
        own.splice(
            codec..codec,
            item(&section(INJECTED, &["injectors", name])?, depth),
        );
        let cluster = lines
            .iter()
            .position(|line| *line == format!("  - name: {name}"));
        let cluster = block(
            lines,
            cluster.with_context(|| format!("there is no cluster {name}"))?,
        );
        let alias = lines
            .get(cluster.clone())
            .and_then(|lines| {
                lines
                    .iter()
                    .position(|line| line.ends_with(": *provider_protocol"))
            })
            .with_context(|| format!("{name} has other options than the rest"))?;
        let alias = cluster.start.saturating_add(alias);
        lines.splice(alias..=alias, own);
    }
    Ok(())
}

/// A filter without a secret to bring goes.
fn without_idle_filter(lines: &mut Vec<String>) {
    let list = lines
        .iter()
        .position(|line| line.trim() == "on_request_headers:");
    let Some(list) = list else { return };
    let has_items = lines
        .iter()
        .skip(list.saturating_add(1))
        .find(|line| !line.trim_start().starts_with('#'))
        .is_some_and(|line| line.trim_start().starts_with("- object_key:"));
    if !has_items && let Ok(at) = find(lines, SECRETS) {
        lines.drain(in_front(lines, at)..block(lines, at).end);
    }
}

/// The text of a configuration for these providers, with this path. The doctor has nothing to say
/// of it.
pub fn write(providers: &[&str], path: &str, variant: Variant) -> Result<String> {
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
    variant.check(providers)?;
    let mut lines: Vec<String> = ENVOY_YAML.lines().map(str::to_owned).collect();
    variant.apply(&mut lines)?;
    for other in known
        .iter()
        .filter(|name| !providers.contains(&name.as_str()))
    {
        while let Some(start) = lines.iter().position(|line| is_of(line, other)) {
            remove(&mut lines, start);
        }
    }
    without_idle_filter(&mut lines);
    let lines = without_idle_anchors(without_last_comma(lines));
    let body = with_marks(lines)?.join("\n").replace(PATH, path);
    let mut options = variant.options();
    if path != PATH {
        options.push_str(&format!(" --path {path}"));
    }
    let made = format!(
        "# Made from envoy/envoy.yaml by `./build.sh config {}{options}`.\n\
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
    let begins = line.trim_start();
    let rest = |start: &str| begins.strip_prefix(start)?.strip_prefix(provider);
    rest("- name: ").is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        || rest("\"").is_some_and(|rest| rest == "\": {")
        || is_secret_of(line, provider)
}

/// The same of what brings a provider's secret.
fn is_secret_of(line: &str, provider: &str) -> bool {
    let line = line.trim_start();
    let rest = |start: &str| line.strip_prefix(start)?.strip_prefix(provider);
    rest("- object_key: refund.").is_some_and(|rest| rest.starts_with('_'))
        || ["- name: refund.", "- {remove: x-refund-", "refund."]
            .into_iter()
            .any(|start| rest(start).is_some_and(|rest| rest.starts_with('-')))
        || rest("").is_some_and(|rest| {
            let name = rest.split(':').next().unwrap_or_default();
            name.starts_with('-') && name.len() < rest.len() && !name.contains(' ')
        })
}

/// The first line that begins with one of these.
fn find(lines: &[String], wanted: &str) -> Result<usize> {
    let is_wanted = |line: &String| {
        let line = line.trim_start();
        wanted.split('|').any(|wanted| line.starts_with(wanted))
    };
    let at = lines.iter().position(is_wanted);
    at.with_context(|| format!("envoy.yaml has no line `{wanted}`"))
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
    let is_there = |first: &str| first != OPEN_LIST || find(&lines, first).is_ok();
    let parts: Vec<_> = PARTS
        .into_iter()
        .filter(|(first, ..)| is_there(first))
        .collect();
    // From the end, so that no mark is taken for a comment of the next part.
    for (index, (first, until, place)) in parts.into_iter().enumerate().rev() {
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
