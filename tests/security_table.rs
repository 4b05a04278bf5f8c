//! The attack table of docs/SECURITY.md is a list of facts: every row A1 to A23 names tests, and they exist.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;

const ROWS: usize = 23;

fn table() -> String {
    fs::read_to_string("docs/SECURITY.md").unwrap()
}

/// What stands in backquotes as `FILE.rs::TEST`.
fn named(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|q| q.split_once(".rs::").map(|(_, test)| (&q[..q.len() - test.len() - 2], test)))
        .collect()
}

fn is_a_test(file: &str, test: &str) -> bool {
    let source = fs::read_to_string(file).unwrap_or_default();
    let mut attribute = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with(&format!("fn {test}(")) {
            return attribute || source.contains("proptest!");
        }
        attribute = line == "#[test]" || (attribute && (line.starts_with("#[") || line.starts_with("///")));
    }
    false
}

#[test]
fn every_test_that_the_document_names_exists() {
    let text = table();
    let missing: Vec<_> = named(&text).into_iter().filter(|(file, test)| !is_a_test(file, test)).collect();
    assert!(missing.is_empty(), "docs/SECURITY.md names {missing:#?}");
    assert!(named(&text).len() > 60, "the document is read");
}

#[test]
fn every_row_names_a_test_that_edits_a_real_volume_and_is_named_after_it() {
    let text = table();
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("| A")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let row: usize = cells[1][1..].parse().unwrap();
        assert!(seen.insert(row), "row A{row} stands twice");
        assert!(
            ["refused", "no gain", "falls", "harder"].iter().any(|answer| cells[3].contains(answer)),
            "{line}"
        );
        let prefix = format!("a{row:02}_");
        let own = named(cells[5]).into_iter().any(|(file, test)| {
            let hostile = file.starts_with("tests/mounted_hostile/");
            hostile && (test.starts_with(&prefix) || test.contains(&format!("_{prefix}")))
        });
        assert!(own, "row A{row} has no test in tests/mounted_hostile named after it");
    }
    assert_eq!(seen, (1..=ROWS).collect());
}
