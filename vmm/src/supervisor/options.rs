//! The little languages of the command line: `key=value,…`, sizes and waits.
//!
//! A `key=value,…` argument becomes a TOML table, so that the command line and
//! the configuration file share one set of types, names and checks.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use toml::{Table, Value};

use super::meant;

/// What the value of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Any text.
    Text,
    /// `on` or `off`; the key alone means `on`.
    Switch,
    /// A decimal number.
    Number,
}

/// The keys that an option takes.
pub type Keys = &'static [(&'static str, Type)];

/// Reads `key=value,…` by the keys of an option. A comma within a value is
/// written twice.
///
/// # Errors
/// A message that names the key or the value and what would be right.
pub fn table(text: &str, keys: Keys) -> Result<Table, String> {
    let mut table = Table::new();
    for pair in split(text) {
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (pair.as_str(), None),
        };
        let Some((name, kind)) = keys.iter().find(|(name, _)| *name == key) else {
            return Err(unknown(key, value, keys));
        };
        let value = typed(name, *kind, value)?;
        if table.insert((*name).to_owned(), value).is_some() {
            return Err(format!("`{name}` is given twice; give it once"));
        }
    }
    Ok(table)
}

/// What is wrong with a key, and what may have been meant.
fn unknown(key: &str, value: Option<&str>, keys: Keys) -> String {
    let known: Vec<_> = keys.iter().map(|(name, _)| *name).collect();
    let trimmed = key.trim();
    let first = known.first().copied().unwrap_or_default();
    let hint = if trimmed.is_empty() {
        format!("; give `{first}=…`, without an empty place between commas")
    } else if known.contains(&trimmed) {
        format!("; leave out the space before `{trimmed}`")
    } else if value.is_none() && key.contains(['/', '.']) {
        format!("; for a file write `{first}={key}`")
    } else {
        meant::question(key, &known)
    };
    let stop = if hint.ends_with('?') { "" } else { ";" };
    format!(
        "unknown key `{key}`{hint}{stop} known are {} (a comma within a value is written `,,`)",
        known.join(", ")
    )
}

/// A message of serde's as the user hears it.
pub fn told(message: &str) -> String {
    format!("{message}{}", meant::question_after(message))
}

fn typed(key: &str, kind: Type, value: Option<&str>) -> Result<Value, String> {
    match (kind, value) {
        (Type::Switch, None | Some("on")) => Ok(Value::Boolean(true)),
        (Type::Switch, Some("off")) => Ok(Value::Boolean(false)),
        (Type::Switch, Some(other)) => {
            let question = meant::question(other, &["on", "off"]);
            Err(format!("`{key}={other}`: give `on` or `off`{question}"))
        }
        (_, None | Some("")) => Err(format!("`{key}` needs a value: `{key}=…`")),
        (Type::Text, Some(text)) => Ok(Value::String(text.to_owned())),
        (Type::Number, Some(digits)) => digits
            .parse()
            .map(Value::Integer)
            .map_err(|_| format!("`{key}={digits}`: give a decimal number")),
    }
}

/// Splits at single commas; a doubled one stands for itself.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts
}

/// The settings that a table holds.
///
/// # Errors
/// A message that names the key and what would be right.
pub fn settings<T: de::DeserializeOwned>(table: Table) -> Result<T, String> {
    table
        .try_into()
        .map_err(|error: toml::de::Error| told(error.message()))
}

/// Reads one of an enum's words.
///
/// # Errors
/// A message that names the words there are.
pub fn word<T: de::DeserializeOwned>(text: &str) -> Result<T, String> {
    Value::String(text.to_owned())
        .try_into()
        .map_err(|error: toml::de::Error| told(error.message()))
}

/// A number of bytes, written with a unit: `512M`, `4G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
        let unit = text.get(digits.len()..).unwrap_or_default();
        let shift = match unit.to_ascii_uppercase().as_str() {
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(format!("`{text}` is not a size; write it as 512M or 4G")),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a size; write it as 512M or 4G"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 30 && bytes % (1 << 30) == 0 => write!(f, "{}G", bytes >> 30),
            bytes => write!(f, "{}M", bytes >> 20),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(source)? {
            Value::String(text) => text,
            Value::Integer(number) => number.to_string(),
            other => other.type_str().to_owned(),
        };
        text.parse().map_err(|_| {
            de::Error::custom(format!(
                "`{text}` is not a size; write it as \"512M\" or \"4G\""
            ))
        })
    }
}

/// How long to wait for somebody to listen on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// At most this long.
    For(Duration),
    /// Until a signal ends it.
    Forever,
}

impl std::str::FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
        let scale = match text.get(digits.len()..).unwrap_or_default() {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" => Some(60_000),
            _ => None,
        };
        let millis = digits.parse::<u32>().ok().map(u64::from);
        match (millis, scale) {
            (Some(count), Some(scale)) => Ok(Self::For(Duration::from_millis(count * scale))),
            _ => Err(format!(
                "`{text}` is not a wait; write it as 500ms, 10s, 2m or forever"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use outboard_protocol::launch::{Doorbell, KickPath};
    use proptest::prelude::*;

    use super::*;

    const KEYS: Keys = &[
        ("path", Type::Text),
        ("readonly", Type::Switch),
        ("queues", Type::Number),
    ];

    #[test]
    fn pairs_become_a_table() {
        let table = table("path=/a b=c,readonly,queues=4", KEYS).unwrap();
        assert_eq!(table["path"].as_str(), Some("/a b=c"));
        assert_eq!(table["readonly"].as_bool(), Some(true));
        assert_eq!(table["queues"].as_integer(), Some(4));
    }

    #[test]
    fn wrong_pairs_are_named() {
        for (text, words) in [
            ("", "unknown key ``; give `path=…`"),
            ("disk.img", "for a file write `path=disk.img`"),
            ("path=x, readonly", "leave out the space before `readonly`"),
            ("ro", "unknown key `ro`; did you mean `readonly`? known are"),
            ("num-queues=2", "did you mean `queues`?"),
            ("pth=a", "did you mean `path`?"),
            ("Path =a", "did you mean `path`?"),
            ("path=x,", "unknown key ``"),
            ("speed=9", "unknown key `speed`; known are path, readonly"),
            ("path", "`path` needs a value"),
            ("path=", "`path` needs a value"),
            ("readonly=yes", "give `on` or `off`; did you mean `on`?"),
            ("readonly=maybe", "give `on` or `off`"),
            ("queues=four", "give a decimal number"),
            ("path=a,path=b", "`path` is given twice"),
        ] {
            let error = table(text, KEYS).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_wrong_word_is_named_with_the_right_ones() {
        let error = word::<KickPath>("thread").unwrap_err();
        assert!(error.contains("expected one of `kvm`, `exit`, `worker`"));
        assert!(error.ends_with("; did you mean `worker`?"), "{error}");
        let error = word::<Doorbell>("mimo").unwrap_err();
        assert!(error.ends_with("; did you mean `mmio`?"), "{error}");
        let error = word::<Doorbell>("bell").unwrap_err();
        assert!(error.ends_with("`mmio` or `pio`"), "{error}");
    }

    #[test]
    fn sizes_and_waits_need_their_unit() {
        assert_eq!("512M".parse(), Ok(Size(512 << 20)));
        assert_eq!("4g".parse(), Ok(Size(4 << 30)));
        assert_eq!("0M".parse(), Ok(Size(0)));
        for wrong in [
            "",
            "512",
            "M",
            "4X",
            "-1G",
            "99999999999999999999G",
            "20000000T",
        ] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
        assert_eq!("10s".parse(), Ok(Wait::For(Duration::from_secs(10))));
        assert_eq!("forever".parse(), Ok(Wait::Forever));
        for wrong in ["", "10", "s", "10h", "-1s", "1.5s", "99999999999s"] {
            assert!(wrong.parse::<Wait>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_value_survives_when_its_commas_are_doubled(value in ".+", queues in 0..i64::MAX) {
            let text = format!("path={},queues={queues}", value.replace(',', ",,"));
            let table = table(&text, KEYS).unwrap();
            prop_assert_eq!(table["path"].as_str(), Some(value.as_str()));
            prop_assert_eq!(table["queues"].as_integer(), Some(queues));
        }

        #[test]
        fn no_text_is_too_strange_to_refuse(text in ".*") {
            let _ = table(&text, KEYS);
            let _ = text.parse::<Size>();
            let _ = text.parse::<Wait>();
        }

        #[test]
        fn a_size_is_written_as_it_is_read(mebibytes in 0u64..1 << 40) {
            let size = Size(mebibytes << 20);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
