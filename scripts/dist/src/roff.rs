//! A page in the man(7) language. What is shown can be copied from the terminal:
//! a hyphen is a hyphen, a quote a quote, no word is hyphenated, and what was
//! written as lines stays lines.

/// A page that is being written.
#[derive(Default)]
pub struct Roff(String);

impl Roff {
    /// Begins a page of section 1.
    pub fn new(name: &str, date: &str, source: &str) -> Self {
        let mut page = Self::default();
        let [name, source] = [name, source].map(escape);
        page.line(&format!(r#".TH {name} 1 "{date}" "{source}" "Outboard""#));
        // No hyphenation, and a ragged margin.
        page.line(".nh");
        page.line(".ad l");
        page
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    /// A heading.
    pub fn section(&mut self, title: &str) {
        self.line(&format!(".SH {}", escape(title)));
    }

    /// A heading below one.
    pub fn subsection(&mut self, title: &str) {
        self.line(&format!(".SS {}", escape(title)));
    }

    /// Text; what is between backticks is bold.
    pub fn text(&mut self, text: &str) {
        self.line(&marked(text));
    }

    /// Text of its own paragraph.
    pub fn paragraph(&mut self, text: &str) {
        // The first one of a section is one already.
        let last = self.0.lines().last().unwrap_or_default();
        if !last.starts_with(".S") {
            self.line(".PP");
        }
        self.text(text);
    }

    /// An item: its head, of bold and italic parts, and the paragraphs on it.
    pub fn item(&mut self, head: &[Part<'_>], paragraphs: &[&str]) {
        self.line(".TP");
        self.parts(head);
        for (index, paragraph) in paragraphs.iter().enumerate() {
            if index > 0 {
                self.line(".IP");
            }
            self.text(paragraph);
        }
    }

    /// Parts on one line.
    pub fn parts(&mut self, parts: &[Part<'_>]) {
        let part = |part: &Part<'_>| match part {
            Part::Bold(text) => format!(r"\fB{}\fR", escape(text)),
            Part::Italic(text) => format!(r"\fI{}\fR", escape(text)),
            Part::Plain(text) => escape(text),
        };
        let line: String = parts.iter().map(part).collect();
        self.line(&line);
    }

    /// Lines that stay as they are.
    pub fn verbatim<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) {
        self.line(".PP");
        self.line(".RS 2");
        self.line(".nf");
        for line in lines {
            self.line(&escape(line));
        }
        self.line(".fi");
        self.line(".RE");
    }

    /// The page.
    pub fn finish(self) -> String {
        self.0
    }
}

/// A part of a line.
pub enum Part<'a> {
    /// As it is typed.
    Bold(&'a str),
    /// To be replaced by what it means.
    Italic(&'a str),
    /// Between them.
    Plain(&'a str),
}

/// Text between backticks is bold.
fn marked(text: &str) -> String {
    let mut line = String::new();
    for (index, part) in text.split('`').enumerate() {
        match index % 2 {
            0 => line.push_str(&escape(part)),
            _ => line.push_str(&format!(r"\fB{}\fR", escape(part))),
        }
    }
    line
}

/// Characters as they are: roff would make typography of some.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    if text.starts_with('.') {
        // Else it were a request.
        escaped.push_str(r"\&");
    }
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str(r"\(rs"),
            '-' => escaped.push_str(r"\-"),
            '\'' => escaped.push_str(r"\(aq"),
            '`' => escaped.push_str(r"\(ga"),
            '"' => escaped.push_str(r"\(dq"),
            '^' => escaped.push_str(r"\(ha"),
            '~' => escaped.push_str(r"\(ti"),
            // There is a terminal without it, and not one with a worse mark.
            '…' => escaped.push_str("..."),
            ascii if ascii.is_ascii() => escaped.push(ascii),
            other => escaped.push_str(&format!(r"\[u{:04X}]", u32::from(other))),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_is_shown_as_it_is() {
        for (text, escaped) in [
            ("--blk-file=a", r"\-\-blk\-file=a"),
            (r"a \", r"a \(rs"),
            ("'a b'", r"\(aqa b\(aq"),
            (".5", r"\&.5"),
            ("KEY=VALUE,…", "KEY=VALUE,..."),
            ("µ", r"\[u00B5]"),
        ] {
            assert_eq!(escape(text), escaped);
        }
        assert_eq!(marked("give `-h` or not"), r"give \fB\-h\fR or not");
    }
}
