//! What a run says: tables in Markdown, targets with what was reached, and the same between the marks of docs/performance.md.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

const BEGIN: &str = "<!-- measured: begin -->\n";
const END: &str = "<!-- measured: end -->\n";

/// What a run has found so far. Everything is printed as it comes.
#[derive(Default)]
pub struct Report {
    text: String,
    targets: Vec<Target>,
    values: serde_json::Map<String, Value>,
}

/// One thing to reach.
struct Target {
    what: String,
    goal: String,
    reached: String,
    holds: bool,
}

/// The middle of some rounds, and between what the middle half of them lies.
pub fn spread(values: &[f64], digits: usize) -> String {
    format!(
        "{:.digits$} ({:.digits$} to {:.digits$})",
        median(values),
        quantile(values, 1, 4),
        quantile(values, 3, 4)
    )
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 1, 2)
}

/// The one that so many parts of all are below.
pub fn quantile(values: &[f64], part: usize, of: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * part / of).copied().unwrap_or(f64::NAN)
}

/// The ratio of two lanes, round by round: what shakes the machine shakes both.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter()
        .zip(theirs)
        .map(|(ours, theirs)| ours / theirs)
        .collect()
}

impl Report {
    fn say(&mut self, text: &str) {
        print!("{text}");
        self.text.push_str(text);
    }

    /// Begins a section.
    pub fn section(&mut self, title: &str, words: &str) {
        self.say(&format!("\n### {title}\n\n{words}\n\n"));
    }

    /// A paragraph.
    pub fn words(&mut self, words: &str) {
        self.say(&format!("\n{words}\n"));
    }

    /// A table: its head, and its rows.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let mut text = format!(
            "| {} |\n|---|{}\n",
            head.join(" | "),
            "---:|".repeat(head.len() - 1)
        );
        for row in rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        self.say(&text);
    }

    /// A target, and what came of it.
    pub fn target(&mut self, what: &str, goal: &str, reached: String, holds: bool) {
        self.targets.push(Target {
            what: what.to_owned(),
            goal: goal.to_owned(),
            reached,
            holds,
        });
    }

    /// A figure of a lane against another's that must be so large at least.
    pub fn at_least(&mut self, what: &str, least: f64, reached: &[f64]) {
        let holds = median(reached) >= least;
        self.target(
            what,
            &format!("at least {least}"),
            spread(reached, 2),
            holds,
        );
    }

    /// A figure that may be so large at most.
    pub fn at_most(&mut self, what: &str, most: f64, unit: &str, reached: f64) {
        self.target(
            what,
            &format!("at most {most} {unit}"),
            format!("{reached:.1} {unit}"),
            reached <= most,
        );
    }

    /// Keeps a figure for results.json.
    pub fn keep(&mut self, name: &str, value: impl Into<Value>) {
        self.values.insert(name.to_owned(), value.into());
    }

    /// Prints the targets, leaves results.json in this folder and, where the project is named, writes its page and its plot.
    pub fn finish(mut self, folder: &Path, plot: &str, project: Option<&Path>) -> Result<()> {
        let rows: Vec<_> = self
            .targets
            .iter()
            .map(|target| {
                let holds = if target.holds { "holds" } else { "**MISSED**" };
                vec![
                    target.what.clone(),
                    target.goal.clone(),
                    target.reached.clone(),
                    holds.into(),
                ]
            })
            .collect();
        self.section(
            "Targets",
            "Ratios are within this run: the median of its rounds, and in brackets between what the middle half of them lies.",
        );
        self.table(&["what", "target", "reached", ""], &rows);
        let targets: Vec<_> = self
            .targets
            .iter()
            .map(|target| json!({"what": target.what, "target": target.goal, "reached": target.reached, "holds": target.holds}))
            .collect();
        self.keep("targets", targets);
        std::fs::create_dir_all(folder)?;
        std::fs::write(
            folder.join("results.json"),
            serde_json::to_vec_pretty(&self.values)?,
        )?;
        std::fs::write(folder.join("performance.svg"), plot)?;
        if let Some(project) = project {
            let page = project.join("docs/performance.md");
            let text = std::fs::read_to_string(&page)?;
            let (head, rest) = text
                .split_once(BEGIN)
                .context("docs/performance.md has no marks")?;
            let (_, tail) = rest
                .split_once(END)
                .context("docs/performance.md has no marks")?;
            std::fs::write(&page, format!("{head}{BEGIN}{}\n{END}{tail}", self.text))?;
            std::fs::write(project.join("docs/performance.svg"), plot)?;
        }
        Ok(())
    }
}
