//! Index of requirements in `tests/README.md`: each id of `docs/requirements.md` with the tests that show it.
//!
//! A test names the ids that it shows in a doc comment, `/// Shows: REQ-12, AT-03`. The index is generated from these
//! markers. Needs nothing of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Page, Wrong, root};

const MARKER: &str = "/// Shows: ";
const HEADING: &str = "## Requirements, and the tests that show them";

/// The requirement ids in the first column of the tables of `docs/requirements.md`: all, and those without a test.
fn documented() -> (BTreeSet<String>, BTreeSet<String>) {
    let page = Page::named("docs/requirements.md");
    let (mut all, mut open, mut section) = (BTreeSet::new(), BTreeSet::new(), "");
    for (_, line) in page.prose() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        let id = line.trim_start_matches("| ").split(' ').next().unwrap_or_default();
        if line.starts_with("| ") && (id.starts_with("REQ-") || id.starts_with("AT-")) {
            let is_new = if section == "Open" { &mut open } else { &mut all }.insert(id.to_owned());
            assert!(is_new, "docs/requirements.md: {id} is listed twice");
        }
    }
    (all, open)
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}

/// A marker: line number, ids, and the test below it, if the next function is one.
fn markers(text: &str) -> Vec<(usize, Vec<&str>, Option<&str>)> {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let marked = lines.iter().enumerate().filter_map(|(at, line)| Some((at, line.strip_prefix(MARKER)?)));
    marked
        .map(|(at, ids)| {
            let rest = &lines[at + 1..];
            let function = rest.iter().position(|line| line.starts_with("fn ") || line.starts_with("async fn "));
            let is_test = |&end: &usize| rest[..end].iter().any(|line| ["#[test]", "#[tokio::test]"].contains(line));
            let test = function.filter(is_test).map(|at| {
                let name = rest[at].trim_start_matches("async ").trim_start_matches("fn ");
                &name[..name.find('(').unwrap_or(name.len())]
            });
            (at + 1, ids.split(", ").collect(), test)
        })
        .collect()
}

#[test]
fn the_index_of_requirements_is_up_to_date() {
    let (all, open) = documented();
    let mut wrong = Wrong::default();
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        sources(&root().join(folder), &mut files);
    }
    files.sort();
    // by id and file
    let mut index: BTreeMap<&str, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for path in &files {
        let file = path.strip_prefix(root()).unwrap().display().to_string();
        // its own examples are no markers
        if file == "tests/docs/requirements.rs" {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        for (line, ids, test) in markers(&text) {
            let at = format!("{file}:{line}");
            let Some(test) = test else {
                wrong.add(&at, "the marker is not above a test");
                continue;
            };
            for id in ids {
                match all.get(id) {
                    None => wrong.add(&at, format!("docs/requirements.md has no {id}")),
                    Some(id) if open.contains(id) => wrong.add(&at, format!("{id} is listed as open")),
                    Some(id) => index.entry(id).or_default().entry(file.clone()).or_default().push(test.to_owned()),
                }
            }
        }
    }
    for id in &all {
        if !index.contains_key(id.as_str()) && !open.contains(id) {
            wrong.add("docs/requirements.md", format!("no test shows {id}; mark one with `{MARKER}{id}`"));
        }
    }
    for id in open.difference(&all) {
        wrong.add("docs/requirements.md", format!("{id} is open and has no requirement"));
    }
    wrong.end();

    let tests = |files: &BTreeMap<String, Vec<String>>| {
        let of = |(file, tests): (&String, &Vec<String>)| {
            let tests: Vec<String> = tests.iter().map(|test| format!("`{test}`")).collect();
            format!("`{}`: {}", file.trim_start_matches("tests/"), tests.join(", "))
        };
        files.iter().map(of).collect::<Vec<_>>().join("<br>")
    };
    let mut expected = String::from("| id | tests |\n|---|---|\n");
    for (id, files) in &index {
        expected += &format!("| {id} | {} |\n", tests(files));
    }
    for id in &open {
        expected += &format!("| {id} | open |\n");
    }
    let readme = fs::read_to_string(root().join("tests/README.md")).unwrap();
    let printed = readme.split_once(HEADING).map_or("", |(_, below)| below);
    let printed = printed.lines().filter(|line| line.starts_with('|')).map(|line| format!("{line}\n"));
    assert!(
        printed.collect::<String>() == expected,
        "tests/README.md: the table below {HEADING:?} is out of date; it is\n\n{expected}"
    );
}

#[test]
fn a_marker_belongs_to_the_next_test() {
    let text = "/// Why.\n/// Shows: REQ-1, AT-2\n#[test]\nfn one() {}\n/// Shows: REQ-3\nfn none() {}\n#[test]\nfn two() {}\n/// Shows: REQ-4\n#[tokio::test]\nasync fn three() {}\n";
    let expected =
        [(2, vec!["REQ-1", "AT-2"], Some("one")), (5, vec!["REQ-3"], None), (9, vec!["REQ-4"], Some("three"))];
    assert_eq!(markers(text), expected);
}
