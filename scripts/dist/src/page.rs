//! The man page of one command.

use anyhow::Result;
use clap::builder::StyledStr;
use clap::{Arg, Command};
use outboard_version::{COMMIT_DATE, VERSION};

use crate::help::{self, Entry, Section};
use crate::roff::{Part, Roff};

/// What `man` is asked for: `outboard-run`.
pub fn name(command: &Command) -> String {
    let name = command.get_display_name();
    name.unwrap_or(command.get_name()).to_owned()
}

/// The page of a command that has been built; `names` are those of all pages.
///
/// # Errors
/// Its help has a section that a page has no place for.
pub fn render(command: &Command, names: &[String]) -> Result<String> {
    let name = name(command);
    let about = text(command.get_about());
    let release = VERSION.split(' ').next().unwrap_or_default();
    let mut page = Roff::new(&name, COMMIT_DATE, &format!("outboard {release}"));
    page.section("NAME");
    let about = about.trim_end_matches('.');
    page.parts(&[Part::Plain(&name), Part::Plain(" - "), Part::Plain(about)]);
    page.section("SYNOPSIS");
    synopsis(&mut page, command);
    page.section("DESCRIPTION");
    let long = command.get_long_about().or(command.get_about());
    for paragraph in paragraphs(&text(long)) {
        page.paragraph(paragraph);
    }
    subcommands(&mut page, command);
    options(&mut page, command);
    let after = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    let after = text(after);
    let sections = help::sections(&after)?;
    // The order of man-pages(7), not of the help.
    for section in &sections {
        if let Section::ExitCodes(codes) = section {
            page.section("EXIT STATUS");
            entries(&mut page, codes);
        }
    }
    for section in &sections {
        if let Section::Environment(variables) = section {
            page.section("ENVIRONMENT");
            entries(&mut page, variables);
        }
    }
    for section in &sections {
        if let Section::Examples(examples) = section {
            page.section("EXAMPLES");
            for example in examples {
                page.paragraph(example.title);
                page.verbatim(example.lines.iter().copied());
            }
        }
    }
    page.section("VERSION");
    page.text(VERSION);
    page.section("SEE ALSO");
    see_also(&mut page, names.iter().filter(|other| **other != name));
    Ok(page.finish())
}

fn text(styled: Option<&StyledStr>) -> String {
    styled.map(StyledStr::to_string).unwrap_or_default()
}

fn paragraphs(text: &str) -> Vec<&str> {
    text.split("\n\n").map(str::trim).collect()
}

/// The usage as `--help` has it, one line for each of its own.
fn synopsis(page: &mut Roff, command: &Command) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage:").unwrap_or(&usage);
    let name = command
        .get_bin_name()
        .unwrap_or(command.get_name())
        .to_owned();
    for line in usage.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let rest = line.strip_prefix(&name).unwrap_or_default();
        page.parts(&[Part::Bold(&name), Part::Plain(rest)]);
    }
}

fn subcommands(page: &mut Roff, command: &Command) {
    let shown = |command: &&Command| !command.is_hide_set();
    let mut shown = command.get_subcommands().filter(shown).peekable();
    if shown.peek().is_some() {
        page.section("COMMANDS");
    }
    for subcommand in shown {
        let about = text(subcommand.get_about());
        let see = format!(
            "{}; see `{}`(1)",
            about.trim_end_matches('.'),
            name(subcommand)
        );
        page.item(&[Part::Bold(subcommand.get_name())], &[&see]);
    }
}

/// The options in the order of the help, those under a heading of their own
/// after the others.
fn options(page: &mut Roff, command: &Command) {
    let mut shown: Vec<_> = command
        .get_arguments()
        .filter(|option| !option.is_hide_set())
        .collect();
    page.section("OPTIONS");
    let mut headings = vec![None];
    for option in &shown {
        if !headings.contains(&option.get_help_heading()) {
            headings.push(option.get_help_heading());
        }
    }
    for heading in headings {
        if let Some(heading) = heading {
            page.subsection(heading);
        }
        shown.retain(|option| {
            let here = option.get_help_heading() == heading;
            if here {
                self::option(page, option);
            }
            !here
        });
    }
}

fn option(page: &mut Roff, option: &Arg) {
    let short = option.get_short().map(|short| format!("-{short}"));
    let long = option.get_long().map(|long| format!("--{long}"));
    let mut head = Vec::new();
    for name in [&short, &long].into_iter().flatten() {
        if !head.is_empty() {
            head.push(Part::Plain(", "));
        }
        head.push(Part::Bold(name));
    }
    let values = option.get_num_args().unwrap_or_default();
    let value = match option.get_value_names() {
        Some(names) if values.takes_values() => names
            .iter()
            .map(AsRef::as_ref)
            .collect::<Vec<&str>>()
            .join(" "),
        _ => String::new(),
    };
    if !value.is_empty() {
        let (before, behind) = match (long.is_some(), values.min_values()) {
            (false, _) => ("", ""),
            (true, 0) => (" [", "]"),
            (true, _) => (" ", ""),
        };
        head.extend([
            Part::Plain(before),
            Part::Italic(&value),
            Part::Plain(behind),
        ]);
    }
    let help = text(option.get_long_help().or(option.get_help()));
    let noted = noted(option, &help);
    let mut said = paragraphs(&help);
    if let Some(first) = said.first_mut() {
        *first = &noted;
    }
    page.item(&head, &said);
}

/// The first paragraph of an option's help, with its default and its possible
/// values as the help shows them, where the text does not.
fn noted(option: &Arg, help: &str) -> String {
    let mut first = paragraphs(help).remove(0).to_owned();
    if !option.get_num_args().unwrap_or_default().takes_values() {
        return first;
    }
    let defaults: Vec<_> = option
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let defaults = defaults.join(",");
    if !defaults.is_empty() && !option.is_hide_default_value_set() {
        first.push_str(&format!(" [default: {defaults}]"));
    }
    let possible: Vec<_> = option
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| value.get_name().to_owned())
        .collect();
    if !possible.is_empty() {
        first.push_str(&format!(" [possible values: {}]", possible.join(", ")));
    }
    first
}

fn entries(page: &mut Roff, entries: &[Entry<'_>]) {
    for entry in entries {
        page.item(&[Part::Bold(entry.word)], &[&entry.meaning]);
    }
}

fn see_also<'a>(page: &mut Roff, others: impl Iterator<Item = &'a String>) {
    let mut parts = Vec::new();
    for other in others {
        if !parts.is_empty() {
            parts.push(Part::Plain(", "));
        }
        parts.extend([Part::Bold(other), Part::Plain("(1)")]);
    }
    page.parts(&parts);
}
