//! What stands between the refund filter and money or keys in a configuration of Envoy: the doctor
//! finds what is missing or risky in one ([`examine`]), and [`start::write`] makes one for chosen
//! providers out of `envoy/envoy.yaml`.

mod chain;
mod clusters;
mod open_list;
mod plugin;
mod reading;
mod routes;
pub mod start;

use std::fmt;

use anyhow::Result;
use serde_json::Value;

/// The configuration that ships: what it has, another one lacks.
pub const ENVOY_YAML: &str = include_str!("../../../envoy/envoy.yaml");

/// The path of the canonical call in there, and where a configuration names none.
pub const PATH: &str = "/v1/refunds";

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Money or keys.
    Risk,
    /// Something does not work, or works worse.
    Lacks,
}

/// One thing to mend. It names places and never holds a value that can be a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where: a listener, route or cluster by its name.
    pub place: String,
    /// What can happen, and what to do.
    pub sentence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Risk => "risk",
            Severity::Lacks => "lacks",
        };
        write!(f, "{severity}: {}: {}", self.place, self.sentence)
    }
}

/// What is found. The same thing is said once, by however many ways it is reached.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn risk(&mut self, place: &str, sentence: impl Into<String>) {
        self.add(Severity::Risk, place, sentence.into());
    }

    fn lacks(&mut self, place: &str, sentence: impl Into<String>) {
        self.add(Severity::Lacks, place, sentence.into());
    }

    fn add(&mut self, severity: Severity, place: &str, sentence: String) {
        let finding = Finding {
            severity,
            place: place.to_owned(),
            sentence,
        };
        if !self.0.contains(&finding) {
            self.0.push(finding);
        }
    }
}

/// Examines the text of a bootstrap (YAML or JSON) or of an admin's `/config_dump`. The error says
/// in a sentence why it cannot be read.
pub fn examine(text: &str) -> Result<Vec<Finding>> {
    let envoy = reading::Envoy::read(text)?;
    let reference = reading::Envoy::reference()?;
    let mut findings = Findings::default();
    for refused in &envoy.refused {
        findings.risk(
            refused,
            "Envoy has refused its newest configuration and goes on with an older one or none; what is wrong stands in its error_state \
             in the /config_dump",
        );
    }
    let chains = chain::Chain::all(&envoy);
    if chain::is_shut(&envoy) {
        findings.lacks(
            "listeners",
            "the refund filter's module could not be pulled, and Istio's agent refuses every refund in its place, and does not try again; \
             its log says why, and a change of the image's name makes it try",
        );
    } else if chains.is_empty() {
        findings.risk(
            "listeners",
            "the refund filter is in no chain of filters, so that a refund call goes to whatever the route leads to, which may answer \
             200; put the filter last before the route guard and the router",
        );
    }
    for chain in &chains {
        chain.examine(reference, &mut findings);
        let Some(plugin) = plugin::Plugin::read(chain, &mut findings) else {
            continue;
        };
        plugin.examine(chain, envoy.secrets.as_deref(), &mut findings);
        chain.examine_replies(&plugin.path, reference, &mut findings);
        let destinations = routes::examine(chain, &plugin, &mut findings);
        clusters::examine(&envoy, &plugin, &destinations, &mut findings);
    }
    open_list::examine(&envoy, &chains, &mut findings);
    if !chains.is_empty() {
        process(&envoy, reference, &mut findings);
    }
    findings.0.sort_by_key(|finding| finding.severity);
    Ok(findings.0)
}

/// What belongs to the whole process.
fn process(envoy: &reading::Envoy, reference: &reading::Envoy, findings: &mut Findings) {
    let admin = text(&envoy.bootstrap, "/admin/address/socket_address/address");
    if !(admin.is_empty() || admin.starts_with("127.") || admin == "::1") {
        findings.risk(
            "admin",
            "whoever reaches it reads the plugin's configuration and can stop Envoy, without a password; have it listen on 127.0.0.1",
        );
    }
    let has_sds = |value: &Value| any_member(value, &|name, _| name == "sds_config");
    let node = |member| !text(&envoy.bootstrap, member).is_empty();
    // An Envoy with a control plane would have no configuration without them.
    let is_led = envoy.bootstrap.get("dynamic_resources").is_some();
    if (envoy.listeners.iter().chain(&envoy.clusters).any(has_sds))
        && !is_led
        && !(node("/node/id") && node("/node/cluster"))
    {
        findings.lacks(
            "node",
            "Envoy does not start with secrets by SDS unless `node` has an id and a cluster; give both here or on the command line",
        );
    }
    let kept = envoy
        .bootstrap
        .pointer("/stats_config/stats_matcher/inclusion_list");
    if kept.is_some_and(|kept| !any_text(kept, &|text| text.contains("wasmcustom"))) {
        findings.lacks(
            "stats_config",
            "Envoy keeps none of the filter's figures, so that no alert rings; add the prefix wasmcustom.refund to stats_matcher",
        );
    }
    let tags = |envoy: &reading::Envoy| -> Vec<String> {
        list(&envoy.bootstrap, "/stats_config/stats_tags")
            .filter(|tag| text(tag, "/regex").contains("wasmcustom"))
            .map(|tag| text(tag, "/tag_name").to_owned())
            .collect()
    };
    let known = tags(envoy);
    let missing: Vec<_> = tags(reference)
        .into_iter()
        .filter(|tag| !known.contains(tag))
        .collect();
    if !missing.is_empty() {
        findings.lacks(
            "stats_config",
            format!(
                "the filter's figures have no labels {}, so that no alert can go by them; copy `stats_tags` from envoy.yaml",
                missing.join(", ")
            ),
        );
    }
}

/// The text at a JSON pointer; empty where there is none.
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The items of the list at a JSON pointer; none where there is no list.
fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten()
}

fn is_true(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer) == Some(&Value::Bool(true))
}

/// Whether a member with a value that is not empty stands there. Envoy's dump leaves most empty
/// ones out.
fn is_set(value: &Value, pointer: &str) -> bool {
    match value.pointer(pointer) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Bool(true) | Value::Number(_) | Value::Object(_)) => true,
    }
}

/// The name of a resource, for a place.
fn name(value: &Value) -> &str {
    match text(value, "/name") {
        "" => "without a name",
        name => name,
    }
}

/// A typed configuration's type and its value, also where Istio wraps them.
fn typed(config: &Value) -> (&str, &Value) {
    let kind = text(config, "/@type");
    if kind.ends_with(".TypedStruct") {
        (
            text(config, "/type_url"),
            config.get("value").unwrap_or(&Value::Null),
        )
    } else {
        (kind, config)
    }
}

/// Whether any member of an object in it, at any depth, is such a one.
fn any_member(value: &Value, wanted: &dyn Fn(&str, &Value) -> bool) -> bool {
    match value {
        Value::Object(members) => members
            .iter()
            .any(|(name, value)| wanted(name, value) || any_member(value, wanted)),
        Value::Array(items) => items.iter().any(|item| any_member(item, wanted)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Whether any text in it, at any depth, is such a one.
fn any_text(value: &Value, wanted: &dyn Fn(&str) -> bool) -> bool {
    let mut found = false;
    each_text(value, &mut |text| found |= wanted(text));
    found
}

/// Shows every text in it, at any depth.
fn each_text<'a>(value: &'a Value, show: &mut dyn FnMut(&'a str)) {
    match value {
        Value::Object(members) => members.values().for_each(|value| each_text(value, show)),
        Value::Array(items) => items.iter().for_each(|item| each_text(item, show)),
        Value::String(text) => show(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
