//! The man page of one command: what `clap_mangen` makes of the command line,
//! then the sections that it does not know. What is shown can be copied from
//! the terminal: a hyphen is a hyphen, a quote a quote, no word is hyphenated,
//! and what was written as lines stays lines.

use anyhow::Result;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use outboard_version::{COMMIT_DATE, VERSION};

use crate::help::{self, Entry, Example, Section};

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
    let man = man(command, COMMIT_DATE);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    // No hyphenation, and a ragged margin.
    let mut ragged = Roff::new();
    ragged.control("nh", []).control("ad", ["l"]);
    ragged.to_writer(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.has_subcommands() {
        match own_commands(command, names) {
            None => man.render_subcommands_section(&mut page)?,
            Some(section) => section.to_writer(&mut page)?,
        }
    }
    let mut options = Vec::new();
    man.render_options_section(&mut options)?;
    page.extend(paragraphs(&String::from_utf8(options)?).bytes());
    below(command, names)?.to_writer(&mut page)?;
    Ok(as_typed(&String::from_utf8(page)?))
}

fn man(command: &Command, date: &str) -> Man {
    // As `--help` has it, not every option anew.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_owned();
    let release = VERSION.split(' ').next().unwrap_or_default();
    // An empty argument is not written, and the source would be taken for the date.
    let date = if date.is_empty() { r#""""# } else { date };
    let command = command.clone().override_usage(usage);
    let title = name(&command).replace('-', r"\-");
    Man::new(command.subcommand_help_heading("COMMANDS"))
        .title(title)
        .date(date)
        .source(format!("outboard {release}"))
        .manual("Outboard")
}

/// The subcommands that have no page of their own; `None`: they have.
fn own_commands(command: &Command, names: &[String]) -> Option<Roff> {
    let shown = command.get_subcommands();
    let mut shown = shown.filter(|command| !command.is_hide_set()).peekable();
    let has_page = |command: &&Command| names.contains(&name(command));
    if shown.peek().is_some_and(has_page) {
        return None;
    }
    let words: Vec<_> = shown
        .map(|command| {
            let arguments = command.get_positionals().map(|argument| argument.get_id());
            let arguments = arguments.map(|id| format!(" {}", id.as_str().to_uppercase()));
            let about = command.get_about().map(ToString::to_string);
            let word = command.get_name().to_owned() + &arguments.collect::<String>();
            (word, about.unwrap_or_default())
        })
        .collect();
    let each = words.iter().map(|(word, meaning)| Entry {
        word,
        meaning: meaning.clone(),
    });
    let mut page = Roff::new();
    entries(&mut page, "COMMANDS", &each.collect::<Vec<_>>());
    Some(page)
}

/// The options with their paragraphs as such: `clap_mangen` has empty lines between
/// them, and before the possible values.
fn paragraphs(options: &str) -> String {
    options
        .replace(".br\n\n.br\n", ".IP\n")
        .replace("\n\n", "\n.IP\n")
}

/// What stands below the options.
fn below(command: &Command, names: &[String]) -> Result<Roff> {
    let mut page = Roff::new();
    let after = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    let after = after.map(ToString::to_string).unwrap_or_default();
    let mut sections = help::sections(&after)?;
    // The order of man-pages(7), not of the help.
    sections.sort_by_key(|section| match section {
        Section::ExitCodes(_) => 0,
        Section::Environment(_) => 1,
        Section::Examples(_) => 2,
    });
    for section in &sections {
        match section {
            Section::ExitCodes(codes) => entries(&mut page, "EXIT STATUS", codes),
            Section::Environment(variables) => entries(&mut page, "ENVIRONMENT", variables),
            Section::Examples(shown) => examples(&mut page, shown),
        }
    }
    heading(&mut page, "VERSION").text([roman(VERSION)]);
    let mut others = Vec::new();
    for other in names.iter().filter(|other| **other != name(command)) {
        if !others.is_empty() {
            others.push(roman(", "));
        }
        others.extend([bold(other), roman("(1)")]);
    }
    heading(&mut page, "SEE ALSO").text(others);
    Ok(page)
}

fn heading<'a>(page: &'a mut Roff, title: &str) -> &'a mut Roff {
    page.control("SH", title.split(' '))
}

fn entries(page: &mut Roff, title: &str, entries: &[Entry<'_>]) {
    heading(page, title);
    for entry in entries {
        page.control("TP", [])
            .text([bold(entry.word)])
            .text([roman(&entry.meaning)]);
    }
}

fn examples(page: &mut Roff, examples: &[Example<'_>]) {
    heading(page, "EXAMPLES");
    for (index, example) in examples.iter().enumerate() {
        // A heading begins a paragraph, too.
        if index > 0 {
            page.control("PP", []);
        }
        page.text([roman(example.title)]);
        page.control("PP", [])
            .control("RS", ["2"])
            .control("nf", []);
        for line in &example.lines {
            page.text([roman(*line)]);
        }
        page.control("fi", []).control("RE", []);
    }
}

/// A page in which the characters that groff makes typography of are as they were
/// typed, where the crate does not see to that. What is between backticks is bold;
/// an example has none, as `$(...)` does the same.
fn as_typed(page: &str) -> String {
    let mut typed = String::new();
    let mut bold = false;
    for character in page.chars() {
        match character {
            '`' => {
                bold = !bold;
                typed.push_str(if bold { r"\fB" } else { r"\fR" });
            }
            '^' => typed.push_str(r"\(ha"),
            '~' => typed.push_str(r"\(ti"),
            // There is a terminal without it, and not one with a worse mark.
            '…' => typed.push_str("..."),
            ascii if ascii.is_ascii() => typed.push(ascii),
            other => typed.push_str(&format!(r"\[u{:04X}]", u32::from(other))),
        }
    }
    typed
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_page_without_a_date_has_its_source_where_it_belongs() {
        for (date, shown) in [("2026-01-31", "2026-01-31"), ("", r#""""#)] {
            let mut title = Vec::new();
            man(&Command::new("a-b"), date)
                .render_title(&mut title)
                .unwrap();
            let title = String::from_utf8(title).unwrap();
            let release = env!("CARGO_PKG_VERSION");
            let expected = format!(r#".TH a\-b 1 {shown} "outboard {release}" Outboard"#);
            assert_eq!(title.lines().last(), Some(expected.as_str()));
        }
    }

    #[test]
    fn what_is_escaped_is_shown_as_it_is() {
        for (text, escaped) in [
            ("--blk-file=a", r"\-\-blk\-file=a"),
            (r"a \", r"a \\"),
            ("'a b'", r"\*(Aqa b\*(Aq"),
            (".5", r"\&.5"),
            ("^~", r"\(ha\(ti"),
            ("KEY=VALUE,…", "KEY=VALUE,..."),
            ("µ", r"\[u00B5]"),
            ("give `-h` or not", r"give \fB\-h\fR or not"),
        ] {
            let page = Roff::from(roman(text)).render();
            let line = as_typed(&page).lines().last().map(str::to_owned);
            assert_eq!(line.as_deref(), Some(escaped));
        }
    }
}
