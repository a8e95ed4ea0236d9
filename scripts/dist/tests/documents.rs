//! What the pages name exists: files and folders, options, exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use clap::CommandFactory;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What builds leave, and what belongs to others.
const NOT_OURS: &[&str] = &["target", ".git", "node_modules"];

/// Every file of the checkout, by its path from there.
fn files() -> Vec<PathBuf> {
    let top = top();
    let mut found = Vec::new();
    let mut left = vec![top.clone()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap_or_default();
            match path.is_dir() {
                true if NOT_OURS.contains(&name) => {}
                true => left.push(path),
                false => found.push(path.strip_prefix(&top).unwrap().to_owned()),
            }
        }
    }
    found
}

/// Every page, by its path, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let is_page = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "md");
    let pages: Vec<_> = files().into_iter().filter(is_page).collect();
    assert!(pages.len() > 5, "{pages:?}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(top().join(&path)).unwrap();
        (path, text)
    };
    pages.into_iter().map(read).collect()
}

/// Without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// Whether `name`, in a page in `folder`, is of a file that is not there: if it
/// begins with a folder of ours, seen from the page or the top, it must be one.
/// A name of a source without a folder must be of some file.
fn is_missing(name: &str, folder: &Path, files: &[PathBuf]) -> bool {
    let is_there = |path: &Path| files.iter().any(|file| file.starts_with(path));
    if !name.contains('/') {
        let is_source = [".rs", ".md", ".sh"].iter().any(|end| name.ends_with(end));
        let named = |file: &PathBuf| file.ends_with(name);
        return is_source && name.len() > 3 && !files.iter().any(named);
    }
    let from = [folder.to_owned(), folder.join("src"), PathBuf::new()];
    let places: Vec<_> = from.iter().map(|from| plain(&from.join(name))).collect();
    let first = |path: &str| {
        let mut parts = Path::new(path).components();
        let named = |part: &Component<'_>| matches!(part, Component::Normal(_));
        parts
            .find(named)
            .map(|part| PathBuf::from(part.as_os_str()))
    };
    let Some(first) = first(name) else {
        return false;
    };
    let ours = name.starts_with("../") || from.iter().any(|from| is_there(&from.join(&first)));
    ours && !places.iter().any(|place| is_there(place))
}

/// Words that could be paths: what is neither a letter nor found in paths parts
/// them, and what is not lower ASCII is prose.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let in_path = |c: char| c.is_ascii_alphanumeric() || "/._-@".contains(c);
    text.split(move |c| !in_path(c))
        .map(|word| word.trim_end_matches(['.', '/']))
        .filter(|word| !word.starts_with(['/', '-']))
}

#[test]
fn every_file_that_a_page_names_exists() {
    let files = files();
    let mut named = 0;
    let mut missing = Vec::new();
    for (page, text) in pages() {
        let folder = page.parent().unwrap();
        for word in words(&text) {
            named += usize::from(word.contains('/'));
            if is_missing(word, folder, &files) {
                missing.push(format!("{}: {word}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named > 100, "{named}");
    // It can be missing.
    for name in [
        "scripts/tost",
        "../vmm/DESIGN.txt",
        "blk/src/nothing.rs",
        "nothing.rs",
    ] {
        assert!(is_missing(name, Path::new("backends"), &files), "{name}");
    }
    for name in [
        "scripts/test",
        "../vmm/DESIGN.md",
        "blk/src/queue.rs",
        "MB/s",
    ] {
        assert!(!is_missing(name, Path::new("backends"), &files), "{name}");
    }
}

/// As in "`vmm/DESIGN.md` ("Processes")".
#[test]
fn every_section_that_a_page_names_exists() {
    let mut named = 0;
    for (page, text) in pages() {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for (before, rest) in text
            .match_indices(".md` (\"")
            .map(|(at, _)| text.split_at(at))
        {
            let (_, file) = before.rsplit_once('`').unwrap();
            let title = rest.split('"').nth(1).unwrap();
            let other = fs::read_to_string(top().join(format!("{file}.md"))).unwrap();
            let heading = |line: &str| line.trim_start_matches('#').trim() == title;
            let there = other
                .lines()
                .any(|line| line.starts_with('#') && heading(line));
            assert!(
                there,
                "{}: {file}.md has no section {title:?}",
                page.display()
            );
            named += 1;
        }
    }
    assert!(named > 0);
}

/// Every `--option` in a text.
fn options(text: &str) -> BTreeSet<String> {
    let in_option = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let is_letter = |c: char| c.is_ascii_alphanumeric();
    let words = text.split(|c: char| !in_option(c));
    let options = words.filter(|word| word.starts_with("--") && word.ends_with(is_letter));
    options.map(str::to_owned).collect()
}

/// Of cargo, in commands that a page gives.
const CARGO: &[&str] = &["--release", "--example"];

#[test]
fn every_option_that_a_page_of_the_product_names_exists() {
    let mut known: BTreeSet<_> = CARGO.iter().map(|&option| option.to_owned()).collect();
    let mut add = |command: &mut clap::Command| {
        known.extend(options(&command.render_long_help().to_string()));
        for subcommand in command.get_subcommands_mut() {
            known.extend(options(&subcommand.render_long_help().to_string()));
            for below in subcommand.get_subcommands_mut() {
                known.extend(options(&below.render_long_help().to_string()));
            }
        }
    };
    add(&mut outboard::cli::Cli::command());
    add(&mut outboard_blk::cli::Cli::command());
    add(&mut outboard_net::cli::Cli::command());
    add(&mut outboard_rng::Cli::command());
    for script in ["demo", "test", "linux", "bench", "peers", "install"] {
        let help = std::process::Command::new(top().join("scripts").join(script))
            .arg("--help")
            .output()
            .unwrap();
        assert!(help.status.success(), "{script}: {help:?}");
        known.extend(options(&String::from_utf8(help.stdout).unwrap()));
    }
    for page in [
        "README.md",
        "vmm/DESIGN.md",
        "protocol/PROTOCOL.md",
        "backends/README.md",
    ] {
        let text = fs::read_to_string(top().join(page)).unwrap();
        let named = options(&text);
        assert!(!named.is_empty(), "{page}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{page}: {unknown:?}");
    }
}

#[test]
fn the_table_of_exit_codes_is_that_of_the_help() {
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    let numbers = |lines: &mut dyn Iterator<Item = &str>| -> Vec<u8> {
        lines.filter_map(|number| number.parse().ok()).collect()
    };
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| "));
    let in_readme = numbers(&mut rows.filter_map(|row| row.split(' ').next()));
    let help = outboard::exit::EXIT_CODES.lines();
    let in_help = numbers(&mut help.filter_map(|line| line.trim().split(' ').next()));
    assert_eq!(in_readme, in_help);
    assert_eq!(in_help, [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_demo_does_what_the_readme_says() {
    let demo = fs::read_to_string(top().join("scripts/demo")).unwrap();
    let (_, rest) = demo.split_once("scenario=verify requests=").unwrap();
    let requests = rest.split(' ').next().unwrap();
    let (thousands, units) = requests.split_at(requests.len() - 3);
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    let said = format!("verifies {thousands},{units} requests");
    assert!(readme.contains(&said), "{said}");
}
