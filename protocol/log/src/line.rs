//! A line: who speaks, and what. A peer or a guest may have had a hand in
//! either, so neither begins a new line or moves a terminal's cursor.

use std::ffi::OsStr;
use std::fmt::{self, Display, Write};
use std::path::Path;

/// Who speaks: a program, and in brackets for which VM and device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker(String);

impl Speaker {
    /// `program[label]`, or the program alone.
    pub fn new(program: &str, label: Option<&str>) -> Self {
        Self(match label {
            Some(label) => format!("{}[{}]", OneLine(program), OneLine(label)),
            None => OneLine(program).to_string(),
        })
    }

    /// This process by the name it was started with, `label` in brackets.
    pub fn this(label: Option<&str>) -> Self {
        let path = std::env::args_os().next().unwrap_or_default();
        let name = Path::new(&path).file_name().map(OsStr::to_string_lossy);
        Self::new(name.as_deref().unwrap_or("back-end"), label)
    }
}

impl Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Shows a text on one line: control characters, other line ends and what
/// turns the direction of writing are escaped as in Rust's string literals.
#[derive(Clone, Copy, Debug)]
pub struct OneLine<T>(pub T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(f), "{}", self.0)
    }
}

struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(is_harmful) {
            match part.chars().next_back().filter(|last| is_harmful(*last)) {
                Some(last) => {
                    let good = part.get(..part.len() - last.len_utf8());
                    self.0.write_str(good.unwrap_or_default())?;
                    write!(self.0, "{}", last.escape_default())?;
                }
                None => self.0.write_str(part)?,
            }
        }
        Ok(())
    }
}

fn is_harmful(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_speaker_is_a_program_with_vm_and_device_in_brackets() {
        let shown = |label| Speaker::new("outboard-blk", label).to_string();
        assert_eq!(shown(Some("web/disk0")), "outboard-blk[web/disk0]");
        assert_eq!(shown(None), "outboard-blk");
        assert_eq!(
            Speaker::new("a\nb", Some("c\td")).to_string(),
            "a\\nb[c\\td]"
        );
    }

    #[test]
    fn what_is_harmless_stays_as_it_is_and_the_rest_can_still_be_read() {
        let text = "tap0: größer \\ \"quoted\" … 3 µs";
        assert_eq!(OneLine(text).to_string(), text);
        let forged = "no such id\nx[y]: WARN \u{1b}[2J\r\u{85}\u{202e}\0";
        assert_eq!(
            OneLine(forged).to_string(),
            "no such id\\nx[y]: WARN \\u{1b}[2J\\r\\u{85}\\u{202e}\\u{0}"
        );
    }

    proptest! {
        /// However a text is cut into pieces when it is formatted.
        #[test]
        fn no_text_makes_a_second_line(parts in prop::collection::vec(any::<String>(), 0..4)) {
            struct Pieces<'a>(&'a [String]);
            impl Display for Pieces<'_> {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.iter().try_for_each(|part| f.write_str(part))
                }
            }
            let shown = OneLine(Pieces(&parts)).to_string();
            prop_assert!(!shown.contains(is_harmful), "{shown:?}");
            let plain: String = parts.concat();
            if !plain.contains(is_harmful) {
                prop_assert_eq!(shown, plain);
            }
        }
    }
}
