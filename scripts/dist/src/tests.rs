//! The pages as a reader has them: rendered at 80 columns, and pasted from.

use std::fs;
use std::path::Path;
use std::process::{Command as Process, Output, Stdio};

use clap::Command;

use crate::help::{self, Section};
use crate::{commands, page, pages};

/// The lines to paste of each example in a command's help.
fn examples(command: &Command) -> Vec<Vec<String>> {
    let after = command.get_after_long_help();
    let after = after.map(ToString::to_string).unwrap_or_default();
    let mut found = Vec::new();
    for section in help::sections(&after).unwrap() {
        let Section::Examples(examples) = section else {
            continue;
        };
        for example in examples {
            found.push(example.lines.into_iter().map(str::to_owned).collect());
        }
    }
    found
}

/// The same of a page that groff has rendered.
fn rendered_examples(page: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let lines = page.lines().skip_while(|line| *line != "EXAMPLES").skip(1);
    for line in lines.take_while(|line| line.is_empty() || line.starts_with(' ')) {
        match (line.strip_prefix("         "), found.last_mut()) {
            (Some(command), Some(example)) => Vec::push(example, command.to_owned()),
            _ if line.is_empty() => {}
            _ => found.push(Vec::new()),
        }
    }
    found
}

/// What a program makes of a page; `None` if it is not there.
fn through(page: &str, program: &[&str]) -> Option<Output> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.1");
    fs::write(&file, page).unwrap();
    let output = Process::new(program[0])
        .args(&program[1..])
        .arg(&file)
        .stdin(Stdio::null())
        .output();
    if output.is_err() {
        println!("SKIP: there is no {}", program[0]);
    }
    output.ok()
}

#[test]
fn every_page_has_its_sections_in_order() {
    let tool = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "EXIT STATUS",
        "ENVIRONMENT",
        "EXAMPLES",
        "VERSION",
        "SEE ALSO",
    ];
    let overview = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "COMMANDS",
        "OPTIONS",
        "VERSION",
        "SEE ALSO",
    ];
    let pages = pages().unwrap();
    let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "outboard",
        "outboard-run",
        "outboard-ctl",
        "outboard-blk",
        "outboard-net",
        "outboard-rng",
    ];
    assert_eq!(names, expected);
    for (name, page) in &pages {
        let sections: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix(".SH "))
            .collect();
        match name.as_str() {
            "outboard" => assert_eq!(sections, overview),
            "outboard-ctl" => {
                let (_, commands) = page.split_once(".SH COMMANDS").unwrap();
                assert!(commands.contains(r"\fBwait DEVICE STATE\fR"), "{commands}");
                let mut both = tool.to_vec();
                both.insert(3, "COMMANDS");
                assert_eq!(sections, both);
            }
            _ => assert_eq!(sections, tool, "{name}"),
        }
        let (_, see) = page.split_once(".SH SEE ALSO").unwrap();
        for other in expected {
            let link = format!(r"\fB{}\fR(1)", other.replace('-', r"\-"));
            assert_eq!(see.contains(&link), other != name, "{name}: {see}");
        }
    }
}

#[test]
fn groff_and_mandoc_find_nothing_wrong() {
    for (name, page) in pages().unwrap() {
        if let Some(output) = through(&page, &["groff", "-ww", "-man", "-Tutf8", "-z"]) {
            assert!(output.status.success(), "{name}: {output:?}");
            assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{name}");
        }
        if let Some(output) = through(&page, &["mandoc", "-T", "lint", "-W", "warning"]) {
            let said = String::from_utf8(output.stdout).unwrap();
            // A source archive has no commit, and the page no date.
            let wrong = said.lines().filter(|line| !line.contains("missing date"));
            assert_eq!(wrong.count(), 0, "{name}: {said}");
        }
    }
}

/// How long a line can be that stays as it is: 80 columns without its indents.
const WIDTH: usize = 80 - 7 - 2;

/// At 80 columns, as `man` does it.
const GROFF: &[&str] = &[
    "groff", "-man", "-Tutf8", "-rLL=78n", "-P-c", "-P-b", "-P-o", "-P-u",
];

#[test]
fn an_example_copied_from_the_page_is_that_of_the_help() {
    let mut compared = 0;
    for (command, (name, text)) in commands().iter().zip(pages().unwrap()) {
        let expected = examples(command);
        for line in expected.iter().flatten() {
            assert!(line.len() <= WIDTH, "too long to be copied: {line}");
        }
        let Some(output) = through(&text, GROFF) else {
            return;
        };
        let shown = String::from_utf8(output.stdout).unwrap();
        assert_eq!(rendered_examples(&shown), expected, "{name}:\n{shown}");
        compared += expected.len();
    }
    assert!(compared > 10, "{compared}");
}

/// A shell that starts nothing: our programs note their words and all others do
/// nothing.
const DRY_SHELL: &str = r#"
note() { builtin printf '%s\0' "$@" >> noted; builtin printf '\n\0' >> noted; }
outboard() { note outboard "$@"; }
outboard-blk() { note outboard-blk "$@"; }
outboard-net() { note outboard-net "$@"; }
outboard-rng() { note outboard-rng "$@"; }
sudo() { "$@"; }
command_not_found_handle() { builtin printf '%s\n' "$1: not expected" >&2; exit 1; }
ip() { :; }
truncate() { :; }
passt() { :; }
qemu-storage-daemon() { :; }
USER=nobody
"#;

/// What our programs are given when the lines are pasted.
fn pasted(lines: &[String], folder: &Path) -> Vec<Vec<String>> {
    let script = format!("{DRY_SHELL}\n{}\nwait\n", lines.join("\n"));
    let output = Process::new("bash")
        .args(["-e", "-u", "-c", &script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{lines:#?}: {output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{lines:#?}");
    let noted = fs::read_to_string(folder.join("noted")).unwrap();
    let calls = noted.split("\n\0").filter(|call| !call.is_empty());
    calls
        .map(|call| call.split_terminator('\0').map(str::to_owned).collect())
        .collect()
}

#[test]
fn an_example_copied_from_the_page_is_a_command_line_of_its_program() {
    let commands = commands();
    let mut accepted = 0;
    for (command, (_, text)) in commands.iter().zip(pages().unwrap()) {
        let examples = match through(&text, GROFF) {
            Some(output) => rendered_examples(&String::from_utf8(output.stdout).unwrap()),
            None => examples(command),
        };
        for example in examples {
            let folder = tempfile::tempdir().unwrap();
            for words in pasted(&example, folder.path()) {
                let named = |program: &&Command| page::name(program) == words[0];
                let program = commands.iter().find(named).unwrap().clone();
                program
                    .try_get_matches_from(&words)
                    .unwrap_or_else(|error| panic!("{example:#?}: {error}"));
                accepted += 1;
            }
        }
    }
    assert!(accepted > 10, "{accepted}");
}

#[test]
fn a_default_is_said_once_and_as_the_help_does() {
    for (mut command, (name, page)) in commands().into_iter().zip(pages().unwrap()) {
        let help = command.render_long_help().to_string();
        let (_, options) = page.split_once(".SH OPTIONS").unwrap();
        for item in options.split(".TP").skip(1) {
            assert!(item.matches("[default").count() <= 1, "{name}: {item}");
        }
        let marks = |text: &str| text.matches("[default: ").count();
        assert_eq!(marks(options), marks(&help), "{name}");
    }
}

#[test]
fn an_option_keeps_its_paragraphs() {
    let mut kept = 0;
    for (command, (name, page)) in commands().iter().zip(pages().unwrap()) {
        assert!(!page.contains("\n\n"), "{name}: {page}");
        let mut expected = 0;
        for option in command
            .get_arguments()
            .filter(|option| !option.is_hide_set())
        {
            let help = option.get_long_help().or(option.get_help());
            let help = help.map(ToString::to_string).unwrap_or_default();
            // The possible values are one more.
            let values =
                !option.get_possible_values().is_empty() && !option.is_hide_possible_values_set();
            let values = values && option.get_num_args().unwrap().takes_values();
            expected += help.matches("\n\n").count() + usize::from(values);
        }
        assert_eq!(page.matches("\n.IP\n").count(), expected, "{name}: {page}");
        kept += expected;
    }
    assert!(kept > 5, "{kept}");
}

/// A hyphen of typography, from one that is not escaped or where a word was
/// divided, cannot be pasted; nor can its quotes.
#[test]
fn what_a_page_shows_can_be_typed() {
    for (name, text) in pages().unwrap() {
        let Some(output) = through(&text, GROFF) else {
            return;
        };
        let shown = String::from_utf8(output.stdout).unwrap();
        let typed = |character: char| character.is_ascii() || character == '•';
        let wrong = shown.lines().find(|line| !line.chars().all(typed));
        assert_eq!(wrong, None, "{name}");
    }
}

#[test]
fn the_synopsis_is_the_usage_of_the_help() {
    for (mut command, (name, text)) in commands().into_iter().zip(pages().unwrap()) {
        let Some(output) = through(&text, GROFF) else {
            return;
        };
        let shown = String::from_utf8(output.stdout).unwrap();
        let (_, below) = shown.split_once("SYNOPSIS\n").unwrap();
        let (synopsis, _) = below.split_once("DESCRIPTION\n").unwrap();
        let usage = command.render_usage().to_string().replace('…', "...");
        let usage = usage.strip_prefix("Usage: ").unwrap();
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(words(synopsis), words(usage), "{name}");
    }
}
