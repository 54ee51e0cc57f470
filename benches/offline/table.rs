//! The table of results.

use crate::{
    reach::{Reach, Side},
    run::{Outcome, Row},
};

const HEAD: [&str; 7] = ["work", "against", "ours", "theirs", "ratio", "reach", "both sides end"];

/// Returns one line that says how a row went.
pub(crate) fn progress(row: &Row, outcome: &Outcome) -> String {
    lines(row, outcome)
        .iter()
        .map(|l| l.iter().take(6).cloned().collect::<Vec<_>>().join(" | "))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Returns the table of all rows.
pub(crate) fn table(results: &[(&Row, Outcome)], is_markdown: bool) -> String {
    let mut all = vec![HEAD.map(str::to_owned)];
    all.extend(results.iter().flat_map(|(row, outcome)| lines(row, outcome)));
    if is_markdown {
        all.insert(1, HEAD.map(|_| "---".to_owned()));
        let line = |line: &[String; 7]| format!("| {} |\n", line.join(" | "));
        return all.iter().map(line).collect();
    }
    let width = |column: usize| all.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..HEAD.len()).map(|c| width(c).unwrap_or(0)).collect();
    let padded = |line: &[String; 7]| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    all.iter().map(padded).collect()
}

/// Returns a row's lines: one for each figure that it has to reach.
fn lines(row: &Row, outcome: &Outcome) -> Vec<[String; 7]> {
    let (ours, theirs) = match outcome {
        Outcome::Measured { ours, theirs } => (ours, theirs),
        Outcome::Skipped(why) => return vec![unmeasured(row, format!("skipped: {why}"))],
        Outcome::Wrong(why) => return vec![unmeasured(row, format!("WRONG: {why}"))],
    };
    row.reach.iter().map(|reach| measured(row, *reach, ours, theirs)).collect()
}

fn measured(row: &Row, reach: Reach, ours: &Side, theirs: &Side) -> [String; 7] {
    let (a, b) = (reach.figure.of(ours), reach.figure.of(theirs));
    let mark = if reach.is_missed(ours, theirs) { " **missed**" } else { "" };
    let has_theirs = !row.theirs.is_empty();
    let if_theirs = |text: String| if has_theirs { text } else { String::new() };
    [
        format!("{}{}", row.name, reach.figure.name()),
        row.against.to_owned(),
        reach.figure.shown(a),
        if_theirs(reach.figure.shown(b)),
        if_theirs(format!("{:.2}", a / b)),
        format!("{}{mark}", reach.shown()),
        row.ends.to_owned(),
    ]
}

fn unmeasured(row: &Row, why: String) -> [String; 7] {
    let reach: Vec<String> = row.reach.iter().map(|r| r.shown()).collect();
    [
        row.name.to_owned(),
        row.against.to_owned(),
        why,
        String::new(),
        String::new(),
        reach.join(", "),
        row.ends.to_owned(),
    ]
}
