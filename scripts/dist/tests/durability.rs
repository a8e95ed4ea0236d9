//! Every test that `backends/DURABILITY.md` names exists, every number there is
//! of one, and none is listed for nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A test by its name, or the beginning of it, and the file that it is in.
#[derive(Debug, PartialEq)]
struct Named<'a> {
    name: &'a str,
    file: &'a str,
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The page's prose, and its list of tests by number.
fn parts(page: &str) -> (&str, BTreeMap<u32, Named<'_>>) {
    let (prose, list) = page.split_once("\n## Tests\n").unwrap();
    let named = list.lines().filter_map(|line| {
        let (number, rest) = line.split_once(". `")?;
        let number = number.parse().ok()?;
        let (name, file) = rest.split_once("` in ").unwrap();
        Some((number, Named { name, file }))
    });
    (prose, named.collect())
}

/// The numbers in brackets: `(1, 9)`, `(8; no test that …)`.
fn cited(prose: &str) -> Vec<u32> {
    let brackets = prose.split('(').skip(1);
    let inside = brackets.filter_map(|rest| rest.split(')').next());
    let words = inside.flat_map(|text| text.split([',', ';']));
    words
        .map(|word| word.trim().trim_start_matches("no test; as ").trim())
        .filter_map(|word| word.trim_start_matches("as ").parse().ok())
        .collect()
}

/// Whether a source has a test of this name: a function, or a sentence that
/// begins with it.
fn has(source: &str, name: &str) -> bool {
    source.contains(&format!("fn {name}(")) || source.contains(&format!("\"{name}"))
}

#[test]
fn the_tests_that_the_page_names_exist_and_its_numbers_are_theirs() {
    let page = fs::read_to_string(top().join("backends/DURABILITY.md")).unwrap();
    let (prose, named) = parts(&page);
    assert!(named.len() > 10, "{named:?}");
    let mut missing = Vec::new();
    for test in named.values() {
        let source = fs::read_to_string(top().join(test.file)).unwrap_or_default();
        if !has(&source, test.name) {
            missing.push(test);
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    let cited: Vec<u32> = cited(&page);
    let unknown: Vec<_> = cited
        .iter()
        .filter(|number| !named.contains_key(number))
        .collect();
    assert!(unknown.is_empty(), "numbers without a test: {unknown:?}");
    let uncited: Vec<_> = named
        .keys()
        .filter(|number| !cited.contains(number))
        .collect();
    assert!(uncited.is_empty(), "tests for nothing: {uncited:?}");
    // Each cell of the table says which test shows it, or that none does.
    let cells = prose.lines().filter(|line| line.starts_with("| ")).skip(1);
    for line in cells {
        for cell in line.trim_matches('|').split('|').skip(2) {
            let shown = !self::cited(cell).is_empty() || cell.contains("no test");
            assert!(shown, "{cell:?} in {line}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_page_is_seen() {
    let page = "a (1, 3)\n\n## Tests\n\n1. `one` in a.rs\n2. `two words` in b.rs\n";
    let (prose, named) = parts(page);
    assert_eq!(prose, "a (1, 3)\n");
    let two = Named {
        name: "two words",
        file: "b.rs",
    };
    assert_eq!(named.get(&2), Some(&two));
    assert_eq!(cited(prose), [1, 3]);
    assert_eq!(cited("x (no test; as 5) (8; no test that cuts)"), [5, 8]);
    assert!(has("fn one() {}", "one") && has("(\"two words {way}\",", "two words"));
    assert!(!has("fn one_more() {}", "one") && !has("// two words", "two words"));
}
