//! What was tried with which peer, and what came of it.
//!
//! A test prints each result as a line, and so may a test in a guest:
//!
//! ```text
//! CELL back-ends | vhost-device-rng 0.1.0 | data compared | passed
//! ```
//!
//! The lines of a run make Markdown tables, one for each kind; README has a
//! copy, which [`Tables::contradictions`] compares.

use std::fmt;

/// What came of one thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It works.
    Passed,
    /// The peer cannot do it, and this is how that shows.
    Unsupported(String),
    /// It does not work.
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Unsupported(how) => write!(f, "not supported by the peer: {how}"),
            Self::Failed => f.write_str("failed"),
        }
    }
}

/// The line that tells a result. None of the words may contain a `|`.
pub fn cell_line(table: &str, peer: &str, tried: &str, outcome: &Outcome) -> String {
    format!("CELL {table} | {peer} | {tried} | {outcome}")
}

/// One table: its columns in the order in which they came up, and its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    name: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<(String, String)>)>,
}

impl Table {
    fn set(&mut self, peer: &str, tried: &str, outcome: &str) {
        if !self.columns.iter().any(|column| column == tried) {
            self.columns.push(tried.to_owned());
        }
        let cell = (tried.to_owned(), outcome.to_owned());
        match self.rows.iter_mut().find(|(row, _)| row == peer) {
            Some((_, cells)) => cells.push(cell),
            None => self.rows.push((peer.to_owned(), vec![cell])),
        }
    }

    fn cell(&self, peer: &str, tried: &str) -> Option<&str> {
        let (_, cells) = self.rows.iter().find(|(row, _)| row == peer)?;
        let (_, outcome) = cells.iter().find(|(column, _)| column == tried)?;
        Some(outcome)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} | {} |", self.name, self.columns.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(self.columns.len()))?;
        for (peer, _) in &self.rows {
            write!(f, "| {peer} |")?;
            for column in &self.columns {
                write!(f, " {} |", self.cell(peer, column).unwrap_or("–"))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// All tables, in the order in which they came up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables(Vec<Table>);

impl Tables {
    /// Those that the lines of a log make; whatever is no cell is passed over.
    pub fn of_log(log: &str) -> Self {
        let mut tables = Self::default();
        for line in log.lines() {
            // The console of a guest may have put something before it.
            let Some((_, cell)) = line.trim_end().split_once("CELL ") else {
                continue;
            };
            let words: Vec<_> = cell.splitn(4, '|').map(str::trim).collect();
            if let [table, peer, tried, outcome] = words[..] {
                tables.named(table).set(peer, tried, outcome);
            }
        }
        tables
    }

    /// The table of this name in a Markdown text: one whose head's first word
    /// it is. Cells that hold a dash are empty.
    fn read(&mut self, name: &str, markdown: &str) {
        let lines = markdown
            .lines()
            .map(cells)
            .skip_while(|line| line.first().is_none_or(|word| *word != name));
        let mut lines = lines.take_while(|line| !line.is_empty());
        let head = lines.next().unwrap_or_default();
        for line in lines.skip(1) {
            let Some((peer, outcomes)) = line.split_first() else {
                continue;
            };
            for (tried, outcome) in head.iter().skip(1).zip(outcomes) {
                if *outcome != "–" {
                    self.named(name).set(peer, tried, outcome);
                }
            }
        }
    }

    fn named(&mut self, name: &str) -> &mut Table {
        let place = self.0.iter().position(|table| table.name == name);
        let place = place.unwrap_or_else(|| {
            self.0.push(Table {
                name: name.to_owned(),
                ..Table::default()
            });
            self.0.len() - 1
        });
        &mut self.0[place]
    }

    /// What a text's tables do not say, or say otherwise: each cell of these
    /// tables must be in there. What this run did not try may be there too,
    /// and a peer may have another version there (Debian moves them on).
    pub fn contradictions(&self, markdown: &str) -> Vec<String> {
        let mut found = Vec::new();
        for table in &self.0 {
            let mut text = Self::default();
            text.read(&table.name, markdown);
            let text = text.named(&table.name);
            for (peer, cells) in &table.rows {
                let row = text.rows.iter().find(|(row, _)| same_peer(row, peer));
                for (tried, outcome) in cells {
                    let told = row.and_then(|(row, _)| text.cell(row, tried));
                    if told != Some(outcome) {
                        found.push(format!(
                            "{} | {peer} | {tried}: found {outcome:?}, the text says {}",
                            table.name,
                            told.map_or("nothing".into(), |told| format!("{told:?}"))
                        ));
                    }
                }
            }
        }
        found
    }

    /// The peers whose version a text's tables do not have.
    pub fn other_versions(&self, markdown: &str) -> Vec<&str> {
        let rows = self.0.iter().flat_map(|table| &table.rows);
        let named = rows.map(|(peer, _)| peer.as_str());
        named
            .filter(|peer| !markdown.contains(&format!("| {peer} |")))
            .collect()
    }
}

/// Whether two names differ at most in words that are versions.
fn same_peer(one: &str, other: &str) -> bool {
    let is_word = |word: &&str| !word.starts_with(|first: char| first.is_ascii_digit());
    one.split(' ')
        .filter(is_word)
        .eq(other.split(' ').filter(is_word))
}

/// The cells of a line of a Markdown table.
fn cells(line: &str) -> Vec<&str> {
    match line.strip_prefix('|') {
        Some(rest) => rest
            .trim_end()
            .trim_end_matches('|')
            .split('|')
            .map(str::trim)
            .collect(),
        None => Vec::new(),
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, table) in self.0.iter().enumerate() {
            if place > 0 {
                writeln!(f)?;
            }
            write!(f, "{table}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Tables {
        let unsupported = Outcome::Unsupported("it offers 1 queue".into());
        let lines = [
            "test something ... ok".to_owned(),
            cell_line("back-ends", "daemon 7.2.1", "data", &Outcome::Passed),
            cell_line("back-ends", "rng 0.1.0", "data", &Outcome::Passed),
            format!(
                "\r{}\r",
                cell_line("back-ends", "rng 0.1.0", "4 queues", &unsupported)
            ),
            cell_line("front-ends", "QEMU 7.2.1", "data", &Outcome::Failed),
        ];
        Tables::of_log(&lines.join("\n"))
    }

    const TEXT: &str = "\
| back-ends | data | 4 queues |
|---|---|---|
| daemon 7.2.1 | passed | – |
| rng 0.1.0 | passed | not supported by the peer: it offers 1 queue |

| front-ends | data |
|---|---|
| QEMU 7.2.1 | failed |
";

    #[test]
    fn the_lines_of_a_log_make_tables() {
        assert_eq!(found().to_string(), TEXT);
    }

    #[test]
    fn a_text_that_has_every_cell_is_true() {
        let more = TEXT.replace(
            "daemon 7.2.1 | passed | –",
            "daemon 7.2.1 | passed | passed",
        );
        for text in [TEXT, &more] {
            assert_eq!(found().contradictions(text), [""; 0]);
            assert_eq!(found().other_versions(text), [""; 0]);
        }
    }

    #[test]
    fn another_version_is_told_and_no_contradiction() {
        let text = TEXT.replace("daemon 7.2.1", "daemon 7.2.0");
        assert_eq!(found().contradictions(&text), [""; 0]);
        assert_eq!(found().other_versions(&text), ["daemon 7.2.1"]);
    }

    #[test]
    fn a_text_that_flatters_or_lacks_a_cell_is_contradicted() {
        let flattering = TEXT.replace("failed", "passed");
        assert_eq!(
            found().contradictions(&flattering),
            ["front-ends | QEMU 7.2.1 | data: found \"failed\", the text says \"passed\""]
        );
        let lacking = TEXT.replace("| rng 0.1.0 | passed |", "| rng 0.1.0 | – |");
        assert_eq!(
            found().contradictions(&lacking),
            ["back-ends | rng 0.1.0 | data: found \"passed\", the text says nothing"]
        );
        assert_eq!(found().contradictions("no table").len(), 4);
    }
}
