//! What stands below the options in a program's `--help`, taken apart: sections
//! with a title at the margin and a colon behind it, as in
//!
//! ```text
//! Examples:
//!   What it does:
//!     the command \
//!         its second line
//!
//! Exit codes:
//!   0  what it means, and where
//!      that goes on
//! ```

use anyhow::{Context, Result, bail};

/// A section of a help text.
#[derive(Debug, PartialEq, Eq)]
pub enum Section<'a> {
    /// Commands to be pasted.
    Examples(Vec<Example<'a>>),
    /// Meanings of exit codes.
    ExitCodes(Vec<Entry<'a>>),
    /// Meanings of environment variables.
    Environment(Vec<Entry<'a>>),
}

/// What it does, and the lines to paste.
#[derive(Debug, PartialEq, Eq)]
pub struct Example<'a> {
    pub title: &'a str,
    pub lines: Vec<&'a str>,
}

/// A word and its meaning.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub word: &'a str,
    pub meaning: String,
}

/// The sections of a text.
///
/// # Errors
/// A section that no page has, or a line that belongs to none.
pub fn sections(text: &str) -> Result<Vec<Section<'_>>> {
    let mut sections = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if let Some(title) = line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
            sections.push(match title {
                "Examples" => Section::Examples(Vec::new()),
                "Exit codes" => Section::ExitCodes(Vec::new()),
                "Environment" => Section::Environment(Vec::new()),
                _ => bail!("a man page has no section for {title:?}"),
            });
            continue;
        }
        let belongs = match sections.last_mut() {
            Some(Section::Examples(examples)) => example(examples, line),
            Some(Section::ExitCodes(entries) | Section::Environment(entries)) => {
                entry(entries, line)
            }
            None => None,
        };
        belongs.with_context(|| format!("{line:?} belongs to no section"))?;
    }
    Ok(sections)
}

fn example<'a>(examples: &mut Vec<Example<'a>>, line: &'a str) -> Option<()> {
    if let Some(command) = line.strip_prefix("    ") {
        examples.last_mut()?.lines.push(command);
        return Some(());
    }
    let title = line.strip_prefix("  ")?;
    let lines = Vec::new();
    examples.push(Example { title, lines });
    Some(())
}

fn entry<'a>(entries: &mut Vec<Entry<'a>>, line: &'a str) -> Option<()> {
    let text = line.strip_prefix("  ")?;
    if text.starts_with(' ') {
        let meaning = &mut entries.last_mut()?.meaning;
        if !meaning.is_empty() {
            meaning.push(' ');
        }
        meaning.push_str(text.trim());
        return Some(());
    }
    // The meaning may begin on the next line.
    let (word, meaning) = text.split_once("  ").unwrap_or((text, ""));
    let meaning = meaning.trim().to_owned();
    entries.push(Entry { word, meaning });
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_help_has_sections() {
        let text = "Examples:\n  A:\n    a \\\n        b\n  B:\n    c\n\nExit codes:\n  0  good,\n     \
                    or not\n  1  bad\n\nEnvironment:\n  ONE, OTHER\n      both";
        let entry = |word, meaning: &str| Entry {
            word,
            meaning: meaning.to_owned(),
        };
        let expected = [
            Section::Examples(vec![
                Example {
                    title: "A:",
                    lines: vec!["a \\", "    b"],
                },
                Example {
                    title: "B:",
                    lines: vec!["c"],
                },
            ]),
            Section::ExitCodes(vec![entry("0", "good, or not"), entry("1", "bad")]),
            Section::Environment(vec![entry("ONE, OTHER", "both")]),
        ];
        assert_eq!(sections(text).unwrap(), expected);
    }

    #[test]
    fn what_belongs_nowhere_is_not_left_out() {
        for wrong in [
            "Notes:\n  a",
            "Examples:\n    a command",
            "Exit codes:\n     continued",
            "Exit codes:\nat the margin",
            "text",
        ] {
            assert!(sections(wrong).is_err(), "{wrong:?}");
        }
    }
}
