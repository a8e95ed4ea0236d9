//! `key=value,…`: the value of an option, read into a struct whose fields are the
//! keys. The configuration file is read into the same struct, so that both have
//! one set of names, types and checks.
//!
//! ```text
//! path=disk.img,readonly,queues=2
//!   split at single commas ──▶ a field's name and a text ──▶ a value, by the field's type:
//!                              a text, a switch (bool), a decimal number (u64)
//! ```

use std::fmt;
use std::vec;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::meant;

/// Reads `key=value,…`. A comma within a value is written twice.
///
/// # Errors
/// A message that names the key or the value and what would be right.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    T::deserialize(Pairs(text)).map_err(|Wrong(text)| text)
}

/// Reads one of an enum's words.
///
/// # Errors
/// A message that names the words there are.
pub(crate) fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    T::deserialize(StrDeserializer::<Wrong>::new(text)).map_err(|Wrong(text)| text)
}

/// Reads a switch that need not be given (`deserialize_with`): in a file it is a
/// boolean, or `"on"` or `"off"`, since the command line has those.
///
/// # Errors
/// A message that says what would be right.
pub(crate) fn switch<'de, D: Deserializer<'de>>(source: D) -> Result<Option<bool>, D::Error> {
    source.deserialize_bool(Switch)
}

struct Switch;

impl Visitor<'_> for Switch {
    type Value = Option<bool>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true or false")
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<Option<bool>, E> {
        Ok(Some(on))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<bool>, E> {
        match text {
            "on" => Ok(Some(true)),
            "off" => Ok(Some(false)),
            _ => Err(E::custom("give true or false")),
        }
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Option<bool>, E> {
        Err(E::custom("give true or false"))
    }
}

/// What the user is told.
#[derive(Debug)]
struct Wrong(String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(meant::told(&message.to_string()))
    }
}

/// The value of an option, which only a struct can be read from.
struct Pairs<'a>(&'a str);

impl<'de> Deserializer<'de> for Pairs<'_> {
    type Error = Wrong;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_map(Fields {
            keys,
            left: split(self.0).into_iter(),
            read: Vec::new(),
            value: Value::default(),
        })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_struct("", &[], visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
        ignored_any
    }
}

/// The pairs as the fields of a struct.
struct Fields {
    keys: &'static [&'static str],
    left: vec::IntoIter<String>,
    /// The keys that were there already.
    read: Vec<&'static str>,
    /// The value of the last of them.
    value: Value,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Wrong> {
        let Some(pair) = self.left.next() else {
            return Ok(None);
        };
        let (key, text) = match pair.split_once('=') {
            Some((key, text)) => (key, Some(text)),
            None => (pair.as_str(), None),
        };
        let Some(key) = self.keys.iter().copied().find(|name| *name == key) else {
            return Err(Wrong(unknown(key, text, self.keys)));
        };
        if self.read.contains(&key) {
            return Err(Wrong(format!("`{key}` is given twice; give it once")));
        }
        self.read.push(key);
        let text = text.map(str::to_owned);
        self.value = Value { key, text };
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        seed.deserialize(std::mem::take(&mut self.value))
    }
}

/// What a key is set to.
#[derive(Default)]
struct Value {
    key: &'static str,
    /// `None` for a key without `=`.
    text: Option<String>,
}

impl Value {
    fn text(self) -> Result<String, Wrong> {
        let key = self.key;
        let text = self.text.filter(|text| !text.is_empty());
        text.ok_or_else(|| Wrong(format!("`{key}` needs a value: `{key}=…`")))
    }
}

impl<'de> Deserializer<'de> for Value {
    type Error = Wrong;

    /// `on` or `off`; the key alone means `on`.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.text.as_deref() {
            None | Some("on") => visitor.visit_bool(true),
            Some("off") => visitor.visit_bool(false),
            Some(other) => {
                let question = meant::question(other, &["on", "off"]);
                let key = self.key;
                Err(Wrong(format!(
                    "`{key}={other}`: give `on` or `off`{question}"
                )))
            }
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let key = self.key;
        let digits = self.text()?;
        match digits.parse() {
            Ok(number) => visitor.visit_u64(number),
            Err(_) => Err(Wrong(format!("`{key}={digits}`: give a decimal number"))),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    /// One of its words.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        StringDeserializer::new(self.text()?).deserialize_enum(name, words, visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_string(self.text()?)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// What is wrong with a key, and what may have been meant.
fn unknown(key: &str, value: Option<&str>, keys: &[&str]) -> String {
    let trimmed = key.trim();
    let first = keys.first().copied().unwrap_or_default();
    let hint = if trimmed.is_empty() {
        format!("; give `{first}=…`, without an empty place between commas")
    } else if keys.contains(&trimmed) {
        format!("; leave out the space before `{trimmed}`")
    } else if value.is_none() && key.contains(['/', '.']) {
        format!("; for a file write `{first}={key}`")
    } else {
        meant::question(key, keys)
    };
    let stop = if hint.ends_with('?') { "" } else { ";" };
    format!(
        "unknown key `{key}`{hint}{stop} known are {} (a comma within a value is written `,,`)",
        keys.join(", ")
    )
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

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use outboard_protocol::launch::{Doorbell, KickPath};
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq, Eq)]
    #[serde(rename_all = "kebab-case", default)]
    struct Given {
        path: Option<PathBuf>,
        readonly: bool,
        queues: Option<u64>,
        #[serde(deserialize_with = "switch")]
        wce: Option<bool>,
        bell: Option<Doorbell>,
    }

    fn given(text: &str) -> Result<Given, String> {
        read(text)
    }

    #[test]
    fn pairs_become_fields_by_their_types() {
        let all = given("path=/a b=c,readonly,queues=4,wce=off,bell=pio").unwrap();
        let expected = Given {
            path: Some("/a b=c".into()),
            readonly: true,
            queues: Some(4),
            wce: Some(false),
            bell: Some(Doorbell::Pio),
        };
        assert_eq!(all, expected);
        let few = given("readonly=off,wce").unwrap();
        assert_eq!((few.readonly, few.wce), (false, Some(true)));
        assert_eq!((few.path, few.queues), (None, None));
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
            ("queues", "`queues` needs a value"),
            ("readonly=yes", "give `on` or `off`; did you mean `on`?"),
            ("readonly=maybe", "give `on` or `off`"),
            ("readonly=", "give `on` or `off`"),
            ("wce=1", "give `on` or `off`; did you mean `on`?"),
            ("queues=four", "give a decimal number"),
            ("queues=-1", "give a decimal number"),
            ("bell=mimo", "did you mean `mmio`?"),
            ("path=a,path=b", "`path` is given twice"),
        ] {
            let error = given(text).unwrap_err();
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

    proptest! {
        #[test]
        fn any_value_survives_when_its_commas_are_doubled(value in ".+", queues: u64) {
            let text = format!("path={},queues={queues}", value.replace(',', ",,"));
            let given = given(&text).unwrap();
            prop_assert_eq!(given.path.as_deref(), Some(Path::new(&value)));
            prop_assert_eq!(given.queues, Some(queues));
        }

        #[test]
        fn no_text_is_too_strange_to_refuse(text in ".*") {
            let _ = given(&text);
        }
    }
}
