//! Quantities with their units: sizes in bytes and waits.

use std::fmt;
use std::time::Duration;

use outboard_protocol::size;
use serde::{Deserialize, Deserializer, de};
use toml::Value;

/// A number of bytes, written with a unit: `512M`, `4G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let has_unit = !text.ends_with(|last: char| last.is_ascii_digit());
        size::parse(text)
            .filter(|_| has_unit)
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
pub(crate) enum Wait {
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
        time(text)
            .map(Self::For)
            .ok_or_else(|| format!("`{text}` is not a wait; write it as 500ms, 10s, 2m or forever"))
    }
}

/// A time with its unit.
fn time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let scale = match text.get(digits.len()..)? {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return None,
    };
    let count = digits.parse::<u32>().ok().map(u64::from)?;
    Some(Duration::from_millis(count * scale))
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// How long a device's ring may stand still before its back-end is suspected to hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HangTimeout {
    /// This long.
    After(Duration),
    /// As long as it likes.
    Off,
}

impl HangTimeout {
    /// In milliseconds, as the machine is told.
    pub(crate) fn millis(self) -> Option<u32> {
        match self {
            Self::After(time) => Some(u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
            Self::Off => None,
        }
    }
}

impl Default for HangTimeout {
    fn default() -> Self {
        Self::After(Duration::from_secs(5))
    }
}

impl std::str::FromStr for HangTimeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LEAST: Duration = Duration::from_millis(100);
        const MOST: Duration = Duration::from_secs(3600);
        match (text, time(text)) {
            ("off", _) => Ok(Self::Off),
            (_, Some(time)) if (LEAST..=MOST).contains(&time) => Ok(Self::After(time)),
            (_, Some(_)) => Err(format!("`{text}`: give 100ms to 60m, or off")),
            (_, None) => Err(format!(
                "`{text}` is not a hang-timeout; write it as 500ms, 10s, 2m or off"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for HangTimeout {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    #[test]
    fn a_hang_timeout_is_within_reason_or_off() {
        let of = |text: &str| text.parse().map(HangTimeout::millis);
        for (text, millis) in [
            ("100ms", Some(100)),
            ("7s", Some(7_000)),
            ("60m", Some(3_600_000)),
            ("off", None),
        ] {
            assert_eq!(of(text), Ok(millis), "{text}");
        }
        assert_eq!(HangTimeout::default().millis(), Some(5_000));
        for (wrong, words) in [
            ("99ms", "give 100ms to 60m"),
            ("61m", "give 100ms to 60m"),
            ("0s", "give 100ms to 60m"),
            ("", "not a hang-timeout"),
            ("5", "not a hang-timeout"),
            ("on", "not a hang-timeout"),
            ("forever", "not a hang-timeout"),
        ] {
            let error = of(wrong).unwrap_err();
            assert!(error.contains(words), "{wrong}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange_to_refuse(text in ".*") {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Wait>();
            let _ = text.parse::<HangTimeout>();
        }

        #[test]
        fn a_size_is_written_as_it_is_read(mebibytes in 0u64..1 << 40) {
            let size = Size(mebibytes << 20);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
