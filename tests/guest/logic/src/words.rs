//! The command line: words of the form `key=value`, separated by blanks. A later word wins.

/// A command line.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    line: &'a str,
}

/// A value that is not what its key needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadValue<'a> {
    /// The key.
    pub key: &'a str,
    /// Its value.
    pub value: &'a str,
}

impl<'a> Words<'a> {
    /// The words of a line.
    #[must_use]
    pub fn new(line: &'a str) -> Self {
        Self { line }
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.line
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .next_back()
    }

    /// The value of a key, or what stands for it.
    #[must_use]
    pub fn text(&self, key: &str, otherwise: &'a str) -> &'a str {
        self.get(key).unwrap_or(otherwise)
    }

    /// The number that a key has, or what stands for it: decimal, or hexadecimal after `0x`, with a
    /// suffix K, M or G for powers of 1,024.
    ///
    /// # Errors
    /// The value is no number.
    pub fn number<'k: 'a>(&self, key: &'k str, otherwise: u64) -> Result<u64, BadValue<'a>> {
        match self.get(key) {
            None => Ok(otherwise),
            Some(value) => number(value).ok_or(BadValue { key, value }),
        }
    }

    /// Whether a key is 1, or what stands for it.
    ///
    /// # Errors
    /// The value is neither 0 nor 1.
    pub fn flag<'k: 'a>(&self, key: &'k str, otherwise: bool) -> Result<bool, BadValue<'a>> {
        match self.get(key) {
            None => Ok(otherwise),
            Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(value) => Err(BadValue { key, value }),
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    number.ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_words_win_and_others_are_ignored() {
        let words = Words::new(" console=ttyS0 depth=3 quiet depth=4\tscenario=verify ");
        assert_eq!(words.get("depth"), Some("4"));
        assert_eq!(words.get("quiet"), None);
        assert_eq!(words.text("scenario", "idle"), "verify");
        assert_eq!(words.text("exit", "poweroff"), "poweroff");
    }

    #[test]
    fn numbers_come_in_three_forms() {
        let words = Words::new("a=12 b=0x1f c=64K d=2M e=x f= g=99999999999G");
        assert_eq!(words.number("a", 0), Ok(12));
        assert_eq!(words.number("b", 0), Ok(31));
        assert_eq!(words.number("c", 0), Ok(65536));
        assert_eq!(words.number("d", 0), Ok(2 << 20));
        assert_eq!(words.number("z", 7), Ok(7));
        for key in ["e", "f", "g"] {
            assert!(words.number(key, 0).is_err(), "{key}");
        }
    }

    #[test]
    fn flags_are_0_or_1() {
        let words = Words::new("a=0 b=1 c=yes");
        assert_eq!(words.flag("a", true), Ok(false));
        assert_eq!(words.flag("b", false), Ok(true));
        assert_eq!(
            words.flag("c", false),
            Err(BadValue {
                key: "c",
                value: "yes"
            })
        );
    }
}
